//! Static programs behind a keeper, with the rights that containers leave them: served directly, or relayed with the reason.

use std::path::Path;

use serde_json::Value;

use crate::podman::{Container, DEBIAN, Network};
use crate::support::{eventually, seconds, static_servers};

/// Where the program under test and the static server are in the container.
const PROGRAM: &str = "/roundsman";
const SERVER: &str = "/server";
const URL: &str = "http://127.0.0.1:8080/";

/// What comes of a set of rights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expected {
    Direct,
    /// On listening sockets of the keeper's.
    WithoutOptions,
    /// And for what reason.
    Relay(&'static str),
}

/// How a container is run, and what roundsman is asked for in it.
struct Rights<'a> {
    options: &'a [&'a str],
    arguments: &'a [&'a str],
    /// The servers' user.
    uid: u32,
    expected: Expected,
}

/// podman's own rules without these system calls, as a file.
fn profile(dir: &Path, refused: &[&str]) -> String {
    let text = std::fs::read_to_string("/usr/share/containers/seccomp.json").unwrap();
    let mut rules: Value = serde_json::from_str(&text).unwrap();
    let groups = rules["syscalls"].as_array_mut().unwrap();
    for group in groups.iter_mut() {
        group["names"].as_array_mut().unwrap().retain(|name| !refused.contains(&name.as_str().unwrap()));
    }
    groups.retain(|group| group["names"].as_array().is_some_and(|names| !names.is_empty()));
    // EPERM, as Docker has it.
    groups.push(serde_json::json!({"names": refused, "action": "SCMP_ACT_ERRNO", "errnoRet": 1}));
    let file = dir.join(format!("without-{}.json", refused.join("-")));
    std::fs::write(&file, rules.to_string()).unwrap();
    format!("seccomp={}", file.display())
}

/// A request: the slot that has answered, and whether it knew the client's port.
fn ask(network: &Network) -> (String, bool) {
    let (answer, port) = network.get_from(URL);
    let (slot, peer) = answer.split_once(" peer ").unwrap_or_else(|| panic!("{answer:?}"));
    (slot.to_owned(), peer == port)
}

/// Asked one after the other, whether the slots took turns, and knew their clients or did not.
fn takes_turns(network: &Network, known: bool, when: &str) {
    let answers: Vec<_> = (0..12).map(|_| ask(network)).collect();
    assert!(answers.iter().all(|answer| answer.1 == known), "{when}: {answers:?}");
    // One that the machine holds up is passed over.
    let repeated = answers.windows(2).filter(|pair| pair[0].0 == pair[1].0).count();
    assert!(repeated <= 4, "{when}: {answers:?}");
}

fn serves(what: &str, rights: &Rights<'_>) {
    println!("{what}");
    let network = Network::new();
    let own = format!("{}:{PROGRAM}:ro", env!("CARGO_BIN_EXE_roundsman"));
    let server = format!("{}:{SERVER}:ro", static_servers()[1]);
    let listen = ["-l", "127.0.0.1:8080", "-i", "2", "--backoff", "10ms..20ms", "--min-uptime", "100ms"];
    let image = ["-v", &own, "-v", &server, DEBIAN, PROGRAM];
    let command = ["--", SERVER, "threads", "{port}"];
    let container = Container::start(&network, &[rights.options, &image, &listen, rights.arguments, &command].concat());
    container.wait_for("worker online", 2);
    let service = container.service(PROGRAM);
    let direct = !matches!(rights.expected, Expected::Relay(_));
    let (via, reason) = (service["via"].as_str(), service["via_reason"].as_str().unwrap());
    assert_eq!(via, Some(if direct { "direct" } else { "relay" }), "{what}: {reason}");
    assert_eq!(service["via_seccomp"], direct, "{what}");
    let log = container.log();
    assert!(log.contains(if direct { "via=\"direct (seccomp)\"" } else { "via=\"relay\"" }), "{what}: {log}");
    let lost = "options that it sets on its listening sockets are lost (pidfd_getfd is not permitted)";
    assert_eq!(reason.contains(lost), rights.expected == Expected::WithoutOptions, "{what}: {reason}");
    if let Expected::Relay(why) = rights.expected {
        assert!(reason.contains(why) && log.contains(why), "{what}: {reason}\n{log}");
    }
    takes_turns(&network, direct, what);
    for pid in container.workers(PROGRAM) {
        assert_eq!(container.uid(pid), Some(rights.uid), "{what}: {pid}");
    }
    let reloaded = container.exec(&[PROGRAM, "reload"]);
    assert!(reloaded.status.success(), "{what}: {}", String::from_utf8_lossy(&reloaded.stderr));
    takes_turns(&network, direct, &format!("{what}: after a reload"));
    container.kill(container.workers(PROGRAM)[0]);
    let online = || {
        let slots = container.service(PROGRAM)["slots"].as_array().unwrap().clone();
        (slots[0]["restarts"] == 1 && slots.iter().all(|slot| slot["state"] == "online")).then_some(())
    };
    eventually("its successor", seconds(20), online);
    takes_turns(&network, direct, &format!("{what}: after a kill"));
    assert_eq!(container.stop(), 0, "{what}: {}", container.log());
    let log = container.log();
    for unwanted in ["did not end", "attach refused", "cannot be reached"] {
        assert!(!log.contains(unwanted), "{what}: {log}");
    }
}

