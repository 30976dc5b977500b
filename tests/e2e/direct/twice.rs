//! An address has one socket in a worker, as natively.
//! Mostly waits: tests/run runs it beside others.

use std::path::Path;

use crate::support::direct::start_with;
use crate::support::{Daemon, eventually, free_port, get, install_dir, seconds, write_file};

/// Binds, and says what came of each attempt.
const TWICE: &str = "
import errno, os, socket, sys, time
out = []
def attempt(what, call):
    try: call(); out.append(what + ': ok')
    except OSError as e: out.append(what + ': ' + errno.errorcode[e.errno])
def new(*options):
    s = socket.socket()
    for option in options: s.setsockopt(socket.SOL_SOCKET, option, 1)
    return s
PORT, ADDRESS = socket.SO_REUSEPORT, socket.SO_REUSEADDR
one, other = (('127.0.0.1', int(port)) for port in sys.argv[1:3])
if os.environ.get('AGAIN'):
    # The same process, after exec: what it had is closed.
    s = new(ADDRESS); attempt('after exec', lambda: s.bind(one)); attempt('after exec, listen', s.listen)
    open(sys.argv[3], 'a').write('\\n'.join(out))
    os.rename(sys.argv[3], sys.argv[3] + '.done')
    while True:
        c, _ = s.accept(); c.recv(1000); c.sendall(b'HTTP/1.0 200 OK\\r\\n\\r\\nok'); c.close()
first = new(ADDRESS); first.bind(one); first.listen()
attempt('twice', lambda: new(ADDRESS).bind(one))
attempt('twice, plain', lambda: new().bind(one))
attempt('with the second alone sharing', lambda: new(PORT).bind(one))
pid = os.fork()
if pid == 0:
    try: new(ADDRESS).bind(one); os._exit(1)
    except OSError as e: os._exit(2 if e.errno == errno.EADDRINUSE else 3)
out.append('in a child: %d' % os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
first.close()
again = new(ADDRESS)
attempt('after close', lambda: again.bind(one)); again.close()
a, b = new(PORT), new(PORT)
attempt('first of two that share', lambda: a.bind(other)); attempt('listen', a.listen)
attempt('second of two that share', lambda: b.bind(other)); attempt('listen, too', b.listen)
a.close(); b.close()
unheard, second = new(ADDRESS), new(ADDRESS)
unheard.bind(other); attempt('beside one that does not listen', lambda: second.bind(other)); unheard.close(); second.close()
kept = new(ADDRESS); kept.bind(one); kept.listen()
open(sys.argv[3], 'w').write('\\n'.join(out) + '\\n')
os.environ['AGAIN'] = '1'; os.execv(sys.executable, [sys.executable] + sys.argv)
";

fn done(path: &Path) -> String {
    let done = path.with_extension("done");
    eventually("the probe's end", seconds(30), || std::fs::read_to_string(&done).ok())
}

#[test]
fn an_address_that_the_worker_has_is_in_use() {
    let dir = install_dir();
    let script = write_file(dir.path(), "twice.py", TWICE);
    let arguments = |out: &Path| {
        let ports = [free_port(), free_port()].map(|port| port.to_string());
        let [script, out] = [&script, out].map(|path| path.to_str().unwrap().to_owned());
        (ports[0].parse().unwrap(), ["python3".to_owned(), script, ports[0].clone(), ports[1].clone(), out])
    };
    let natively = dir.path().join("natively");
    let (_, command) = arguments(&natively);
    let native = crate::support::Killed::spawn(std::process::Command::new("python3").args(&command[1..]));
    let expected = done(&natively);
    drop(native);
    let ours = dir.path().join("ours");
    let (port, command) = arguments(&ours);
    let daemon: Daemon = start_with(port, "1", &["--via", "direct"], &command);
    assert_eq!(done(&ours), expected);
    assert_eq!(get(port).unwrap(), "ok");
    assert_eq!(daemon.slots()[0]["restarts"], 0);
}

#[test]
fn the_next_port_is_taken_where_the_first_is_in_use() {
    let (dir, port) = (install_dir(), free_port());
    let script = write_file(
        dir.path(),
        "next.js",
        "
const http = require('http'), first = Number(process.argv[2]), [own] = process.argv.slice(3);
const make = (name, port, then) => {
  const server = http.createServer((request, response) => response.end(name));
  server.on('error', error => error.code === 'EADDRINUSE' ? make(name, port + 1, then) : process.exit(3));
  server.listen(port, '127.0.0.1', () => then(port));
};
make('first', first, () => make('second', first, port => require('fs').writeFileSync(own, String(port))));
",
    );
    let said = dir.path().join("second");
    let command = ["node", script.to_str().unwrap(), &port.to_string(), said.to_str().unwrap()].map(str::to_owned);
    let _daemon = start_with(port, "1", &["--via", "direct", "--node-ipc", "off"], &command);
    let second: u16 = eventually("the second port", seconds(20), || std::fs::read_to_string(&said).ok()?.parse().ok());
    assert!(second > port, "{second}");
    for _ in 0..10 {
        assert_eq!(get(port).unwrap(), "first");
        assert_eq!(get(second).unwrap(), "second");
    }
}
