//! Servers behind commands that drop privileges, as the entrypoints of container images do: the other user's process gets its
//! connections directly, without a word of the loader's.
//! Mostly waits: tests/run runs it beside others.

use std::fmt::Write as _;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::chown;
use std::path::Path;
use std::process::Command;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::direct::ask;
use crate::support::table::{NODE, PYTHON};
use crate::support::{Daemon, eventually, free_port, install_dir, roundsman, seconds, unsaid, write_file};

const DROPPERS: [&str; 5] = ["setpriv", "gosu", "runuser", "su", "chpst"];
const SERVERS: [&str; 4] = ["redis", "nginx", "node", "python"];
/// nobody's.
const UID: u32 = 65_534;

/// The command, run as nobody.
fn dropped(dropper: &str, command: &[String]) -> Vec<String> {
    let before: &[&str] = match dropper {
        "setpriv" => &["setpriv", "--reuid=65534", "--regid", "65534", "--clear-groups", "--"],
        "gosu" => &["gosu", "nobody"],
        "runuser" => &["runuser", "-u", "nobody", "--"],
        "chpst" => &["chpst", "-u", "nobody:nogroup"],
        "su" => {
            let line = format!("exec {}", command.join(" "));
            return ["su", "nobody", "-s", "/bin/sh", "-c", &line].map(str::to_owned).to_vec();
        }
        _ => unreachable!(),
    };
    before.iter().map(|&word| word.to_owned()).chain(command.iter().cloned()).collect()
}

/// A server's command; its directory is nobody's.
fn command(server: &str, dir: &Path, port: u16) -> Vec<String> {
    let port = port.to_string();
    let script = |name: &str, text: &str| write_file(dir, name, text).to_str().unwrap().to_owned();
    let words = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect();
    match server {
        "redis" => {
            let text = format!("port {port}\nbind 127.0.0.1\nsave \"\"\ndir {}\n", dir.display());
            words(&["redis-server", &script("redis.conf", &text)])
        }
        "nginx" => {
            let conf = crate::support::table::nginx_conf(dir, port.parse().unwrap(), "");
            words(&["nginx", "-e", "stderr", "-c", conf.to_str().unwrap()])
        }
        "node" => words(&["node", &script("a.js", NODE), &port]),
        "python" => words(&["/usr/bin/python3", &script("a.py", PYTHON), &port]),
        _ => unreachable!(),
    }
}

/// A directory of nobody's.
fn their_dir() -> tempfile::TempDir {
    let dir = install_dir();
    chown(dir.path(), Some(UID), None).unwrap();
    dir
}

/// A request; whether the server knew the client's port.
fn asks(server: &str, port: u16) -> bool {
    if server != "redis" {
        return ask(port).1;
    }
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(seconds(10))).unwrap();
    stream.write_all(b"CLIENT INFO\r\nQUIT\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text.contains(&format!(" addr={} ", stream.local_addr().unwrap()))
}

/// The rights of the daemon, which is root in any case.
#[derive(Debug, Clone, Copy)]
enum Rights {
    All,
    /// What Docker leaves: no CAP_SYS_PTRACE, so root may not look at other users' processes.
    Container,
    /// The fewest with which users can be changed: nor may root signal other users' processes.
    Fewest,
}

impl Rights {
    fn program(self) -> Command {
        let kept = match self {
            Self::All => return roundsman(),
            Self::Container => {
                "-all,+chown,+dac_override,+fowner,+fsetid,+kill,+setgid,+setuid,+setpcap,+net_bind_service,+net_raw,\
                 +sys_chroot,+mknod,+audit_write,+setfcap"
            }
            Self::Fewest => "-all,+setgid,+setuid",
        };
        let own = roundsman();
        let mut command = Command::new("setpriv");
        command.args(["--bounding-set", kept, "--inh-caps", "-all", "--"]).arg(own.get_program());
        command
    }

    fn start(self, port: u16, instances: &str, more: &[&str], command: &[String]) -> Daemon {
        let mut all = vec!["-i", instances, "--via", "direct"];
        all.extend(more);
        all.push("--");
        all.extend(command.iter().map(String::as_str));
        let daemon = Daemon::launch(self.program(), &all, port);
        daemon.wait_online(instances.parse().unwrap());
        daemon
    }
}

