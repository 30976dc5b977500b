//! Where a limit cannot be had.

use crate::support::{install_dir, roundsman, write_file};

fn check(words: &[&str]) -> (Option<i32>, String) {
    let output = roundsman().arg("check").args(words).output().unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn options_that_make_no_sense_together_are_refused_in_flags_and_files() {
    let needs = |flag: &str| format!("{flag} needs --worker-conns");
    for (flags, file, said) in [
        (
            vec!["-l", "8080", "-p", "none", "--worker-conns", "2"],
            "listen = 8080\npolicy = 'none'\nworker-conns = 2",
            "workers accept by themselves".to_owned(),
        ),
        (vec!["--max-queue", "5"], "max-queue = 5", needs("--max-queue")),
        (vec!["--abort-on-close"], "abort-on-close = true", needs("--abort-on-close")),
        (
            vec!["--no-listen", "--worker-conns", "2"],
            "no-listen = true\nworker-conns = 2",
            "cannot be combined with".to_owned(),
        ),
        (vec!["--worker-conns", "0"], "worker-conns = 0", "1 or more".to_owned()),
    ] {
        let (code, text) = check(&[&flags[..], &["--", "sleep", "1"]].concat());
        assert!(code == Some(2) && text.contains(&said), "{flags:?}: {code:?} {text}");
        let dir = install_dir();
        let path = write_file(dir.path(), "a.toml", &format!("[service.a]\ncommand = ['sleep', '1']\n{file}\n"));
        let (code, text) = check(&["-c", path.to_str().unwrap()]);
        let said = said.replace("--", "");
        let plain = text.replace('`', "").replace("--", "");
        assert!(code == Some(78) && plain.contains(&said) && text.contains("a.toml:"), "{file}: {code:?} {text}");
    }
}
