//! A server keeps a copy of the socket that it binds. Whatever it does with that holds up no other service.
//! Mostly waits: tests/run runs it beside others.

use std::net::TcpStream;

use crate::support::{Daemon, eventually, free_port, http_get, install_dir, roundsman, seconds, write_file};

/// Keeps a copy of its socket from before the bind, and does with it what its second argument says. A third is served.
const HOSTILE: &str = "
import fcntl, os, socket, struct, sys, time
port, what = int(sys.argv[1]), sys.argv[2]
def serve(s):
    while True:
        c, _ = s.accept(); c.recv(1000); c.sendall(b'HTTP/1.0 200 OK\\r\\n\\r\\nserved'); c.close()
def new():
    s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    # On its way until after the bind: copies that are there by then become stand-ins.
    a, b = socket.socketpair(); socket.send_fds(a, [b'x'], [s.fileno()])
    return s, lambda: socket.socket(fileno=socket.recv_fds(b, 1, 1)[1][0])
if what == 'nothing':
    s, _ = new(); s.bind(('127.0.0.1', port)); s.listen(); serve(s)
if what == 'blocking':
    s, copy = new(); s.bind(('127.0.0.1', port)); s.listen(); copy = copy()
    fcntl.fcntl(copy.fileno(), fcntl.F_SETFL, os.O_RDWR)
    serve(s)
# A connection with unsent data, whose close lingers.
first, _ = new(); first.bind(('127.0.0.1', port)); first.listen()
sink = socket.socket(); sink.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048); sink.bind(('127.0.0.1', 0)); sink.listen()
s, copy = new(); s.bind(('127.0.0.2', port)); copy = copy()
if what == 'heard':
    s.listen(); time.sleep(0.3); copy.shutdown(socket.SHUT_RDWR)
copy.setblocking(True)
copy.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 60))
copy.connect(sink.getsockname()); copy.setblocking(False)
try:
    while True: copy.send(bytes(65536))
except BlockingIOError: pass
copy.close(); s.close()
print('done', file=sys.stderr, flush=True)
serve(first)
";

fn ask(port: u16) -> std::io::Result<String> {
    let mut client = TcpStream::connect(("127.0.0.1", port))?;
    client.set_read_timeout(Some(seconds(5)))?;
    http_get(&mut client)
}

/// The daemon with that service and a harmless one: (daemon, their ports).
fn start(what: &str) -> (Daemon, u16, u16, tempfile::TempDir) {
    let (dir, hostile, harmless) = (install_dir(), free_port(), free_port());
    let script = write_file(dir.path(), "hostile.py", HOSTILE);
    let service = |name: &str, port: u16, what: &str| {
        let script = script.display();
        format!(
            "[service.{name}]\ncommand = [\"python3\", \"{script}\", \"{port}\", \"{what}\"]\ninstances = 1\nvia = \"direct\"\n"
        )
    };
    let text = service("hostile", hostile, what) + &service("harmless", harmless, "nothing");
    let file = write_file(dir.path(), "two.toml", &text);
    let daemon = Daemon::launch(roundsman(), &["-c", file.to_str().unwrap()], harmless);
    daemon.wait_for_count("worker online", 2);
    (daemon, hostile, harmless, dir)
}

#[test]
fn a_server_that_makes_its_listener_blocking_holds_up_nobody_else() {
    let (daemon, hostile, harmless, _dir) = start("blocking");
    // The first takes the accept thread there.
    let _ = ask(hostile);
    for _ in 0..20 {
        assert_eq!(ask(harmless).unwrap(), "served", "{}", daemon.log());
    }
    daemon.wait_for("makes it blocking");
    // It is served all the same.
    eventually("an answer", seconds(20), || ask(hostile).ok().filter(|answer| answer == "served"));
}

#[test]
fn a_socket_that_lingers_holds_up_nobody() {
    for what in ["unheard", "heard"] {
        let (daemon, hostile, harmless, _dir) = start(what);
        daemon.wait_for("done");
        for _ in 0..5 {
            assert_eq!(ask(harmless).unwrap(), "served", "{what}\n{}", daemon.log());
            assert_eq!(ask(hostile).unwrap(), "served", "{what}\n{}", daemon.log());
            assert!(!daemon.ls().is_null(), "{what}");
            // A close that lingers would do so for all of this time.
            std::thread::sleep(seconds(1) / 3);
        }
    }
}
