//! The master is killed under systemd, which keeps its listeners: clients wait until it is back. `systemd.py` stands in for systemd.

use std::io::{BufRead, BufReader, ErrorKind, Lines, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};

use crate::support::{Killed, Upstream, eventually, free_port, get, install_dir, refused, seconds};

/// A service manager with one service, in a directory for its sockets.
struct Manager {
    words: ChildStdin,
    said: Lines<BufReader<ChildStdout>>,
    _process: Killed,
}

impl Manager {
    fn start(dir: &Path, arguments: &[&str]) -> Self {
        let mut command = Command::new("python3");
        command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/e2e/upgrade/systemd.py")).arg(dir);
        command.arg(env!("CARGO_BIN_EXE_roundsman")).args(arguments);
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("ROUNDSMAN_")) {
            command.env_remove(name);
        }
        command.env("ROUNDSMAN_CONTROL", dir.join("control").join("d.sock"));
        let mut process = Killed::spawn(command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()));
        let words = process.0.stdin.take().unwrap();
        let said = BufReader::new(process.0.stdout.take().unwrap()).lines();
        Self { words, said, _process: process }
    }

    fn tell(&mut self, word: &str) {
        writeln!(self.words, "{word}").unwrap();
    }

    /// What it says until a line begins with a word, that line included.
    fn until(&mut self, wanted: &str) -> Vec<String> {
        let mut lines = Vec::new();
        for line in self.said.by_ref() {
            lines.push(line.unwrap());
            if lines.last().unwrap().starts_with(wanted) {
                return lines;
            }
        }
        panic!("no {wanted}: {lines:?}");
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        let _ = writeln!(self.words, "end");
    }
}

/// Clients that come one after the other, until told to stop: how many were answered, and how many refused.
#[derive(Default)]
struct Clients {
    answered: AtomicUsize,
    refused: AtomicUsize,
    stop: AtomicBool,
}

