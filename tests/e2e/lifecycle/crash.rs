//! What dies, what is rescued, and who waits.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::Instant;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::{
    Daemon, Process, Upstream, eventually, freeze, get, install_dir, millis, refused, seconds, slot_of,
};

const DEMO: [&str; 3] = ["--", env!("CARGO_BIN_EXE_roundsman"), "demo-server"];

fn with_demo<'a>(arguments: &[&'a str]) -> Vec<&'a str> {
    arguments.iter().copied().chain(DEMO).collect()
}

#[test]
fn a_hundred_kills_under_fifty_clients_hang_and_refuse_nobody() {
    let dir = install_dir();
    let nginx = Process::nginx(dir.path());
    let upstream = format!("127.0.0.1:{}", nginx.port);
    let daemon = Daemon::start(&["-i", "4", "-u", &upstream, "--max-restarts", "1000", "--backoff", "10ms..50ms"]);
    let (over, done, failed) = (AtomicBool::new(false), AtomicUsize::new(0), AtomicUsize::new(0));
    let mut received_by_the_dead = 0;
    std::thread::scope(|scope| {
        for _ in 0..50 {
            scope.spawn(|| {
                while !over.load(SeqCst) {
                    let begin = Instant::now();
                    match TcpStream::connect(("127.0.0.1", daemon.port)) {
                        Ok(mut stream) => match crate::support::http_get(&mut stream) {
                            Ok(body) => assert_eq!(body, "ok"),
                            Err(error) => {
                                let cut = [io::ErrorKind::ConnectionReset, io::ErrorKind::UnexpectedEof];
                                assert!(cut.contains(&error.kind()), "{error}");
                                failed.fetch_add(1, SeqCst);
                            }
                        },
                        Err(error) => panic!("refused: {error}"),
                    }
                    assert!(begin.elapsed() < seconds(10), "hung for {:?}", begin.elapsed());
                    done.fetch_add(1, SeqCst);
                }
            });
        }
        for n in 0..100 {
            let (victim, generation) = eventually("a victim", seconds(20), || {
                let slot = daemon.slots()[n % 4].clone();
                (slot["state"] == "online").then(|| (slot["pid"].as_i64().unwrap(), slot["generation"].clone()))
            });
            // Stopped first, so that what it has received can be read off exactly.
            freeze(victim as i32);
            received_by_the_dead += daemon.slot(n % 4, "open").as_u64().unwrap() as usize;
            kill(Pid::from_raw(victim as i32), Signal::SIGKILL).unwrap();
            eventually("its successor", seconds(20), || {
                let slot = daemon.slots()[n % 4].clone();
                (slot["state"] == "online" && slot["generation"] != generation).then_some(())
            });
        }
        over.store(true, SeqCst);
    });
    let (done, failed) = (done.load(SeqCst), failed.load(SeqCst));
    assert!(done > 1_000, "{done}");
    assert!(failed <= received_by_the_dead, "{failed} failed, but the dead had received {received_by_the_dead}");
    assert_eq!(daemon.slots().iter().map(|slot| slot["restarts"].as_u64().unwrap()).sum::<u64>(), 100);
}

