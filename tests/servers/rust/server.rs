//! server [PORT]: answers with its slot and the client's port.
use std::io::{Read, Write};
use std::net::TcpListener;

fn main() {
    let port = std::env::args().nth(1).or_else(|| std::env::var("PORT").ok()).unwrap().parse().unwrap();
    let slot = std::env::var("ROUNDSMAN_SLOT").unwrap();
    let listener = TcpListener::bind(("127.0.0.1", port)).unwrap();
    for client in listener.incoming().flatten() {
        let slot = slot.clone();
        std::thread::spawn(move || {
            let (mut client, mut head) = (client, [0; 4096]);
            let _ = client.read(&mut head);
            let body = format!("slot {slot} peer {}", client.peer_addr().unwrap().port());
            let _ = write!(client, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len());
        });
    }
}
