//! Mostly waits: `--drain-spread`, connections that end at times of their own.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use super::clients::answer;
use super::keeps;
use crate::support::{Daemon, free_port, millis, roundsman, seconds};

const CLIENTS: usize = 40;

#[test]
fn long_connections_end_one_by_one_and_requests_are_answered_first() {
    let port = free_port();
    let (listen, keeps) = (format!("127.0.0.1:{port}"), keeps());
    let mut all = vec!["-n", "web", "-l", &listen, "-i", "1", "--min-uptime", "100ms", "--via", "relay"];
    all.extend(["--drain-spread", "2s", "--drain-timeout", "20s", "--", "python3", &keeps]);
    let daemon = Daemon::launch(roundsman(), &all, port);
    daemon.wait_online(1);
    let ask = |path: &str| {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.set_read_timeout(Some(seconds(30))).unwrap();
        stream.write_all(format!("GET {path} HTTP/1.1\r\n\r\n").as_bytes()).unwrap();
        stream
    };
    let mut long: Vec<TcpStream> = (0..CLIENTS).map(|_| ask("/socket")).collect();
    for stream in &mut long {
        stream.read_exact(&mut [0; 80]).unwrap();
    }
    // Longer than the window.
    let mut slow = ask("/slower");
    std::thread::sleep(millis(100));
    let (began, reloads) = (Instant::now(), |daemon: &Daemon| {
        roundsman().arg("reload").env("ROUNDSMAN_CONTROL", daemon.control()).spawn().unwrap()
    });
    let mut reload = reloads(&daemon);
    let ends: Vec<Duration> = std::thread::scope(|scope| {
        let end = |mut stream: TcpStream| {
            // A byte more may come.
            while matches!(stream.read(&mut [0; 100]), Ok(1..)) {}
            began.elapsed()
        };
        let ends: Vec<_> = long.into_iter().map(|stream| scope.spawn(move || end(stream))).collect();
        ends.into_iter().map(|end| end.join().unwrap()).collect()
    });
    assert!(String::from_utf8(answer(&mut slow).unwrap()).unwrap().ends_with(" /slower"));
    assert_eq!(slow.read(&mut [0]).unwrap(), 0, "it ends then");
    assert!(reload.wait().unwrap().success(), "{}", daemon.log());
    let (first, last) = (*ends.iter().min().unwrap(), *ends.iter().max().unwrap());
    // 40 at random in 20 ticks: half of the window would be a chance of one in 10^11.
    assert!(last - first > seconds(1) && last < seconds(15), "{ends:?}");
    let mut near = ends.iter().map(|end| end.as_millis() / 200).collect::<Vec<_>>();
    near.sort_unstable();
    near.dedup();
    assert!(near.len() >= 5, "{ends:?}");
}
