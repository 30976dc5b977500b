//! Connections that leaving workers gave back.

use super::*;

#[test]
fn only_those_that_go_on_count_as_moved_and_others_are_closed() {
    use std::io::Read;
    use std::sync::atomic::Ordering::Relaxed;

    let (mut dispatcher, cx, socket) = dispatcher(2);
    let stats = crate::accept::orders::SlotStats::default();
    let address = socket2::SockRef::from(&socket).local_addr().unwrap().as_socket().unwrap();
    let connection = || {
        let client = std::net::TcpStream::connect(address).unwrap();
        let accepted = loop {
            if let Ok((accepted, _)) = socket2::SockRef::from(&socket).accept() {
                break accepted;
            }
        };
        (client, crate::sys::closer::Foreign::received(accepted.into()))
    };
    let mut clients = Vec::new();
    for listener in [0, 0, 0, 7] {
        let (client, given) = connection();
        dispatcher.moved((0, &stats), listener, (given, None), Instant::now(), &cx);
        dispatcher.count_waiting(&cx);
        clients.push(client);
    }
    assert_eq!(stats.moved.load(Relaxed), 2);
    for refused in &mut clients[2..] {
        refused.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        assert_eq!(refused.read(&mut [0]).unwrap(), 0);
    }
    let (mut stops, cx, _) = self::dispatcher(16);
    stops.stop();
    let (_client, given) = connection();
    stops.moved((0, &stats), 0, (given, None), Instant::now(), &cx);
    assert_eq!(stats.moved.load(Relaxed), 2, "it stops");
}
