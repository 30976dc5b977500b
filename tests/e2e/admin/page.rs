//! Mostly waits: the page in a real browser.

use std::os::unix::fs::PermissionsExt;

use nix::sys::signal::Signal;
use serde_json::json;

use super::streams::daemon;
use crate::support::{Browser, Key, get};

/// Makes the page show a made-up daemon.
pub const SCENARIOS: &str = include_str!("scenarios.js");

/// Opens the page with a made-up daemon, once it is shown.
pub fn show(browser: &mut Browser, admin: u16, scenario: &str) {
    browser.before_each_page(&format!("window.SCENARIO = {};{SCENARIOS}", json!(scenario)));
    browser.open(&format!("http://127.0.0.1:{admin}/"));
    browser.wait("document.querySelector('#live').textContent.startsWith('live')");
}

#[test]
fn it_shows_the_daemon_as_it_changes_and_acts_with_the_token() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("token");
    std::fs::write(&path, "correct-horse-battery\n").unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    let (daemon, admin) = daemon(&["--admin-token-file", path.to_str().unwrap()]);
    let mut browser = Browser::start();
    browser.open(&format!("http://127.0.0.1:{admin}/"));
    browser.wait("document.querySelectorAll('#services tbody tr').length == 2");
    assert_eq!(browser.text("#services h2"), "shop");
    assert_eq!(browser.text("#services .pill"), "2 of 2 online");
    assert!(browser.text(".about").contains("demo-server"), "{}", browser.text(".about"));
    assert!(browser.text("#events").contains("worker online"));
    // Live: what is served shows, and so does a crash, with what to do.
    for _ in 0..10 {
        get(daemon.port).unwrap();
    }
    let served = "[...document.querySelectorAll('#services tbody tr')].reduce((sum, row) => sum + +row.children[9].textContent, 0)";
    browser.wait(&format!("{served} == 10"));
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(daemon.workers()[1]), Signal::SIGKILL).unwrap();
    browser.wait("document.querySelector('#findings').innerText.includes('shop/1 was restarted')");
    assert!(browser.text("#findings").contains("roundsman logs shop/1"), "{}", browser.text("#findings"));
    // By keyboard: a press on Reload asks for the token; a wrong one is said to be.
    let enter = Key("Enter", 13);
    let reload = "[...document.querySelectorAll('.head button')].find((button) => button.textContent == 'Reload')";
    browser.wait(&format!("({reload}.focus(), document.activeElement == {reload})"));
    browser.press(enter);
    let insert = |browser: &mut Browser, text: &str| {
        browser.wait("document.activeElement?.id == 'given'");
        browser.call("Input.insertText", json!({"text": text}));
        browser.press(enter);
    };
    insert(&mut browser, "wrong-horse-battery");
    browser.wait("/wrong token|not the token/.test(document.querySelector('#said').textContent)");
    browser.wait("document.querySelector('#unlock').textContent == 'Enter token'");
    browser.click("#unlock");
    insert(&mut browser, "correct-horse-battery");
    browser.wait("feed.mayAct");
    browser.js(&format!("{reload}.click()"));
    browser.wait("document.querySelector('#said').textContent.includes('reloaded')");
    browser.wait("document.querySelector('#services tbody tr').children[11].textContent == '2'");
    assert_eq!(daemon.slot(0, "generation"), 2);
    // Nothing is asked of anyone else, and nothing is kept.
    let own = format!("http://127.0.0.1:{admin}/");
    let requests = browser.requests();
    let elsewhere = requests.iter().filter(|url| !url.starts_with(&own) && !url.starts_with("data:"));
    assert_eq!(elsewhere.count(), 0, "{requests:?}");
    assert!(requests.iter().all(|url| !url.contains("battery")), "{requests:?}");
    assert_eq!(browser.js("document.cookie + localStorage.length + sessionStorage.length"), "00");
    // The wrong token's two answers are the only failed loads.
    let complaints = browser.complaints();
    assert!(complaints.iter().all(|line| line.contains("401")), "{complaints:?}");
    // The daemon's end shows, too.
    daemon.signal(Signal::SIGKILL);
    browser.wait("document.querySelector('#verdict-title').textContent.startsWith('No connection to the daemon')");
}

