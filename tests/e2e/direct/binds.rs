//! Without `-l` a server's own process binds its port: the kernel judges its rights, not the daemon's.
//! Mostly waits: tests/run runs it beside others.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use crate::support::direct::ask;
use crate::support::table::table;
use crate::support::{
    Daemon, Killed, answers, eventually, free_port, install_dir, roundsman, seconds, servers, write_file,
};

/// One that every user may run.
const PYTHON: &str = "/usr/bin/python3";

const RIGHTS: &str = "
import os, socket, sys
out = []
def attempt(what, call):
    try: out.append('%s: %s' % (what, call()))
    except OSError as e: out.append('%s: %s' % (what, os.strerror(e.errno)))
low = socket.socket(); low.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
attempt('a low port', lambda: low.bind(('127.0.0.1', 83)))
s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
attempt('bind', lambda: s.bind(('127.0.0.1', int(sys.argv[1]))))
attempt('listen', lambda: s.listen(5))
for what, level, option, value in [
    ('SO_MARK', 1, 36, 77), ('SO_RCVBUFFORCE', 1, 33, 1 << 28), ('SO_SNDBUFFORCE', 1, 32, 1 << 28), ('SO_DEBUG', 1, 1, 1),
    ('IP_TRANSPARENT', 0, 19, 1), ('SO_PRIORITY 6', 1, 12, 6), ('SO_PRIORITY 7', 1, 12, 7), ('SO_BUSY_POLL', 1, 46, 50),
    ('SO_RCVBUF', 1, 8, 40000), ('SO_KEEPALIVE', 1, 9, 1), ('TCP_NODELAY', 6, 1, 1), ('TCP_KEEPIDLE', 6, 4, 61),
    ('TCP_DEFER_ACCEPT', 6, 9, 2), ('TCP_FASTOPEN', 6, 23, 5), ('TCP_USER_TIMEOUT', 6, 18, 5000), ('IP_TOS', 0, 1, 16),
    ('IP_TTL', 0, 2, 33), ('TCP_CONGESTION', 6, 13, b'reno'), ('no such congestion', 6, 13, b'none-such'),
]:
    def change():
        s.setsockopt(level, option, value)
        return s.getsockopt(level, option, 16) if isinstance(value, bytes) else s.getsockopt(level, option)
    if what != 'no such congestion': attempt(what, change)
    else:
        try: s.setsockopt(level, option, value)
        except OSError: out.append('refused')
with open(sys.argv[2], 'w') as f: f.write('\\n'.join(out))
os.rename(sys.argv[2], sys.argv[2] + '.done')
";

fn done(path: &Path) -> String {
    let done = path.with_extension("done");
    eventually("the probe's end", seconds(20), || std::fs::read_to_string(&done).ok())
}

/// A directory where everybody may write.
fn open_dir() -> tempfile::TempDir {
    use std::os::unix::fs::PermissionsExt;
    let dir = install_dir();
    std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o777)).unwrap();
    dir
}

fn as_nobody(program: &str) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--reuid", "nobody", "--regid", "nogroup", "--clear-groups", program]);
    command
}

#[test]
fn a_user_may_what_it_may_without_us() {
    let dir = open_dir();
    let script = write_file(dir.path(), "rights.py", RIGHTS);
    let path = |name: &str| dir.path().join(name);
    let (script, port) = (script.to_str().unwrap(), free_port());
    let natively = path("natively");
    let status = as_nobody(PYTHON).args([script, &port.to_string()]).arg(&natively).status().unwrap();
    assert!(status.success());
    let port = free_port();
    let ours = path("ours");
    let ours_text = ours.to_str().unwrap();
    let arguments = ["-i", "1", "--user", "nobody", "--via", "direct", "--"];
    let command = [PYTHON, script, &port.to_string(), ours_text];
    let _daemon = Daemon::launch(roundsman(), &[&arguments[..], &command[..]].concat(), port);
    assert_eq!(done(&ours), done(&natively));
}

