//! Real servers and real clients.
//! Mostly waits: tests/run runs it beside others.

use std::process::Command;

use crate::support::{Daemon, Process, eventually, free_port, get, install_dir, seconds, write_file};

#[test]
fn nginx_fifty_thousand_connections_and_none_lost() {
    let dir = install_dir();
    let nginx = Process::nginx(dir.path());
    let upstream = format!("127.0.0.1:{}", nginx.port);
    for (policy, wanted) in [("rr", 50_000), ("none", 20_000)] {
        let daemon = Daemon::start(&["-i", "2", "-p", policy, "-u", &upstream]);
        daemon.wait_online(2);
        let mut total = 0;
        while total < wanted {
            let url = format!("http://127.0.0.1:{}/", daemon.port);
            let output = Command::new("wrk").args(["-t1", "-c40", "-d2s", "-H", "Connection: close", &url]).output();
            let text = String::from_utf8_lossy(&output.unwrap().stdout).into_owned();
            let none = "Socket errors: connect 0, read 0, write 0, timeout 0";
            assert!(!text.contains("Non-2xx") && (!text.contains("Socket errors") || text.contains(none)), "{text}");
            let line = text.lines().find(|line| line.contains("requests in")).unwrap();
            total += line.split_whitespace().next().unwrap().parse::<u64>().unwrap();
        }
        eventually("open is back to 0", seconds(5), || (daemon.total("open") == 0).then_some(()));
        assert!(daemon.total("connections") >= total, "every request came by a connection of its own");
    }
}

#[test]
fn redis_benchmark_through_the_relay() {
    let (dir, port) = (install_dir(), free_port());
    let arguments = ["--port", &port.to_string(), "--save", "", "--dir", dir.path().to_str().unwrap()];
    let _redis = Process::start("redis-server", &arguments, port);
    let daemon = Daemon::start(&["-i", "2", "-u", &format!("127.0.0.1:{port}")]);
    let through = daemon.port.to_string();
    let output = Command::new("redis-benchmark")
        .args(["-p", &through, "-n", "20000", "-c", "20", "-t", "set,get,lpush", "-d", "1000", "--csv"])
        .output()
        .unwrap();
    assert!(output.status.success());
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(["SET", "GET", "LPUSH"].iter().all(|test| text.contains(test)), "{text}");
    let length = Command::new("redis-cli").args(["-p", &through, "llen", "mylist"]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&length.stdout).trim(), "20000");
}

#[test]
fn iperf3_both_directions_and_in_parallel() {
    let port = free_port();
    let _server = Process::start("iperf3", &["-s", "-B", "127.0.0.1", "-p", &port.to_string()], port);
    let daemon = Daemon::start(&["-i", "2", "-u", &format!("127.0.0.1:{port}")]);
    for more in [&["-P", "4"][..], &["-R"]] {
        let bytes = eventually("iperf3 runs", seconds(20), || {
            let output = Command::new("iperf3")
                .args(["-c", "127.0.0.1", "-p", &daemon.port.to_string(), "-n", "512M", "-J"])
                .args(more)
                .output()
                .unwrap();
            // The server is busy for a moment after a test; that is an error in the report, and not always of the program.
            let report: serde_json::Value = serde_json::from_slice(&output.stdout).ok()?;
            report["end"]["sum_received"]["bytes"].as_u64().filter(|_| output.status.success())
        });
        assert!(bytes >= 400 << 20, "{bytes}");
    }
}

const NODE: &str = "
const http = require('http');
let served = 0;
http.createServer((request, response) => {
  const chunks = [];
  request.on('data', chunk => chunks.push(chunk));
  request.on('end', () => {
    const body = Buffer.concat(chunks);
    response.setHeader('X-Slot', process.env.ROUNDSMAN_SLOT);
    response.end(JSON.stringify({ slot: process.env.ROUNDSMAN_SLOT, bytes: body.length, served: ++served }));
  });
}).listen(process.env.PORT, process.env.HOST);
";

#[test]
fn a_node_server_in_every_slot() {
    let dir = install_dir();
    let script = write_file(dir.path(), "app.js", NODE);
    let daemon = Daemon::start(&["-i", "2", "--", "node", script.to_str().unwrap()]);
    daemon.wait_online(2);
    assert_eq!(daemon.ls()["services"][0]["name"], "app");
    let slots: Vec<_> = (0..10).map(|_| get(daemon.port).unwrap()).collect();
    for pair in slots.windows(2) {
        assert_ne!(pair[0].split(',').next(), pair[1].split(',').next(), "{slots:?}");
    }
    let file = dir.path().join("body");
    std::fs::write(&file, vec![b'x'; 20 << 20]).unwrap();
    let url = format!("http://127.0.0.1:{}/", daemon.port);
    let posted = Command::new("curl")
        .args(["-sS", "--data-binary", &format!("@{}", file.display()), "-H", "Expect:", &url])
        .output()
        .unwrap();
    let answer: serde_json::Value = serde_json::from_slice(&posted.stdout).unwrap();
    assert_eq!(answer["bytes"], 20 << 20);
}

#[test]
fn python_in_every_slot() {
    let dir = install_dir();
    std::fs::write(dir.path().join("index.html"), "from python").unwrap();
    let directory = dir.path().to_str().unwrap();
    let arguments =
        ["-i", "2", "--", "python3", "-m", "http.server", "{port}", "--bind", "{host}", "--directory", directory];
    let daemon = Daemon::start(&arguments);
    daemon.wait_online(2);
    for _ in 0..20 {
        assert_eq!(get(daemon.port).unwrap(), "from python");
    }
}

#[test]
fn nginx_in_every_slot() {
    let dir = install_dir();
    let conf = format!(
        "daemon off; worker_processes 2; error_log stderr; events {{ worker_connections 100; }} pid {0}/SLOT.pid; \
         http {{ access_log off; client_body_temp_path {0}/b; proxy_temp_path {0}/p; \
         fastcgi_temp_path {0}/f; uwsgi_temp_path {0}/u; scgi_temp_path {0}/s; \
         server {{ listen HOST:PORT; location / {{ return 200 'slot SLOT'; }} }} }}",
        dir.path().display()
    );
    write_file(dir.path(), "template", &conf);
    let script = format!(
        "cd {}; sed \"s/HOST/$HOST/g; s/PORT/$PORT/g; s/SLOT/$ROUNDSMAN_SLOT/g\" template > $ROUNDSMAN_SLOT.conf; \
         exec nginx -c $PWD/$ROUNDSMAN_SLOT.conf",
        dir.path().display()
    );
    let mut daemon = Daemon::start(&["-i", "2", "--", "sh", "-c", &script]);
    daemon.wait_online(2);
    let mut answers: Vec<_> = (0..4).map(|_| get(daemon.port).unwrap()).collect();
    answers.sort();
    assert_eq!(answers, ["slot 0", "slot 0", "slot 1", "slot 1"]);
    assert_eq!(daemon.stop().code(), 0);
}