impl Clients {
    fn come<S: Read + Write>(&self, connect: impl Fn() -> std::io::Result<S>) {
        while !self.stop.load(SeqCst) {
            let mut word = [0; 5];
            match connect() {
                // A connection of the master that was killed may be cut.
                Ok(mut stream) => {
                    let answer = stream.write_all(b"hello").and_then(|()| stream.read_exact(&mut word));
                    self.answered.fetch_add(usize::from(answer.is_ok() && &word == b"hello"), SeqCst);
                }
                Err(error) if [ErrorKind::ConnectionRefused, ErrorKind::NotFound].contains(&error.kind()) => {
                    self.refused.fetch_add(1, SeqCst);
                }
                Err(error) => panic!("{error}"),
            }
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
    }
}

#[test]
fn clients_wait_while_a_master_that_was_killed_20_times_comes_back() {
    let (dir, upstream, port) = (install_dir(), Upstream::echo(), free_port());
    let path: PathBuf = dir.path().join("s");
    let (tcp, unix) = (format!("127.0.0.1:{port}"), format!("unix:{}", path.display()));
    let mut manager = Manager::start(dir.path(), &["-l", &tcp, "-l", &unix, "-i", "1", "-u", &upstream.arg()]);
    manager.until("ready");
    let clients = [Arc::new(Clients::default()), Arc::new(Clients::default())];
    let [by_tcp, by_unix] = clients.clone();
    let file = path.clone();
    let threads = [
        std::thread::spawn(move || by_tcp.come(|| TcpStream::connect(("127.0.0.1", port)))),
        std::thread::spawn(move || by_unix.come(|| UnixStream::connect(&file))),
    ];
    for _ in 0..20 {
        let before = clients.each_ref().map(|clients| clients.answered.load(SeqCst));
        manager.tell("kill");
        manager.until("ready");
        for (clients, before) in clients.iter().zip(before) {
            eventually("answers", seconds(20), || (clients.answered.load(SeqCst) > before + 3).then_some(()));
        }
    }
    clients.iter().for_each(|clients| clients.stop.store(true, SeqCst));
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    for clients in &clients {
        assert_eq!(clients.refused.load(SeqCst), 0);
    }
    // A stop that was asked for leaves nothing behind, and refuses.
    manager.tell("term");
    let said = manager.until("ended");
    assert_eq!(said.last().unwrap(), "ended 0");
    assert!(said.contains(&"stored 0".to_owned()), "{said:?}");
    assert!(refused(port) && !path.exists());
}

#[test]
fn servers_with_direct_delivery_come_back_behind_the_same_listener() {
    let (dir, port) = (install_dir(), free_port());
    let listen = format!("127.0.0.1:{port}");
    let server = "import http.server, os
class H(http.server.BaseHTTPRequestHandler):
    def do_GET(self): self.send_response(200); self.end_headers(); self.wfile.write(str(os.getpid()).encode())
    def log_message(self, *a): pass
http.server.ThreadingHTTPServer(('127.0.0.1', int(os.environ['PORT'])), H).serve_forever()";
    for policy in ["rr", "none"] {
        let dir = dir.path().join(policy);
        std::fs::create_dir(&dir).unwrap();
        let mut manager = Manager::start(
            &dir,
            &["-l", &listen, "-i", "2", "-p", policy, "--via", "direct", "--", "python3", "-c", server],
        );
        manager.until("ready");
        let before = get(port).unwrap();
        manager.tell("kill");
        // One that the killed master's servers had may be cut; the others wait until there is a new server.
        eventually("an answer of the next server", seconds(20), || match get(port) {
            Ok(answer) => (answer != before).then_some(()),
            Err(error) => {
                assert_ne!(error.kind(), ErrorKind::ConnectionRefused);
                None
            }
        });
        manager.until("ready");
        manager.tell("term");
        assert_eq!(manager.until("ended").last().unwrap(), "ended 0");
        assert!(refused(port));
    }
}

#[test]
fn what_the_configuration_no_longer_names_leaves_the_store() {
    let (dir, upstream, [kept, gone]) = (install_dir(), Upstream::echo(), [free_port(), free_port()]);
    let file = dir.path().join("rr.toml");
    let write = |listen: &str| {
        let text = format!("[service.web]\nlisten = [{listen}]\nupstream = \"{}\"\ninstances = 1\n", upstream.arg());
        std::fs::write(&file, text).unwrap();
    };
    write(&format!("\"127.0.0.1:{kept}\", \"127.0.0.1:{gone}\""));
    let mut manager = Manager::start(dir.path(), &["-c", file.to_str().unwrap()]);
    let said = manager.until("ready");
    assert!(said.contains(&"stored 2".to_owned()), "{said:?}");
    // Another form of the same port could not be bound beside the one in the store.
    write(&format!("\"127.0.0.1:{kept}\", \"0.0.0.0:{gone}\""));
    manager.tell("kill");
    let said = manager.until("ready");
    assert!(said.contains(&"stored 1".to_owned()), "{said:?}");
    let echoes = |port: u16| {
        let (mut stream, mut word) = (TcpStream::connect(("127.0.0.1", port)).unwrap(), [0; 5]);
        stream.write_all(b"hello").unwrap();
        stream.read_exact(&mut word).unwrap();
    };
    [kept, gone].into_iter().for_each(echoes);
    manager.tell("term");
    manager.until("ended 0");
}

#[test]
fn an_upgrade_stores_nothing_twice_and_nothing_is_lost() {
    let (dir, upstream, port) = (install_dir(), Upstream::echo(), free_port());
    let listen = format!("127.0.0.1:{port}");
    let mut manager = Manager::start(dir.path(), &["-l", &listen, "-i", "1", "-u", &upstream.arg()]);
    manager.until("ready");
    let upgrade = || {
        let control = dir.path().join("control").join("d.sock");
        let output =
            Command::new(env!("CARGO_BIN_EXE_roundsman")).arg("upgrade").env("ROUNDSMAN_CONTROL", control).output();
        let output = output.unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    let echoes = || {
        let (mut stream, mut word) = (TcpStream::connect(("127.0.0.1", port)).unwrap(), [0; 5]);
        stream.write_all(b"hello").unwrap();
        stream.read_exact(&mut word).unwrap();
    };
    upgrade();
    echoes();
    manager.tell("kill");
    manager.until("ready");
    echoes();
    upgrade();
    upgrade();
    manager.tell("term");
    assert_eq!(manager.until("ended"), ["stored 0", "ended 0"]);
    assert!(refused(port));
}
