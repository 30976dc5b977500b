//! Where people slip, they are told what they meant.

use crate::support::{Daemon, c_server, free_port, install_dir, roundsman, static_server, write_file};

#[test]
fn a_package_manager_as_the_command_is_named_with_what_it_runs() {
    let dir = install_dir();
    write_file(dir.path(), "package.json", r#"{"scripts": {"start": "node app.js --fast", "both": "a && b"}}"#);
    write_file(dir.path(), "app.js", "require('http').createServer((_, r) => r.end('ok')).listen(process.env.PORT)");
    for (words, hint) in [
        (&["npm", "start"][..], "run the server itself: roundsman -- node app.js --fast"),
        (&["npm", "run", "both"], "npm runs itself and a shell beside every worker"),
        (&["npx", "app"], "roundsman -- ./node_modules/.bin/app"),
    ] {
        let mut command = roundsman();
        command.current_dir(dir.path());
        let listen = format!("127.0.0.1:{}", free_port());
        let all = [&["-l", &listen, "-i", "1", "--"][..], words].concat();
        let daemon = Daemon::launch(command, &all, 0);
        daemon.wait_for(hint);
    }
}

#[test]
fn a_server_that_listens_elsewhere_is_named_with_where() {
    let (port, own) = (free_port(), free_port());
    let (listen, own_text) = (format!("127.0.0.1:{port}"), own.to_string());
    // By relay: it was given a port and took another.
    let daemon = Daemon::launch(
        roundsman(),
        &["-l", &listen, "-i", "1", "--via", "relay", "--", c_server(), "level", &own_text],
        0,
    );
    daemon.wait_for(&format!("server listens on :{own}, and was given PORT="));
    daemon.wait_for("let it read PORT, or put {port} into the command");
    drop(daemon);
    // Direct, where a script starts what cannot be preloaded.
    let line = format!("{} level {own}; exit 1", static_server());
    let mut daemon = Daemon::launch(roundsman(), &["-l", &listen, "-i", "1", "--", "sh", "-c", &line], 0);
    daemon.wait_for(&format!("server listens on :{own} by itself"));
    daemon.wait_for("use --via relay");
    // The server below the shell goes with it only when it is stopped in order.
    daemon.stop();
    // Direct, on a port that no -l serves.
    let daemon = Daemon::launch(roundsman(), &["-l", &listen, "-i", "1", "--", c_server(), "level", &own_text], 0);
    daemon.wait_for(&format!("listens on :{own}, which no -l serves"));
    daemon.wait_for(&format!("-l {port}={own}"));
}

#[test]
fn a_server_that_listens_nowhere_is_named() {
    let daemon = Daemon::launch(
        roundsman(),
        &["-i", "1", "--listen-timeout", "1s", "--", "python3", "-c", "input() if 0 else __import__('time').sleep(60)"],
        0,
    );
    daemon.wait_for("server does not listen after 1 s; if it serves no port, use --no-listen");
}
