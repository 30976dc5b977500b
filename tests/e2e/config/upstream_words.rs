//! Weights and backups of upstreams, as flags, variable and file say them; slow start beside policies.

use crate::support::{install_dir, roundsman, write_file};

/// Exit code of `check`, its `upstream` line without the origin, and everything else that it said.
fn check(words: &[&str], variable: Option<&str>) -> (i32, String, String) {
    let mut command = roundsman();
    command.arg("check").args(words).envs(variable.map(|value| ("ROUNDSMAN_UPSTREAM", value)));
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = text.lines().find(|line| line.starts_with("upstream = ")).unwrap_or_default();
    let line = line.split("  # ").next().unwrap_or_default().to_owned();
    (output.status.code().unwrap(), line, String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn every_form_means_the_same_and_check_prints_what_it_reads() {
    let dir = install_dir();
    let file = |value: &str| {
        let text = format!("[service.a]\nlisten = 9\nupstream = {value}\n");
        write_file(dir.path(), "a.toml", &text).to_str().unwrap().to_owned()
    };
    for (flags, variable, toml, printed) in [
        (&["-u", "a:1"][..], "a:1", r#""a:1""#, r#"["a:1"]"#),
        (&["-u", "a:1", "-u", "b:2"], "a:1,b:2", r#"["a:1", "b:2"]"#, r#"["a:1", "b:2"]"#),
        (
            &["-u", "a:1", "-u", "b:1,weight=3,backup"],
            "a:1,b:1,weight=3,backup",
            r#"["a:1", { addr = "b:1", weight = 3, backup = true }]"#,
            r#"["a:1", { addr = "b:1", weight = 3, backup = true }]"#,
        ),
        (
            &["-u", "[::1]:1,weight=256,unix:/run/a=b,weight=0"],
            "[::1]:1,weight=256,unix:/run/a=b,weight=0",
            r#"["[::1]:1,weight=256", { backup = false, addr = "unix:/run/a=b", weight = 0 }]"#,
            r#"[{ addr = "[::1]:1", weight = 256 }, { addr = "unix:/run/a=b", weight = 0 }]"#,
        ),
        (
            &["-u", "a:1,weight=2"],
            "a:1,weight=2",
            r#"{ addr = "a:1", weight = 2 }"#,
            r#"[{ addr = "a:1", weight = 2 }]"#,
        ),
    ] {
        let printed = (0, format!("upstream = {printed}"), String::new());
        let flags: Vec<_> = ["-l", "9"].iter().chain(flags).copied().collect();
        assert_eq!(check(&flags, None), printed);
        assert_eq!(check(&["-l", "9"], Some(variable)), printed);
        assert_eq!(check(&["-c", &file(toml)], None), printed);
        let again = file(printed.1.trim_start_matches("upstream = "));
        assert_eq!(check(&["-c", &again], None), printed, "what it prints can be read again");
    }
}

#[test]
fn mistakes_are_named_where_they_are() {
    let dir = install_dir();
    for (value, code, word) in [
        ("a:1,weight=257", 2, "0 to 256"),
        ("a:1,weight=-1", 2, "0 to 256"),
        ("a:1,wieght=3", 2, "unknown word 'wieght'; did you mean weight=3?"),
        ("a:1,bakcup", 2, "did you mean backup?"),
        ("a:1,max_fails=3", 2, "an address may have weight=0..256 and backup"),
        ("weight=3,a:1", 2, "--upstream: weight=3 has no address before it; for example 10.0.0.5:6379,weight=3"),
        ("a:1,backup,b:1,backup", 2, "all upstreams are backups"),
        ("a:1,weight=0,b:1,weight=0", 2, "every weight is 0"),
    ] {
        for (flags, variable) in [(&["-l", "9", "-u", value][..], None), (&["-l", "9"], Some(value))] {
            let (got, _, said) = check(flags, variable);
            assert!(got == code && said.contains(word), "{value}: {got} {said}");
        }
    }
    for (value, word, under) in [
        (r#"["a:1", { addr = "b:1", weight = 257 }]"#, "`upstream`: weight: a whole number is needed: 0 to 256", "257"),
        (r#"[{ addr = "b:1", weight = "3" }]"#, "`weight` is a number, 0 to 256, not of type string", r#""3""#),
        (r#"[{ addr = "b:1", backup = 1 }]"#, "`backup` is true or false", "1"),
        (r#"[{ addr = "b:1", wieght = 3 }]"#, "unknown key `wieght`; did you mean `weight`?", "wieght"),
        (r#"[{ address = "b:1" }]"#, "unknown key `address`; did you mean `addr`?", "address"),
        (r#"[{ weight = 3 }]"#, "`addr` is missing", "{ weight = 3 }"),
        (r#"[{ addr = "b:1,weight=3" }]"#, "an address has no comma", r#""b:1,weight=3""#),
        (r#"["a:1", true]"#, "an upstream is a string or a table, not of type boolean", "true"),
        (r#"["weight=3"]"#, "`upstream`: weight=3 has no address before it", ""),
        (r#"[{ addr = "b:1", backup = true }]"#, "b:1 is a backup of no other upstream", ""),
    ] {
        let text = format!("[service.a]\nlisten = 9\nupstream = {value}\n");
        let file = write_file(dir.path(), "a.toml", &text);
        let (code, _, said) = check(&["-c", file.to_str().unwrap()], None);
        assert!(code == 78 && said.contains(word) && said.contains("a.toml:3:"), "{value}: {code} {said}");
        let carets = said.matches('^').count();
        assert!(under.is_empty() || carets == under.len(), "{value}: {carets} {said}");
    }
}

#[test]
fn slow_start_is_refused_where_shares_cannot_grow() {
    let dir = install_dir();
    for (policy, fits) in [("rr", true), ("least-conn", true), ("ip-hash", false), ("none", false)] {
        for (time, fits) in [("0s", true), ("15s", fits)] {
            let words = ["-l", "9", "-u", "a:1", "-p", policy, "--slow-start", time];
            let (code, _, said) = check(&words, None);
            assert!(code == if fits { 0 } else { 2 }, "{policy} {time}: {code} {said}");
            assert!(fits || said.contains("--slow-start needs --policy rr or --policy least-conn"), "{said}");
            let text =
                format!("[service.a]\nlisten = 9\nupstream = 'a:1'\npolicy = '{policy}'\nslow-start = '{time}'\n");
            let file = write_file(dir.path(), "a.toml", &text);
            let (code, _, said) = check(&["-c", file.to_str().unwrap()], None);
            assert!(
                code == if fits { 0 } else { 78 } && (fits || said.contains("a.toml:5:")),
                "{policy}: {code} {said}"
            );
        }
    }
}
