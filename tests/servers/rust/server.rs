//! server [PORT]: answers with the client's port.
use std::io::{Read, Write};
use std::net::TcpListener;

fn main() {
    let port = std::env::args().nth(1).or_else(|| std::env::var("PORT").ok()).unwrap().parse().unwrap();
    let listener = TcpListener::bind(("127.0.0.1", port)).unwrap();
    for client in listener.incoming().flatten() {
        std::thread::spawn(move || {
            let (mut client, mut head) = (client, [0; 4096]);
            let _ = client.read(&mut head);
            let body = format!("peer {}\n", client.peer_addr().unwrap().port());
            let _ = write!(client, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len());
        });
    }
}
