//! Frames of many sizes and states.

use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::crossterm::event::{KeyCode, KeyEvent};
use ratatui::layout::Rect;
use ratatui::style::Color;
use serde_json::{Value, json};

use super::*;
use crate::cli::top::keys::{KEYS, Wish, press};
use crate::cli::top::rows::rows;
use crate::cli::top::screen::{LineKind, LogLine, Logs};
use crate::cli::top::seen::{Happened, MAX_EVENTS};
use crate::control::Request;
use crate::control::status::Daemon;

fn slot(at: usize, connections: u64) -> Value {
    let state = ["online", "launching", "errored", "waiting", "gone"][if at < 40 { 0 } else { at % 5 }];
    json!({"slot": at, "state": state, "pid": 4_194_000 + at, "server_pid": null, "generation": 3, "restarts": at % 3,
        "uptime_s": 90_000, "open": 33 + at, "pending": 2, "connections": connections, "rescued": 0,
        "rss_bytes": 123 << 20, "cpu": 12.34, "reason": (at >= 40).then_some("it does not listen"),
        "last_exit": (!at.is_multiple_of(3)).then_some("signal 11"), "handoff_waits": [connections, 0, 0, 0, 0, connections / 50]})
}

fn service(name: &str, slots: usize, upstreams: usize, connections: u64) -> Value {
    let upstream = |at: usize| {
        json!({"addr": format!("10.0.0.{at}:6379"), "state": if at.is_multiple_of(2) { "up" } else { "down" }, "open": 5,
            "connections": connections, "bytes_in": 1 << 30, "bytes_out": 1, "errors": at, "last_error": "refused",
            "last_error_s": 7, "weight": 2, "backup": at > 2})
    };
    json!({"name": name, "command": "node app.js", "policy": "rr", "via": "direct", "via_reason": "no port",
        "listen": [{"addr": "0.0.0.0:8080", "from": "flag", "workers": slots}], "held": 4, "shed": 1,
        "slots": (0..slots).map(|at| slot(at, connections)).collect::<Vec<_>>(),
        "upstreams": (0..upstreams).map(upstream).collect::<Vec<_>>()})
}

fn daemon(services: &[Value]) -> Daemon {
    serde_json::from_value(json!({"version": "1", "pid": 7, "uptime_s": 9, "services": services})).unwrap()
}

/// Three seconds of a daemon, each with 50 connections more a slot.
fn seen(of: impl Fn(u64) -> Vec<Value>) -> Seen {
    let (mut seen, start) = (Seen::default(), Instant::now());
    for second in 0..3 {
        let answers = vec![(PathBuf::from("/run/web.sock"), Ok(daemon(&of(1000 + second * 50))))];
        seen.update(answers, start + Duration::from_secs(second), SystemTime::now());
    }
    seen
}

fn frame(seen: &Seen, screen: &mut Screen, size: (u16, u16), colours: bool) -> (Vec<String>, Vec<Color>) {
    let page = Areas::of(Rect::new(0, 0, size.0, size.1), seen).page();
    let rows = rows(seen, None, screen.sort, &screen.filter);
    screen.settle(&rows, page);
    let view = View { seen, rows: &rows, screen, theme: Theme { colours }, clock: "12:34:56" };
    let mut terminal = Terminal::new(TestBackend::new(size.0, size.1)).unwrap();
    terminal.draw(|frame| draw(frame, &view)).unwrap();
    let buffer = terminal.backend().buffer();
    let line = |y: u16| (0..size.0).map(|x| buffer[(x, y)].symbol()).collect::<String>().trim_end().to_owned();
    ((0..size.1).map(line).collect(), buffer.content().iter().flat_map(|cell| [cell.fg, cell.bg]).collect())
}

fn shown(seen: &Seen, screen: &mut Screen, size: (u16, u16)) -> Vec<String> {
    frame(seen, screen, size, true).0
}

fn find<'a>(lines: &'a [String], text: &str) -> &'a str {
    lines.iter().find(|line| line.contains(text)).unwrap_or_else(|| panic!("{text} is not in\n{}", lines.join("\n")))
}

fn type_keys(seen: &Seen, screen: &mut Screen, keys: &[KeyCode]) -> Vec<Wish> {
    let press_one = |&code: &KeyCode| {
        let rows = rows(seen, None, screen.sort, &screen.filter);
        screen.settle(&rows, 10);
        press(screen, &rows, KeyEvent::from(code), 10)
    };
    keys.iter().map(press_one).collect()
}

const fn c(letter: char) -> KeyCode {
    KeyCode::Char(letter)
}

