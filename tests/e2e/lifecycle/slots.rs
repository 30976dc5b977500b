//! Verbs for one slot: `reload web/2`, `restart web/2`; and verbs at the same time.
//! Mostly waits: tests/run runs it beside others.

use std::path::Path;

use serde_json::Value;

use super::reload::{app, daemon, under_load};
use super::verbs::ask;
use crate::support::{Daemon, eventually, install_dir, roundsman, seconds, write_file};

/// Workers without a port.
fn sleepers(dir: &Path, instances: &str, min_uptime: &str) -> Daemon {
    let mut words = vec!["-n", "job", "--no-listen", "-i", instances, "--min-uptime", min_uptime];
    words.extend(["--", "sleep", "1000"]);
    let mut command = roundsman();
    command.current_dir(dir);
    Daemon::launch(command, &words, 0)
}

fn pids(daemon: &Daemon) -> Vec<i64> {
    let of = |slot: &Value| slot["pid"].as_i64().unwrap_or_default();
    daemon.slots().iter().map(of).collect()
}

/// The places at which two lists differ.
fn changed(before: &[i64], after: &[i64]) -> Vec<usize> {
    assert_eq!(before.len(), after.len());
    (0..before.len()).filter(|&at| before[at] != after[at]).collect()
}

#[test]
fn one_slot_is_replaced_while_clients_go_on_and_the_others_stay() {
    for via in ["direct", "relay"] {
        let dir = install_dir();
        app(dir.path(), "one", "");
        let daemon = daemon(dir.path(), "3", via, &["-n", "web"]);
        under_load(daemon.port, 10, || {
            for (words, wanted, says) in [
                (vec!["reload", "web/1"], vec![1], "reloaded slot 1 in "),
                (vec!["restart", "web/2"], vec![2], "restarted slot 2\n"),
                (vec!["reload", "web/2", "web/0"], vec![0, 2], "web: reloaded slot 0 in "),
                (vec!["restart", "web/0", "web/0"], vec![0], "restarted slot 0\n"),
            ] {
                let before = pids(&daemon);
                let (code, text) = ask(&daemon, &words);
                assert!(code == 0 && text.contains(says), "{via} {words:?}: {code} {text}");
                assert_eq!(changed(&before, &pids(&daemon)), wanted, "{via} {words:?}");
            }
        });
        assert_eq!(daemon.ls()["services"][0]["reloads"], 0, "{via}: those of the service are counted");
        // A successor that fails leaves the worker that was there.
        write_file(dir.path(), "app.js", "console.error('broken on purpose'); process.exit(3)");
        let before = pids(&daemon);
        let (code, text) = ask(&daemon, &["reload", "web/1"]);
        assert!(
            code == 1 && text.contains("slot 1: the successor ended") && text.contains("broken on purpose"),
            "{text}"
        );
        assert_eq!(pids(&daemon), before);
    }
}

#[test]
fn a_slot_is_reloaded_with_the_configuration_in_force() {
    let dir = install_dir();
    let file = |instances: u32, mode: &str| {
        let text = format!(
            "[service.job]\ncommand = [\"sleep\", \"1000\"]\nno-listen = true\nmin-uptime = \"100ms\"\ninstances = {instances}\nenv = {{ MODE = \"{mode}\" }}\n"
        );
        write_file(dir.path(), "roundsman.toml", &text)
    };
    let path = file(2, "old");
    let daemon = Daemon::launch(roundsman(), &["-c", path.to_str().unwrap()], 0);
    daemon.wait_online(2);
    file(3, "new");
    let (code, text) = ask(&daemon, &["reload", "job/1"]);
    assert!(code == 0 && text.contains("reloaded slot 1"), "{text}");
    let mode = |at: usize| {
        let pid = pids(&daemon)[at];
        String::from_utf8_lossy(&std::fs::read(format!("/proc/{pid}/environ")).unwrap()).contains("MODE=new")
    };
    assert_eq!((daemon.slots().len(), mode(1)), (2, false));
    assert_eq!(ask(&daemon, &["reload"]).0, 0);
    assert_eq!((daemon.slots().len(), mode(1)), (3, true));
}

#[test]
fn what_is_no_slot_is_refused_with_what_there_is() {
    let dir = install_dir();
    let daemon = sleepers(dir.path(), "2", "100ms");
    daemon.wait_online(2);
    let before = pids(&daemon);
    for verb in ["reload", "restart"] {
        for (place, code, says) in [
            ("job/2", 1, "job has no slot 2; it has slots 0 to 1"),
            ("job/", 2, "'' is not a slot of job: job/0"),
            ("job/x", 2, "'x' is not a slot of job: job/0"),
            ("job/-1", 2, "'-1' is not a slot of job: job/0"),
            ("job/99999999999", 2, "'99999999999' is not a slot of job"),
            ("job/1/2", 2, "'1/2' is not a slot of job"),
            ("nosuch/0", 1, "there is no service \"nosuch\"; here are job"),
            (
                "job@10.0.0.5:80",
                2,
                &format!("10.0.0.5:80 is an upstream: roundsman does not run it, and cannot {verb} it"),
            ),
        ] {
            let (found, text) = ask(&daemon, &[verb, place]);
            assert!(found == code && text.contains(says), "{verb} {place}: {found} {text}");
            // Of several targets with one that cannot be, none is touched, unless only the daemon knows.
            if code == 2 {
                assert_eq!(ask(&daemon, &[verb, "job/0", place]).0, 2);
            }
        }
    }
    assert_eq!(pids(&daemon), before);
    assert_eq!(ask(&daemon, &["stop"]).0, 0);
    for verb in ["reload", "restart"] {
        let (code, text) = ask(&daemon, &[verb, "job/0"]);
        assert!(code == 1 && text.contains("service is stopped; run `roundsman start` first"), "{text}");
    }
}

#[test]
fn verbs_at_the_same_time_get_an_answer_each() {
    let dir = install_dir();
    let daemon = sleepers(dir.path(), "2", "600ms");
    daemon.wait_online(2);
    let verbs = [
        (vec!["restart"], "restarting service=job\n", "restarted 4 slots\n"),
        (vec!["scale", "4"], "scaling service=job", "4 slots\n"),
        (vec!["restart", "job/0"], "restarting service=job slot=0", "restarted slot 0\n"),
        (vec!["restart", "job/1"], "restarting service=job slot=1", "restarted slot 1\n"),
    ];
    std::thread::scope(|scope| {
        for (words, begins, says) in &verbs {
            let daemon = &daemon;
            scope.spawn(move || assert_eq!(ask(daemon, words), (0, (*says).to_owned()), "{words:?}"));
            // Each begins while those before it are under way.
            daemon.wait_for(begins);
        }
    });
    // One that a stop ends says so, and the stop has its own answer.
    std::thread::scope(|scope| {
        let daemon = &daemon;
        scope.spawn(move || {
            let (code, text) = ask(daemon, &["restart", "job/3"]);
            assert!(code == 1 && text.contains("stopped before all workers were online"), "{text}");
        });
        eventually("it begins", seconds(10), || (daemon.slot(3, "state") != "online").then_some(()));
        assert_eq!(ask(daemon, &["stop"]), (0, "stopped 4 slots\n".to_owned()));
    });
}
