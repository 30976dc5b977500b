//! Mostly waits: the README's pictures, of real services behind a real daemon. tests/pictures makes them anew.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::ROOT;
use crate::admin::pictures::base64;
use crate::support::{Browser, Daemon, Screen, get, millis, roundsman, seconds, write_file};

/// The files in docs/pictures.
const PAGE: &str = "page.png";
const TOP: &str = "top.svg";
const MAX_BYTES: usize = 150 * 1024;

const CONFIG: &str = r#"
admin = 9900

[service.shop]
listen = 8080
instances = 4
command = ["node", "shop.js"]

[service.api]
listen = 3000
instances = 2
command = ["python3", "api.py"]
after = ["db"]

[service.db]
listen = "127.0.0.1:5432"
instances = 1
upstream = ["10.0.0.5:5432", "10.0.0.6:5432"]

[service.mailer]
no-listen = true
instances = 1
command = ["python3", "-c", "while True: __import__('time').sleep(1)"]
"#;

/// Slot 3 has a slow disk, as it were.
const SHOP: &str = "
const slow = process.env.ROUNDSMAN_SLOT == '3'
require('http').createServer((_, response) => {
    const wait = slow ? 300 + Math.random() * 200 : 5 + Math.random() * 40
    setTimeout(() => response.end('sold'), wait)
}).listen(process.env.PORT)
";

const API: &str = "
import http.server, os, random, time
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        time.sleep(random.random() * 0.02)
        self.send_response(200); self.send_header('Content-Length', '2'); self.end_headers(); self.wfile.write(b'ok')
    def log_message(self, *_): pass
http.server.ThreadingHTTPServer(('127.0.0.1', int(os.environ['PORT'])), Handler).serve_forever()
";

/// Sends back what comes, until it is over.
fn echo(address: &str, over: &AtomicBool) {
    let listener = TcpListener::bind(address).unwrap();
    listener.set_nonblocking(true).unwrap();
    while !over.load(Relaxed) {
        let Ok((mut stream, _)) = listener.accept() else {
            std::thread::sleep(millis(5));
            continue;
        };
        let _ = stream.set_nonblocking(false);
        let mut buffer = [0; 64];
        let n = stream.read(&mut buffer).unwrap_or(0);
        let _ = stream.write_all(&buffer[..n]);
    }
}

/// Clients of a port, more and fewer of them in the course of a minute.
fn clients(over: &AtomicBool, pause: Duration, ask: impl Fn()) {
    let begin = Instant::now();
    while !over.load(Relaxed) {
        ask();
        let wave = (begin.elapsed().as_secs_f32() / 9.0).sin();
        std::thread::sleep(pause.mul_f32(1.4 + wave));
    }
}

fn ask_db() {
    let Ok(mut stream) = TcpStream::connect("127.0.0.1:5432") else { return };
    let _ = stream.set_read_timeout(Some(seconds(5)));
    let _ = stream.write_all(b"select 1").and_then(|()| stream.read(&mut [0; 64]));
}

/// Ends threads, also when the test fails.
struct Over<'a>([&'a AtomicBool; 2]);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.iter().for_each(|over| over.store(true, Relaxed));
    }
}