#[test]
fn at_80_columns_every_number_is_there() {
    let seen = seen(|n| vec![service("web", 2, 1, n)]);
    let lines = shown(&seen, &mut Screen::default(), (80, 24));
    let titles = find(&lines, "STATE");
    for title in ["NAME", "GEN", "OPEN", "PEND", "WAIT", "CONN/S", "P50", "P99", "CPU", "MEM", "RST", "UP"] {
        assert!(titles.split_whitespace().any(|word| word == title), "{title}: {titles}");
    }
    let words: Vec<_> = find(&lines, " web/1 ").split_whitespace().collect();
    let wanted = ["web/1", "online", "3", "34", "2", "50", "8µs", "262µs", "12%", "123M", "1", "1d1h"];
    assert_eq!(words[..12], wanted);
    let words: Vec<_> = find(&lines, "web  ").split_whitespace().collect();
    assert_eq!(words[..9], ["web", "2/2", "67", "4", "4", "100", "8µs", "262µs", "25%"]);
    assert!(find(&lines, "@10.0.0.0").contains("up"));
    assert!(lines[0].starts_with("roundsman 1 service, 2 of 2 slots online, 100/s, 67 open"), "{}", lines[0]);
    assert!(lines[0].ends_with("12:34:56"));
    assert!(lines[2].starts_with("conn/s 100") && lines[2].contains("wait p99 262µs"), "{}", lines[2]);
    assert!(find(&lines, "4 clients waiting").starts_with("web:"));
    assert!(lines[23].contains("q quit") && lines[23].contains("? help"), "{}", lines[23]);
}

#[test]
fn a_wide_terminal_says_why() {
    let seen = seen(|n| vec![service("web", 64, 4, n)]);
    let lines = shown(&seen, &mut Screen::default(), (200, 60));
    assert!(find(&lines, " web/1 ").contains("last exit: signal 11"));
    let mut end = Screen::default();
    type_keys(&seen, &mut end, &[KeyCode::End]);
    let lines = shown(&seen, &mut end, (200, 60));
    assert!(find(&lines, "@10.0.0.3").contains("weight 2; backup; refused (7s ago)"));
    assert!(find(&lines, " web/43 ").contains("it does not listen"));
}

#[test]
fn every_size_state_and_mode_can_be_drawn() {
    let names = ["web", "", "日本語のサービス", "a\u{1b}[31mb\nc\u{202e}d", "👩‍👩‍👧‍👦👩‍👩‍👧‍👦👩‍👩‍👧‍👦", &"n".repeat(300)];
    for (services, slots) in [(0, 0), (1, 0), (1, 1), (6, 8), (1, 64), (1, 256)] {
        let seen = seen(|n| (0..services).map(|at| service(names[at % 6], slots, slots.min(5), n)).collect());
        let mut logs = Logs::new(1, "a\u{1b}b".to_owned());
        for at in 0..100 {
            let text = format!("{at} \u{1b}[2J \t {}", "日本語".repeat(at % 40));
            logs.push(LogLine { origin: "web\u{7}/1".to_owned(), kind: LineKind::Err, text });
        }
        let mut screens =
            [Mode::Table, Mode::Help, Mode::Filter, Mode::Logs(logs)].map(|mode| Screen { mode, ..Screen::default() });
        screens[0].say("x".repeat(500), true);
        for size in [(0, 0), (1, 1), (3, 2), (20, 5), (20, 200), (79, 13), (80, 24), (200, 60), (500, 3)] {
            for screen in &mut screens {
                for line in shown(&seen, screen, size) {
                    assert!(!line.chars().any(char::is_control), "{line:?}");
                    assert!(!line.contains('\u{202e}'), "{line:?}");
                }
            }
        }
    }
}

#[test]
fn without_colours_none_is_used() {
    let seen = seen(|n| vec![service("web", 64, 4, n)]);
    let plain = |(_, colours): &(Vec<String>, Vec<Color>)| colours.iter().all(|colour| *colour == Color::Reset);
    assert!(!plain(&frame(&seen, &mut Screen::default(), (200, 60), true)));
    for mode in [Mode::Table, Mode::Help, Mode::Filter, Mode::Logs(Logs::new(1, "web".to_owned()))] {
        let mut screen = Screen { mode, ..Screen::default() };
        screen.say("failed", true);
        assert!(plain(&frame(&seen, &mut screen, (200, 60), false)));
    }
}

