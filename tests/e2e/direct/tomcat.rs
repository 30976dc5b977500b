//! Tomcat, whose acceptor is woken at the stop by a connection of its own.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::direct::start_with;
use crate::support::{Killed, eventually, free_port, get, install_dir, seconds, write_file};

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

/// Time from the stop signal to the end of the process.
fn stop(pid: u32, port: u16) -> Duration {
    eventually("an answer", seconds(60), || get(port).ok().filter(|answer| answer == "ok"));
    let begin = Instant::now();
    kill(Pid::from_raw(pid as i32), Signal::SIGTERM).unwrap();
    let stat = || std::fs::read_to_string(format!("/proc/{pid}/stat"));
    let ended = || stat().map_or(Some(()), |stat| stat.contains(") Z ").then_some(()));
    eventually("its end", seconds(60), ended);
    begin.elapsed()
}

#[test]
#[ignore = "needs Tomcat; run with --all"]
fn tomcat_stops_as_soon_as_natively() {
    let dir = install_dir();
    let main = write_file(dir.path(), "Main.java", MAIN);
    let compiled = Command::new("javac").args(["-nowarn", "-cp", JARS]).arg(main).status().unwrap();
    assert!(compiled.success());
    let natively = || {
        let port = free_port();
        let command = command(dir.path(), port);
        let mut java = Command::new(&command[0]);
        let java = Killed::spawn(java.args(&command[1..]).stderr(Stdio::null()));
        stop(java.0.id(), port)
    };
    let direct = || {
        let port = free_port();
        let mut daemon = start_with(port, "1", &["--via", "direct"], &command(dir.path(), port));
        let took = stop(daemon.workers()[0] as u32, port);
        let log = daemon.stop().log;
        assert!(!log.contains("did not stop") && !log.contains("Exception"), "{log}");
        took
    };
    let rounds: Vec<_> = (0..3).map(|_| (natively(), direct())).collect();
    let (native, ours) = (rounds.iter().map(|round| round.0).min(), rounds.iter().map(|round| round.1).min());
    // Before accept was woken it took more than a second longer.
    assert!(ours.unwrap() < native.unwrap() * 2 + Duration::from_millis(300), "{rounds:?}");
}
