//! `--admin-token-file`: who may act over HTTP, and who sees what.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use super::streams::{Page, ask, daemon};
use crate::support::{Daemon, eventually, free_port, roundsman, seconds};

const TOKEN: &str = "correct-horse-battery";
const RELOAD: &str = r#"{"cmd":"reload","service":"shop"}"#;

fn write_token(path: &Path, text: &str, mode: u32) {
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn only_a_post_with_the_token_changes_something() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("token");
    write_token(&path, &format!("{TOKEN}\n"), 0o600);
    let (daemon, admin) = daemon(&["--admin-token-file", path.to_str().unwrap()]);
    let right = format!("Authorization: Bearer {TOKEN}\r\n");
    let json = "Content-Type: application/json\r\n";
    let both = format!("{right}{json}");
    let refused = [
        (401, "POST /control", json.to_owned(), RELOAD),
        (401, "POST /control", format!("Authorization: Bearer wrong-horse-battery\r\n{json}"), RELOAD),
        (401, "POST /control", format!("Authorization: Basic {TOKEN}\r\n{json}"), RELOAD),
        (401, "POST /control", format!("Cookie: token={TOKEN}\r\n{json}"), RELOAD),
        (401, &format!("POST /control?token={TOKEN}"), json.to_owned(), RELOAD),
        (405, "GET /control", both.clone(), ""),
        (415, "POST /control", format!("{right}Content-Type: text/plain\r\n"), RELOAD),
        (403, "POST /control", format!("{both}Origin: http://evil.example\r\n"), RELOAD),
        (403, "POST /control", format!("{both}Sec-Fetch-Site: cross-site\r\n"), RELOAD),
        (403, "GET /events", format!("{right}Origin: null\r\n"), ""),
        (401, "GET /events", "Authorization: Bearer wrong-horse-battery\r\n".to_owned(), ""),
        (400, "POST /control", both.clone(), "{}"),
        (400, "POST /control", both.clone(), r#"{"cmd":"logs","lines":3}"#),
        (400, "POST /control", both.clone(), r#"{"cmd":"send","message":1}"#),
        (409, "POST /control", both.clone(), r#"{"cmd":"reload","service":"none"}"#),
        (413, "POST /control", both.clone(), &format!("\"{}\"", "x".repeat(5000))),
    ];
    for (wanted, request, headers, body) in refused {
        let (status, text) = ask(admin, request, &headers, body);
        assert_eq!(status, wanted, "{request} {headers} {body}: {text}");
    }
    assert!(daemon.slots().iter().all(|slot| slot["generation"] == 1));
    assert!(daemon.log().contains("wrong token over HTTP"), "{}", daemon.log());
    let (status, text) = ask(admin, "POST /control", &both, RELOAD);
    assert!([200, 202].contains(&status), "{text}");
    eventually("reloaded", seconds(20), || daemon.slots().iter().all(|slot| slot["generation"] == 2).then_some(()));
    let (status, text) = ask(admin, "POST /control", &both, r#"{"cmd":"scale","service":"shop","to":{"by":1}}"#);
    assert!([200, 202].contains(&status), "{text}");
    daemon.wait_online(3);
    let (status, text) = ask(admin, "POST /control", &both, r#"{"cmd":"weight","service":"shop","slot":1,"weight":5}"#);
    assert!(status == 200 && text.contains("slot 1: weight 5, before 1"), "{text}");
    assert_eq!(daemon.slot(1, "weight"), 5);
    let (status, text) =
        ask(admin, "POST /control", &both, r#"{"cmd":"weight","service":"shop","slot":1,"weight":257}"#);
    assert!(status == 409 && text.contains("256"), "{text}");
    let (status, text) = ask(admin, "POST /control", &both, r#"{"cmd":"drain","service":"shop","slot":2}"#);
    assert!(status == 200 && text.contains("draining slot 2"), "{text}");
    // A new token is in force after a reload; one that cannot be used is not.
    write_token(&path, "another-token-than-before", 0o600);
    let verb = || roundsman().arg("reload").env("ROUNDSMAN_CONTROL", daemon.control()).output().unwrap();
    assert!(verb().status.success());
    assert_eq!(ask(admin, "POST /control", &both, RELOAD).0, 401);
    let new = format!("Authorization: Bearer another-token-than-before\r\n{json}");
    write_token(&path, TOKEN, 0o644);
    let output = verb();
    assert!(output.status.success());
    assert!(daemon.log().contains("others can read or change it; chmod 600; the old token stays"), "{}", daemon.log());
    assert_eq!(ask(admin, "POST /control", &both, RELOAD).0, 401);
    assert_eq!(ask(admin, "POST /control", &new, r#"{"cmd":"ls"}"#).0, 400);
}

#[test]
fn without_a_file_nobody_may_act_and_a_file_that_cannot_be_used_ends_the_start() {
    let (_daemon, admin) = daemon(&[]);
    let headers = "Authorization: Bearer \r\nContent-Type: application/json\r\n";
    let (status, text) = ask(admin, "POST /control", headers, RELOAD);
    assert!(status == 403 && text.contains("--admin-token-file"), "{text}");
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("token");
    write_token(&path, TOKEN, 0o644);
    let (listen, free) = (free_port().to_string(), free_port().to_string());
    let fails = |arguments: &[&str], code: i32, words: &str| {
        let all =
            [&["-l", &listen, "-u", "127.0.0.1:1", "--admin-token-file", path.to_str().unwrap()], arguments].concat();
        let output = roundsman().args(all).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(code) && text.contains(words), "{text}");
    };
    fails(&["--admin", &free], 2, "chmod 600");
    fails(&[], 2, "--admin-token-file needs --admin");
    let file = dir.path().join("r.toml");
    std::fs::write(&file, "admin-token-file = \"token\"\n[service.a]\nlisten = 1\nupstream = \"127.0.0.1:1\"\n")
        .unwrap();
    let output = roundsman().args(["check", "-c", file.to_str().unwrap()]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(78) && text.contains("`admin-token-file` needs `admin`"), "{text}");
}

#[test]
fn strangers_leave_places_for_those_with_the_token() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("token");
    write_token(&path, TOKEN, 0o600);
    let (_daemon, admin) = daemon(&["--admin-token-file", path.to_str().unwrap()]);
    let forwarded = "X-Forwarded-For: 10.0.0.9\r\n";
    let open = |headers: &str| {
        let mut page = Page::open(admin, headers);
        page.next("hello", |_| Some(()));
        page
    };
    let strangers: Vec<_> = (0..4).map(|_| open(forwarded)).collect();
    let (status, text) = ask(admin, "GET /events", forwarded, "");
    assert!(status == 503 && text.contains("from your address"), "{text}");
    let right = format!("{forwarded}Authorization: Bearer {TOKEN}\r\n");
    let _trusted: Vec<_> = (0..12).map(|at| open(if at % 2 == 0 { &right } else { "" })).collect();
    let (status, text) = ask(admin, "GET /events", &right, "");
    assert!(status == 503 && text.contains("16 pages are open"), "{text}");
    drop(strangers);
    eventually("their places are free", seconds(20), || Page::open(admin, forwarded).begins().then_some(()));
}

#[test]
fn a_client_of_a_proxy_sees_no_commands_and_paths_without_the_token() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("token");
    write_token(&path, TOKEN, 0o600);
    let (_daemon, admin) = daemon(&["--admin-token-file", path.to_str().unwrap()]);
    let program = env!("CARGO_BIN_EXE_roundsman");
    for (headers, sees) in [
        (String::new(), true),
        ("X-Forwarded-For: 10.0.0.9\r\n".to_owned(), false),
        (format!("X-Forwarded-For: 10.0.0.9\r\nAuthorization: Bearer {TOKEN}\r\n"), true),
    ] {
        let mut page = Page::open(admin, &headers);
        assert_eq!(page.next("hello", |hello| Some(hello["trusted"].clone())), sees, "{headers}");
        page.next("log", |event| {
            let text = event["text"].as_str()?;
            assert!(sees || !text.contains('/'), "{text}");
            text.starts_with("worker online").then_some(())
        });
        let state = page.next("state", |state| Some(state.to_string()));
        assert_eq!(state.contains(program), sees, "{headers}: {state}");
        assert_eq!(state.contains("\"cwd\""), sees, "{headers}: {state}");
    }
}

#[test]
fn a_client_from_another_address_sees_no_commands_and_paths_without_the_token() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("token");
    write_token(&path, TOKEN, 0o600);
    let mut command = Command::new("unshare");
    // A network of its own, with an address that is not a loopback address.
    let line = "ip link set lo up && ip addr add 192.0.2.1/32 dev lo && exec \"$0\" \"$@\"";
    let program = env!("CARGO_BIN_EXE_roundsman");
    command.args(["-n", "sh", "-c", line, program]);
    let options = ["-l", "8080", "--via", "relay", "-i", "1", "--admin", "0.0.0.0:9090", "--admin-token-file"];
    let daemon =
        Daemon::launch(command, &[&options[..], &[path.to_str().unwrap(), "--", program, "demo-server"]].concat(), 0);
    daemon.wait_for("worker online");
    // What a page gets first: up to its first state.
    let page = |address: &str, headers: &str| {
        let script = "import socket, sys
stream = socket.create_connection((sys.argv[1], 9090), 10)
stream.sendall(('GET /events HTTP/1.1\\r\\nHost: %s:9090\\r\\n%s\\r\\n' % (sys.argv[1], sys.argv[2])).encode())
text = b''
while b'\\n\\n' not in text.partition(b'event: state')[2]: text += stream.recv(65536) or sys.exit('ended: %r' % text)
print(text.decode())";
        let target = format!("--target={}", daemon.pid());
        let output = Command::new("nsenter")
            .args([&target, "--net", "python3", "-c", script, address, headers])
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let right = format!("Authorization: Bearer {TOKEN}\r\n");
    for (address, headers, sees) in
        [("127.0.0.1", "", true), ("192.0.2.1", "", false), ("192.0.2.1", right.as_str(), true)]
    {
        let text = page(address, headers);
        assert_eq!(text.contains(program), sees, "{address} {headers}: {text}");
        assert_eq!(text.contains("\"cwd\""), sees, "{address} {headers}: {text}");
        assert!(text.contains(&format!("\"trusted\":{sees}")), "{address} {headers}: {text}");
    }
}