/// The page, as PNG, and `top`, as SVG, after a time of service.
fn pictures(time: Duration) -> (Vec<u8>, String) {
    let dir = Path::new("/srv/shop");
    std::fs::create_dir(dir).unwrap();
    for (name, text) in [("shop.js", SHOP), ("api.py", API), ("shop.toml", CONFIG)] {
        write_file(dir, name, text);
    }
    let mut command = roundsman();
    command.current_dir(dir);
    let (over, down) = (AtomicBool::new(false), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let _over = Over([&over, &down]);
        scope.spawn(|| echo("10.0.0.5:5432", &over));
        scope.spawn(|| echo("10.0.0.6:5432", &down));
        let daemon = Daemon::launch(command, &["-c", "shop.toml"], 8080);
        daemon.wait_for_count("worker online", 8);
        for _ in 0..3 {
            scope.spawn(|| clients(&over, millis(45), || drop(get(8080))));
        }
        scope.spawn(|| clients(&over, millis(40), || drop(get(3000))));
        scope.spawn(|| clients(&over, millis(60), ask_db));
        let mut screen = Screen::start(roundsman().args(["top", "--control"]).arg(daemon.control()), (112, 36));
        let mut browser = Browser::start();
        browser.look(1120, false);
        browser.open("http://127.0.0.1:9900/");
        browser.wait("document.querySelector('#live').textContent.startsWith('live')");
        std::thread::sleep(time / 2);
        kill(Pid::from_raw(daemon.workers()[1]), Signal::SIGKILL).unwrap();
        std::thread::sleep(time / 4);
        down.store(true, Relaxed);
        std::thread::sleep(time / 4);
        for words in ["shop/1 was restarted", "shop/3 is slow", "db upstream 10.0.0.6:5432 is down"] {
            browser.wait(&format!("document.querySelector('#findings').innerText.includes({words:?})"));
        }
        // Down to the end of the first service.
        let end = browser.js(
            "Math.round(document.querySelector('#services section').getBoundingClientRect().bottom + scrollY) + 16",
        );
        let page = base64(&["-d"], browser.shot(1120, end.as_u64().unwrap(), 1.0).as_bytes());
        assert_eq!(browser.complaints(), [""; 0]);
        screen.wait_until("all of them", |text| {
            ["shop/3", "api/1", "@10.0.0.6:5432", "mailer/0", "q quit"].iter().all(|words| text.contains(words))
        });
        let top = screen.svg("roundsman top: services, slots and upstreams with their rates, waits, CPU and memory");
        screen.press("q");
        assert!(screen.finish().success());
        (page, top)
    })
}

/// Runs the test of this name again in a network of its own, where its ports and addresses are free, and with a /srv of its
/// own. Whether this is that.
fn is_in_its_network(name: &str) -> bool {
    if std::env::var_os("PICTURES_NETWORK").is_some() {
        return true;
    }
    let script = "ip link set lo up && for n in 5 6; do ip addr add 10.0.0.$n/32 dev lo; done &&
        mount -t tmpfs srv /srv && exec \"$0\" \"$@\"";
    let mut command = Command::new("unshare");
    command.args(["-nm", "sh", "-c", script]).arg(std::env::current_exe().unwrap());
    command.args(["--exact", name, "--ignored", "--nocapture"]).env("PICTURES_NETWORK", "1");
    assert!(command.status().unwrap().success());
    false
}

#[test]
#[ignore = "long: tests/pictures; its fonts and browser are those of tests/install"]
fn they_can_be_made() {
    if !is_in_its_network("docs::pictures::they_can_be_made") {
        return;
    }
    let new = std::env::var("NEW_PICTURES");
    let time = if new.is_ok() { seconds(240) } else { seconds(24) };
    let (page, top) = pictures(time);
    for (name, bytes) in [(PAGE, &page[..]), (TOP, top.as_bytes())] {
        let place = new.as_deref().map(Path::new).unwrap_or(Path::new(env!("CARGO_TARGET_TMPDIR")));
        std::fs::write(place.join(name), bytes).unwrap();
        assert!(bytes.len() <= MAX_BYTES, "{name}: {} bytes", bytes.len());
    }
}

#[test]
fn the_readme_shows_them_and_they_are_small() {
    let readme = std::fs::read_to_string(format!("{ROOT}/README.md")).unwrap();
    for (name, begins, words) in
        [(PAGE, &b"\x89PNG\r\n"[..], &[][..]), (TOP, b"<svg ", &["shop/3", "CONN/S", "q quit", "10.0.0.6"][..])]
    {
        assert!(readme.contains(&format!("](docs/pictures/{name})")), "{name}");
        let bytes = std::fs::read(format!("{ROOT}/docs/pictures/{name}")).unwrap();
        assert!(bytes.starts_with(begins) && bytes.len() <= MAX_BYTES, "{name}: {} bytes", bytes.len());
        let text = String::from_utf8_lossy(&bytes);
        assert!(words.iter().all(|words| text.contains(words)), "{name}: {words:?}");
    }
    // Everything that the page or the README's reader would fetch from elsewhere.
    let top = std::fs::read_to_string(format!("{ROOT}/docs/pictures/{TOP}")).unwrap();
    assert_eq!(top.replace("http://www.w3.org/2000/svg", "").matches("://").count(), 0);
    let script = std::fs::read_to_string(format!("{ROOT}/tests/pictures")).unwrap();
    assert!(script.contains("docs::pictures::they_can_be_made"), "{script}");
}
