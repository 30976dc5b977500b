//! Mostly waits: files of `--admin-token-file` that cannot be used, and those that can.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use super::streams::{ask, daemon};
use crate::support::{eventually, free_port, install_dir, roundsman, seconds, unprivileged_copy};

const TOKEN: &str = "correct-horse-battery";

fn write(path: &Path, bytes: &[u8]) {
    std::fs::write(path, bytes).unwrap();
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o600)).unwrap();
}

/// Exit code and stderr of a daemon that should not start, with a file for the token.
fn refused(mut command: Command, path: &Path, more: &[&str]) -> (i32, String) {
    let (listen, admin) = (free_port().to_string(), free_port().to_string());
    let words = ["-l", &listen, "-u", "127.0.0.1:1", "--admin", &admin, "--admin-token-file", path.to_str().unwrap()];
    let output = command.args(words).args(more).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.code().unwrap(), String::from_utf8_lossy(&text).into_owned())
}

#[test]
fn one_that_cannot_be_used_ends_the_start_with_its_name_and_what_is_wrong() {
    let dir = install_dir();
    let file = dir.path().join("token");
    let not_a_token = "a token is 16 to 1024 characters without spaces; openssl rand -hex 32 makes one";
    let long = "x".repeat(1025);
    let contents: [(&str, &[u8]); 8] = [
        ("empty", b""),
        ("a newline alone", b"\n"),
        ("short", b"0123456789abcde\n"),
        ("two lines", b"0123456789abcdef\n0123456789abcdef\n"),
        ("a space", b"0123456789 abcdef"),
        ("a NUL", b"0123456789\0abcdef"),
        ("no text", b"\xff\xfe0123456789abcdef"),
        ("too long", long.as_bytes()),
    ];
    for (what, bytes) in contents {
        write(&file, bytes);
        let (code, text) = refused(roundsman(), &file, &[]);
        assert!(code == 2 && text.contains(not_a_token), "{what}: {code} {text}");
        assert!(text.contains(file.to_str().unwrap()) && text.lines().count() == 1, "{what}: {text}");
    }
    let missing = dir.path().join("missing");
    let loops = dir.path().join("loops");
    std::os::unix::fs::symlink(&loops, &loops).unwrap();
    let below = file.join("below");
    for (path, wanted) in [
        (missing.as_path(), "no such file"),
        (dir.path(), "not a regular file"),
        (Path::new("/dev/null"), "not a regular file"),
        (&loops, "symbolic links"),
        (&below, "not a directory"),
        (Path::new(""), "a value is required"),
    ] {
        let (code, text) = refused(roundsman(), path, &[]);
        assert!(code == 2 && text.to_lowercase().contains(wanted), "{}: {code} {text}", path.display());
    }
    // One that another user may not read; and one of another user.
    write(&file, TOKEN.as_bytes());
    let program = unprivileged_copy(dir.path());
    let as_user = || {
        let mut command = Command::new(&program);
        command.uid(1234).gid(1234).env("XDG_RUNTIME_DIR", "/nonexistent").env_remove("ROUNDSMAN_CONTROL");
        command
    };
    let (code, text) = refused(as_user(), &file, &[]);
    assert!(code == 2 && text.to_lowercase().contains("permission denied") && text.contains("token"), "{code} {text}");
    std::os::unix::fs::chown(&file, Some(1235), Some(1235)).unwrap();
    let (code, text) = refused(roundsman(), &file, &[]);
    assert!(code == 2 && text.contains("it belongs to uid 1235"), "{code} {text}");
    // In the background, the same.
    let mut command = roundsman();
    command.env("XDG_STATE_HOME", dir.path().join("state")).env("XDG_RUNTIME_DIR", dir.path());
    let (code, text) = refused(command, &missing, &["-d"]);
    assert!(code == 2 && text.to_lowercase().contains("no such file"), "{code} {text}");
}

#[test]
fn one_with_a_newline_is_used_and_one_that_goes_away_stays_in_force() {
    let dir = install_dir();
    let file = dir.path().join("token");
    for end in ["", "\n", "\r\n", "\n\n"] {
        write(&file, format!("{TOKEN}{end}").as_bytes());
        let (daemon, admin) = daemon(&["--admin-token-file", file.to_str().unwrap()]);
        let headers = format!("Authorization: Bearer {TOKEN}\r\nContent-Type: application/json\r\n");
        let weight = r#"{"cmd":"weight","service":"shop","slot":1,"weight":5}"#;
        let (status, text) = ask(admin, "POST /control", &headers, weight);
        assert_eq!(status, 200, "{end:?}: {text}");
        if end.is_empty() {
            std::fs::remove_file(&file).unwrap();
            let reload = roundsman().arg("reload").env("ROUNDSMAN_CONTROL", daemon.control()).output().unwrap();
            assert!(reload.status.success());
            eventually("a line in the log", seconds(10), || daemon.log().contains("the old token stays").then_some(()));
            assert_eq!(ask(admin, "POST /control", &headers, weight).0, 200);
        }
    }
}