const ASKED: &[&str] = &["--via", "direct"];

#[test]
#[ignore = "long: tests/run --all"]
fn a_static_server_is_served_directly_with_few_rights() {
    let serves = |what: &str, options: &[&str], arguments: &[&str], uid| {
        serves(what, &Rights { options, arguments, uid, expected: Expected::Direct });
    };
    serves("podman's default", &[], ASKED, 0);
    serves("no capabilities", &["--cap-drop", "all"], ASKED, 0);
    serves("another user", &["--user", "1000:1000"], ASKED, 1000);
    serves("another user without capabilities", &["--user", "1000:1000", "--cap-drop", "all"], ASKED, 1000);
    serves("root and --user", &[], &["--via", "direct", "--user", "1000:1000"], 1000);
    let fewest = ["--cap-drop", "all", "--cap-add", "setuid", "--cap-add", "setgid"];
    serves("the least for --user", &fewest, &["--via", "direct", "--user", "1000:1000"], 1000);
    serves("no_new_privs, by itself", &["--security-opt", "no-new-privileges"], &[], 0);
    let nothing = ["--security-opt", "no-new-privileges", "--cap-drop", "all", "--user", "1000:1000", "--read-only"];
    serves("nothing at all, by itself", &nothing, &[], 1000);
    serves("a read-only root", &["--read-only"], ASKED, 0);
    serves("no profile at all", &["--security-opt", "seccomp=unconfined"], ASKED, 0);
}

#[test]
#[ignore = "long: tests/run --all"]
fn a_static_server_under_a_stricter_profile_loses_options_or_is_relayed() {
    let dir = tempfile::tempdir().unwrap();
    let memory = ["process_vm_readv", "process_vm_writev"];
    let serves = |what: &str, refused: &[&str], more: &[&str], arguments: &[&str], uid, expected| {
        let profile = profile(dir.path(), refused);
        let options = [&["--security-opt", &profile], more].concat();
        serves(what, &Rights { options: &options, arguments, uid, expected });
    };
    let other: &[&str] = &["--via", "direct", "--user", "1000:1000"];
    // What Docker's refuses without CAP_SYS_PTRACE.
    let docker = ["pidfd_getfd", "kcmp"];
    serves("as Docker's", &docker, &[], ASKED, 0, Expected::WithoutOptions);
    serves("as Docker's, --user", &docker, &[], other, 1000, Expected::WithoutOptions);
    let no_root = ["--user", "1000:1000", "--cap-drop", "all"];
    serves("as Docker's, another user", &docker, &no_root, ASKED, 1000, Expected::WithoutOptions);
    // By /proc/PID/mem then.
    serves("no memory of others", &[&docker[..], &memory].concat(), &[], ASKED, 0, Expected::WithoutOptions);
    let refused = Expected::Relay("its system calls cannot be answered (seccomp)");
    serves("no filters", &["seccomp"], &[], ASKED, 0, refused);
    serves("no filters, --user", &["seccomp"], &[], other, 1000, refused);
}
