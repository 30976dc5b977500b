//! Every width, few and many services and slots, with and without trouble.

use super::super::table::columns_of;
use super::*;

fn slot(slot: usize, state: &str, reason: Option<&str>) -> SlotState {
    let json = serde_json::json!({
        "slot": slot, "state": state, "pid": 4_194_303, "server_pid": 4_194_304, "generation": 3, "restarts": 123,
        "uptime_s": 86_400 * 200 + 7 * 3600, "open": 9_999, "pending": 64, "connections": 1_234_567_890_u64,
        "rescued": 12_345, "rss_bytes": 987_u64 << 20, "cpu": 123.4, "reason": reason, "last_exit": "exit code 1",
    });
    serde_json::from_value(json).unwrap()
}

fn service(name: &str, slots: Vec<SlotState>) -> ServiceState {
    let json = serde_json::json!({
        "name": name, "command": "node サーバー.js --title '日本語' \u{1b}[31m", "policy": "rr", "via": "relay",
        "via_reason": "asked for", "listen": [{"addr": "[2001:db8::1]:65535", "from": "flag", "workers": 2}],
        "held": 3, "shed": 1, "slots": slots, "limits": LimitsState::default(),
    });
    serde_json::from_value(json).unwrap()
}

fn daemon(services: Vec<ServiceState>) -> Daemon {
    Daemon { version: "0.1.0".to_owned(), pid: 7, uptime_s: 90_061, stopping: false, services }
}

fn plain(text: &str) -> Vec<String> {
    anstream::adapter::strip_str(text).to_string().lines().map(str::to_owned).collect()
}

#[test]
fn no_line_is_wider_than_the_terminal() {
    let reason = "server: exit code 1: 日本語 and more words than a narrow terminal has columns for";
    let sizes = [(1, 1), (1, 64), (5, 3)];
    for (services, slots) in sizes {
        let slots: Vec<_> =
            (0..slots).map(|at| slot(at, if at % 2 == 0 { "online" } else { "errored" }, Some(reason))).collect();
        let services = (0..services).map(|at| service(&format!("a-rather-long-service-name-{at}"), slots.clone()));
        let daemon = daemon(services.collect());
        for width in [10, 20, 40, 60, 79, 80, 81, 120, 200] {
            for line in plain(&overview(std::slice::from_ref(&daemon), Some(width))) {
                assert!(columns_of(&line) <= width, "{width}: {line:?}");
            }
            // Values have at least a few columns of their own.
            for line in plain(&detail(&daemon, &daemon.services[0], Some(width.max(24)))) {
                assert!(columns_of(&line) <= width.max(24), "{width}: {line:?}");
            }
        }
    }
}

#[test]
fn a_pipe_gets_every_column_and_services_are_named_once() {
    let services = ["web", "api"].map(|name| service(name, vec![slot(0, "online", None), slot(1, "online", None)]));
    let lines = plain(&overview(&[daemon(services.into())], None));
    let titles: Vec<_> = lines[0].split_whitespace().collect();
    assert_eq!(titles, SLOTS.map(|column| column.title));
    let first: Vec<_> = lines.iter().map(|line| line.split_whitespace().next().unwrap()).collect();
    assert_eq!(first, ["SERVICE", "web", "1", "api", "1", "web:", "api:"]);
    let at = lines[0].find("STATE").unwrap();
    assert!(lines[1..5].iter().all(|line| line[at..].starts_with("online")), "{lines:#?}");
}

#[test]
fn what_matters_most_is_left_on_a_narrow_terminal() {
    let titles = |width| {
        let slots = vec![slot(0, "online", None)];
        let lines = plain(&overview(&[daemon(vec![service("shop", slots)])], Some(width)));
        lines[0].split_whitespace().map(str::to_owned).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(titles(200), "SERVICE SLOT STATE PID CPU MEM UPTIME RESTARTS OPEN PEND CONNS VIA LISTEN");
    assert_eq!(titles(80), "SERVICE SLOT STATE PID CPU MEM UPTIME RESTARTS OPEN CONNS");
    assert_eq!(titles(40), "SERVICE SLOT STATE PID CPU");
    assert_eq!(titles(20), "SERVI… SLOT STATE");
}

#[test]
fn slots_with_the_same_reason_share_a_line_and_control_characters_do_nothing() {
    let reason = Some("server: exit code 1\u{1b}[2J");
    let slots = (0..64).map(|at| slot(at, "errored", if at == 5 { Some("other") } else { reason })).collect();
    let daemon = daemon(vec![service("shop", slots)]);
    let text = overview(std::slice::from_ref(&daemon), None);
    assert!(!text.contains("\u{1b}[2J"), "{text:?}");
    let lines = plain(&text);
    assert_eq!(lines[65..67], ["shop slot 0 and 62 more: server: exit code 1\u{fffd}[2J", "shop slot 5: other"]);
    assert!(!detail(&daemon, &daemon.services[0], None).contains("\u{1b}[31m'"));
}

#[test]
fn sizes_have_the_unit_that_fits() {
    let sizes = [0, 1023, 1024, 1_536, 5 << 20, 3 << 30, 2_000 << 30].map(size);
    assert_eq!(sizes, ["0B", "1023B", "1.0K", "1.5K", "5.0M", "3.0G", "2000.0G"]);
}
