//! The limit with servers that have processes or threads of their own.
//! Mostly waits: tests/run runs it beside others.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;

use nix::sys::signal::{Signal, kill};

use super::{ask, body};
use crate::support::direct::start_with;
use crate::support::{eventually, free_port, install_dir, seconds, servers, write_file};

/// Says whether another request was being served in the same slot at the time.
const WSGI: &str = r#"
import os, time
def app(environ, start):
    mark = "busy" + os.environ["ROUNDSMAN_SLOT"]
    try:
        os.mkdir(mark)
        time.sleep(0.005)
        os.rmdir(mark)
        answer = b"alone"
    except FileExistsError:
        answer = b"beside another"
    start("200 OK", [("Content-Length", str(len(answer))), ("Connection", "close")])
    return [answer]
"#;

#[test]
fn one_at_a_time_in_all_processes_and_threads_of_gunicorn() {
    for kind in ["sync", "gthread"] {
        let (dir, port) = (install_dir(), free_port());
        write_file(dir.path(), "app.py", WSGI);
        let program = servers().join("venv/bin/gunicorn").to_str().unwrap().to_owned();
        let bind = format!("127.0.0.1:{port}");
        let command = [&program, "-b", &bind, "-w", "2", "-k", kind, "--threads", "4", "app:app"].map(str::to_owned);
        let options = ["--worker-conns", "1", "--cwd", dir.path().to_str().unwrap()];
        let daemon = start_with(port, "2", &options, &command);
        let clients: Vec<_> = (0..60).map(|_| ask(port, 0)).collect();
        for client in clients {
            assert_eq!(body(client), "alone", "{kind}");
        }
        let served = |slot| daemon.slot(slot, "connections").as_u64().unwrap();
        assert_eq!(served(0) + served(1), 60, "{kind}");
        assert!(served(0).min(served(1)) > 5, "{kind}: {} and {}", served(0), served(1));
    }
}

/// nginx counts over all its processes.
#[test]
fn no_more_than_the_limit_in_all_processes_of_nginx() {
    let (dir, port) = (install_dir(), free_port());
    let daemon = nginx(dir.path(), port, 2, "3");
    let ask = || {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.set_read_timeout(Some(seconds(30))).unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        let mut reader = BufReader::new(stream);
        let mut line = String::new();
        while line.trim() != "" || line.is_empty() {
            line.clear();
            assert!(reader.read_line(&mut line).unwrap() > 0);
        }
        let mut active = [0];
        reader.read_exact(&mut active).unwrap();
        // The connection stays open until this returns.
        u32::from(active[0] - b'0')
    };
    let most = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..8).map(|_| scope.spawn(|| (0..20).map(|_| ask()).max().unwrap())).collect();
        clients.into_iter().map(|client| client.join().unwrap()).max()
    });
    assert_eq!(most, Some(3));
    assert_eq!(daemon.total("connections"), 160);
}

fn nginx(dir: &std::path::Path, port: u16, processes: u32, limit: &str) -> crate::support::Daemon {
    let text = format!(
        "worker_processes {processes}; daemon off; error_log stderr; pid {0}/nginx.pid; events {{}}
http {{ access_log off; server {{ listen 127.0.0.1:{port}; location / {{ return 200 $connections_active; }} }} }}",
        dir.display()
    );
    let conf = write_file(dir, "nginx.conf", &text);
    let command = ["nginx", "-c", conf.to_str().unwrap()].map(str::to_owned);
    start_with(port, "1", &["--worker-conns", limit], &command)
}

/// One that dies is neither a worker of ours nor a child.
#[test]
fn what_a_process_of_a_server_had_open_makes_room_when_it_is_killed() {
    let (dir, port) = (install_dir(), free_port());
    let daemon = nginx(dir.path(), port, 1, "2");
    let idle: Vec<_> = (0..2).map(|_| TcpStream::connect(("127.0.0.1", port)).unwrap()).collect();
    eventually("both are open", seconds(10), || (daemon.slot(0, "open") == 2).then_some(()));
    let next = ask(port, 0);
    eventually("one waits", seconds(10), || (daemon.ls()["services"][0]["held"] == 1).then_some(()));
    let master = daemon.slot(0, "pid").as_i64().unwrap();
    let children = std::fs::read_to_string(format!("/proc/{master}/task/{master}/children")).unwrap();
    let child: i32 = children.split_whitespace().next().unwrap().parse().unwrap();
    kill(nix::unistd::Pid::from_raw(child), Signal::SIGKILL).unwrap();
    assert!(!body(next).is_empty());
    drop(idle);
}
