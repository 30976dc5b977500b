//! The long ones: `tests/run --all`.

use std::io::ErrorKind;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::thread::Scope;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::reload::{app, daemon, under_load, verb};
use crate::support::{Daemon, Random, eventually, free_port, get, install_dir, millis, roundsman, seconds, write_file};

#[test]
#[ignore = "long: tests/run --all"]
fn every_exit_code() {
    for code in 1..=255 {
        assert_eq!(super::pid1::exit_of(&format!("exit {code}")), code);
    }
}

#[test]
#[ignore = "long: tests/run --all"]
fn a_hundred_reloads_lose_nothing() {
    for via in ["direct", "relay"] {
        let dir = install_dir();
        app(dir.path(), "one", "");
        let daemon = daemon(dir.path(), "2", via, &[]);
        let served = under_load(daemon.port, 50, || {
            for round in 0..100 {
                let output = verb(&daemon, &["reload"]);
                assert!(output.status.success(), "{via} {round}: {}", String::from_utf8_lossy(&output.stderr));
            }
        });
        assert!(served > 1000, "{via}: {served}");
        println!("{via}: {served} served over 100 reloads, none refused, reset, cut or hung");
    }
}

/// Clients that ask again and again, and what became of their requests.
struct Load {
    port: u16,
    over: AtomicBool,
    served: AtomicUsize,
    lost: Mutex<Vec<ErrorKind>>,
}

impl Load {
    fn on(port: u16) -> Self {
        Self { port, over: AtomicBool::new(false), served: AtomicUsize::new(0), lost: Mutex::new(Vec::new()) }
    }

    /// They go on until it is over; no request may take longer than `limit`.
    fn clients<'scope>(&'scope self, scope: &'scope Scope<'scope, '_>, count: usize, limit: Duration) {
        for _ in 0..count {
            scope.spawn(move || {
                while !self.over.load(SeqCst) {
                    let begin = Instant::now();
                    match get(self.port) {
                        Ok(_) => drop(self.served.fetch_add(1, SeqCst)),
                        Err(error) => self.lost.lock().unwrap().push(error.kind()),
                    }
                    assert!(begin.elapsed() < limit, "hung for {:?}", begin.elapsed());
                }
            });
        }
    }

    fn ended(self) -> (usize, Vec<ErrorKind>) {
        (self.served.into_inner(), self.lost.into_inner().unwrap())
    }
}

/// Stops a worker, so that what it has received stays what it is, counts that, and kills it.
fn count_and_kill(daemon: &Daemon, slot: usize) -> Option<u64> {
    let state = daemon.slots().get(slot).cloned()?;
    if state["state"] != "online" {
        return None;
    }
    let pid = Pid::from_raw(i32::try_from(state["pid"].as_i64()?).ok()?);
    kill(pid, Signal::SIGSTOP).ok()?;
    let state = daemon.slots().get(slot).cloned()?;
    let received = (state["pid"].as_i64() == Some(i64::from(pid.as_raw()))).then(|| state["open"].as_u64().unwrap());
    kill(pid, Signal::SIGKILL).ok()?;
    Some(received.unwrap_or(0))
}

#[test]
#[ignore = "long: tests/run --all"]
fn a_thousand_killed_workers_take_along_only_what_they_had_received() {
    for via in ["direct", "relay"] {
        let port = free_port();
        let listen = format!("127.0.0.1:{port}");
        let own = env!("CARGO_BIN_EXE_roundsman");
        let all =
            ["-l", &listen, "-i", "4", "--via", via, "--min-uptime", "1ms", "--backoff", "1ms..2ms", "--max-restarts"];
        let daemon = Daemon::launch(roundsman(), &[&all[..], &["1000000", "--", own, "demo-server"]].concat(), port);
        daemon.wait_online(4);
        let load = Load::on(port);
        let (mut received, mut kills) = (0, 0);
        std::thread::scope(|scope| {
            load.clients(scope, 50, seconds(10));
            while kills < 1000 {
                if let Some(open) = count_and_kill(&daemon, kills % 4) {
                    received += open;
                    kills += 1;
                }
            }
            load.over.store(true, SeqCst);
        });
        let (served, lost) = load.ended();
        assert!(served > 1000, "{via}: {served}");
        let refused = lost.iter().filter(|kind| **kind == ErrorKind::ConnectionRefused).count();
        println!("{via}: {served} served, {} lost, the dead had received {received}", lost.len());
        assert_eq!(refused, 0, "{via}");
        // One may have been received and not yet counted at each death.
        assert!(lost.len() as u64 <= received + kills as u64, "{via}: {} lost, {received} received", lost.len());
    }
}

