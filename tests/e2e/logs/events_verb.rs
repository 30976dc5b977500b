//! `roundsman events`: what happens to services, as text and as JSON lines.
//! Mostly waits: tests/run runs it beside others.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::process::Stdio;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::docs::facts::table_of_events;
use crate::support::{
    Daemon, Killed, Upstream, c_server, eventually, free_port, freeze, get, install_dir, roundsman, seconds, write_file,
};

fn verb(daemon: &Daemon, words: &[&str]) -> String {
    let output = roundsman().args(words).env("ROUNDSMAN_CONTROL", daemon.control()).output().unwrap();
    assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Reads events as they come.
struct Follower {
    reader: Killed,
    lines: Box<dyn Iterator<Item = String>>,
    seen: Vec<Value>,
}

impl Follower {
    fn of(daemon: &Daemon) -> Self {
        let mut command = roundsman();
        command.args(["events", "-f", "--json"]).env("ROUNDSMAN_CONTROL", daemon.control()).stdout(Stdio::piped());
        let mut reader = Killed::spawn(&mut command);
        let lines = BufReader::new(reader.0.stdout.take().unwrap()).lines().map_while(Result::ok);
        Self { reader, lines: Box::new(lines), seen: Vec::new() }
    }

    /// The next events, until there was one of each kind, in this order.
    #[track_caller]
    fn until(&mut self, kinds: &[&str]) -> &Value {
        for kind in kinds {
            loop {
                let line = self.lines.next().unwrap_or_else(|| panic!("no {kind} of {kinds:?}: {:#?}", self.seen));
                self.seen.push(serde_json::from_str(&line).unwrap());
                if self.seen.last().unwrap()["event"] == *kind {
                    break;
                }
            }
        }
        self.seen.last().unwrap()
    }
}

#[test]
fn everything_that_happens_is_an_event_with_the_fields_of_the_table_until_the_daemon_ends() {
    let dir = install_dir();
    let (up, dead) = (Upstream::echo(), free_port());
    let (port, relay) = (free_port(), free_port());
    let text = format!(
        "[service.web]\nlisten = \"127.0.0.1:{port}\"\ninstances = 2\ncommand = [{:?}, \"level\", \"{port}\"]\nmin-uptime = \"50ms\"
[service.tcp]\nlisten = \"127.0.0.1:{relay}\"\ninstances = 1\nupstream = [{:?}, \"127.0.0.1:{dead}\"]\n",
        c_server(),
        up.arg()
    );
    write_file(dir.path(), "two.toml", &text);
    let mut command = roundsman();
    command.current_dir(dir.path());
    let mut daemon = Daemon::launch(command, &["-c", "two.toml"], port);
    eventually("the control socket", seconds(10), || daemon.control().exists().then_some(()));
    let mut follower = Follower::of(&daemon);
    // Those before it was there, too.
    follower.until(&["starting", "server-started", "listening", "worker-online"]);
    eventually("both are online", seconds(20), || {
        let all = verb(&daemon, &["ls", "--json"]);
        (all.matches("\"online\"").count() >= 3).then_some(())
    });
    let pid = daemon.workers()[0];
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    let exited = follower.until(&["worker-exited"]).clone();
    assert_eq!(
        (exited["pid"].as_i64(), &exited["service"], &exited["slot"]),
        (Some(pid.into()), &"web".into(), &0.into())
    );
    assert_eq!((&exited["fields"]["status"], &exited["level"]), (&"killed by SIGKILL".into(), &"warn".into()));
    follower.until(&["server-started", "worker-online"]);
    verb(&daemon, &["reload", "web"]);
    follower.until(&["reloading", "reload-step"]);
    let step = follower.until(&["reload-step"]);
    assert_eq!(step["fields"], serde_json::json!({"done": 2, "of": 2}));
    follower.until(&["reloaded"]);
    verb(&daemon, &["drain", "web/0"]);
    verb(&daemon, &["undrain", "web/0"]);
    verb(&daemon, &["weight", "web/1", "5"]);
    verb(&daemon, &["weight", "web/1", "1"]);
    verb(&daemon, &["scale", "web", "3"]);
    follower.until(&["slot-drained", "slot-undrained", "weight", "weight", "scaling"]);
    // An upstream that is not there, and comes.
    eventually("it was found to be down", seconds(20), || {
        let mut client = std::net::TcpStream::connect(("127.0.0.1", relay)).ok()?;
        let _ = client.write_all(b"x");
        let _ = client.set_read_timeout(Some(seconds(5)));
        let _ = client.read(&mut [0]);
        verb(&daemon, &["events", "tcp"]).contains("upstream down").then_some(())
    });
    let down = follower.until(&["upstream-down"]);
    assert_eq!(down["fields"]["upstream"], format!("127.0.0.1:{dead}"));
    let listener = std::net::TcpListener::bind(("127.0.0.1", dead)).unwrap();
    eventually("it is up again", seconds(30), || {
        drop(std::net::TcpStream::connect(("127.0.0.1", relay)));
        verb(&daemon, &["events", "tcp"]).contains("upstream up").then_some(())
    });
    follower.until(&["upstream-up"]);
    drop(listener);
    // A worker that takes nothing.
    freeze(daemon.workers()[0]);
    let clients: Vec<_> = (0..9).map(|_| std::thread::spawn(move || get(port).is_ok())).collect();
    follower.until(&["worker-stalled"]);
    kill(Pid::from_raw(daemon.workers()[0]), Signal::SIGCONT).unwrap();
    clients.into_iter().for_each(|client| assert!(client.join().unwrap()));
    // One service, one slot, the last ones, for people.
    let text = verb(&daemon, &["events", "web/2", "-n", "1"]);
    assert!(text.contains("Z web/2 worker online pid=") && text.lines().count() == 1, "{text}");
    assert_eq!(daemon.stop().code(), 0);
    follower.until(&["stopping", "stopped"]);
    follower.lines.by_ref().for_each(|line| follower.seen.push(serde_json::from_str(&line).unwrap()));
    assert!(eventually("its end", seconds(10), || follower.reader.0.try_wait().unwrap()).success());
    assert_eq!(follower.seen.iter().filter(|event| event["event"] == "stopped").count(), 2, "{:#?}", follower.seen);
    // Numbered without a gap, and as the table says.
    let table = table_of_events();
    for (number, event) in follower.seen.iter().enumerate() {
        assert_eq!(event["number"], number);
        let kind = event["event"].as_str().unwrap();
        let allowed = table.get(kind).unwrap_or_else(|| panic!("{event}"));
        for name in event["fields"].as_object().unwrap().keys().filter(|_| kind != "note") {
            assert!(allowed.contains(name), "{name} of {event}");
        }
        assert!(event["time"].as_str().unwrap().ends_with('Z') && !event["message"].as_str().unwrap().is_empty());
    }
}

#[test]
fn a_reader_that_does_not_read_is_told_what_it_missed_and_the_daemon_goes_on() {
    let dir = install_dir();
    let name = "a".repeat(64);
    let (port, socket) = (free_port().to_string(), dir.path().join("x".repeat(60)));
    let mut command = roundsman();
    command.current_dir(dir.path());
    let address = format!("unix:{}", socket.display());
    let words = ["-n", &name, "-l", &port, "-i", "1", "--log-level", "error", "-u", &address, "-u", "127.0.0.1:1"];
    let daemon = Daemon::launch(command, &words, 0);
    eventually("the control socket", seconds(10), || daemon.control().exists().then_some(()));
    let mut deaf = UnixStream::connect(daemon.control()).unwrap();
    deaf.set_read_timeout(Some(seconds(20))).unwrap();
    deaf.write_all(b"{\"cmd\":\"events\",\"lines\":10,\"follow\":true}\n").unwrap();
    let mut reader = BufReader::new(deaf);
    let mut first = String::new();
    reader.read_line(&mut first).unwrap();
    assert!(first.contains("\"starting\""), "{first}");
    // It follows; from here on it does not read, and many events come.
    const COUNT: usize = 20_000;
    let mut asks = UnixStream::connect(daemon.control()).unwrap();
    let mut answers = BufReader::new(asks.try_clone().unwrap()).lines();
    for _ in 0..COUNT / 100 {
        for n in 0..100 {
            let request = format!("{{\"cmd\":\"weight\",\"upstream\":{address:?},\"weight\":{}}}\n", n % 2 + 1);
            asks.write_all(request.as_bytes()).unwrap();
        }
        for _ in 0..100 {
            let answer = answers.next().unwrap().unwrap();
            assert!(answer.starts_with("{\"done\""), "{answer}");
        }
    }
    let rss = roundsman::sys::process::rss_bytes(daemon.pid());
    assert!(rss < 60 << 20, "{rss}");
    let last = verb(&daemon, &["events", "--json", "-n", "1"]);
    let last: Value = serde_json::from_str(&last).unwrap();
    let (mut shown, mut dropped) = (1, 0);
    for line in reader.lines() {
        let line: Value = serde_json::from_str(&line.unwrap()).unwrap();
        dropped += line["dropped"].as_u64().unwrap_or(0);
        shown += u64::from(line["event"].is_string());
        if line["number"] == last["number"] {
            break;
        }
    }
    assert!(dropped > 0 && shown > 1000, "{shown} and {dropped}");
    assert_eq!(shown + dropped, last["number"].as_u64().unwrap() + 1, "each was shown or counted");
}
