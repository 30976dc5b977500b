//! Under systemd: what it is told, and the unit in config/.

use std::os::unix::net::UnixDatagram;
use std::process::Command;

use crate::support::{Daemon, free_port, install_dir, roundsman, seconds, write_file};

#[test]
fn systemd_hears_of_the_start_a_reload_the_stop_and_that_we_are_alive() {
    let dir = install_dir();
    let path = dir.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(seconds(20))).unwrap();
    let mut command = roundsman();
    command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "400000").env_remove("WATCHDOG_PID");
    let listen = format!("127.0.0.1:{}", free_port());
    // The second worker takes its time.
    let go = dir.path().join("go");
    let wait = format!("[ $ROUNDSMAN_SLOT = 0 ] || until [ -e {} ]; do sleep 0.02; done", go.display());
    let script = format!("{wait}; exec {} demo-server", env!("CARGO_BIN_EXE_roundsman"));
    let server = ["sh", "-c", &script];
    let all =
        [&["-l", &listen, "-i", "2", "--name", "shop", "--min-uptime", "100ms", "--via", "relay", "--"][..], &server]
            .concat();
    let mut daemon = Daemon::launch(command, &all, 0);
    let hear = || {
        let mut message = [0; 4096];
        let n = socket.recv(&mut message).unwrap();
        String::from_utf8(message[..n].to_vec()).unwrap()
    };
    let until = |wanted: &str| {
        let (mut heard, end) = (Vec::new(), std::time::Instant::now() + seconds(30));
        while !heard.last().is_some_and(|last: &String| last.lines().any(|line| line == wanted)) {
            // The watchdog is heard for ever.
            assert!(std::time::Instant::now() < end, "no {wanted}: {heard:?}");
            heard.push(hear());
        }
        heard
    };
    // One worker is enough.
    until("READY=1");
    write_file(dir.path(), "go", "");
    until("STATUS=shop: 2 of 2 online");
    // Alive, and at the half of what it may take.
    let begin = std::time::Instant::now();
    (0..3).for_each(|_| drop(until("WATCHDOG=1")));
    assert!(begin.elapsed() < seconds(2), "{:?}", begin.elapsed());
    daemon.signal(nix::sys::signal::Signal::SIGHUP);
    let reloading = until("RELOADING=1");
    assert!(reloading.last().unwrap().contains("MONOTONIC_USEC="), "{reloading:?}");
    until("READY=1");
    daemon.signal(nix::sys::signal::Signal::SIGTERM);
    until("STOPPING=1");
    assert_eq!(daemon.finish(seconds(15)).code(), 0);
}

#[test]
fn the_unit_is_valid_and_hardened() {
    let unit = format!("{}/config/roundsman.service", env!("CARGO_MANIFEST_DIR"));
    let security =
        Command::new("systemd-analyze").args(["security", "--offline=true", "--no-pager", &unit]).output().unwrap();
    let text = String::from_utf8_lossy(&security.stdout).into_owned();
    let line = text.lines().find(|line| line.contains("Overall exposure level")).unwrap_or_else(|| panic!("{text}"));
    let level: f32 = line.split(": ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
    assert!(level <= 2.5, "{line}");
    // Only that the program is not installed may be said against it.
    let verify = Command::new("systemd-analyze").args(["verify", &unit]).output().unwrap();
    let said = String::from_utf8_lossy(&verify.stderr).into_owned();
    let own = said.lines().filter(|line| line.contains("roundsman.service"));
    let wrong: Vec<_> = own.filter(|line| !line.contains("/usr/local/bin/roundsman is not executable")).collect();
    assert!(wrong.iter().all(|line| line.contains("man roundsman")), "{said}");
    // It was looked at: where the program is not installed, that is said.
    let installed = std::path::Path::new("/usr/local/bin/roundsman").exists();
    assert!(installed || said.contains("/usr/local/bin/roundsman is not executable"), "{said}");
}

/// `--source-conns` asks the kernel by netlink, for one.
#[test]
fn the_unit_permits_every_family_that_the_program_opens() {
    fn families(directory: &std::path::Path, found: &mut std::collections::BTreeSet<String>) {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                families(&path, found);
            } else {
                let text = std::fs::read_to_string(&path).unwrap();
                found.extend(text.split("libc::AF_").skip(1).map(|rest| {
                    let name = rest.split(|c: char| !c.is_ascii_uppercase() && !c.is_ascii_digit()).next();
                    format!("AF_{}", name.unwrap())
                }));
            }
        }
    }
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut opened = std::collections::BTreeSet::from(["AF_UNIX".to_owned()]);
    families(&root.join("src"), &mut opened);
    opened.remove("AF_UNSPEC");
    assert!(opened.contains("AF_NETLINK") && opened.contains("AF_INET6"), "{opened:?}");
    let unit = std::fs::read_to_string(root.join("config/roundsman.service")).unwrap();
    let line = unit.lines().find_map(|line| line.strip_prefix("RestrictAddressFamilies=")).unwrap();
    assert_eq!(line.split(' ').map(str::to_owned).collect::<std::collections::BTreeSet<_>>(), opened);
}
