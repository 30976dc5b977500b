//! Readiness that a server tells, commands without a port, memory, hanging workers, servers that do not end.
//! Mostly waits: tests/run runs it beside others.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::{Daemon, eventually, free_port, freeze, get, install_dir, millis, roundsman, seconds, write_file};

fn start(via: &str, more: &[&str], script: &str) -> (Daemon, tempfile::TempDir) {
    let (dir, port) = (install_dir(), free_port());
    let file = write_file(dir.path(), if script.contains("require(") { "app.js" } else { "app.py" }, script);
    let listen = format!("127.0.0.1:{port}");
    let mut all = vec!["-l", &listen, "--via", via, "--min-uptime", "100ms", "--backoff", "20ms..50ms"];
    all.extend(more);
    let program = if script.contains("require(") { "node" } else { "python3" };
    all.extend(["--", program, file.to_str().unwrap()]);
    (Daemon::launch(roundsman(), &all, port), dir)
}

const NODE: &str = "
const kept = [];
require('http').createServer((q, r) => { if (q.url === '/grow') for (let i = 0; i < 40; i++) kept.push(Buffer.alloc(4 << 20, 1)); r.end('pid ' + process.pid); })
  .listen(Number(process.env.PORT), '127.0.0.1');
";

#[test]
fn with_wait_ready_a_worker_is_online_when_it_says_so() {
    let script = "
import http.server, os, socket, threading, time
server = http.server.ThreadingHTTPServer(('127.0.0.1', int(os.environ['PORT'])), http.server.SimpleHTTPRequestHandler)
threading.Thread(target=server.serve_forever).start()
time.sleep(0.8)
s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
s.connect(os.environ['NOTIFY_SOCKET'].replace('@', '\\0', 1))
s.send(b'STATUS=nearly'); s.send(b'NOTREADY=1\\nREADY=0'); time.sleep(0.2); s.send(b'STATUS=up\\nREADY=1')
";
    for via in ["direct", "relay"] {
        let begin = std::time::Instant::now();
        let (mut daemon, _dir) = start(via, &["-i", "1", "--wait-ready"], script);
        daemon.wait_online(1);
        assert!(begin.elapsed() >= millis(1000), "{via}: {:?}", begin.elapsed());
        assert!(get(daemon.port).is_ok(), "{via}");
        assert_eq!(daemon.stop().code(), 0, "{via}");
    }
    // One that never says it is named.
    let (daemon, _dir) =
        start("relay", &["-i", "1", "--wait-ready", "--listen-timeout", "300ms"], "import time; time.sleep(60)");
    daemon.wait_for("does not listen after 0.3 s");
    assert_eq!(daemon.slot(0, "state"), "launching");
}

