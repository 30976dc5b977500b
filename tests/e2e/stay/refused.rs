//! Where connections cannot move.

use crate::support::{install_dir, roundsman, write_file};

fn check(words: &[&str]) -> (Option<i32>, String) {
    let output = roundsman().arg("check").args(words).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8_lossy(&text).into_owned())
}

#[test]
fn options_with_which_no_connection_could_move_are_refused() {
    for (flags, file, said) in [
        (
            vec!["-l", "8080", "-p", "none", "--via", "relay", "--", "node"],
            "listen = 8080\npolicy = 'none'\nvia = 'relay'\ncommand = ['node']",
            "workers accept by themselves",
        ),
        (
            vec!["-l", "8080", "-p", "hash", "--hash-on", "cookie:a", "-u", "127.0.0.1:1"],
            "listen = 8080\npolicy = 'hash'\nhash-on = 'cookie:a'\nupstream = '127.0.0.1:1'",
            "no request to look at",
        ),
        (
            vec!["-l", "8080", "-p", "none", "--", "node"],
            "listen = 8080\npolicy = 'none'\ncommand = ['node']",
            "workers accept by themselves",
        ),
        (
            vec!["-l", "8080", "-p", "hash", "--hash-on", "cookie:a", "--", "node"],
            "listen = 8080\npolicy = 'hash'\nhash-on = 'cookie:a'\ncommand = ['node']",
            "no request to look at",
        ),
        (
            vec!["-l", "8080", "-p", "hash", "--hash-on", "socket.io", "--", "node", "app.js"],
            "listen = 8080\npolicy = 'hash'\nhash-on = 'socket.io'\ncommand = ['node', 'app.js']",
            "no request to look at",
        ),
        (vec!["--no-listen", "--", "node"], "no-listen = true\ncommand = ['node']", "cannot be combined with"),
    ] {
        let (code, text) = check(&[&["--drain-idle", "move"][..], &flags].concat());
        assert!(code == Some(2) && text.contains(said), "{flags:?}: {code:?} {text}");
        let dir = install_dir();
        let path = write_file(dir.path(), "a.toml", &format!("[service.a]\ndrain-idle = 'move'\n{file}\n"));
        let (code, text) = check(&["-c", path.to_str().unwrap()]);
        assert!(code == Some(78) && text.contains(said) && text.contains("a.toml:"), "{file}: {code:?} {text}");
    }
    let (code, text) = check(&["--drain-idle", "keep", "--", "node"]);
    assert!(code == Some(2) && text.contains("close") && text.contains("move"), "{code:?} {text}");
    for (options, said) in [
        (&["--drain-spread", "5s", "--", "node"][..], "with direct delivery they are the server's"),
        (&["--drain-spread", "11s", "-l", "8080", "--via", "relay", "--", "node"], "longer than --drain-timeout"),
        (&["--drain-spread", "5s", "--no-listen", "--", "node"], "cannot be combined with"),
    ] {
        let (code, text) = check(options);
        assert!(code == Some(2) && text.contains(said), "{options:?}: {code:?} {text}");
    }
    for words in [&["--drain-idle", "move"][..], &["--drain-spread", "10s"]] {
        for backend in [&["-l", "8080", "--via", "relay", "--", "node"][..], &["-l", "8080", "-u", "127.0.0.1:1"]] {
            let (code, text) = check(&[words, backend].concat());
            assert_eq!(code, Some(0), "{words:?} {backend:?}: {text}");
        }
    }
    let (code, text) = check(&["--drain-idle", "move", "--", "node"]);
    assert!(code == Some(0) && text.lines().any(|line| line.contains("drain-idle") && line.contains("move")), "{text}");
    for policy in [&["-p", "ip-hash"][..], &["-p", "hash"], &["-p", "hash", "--hash-on", "source"]] {
        let (code, text) = check(&[&["--drain-idle", "move"][..], policy, &["--", "node"]].concat());
        assert_eq!(code, Some(0), "{policy:?}: {text}");
    }
}
