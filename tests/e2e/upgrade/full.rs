//! Mostly waits: tests/run runs it beside others.
//!
//! Upgrades when nothing can be written: a full disk, and a limit of file sizes.

use std::io::Write;
use std::path::Path;
use std::process::Command;

use super::{SERVER, descriptors, tell, upgrade, upgraded};
use crate::support::{Daemon, eventually, free_port, get, install_dir, seconds, write_file};

/// A daemon with its log, its servers' output and its temporary files in `full`, a file system of 64 KiB of its own.
fn start(dir: &Path, via: &str) -> Daemon {
    write_file(dir, "server.py", SERVER);
    std::fs::create_dir(dir.join("full")).unwrap();
    let (port, mut command) = (free_port(), Command::new("unshare"));
    let line = format!(
        "mount -t tmpfs -o size=64k none full; export TMPDIR=$PWD/full; exec {} \"$@\" 2>> full/log",
        env!("CARGO_BIN_EXE_roundsman")
    );
    command.current_dir(dir).args(["-m", "--propagation", "private", "sh", "-c", &line, "sh"]);
    let listen = format!("127.0.0.1:{port}");
    let output = ["--min-uptime", "100ms", "--out", "full/out.log", "--", "python3", "server.py"];
    let all = [&["-n", "web", "-l", &listen, "-i", "2", "--via", via][..], &output].concat();
    let daemon = Daemon::launch(command, &all, port);
    daemon.wait_online(2);
    daemon
}

#[test]
fn a_full_disk_is_no_reason_not_to() {
    for via in ["direct", "relay"] {
        let dir = install_dir();
        let daemon = start(dir.path(), via);
        let full = Path::new("/proc").join(daemon.pid().to_string()).join("root");
        let fill = full.join(dir.path().join("full/fill").strip_prefix("/").unwrap());
        let mut file = std::fs::File::create(&fill).unwrap();
        while file.write_all(&[0; 4096]).is_ok() {}
        let mut log = std::fs::File::options().append(true).open(fill.with_file_name("log")).unwrap();
        while log.write_all(b"x").is_ok() {}
        let workers = daemon.workers();
        (0..2).for_each(|_| upgraded(&daemon));
        get(daemon.port).unwrap();
        assert_eq!(daemon.workers(), workers, "{via}");
        let (code, text) = tell(&daemon, &["reload"]);
        assert_eq!(code, 0, "{via}: {text}");
        upgraded(&daemon);
        get(daemon.port).unwrap();
    }
}

#[test]
fn a_limit_of_file_sizes_is_said_and_ends_nothing() {
    for via in ["direct", "relay"] {
        let dir = install_dir();
        let daemon = start(dir.path(), via);
        let limit = |limit: &str| {
            let (pid, limit) = (daemon.pid().to_string(), format!("--fsize={limit}:"));
            assert!(Command::new("prlimit").args(["--pid", &pid, &limit]).status().unwrap().success());
        };
        let (workers, before) = (daemon.workers(), descriptors(&daemon));
        // Nor can the record of an upgrade be written then.
        limit("0");
        let (code, text) = upgrade(&daemon, None);
        assert!(code == 1 && text.to_lowercase().contains("file too large"), "{via}: {code} {text}");
        get(daemon.port).unwrap();
        // A record that is cut off.
        limit("1000");
        let (code, text) = upgrade(&daemon, None);
        assert!(code == 1 && text.to_lowercase().contains("file too large"), "{via}: {code} {text}");
        limit("unlimited");
        eventually("no more descriptors than before", seconds(20), || (descriptors(&daemon) <= before).then_some(()));
        upgraded(&daemon);
        get(daemon.port).unwrap();
        assert_eq!(daemon.workers(), workers, "{via}");
    }
}