#[test]
fn what_a_dead_worker_had_not_received_is_given_to_others_with_its_bytes() {
    let daemon = Daemon::start(&with_demo(&["-i", "2", "--stall-timeout", "1h"]));
    daemon.wait_online(2);
    let victim = daemon.workers()[0];
    freeze(victim);
    // Requests that lie in the stopped worker's queue (it is not rescued: the stall timeout is an hour).
    let mut clients: Vec<_> = (0..40)
        .map(|_| {
            let mut stream = TcpStream::connect(("127.0.0.1", daemon.port)).unwrap();
            stream.write_all(b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n").unwrap();
            stream.set_read_timeout(Some(seconds(20))).unwrap();
            stream
        })
        .collect();
    let pending = eventually("some are pending", seconds(5), || {
        let pending = daemon.slot(0, "pending").as_u64().unwrap();
        (pending > 0).then_some(pending)
    });
    kill(Pid::from_raw(victim), Signal::SIGKILL).unwrap();
    for client in &mut clients {
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        assert!(answer.contains("hello from slot"), "{answer:?}");
    }
    assert_eq!(daemon.slot(0, "rescued").as_u64().unwrap(), pending);
    daemon.wait_for("connections rescued");
}

#[test]
fn a_server_that_dies_is_replaced_and_the_others_go_on() {
    let daemon = Daemon::start(&with_demo(&["-i", "2", "--backoff", "200ms..1s"]));
    daemon.wait_online(2);
    let server = daemon.slot(1, "server_pid").as_i64().unwrap() as i32;
    kill(Pid::from_raw(server), Signal::SIGKILL).unwrap();
    daemon.wait_for("server exited");
    for _ in 0..20 {
        assert_eq!(slot_of(&get(daemon.port).unwrap()), 0);
    }
    daemon.wait_online(2);
    eventually("it serves again", seconds(5), || (slot_of(&get(daemon.port).unwrap()) == 1).then_some(()));
    assert_ne!(daemon.slot(1, "server_pid").as_i64().unwrap() as i32, server);
    assert_eq!(daemon.slot(1, "restarts"), 1);
}

#[test]
fn clients_whose_server_died_under_their_relay_reach_its_successor() {
    // The server dies while its relay worker cannot be told: what the relay worker receives then has nowhere to go.
    let daemon = Daemon::start(&with_demo(&["-i", "1", "--backoff", "300ms..1s"]));
    daemon.wait_online(1);
    let (relay, server) = (daemon.workers()[0], daemon.slot(0, "server_pid").as_i64().unwrap() as i32);
    freeze(relay);
    let port = daemon.port;
    let clients: Vec<_> = (0..10).map(|_| std::thread::spawn(move || get(port))).collect();
    eventually("they are handed over", seconds(5), || (daemon.total("pending") == 10).then_some(()));
    daemon.signal(Signal::SIGSTOP);
    kill(Pid::from_raw(server), Signal::SIGKILL).unwrap();
    eventually("its port is closed", seconds(5), || {
        let stat = std::fs::read_to_string(format!("/proc/{server}/stat")).unwrap();
        stat.contains(") Z ").then_some(())
    });
    kill(Pid::from_raw(relay), Signal::SIGCONT).unwrap();
    // The relay worker finds the port closed; while the daemon is stopped nobody can be asked whether it has.
    std::thread::sleep(millis(100));
    daemon.signal(Signal::SIGCONT);
    for client in clients {
        assert_eq!(slot_of(&client.join().unwrap().unwrap()), 0);
    }
}

#[test]
fn with_no_worker_alive_clients_are_held_and_then_served() {
    let daemon = Daemon::start(&with_demo(&["-i", "1", "--backoff", "500ms..1s"]));
    daemon.wait_online(1);
    assert_eq!(slot_of(&get(daemon.port).unwrap()), 0);
    kill(Pid::from_raw(daemon.workers()[0]), Signal::SIGKILL).unwrap();
    daemon.wait_for("relay worker exited");
    let port = daemon.port;
    let clients: Vec<_> = (0..20).map(|_| std::thread::spawn(move || get(port))).collect();
    for client in clients {
        assert_eq!(slot_of(&client.join().unwrap().unwrap()), 0);
    }
    assert_eq!(daemon.ls()["services"][0]["shed"], 0);
}

#[test]
fn held_clients_are_reset_after_the_queue_timeout_and_counted() {
    for policy in ["rr", "none"] {
        let arguments = ["-i", "1", "-p", policy, "--backoff", "1h..1h", "--queue-timeout", "400ms"];
        let daemon = Daemon::start(&with_demo(&arguments));
        daemon.wait_online(1);
        kill(Pid::from_raw(daemon.workers()[0]), Signal::SIGKILL).unwrap();
        daemon.wait_for("relay worker exited");
        let port = daemon.port;
        let client = move || {
            let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
            let begin = Instant::now();
            let error = stream.read(&mut [0]).unwrap_err();
            (error.kind(), begin.elapsed())
        };
        let clients: Vec<_> = (0..10).map(|_| std::thread::spawn(client)).collect();
        for client in clients {
            let (kind, after) = client.join().unwrap();
            assert_eq!(kind, io::ErrorKind::ConnectionReset);
            assert!((millis(350)..seconds(3)).contains(&after), "after {after:?}");
        }
        assert_eq!(daemon.ls()["services"][0]["shed"], 10);
    }
}

#[test]
fn a_crash_loop_backs_off_and_ends_with_the_servers_code() {
    let begin = Instant::now();
    let port = crate::support::free_port().to_string();
    let mut daemon = Daemon::launch(
        crate::support::roundsman(),
        &["-l", &port, "-i", "2", "--backoff", "100ms..15s", "--", "sh", "-c", "exit 7"],
        0,
    );
    let end = daemon.finish(seconds(20));
    assert_eq!(end.code(), 7, "{}", end.log);
    assert!(end.log.contains("given up"), "{}", end.log);
    // 100 + 200 + 400 ms: three more starts for a slot that never was online.
    assert!(begin.elapsed() >= millis(700), "{:?}", begin.elapsed());
    assert_eq!(end.log.matches("server started").count(), 2 * 4);
}

#[test]
fn a_server_is_online_when_it_accepts_and_named_when_it_takes_long() {
    let script = format!("sleep 1; exec {} demo-server", env!("CARGO_BIN_EXE_roundsman"));
    let port = crate::support::free_port();
    let listen = format!("127.0.0.1:{port}");
    let arguments =
        ["-l", &listen, "-i", "1", "--via", "relay", "--listen-timeout", "300ms", "--", "sh", "-c", &script];
    let daemon = Daemon::launch(crate::support::roundsman(), &arguments, port);
    daemon.wait_for("does not listen after 0.3 s (it was given PORT=");
    assert_eq!(daemon.slot(0, "state"), "launching");
    assert!(refused(port), "nobody listens before the first worker is online");
    daemon.wait_online(1);
    assert_eq!(slot_of(&get(port).unwrap()), 0);
}

#[test]
fn on_errored_stay_keeps_the_daemon() {
    let port = crate::support::free_port().to_string();
    let mut daemon = Daemon::launch(
        crate::support::roundsman(),
        &["-l", &port, "-i", "1", "--backoff", "1ms..2ms", "--on-errored", "stay", "--", "sh", "-c", "exit 7"],
        0,
    );
    daemon.wait_for("slot given up");
    let slot = daemon.slots()[0].clone();
    assert_eq!((slot["state"].as_str(), slot["last_exit"].as_str()), (Some("errored"), Some("exit code 7")));
    assert_eq!(daemon.stop().code(), 0);
}

#[test]
fn a_shared_server_that_dies_is_started_again_and_clients_wait_for_it() {
    let dir = install_dir();
    let port = crate::support::free_port();
    let script = crate::support::write_file(
        dir.path(),
        "server.py",
        "import http.server, sys\nhttp.server.ThreadingHTTPServer(('127.0.0.1', int(sys.argv[1])), \
         http.server.SimpleHTTPRequestHandler).serve_forever()\n",
    );
    let upstream = format!("127.0.0.1:{port}");
    let arguments = ["-i", "2", "-u", &upstream, "--", "python3", script.to_str().unwrap(), &port.to_string()];
    let daemon = Daemon::start(&arguments);
    daemon.wait_online(2);
    get(daemon.port).unwrap();
    let pids = || {
        let master = daemon.pid().to_string();
        let output = std::process::Command::new("ps").args(["-o", "pid=,args=", "--ppid", &master]).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let servers = text.lines().filter(|line| line.contains("server.py"));
        servers.filter_map(|line| line.split_whitespace().next()?.parse::<i32>().ok()).collect::<Vec<_>>()
    };
    assert_eq!(pids().len(), 1, "started once");
    kill(Pid::from_raw(pids()[0]), Signal::SIGKILL).unwrap();
    daemon.wait_for("server exited");
    get(daemon.port).expect("the client waits until the server is back");
}

#[test]
fn when_the_master_is_killed_everything_is_gone_within_a_second_and_the_port_is_free() {
    for policy in ["rr", "none"] {
        let daemon = Daemon::start(&with_demo(&["-i", "3", "-p", policy]));
        daemon.wait_online(3);
        let slots = daemon.slots();
        let pids: Vec<_> = slots
            .iter()
            .flat_map(|slot| [slot["pid"].as_i64().unwrap(), slot["server_pid"].as_i64().unwrap()])
            .collect();
        assert_eq!(pids.len(), 6);
        daemon.signal(Signal::SIGKILL);
        let alive = |&&pid: &&i64| {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            // In a container whose PID 1 does not reap, the dead stay as zombies.
            !stat.is_empty() && !stat.contains(") Z ")
        };
        eventually("all are gone", seconds(1), || (pids.iter().find(alive).is_none()).then_some(()));
        let next = ["-l", &format!("127.0.0.1:{}", daemon.port), "-i", "1"];
        let next = Daemon::launch(crate::support::roundsman(), &with_demo(&next), daemon.port);
        next.wait_for("worker online");
        assert_eq!(slot_of(&get(daemon.port).unwrap()), 0);
    }
}

#[test]
fn a_worker_that_talks_nonsense_is_killed_and_the_master_is_not() {
    // The worker's channel is its standard input: reachable by a debugger, as root, through pidfd_getfd.
    let upstream = Upstream::echo();
    let daemon = Daemon::start(&["-i", "2", "-u", &upstream.arg()]);
    let victim = daemon.workers()[0];
    let code = format!(
        "import os, socket, ctypes
libc = ctypes.CDLL(None, use_errno=True)
pidfd = os.pidfd_open({victim})
links = {{fd: os.readlink('/proc/{victim}/fd/%s' % fd) for fd in os.listdir('/proc/{victim}/fd')}}
for fd, link in links.items():
    if not link.startswith('socket:'): continue
    got = libc.syscall(438, pidfd, int(fd), 0)
    if got < 0: break # it is dead already
    try: socket.socket(fileno=got).send(b'\\xff{{nonsense')
    except OSError: pass
"
    );
    let status = std::process::Command::new("python3").args(["-c", &code]).status().unwrap();
    assert!(status.success());
    daemon.wait_for("nonsense on its channel");
    daemon.wait_online(2);
    assert_ne!(daemon.workers()[0], victim);
    let mut stream = TcpStream::connect(("127.0.0.1", daemon.port)).unwrap();
    stream.write_all(b"x").unwrap();
    stream.read_exact(&mut [0]).unwrap();
}
