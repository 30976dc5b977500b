//! What people type, and what they are told.
//! Mostly waits: tests/run runs it beside others.

use std::net::TcpListener;

use crate::support::{
    Daemon, Killed, eventually, free_port, get, install_dir, roundsman, seconds, slot_of, unprivileged_copy, write_file,
};

/// Runs to the end: (exit code, stderr).
fn run(arguments: &[&str]) -> (i32, String) {
    let output = roundsman().args(arguments).output().unwrap();
    (output.status.code().unwrap(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[track_caller]
fn fails(arguments: &[&str], code: i32, words: &[&str]) {
    let (got, stderr) = run(arguments);
    assert_eq!(got, code, "{arguments:?}: {stderr}");
    for word in words {
        assert!(stderr.contains(word), "{arguments:?} does not say {word:?}: {stderr}");
    }
}

#[test]
fn bad_usage_is_named_and_ends_with_2() {
    fails(&[], 2, &["Usage:"]);
    fails(&["--no-such-flag"], 2, &["--no-such-flag"]);
    fails(&["--polcy", "rr", "-l", "1", "-u", "a:1"], 2, &["--policy"]);
    fails(&["-p", "fastest", "-l", "1", "-u", "a:1"], 2, &["rr, least-conn, ip-hash, hash, none"]);
    fails(&["-p", "leastconn", "-l", "1", "-u", "a:1"], 2, &["did you mean least-conn"]);
    fails(&["-p", "3000", "--", "true"], 2, &["did you mean -l 3000"]);
    fails(&["-i", "0x", "-l", "1", "-u", "a:1"], 2, &["0x", "1 to 1024"]);
    fails(&["-i", "5000", "-l", "1", "-u", "a:1"], 2, &["5000", "1 to 1024"]);
    fails(&["-l", "example.org:80", "-u", "a:1"], 2, &["not an IP address"]);
    fails(&["-l", "99999", "-u", "a:1"], 2, &["65535"]);
    fails(&["-l", "1", "-u", "3000"], 2, &["127.0.0.1:3000"]);
    fails(&["-l", "1", "-u", "http://a:80/"], 2, &["a:80"]);
    fails(&["-l", "1"], 2, &["give a command", "--upstream HOST:PORT"]);
    fails(&["-u", "a:1"], 2, &["--listen is required for relay delivery", "--listen 8080"]);
    fails(&["--via", "relay", "--", "true"], 2, &["--listen is required for relay delivery"]);
    fails(&["-l", "80=3000", "--via", "relay", "--", "true"], 2, &["--listen 80=3000 needs direct delivery", "PORT"]);
    let both = ["-l", "127.0.0.1:7080", "-l", "[::1]:7080", "--via", "direct", "--", "python3"];
    fails(&both, 2, &["several addresses stand for port 7080", "--via relay"]);
    fails(&["-l", "80=x", "--", "true"], 2, &["'x' is not a port", "80=3000"]);
    fails(&["--user", "no-such-user", "--", "true"], 2, &["--user no-such-user: no such user"]);
    fails(&["-l", "1", "-l", "1", "-u", "a:1"], 2, &["twice"]);
    fails(&["-l", "1", "-u", "a:1", "--idle-timeout", "30"], 2, &["30ms or 30s"]);
    fails(&["-l", "1", "-u", "a:1", "--backoff", "1s"], 2, &["100ms..15s"]);
    fails(&["-l", "1", "-u", "a:1", "--stop-signal", "STOPIT"], 2, &["not a signal"]);
    fails(&["-l", "1", "-u", "a:1", "--name", "a/b"], 2, &["invalid name \"a/b\""]);
    fails(&["-l", "1", "-u", "a:1", "--log-level", "loud"], 2, &["error, warn, info, debug"]);
    fails(&["node", "app.js"], 2, &["roundsman -- node app.js"]);
    fails(&["start", "app.js"], 2, &["'app.js' is not the name of a running service", "roundsman -- node app.js"]);
}

#[test]
fn a_command_that_cannot_run_ends_as_in_the_shell() {
    let dir = install_dir();
    let script = write_file(dir.path(), "app.js", "");
    let script = script.to_str().unwrap();
    fails(&["-l", "1", "--", "no-such-program"], 127, &["command not found: no-such-program"]);
    fails(&["-l", "1", "--", "no--such"], 127, &["command not found: no--such"]);
    fails(&["-l", "1", "--", "/no/such/program"], 127, &["command not found"]);
    fails(&["-l", "1", "--", script], 126, &["did you mean -- node"]);
    fails(&["-l", "1", "--", "/etc/passwd"], 126, &["permission denied", "chmod +x"]);
    fails(&["-l", "1", "--", "/etc"], 126, &["directory"]);
    fails(&["-l", "1", "--", ""], 2, &["empty"]);
}

#[test]
fn an_address_in_use_is_named_with_who_has_it() {
    let holder = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = holder.local_addr().unwrap().port();
    let address = format!("127.0.0.1:{port}");
    fails(&["-l", &address, "-u", "127.0.0.1:1"], 71, &[&address, "in use", &format!("pid {}", std::process::id())]);
}

#[test]
fn a_privileged_port_is_explained() {
    let dir = install_dir();
    let copy = unprivileged_copy(dir.path());
    let output = std::process::Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups", copy.to_str().unwrap()])
        .args(["-l", "127.0.0.1:99", "-u", "127.0.0.1:1"])
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(71), "{stderr}");
    assert!(stderr.contains("CAP_NET_BIND_SERVICE"), "{stderr}");
}

#[test]
fn a_file_that_is_no_program_ends_with_126_after_its_starts() {
    use std::os::unix::fs::PermissionsExt;
    let dir = install_dir();
    let broken = write_file(dir.path(), "broken", "#!/no/such/interpreter\n");
    std::fs::set_permissions(&broken, std::fs::Permissions::from_mode(0o755)).unwrap();
    let port = free_port().to_string();
    fails(&["-l", &port, "-i", "1", "--backoff", "1ms..2ms", "--", broken.to_str().unwrap()], 126, &["cannot execute"]);
}

#[test]
fn flags_come_before_the_environment_and_that_before_the_defaults() {
    let port = free_port();
    let mut command = roundsman();
    command.env("ROUNDSMAN_INSTANCES", "3").env("ROUNDSMAN_POLICY", "least-conn");
    command.env("ROUNDSMAN_LISTEN", format!("127.0.0.1:{port}"));
    let daemon = Daemon::launch(command, &["-p", "rr", "-u", "127.0.0.1:1"], port);
    daemon.wait_online(3);
    assert_eq!(daemon.ls()["services"][0]["policy"], "rr");
}

#[test]
fn a_server_gets_its_place_in_environment_and_arguments_and_nothing_of_ours() {
    let dir = install_dir();
    let out = dir.path().join("out");
    let script = format!(
        "(env; echo ARGS \"$@\"; ulimit -n; cat /proc/self/stat; readlink /proc/self/fd/0) > {}; exec {} demo-server",
        out.display(),
        env!("CARGO_BIN_EXE_roundsman")
    );
    let port = free_port();
    let listen = format!("127.0.0.1:{port}");
    let mut command = std::process::Command::new("sh");
    let line = format!("ulimit -Sn 1234; exec {} \"$@\"", env!("CARGO_BIN_EXE_roundsman"));
    command.args(["-c", &line, "sh"]).env("ROUNDSMAN_POLICY", "rr").env("NODE_CHANNEL_FD", "3");
    let arguments = [
        "-l", &listen, "-i", "1", "--via", "relay", "--name", "svc", "--", "sh", "-c", &script, "x", "{port}",
        "{host}", "{slot}", "{{port}}",
    ];
    let daemon = Daemon::launch(command, &arguments, port);
    daemon.wait_online(1);
    let text = std::fs::read_to_string(&out).unwrap();
    let value =
        |name: &str| text.lines().find_map(|line| line.strip_prefix(&format!("{name}="))).unwrap_or("").to_owned();
    let private: u16 = value("PORT").parse().unwrap();
    assert_eq!(value("HOST"), "127.0.0.1");
    assert_eq!((value("ROUNDSMAN_SERVICE"), value("ROUNDSMAN_SLOT")), ("svc".into(), "0".into()));
    assert_eq!(value("NODE_APP_INSTANCE"), "0");
    for foreign in ["NODE_CHANNEL_FD", "ROUNDSMAN_POLICY", "ROUNDSMAN_CONTROL"] {
        assert!(!text.contains(foreign), "{foreign} in {text}");
    }
    assert!(text.contains(&format!("ARGS {private} 127.0.0.1 0 {{port}}\n")), "{text}");
    assert!(text.contains("\n1234\n"), "the soft file limit is the one the daemon was started with: {text}");
    assert!(text.contains("/dev/null"), "{text}");
    let stat: Vec<_> = text.lines().find(|line| line.contains("(cat)")).unwrap().split(' ').collect();
    assert_eq!(stat[5], daemon.slot(0, "server_pid").to_string(), "a session of its own");
    // The daemon itself raised its limit.
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", daemon.pid())).unwrap();
    let files: Vec<_> =
        limits.lines().find(|line| line.starts_with("Max open files")).unwrap().split_whitespace().collect();
    assert_eq!(files[3], files[4], "{limits}");
}

#[test]
fn the_demo_works_as_the_readme_says() {
    let port = free_port();
    let address = format!("127.0.0.1:{port}");
    let mut command = roundsman();
    let dir = install_dir();
    command.env("XDG_RUNTIME_DIR", dir.path());
    let mut daemon = Daemon::launch(command, &["demo", "-l", &address], port);
    daemon.wait_for_count("worker online", 4);
    let slots: Vec<_> = (0..8).map(|_| slot_of(&get(port).unwrap())).collect();
    assert_eq!(slots[..4], slots[4..]);
    assert_eq!(daemon.stop().code(), 0);
}

#[test]
fn the_demo_prints_what_to_try_and_ctrl_c_ends_it() {
    use std::io::{BufRead, BufReader};
    let address = format!("127.0.0.1:{}", free_port());
    let dir = install_dir();
    let mut command = roundsman();
    command.args(["demo", "-l", &address]).env("XDG_RUNTIME_DIR", dir.path());
    command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::null());
    let mut child = Killed::spawn(&mut command);
    let mut lines = BufReader::new(child.0.stdout.take().unwrap()).lines().map_while(Result::ok);
    assert!(lines.any(|line| line.contains(&format!("curl http://{address}/"))));
    assert!(lines.any(|line| line.contains("Ctrl-C")));
    let port = address.rsplit(':').next().unwrap().parse().unwrap();
    eventually("it answers", seconds(10), || get(port).ok());
    let pid = nix::unistd::Pid::from_raw(child.0.id() as i32);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).unwrap();
    let status = eventually("it ends", seconds(10), || child.0.try_wait().unwrap());
    assert_eq!(status.code(), Some(0));
}

#[test]
fn the_start_line_says_how_many_and_why() {
    let daemon = Daemon::start(&["-u", "127.0.0.1:1"]);
    let cpus = std::thread::available_parallelism().unwrap().get();
    daemon.wait_for(&format!("instances={cpus}"));
    daemon.wait_for("CPU");
}

#[test]
fn the_short_help_fits_a_screen_and_the_long_one_tells_all() {
    let help =
        |flag: &str| String::from_utf8(roundsman().arg(flag).env("COLUMNS", "80").output().unwrap().stdout).unwrap();
    let (short, long) = (help("-h"), help("--help"));
    assert!(short.lines().count() <= 48, "{short}");
    assert!(short.lines().all(|line| line.chars().count() <= 80), "{short}");
    assert!(!short.contains("--stall-timeout") && !short.contains("env:"), "{short}");
    for words in ["--stall-timeout", "ROUNDSMAN_STALL_TIMEOUT", "--backoff", "[default: 8s]"] {
        assert!(long.contains(words), "{words}");
    }
}
