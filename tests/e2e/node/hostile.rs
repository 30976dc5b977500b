//! Hostile or clumsy workers in Node: the master is well, and so are the others.
//! Mostly waits: tests/run runs it beside others.

use crate::support::{App, eventually, get, seconds};

/// What no program of Node does; the rest of the script says what.
fn hostile(what: &str) -> App {
    let source = format!(
        "
const fs = require('fs'), net = require('net');
require('http').createServer((request, response) => response.end('ok')).listen(process.env.PORT_OF_APP, () => {{
  if (process.env.ROUNDSMAN_SLOT === '0') setTimeout(() => {{ {what} }}, 300);
}});"
    );
    App::start("node", "app.js", &source, &["--backoff", "10s..20s"]).online(2)
}

/// The master is well, and so is the other worker.
fn unharmed(app: &App) {
    for _ in 0..20 {
        assert_eq!(get(app.port).unwrap(), "ok");
    }
    let rss = roundsman::sys::process::rss_bytes(app.daemon.pid());
    assert!(rss < 80 << 20, "{rss}");
}

#[test]
fn garbage_kills_the_worker_and_nobody_else() {
    for garbage in [
        "'garbage\\n'",
        "Buffer.from([0xff, 0xfe, 10])",
        "'{\"cmd\":\"NODE_CLUSTER\",\"seq\":\"x\"}\\n'",
        "'x'.repeat(17 << 20)",
    ] {
        // The channel's descriptor, behind Node's back.
        let app = hostile(&format!(
            "let data = Buffer.from({garbage}), at = 0; while (at < data.length) try {{ at += fs.writeSync(3, data, at) }} catch (e) {{ if (e.code !== 'EAGAIN') throw e }}"
        ));
        app.daemon.wait_for("killed: nonsense on its IPC channel");
        // What it had received goes with it.
        app.daemon.wait_for("server exited");
        unharmed(&app);
    }
}

#[test]
fn large_half_and_many_messages_are_taken_and_bounded() {
    // Half a message, and its end later.
    let app = hostile("fs.writeSync(3, '{\"half'); setTimeout(() => fs.writeSync(3, '\":1}\\n'), 200)");
    eventually("the whole message", seconds(5), || app.ask(&["messages"]).1.contains("{\"half\":1}").then_some(()));
    unharmed(&app);
    // Large ones, to everybody.
    let app = hostile(
        "for (let n = 0; n < 100; n++) process.send({ type: 'broadcast', data: 'x'.repeat(300000) }); process.send('all sent')",
    );
    eventually("all are read", seconds(20), || app.ask(&["messages", "-n", "1"]).1.contains("all sent").then_some(()));
    unharmed(&app);
    drop(app);
    // Many, for as long as it lives.
    let app = hostile(
        "let n = 0; (function more() { for (let k = 0; k < 2000; k++) process.send({ n: n++ }); setImmediate(more) })()",
    );
    let number = || {
        let text = app.ask(&["messages", "-n", "1"]).1;
        text.rsplit(':').next().and_then(|end| end.trim_end_matches(['}', '\n']).parse::<u64>().ok()).unwrap_or(0)
    };
    eventually("many messages", seconds(20), || (number() > 100_000).then_some(()));
    unharmed(&app);
    app.ask(&["health"]);
}

#[test]
fn sockets_sent_to_us_are_acknowledged_and_closed() {
    // Node sends the next only when the one before is acknowledged.
    let app = hostile(
        "const server = net.createServer().listen(0, () => {
           let n = 0;
           (function more() {
             const c = net.connect(server.address().port, () => process.send({ n }, c, {}, () => { if (++n < 50) more(); else process.send('all sent') }));
           })();
         });",
    );
    eventually("all are sent", seconds(15), || app.ask(&["messages", "-n", "1"]).1.contains("all sent").then_some(()));
    let fds = std::fs::read_dir(format!("/proc/{}/fd", app.daemon.pid())).unwrap().count();
    assert!(fds < 100, "{fds}");
    unharmed(&app);
}

#[test]
fn a_worker_that_never_reads_loses_messages_and_keeps_its_place() {
    let app = hostile(
        "process.channel && process.channel.readStop ? process.channel.readStop() : 0; process.kill(process.pid, 'SIGSTOP')",
    );
    let text = format!("\"{}\"", "x".repeat(60_000));
    eventually("it is stopped", seconds(5), || {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", app.daemon.workers()[0])).ok()?;
        stat.contains(") T ").then_some(())
    });
    for _ in 0..150 {
        assert_eq!(app.ask(&["send", "app", &text]).0, 0);
    }
    app.daemon.wait_for("worker does not read its messages");
    for _ in 0..10 {
        assert_eq!(get(app.port).unwrap(), "ok");
    }
    let rss = roundsman::sys::process::rss_bytes(app.daemon.pid());
    assert!(rss < 80 << 20, "{rss}");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(app.daemon.workers()[0]), nix::sys::signal::Signal::SIGCONT)
        .unwrap();
}