#[test]
fn many_slots_scroll_and_the_selected_one_stays_in_sight() {
    let seen = seen(|n| vec![service("web", 256, 0, n)]);
    let mut screen = Screen::default();
    let mut seen_slots = std::collections::BTreeSet::new();
    for _ in 0..257 {
        let lines = shown(&seen, &mut screen, (80, 24));
        let label = match screen.at {
            0 => "web ".to_owned(),
            at => format!(" web/{} ", at - 1),
        };
        find(&lines, &label);
        seen_slots.insert(screen.at);
        type_keys(&seen, &mut screen, &[KeyCode::Down]);
    }
    assert_eq!(seen_slots.len(), 257);
    type_keys(&seen, &mut screen, &[KeyCode::Home]);
    find(&shown(&seen, &mut screen, (80, 24)), " web/0 ");
    type_keys(&seen, &mut screen, &[KeyCode::PageDown, KeyCode::PageDown]);
    assert_eq!(screen.at, 20);
}

#[test]
fn the_selection_stays_on_its_line_and_moves_to_a_neighbour_of_one_that_is_gone() {
    let (four, two) = (seen(|n| vec![service("web", 4, 0, n)]), seen(|n| vec![service("web", 2, 0, n)]));
    let mut screen = Screen::default();
    type_keys(&four, &mut screen, &[c('s'), c('s'), KeyCode::Home, KeyCode::Down]);
    // By open connections: the last slot has most.
    assert_eq!(screen.selected.as_ref().unwrap().part, crate::cli::place::Part::Slot(3));
    screen.sort = Sort::Name;
    shown(&four, &mut screen, (80, 24));
    assert_eq!(screen.at, 4);
    shown(&two, &mut screen, (80, 24));
    assert_eq!((screen.at, screen.selected.unwrap().part), (2, crate::cli::place::Part::Slot(1)));
}

#[test]
fn a_filter_shows_what_matches_with_its_service() {
    let seen = seen(|n| vec![service("web", 50, 2, n), service("api", 2, 0, n)]);
    let mut screen = Screen::default();
    type_keys(&seen, &mut screen, &[c('/'), c('E'), c('R'), c('R'), c('x'), KeyCode::Backspace]);
    assert!(find(&shown(&seen, &mut screen, (80, 24)), "filter: ERR").contains("Esc"));
    type_keys(&seen, &mut screen, &[KeyCode::Enter]);
    let lines = shown(&seen, &mut screen, (80, 24));
    find(&lines, " web/42 ");
    find(&lines, " web/47 ");
    assert!(!lines.iter().any(|line| line.contains(" web/41 ") || line.starts_with("api ")), "{lines:?}");
    type_keys(&seen, &mut screen, &[KeyCode::Esc]);
    type_keys(&seen, &mut screen, &[c('/'), c('a'), c('p'), c('i'), KeyCode::Enter]);
    let lines = shown(&seen, &mut screen, (80, 24));
    find(&lines, " api/1 ");
    type_keys(&seen, &mut screen, &[c('/'), c('!'), KeyCode::Enter]);
    find(&shown(&seen, &mut screen, (80, 24)), "nothing matches");
}

#[test]
fn keys_become_requests_and_those_that_hurt_ask_first() {
    let seen = seen(|n| vec![service("web", 2, 1, n)]);
    let mut screen = Screen::default();
    let request = |wish: &Wish| match wish {
        Wish::Order(order) => serde_json::to_value(&order.request).unwrap(),
        other => panic!("{other:?}"),
    };
    let web = Some("web".to_owned());
    let value = |request: Request| serde_json::to_value(request).unwrap();
    let wishes = type_keys(&seen, &mut screen, &[c('r'), KeyCode::Down, c('r'), c('d'), c('+')]);
    assert_eq!(request(&wishes[0]), value(Request::Reload { service: web.clone(), slot: None }));
    assert_eq!(request(&wishes[2]), value(Request::Reload { service: web.clone(), slot: Some(0) }));
    let drain = Request::Drain { service: web.clone(), slot: Some(0), upstream: None, force: false };
    assert_eq!(request(&wishes[3]), value(drain));
    assert_eq!(request(&wishes[4])["to"], json!({"by": 1}));
    for (letter, cmd) in [('R', "restart"), ('x', "stop"), ('-', "scale")] {
        assert_eq!(type_keys(&seen, &mut screen, &[c(letter), c('o'), c('n')]), [Wish::None, Wish::None, Wish::None]);
        let lines = shown(&seen, &mut screen, (80, 24));
        assert!(find(&lines, "not done").contains(cmd));
        let wishes = type_keys(&seen, &mut screen, &[c(letter)]);
        assert!(find(&shown(&seen, &mut screen, (80, 24)), "? (y/n)").starts_with(cmd));
        assert_eq!(wishes, [Wish::None]);
        assert_eq!(request(&type_keys(&seen, &mut screen, &[c('y')])[0])["cmd"], cmd);
    }
    // What cannot be done says so.
    for (letter, why) in [('r', "is an upstream"), ('R', "is an upstream")] {
        type_keys(&seen, &mut screen, &[KeyCode::End, c(letter)]);
        find(&shown(&seen, &mut screen, (80, 24)), why);
    }
    type_keys(&seen, &mut screen, &[KeyCode::Home, c('d')]);
    find(&shown(&seen, &mut screen, (80, 24)), "select a slot or an upstream");
    let wishes = type_keys(&seen, &mut screen, &[KeyCode::End, c('d'), c('?'), c('q'), c('q')]);
    assert_eq!(request(&wishes[1])["upstream"], json!("10.0.0.0:6379"));
    // The first q ends the help.
    assert_eq!(wishes[2..], [Wish::None, Wish::None, Wish::Quit]);
}

