//! Weights beside other settings: direct delivery, `--worker-conns`, slow start; and those of upstreams under load.
//! Mostly waits: tests/run runs it beside others.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Instant;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use socket2::{Domain, Socket, Type};

use super::verbs::done;
use crate::support::{Daemon, Upstream, eventually, free_port, get, http_get, read_all, roundsman, seconds, slot_of};

const SERVER: &str = env!("CARGO_BIN_EXE_roundsman");

/// Two slots of a server, unless the options say otherwise.
fn start(via: &str, options: &[&str]) -> Daemon {
    let port = free_port();
    let listen = format!("127.0.0.1:{port}");
    let mut all =
        vec!["-n", "web", "-l", &listen, "-i", "2", "--via", via, "--min-uptime", "0s", "--backoff", "20ms..50ms"];
    all.extend(options);
    all.extend(["--", SERVER, "demo-server"]);
    let daemon = Daemon::launch(roundsman(), &all, port);
    daemon.wait_online(2);
    daemon
}

/// A connection from one of 200 addresses.
fn connect(port: u16, from: u8) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from((Ipv4Addr::new(127, 0, 1, 1 + from), 0)).into()).unwrap();
    socket.connect(&SocketAddr::from((Ipv4Addr::LOCALHOST, port)).into()).unwrap();
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(seconds(20))).unwrap();
    stream
}

/// The slot that answers on a connection, which stays open.
fn keep(mut stream: &TcpStream) -> usize {
    stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let mut text = String::new();
    while !text.ends_with('\n') || text.ends_with("\r\n") {
        let mut buffer = [0; 1024];
        let count = stream.read(&mut buffer).unwrap();
        assert!(count > 0, "closed");
        text += std::str::from_utf8(&buffer[..count]).unwrap();
    }
    slot_of(text.split_once("\r\n\r\n").unwrap().1)
}

#[test]
fn weights_hold_with_direct_delivery_and_every_policy() {
    for policy in ["rr", "least-conn", "ip-hash"] {
        let daemon = start("direct", &["--policy", policy]);
        let of_second =
            || (0..200).filter(|&from| slot_of(&http_get(&mut connect(daemon.port, from)).unwrap()) == 1).count();
        for (weight, least, most) in [("3", 130, 170), ("0", 0, 0), ("256", 190, 200), ("1", 75, 125)] {
            done(&daemon, &["weight", "web/1", weight], &format!("slot 1: weight {weight}, before "));
            let count = of_second();
            assert!((least..=most).contains(&count), "{policy}, weight {weight}: {count} of 200");
        }
    }
}

#[test]
fn weights_share_out_what_worker_conns_leaves_room_for() {
    for via in ["direct", "relay"] {
        let daemon = start(via, &["--worker-conns", "6"]);
        let held = |count: u64| {
            eventually(&format!("{count} wait"), seconds(20), || {
                (daemon.ls()["services"][0]["held"] == count).then_some(())
            });
        };
        done(&daemon, &["weight", "web/0", "3"], "weight 3");
        let mut open: Vec<_> = (0..8).map(|from| connect(daemon.port, from)).collect();
        let slots: Vec<_> = open.iter().map(keep).collect();
        let of_first = slots.iter().filter(|&&slot| slot == 0).count();
        assert_eq!(of_first, 6, "{via}: {slots:?}");
        // One is full: the limit comes first.
        open.extend((0..4).map(|from| connect(daemon.port, from)));
        assert!(open[8..].iter().all(|stream| keep(stream) == 1), "{via}");
        // Room in a slot without weight is none.
        done(&daemon, &["weight", "web/1", "0"], "weight 0");
        let at = slots.iter().position(|&slot| slot == 1).unwrap();
        drop(open.remove(at));
        let waiting = connect(daemon.port, 0);
        (&waiting).write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
        held(1);
        done(&daemon, &["weight", "web/1", "1"], "weight 1");
        let answer = String::from_utf8(read_all(&mut &waiting).unwrap()).unwrap();
        assert_eq!(slot_of(answer.split_once("\r\n\r\n").unwrap().1), 1, "{via}");
        held(0);
    }
}

#[test]
fn a_slow_start_grows_to_the_share_of_the_weight_after_a_crash() {
    const SLOW_START: u64 = 4;
    let daemon = start("direct", &["--slow-start", &format!("{SLOW_START}s")]);
    done(&daemon, &["weight", "web/1", "3"], "weight 3");
    let share = || (0..100).filter(|_| slot_of(&get(daemon.port).unwrap()) == 1).count();
    let warm = |at: usize| {
        eventually(&format!("slot {at} is warm"), seconds(30), || {
            (daemon.slot(at, "uptime_s").as_u64()? > SLOW_START).then_some(())
        });
    };
    warm(0);
    let begin = Instant::now();
    kill(Pid::from_raw(daemon.workers()[1]), Signal::SIGKILL).unwrap();
    eventually("another one is online", seconds(20), || {
        (daemon.slot(1, "restarts") == 1 && daemon.slot(1, "state") == "online").then_some(())
    });
    let cold = share();
    let grown = 3.0 * (0.1 + 0.9 * begin.elapsed().as_secs_f64() / SLOW_START as f64).min(1.0);
    let most = 100.0 * grown / (1.0 + grown) + 5.0;
    assert!(cold >= 10 && cold as f64 <= most, "{cold} % at the beginning, not 10 to {most:.0} %");
    warm(1);
    let warm = share();
    assert!((70..=80).contains(&warm), "{warm} % in the end");
}

fn named(name: &'static str) -> Upstream {
    Upstream::start(move |mut stream| stream.write_all(name.as_bytes()))
}

#[test]
fn the_weight_of_an_upstream_changes_under_load_and_nobody_notices() {
    for policy in ["rr", "none"] {
        let all = [named("a"), named("b")];
        let [a, b] = all.each_ref().map(Upstream::arg);
        let daemon = Daemon::start(&["-n", "px", "-i", "2", "-p", policy, "-u", &format!("{a},weight=2"), "-u", &b]);
        daemon.wait_online(2);
        let one = || {
            let mut stream = TcpStream::connect(("127.0.0.1", daemon.port)).unwrap();
            stream.shutdown(std::net::Shutdown::Write).unwrap();
            stream.set_read_timeout(Some(seconds(20))).unwrap();
            String::from_utf8(read_all(&mut stream).unwrap()).unwrap()
        };
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let client = || {
                while !over.load(SeqCst) {
                    let name = one();
                    assert!(name == "a" || name == "b", "{policy}: {name:?}");
                }
            };
            (0..5).for_each(|_| drop(scope.spawn(client)));
            let place = format!("px@{a}");
            for (weight, before) in [(0, 2), (256, 0), (0, 256), (3, 0)] {
                let says = format!("upstream {a}: weight {weight}, before {before}");
                done(&daemon, &["weight", &place, &weight.to_string()], &says);
                let count = all[0].count();
                if weight == 0 {
                    // What was on its way arrives; then nothing does.
                    eventually("it gets nothing more", seconds(20), || {
                        let (first, served) = (all[0].count(), all[1].count());
                        eventually("the other one does", seconds(20), || (all[1].count() > served + 20).then_some(()));
                        (all[0].count() == first).then_some(())
                    });
                } else {
                    eventually("it gets connections", seconds(20), || (all[0].count() > count + 20).then_some(()));
                }
            }
            over.store(true, SeqCst);
        });
        let count = (0..100).filter(|_| one() == "a").count();
        assert!((65..=85).contains(&count), "{policy}: {count} of 100 with weight 3 beside 1");
    }
}