#[test]
fn a_worker_in_node_has_no_more_rights_either() {
    // There it is the master that binds, by Node's own protocol.
    let dir = open_dir();
    let script = write_file(
        dir.path(),
        "low.js",
        "
const fs = require('fs'), net = require('net'), [out, own] = process.argv.slice(2), said = [];
const end = () => { fs.writeFileSync(out, said.join('\\n')); fs.renameSync(out, out + '.done'); };
const attempt = (what, where, then) => {
  const server = net.createServer().on('error', e => { said.push(what + ' ' + e.code); then(); });
  server.listen(where, () => { said.push(what + ' listens'); then(); });
};
attempt('low', { port: 83, host: '127.0.0.1' }, () =>
  attempt('foreign directory', { path: own + '/closed/socket' }, () =>
    attempt('own directory', { path: own + '/socket' }, () => { said.push(fs.statSync(own + '/socket').uid); end(); })));
",
    );
    std::fs::create_dir(dir.path().join("closed")).unwrap();
    let (script, own) = (script.to_str().unwrap(), dir.path().to_str().unwrap());
    let path = |name: &str| dir.path().join(name);
    let natively = path("natively");
    // It stays up when it listens.
    let native = Killed::spawn(as_nobody("node").arg(script).arg(&natively).arg(own));
    let expected = done(&natively);
    drop(native);
    let _ = std::fs::remove_file(path("socket"));
    let ours = path("ours");
    let arguments = ["-i", "1", "--user", "nobody", "--", "node", script, ours.to_str().unwrap(), own];
    let _daemon = Daemon::launch(roundsman(), &arguments, 83);
    assert_eq!(done(&ours), expected);
}

/// A library between ours and libc: the first process that binds takes its time, or does not survive it.
const SLOW: &str = "
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>
int bind(int fd, const struct sockaddr *address, socklen_t len) {
  int (*next)(int, const struct sockaddr *, socklen_t) = dlsym(RTLD_NEXT, \"bind\");
  const char *mark = getenv(\"FIRST_TO_BIND\");
  int first = mark && address->sa_family == AF_INET ? open(mark, O_CREAT | O_EXCL | O_WRONLY, 0600) : -1;
  if (first >= 0 && getenv(\"DIES\")) kill(getpid(), SIGKILL);
  if (first >= 0) usleep(400000);
  return next(fd, address, len);
}
";

#[test]
fn all_workers_share_a_port_that_one_of_them_takes_long_to_bind() {
    for fate in [None, Some(("DIES", "1"))] {
        let (dir, port) = (install_dir(), free_port());
        let source = write_file(dir.path(), "slow.c", SLOW);
        let library = dir.path().join("slow.so");
        let made = Command::new("cc")
            .args(["-shared", "-fPIC", "-o"])
            .arg(&library)
            .arg(&source)
            .arg("-ldl")
            .status()
            .unwrap();
        assert!(made.success());
        let mut program = roundsman();
        program.env("FIRST_TO_BIND", dir.path().join("first")).env("LD_PRELOAD", &library).env("SERVERS", servers());
        program.envs(fate);
        let command = table(dir.path(), port).swap_remove(0).command;
        let command: Vec<&str> = command.iter().map(String::as_str).collect();
        let arguments = [&["-i", "3", "--via", "direct", "--node-ipc", "off", "--"], command.as_slice()].concat();
        let daemon = Daemon::launch(program, &arguments, port);
        daemon.wait_online(3);
        assert!(dir.path().join("first").exists(), "the library was not used");
        let workers: BTreeSet<_> = (0..3).map(|slot| format!("slot {slot}")).collect();
        answers(&workers, || ask(port).0);
        assert_eq!(daemon.ls()["services"][0]["listen"].as_array().unwrap().len(), 1);
    }
}

#[test]
fn a_node_worker_that_has_become_another_user_gets_none_of_our_rights() {
    let dir = install_dir();
    let private = dir.path().join("private");
    std::fs::create_dir(&private).unwrap();
    std::os::unix::fs::chown(&private, Some(0), Some(0)).unwrap();
    std::fs::set_permissions(&private, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    let script = write_file(
        dir.path(),
        "drops.js",
        "
const net = require('net'), said = [];
process.setgroups([65534]); process.setgid(65534); process.setuid(65534);
const attempt = (what, ...where) => {
  const say = result => { said.push(what + ' ' + result); if (said.length === 3) console.error('said: ' + said.sort().join(', ')); };
  const server = net.createServer(client => client.end('ok'));
  server.on('error', error => say(error.code)).listen(...where, () => say('listens'));
};
attempt('low', 84, '127.0.0.1');
attempt('path', process.argv[3]);
attempt('free', Number(process.argv[2]), '127.0.0.1');
",
    );
    let (port, path) = (free_port(), private.join("socket"));
    let (text, path) = (port.to_string(), path.to_str().unwrap().to_owned());
    let command = ["-i", "1", "--", "node", script.to_str().unwrap(), &text, &path];
    let daemon = Daemon::launch(roundsman(), &command, port);
    daemon.wait_for("said: free listens, low EACCES, path EACCES");
}
