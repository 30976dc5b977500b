use super::*;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

#[test]
fn what_a_dead_worker_had_not_received_is_taken_back_with_its_bytes() {
    let (queue, worker) = QueueTx::to_relay(Carries::Sockets).unwrap();
    let mut clients = Vec::new();
    for n in 0..50u8 {
        let (mut client, server) = UnixStream::pair().unwrap();
        client.write_all(&[n]).unwrap();
        queue.send([server.as_fd()].into_iter(), 1).unwrap();
        clients.push(client);
    }
    assert_eq!(queue.pending(), 50);
    drop(worker);
    let back = queue.take_back();
    assert_eq!((back.len(), queue.pending()), (50, 0));
    for (n, TakenBack { socket, .. }) in back.into_iter().enumerate() {
        let mut byte = [0];
        UnixStream::from(socket).read_exact(&mut byte).unwrap();
        assert_eq!(usize::from(byte[0]), n);
    }
}

#[test]
fn an_empty_message_keeps_pending_at_one_until_received() {
    let (queue, worker) = QueueTx::to_relay(Carries::Sockets).unwrap();
    let mut worker = QueueRx::new(worker, Carries::Sockets);
    queue.send_empty().unwrap();
    assert_eq!(queue.pending(), 1);
    let mut sockets = Vec::new();
    assert_eq!(worker.receive(&mut sockets, &mut Vec::new()).unwrap(), Reception::Message { lost: 0, accepted: 0 });
    assert!(sockets.is_empty());
    assert_eq!(queue.pending(), 0);
    assert_eq!(worker.receive(&mut sockets, &mut Vec::new()).unwrap(), Reception::Empty);
    drop(queue);
    assert_eq!(worker.receive(&mut sockets, &mut Vec::new()).unwrap(), Reception::Closed);
}

#[test]
fn a_server_that_fills_its_queue_for_ever_is_not_drained_for_ever() {
    use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
    let queue = QueueTx::to_server(0, Carries::Sockets).unwrap();
    let (_, keep) = queue.ends().unwrap();
    let (_client, socket) = UnixStream::pair().unwrap();
    let ours = direct_payload(payload::SOCKET, &PeerAddress::default(), 1, 1);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !done.load(Relaxed) {
                    let _ = scm::send_fds(keep.as_fd(), &ours, std::iter::once(socket.as_fd()));
                }
            });
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
        let pending = queue.pending();
        let back = queue.take_back();
        done.store(true, Relaxed);
        assert!((1..=pending + 8).contains(&back.len()), "{} of {pending}", back.len());
    });
}

#[test]
fn a_wake_comes_with_a_socket_and_is_not_taken_back() {
    let queue = QueueTx::to_server(0, Carries::Sockets).unwrap();
    let (theirs, _) = queue.ends().unwrap();
    for (to, family) in [("127.0.0.1:80", libc::AF_INET), ("0.0.0.0:80", libc::AF_INET), ("[::1]:80", libc::AF_INET6)] {
        queue.send_wake(to.parse().unwrap()).unwrap();
        let (mut bytes, mut sockets) = ([0; payload::DIRECT_BYTES], Vec::new());
        scm::recv_fds(theirs.as_fd(), &mut bytes, &mut sockets).unwrap();
        assert_eq!(bytes[offset_of!(payload::Direct, tag)], payload::WAKE, "{to}");
        let own = PeerAddress::own(sockets[0].as_fd());
        let at = offset_of!(payload::Direct, address);
        assert_eq!(bytes[at..at + own.bytes.len()], own.bytes, "{to}");
        assert_eq!(i32::from(u16::from_ne_bytes([own.bytes[0], own.bytes[1]])), family, "{to}");
    }
    // Documentation's own: no machine has it.
    let error = queue.send_wake("192.0.2.1:80".parse().unwrap()).unwrap_err();
    assert_eq!((error.raw_os_error(), queue.pending()), (Some(libc::EADDRNOTAVAIL), 0));
    // Its worker ends before it has received all of them: only the client goes to another one.
    let (_client, socket) = UnixStream::pair().unwrap();
    queue.send_wake("127.0.0.1:80".parse().unwrap()).unwrap();
    queue.send_batch(&[(socket.into(), Client::default())], 1, 1).unwrap();
    queue.send_wake("127.0.0.1:80".parse().unwrap()).unwrap();
    let back = queue.take_back();
    assert_eq!((back.len(), queue.pending()), (1, 0));
    assert!(UnixStream::from(back.into_iter().next().unwrap().socket).peer_addr().is_ok());
}

