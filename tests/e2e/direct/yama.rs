//! Yama, which the kernel here may lack: Debian's kernel in a virtual machine. Where only ancestors may trace a process
//! (`ptrace_scope` 1), a keeper does its work; where none may (2 for users, 3 for all), the service is relayed, and the reason named.

use std::path::Path;
use std::process::{Command, Stdio};

use crate::support::{install_dir, roundsman, servers, static_servers, write_file};

/// Process 1 of the machine. Each cell: a value of the setting, a user, more options.
const INIT: &str = r#"#!/bin/sh
export PATH=/bin:/usr/bin:/sbin:/usr/sbin
mount -t proc none /proc
mount -t devtmpfs none /dev
ip link set lo up
online() {
    n=0
    while [ "$(grep -c 'worker online' /tmp/log)" -lt "$1" ] && [ $n -lt 300 ]; do sleep 0.1; n=$((n + 1)); done
}
ask() { curl -s -m 20 -w ' from %{local_port}\n' 'http://127.0.0.1:8080/[1-12]'; }
cell() {
    echo "=== $*"
    scope=$1 uid=$2
    shift 2
    echo "$scope" >/proc/sys/kernel/yama/ptrace_scope
    echo "scope $(cat /proc/sys/kernel/yama/ptrace_scope)"
    export ROUNDSMAN_CONTROL=/tmp/$scope-$uid-$#/d.sock
    setpriv --reuid="$uid" --regid="$uid" --clear-groups -- /roundsman -l 127.0.0.1:8080 -i 2 --via direct \
        --min-uptime 100ms --backoff 10ms..20ms --stall-timeout 10s "$@" -- /server threads '{port}' 2>/tmp/log &
    daemon=$!
    online 2
    ask
    /roundsman reload >/dev/null || echo "no reload"
    online 4
    ask
    kill -9 "$(grep 'worker online' /tmp/log | tail -n 1 | sed 's/.* pid=\([0-9]*\).*/\1/')"
    online 5
    ask
    kill $daemon
    wait $daemon
    echo "ended $?"
    cat /tmp/log
}
cell 1 0
cell 1 65534
cell 1 0 --user 65534:65534
cell 2 0
cell 2 65534
cell 3 0
echo "=== end"
"#;

/// A program and its libraries.
fn add(root: &Path, from: &str, to: &str) {
    let listed = Command::new("ldd").arg(from).output().unwrap();
    let text = String::from_utf8(listed.stdout).unwrap();
    let libraries = text.split_whitespace().filter(|word| word.starts_with('/') && Path::new(word).is_file());
    for (from, to) in libraries.map(|path| (path, path)).chain([(from, to)]) {
        let to = root.join(&to[1..]);
        std::fs::create_dir_all(to.parent().unwrap()).unwrap();
        std::fs::copy(from, to).unwrap();
    }
}

/// What is on the machine's console until its end.
fn boot(kernel: &Path, dir: &Path) -> String {
    use std::os::unix::fs::PermissionsExt;
    let root = dir.join("root");
    for place in ["proc", "dev", "tmp", "run"] {
        std::fs::create_dir_all(root.join(place)).unwrap();
    }
    std::fs::set_permissions(root.join("tmp"), PermissionsExt::from_mode(0o1777)).unwrap();
    for tool in ["sh", "mount", "ip", "grep", "sleep", "cat", "tail", "sed", "setpriv", "curl"] {
        let found = Command::new("sh").args(["-c", &format!("command -v {tool}")]).output().unwrap();
        let path = String::from_utf8(found.stdout).unwrap();
        add(&root, path.trim(), &format!("/bin/{tool}"));
    }
    add(&root, roundsman().get_program().to_str().unwrap(), "/roundsman");
    add(&root, &static_servers()[1], "/server");
    let init = write_file(&root, "init", INIT);
    std::fs::set_permissions(init, PermissionsExt::from_mode(0o755)).unwrap();
    let pack = "cd root && find . | cpio --quiet -o -H newc | gzip -1 >../files";
    assert!(Command::new("sh").args(["-c", pack]).current_dir(dir).status().unwrap().success());
    let mut machine = Command::new("timeout");
    machine.args(["280", "qemu-system-x86_64", "-accel", "tcg", "-cpu", "max", "-smp", "2", "-m", "768", "-no-reboot"]);
    machine.args(["-nodefaults", "-display", "none", "-serial", "stdio", "-initrd"]).arg(dir.join("files"));
    // Process 1 ends, the kernel panics and restarts at once, which ends the machine.
    machine.arg("-kernel").arg(kernel).args(["-append", "console=ttyS0 quiet panic=-1"]);
    let output = machine.stdin(Stdio::null()).output().unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
#[ignore = "needs qemu and a kernel: tests/run --all"]
fn a_keeper_is_an_ancestor_and_where_that_is_not_enough_the_reason_is_named() {
    let (dir, kernel) = (install_dir(), servers().join("vmlinuz"));
    assert!(kernel.is_file(), "{}: tests/install --all", kernel.display());
    let console = boot(&kernel, dir.path()).replace('\r', "");
    let mut cells = console.split("=== ").skip(1);
    for (name, scope, is_direct) in [
        ("1 0", "1", true),
        ("1 65534", "1", true),
        ("1 0 --user 65534:65534", "1", true),
        // The one user who may.
        ("2 0", "2", true),
        ("2 65534", "2", false),
        ("3 0", "3", false),
    ] {
        let cell = cells.next().unwrap_or_default();
        assert!(cell.starts_with(&format!("{name}\nscope {scope}\n")), "{name}: {console}");
        let answers: Vec<_> = cell.lines().filter_map(|line| line.split_once(" peer ")).collect();
        assert_eq!(answers.len(), 36, "{name}: {cell}");
        let known = answers.iter().filter(|(_, ports)| {
            let (peer, own) = ports.split_once(" from ").unwrap();
            peer == own
        });
        assert_eq!(known.count(), if is_direct { 36 } else { 0 }, "{name}: {cell}");
        for slot in ["slot 0", "slot 1"] {
            assert!(answers.iter().filter(|answer| answer.0 == slot).count() >= 9, "{name}: {cell}");
        }
        assert!(cell.contains("\nended 0\n") && !cell.contains("no reload"), "{name}: {cell}");
        assert!(cell.contains(if is_direct { "via=\"direct (seccomp)\"" } else { "via=\"relay\"" }), "{name}: {cell}");
        let why = format!("(kernel.yama.ptrace_scope is {scope})");
        assert_eq!(cell.contains(&why), !is_direct, "{name}: {cell}");
    }
    assert!(cells.next().is_some_and(|end| end.starts_with("end\n")), "{console}");
}