/// Serves by turns as nobody; goes on through a reload and a kill; and no loader complains.
fn serves(dropper: &str, server: &str, policy: &str, rights: Rights) {
    let what = format!("{dropper} {server} {policy} {rights:?}");
    let (dir, port) = (their_dir(), free_port());
    let command = dropped(dropper, &command(server, dir.path(), port));
    let mut daemon =
        rights.start(port, "2", &["-p", policy, "--backoff", "10ms..20ms", "--min-uptime", "100ms"], &command);
    assert!((0..20).all(|_| asks(server, port)), "{what}: the client's address");
    let counts: Vec<_> = daemon.slots().iter().map(|slot| slot["connections"].as_u64().unwrap()).collect();
    match policy {
        // A worker that the machine holds up is passed over.
        "rr" => assert!(counts.iter().all(|&count| count > 0), "{what}: {counts:?}"),
        _ => assert_eq!(counts.iter().sum::<u64>(), 20, "{what}"),
    }
    for pid in daemon.workers() {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let uid = status.lines().find(|line| line.starts_with("Uid:")).unwrap().to_owned();
        assert!(uid.split_whitespace().skip(1).all(|uid| uid == UID.to_string()), "{what}: {uid}");
    }
    let output = roundsman().arg("reload").env("ROUNDSMAN_CONTROL", daemon.control()).output().unwrap();
    assert!(output.status.success(), "{what}: {}", String::from_utf8_lossy(&output.stderr));
    assert!((0..6).all(|_| asks(server, port)), "{what}: after the reload");
    kill(Pid::from_raw(daemon.workers()[0]), Signal::SIGKILL).unwrap();
    assert!((0..6).all(|_| asks(server, port)), "{what}: after the kill");
    eventually("its successor", seconds(20), || (daemon.slot(0, "restarts") == 1).then_some(()));
    daemon.wait_online(2);
    assert!((0..6).all(|_| asks(server, port)), "{what}: at its successor");
    let end = daemon.stop_with_all_below();
    assert_eq!(end.code(), 0, "{what}: {}", end.log);
    unsaid(&end.log, &["ld.so", "attach refused", "did not end"]);
}

#[test]
fn a_server_of_another_user_gets_its_connections_directly() {
    for (dropper, server, policy, rights) in [
        ("setpriv", "redis", "rr", Rights::Container),
        ("gosu", "node", "rr", Rights::All),
        ("runuser", "nginx", "rr", Rights::Container),
        ("su", "python", "rr", Rights::All),
        ("su", "nginx", "none", Rights::Fewest),
        ("chpst", "redis", "none", Rights::Fewest),
    ] {
        serves(dropper, server, policy, rights);
    }
}

#[test]
#[ignore = "long: tests/run --all"]
fn every_server_behind_every_command_that_drops_privileges() {
    for dropper in DROPPERS {
        for server in SERVERS {
            for policy in ["rr", "none"] {
                for rights in [Rights::All, Rights::Container, Rights::Fewest] {
                    serves(dropper, server, policy, rights);
                }
            }
        }
    }
}

/// The parent binds, forks the one that accepts, and closes its own copy; a child of its own says that it is ready.
const PREFORK: &str = "
import os, socket, sys, time
s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1); s.bind(('127.0.0.1', int(sys.argv[1]))); s.listen(64)
if os.fork() == 0:
    while True:
        c, peer = s.accept(); c.recv(1000)
        body = b'slot %s peer %d' % (os.environ['ROUNDSMAN_SLOT'].encode(), peer[1])
        c.sendall(b'HTTP/1.0 200 OK\\r\\nContent-Length: %d\\r\\n\\r\\n' % len(body) + body); c.close()
s.close()
if os.fork() == 0:
    n = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); n.connect('\\0' + os.environ['NOTIFY_SOCKET'][1:]); n.send(b'READY=1')
    os._exit(0)
os.wait()
time.sleep(1000)
";

#[test]
fn what_a_containers_root_reads_of_them_it_reads_with_their_rights() {
    let (dir, port) = (their_dir(), free_port());
    let script = write_file(dir.path(), "prefork.py", PREFORK);
    let script = script.to_str().unwrap();
    let command = dropped("gosu", &["/usr/bin/python3", script, &port.to_string()].map(str::to_owned));
    let daemon = Rights::Container.start(port, "2", &["--wait-ready", "--min-uptime", "0s"], &command);
    // Beyond the second after which a listener goes that nobody has.
    let end = std::time::Instant::now() + seconds(2);
    while std::time::Instant::now() < end {
        assert!(ask(port).1);
    }
    unsaid(&daemon.log(), &["has closed what it listened on", "attach refused"]);
    drop(daemon);
    // One that lost its environment is named, and so is the cure.
    let port = free_port().to_string();
    let line = format!("exec env -i PATH=\"$PATH\" ROUNDSMAN_SLOT=0 gosu nobody /usr/bin/python3 {script} {port}");
    let all = ["-i", "1", "--", "sh", "-c", &line];
    let daemon = Daemon::launch(Rights::Container.program(), &all, 0);
    daemon.wait_for(&format!("listens on :{port} by itself: it was started without the environment that it got"));
    daemon.wait_for("let it keep LD_PRELOAD and ROUNDSMAN_ATTACH");
}