#[test]
fn messages_that_a_server_wrote_into_its_queue_are_not_taken_back() {
    let queue = QueueTx::to_server(0, Carries::Sockets).unwrap();
    let (_, keep) = queue.ends().unwrap();
    let file = std::fs::File::open("/dev/null").unwrap();
    let (_client, socket) = UnixStream::pair().unwrap();
    let send = |payload: &[u8], fds: &[BorrowedFd<'_>]| {
        scm::send_fds(keep.as_fd(), payload, fds.iter().copied()).unwrap();
    };
    send(&[1; payload::DIRECT_BYTES], &[file.as_fd()]);
    send(&[1; payload::DIRECT_BYTES], &[socket.as_fd(), socket.as_fd()]);
    send(&[1; 5], &[socket.as_fd()]);
    queue.send_batch(&[(socket.into(), Client::default())], 1, 1).unwrap();
    let back = queue.take_back();
    assert_eq!(back.len(), 1);
    assert!(sock::is_socket(back[0].socket.as_fd()));
}

#[test]
fn a_server_that_is_not_told_of_headers_gets_the_kernels_address() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let server = listener.accept().unwrap().0;
    let kernels = PeerAddress::from(client.local_addr().unwrap());
    let header = |text: &str| PeerAddress::from(text.parse::<SocketAddr>().unwrap());
    let (named, destination) = (header("192.0.2.7:56324"), Some(Box::new(header("203.0.113.1:443"))));
    for (carries, expected) in [(Carries::Sockets, kernels), (Carries::Translations, named)] {
        let queue = QueueTx::to_server(0, carries).unwrap();
        let (rx, _keep) = queue.ends().unwrap();
        let accepted = OwnedFd::from(server.try_clone().unwrap());
        let sent = Client { address: named, destination: destination.clone(), key: None, foreign: false };
        queue.send_batch(&[(accepted, sent)], 1, 1).unwrap();
        let (mut bytes, mut sockets) = ([0; payload::DIRECT_TRANSLATED_BYTES], Vec::new());
        scm::recv_fds(rx.as_fd(), &mut bytes, &mut sockets).unwrap();
        assert_eq!(endpoint(&bytes, offset_of!(payload::Direct, address_len)), Some(expected), "{carries:?}");
    }
}

#[test]
fn a_server_is_told_of_sockets_that_were_used_before() {
    let named = Some(Box::new(PeerAddress::from("203.0.113.1:443".parse::<SocketAddr>().unwrap())));
    for (carries, foreign, destination, expected) in [
        (Carries::Sockets, false, None, payload::SOCKET),
        (Carries::Sockets, true, None, payload::USED),
        (Carries::Sockets, false, named, payload::USED),
        // The master may have read a header that named nobody.
        (Carries::Translations, false, None, payload::USED),
    ] {
        let queue = QueueTx::to_server(0, carries).unwrap();
        let (rx, _keep) = queue.ends().unwrap();
        let socket = OwnedFd::from(std::os::unix::net::UnixStream::pair().unwrap().0);
        let client = Client { address: PeerAddress::default(), destination, key: None, foreign };
        queue.send_batch(&[(socket, client)], 1, 1).unwrap();
        let (mut bytes, mut sockets) = ([0; payload::DIRECT_TRANSLATED_BYTES], Vec::new());
        scm::recv_fds(rx.as_fd(), &mut bytes, &mut sockets).unwrap();
        assert_eq!(bytes[offset_of!(payload::Direct, tag)], expected, "{carries:?}, {foreign}");
    }
}