#[test]
fn a_command_without_a_port_is_supervised_the_same() {
    let (dir, port) = (install_dir(), free_port());
    let script = write_file(dir.path(), "worker.py", "import time\nwhile True: time.sleep(1)");
    let all = [
        "--no-listen",
        "-i",
        "2",
        "--min-uptime",
        "300ms",
        "--backoff",
        "20ms..50ms",
        "--",
        "python3",
        script.to_str().unwrap(),
    ];
    let mut daemon = Daemon::launch(roundsman(), &all, port);
    daemon.wait_online(2);
    assert!(daemon.log().contains("via=\"none\""), "{}", daemon.log());
    let before = daemon.workers();
    kill(Pid::from_raw(before[0]), Signal::SIGKILL).unwrap();
    eventually("it is back", seconds(10), || (daemon.slot(0, "generation") == 2).then_some(()));
    daemon.wait_online(2);
    let reload = roundsman().arg("reload").env("ROUNDSMAN_CONTROL", daemon.control()).output().unwrap();
    assert!(reload.status.success(), "{}", String::from_utf8_lossy(&reload.stderr));
    assert!(daemon.workers().iter().all(|pid| !before.contains(pid)));
    assert_eq!(daemon.stop().code(), 0);
    let output = roundsman().args(["--no-listen", "-l", "80", "--", "true"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn a_worker_that_grows_too_large_is_replaced() {
    for via in ["direct", "relay"] {
        let (daemon, _dir) = start(via, &["-i", "1", "--max-memory", "150MiB"], NODE);
        daemon.wait_online(1);
        let before = get(daemon.port).unwrap();
        // It is looked at once a second.
        std::thread::sleep(millis(1500));
        assert_eq!(get(daemon.port).unwrap(), before, "{via}: small enough");
        let grow = || {
            std::process::Command::new("curl").args(["-sS", &format!("http://127.0.0.1:{}/grow", daemon.port)]).output()
        };
        assert!(grow().unwrap().status.success());
        daemon.wait_for("is above --max-memory 150 MiB: replaced");
        let other = eventually("its successor", seconds(10), || get(daemon.port).ok().filter(|pid| *pid != before));
        assert!(other.starts_with("pid"));
        eventually("the old one is gone", seconds(10), || {
            let pid = before.strip_prefix("pid ").unwrap();
            (!std::path::Path::new(&format!("/proc/{pid}")).exists()).then_some(())
        });
        assert_eq!(daemon.slot(0, "generation"), 2, "{via}");
        assert!(daemon.slot(0, "reason").as_str().unwrap().contains("above --max-memory"), "{via}");
    }
    let output = roundsman().args(["--max-memory", "500", "--", "true"]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(2) && text.contains("a unit is needed"), "{text}");
}

#[test]
fn a_hung_worker_is_replaced_when_asked_for() {
    for via in ["direct", "relay"] {
        let (daemon, _dir) = start(via, &["-i", "1", "--hang-timeout", "500ms"], NODE);
        daemon.wait_online(1);
        let before = get(daemon.port).unwrap();
        freeze(daemon.workers()[0]);
        // This one waits in front of it, and the next worker gets it.
        let after = get(daemon.port).unwrap();
        assert!(after.starts_with("pid") && (via == "relay" || after != before), "{via}: {after}");
        assert!(
            daemon.log().contains("hung: it took nothing for 0.5 s while connections waited: killed"),
            "{}",
            daemon.log()
        );
        daemon.wait_online(1);
    }
}

#[test]
fn a_server_that_does_not_end_is_killed_with_all_it_started() {
    let script = "
import http.server, os, signal, subprocess, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
subprocess.Popen(['sleep', '987654'], start_new_session=True)
# This one has neither our session nor a parent of ours.
subprocess.run(['sh', '-c', 'setsid sleep 987654 </dev/null >/dev/null 2>&1 &'])
http.server.ThreadingHTTPServer(('127.0.0.1', int(os.environ['PORT'])), http.server.SimpleHTTPRequestHandler).serve_forever()
";
    let sleepers = || {
        let all = procfs::process::all_processes().unwrap().flatten();
        all.filter(|process| process.cmdline().is_ok_and(|line| line == ["sleep", "987654"])).count()
    };
    for via in ["direct", "relay"] {
        let (mut daemon, _dir) = start(via, &["-i", "1", "--kill-timeout", "400ms", "--stop-timeout", "1s"], script);
        daemon.wait_online(1);
        eventually("both are there", seconds(5), || (sleepers() == 2).then_some(()));
        let reload = roundsman().arg("reload").env("ROUNDSMAN_CONTROL", daemon.control()).output().unwrap();
        assert!(reload.status.success(), "{}", String::from_utf8_lossy(&reload.stderr));
        assert!(daemon.log().contains("killed: it did not end within the kill timeout"), "{}", daemon.log());
        eventually("only the new one's are left", seconds(5), || (sleepers() == 2).then_some(()));
        daemon.stop();
        eventually("none is left", seconds(5), || (sleepers() == 0).then_some(()));
    }
}
