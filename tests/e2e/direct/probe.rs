//! What a server in Python can learn of its sockets and connections is the same natively and under direct.

use std::io::Read;
use std::net::TcpStream;
use std::process::{Command, Stdio};

use crate::support::{Daemon, Killed, eventually, free_port, install_dir, roundsman, seconds, write_file};

/// What a server can learn of its sockets and connections, as text: the same natively and under direct.
const PROBE: &str = "
import errno, fcntl, os, select, socket, struct, sys, time
port, out = int(sys.argv[1]), open(sys.argv[2], 'w')
def say(what, value): print(what, value, file=out, flush=True)
def code(call):
    try: call(); return 'ok'
    except OSError as e: return errno.errorcode[e.errno]
s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1); s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 40000)
s.bind(('127.0.0.1', port)); say('name', s.getsockname())
say('accept before listen', code(lambda: s.accept()) if not s.setblocking(False) else '')
s.listen(50)
say('peer of a listener', code(lambda: s.getpeername()))
for name in ['SO_TYPE', 'SO_DOMAIN', 'SO_PROTOCOL', 'SO_ACCEPTCONN', 'SO_KEEPALIVE', 'SO_RCVBUF', 'SO_REUSEADDR', 'SO_ERROR', 'SO_LINGER']:
    size = 8 if name == 'SO_LINGER' else 4
    say(name, s.getsockopt(socket.SOL_SOCKET, getattr(socket, name), size).hex())
say('nodelay', s.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
s.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1); say('set', s.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE))
s.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 60000); s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 3))
say('bad option', code(lambda: s.setsockopt(socket.IPPROTO_TCP, 9999, 1)))
say('bad level', code(lambda: s.getsockopt(9999, 1)))
say('bind again', code(lambda: s.bind(('127.0.0.1', port))))
say('nothing', code(s.accept))
say('mode', bool(fcntl.fcntl(s, fcntl.F_GETFL) & os.O_NONBLOCK))
ep = select.epoll(); ep.register(s.fileno(), select.EPOLLIN | select.EPOLLET)
counts = []
for n in range(3):
    # Clients come one at a time, each after the last was served and nothing more was there.
    events = ep.poll(10); got = 0
    while True:
        try: c, peer = s.accept()
        except BlockingIOError: break
        got += 1
        if n == 0:
            say('inherited', [c.getsockopt(socket.SOL_SOCKET, o) for o in (socket.SO_KEEPALIVE, socket.SO_RCVBUF, socket.SO_SNDBUF)] + [c.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)])
            say('linger', c.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8).hex())
            say('cloexec', not os.get_inheritable(c.fileno())); say('blocking', os.get_blocking(c.fileno()))
            say('names', (c.getsockname() == ('127.0.0.1', port), c.getpeername() == peer, peer[0]))
            say('type', (c.type, c.family, c.getsockopt(socket.SOL_SOCKET, socket.SO_DOMAIN), c.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)))
            say('accept on a connection', code(c.accept)); say('listen on a connection', code(c.listen))
            c.sendall(b'bye')
        if n == 1: c.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
        if n == 2:
            # The client resets.
            p = select.poll(); p.register(c, select.POLLIN); p.poll(5000)
            say('reset', code(lambda: c.recv(1))); say('peer after it', code(c.getpeername))
        c.close()
    counts.append((len(events), got, events[0][1] if events else 0)); say('served', n)
say('events', counts)
u = socket.socket(type=socket.SOCK_DGRAM); u.bind(('127.0.0.1', 0)); say('udp', u.getsockname()[1] > 0)
say('EBADF', code(lambda: os.close(999)))
d = os.open('/dev/null', 0)
say('not a socket', [code(lambda: socket.socket(fileno=os.dup(d)).listen()), code(lambda: socket.socket(fileno=os.dup(d), family=2, type=1).accept())])
s.close(); say('closed', len(ep.poll(0.05)))
say('end', '')
time.sleep(60)
";

#[test]
fn a_server_sees_the_same_as_natively() {
    use socket2::SockRef;
    let dir = install_dir();
    let script = write_file(dir.path(), "probe.py", PROBE).to_str().unwrap().to_owned();
    let observe = |port: u16, out: &std::path::Path| {
        let said = |text: &str| std::fs::read_to_string(out).is_ok_and(|all| all.contains(text));
        eventually("it listens", seconds(10), || said("mode").then_some(()));
        let mut seen = Vec::new();
        for n in 0..3 {
            let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
            stream.set_read_timeout(Some(seconds(10))).unwrap();
            if n == 2 {
                SockRef::from(&stream).set_linger(Some(std::time::Duration::ZERO)).unwrap();
                drop(stream);
            } else {
                let mut bytes = Vec::new();
                let end = stream.read_to_end(&mut bytes).map_err(|error| error.kind());
                seen.push(format!("client sees {bytes:?} {end:?}"));
            }
            eventually("it was served", seconds(10), || said(&format!("served {n}")).then_some(()));
        }
        eventually("the probe's end", seconds(10), || said("\nend").then_some(()));
        seen.push(std::fs::read_to_string(out).unwrap());
        seen
    };
    let (port, out) = (free_port(), dir.path().join("native"));
    let native = {
        let mut child = Command::new("python3");
        child.args([&script, &port.to_string(), out.to_str().unwrap()]).stdin(Stdio::null());
        let _server = Killed::spawn(&mut child);
        observe(port, &out)
    };
    // On the same port: its number is in what they say.
    for policy in ["rr", "none"] {
        let out = dir.path().join(policy);
        let command = ["python3", &script, &port.to_string(), out.to_str().unwrap()].map(str::to_owned);
        let mut all = vec!["-i", "1", "--via", "direct", "-p", policy, "--"];
        all.extend(command.iter().map(String::as_str));
        let _daemon = Daemon::launch(roundsman(), &all, port);
        let direct = observe(port, &out);
        assert_eq!(native, direct, "under {policy}");
    }
}
