//! `check` says how a command would be delivered to; a start of the same command shows whether that is true.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::support::table::{NODE, PYTHON, nginx_conf};
use crate::support::{
    Daemon, eventually, free_port, install_dir, roundsman, seconds, servers, static_server, write_file,
};

/// The files that the commands below name.
fn prepare(dir: &Path, port: u16) {
    write_file(dir, "a.js", NODE);
    write_file(dir, "a.py", PYTHON);
    write_file(
        dir,
        "a.rb",
        "require 'socket'\ns = TCPServer.new('127.0.0.1', ARGV[0].to_i)\nloop { s.accept.close }\n",
    );
    write_file(dir, "app.py", "def app(e, s):\n  s('200 OK', []); return [b'x']\nasync def later(s, r, w): pass\n");
    write_file(dir, "package.json", r#"{"scripts":{"start":"node a.js"}}"#);
    write_file(dir, "a.php", "x");
    nginx_conf(dir, port, "");
    for (name, text) in [("plain", "exec node a.js \"$1\"\n"), ("noexec.js", "")] {
        let path = write_file(dir, name, text);
        let mode = if name == "plain" { 0o755 } else { 0o644 };
        std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
    }
}

fn check(dir: &Path, port: u16, words: &[String]) -> (i32, String) {
    let mut command = roundsman();
    let output = command.args(["check", "-l", &port.to_string(), "--"]).args(words).current_dir(dir).output().unwrap();
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    (output.status.code().unwrap(), text)
}

/// What it says of a command, and what the start of that command then shows. `said`: more of the answer.
fn is_true(line: &str, delivery: &str, said: &str) {
    let (dir, port) = (install_dir(), free_port());
    std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
    prepare(dir.path(), port);
    // `_` stands for a space within a word.
    let fill = |word: &str| {
        let word = word.replace('_', " ").replace("{venv}", servers().join("venv/bin").to_str().unwrap());
        word.replace("{static}", static_server()).replace("{dir}", dir.path().to_str().unwrap())
    };
    let words: Vec<String> = line.split(' ').map(fill).collect();
    let (code, text) = check(dir.path(), port, &words);
    assert_eq!(code, 0, "{line}: {text}");
    let answer = text.lines().find(|line| line.starts_with("via = ")).unwrap().to_owned();
    assert!(answer.contains(&format!("; {delivery} here: ")) && answer.contains(said), "{line}: {answer}");
    let mut command = roundsman();
    command.current_dir(dir.path());
    let all = [&["-i", "1", "-l", &port.to_string(), "--"].map(str::to_owned)[..], &words].concat();
    let all: Vec<&str> = all.iter().map(String::as_str).collect();
    let daemon = Daemon::launch(command, &all, port);
    assert_eq!(daemon.ls()["services"][0]["via"], delivery, "{line}");
    eventually(&format!("{line}: online"), seconds(60), || (daemon.slot(0, "state") == "online").then_some(()));
    drop(std::net::TcpStream::connect(("127.0.0.1", port)).unwrap());
    eventually(&format!("{line}: a connection"), seconds(10), || {
        (daemon.slot(0, "connections").as_u64() > Some(0)).then_some(())
    });
}

#[test]
fn what_check_says_of_a_command_is_what_its_start_shows() {
    for (line, delivery, said) in [
        ("node a.js {port}", "direct", "the library is "),
        ("sh -c node_a.js_{port};_true", "direct", "what the shell starts shows only when it runs"),
        ("env A=1 gosu nobody /usr/bin/python3 a.py {port}", "direct", "the library is a file in "),
        ("{static} threads {port}", "relay", "linked statically"),
        ("./plain {port}", "relay", "no program that can be preloaded"),
        ("env -i /usr/bin/python3 a.py {port}", "relay", "env clears the environment"),
    ] {
        is_true(line, delivery, said);
    }
}

#[test]
fn what_cannot_start_is_refused_and_what_may_fail_is_named() {
    let (dir, port) = (install_dir(), free_port());
    prepare(dir.path(), port);
    for (line, code, said) in [
        ("./missing", 127, "command not found: ./missing"),
        ("/tmp", 126, "it is a directory"),
        ("./noexec.js", 126, "did you mean -- node ./noexec.js"),
        ("gosu nobody ./missing", 0, "; ./missing, which gosu is to start, is not found from here"),
        ("setpriv --reuid=no-such-user node a.js", 0, "; setpriv, tried with it, has failed: setpriv: "),
        ("chroot /srv /bin/x", 0, "what chroot starts shows only when it runs"),
    ] {
        let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
        let (found, text) = check(dir.path(), port, &words);
        assert!(found == code && text.contains(said), "{line}: {found} {text}");
        if code != 0 {
            let output =
                roundsman().args(["-l", &port.to_string(), "--"]).args(&words).current_dir(dir.path()).output();
            assert_eq!(output.unwrap().status.code(), Some(code), "{line}");
        }
    }
}

#[test]
#[ignore = "long: tests/run --all"]
fn what_check_says_of_many_kinds_of_commands_is_true() {
    for (line, delivery, said) in [
        ("python3 -m http.server {port}", "direct", "the library is "),
        ("{venv}/gunicorn -b 127.0.0.1:{port} app:app", "direct", "the library is "),
        ("{venv}/uvicorn --port {port} --lifespan off app:later", "direct", "the library is "),
        ("ruby a.rb {port}", "direct", "the library is "),
        ("php -S 127.0.0.1:{port}", "direct", "the library is "),
        ("nginx -e stderr -c {dir}/{port}.conf", "direct", "the library is "),
        ("redis-server --port {port}", "direct", "the library is "),
        ("setpriv --reuid=65534 --clear-groups /usr/bin/python3 a.py {port}", "direct", "the library is a file in "),
        ("su nobody -s /bin/sh -c /usr/bin/python3_a.py_{port}", "direct", "the library is a file in "),
        ("timeout 600 node a.js {port}", "direct", "the library is "),
        ("nice -n 5 node a.js {port}", "direct", "the library is "),
        ("unshare -m node a.js {port}", "direct", "what unshare starts shows only when it runs"),
        ("npm start", "direct", "what npm starts shows only when it runs"),
        ("caddy respond --listen 127.0.0.1:{port}", "relay", "is a Go program"),
        ("gosu nobody caddy respond --listen 127.0.0.1:{port}", "relay", "is a Go program"),
        ("env A=1 {static} threads {port}", "relay", "linked statically"),
    ] {
        is_true(line, delivery, said);
    }
}
