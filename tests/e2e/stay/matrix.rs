//! Mostly waits: which connections stay, by delivery and by what else is configured or done.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::clients::answer;
use super::{keeps, reload};
use crate::support::{Daemon, eventually, free_port, install_dir, roundsman, seconds};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Via {
    Direct,
    Relay,
}
use Via::{Direct, Relay};

impl Via {
    fn server(self, daemon: &Daemon, slot: usize) -> String {
        daemon.slot(slot, if self == Relay { "server_pid" } else { "pid" }).to_string()
    }
}

/// A client, over whichever kind of socket.
trait Stream: Read + Write + Send {}
impl<T: Read + Write + Send> Stream for T {}
type Client = Box<dyn Stream>;

/// What its answer says: the server's pid.
fn ask(client: &mut Client, path: &str) -> std::io::Result<String> {
    client.write_all(format!("GET {path} HTTP/1.1\r\n\r\n").as_bytes())?;
    let text = String::from_utf8(answer(client)?).unwrap();
    let body = text.split_once("\r\n\r\n").unwrap().1;
    assert!(body.ends_with(path), "{body}");
    Ok(body.split(' ').next().unwrap().to_owned())
}

fn launch(via: Via, listen: &str, port: u16, slots: usize, options: &[&str]) -> Daemon {
    let (instances, keeps) = (slots.to_string(), keeps());
    let mut all = vec!["-n", "web", "-l", listen, "-i", &instances, "--min-uptime", "100ms", "--drain-idle", "move"];
    // A busy machine's workers keep what they were given.
    all.extend(["--listen-timeout", "60s", "--stall-timeout", "1h"]);
    all.extend(["--via", if via == Relay { "relay" } else { "direct" }]);
    if !options.contains(&"--drain-timeout") {
        all.extend(["--drain-timeout", "30s"]);
    }
    all.extend(options);
    all.extend(["--", "python3", &keeps]);
    let daemon = Daemon::launch(roundsman(), &all, port);
    daemon.wait_online(slots);
    daemon
}

fn tcp(address: &str, port: u16, count: usize) -> Vec<Client> {
    let connect = |_| {
        let stream = TcpStream::connect((address, port)).unwrap();
        stream.set_read_timeout(Some(seconds(20))).unwrap();
        Box::new(stream) as Client
    };
    (0..count).map(connect).collect()
}

fn command(daemon: &Daemon, words: &[&str]) {
    let done = roundsman().args(words).env("ROUNDSMAN_CONTROL", daemon.control()).output().unwrap();
    assert!(done.status.success(), "{words:?}: {done:?}\n{}", daemon.log());
}

/// How many of them each server answers.
fn answered(clients: &mut [Client], by: &[String], cell: &str, daemon: &Daemon) -> Vec<usize> {
    let mut counts = vec![0; by.len()];
    for client in clients {
        let pid = ask(client, "/idle").unwrap_or_else(|error| panic!("{cell}: {error}\n{}", daemon.log()));
        let at = by.iter().position(|server| *server == pid).unwrap_or_else(|| panic!("{cell}: {pid} of {by:?}"));
        counts[at] += 1;
    }
    counts
}

/// Two slots with clients, `away` for the first, a reload, `back`, another.
fn a_slot_that_gets_none(via: Via, away: &[&str], back: &[&str]) {
    let cell = format!("{via:?}, {away:?}");
    let port = free_port();
    let daemon = launch(via, &format!("127.0.0.1:{port}"), port, 2, &[]);
    let servers = || [via.server(&daemon, 0), via.server(&daemon, 1)];
    let mut clients = tcp("127.0.0.1", port, 8);
    let before = answered(&mut clients, &servers(), &cell, &daemon);
    assert!(before[0] > 0, "{cell}: {before:?}");
    command(&daemon, away);
    assert_eq!(answered(&mut clients, &servers(), &cell, &daemon), before, "{cell}: only new ones go elsewhere");
    reload(&daemon);
    assert_eq!(answered(&mut clients, &servers(), &cell, &daemon), [0, 8], "{cell}\n{}", daemon.log());
    command(&daemon, back);
    reload(&daemon);
    let both = answered(&mut clients, &servers(), &cell, &daemon);
    assert_eq!(both.iter().sum::<usize>(), 8, "{cell}");
    assert!(daemon.total("moved") >= 16, "{cell}");
}

fn by_address(via: Via) {
    let port = free_port();
    let daemon = launch(via, &format!("127.0.0.1:{port}"), port, 3, &["-p", "ip-hash"]);
    let mut clients = tcp("127.0.0.1", port, 6);
    let cell = format!("{via:?}, ip-hash");
    let servers = || [0, 1, 2].map(|slot| via.server(&daemon, slot));
    let before = answered(&mut clients, &servers(), &cell, &daemon);
    assert!(before.contains(&6), "{cell}: {before:?}");
    reload(&daemon);
    assert_eq!(answered(&mut clients, &servers(), &cell, &daemon), before, "{cell}: the same slot");
    assert!(daemon.total("moved") >= 6, "{cell}");
}