#[test]
fn it_shows_no_slots_one_eight_and_sixty_four_bright_dark_and_narrow() {
    let (_daemon, admin) = daemon(&[]);
    let mut browser = Browser::start();
    for (scenario, slots, verdict) in [
        ("nothing", 0, "1 thing is wrong"),
        ("one", 1, "Nothing is wrong"),
        ("eight", 8, "3 things are wrong"),
        ("sixty-four", 64, "2 things are wrong"),
        ("trouble", 3, "4 things are wrong"),
    ] {
        show(&mut browser, admin, scenario);
        assert_eq!(browser.text("#verdict-title"), verdict, "{scenario}");
        let rows = "document.querySelectorAll('#services section')[0].querySelector('.slots tbody').children.length";
        assert_eq!(browser.js(rows), slots, "{scenario}");
        for (width, dark) in [(1280, false), (1280, true), (360, false)] {
            browser.look(width, dark);
            assert_eq!(browser.js("document.documentElement.scrollWidth"), width, "{scenario}: nothing is cut off");
            let ground = browser.js("getComputedStyle(document.body).backgroundColor");
            assert_eq!(ground == "rgb(16, 18, 22)", dark, "{scenario}: {ground}");
        }
    }
    assert_eq!(browser.complaints(), [""; 0]);
    // What is wrong, which worker is slow, since when, what was last, and what to do.
    show(&mut browser, admin, "eight");
    let said = browser.text("#verdict");
    for words in [
        "shop/5 exited 2 times in 5 minutes and was started again: exit code 1 · since 15:08:55",
        "shop/3 is slow: connections wait 134 ms for it (p99)",
        "since 15:03:41",
        "mail upstream 10.0.0.6:25 is down: Connection refused · since 15:07:52",
        "roundsman reload shop/3",
        "Last event: 15:09:14 shop/5 server exited",
    ] {
        assert!(said.contains(words), "{words}: {said}");
    }
    // A moment in which it is not slow is not the end of that; a while is.
    let since = "slotSince('shop', 3, slow)";
    let before = browser.js(since).as_u64().unwrap();
    let quick = "(back) => back.forEach((n) => { const { slots } = feed.columns.at(-n).services.find((one) => one.name == 'shop'); slots[3] = slots[4] })";
    browser.js(&format!("({quick})([2, 3])"));
    assert_eq!(browser.js(since), before);
    browser.js(&format!("({quick})([2, 3, 4, 5])"));
    assert!(browser.js(since).as_u64().unwrap() > before);
    show(&mut browser, admin, "trouble");
    let said = browser.text("main");
    for words in [
        "shop/2 exited 4 times in 5 minutes and was started again: killed by SIGSEGV · since 15:08:21",
        "mail its server is down and starts again soon: exit code 70 · since 15:09:26",
        "shop 31 clients wait for a worker, the first of them for 4.2 s · since 15:09:2",
        "roundsman scale +1 shop",
        "shop accepts no client at the moment: --max-conns is reached",
        "shop/1 is drained: it gets no new connections",
        "mail upstream 10.0.0.5:25 is drained",
        "roundsman undrain mail@10.0.0.5:25",
        "workers serve for 2 h or for 50\u{202f}000 connections, recycled: 12 by age, 340 by connections",
        "online, weight 4",
        "up, weight 3",
    ] {
        assert!(said.contains(words), "{words}: {said}");
    }
    // An upstream is chosen, drained and weighed as a slot is; the made-up daemon takes any token.
    browser.js(
        "[...document.querySelectorAll('tbody th button')].find((one) => one.textContent == '10.0.0.6:25').click()",
    );
    browser.wait("document.querySelectorAll('.chosen')[1].innerText.startsWith('10.0.0.6:25')");
    browser.js("token = 'correct-horse-battery'");
    let press = "(text) => [...document.querySelectorAll('.chosen button')].filter((one) => one.textContent == text).at(-1).click()";
    browser.js(&format!("({press})('Drain')"));
    browser.js(&format!("({press})('Weight')"));
    browser.wait("document.activeElement?.id == 'given' && document.querySelector('#given').value == '3'");
    browser.js("document.querySelector('#given').value = '7'");
    browser.press(Key("Enter", 13));
    browser.wait("asked.filter((one) => one[0] == 'control').length == 2");
    assert_eq!(
        browser.js("asked.filter((one) => one[0] == 'control').map((one) => one[2]).join()"),
        r#"{"cmd":"drain","service":"mail","upstream":"10.0.0.6:25"},{"cmd":"weight","service":"mail","upstream":"10.0.0.6:25","weight":7}"#
    );
    show(&mut browser, admin, "eight");
    // Sorted by a press on a heading, and chosen by a press on a slot, with the same elements and focus.
    let slots =
        "[...document.querySelectorAll('.slots tbody')[0].children].map((row) => row.firstChild.textContent).join()";
    browser.js("document.querySelector('[data-key=p99] button').focus()");
    browser.press(Key("Enter", 13));
    assert!(browser.js(slots).as_str().unwrap().starts_with("3,"), "{}", browser.js(slots));
    assert_eq!(browser.js("document.querySelector('[data-key=p99]').getAttribute('aria-sort')"), "descending");
    browser.js("document.querySelector('.slots tbody th button').click()");
    browser.wait("document.querySelector('.slots tr.picked th').textContent == '3'");
    assert!(browser.text(".chosen").contains("roundsman logs shop/3"));
    // A plot is read by keyboard.
    browser.js("document.querySelectorAll('.plot')[1].focus()");
    for _ in 0..20 {
        browser.press(Key("ArrowLeft", 37));
    }
    let label = browser.js("document.querySelectorAll('.plot')[1].getAttribute('aria-label')");
    assert!(label.as_str().unwrap().starts_with("Wait for a worker (p99) at 15:0"), "{label}");
}