#[test]
#[ignore = "long: tests/run --all"]
fn a_crash_loop_follows_the_back_off() {
    let (dir, port) = (install_dir(), free_port());
    let times = dir.path().join("times");
    // The first one lives for a while: a service that never was online is given up sooner.
    let (file, flag) = (times.display(), dir.path().join("flag"));
    let line = format!("[ -e {0} ] || {{ touch {0}; sleep 1; }}; date +%s%3N >> {file}; exit 1", flag.display());
    let all =
        ["--no-listen", "-i", "1", "--min-uptime", "500ms", "--max-restarts", "100", "--backoff", "100ms..3s", "--"];
    let _daemon = Daemon::launch(roundsman(), &[&all[..], &["sh", "-c", &line]].concat(), port);
    // What is measured: the starts of half a minute.
    std::thread::sleep(seconds(30));
    let text = std::fs::read_to_string(&times).unwrap();
    let times: Vec<i64> = text.lines().map(|line| line.parse().unwrap()).collect();
    let pauses: Vec<i64> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(pauses.len() >= 12, "{pauses:?}");
    for (pause, wanted) in pauses.iter().zip([100, 200, 400, 800, 1600].into_iter().chain(std::iter::repeat(3000))) {
        assert!((wanted - 5..wanted + 150).contains(pause), "{pauses:?}");
    }
}

#[test]
#[ignore = "long: tests/run --all"]
fn five_minutes_of_chaos() {
    let number = |name: &str| std::env::var(name).ok().and_then(|value| value.parse().ok());
    let seed = number("ROUNDSMAN_SEED").unwrap_or(std::process::id().into());
    let length = Duration::from_secs(number("ROUNDSMAN_CHAOS_SECONDS").unwrap_or(300));
    println!("ROUNDSMAN_SEED={seed}");
    for via in ["direct", "relay"] {
        chaos(via, seed, length / 2);
    }
}

fn chaos(via: &str, seed: u64, length: Duration) {
    let (dir, port) = (install_dir(), free_port());
    // It starts slowly now and then, and grows when asked to.
    let script = write_file(
        dir.path(),
        "app.js",
        "const kept = [];
         const server = require('http').createServer((q, r) => { if (q.url === '/grow') kept.push(Buffer.alloc(60 << 20, 1)); r.end('ok'); });
         setTimeout(() => server.listen(Number(process.env.PORT), '127.0.0.1'), process.pid % 5 === 0 ? 700 : 0);",
    );
    let listen = format!("127.0.0.1:{port}");
    let all =
        ["-l", &listen, "-i", "3", "--via", via, "--min-uptime", "50ms", "--backoff", "20ms..50ms", "--max-restarts"];
    let more = ["1000000", "--max-memory", "250MiB", "--", "node", script.to_str().unwrap()];
    let daemon = Daemon::launch(roundsman(), &[&all[..], &more[..]].concat(), port);
    daemon.wait_online(3);
    let (load, received) = (Load::on(port), AtomicU64::new(0));
    let mut random = Random(seed);
    let mut done = [0u32; 5];
    std::thread::scope(|scope| {
        load.clients(scope, 20, seconds(20));
        let begin = Instant::now();
        while begin.elapsed() < length {
            let slots = daemon.slots();
            let at = random.below(slots.len() as u64) as usize;
            let pid = slots[at]["pid"].as_i64().map(|pid| Pid::from_raw(pid as i32));
            match random.below(8) {
                0 | 1 => {
                    if let Some(open) = count_and_kill(&daemon, at) {
                        received.fetch_add(open + 1, SeqCst);
                        done[0] += 1;
                    }
                }
                2 | 3 => {
                    if let Some(pid) = pid
                        && kill(pid, Signal::SIGSTOP).is_ok()
                    {
                        std::thread::sleep(millis(random.below(600)));
                        let _ = kill(pid, Signal::SIGCONT);
                        done[1] += 1;
                    }
                }
                4 => {
                    let ended = verb(&daemon, &["reload"]).status.success();
                    done[2] += u32::from(ended);
                }
                5 => {
                    let to = (1 + random.below(5)).to_string();
                    verb(&daemon, &["scale", &to]);
                    done[3] += 1;
                }
                6 => {
                    let url = format!("http://127.0.0.1:{port}/grow");
                    let _ = std::process::Command::new("curl").args(["-s", "-m", "15", &url]).output();
                    done[4] += 1;
                }
                _ => std::thread::sleep(millis(random.below(300))),
            }
        }
        load.over.store(true, SeqCst);
    });
    let ((served, lost), received) = (load.ended(), received.load(SeqCst));
    println!(
        "{via}: {served} served, {} lost, the dead had received up to {received}; kills, stops, reloads, scalings, growths: {done:?}",
        lost.len()
    );
    assert!(done.iter().all(|&times| times > 0), "{via}: too short for everything to happen: {done:?}");
    let refused = lost.iter().filter(|kind| **kind == ErrorKind::ConnectionRefused).count();
    assert_eq!(refused, 0, "{via}: refused");
    assert!(lost.len() as u64 <= received, "{via}: {} lost, {received} received\n{}", lost.len(), daemon.log());
    // It settles: all slots online, nothing open, nobody on the way out.
    eventually("it settles", seconds(30), || {
        let slots = daemon.slots();
        let steady = slots.iter().all(|slot| slot["state"] == "online" && slot["open"] == 0 && slot["pending"] == 0);
        steady.then_some(())
    });
    let own = procfs::process::all_processes().unwrap().flatten().filter_map(|process| process.stat().ok());
    let children = own.filter(|stat| stat.ppid as u32 == daemon.pid()).count();
    let each = if via == "direct" { 1 } else { 2 };
    assert_eq!(children, daemon.slots().len() * each, "{via}: processes");
}
