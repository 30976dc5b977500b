//! Values that would make the daemon fail later are refused by `check` and at the start.
//! Mostly waits: tests/run runs it beside others.

use crate::support::{free_port, install_dir, roundsman, write_file};

/// Runs to the end: (exit code, stderr).
fn run(words: &[&str], dir: &std::path::Path) -> (i32, String) {
    let output = roundsman().args(words).current_dir(dir).output().unwrap();
    (output.status.code().unwrap(), String::from_utf8_lossy(&output.stderr).into_owned())
}

/// Flags that take a time, from the help.
fn times() -> Vec<(String, bool)> {
    let help = String::from_utf8(roundsman().arg("--help").output().unwrap().stdout).unwrap();
    let flag = |line: &str| {
        let (name, value) = line.trim_start().strip_prefix("--")?.split_once(" <TIME")?;
        Some((name.to_owned(), value.starts_with("..")))
    };
    help.lines().filter_map(flag).collect()
}

/// An instant so far away would be an overflow, at the latest when the time is used.
#[test]
fn a_time_of_more_than_ten_years_is_refused_by_every_flag() {
    let dir = install_dir();
    let flags = times();
    assert!(flags.len() >= 10, "{flags:?}");
    for (flag, is_range) in &flags {
        for time in ["18446744073709551615s", "11years"] {
            let value = if *is_range { format!("1s..{time}") } else { time.to_owned() };
            let word = format!("--{flag}={value}");
            for words in [&["check", &word, "--", "true"][..], &[&word, "--", "true"]] {
                let (code, stderr) = run(words, dir.path());
                assert!(code == 2 && stderr.contains("at most 10 years"), "{words:?}: {code} {stderr}");
            }
            write_file(dir.path(), "a.toml", &format!("[service.a]\ncommand = [\"true\"]\n{flag} = \"{value}\"\n"));
            let (code, stderr) = run(&["check", "-c", "a.toml"], dir.path());
            assert!(code == 78 && stderr.contains("at most 10 years"), "{flag} in a file: {code} {stderr}");
        }
        let value = if *is_range { "1s..10years" } else { "10years" };
        let spread = ["-l", "8080", "--via", "relay", "--drain-timeout", "10years"];
        let more = if flag == "drain-spread" { &spread[..] } else { &[] };
        let word = format!("--{flag}={value}");
        let (code, stderr) = run(&[&["check", &word][..], more, &["--", "true"]].concat(), dir.path());
        assert_eq!((code, stderr.as_str()), (0, ""), "{flag}");
    }
}

#[test]
fn a_number_that_is_none_is_answered_by_those_that_are() {
    let dir = install_dir();
    for (words, wanted) in [
        (&["--max-restarts", "x", "--", "true"][..], "0 or more"),
        (&["--max-surge", "0", "--", "true"], "1 or more"),
        (&["--rotate-keep", "99999999999999999999", "--", "true"], "0 to 1000"),
        (&["logs", "-n", "1.5"], "0 or more"),
    ] {
        let (code, stderr) = run(words, dir.path());
        let wanted = format!("a whole number is needed: {wanted}");
        assert!(code == 2 && stderr.contains(&wanted), "{words:?}: {code} {stderr}");
    }
    write_file(dir.path(), "a.toml", "[service.a]\ncommand = [\"true\"]\nmax-surge = 0\n");
    let (code, stderr) = run(&["check", "-c", "a.toml"], dir.path());
    assert!(code == 78 && stderr.contains("`max-surge`: a whole number is needed: 1 or more"), "{code} {stderr}");
}

#[test]
fn a_proxy_to_itself_is_refused() {
    let dir = install_dir();
    let port = free_port();
    let (any, own, name) = (port.to_string(), format!("127.0.0.1:{port}"), format!("localhost:{port}"));
    for (listen, upstream) in [(&any, &own), (&own, &own), (&own, &name), (&any, &name)] {
        for verb in [&["check"][..], &[]] {
            let words = [verb, &["-l", listen, "-u", "127.0.0.1:1", "-u", upstream]].concat();
            let (code, stderr) = run(&words, dir.path());
            assert!(code == 2 && stderr.contains("is this proxy's own listener"), "{words:?}: {code} {stderr}");
        }
    }
    for verb in [&["check"][..], &[]] {
        let words = [verb, &["-l", "unix:./a.sock", "-u", "unix:a.sock"]].concat();
        let (code, stderr) = run(&words, dir.path());
        assert!(code == 2 && stderr.contains("is this proxy's own listener"), "{words:?}: {code} {stderr}");
    }
    write_file(dir.path(), "a.toml", &format!("[service.a]\nlisten = {port}\nupstream = [\"{own}\"]\n"));
    let (code, stderr) = run(&["check", "-c", "a.toml"], dir.path());
    assert!(
        code == 78 && stderr.contains("is this proxy's own listener") && stderr.contains("a.toml:"),
        "{code} {stderr}"
    );
}

