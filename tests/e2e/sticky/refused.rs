//! Combinations of `--policy hash` and `--hash-on` that are refused, and with which words.

use crate::support::{free_port, roundsman};

#[test]
fn senseless_combinations_are_refused() {
    let port = free_port().to_string();
    let upstream = ["-l", &port, "-u", "127.0.0.1:1"];
    let node = ["-l", &port, "--", "node", "app.js"];
    let other = ["-l", &port, "--", "sleep", "9"];
    for (words, rest, wanted) in [
        (&["--hash-on", "cookie:a"][..], &upstream[..], "--hash-on needs --policy hash"),
        (&["-p", "ip-hash", "--hash-on", "source"], &upstream, "--hash-on needs --policy hash"),
        (&["-p", "none", "--hash-on", "source"], &upstream, "--hash-on needs --policy hash"),
        (&["-p", "hash", "--hash-on", "cookie"], &upstream, "cookie:route"),
        (&["-p", "hash", "--hash-on", "source", "--hash-on", "source"], &upstream, "cannot be used multiple times"),
        (&["-p", "hash", "--slow-start", "1s"], &upstream, "--slow-start needs --policy rr"),
        (&["-p", "hash", "--hash-on", "socket.io"], &upstream, "upstreams have none"),
        (&["-p", "hash", "--hash-on", "socket.io"], &other, "node FILE"),
        (&["-p", "hash", "--hash-on", "socket.io", "--node-ipc", "off"], &node, "node-ipc is off"),
        (
            &["-p", "hash", "--hash-on", "source", "--no-listen"],
            &["--", "sleep", "9"],
            "cannot be combined with --no-listen",
        ),
    ] {
        let output = roundsman().args(words).args(rest).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(2) && text.contains(wanted), "{words:?}: {text}");
    }
    for words in [&["-p", "hash"][..], &["-p", "hash", "--hash-on", "header:A"]] {
        let output = roundsman().arg("check").args(words).args(upstream).output().unwrap();
        assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
}
