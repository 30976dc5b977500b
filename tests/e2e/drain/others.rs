//! The servers of the tables lose no answer either, however they are told to go.
//! Mostly waits: tests/run runs it beside others.

use std::io::Write;
use std::net::TcpStream;
use std::path::Path;

use nix::sys::signal::Signal;

use super::matrix::{Cell, Kind, Verb};
use crate::support::table::{Client, Server, long_table, table};
use crate::support::{Daemon, free_port, install_dir, millis, read_all, roundsman, seconds, servers, unsaid};

/// Those of the tables that are spoken to in plain HTTP, and whether they listen where they are told, as a relay needs.
fn others(table: fn(&Path, u16) -> Vec<Server>, dir: &Path, port: u16) -> Vec<(Server, bool)> {
    let told = |name: &str| {
        ["node", "Node", "Fastify", "python", "accept", "a process"].iter().any(|one| name.starts_with(one))
    };
    let plain = table(dir, port).into_iter().filter(|server| server.client == Client::Http);
    plain
        .map(|server| {
            let told = told(server.name);
            (server, told)
        })
        .collect()
}

/// A request whose client is slow: half of it before the verb, the rest after it.
fn slow_request(port: u16) -> TcpStream {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(seconds(30))).unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n").unwrap();
    stream
}

/// Each verb on a server whose answers take no time: what is in flight is half a request, on each of two workers.
fn finishes(server: &Server, via: &str, port: u16) {
    let listen = format!("127.0.0.1:{port}");
    let mut words = vec![
        "-l",
        &listen,
        "--via",
        via,
        "-i",
        "2",
        "--min-uptime",
        "500ms",
        "--drain-timeout",
        "20s",
        "--stop-timeout",
        "30s",
        "--",
    ];
    words.extend(server.command.iter().map(String::as_str));
    for verbs in [&[Verb::Reload, Verb::Restart, Verb::ScaleDown, Verb::Signal(Signal::SIGTERM)][..], &[Verb::Stop]] {
        let mut program = roundsman();
        let mark = format!("DRAIN_CELL={}-{port}", std::process::id());
        let (name, value) = mark.split_once('=').unwrap();
        program.env(name, value).env("SERVERS", servers());
        let daemon = Daemon::launch(program, &words, port);
        daemon.wait_online(2);
        let mut cell =
            Cell { daemon, name: format!("{} by {via}", server.name), mark, kind: Kind::Other, dir: install_dir() };
        for &verb in verbs {
            let what = format!("{}: {verb:?}", cell.name);
            (0..8).for_each(|_| drop(server.client.ask(port)));
            // Processes of their own that some servers fork have their handlers by then.
            std::thread::sleep(millis(700));
            let open: Vec<_> = (0..4).map(|_| slow_request(port)).collect();
            // Most have received them by then; in the queue of one that serves one after the other they count, too.
            std::thread::sleep(millis(200));
            let finish = std::thread::spawn(move || {
                // The verb is under way by then.
                std::thread::sleep(millis(700));
                // All at once: one that serves one after the other takes them in an order of its own.
                let mut open = open;
                let ends: Vec<_> = open.iter_mut().map(|open| open.write_all(b"Connection: close\r\n\r\n")).collect();
                let read = |(mut open, end): (TcpStream, std::io::Result<()>)| end.and_then(|()| read_all(&mut open));
                open.into_iter().zip(ends).map(read).collect::<Vec<_>>()
            });
            cell.tell(verb, &what);
            for answer in finish.join().unwrap() {
                let answer = answer.map(|answer| String::from_utf8_lossy(&answer).into_owned());
                let whole = answer
                    .as_ref()
                    .is_ok_and(|text| text.starts_with("HTTP/1.") && text.contains(" 200 ") && text.contains(" peer "));
                assert!(whole, "{what}: {answer:?}\n{}", cell.daemon.log());
            }
            let log = cell.daemon.log();
            unsaid(&log, &["time is up", "killed: "]);
        }
    }
}

#[test]
#[ignore = "long: tests/run --all"]
fn the_other_servers_lose_no_answer_however_they_are_told_to_go() {
    for table in [table, long_table] {
        let dir = install_dir();
        let all: Vec<_> = (0..others(table, dir.path(), 1).len()).collect();
        for some in all.chunks(4) {
            std::thread::scope(|scope| {
                for &at in some {
                    scope.spawn(move || {
                        let (dir, port) = (install_dir(), free_port());
                        let (server, told) = others(table, dir.path(), port).swap_remove(at);
                        finishes(&server, "direct", port);
                        if told {
                            finishes(&server, "relay", port);
                        }
                    });
                }
            });
        }
    }
}
