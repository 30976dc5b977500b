//! `scale` down: the slot goes as soon as its server has ended, while the connections that it gave back are still on their way.

use std::io::Write;
use std::net::TcpStream;

use super::clients::answer;
use super::{keeps, launch};
use crate::support::{roundsman, seconds};

#[test]
fn idle_clients_of_a_slot_that_is_scaled_away_stay() {
    let daemon = launch(2, &["--env", "KEEPS=brief"], &["python3", &keeps()]);
    let ask = |stream: &mut TcpStream| {
        stream.write_all(b"GET /idle HTTP/1.1\r\n\r\n").and_then(|()| answer(stream)).map(|answer| answer.len())
    };
    let mut streams: Vec<_> = (0..120).map(|_| TcpStream::connect(("127.0.0.1", daemon.port)).unwrap()).collect();
    for stream in &mut streams {
        stream.set_read_timeout(Some(seconds(20))).unwrap();
        ask(stream).unwrap();
    }
    let of_last = daemon.slot(1, "open").as_u64().unwrap();
    let scaled = roundsman().args(["scale", "1"]).env("ROUNDSMAN_CONTROL", daemon.control()).output().unwrap();
    assert!(scaled.status.success(), "{scaled:?}");
    let closed = streams.iter_mut().filter_map(|stream| ask(stream).err()).count();
    assert_eq!(closed, 0, "of {of_last}\n{}", daemon.log());
}