#[test]
fn a_command_that_clears_the_environment_is_not_chosen_for_direct_delivery() {
    let check = |words: &[&str]| {
        let output = roundsman().arg("check").args(words).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
    };
    let via = |words: &[&str]| {
        let (code, out, err) = check(&[&["-l", "8080", "--"], words].concat());
        assert_eq!(code, 0, "{err}");
        out.lines().find(|line| line.starts_with("via = ")).unwrap().to_owned()
    };
    for clears in [&["env", "-i"][..], &["setpriv", "--reset-env"], &["gosu", "nobody", "env", "-"]] {
        let line = via(&[clears, &["/bin/sleep", "1"]].concat());
        let why = format!("relay here: {} clears the environment of what it starts", clears[0]);
        assert!(line.contains(&why), "{line}");
    }
    let line = via(&["su", "-", "nobody", "-s", "/bin/sh", "-c", "/bin/sleep 1"]);
    assert!(line.contains("relay here: su clears the environment"), "{line}");
    let (code, _, err) = check(&["--via", "direct", "--", "env", "-i", "/bin/sleep", "1"]);
    assert!(code == 2 && err.contains("--via direct is impossible: env clears the environment"), "{err}");
    // What wrappers start is looked at, not they themselves.
    let line = via(&["gosu", "nobody", "sleep", "1"]);
    assert!(line.contains("direct here: the command can be preloaded; the library is a file in "), "{line}");
    let line = via(&["sh", "-c", "sleep 1"]);
    assert!(line.contains("what the shell starts shows only when it runs"), "{line}");
    let program = crate::support::static_server();
    let line = via(&["env", "A=1", program]);
    assert!(line.contains("relay here") && line.contains("linked statically"), "{line}");
}

#[test]
fn a_loader_that_cannot_open_the_library_is_named_once() {
    let (dir, port) = (install_dir(), free_port());
    let script = write_file(dir.path(), "a.py", PYTHON);
    let line = format!(
        "mount -t tmpfs none \"$(dirname \"$LD_PRELOAD\")\"; env true; exec /usr/bin/python3 {} {port}",
        script.display()
    );
    let all = ["-i", "1", "--", "unshare", "-m", "--propagation", "private", "sh", "-c", &line];
    let daemon = Daemon::launch(roundsman(), &all, port);
    daemon.wait_for("a program that the server starts cannot load ");
    daemon.wait_for(&format!("listens on :{port} by itself"));
    assert_eq!(daemon.log().matches("cannot load ").count(), 1, "{}", daemon.log());
}

#[test]
fn one_that_ignores_its_stop_signal_is_killed_by_a_root_that_may_kill_nobody() {
    let (dir, port) = (their_dir(), free_port());
    let deaf =
        PYTHON.replace("class Handler", "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nclass Handler");
    let script = write_file(dir.path(), "deaf.py", &deaf);
    let command =
        dropped("gosu", &["/usr/bin/python3", script.to_str().unwrap(), &port.to_string()].map(str::to_owned));
    let mut daemon = Rights::Fewest.start(port, "1", &["--stop-timeout", "1s"], &command);
    assert!(ask(port).1);
    let end = daemon.stop();
    assert!(end.log.contains("did not end"), "{}", end.log);
}

/// What PostgreSQL answers to a query, as text; and the client's port.
fn query(port: u16, text: &str) -> (String, u16) {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(seconds(10))).unwrap();
    let start = b"\0\x03\0\0user\0nobody\0database\0postgres\0\0";
    let with_length = |bytes: &[u8]| [&(bytes.len() as u32 + 4).to_be_bytes(), bytes].concat();
    stream.write_all(&with_length(start)).unwrap();
    stream.write_all(&[b"Q", &with_length(format!("{text}\0").as_bytes())[..], b"X\0\0\0\x04"].concat()).unwrap();
    let (mut answer, mut value) = (Vec::new(), String::new());
    stream.read_to_end(&mut answer).unwrap();
    let mut rest = &answer[..];
    while let [kind, l0, l1, l2, l3, ..] = *rest {
        let (message, more) = rest.split_at(1 + u32::from_be_bytes([l0, l1, l2, l3]) as usize);
        if kind == b'D' {
            // One column: their number, its length, its text.
            write!(value, "{}", String::from_utf8_lossy(&message[11..])).unwrap();
        }
        rest = more;
    }
    (value, stream.local_addr().unwrap().port())
}

#[test]
fn postgresql_starts_without_a_word_of_the_loaders() {
    let (dir, port) = (their_dir(), free_port());
    let data = dir.path().join("data").to_str().unwrap().to_owned();
    let programs = std::fs::read_dir("/usr/lib/postgresql").unwrap().next().unwrap().unwrap().path().join("bin");
    let program = |name: &str| programs.join(name).to_str().unwrap().to_owned();
    let made = dropped("setpriv", &[&program("initdb"), "-A", "trust", "-N", "-D", &data].map(String::from));
    let output = Command::new(&made[0]).args(&made[1..]).current_dir(dir.path()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    for dropper in ["gosu", "su"] {
        let command =
            [&program("postgres"), "-D", &data, "-p", &port.to_string(), "-F", "-k", dir.path().to_str().unwrap()];
        let command = dropped(dropper, &command.map(String::from));
        let mut daemon = Rights::Container.start(port, "1", &[], &command);
        // It listens before it is ready.
        eventually("the database is up", seconds(20), || (!query(port, "select 1").0.is_empty()).then_some(()));
        for _ in 0..3 {
            let (seen, own) = query(port, "select inet_client_port()");
            assert_eq!(seen, own.to_string(), "{dropper}");
        }
        let end = daemon.stop();
        assert_eq!(end.code(), 0, "{dropper}: {}", end.log);
        unsaid(&end.log, &["ld.so", "attach refused", "did not end"]);
    }
}
