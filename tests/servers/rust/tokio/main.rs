//! server PORT: answers with its slot and the client's port.
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

fn main() {
    let port: u16 = std::env::args().nth(1).unwrap().parse().unwrap();
    let slot = std::env::var("ROUNDSMAN_SLOT").unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_io().build().unwrap();
    runtime.block_on(async {
        let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
        loop {
            let Ok((mut client, peer)) = listener.accept().await else { continue };
            let body = format!("slot {slot} peer {}", peer.port());
            tokio::spawn(async move {
                let _ = client.read(&mut [0; 4096]).await;
                let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
                let _ = client.write_all((head + &body).as_bytes()).await;
            });
        }
    });
}