/// As the browser gives it to screen readers.
#[test]
fn whoever_hears_it_hears_what_each_part_is() {
    let (_daemon, admin) = daemon(&[]);
    let mut browser = Browser::start();
    show(&mut browser, admin, "trouble");
    let tree = browser.call("Accessibility.getFullAXTree", json!({}));
    let nodes = tree["nodes"].as_array().unwrap().iter().filter(|node| node["ignored"] == false);
    let nodes: Vec<_> = nodes.map(|node| (&node["role"]["value"], &node["name"]["value"])).collect();
    let named = |role: &str| {
        let names: Vec<&str> =
            nodes.iter().filter(|(of, _)| *of == role).map(|(_, name)| name.as_str().unwrap_or_default()).collect();
        assert!(!names.is_empty() && names.iter().all(|name| !name.trim().is_empty()), "{role}: {names:?}");
        names
    };
    for role in ["button", "region", "group", "columnheader", "rowheader", "heading"] {
        named(role);
    }
    assert!(named("heading").contains(&"4 things are wrong"));
    assert!(named("columnheader").iter().any(|name| name.starts_with("Wait p99")));
    let plots = named("group");
    assert!(plots.iter().any(|name| name.starts_with("Connections a second now ")), "{plots:?}");
    // What changes by itself is said, and what a press led to.
    let live = "['#verdict-title', '#said'].map((one) => document.querySelector(one)).map((one) => one.ariaLive || one.role).join()";
    assert_eq!(browser.js(live), "polite,status");
    assert_eq!(browser.js("document.documentElement.lang"), "en");
}

#[test]
fn names_and_texts_are_never_markup() {
    let (_daemon, admin) = daemon(&[]);
    let mut browser = Browser::start();
    show(&mut browser, admin, "markup");
    assert_eq!(browser.text("#services h2"), "<script>window.hacked=1</script>");
    let said = browser.text("main");
    assert!(said.contains("<img src=x onerror=\"window.hacked=1\"><b>fett</b> & \"日本\" \u{fffd}rtl"), "{said}");
    let found =
        browser.js("[window.hacked, document.images.length, document.querySelectorAll('main script').length].join()");
    assert_eq!(found, ",0,0");
    // However long they are, nothing is cut off and what is below is found.
    for width in [1280, 360] {
        browser.look(width, false);
        assert_eq!(browser.js("document.documentElement.scrollWidth"), width);
        assert!(browser.js("document.documentElement.scrollHeight").as_u64().unwrap() < 4000);
    }
    // And no script of a name would run.
    let ran = "(() => { const node = document.createElement('script'); node.textContent = 'window.hacked = 2'; document.body.append(node); return window.hacked; })()";
    assert_eq!(browser.js(ran), serde_json::Value::Null);
}
