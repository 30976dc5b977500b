//! Mostly waits: what the page says of real services that have real trouble.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::{
    Browser, Daemon, Upstream, eventually, free_port, freeze, get, install_dir, roundsman, seconds, write_file,
};

/// Serves one connection after the other; in slot 1 each takes a while if SLOW is set.
const SERVER: &str = "
import os, socket, time
s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
s.bind(('127.0.0.1', int(os.environ['PORT']))); s.listen(1000)
slow = os.environ['ROUNDSMAN_SLOT'] == '1' and float(os.environ.get('SLOW', '0'))
while True:
    try:
        c, _ = s.accept(); c.recv(1000); time.sleep(slow)
        c.sendall(b'HTTP/1.1 200 OK\\r\\nContent-Length: 2\\r\\nConnection: close\\r\\n\\r\\nok'); c.close()
    except OSError: pass
";
/// Only slot 0 lives for long.
const CRASHES: &str =
    "import os, sys, time; time.sleep(1000 if os.environ['ROUNDSMAN_SLOT'] == '0' else 0.4); sys.exit(3)";

struct Scene {
    daemon: Daemon,
    ports: [u16; 5],
    admin: u16,
    _dir: tempfile::TempDir,
    _upstream: Upstream,
}

fn scene() -> Scene {
    let (dir, upstream, admin) = (install_dir(), Upstream::echo(), free_port());
    let ports: [u16; 5] = std::array::from_fn(|_| free_port());
    let [well, stopped, slow, mail, line] = ports;
    let script = write_file(dir.path(), "server.py", SERVER);
    let command = format!("command = [\"python3\", {script:?}]\nvia = \"direct\"\n");
    let text = format!(
        "admin = {admin}\n\
         [service.well]\nlisten = \"127.0.0.1:{well}\"\ninstances = 2\n{command}\
         [service.stopped]\nlisten = \"127.0.0.1:{stopped}\"\ninstances = 3\n{command}\
         [service.slow]\nlisten = \"127.0.0.1:{slow}\"\ninstances = 3\nenv = {{ SLOW = \"0.3\" }}\n{command}\
         [service.crashes]\nno-listen = true\ninstances = 2\nmin-uptime = \"100ms\"\ncommand = [\"python3\", \"-c\", \"{CRASHES}\"]\n\
         [service.mail]\nlisten = \"127.0.0.1:{mail}\"\ninstances = 1\nupstream = [\"{up}\", \"127.0.0.1:1\"]\n\
         [service.line]\nlisten = \"127.0.0.1:{line}\"\ninstances = 2\nworker-conns = 1\n{command}",
        up = upstream.arg(),
    );
    let file = write_file(dir.path(), "a.toml", &text);
    let daemon = Daemon::launch(roundsman(), &["-c", file.to_str().unwrap()], line);
    eventually("five services are online", seconds(60), || {
        let state = daemon.ls();
        let mut services = state["services"].as_array()?.iter();
        let online = |service: &serde_json::Value| {
            service["slots"].as_array().unwrap().iter().all(|slot| slot["state"] == "online")
        };
        services.all(|service| service["name"] == "crashes" || online(service)).then_some(())
    });
    Scene { daemon, ports, admin, _dir: dir, _upstream: upstream }
}

/// Ends the clients, also when the test fails.
struct Over<'a>(&'a AtomicBool, Pid);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
        let _ = kill(self.1, Signal::SIGCONT);
    }
}

#[test]
fn what_is_wrong_since_when_and_what_to_do_is_said() {
    let scene = scene();
    let [well, stopped, slow, mail, line] = scene.ports;
    let slot = |service: &str, slot: usize| {
        let state = scene.daemon.ls();
        let mut services = state["services"].as_array().unwrap().iter();
        services.find(|one| one["name"] == service).unwrap()["slots"][slot].clone()
    };
    let frozen = Pid::from_raw(slot("stopped", 2)["pid"].as_i64().unwrap() as i32);
    let mut browser = Browser::start();
    browser.look(1280, false);
    browser.open(&format!("http://127.0.0.1:{}/", scene.admin));
    browser.wait("document.querySelector('#live').textContent.startsWith('live')");
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _over = Over(&over, frozen);
        freeze(frozen.as_raw());
        for port in [well, stopped, slow, slow] {
            let over = &over;
            scope.spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    let _ = get(port);
                    std::thread::sleep(std::time::Duration::from_millis(10));
                }
            });
        }
        // The second one is sent to the upstream that is down.
        for _ in 0..2 {
            let mut stream = TcpStream::connect(("127.0.0.1", mail)).unwrap();
            stream.set_read_timeout(Some(seconds(20))).unwrap();
            stream.write_all(b"x").unwrap();
            stream.read_exact(&mut [0]).unwrap();
        }
        // Two are being served, three wait.
        let _clients: Vec<_> = (0..5).map(|_| TcpStream::connect(("127.0.0.1", line)).unwrap()).collect();
        for words in [
            "mail upstream 127.0.0.1:1 is down: Connection refused",
            "line 3 clients wait for a worker, the first of them for",
            "stopped/2 is stuck: it does not take",
            "times in 5 minutes and was started again: exit code 3",
            "slow/1 is slow: it serves",
        ] {
            browser.wait(&format!("document.querySelector('#findings').innerText.includes({words:?})"));
        }
        let said = browser.text("#verdict");
        for words in ["roundsman reload stopped/2", "roundsman scale +1 line", "roundsman logs crashes/1", "· since "]
        {
            assert!(said.contains(words), "{words}: {said}");
        }
    });
}
