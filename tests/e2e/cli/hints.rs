//! Where people slip, they are told what they meant.
//! Mostly waits: tests/run runs it beside others.

use crate::support::{Daemon, c_server, free_port, install_dir, roundsman, seconds, static_server, unsaid, write_file};

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
    daemon.wait_for(&format!("server listens on :{own} by itself: {} is linked statically", static_server()));
    daemon.wait_for("use --via relay (it then has to listen on its PORT)");
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

#[test]
fn what_a_server_leaves_in_the_background_is_named_only_where_it_is_the_server() {
    let start = |command: &[&str]| {
        // However long it takes until a server ends, that is a crash.
        let limits = ["-i", "1", "--via", "direct", "--max-restarts", "1", "--backoff", "10ms..20ms"];
        Daemon::launch(roundsman(), &[&limits[..], &["--min-uptime", "1h", "--"], command].concat(), 0)
    };
    // Another session, and the launcher has ended before anything listened: it may be the server.
    let mut daemon = start(&["sh", "-c", "setsid sleep 1000 & sleep 0.3"]);
    let end = daemon.finish(seconds(20));
    assert!(end.log.contains("it ended and left sleep in the background; if that is the server"), "{}", end.log);
    // The same session: killed with the server, whose end is an end.
    let mut daemon = start(&["sh", "-c", "sleep 1000 & sleep 0.3"]);
    let end = daemon.finish(seconds(20));
    unsaid(&end.log, &["background"]);
    assert_eq!(end.log.matches("server started").count(), 2, "{}", end.log);
    // A server that was online, and its helper.
    let port = free_port();
    let script = format!(
        "import socket, subprocess, time; s = socket.socket(); s.bind(('127.0.0.1', {port})); s.listen(); \
         subprocess.Popen(['sleep', '1000'], start_new_session=True); time.sleep(0.5)"
    );
    let mut daemon = start(&["python3", "-c", &script]);
    let end = daemon.finish(seconds(20));
    unsaid(&end.log, &["background"]);
    assert_eq!(end.log.matches("server started").count(), 2, "{}", end.log);
}

#[test]
#[ignore = "needs Go; run with --all"]
fn a_go_program_behind_a_shell_is_named_with_how_to_relay_it() {
    let (dir, port) = (install_dir(), free_port());
    let source = "package main
import (\"net/http\"; \"os\")
func main() { http.ListenAndServe(\"127.0.0.1:\" + os.Args[1], nil) }
";
    write_file(dir.path(), "main.go", source);
    let server = dir.path().join("server");
    let mut go = std::process::Command::new("go");
    go.args(["build", "-o", "server", "main.go"]).current_dir(dir.path());
    go.env("CGO_ENABLED", "0").env("GOCACHE", dir.path().join("cache")).env("GOFLAGS", "-mod=mod");
    assert!(go.status().unwrap().success());
    let line = format!("exec {} {port}", server.display());
    let daemon = Daemon::launch(roundsman(), &["-i", "1", "--", "sh", "-c", &line], 0);
    daemon.wait_for(&format!(
        "server listens on :{port} by itself: {} is a Go program, which cannot be preloaded; use --via relay -l {port}",
        server.display()
    ));
    drop(daemon);
    // What it says helps.
    let line = format!("exec {} $PORT", server.display());
    let listen = format!("127.0.0.1:{port}");
    let daemon =
        Daemon::launch(roundsman(), &["-i", "2", "--via", "relay", "-l", &listen, "--", "sh", "-c", &line], port);
    daemon.wait_online(2);
    assert!(crate::support::get(port).unwrap().contains("404"));
}

#[test]
#[ignore = "needs Dovecot and root; run with --all"]
fn dovecot_is_named_with_the_setting_that_it_needs() {
    let (dir, port) = (install_dir(), free_port());
    std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let path = dir.path().to_str().unwrap();
    let config = |setting: &str| {
        format!(
            "base_dir = {path}/run\nstate_dir = {path}/state\nlog_path = /dev/stderr\nprotocols = imap\nssl = no\n\
             mail_location = maildir:{path}/mail\npassdb {{\n driver = static\n args = password=x\n}}\n\
             service imap-login {{\n inet_listener imap {{\n address = 127.0.0.1\n port = {port}\n }}\n \
             inet_listener imaps {{\n port = 0\n }}\n}}\n{setting}\n"
        )
    };
    let start = |setting: &str| {
        let file = write_file(dir.path(), "dovecot.conf", &config(setting));
        let (file, listen) = (file.to_str().unwrap().to_owned(), format!("127.0.0.1:{port}"));
        Daemon::launch(roundsman(), &["-i", "1", "-l", &listen, "--", "dovecot", "-F", "-c", &file], port)
    };
    let setting = "import_environment = $import_environment LD_PRELOAD ROUNDSMAN_ATTACH";
    let mut daemon = start("");
    daemon.wait_for(&format!("server listens on :{port} by itself: Dovecot clears the environment"));
    daemon.wait_for(setting);
    daemon.stop();
    let mut daemon = start(setting);
    daemon.wait_online(1);
    let mut client = std::io::BufReader::new(std::net::TcpStream::connect(("127.0.0.1", port)).unwrap());
    let mut greeting = String::new();
    std::io::BufRead::read_line(&mut client, &mut greeting).unwrap();
    assert!(greeting.starts_with("* OK"), "{greeting}");
    daemon.stop();
}