fn by_ipv6(via: Via) {
    for listen in ["::1", "::"] {
        let port = free_port();
        let daemon = launch(via, &format!("[{listen}]:{port}"), port, 1, &[]);
        let mut clients = tcp("::1", port, 4);
        if listen == "::" {
            clients.extend(tcp("127.0.0.1", port, 4));
        }
        let (cell, count) = (format!("{via:?}, {listen}"), clients.len());
        answered(&mut clients, &[via.server(&daemon, 0)], &cell, &daemon);
        reload(&daemon);
        answered(&mut clients, &[via.server(&daemon, 0)], &cell, &daemon);
        assert_eq!(daemon.total("moved"), count as u64, "{cell}\n{}", daemon.log());
    }
}

fn scaled_down_by_relay() {
    let port = free_port();
    let daemon = launch(Relay, &format!("127.0.0.1:{port}"), port, 3, &[]);
    let mut clients = tcp("127.0.0.1", port, 9);
    let servers = || [0, 1, 2].map(|slot| Relay.server(&daemon, slot));
    let before = answered(&mut clients, &servers(), "scale", &daemon);
    assert!(before[1] + before[2] > 0, "{before:?}");
    command(&daemon, &["scale", "1"]);
    assert_eq!(answered(&mut clients, &[Relay.server(&daemon, 0)], "scale", &daemon), [9]);
}

/// The kernel counts nothing for it, so it stays until the drain's end.
fn over_a_unix_socket() {
    let dir = install_dir();
    let path = dir.path().join("s");
    let daemon = launch(Relay, &format!("unix:{}", path.display()), 0, 1, &["--drain-timeout", "1s"]);
    let stream = UnixStream::connect(&path).unwrap();
    stream.set_read_timeout(Some(seconds(20))).unwrap();
    let mut client: Client = Box::new(stream);
    ask(&mut client, "/idle").unwrap();
    reload(&daemon);
    assert_eq!(client.read(&mut [0]).unwrap(), 0);
    assert_eq!(daemon.total("moved"), 0);
    ask(&mut (Box::new(UnixStream::connect(&path).unwrap()) as Client), "/idle").unwrap();
}

/// A relay worker that leaves goes on with what it has while the master hangs, and gives the rest back then.
fn by_relay_while_the_master_hangs() {
    let port = free_port();
    let daemon = launch(Relay, &format!("127.0.0.1:{port}"), port, 1, &[]);
    let mut clients = tcp("127.0.0.1", port, 3);
    let old = Relay.server(&daemon, 0);
    clients.iter_mut().for_each(|client| drop(ask(client, "/idle").unwrap()));
    for (client, path) in clients.iter_mut().zip(["/slow", "/slower"]) {
        client.write_all(format!("GET {path} HTTP/1.1\r\n\r\n").as_bytes()).unwrap();
    }
    let reload = roundsman().arg("reload").env("ROUNDSMAN_CONTROL", daemon.control()).spawn();
    eventually("the idle one has moved", seconds(20), || (daemon.total("moved") > 0).then_some(()));
    let master = Pid::from_raw(daemon.pid() as i32);
    kill(master, Signal::SIGSTOP).unwrap();
    for client in &mut clients[..2] {
        assert!(String::from_utf8(answer(client).unwrap()).unwrap().contains(&format!("{old} /slow")));
    }
    kill(master, Signal::SIGCONT).unwrap();
    assert!(reload.unwrap().wait().unwrap().success(), "{}", daemon.log());
    let new = Relay.server(&daemon, 0);
    assert_ne!(old, new);
    assert_eq!(answered(&mut clients, &[new], "hangs", &daemon), [3], "{}", daemon.log());
    assert_eq!(daemon.total("moved"), 3);
}

#[test]
fn connections_stay_whatever_else_is_configured_or_done() {
    let cells: Vec<(String, Box<dyn Fn() + Send>)> = [Direct, Relay]
        .into_iter()
        .flat_map(|via| {
            let named = |name: &str, act: Box<dyn Fn() + Send>| (format!("{via:?} {name}"), act);
            [
                named(
                    "drain",
                    Box::new(move || a_slot_that_gets_none(via, &["drain", "web/0"], &["undrain", "web/0"])),
                ),
                named(
                    "weight",
                    Box::new(move || a_slot_that_gets_none(via, &["weight", "web/0", "0"], &["weight", "web/0", "1"])),
                ),
                named("ip-hash", Box::new(move || by_address(via))),
                named("IPv6", Box::new(move || by_ipv6(via))),
            ]
        })
        .chain([
            ("scale".to_owned(), Box::new(scaled_down_by_relay) as Box<dyn Fn() + Send>),
            ("Unix".to_owned(), Box::new(over_a_unix_socket)),
            ("master".to_owned(), Box::new(by_relay_while_the_master_hangs)),
        ])
        .collect();
    std::thread::scope(|scope| {
        for (name, cell) in cells {
            std::thread::Builder::new().name(name).spawn_scoped(scope, cell).unwrap();
        }
    });
}