#[test]
fn a_daemon_that_does_not_answer_is_named_and_its_numbers_stay() {
    let mut seen = seen(|n| vec![service("web", 2, 0, n)]);
    let refused = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
    let mut screen = Screen::default();
    seen.update(vec![(PathBuf::from("/run/web.sock"), Err(refused))], Instant::now(), SystemTime::now());
    let lines = shown(&seen, &mut screen, (100, 24));
    assert!(lines[0].contains("no daemon answers"), "{}", lines[0]);
    assert!(find(&lines, "daemon web (pid 7) does not answer since").contains("asked every second"));
    find(&lines, " web/1 ");
    // It is back, as another process: no rates from before.
    let mut back = daemon(&[service("web", 2, 0, 5)]);
    back.pid = 8;
    seen.update(vec![(PathBuf::from("/run/web.sock"), Ok(back))], Instant::now(), SystemTime::now());
    let lines = shown(&seen, &mut screen, (100, 24));
    assert!(lines[0].contains("0/s") && !lines[0].contains("no daemon"), "{}", lines[0]);
    seen.update(Vec::new(), Instant::now(), SystemTime::now());
    find(&shown(&seen, &mut screen, (100, 24)), "it has ended");
}

#[test]
fn the_latest_events_are_shown_in_the_order_of_their_times() {
    let mut seen = seen(|n| vec![service("web", 2, 0, n)]);
    let start = SystemTime::now();
    for at in (0..400).rev() {
        let text = format!("event {at}\u{1b}[2J");
        seen.happened(Happened {
            at: start + Duration::from_secs(at),
            bad: at.is_multiple_of(2),
            place: "web/1".to_owned(),
            text: text.clone(),
        });
    }
    assert_eq!(seen.events.len(), MAX_EVENTS);
    let lines = shown(&seen, &mut Screen::default(), (80, 24));
    let heading = lines.iter().position(|line| line.starts_with("─ events")).unwrap();
    assert!(lines[heading + 3].contains("web/1 event 399") && lines[heading + 1].contains("event 397"), "{lines:?}");
    find(&shown(&seen, &mut Screen::default(), (200, 60)), "event 391");
    assert!(!shown(&seen, &mut Screen::default(), (80, 12)).iter().any(|line| line.contains("event")));
}

#[test]
fn the_help_fits_24_lines() {
    let seen = Seen::default();
    let mut screen = Screen { mode: Mode::Help, ..Screen::default() };
    let lines = shown(&seen, &mut screen, (80, 24));
    for words in KEYS.iter().chain(&overlays::COLUMNS) {
        find(&lines, words.1);
    }
    find(&lines, "any key: back");
}

#[test]
fn plots_cover_everything_since_the_start() {
    let (mut seen, start) = (Seen::default(), Instant::now());
    for second in 0..600 {
        let connections = if second < 300 { 0 } else { (second - 300) * 100 };
        let state = daemon(&[service("web", 1, 0, connections)]);
        let answers = vec![(PathBuf::from("/run/web.sock"), Ok(state))];
        seen.update(answers, start + Duration::from_secs(second), SystemTime::now());
    }
    let lines = shown(&seen, &mut Screen::default(), (80, 24));
    assert!(lines[1].contains("web, last 9m59s"), "{}", lines[1]);
    // Nothing in the first half, then 100 a second.
    let bars: String = lines[4 - 1].chars().take(14).collect();
    assert!(bars.contains('█') && bars.starts_with("    "), "{lines:?}");
}
