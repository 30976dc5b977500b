//! Weights and backups of upstreams, over several relay workers.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};

use crate::support::{Daemon, Upstream, eventually, free_port, read_all, seconds};

fn named(name: &'static str) -> Upstream {
    Upstream::start(move |mut stream| stream.write_all(name.as_bytes()))
}

/// The client's end comes first: where it came after the server's, a worker that runs late would have the connection open while
/// the next ones go elsewhere.
fn ask(port: u16) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    stream.set_read_timeout(Some(seconds(20))).unwrap();
    String::from_utf8_lossy(&read_all(&mut stream).unwrap()).into_owned()
}

fn counts<const N: usize>(all: &[Upstream; N]) -> [usize; N] {
    all.each_ref().map(Upstream::count)
}

#[test]
fn short_connections_go_by_the_weights() {
    for (weights, total, expected) in
        [([1, 3, 0], 200, [50, 150, 0]), ([1, 256, 0], 514, [2, 512, 0]), ([2, 1, 1], 200, [100, 50, 50])]
    {
        let all = [named("a"), named("b"), named("c")];
        let words: Vec<_> =
            all.iter().zip(weights).map(|(one, weight)| format!("{},weight={weight}", one.arg())).collect();
        let daemon = Daemon::start(&["-i", "3", "-u", &words.join(",")]);
        daemon.wait_online(3);
        for _ in 0..total {
            ask(daemon.port);
        }
        let counts = counts(&all);
        assert_eq!(counts.iter().sum::<usize>(), total);
        // One that was passed over once has its turn later, the last one perhaps not any more.
        let close = counts.iter().zip(expected).all(|(count, expected)| count.abs_diff(expected) <= 2);
        assert!(close, "{weights:?}: {counts:?}");
    }
}

#[test]
fn connections_that_stay_open_go_by_the_weights_too() {
    let all = [Upstream::echo(), Upstream::echo()];
    let [a, b] = all.each_ref().map(Upstream::arg);
    let daemon = Daemon::start(&["-i", "2", "-u", &format!("{a},weight=3"), "-u", &b]);
    daemon.wait_online(2);
    let connect = || {
        let mut stream = TcpStream::connect(("127.0.0.1", daemon.port)).unwrap();
        stream.write_all(b"x").unwrap();
        stream.read_exact(&mut [0]).unwrap();
        stream
    };
    let mut kept: Vec<_> = (0..40).map(|_| connect()).collect();
    assert_eq!(counts(&all), [30, 10]);
    // Half of them end, of whichever upstream: the next ones restore the proportion.
    kept.truncate(20);
    eventually("they are gone", seconds(5), || (daemon.total("open") == 20).then_some(()));
    kept.extend((0..40).map(|_| connect()));
    let shown = daemon.ls()["services"][0]["upstreams"].clone();
    assert_eq!([&shown[0]["open"], &shown[1]["open"]], [45, 15], "{shown}");
    assert_eq!([&shown[0]["weight"], &shown[1]["weight"]], [3, 1], "{shown}");
}

#[test]
fn a_backup_gets_connections_only_while_no_other_is_up() {
    let backup = named("backup");
    let port = free_port();
    let main = format!("127.0.0.1:{port}");
    let daemon = Daemon::start(&["-i", "2", "-u", &format!("{},backup", backup.arg()), "-u", &main]);
    daemon.wait_online(2);
    let listener = TcpListener::bind(&main).unwrap();
    let answer = |mut stream: TcpStream| drop(stream.write_all(b"main"));
    std::thread::scope(|scope| {
        let serving = scope.spawn(|| listener.incoming().take(50).map_while(Result::ok).for_each(answer));
        for _ in 0..50 {
            assert_eq!(ask(daemon.port), "main");
        }
        serving.join().unwrap();
    });
    drop(listener);
    for _ in 0..50 {
        assert_eq!(ask(daemon.port), "backup");
    }
    daemon.wait_for("upstream down");
    let listener = TcpListener::bind(&main).unwrap();
    std::thread::spawn(move || listener.incoming().map_while(Result::ok).for_each(answer));
    eventually("the other one is used again", seconds(20), || (ask(daemon.port) == "main").then_some(()));
    daemon.wait_for("upstream up again");
    assert!((0..20).all(|_| ask(daemon.port) == "main"));
    let shown = daemon.ls()["services"][0]["upstreams"].clone();
    assert!(shown[0]["backup"] == true && shown[1]["backup"] == false, "{shown}");
}
