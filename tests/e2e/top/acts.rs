//! Mostly waits: keys act.

use super::{daemon, has, line, top};
use crate::support::install_dir;

#[test]
fn keys_reload_drain_scale_stop_and_show_logs() {
    let dir = install_dir();
    let daemon = daemon(dir.path(), 1);
    let mut screen = top(&daemon, (100, 30));
    screen.wait_for("web/1");
    // The first line is the service.
    screen.press("r");
    screen.wait_until("both are replaced", |text| {
        ["web/0", "web/1"].iter().all(|slot| line(text, slot).get(2).is_some_and(|generation| generation == "2"))
    });
    screen.wait_for("reload web: reloaded");
    screen.press("jr");
    screen.wait_until("one is replaced", |text| line(text, "web/0").get(2).is_some_and(|word| word == "3"));
    // Until then its service is not scaled.
    screen.wait_for("reload web/0: reloaded");
    screen.press("jd");
    screen.wait_until("drained", |text| line(text, "web/1").get(1).is_some_and(|word| word.starts_with("drain")));
    // The last one cannot be: the daemon's reason is shown.
    screen.press("kd");
    screen.wait_for("drain web/0: ");
    screen.press("jd");
    screen.wait_until("undrained", |text| line(text, "web/1").get(1).is_some_and(|word| word == "online"));
    screen.press("g+");
    screen.wait_until("three slots", |text| has(text, "web/2") && line(text, "web")[1] == "3/3");
    screen.press("-");
    screen.wait_for("scale web -1? (y/n)");
    screen.press("n");
    screen.wait_for("not done");
    screen.press("-y");
    screen.wait_until("two slots", |text| !has(text, "web/2") && line(text, "web")[1] == "2/2");
    screen.press("R");
    screen.wait_for("restart web? (y/n)");
    screen.press("y");
    screen.wait_until("restarted", |text| line(text, "web/1").get(2).is_some_and(|word| word == "3"));
    screen.wait_until("online", |text| line(text, "web").get(1).is_some_and(|word| word == "2/2"));
    screen.press("xy");
    screen.wait_until("stopped", |text| line(text, "web").get(1).is_some_and(|word| word == "stopped"));
    screen.press("x");
    screen.wait_until("started", |text| line(text, "web").get(1).is_some_and(|word| word == "2/2"));
    screen.press("l");
    let text = screen.wait_until("lines", |text| text.contains("following") && text.contains(" * "));
    assert!(text.contains("logs of web") && text.contains("worker online"), "{text}");
    screen.press("q");
    screen.wait_for("CONN/S");
    // An upstream.
    screen.press("/:1\r");
    let text = screen.wait_until("the upstream alone", |text| has(text, "@127.0.0.1:1") && !has(text, "web/0"));
    assert!(text.contains("proxy"), "{text}");
    screen.press("Gd");
    screen.wait_until("drained", |text| line(text, "@127.0.0.1:1").get(1).is_some_and(|word| word == "drained"));
    screen.press("r");
    screen.wait_for("is an upstream");
    screen.press("?");
    screen.wait_for("any key: back");
    screen.press(" q");
    assert!(screen.finish().success());
    screen.is_as_before();
    let state = daemon.ls();
    assert_eq!(state["services"][0]["slots"].as_array().unwrap().len(), 2);
    assert_eq!(state["services"][1]["upstreams"][1]["drain"], true);
}

#[test]
fn lines_are_sorted_and_filtered() {
    let dir = install_dir();
    let daemon = daemon(dir.path(), 40);
    let _busy = std::net::TcpStream::connect(("127.0.0.1", daemon.port)).unwrap();
    let mut screen = top(&daemon, (80, 24));
    screen.wait_for("web/1");
    assert!(!has(&screen.text(), "job/39"));
    screen.press("/job/39\r");
    screen.wait_until("one slot", |text| has(text, "job/39") && !has(text, "web/0"));
    screen.press("\u{1b}");
    screen.wait_until("all of it", |text| has(text, "web/1"));
    screen.press("/nothing-like-that\r");
    screen.wait_for("nothing matches");
    screen.press("\u{1b}");
    screen.wait_until("all of it", |text| has(text, "web/1"));
    screen.press("ssss");
    screen.wait_for("s CPU");
    screen.press("s");
    screen.wait_for("s MEM");
    screen.press("q");
    assert!(screen.finish().success());
}
