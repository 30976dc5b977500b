//! Tomcat, whose acceptor is woken at the stop by a connection of its own.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::direct::start_with;
use crate::support::{Killed, eventually, free_port, get, install_dir, roundsman, seconds, write_file};

const JARS: &str = "/usr/share/java/tomcat10-embed-core.jar:/usr/share/java/tomcat10-annotations-api.jar";

const MAIN: &str = "
import jakarta.servlet.http.*;
import org.apache.catalina.startup.Tomcat;
public class Main {
  public static void main(String[] args) throws Exception {
    Tomcat tomcat = new Tomcat();
    tomcat.setBaseDir(args[1]);
    tomcat.setPort(Integer.parseInt(args[0]));
    tomcat.getConnector();
    var context = tomcat.addContext(\"\", args[1]);
    Tomcat.addServlet(context, \"it\", new HttpServlet() {
      protected void doGet(HttpServletRequest request, HttpServletResponse response) throws java.io.IOException {
        response.getWriter().print(\"ok\");
      }
    });
    context.addServletMappingDecoded(\"/\", \"it\");
    tomcat.start();
    Runtime.getRuntime().addShutdownHook(new Thread(() -> {
      try { tomcat.stop(); tomcat.destroy(); } catch (Exception e) { e.printStackTrace(); }
    }));
    tomcat.getServer().await();
  }
}
";

fn command(dir: &Path, port: u16) -> [String; 6] {
    let base = dir.join(port.to_string());
    std::fs::create_dir(&base).unwrap();
    let classes = format!("{JARS}:{}", dir.display());
    ["java", "-cp", &classes, "Main", &port.to_string(), base.to_str().unwrap()].map(str::to_owned)
}

fn answers(port: u16) {
    eventually("an answer", seconds(60), || get(port).ok().filter(|answer| answer == "ok"));
}

/// Time from an order to the end of these processes.
fn until_gone(pids: &[u32], order: impl FnOnce()) -> Duration {
    let begin = Instant::now();
    order();
    let ended =
        |pid: &u32| std::fs::read_to_string(format!("/proc/{pid}/stat")).map_or(true, |stat| stat.contains(") Z "));
    eventually("their end", seconds(60), || pids.iter().all(ended).then_some(()));
    begin.elapsed()
}

/// Time from the stop signal to the end of the process.
fn stop(pid: u32, port: u16) -> Duration {
    answers(port);
    until_gone(&[pid], || kill(Pid::from_raw(pid as i32), Signal::SIGTERM).unwrap())
}

fn natively(dir: &Path) -> Duration {
    let port = free_port();
    let command = command(dir, port);
    let mut java = Command::new(&command[0]);
    let java = Killed::spawn(java.args(&command[1..]).stderr(Stdio::null()));
    stop(java.0.id(), port)
}

fn compiled() -> tempfile::TempDir {
    let dir = install_dir();
    let main = write_file(dir.path(), "Main.java", MAIN);
    let compiled = Command::new("javac").args(["-nowarn", "-cp", JARS]).arg(main).status().unwrap();
    assert!(compiled.success());
    dir
}

fn assert_clean(log: &str) {
    assert!(!["did not", "Exception", "SEVERE", "ERROR"].iter().any(|trouble| log.contains(trouble)), "{log}");
}

#[test]
#[ignore = "needs Tomcat; run with --all"]
fn tomcat_stops_as_soon_as_natively() {
    let dir = compiled();
    let direct = || {
        let port = free_port();
        let mut daemon = start_with(port, "1", &["--via", "direct"], &command(dir.path(), port));
        let took = stop(daemon.workers()[0] as u32, port);
        assert_clean(&daemon.stop().log);
        took
    };
    let rounds: Vec<_> = (0..3).map(|_| (natively(dir.path()), direct())).collect();
    let (native, ours) = (rounds.iter().map(|round| round.0).min(), rounds.iter().map(|round| round.1).min());
    // Before accept was woken it took more than a second longer.
    assert!(ours.unwrap() < native.unwrap() * 2 + Duration::from_millis(300), "{rounds:?}");
}

/// Of two workers: by then the port is closed, or the connection to itself comes to the other one.
#[test]
#[ignore = "needs Tomcat; run with --all"]
fn tomcat_stops_as_soon_as_natively_beside_another_one() {
    let dir = compiled();
    let direct = || {
        let port = free_port();
        let mut daemon = start_with(port, "2", &["--via", "direct"], &command(dir.path(), port));
        // All of Tomcat's acceptors wait only after its last line.
        daemon.wait_for_count("Starting ProtocolHandler", 2);
        answers(port);
        // Tomcat closes what its client has closed up to a second later, and the daemon drains before it stops.
        let idle = || eventually("no connection open", seconds(20), || (daemon.total("open") == 0).then_some(()));
        idle();
        let pids: Vec<u32> = daemon.workers().into_iter().map(|pid| pid as u32).collect();
        let control = daemon.control().to_owned();
        let scaled = until_gone(&pids[1..], || {
            let scale = roundsman().arg("scale").arg("1").env("ROUNDSMAN_CONTROL", control).output().unwrap();
            assert!(scale.status.success(), "{scale:?}");
        });
        idle();
        let stopped = until_gone(&pids[..1], || daemon.signal(Signal::SIGTERM));
        assert_clean(&daemon.finish(seconds(30)).log);
        [scaled, stopped]
    };
    let rounds: Vec<_> = (0..3).map(|_| (natively(dir.path()), direct())).collect();
    let native = rounds.iter().map(|round| round.0).min().unwrap();
    for (at, how) in ["scale", "stop"].iter().enumerate() {
        let ours = rounds.iter().map(|round| round.1[at]).min().unwrap();
        // Tomcat waits a second for its acceptor, and 0.6 s where its connection is refused.
        assert!(ours < native * 2 + Duration::from_millis(450), "{how}: {rounds:?}");
    }
}