#[test]
fn a_rate_is_a_number_per_second_where_the_master_accepts() {
    let dir = install_dir();
    for rate in ["1000", "0/s", "1/m", "x/s", "1000001/s"] {
        let (code, stderr) = run(&["check", "--accept-rate", rate, "--", "true"], dir.path());
        assert!(code == 2 && stderr.contains("from 1/s to 1000000/s"), "{rate}: {code} {stderr}");
    }
    for option in [
        ["--accept-rate", "5/s"],
        ["--max-conns", "5"],
        ["--proxy-from", "10.0.0.0/8"],
        ["--send-proxy", "v1"],
        ["--allow", "10.0.0.0/8"],
        ["--deny", "10.0.0.0/8"],
        ["--source-conns", "5"],
        ["--source-rate", "5/s"],
        ["--first-byte-timeout", "5s"],
    ] {
        let (code, stderr) = run(&["check", "-p", "none", option[0], option[1], "--", "true"], dir.path());
        assert!(code == 2 && stderr.contains("workers accept by themselves there; use --policy rr"), "{code} {stderr}");
        let (code, stderr) = run(&["check", "--no-listen", option[0], option[1], "--", "true"], dir.path());
        assert!(code == 2 && stderr.contains("cannot be combined with --no-listen"), "{code} {stderr}");
    }
    let words = ["check", "--send-proxy", "v2", "--via", "direct", "-l", "8080", "--", "sleep", "1"];
    let (code, stderr) = run(&words, dir.path());
    assert!(
        code == 2 && stderr.contains("--via direct is impossible: --send-proxy; use --via relay"),
        "{code} {stderr}"
    );
    write_file(dir.path(), "b.toml", "[service.a]\ncommand = [\"true\"]\npolicy = \"none\"\naccept-rate = \"5/s\"\n");
    let (code, stderr) = run(&["check", "-c", "b.toml"], dir.path());
    assert!(code == 78 && stderr.contains("workers accept by themselves there"), "{code} {stderr}");
}

#[test]
fn wrong_networks_and_limits_of_clients_are_named() {
    let dir = install_dir();
    write_file(dir.path(), "networks.txt", "10.0.0.0/8\nhere\n");
    for (words, wanted) in [
        (&["--allow", "10.0.0.1/8"][..], "'10.0.0.1/8' has bits behind its prefix; did you mean 10.0.0.0/8?"),
        (&["--deny", "localhost"], "'localhost' is no network"),
        (&["--deny", "@"], "a file is needed after the @"),
        (&["--deny", "@none.txt"], "--deny none.txt: No such file or directory"),
        (&["--allow", "192.0.2.0/24,@networks.txt"], "--allow: networks.txt:2: 'here' is no network"),
        (&["--allow", "10.0.0.0/8,192.0.2.0/24", "--deny", "10.0.0.0/8"], "--deny: 10.0.0.0/8 is allowed, too"),
        (&["--source-conns", "0"], "a whole number is needed: 1 to 65536"),
        (&["--source-conns", "65537"], "a whole number is needed: 1 to 65536"),
        (&["--source-rate", "50"], "a rate per second is needed: 1000/s"),
        (&["--first-byte-timeout", "0s"], "longer than 0; leave it out for no limit"),
        (&["--first-byte-timeout", "5"], "a unit is needed: 5ms or 5s"),
        (&["--deny", "10.0.0.0/8", "-l", "unix:a.sock"], "--deny needs a TCP address in --listen"),
        (&["--source-conns", "5", "-l", "unix:a.sock"], "clients of Unix sockets have no address"),
    ] {
        let (code, stderr) = run(&[&["check"], words, &["--", "true"]].concat(), dir.path());
        assert!(code == 2 && stderr.contains(wanted), "{words:?}: {code} {stderr}");
    }
    let all = ["--deny", "10.0.0.0/8", "-l", "unix:a.sock", "--proxy-from", "unix", "--", "true"];
    let (code, stderr) = run(&[&["check"], &all[..]].concat(), dir.path());
    assert_eq!(code, 0, "{stderr}");
    // In a file, relative to it, and at its place.
    write_file(dir.path(), "c.toml", "[service.a]\ncommand = [\"true\"]\nallow = \"@networks.txt\"\n");
    let (code, stderr) = run(&["check", "-c", dir.path().join("c.toml").to_str().unwrap()], std::path::Path::new("/"));
    assert!(code == 78 && stderr.contains("networks.txt:2: 'here' is no network"), "{code} {stderr}");
    assert!(stderr.contains("c.toml:3:1"), "{stderr}");
}
