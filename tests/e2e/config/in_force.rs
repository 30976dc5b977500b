//! The configuration file: what is in force, what is wrong, and what a reload applies.
//! Mostly waits: tests/run runs it beside others.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::support::{Daemon, eventually, free_port, get, install_dir, refused, roundsman, seconds, write_file};

/// An app that answers with its service, its slot and a greeting, on a second port, too, if it is told one.
pub const APP: &str =
    "const server = () => require('http').createServer((_, r) => r.end([process.env.ROUNDSMAN_SERVICE,
    process.env.ROUNDSMAN_SLOT, process.env.GREETING || '', process.cwd()].join(' ')))
server().listen(process.env.PORT || process.env.APP_PORT, '127.0.0.1')
if (process.env.SECOND_PORT) server().listen(process.env.SECOND_PORT, '127.0.0.1')";

/// A daemon of a file.
struct Configured {
    daemon: Daemon,
    dir: tempfile::TempDir,
}

impl Configured {
    fn start(text: &str) -> Self {
        let dir = install_dir();
        write_file(dir.path(), "app.js", APP);
        write_file(dir.path(), "shop.toml", text);
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_roundsman"));
        command.current_dir(dir.path());
        Self { daemon: Daemon::launch(command, &["-c", "shop.toml"], 0), dir }
    }

    fn write(&self, text: &str) {
        write_file(self.dir.path(), "shop.toml", text);
    }

    fn ask(&self, words: &[&str]) -> (i32, String) {
        let output = roundsman().args(words).env("ROUNDSMAN_CONTROL", self.daemon.control()).output().unwrap();
        let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        (output.status.code().unwrap(), text)
    }

    #[track_caller]
    fn reload(&self) -> String {
        let (code, text) = self.ask(&["reload"]);
        assert_eq!(code, 0, "{text}");
        text
    }

    fn service(&self, name: &str) -> Option<Value> {
        let state = self.daemon.ls();
        state["services"].as_array().unwrap().iter().find(|service| service["name"] == name).cloned()
    }

    #[track_caller]
    fn wait_online(&self, name: &str, count: usize) {
        eventually(&format!("{count} of {name} online"), seconds(20), || {
            let slots = self.service(name)?["slots"].as_array()?.clone();
            (slots.len() == count && slots.iter().all(|slot| slot["state"] == "online")).then_some(())
        });
    }
}

fn service(name: &str, port: u16, more: &str) -> String {
    format!("[service.{name}]\ncommand = [\"node\", \"app.js\"]\nlisten = [\"127.0.0.1:{port}\"]\n{more}\n")
}

#[test]
fn several_services_come_change_and_go_with_the_file_and_no_request_is_lost() {
    let [web, api, new, moved, second] = std::array::from_fn(|_| free_port());
    let with = |text: String| format!("log-level = \"info\"\n{text}");
    let shop = Configured::start(&with(service("web", web, "instances = 2") + &service("api", api, "instances = 1")));
    shop.wait_online("web", 2);
    shop.wait_online("api", 1);
    assert!(get(web).unwrap().starts_with("web ") && get(api).unwrap().starts_with("api 0 "));

    // Clients of web all the time.
    let (stop, served) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let clients = (stop.clone(), served.clone());
    let load = std::thread::spawn(move || {
        while !clients.0.load(Ordering::Relaxed) {
            let answer = get(web).unwrap();
            assert!(answer.starts_with("web "), "{answer}");
            clients.1.fetch_add(1, Ordering::Relaxed);
        }
    });

    // A value, a listener more, a service more, a service less.
    let env = format!("{{ GREETING = \"hello\", SECOND_PORT = {second} }}");
    let listen = format!("[\"127.0.0.1:{web}\", \"127.0.0.1:{moved}={second}\"]");
    let more = format!("instances = 3\nenv = {env}\nlisten = {listen}");
    let changed = format!("[service.web]\ncommand = [\"node\", \"app.js\"]\n{more}\n");
    shop.write(&with(changed + &service("new", new, "instances = 1")));
    let said = shop.reload();
    for words in ["web: instances 2 → 3", "web: env", "web: listen", "new: new", "api: no longer", "api: removed"] {
        assert!(said.contains(words), "{words} in {said}");
    }
    assert!(!said.contains("hello"), "variables may be secrets: {said}");
    shop.wait_online("web", 3);
    shop.wait_online("new", 1);
    assert!(shop.service("api").is_none() && refused(api));
    assert!(
        get(web).unwrap().contains(" hello ")
            && get(moved).unwrap().starts_with("web ")
            && get(new).unwrap().starts_with("new 0 ")
    );

    // A listener less: it is closed, the others go on.
    let shut =
        format!("[service.web]\ncommand = [\"node\", \"app.js\"]\nlisten = [\"127.0.0.1:{web}\"]\ninstances = 3\n");
    shop.write(&with(shut + &service("new", new, "instances = 1")));
    shop.reload();
    eventually("the listener is gone", seconds(5), || refused(moved).then_some(()));
    stop.store(true, Ordering::Relaxed);
    load.join().unwrap();
    assert!(served.load(Ordering::Relaxed) > 100);
    let mut daemon = shop.daemon;
    assert_eq!(daemon.stop().code(), 0);
}

#[test]
fn a_listener_that_comes_and_one_that_goes_work_by_relay_too() {
    let [old, new] = [free_port(), free_port()];
    let relay = |port: u16| service("web", port, "via = \"relay\"\ninstances = 2\npolicy = \"least-conn\"");
    let shop = Configured::start(&relay(old));
    shop.wait_online("web", 2);
    get(old).unwrap();
    shop.write(&relay(new).replace("least-conn", "rr"));
    let said = shop.reload();
    assert!(said.contains("policy least-conn → rr"), "{said}");
    for _ in 0..10 {
        assert!(get(new).unwrap().starts_with("web "));
    }
    eventually("the old one is closed", seconds(5), || refused(old).then_some(()));
    assert_eq!(shop.service("web").unwrap()["policy"], "rr");
    // And back, on an id of its own.
    shop.write(&relay(old));
    shop.reload();
    for _ in 0..10 {
        get(old).unwrap();
    }
}

#[test]
fn a_listener_stays_while_the_reload_that_takes_it_away_fails() {
    let [old, new] = [free_port(), free_port()];
    let shop = Configured::start(&service("web", old, "instances = 1"));
    shop.wait_online("web", 1);
    write_file(shop.dir.path(), "app.js", "throw new Error('a broken release')");
    shop.write(&service("web", new, "instances = 1"));
    let (code, said) = shop.ask(&["reload"]);
    assert!(code == 1 && said.contains("a broken release"), "{said}");
    assert!(get(old).unwrap().starts_with("web "), "the worker before it goes on");
    // Wanted again, it is the same as ever; then the release is mended.
    shop.write(&service("web", old, "instances = 1"));
    write_file(shop.dir.path(), "app.js", APP);
    shop.reload();
    get(old).unwrap();
    shop.write(&service("web", new, "instances = 1"));
    shop.reload();
    get(new).unwrap();
    eventually("the old one is closed", seconds(5), || refused(old).then_some(()));
}

#[test]
fn a_mistake_changes_nothing_and_hup_says_so_in_the_log() {
    let port = free_port();
    let shop = Configured::start(&service("web", port, "instances = 1"));
    shop.wait_online("web", 1);
    let before = shop.service("web").unwrap();
    shop.write(&service("web", port, "instances = 2\ndrain-timeout = 10"));
    let (code, said) = shop.ask(&["reload"]);
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("a unit is needed: 10ms or 10s") && said.contains("shop.toml:5:17"), "{said}");
    shop.daemon.signal(Signal::SIGHUP);
    shop.daemon.wait_for("a unit is needed");
    // An address that cannot be had is a mistake, too.
    let holder = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = holder.local_addr().unwrap().port();
    shop.write(&(service("web", port, "instances = 2") + &service("more", taken, "")));
    let (code, said) = shop.ask(&["reload"]);
    assert!(code == 1 && said.contains("address already in use"), "{said}");
    drop(holder);
    let after = shop.service("web").unwrap();
    assert_eq!(after["slots"][0]["pid"], before["slots"][0]["pid"]);
    assert_eq!(after["slots"].as_array().unwrap().len(), 1);
    get(port).unwrap();
    // Right again, by HUP.
    shop.write(&service("web", port, "instances = 2"));
    shop.daemon.signal(Signal::SIGHUP);
    shop.wait_online("web", 2);
}

#[test]
fn what_needs_a_restart_is_named_and_the_rest_applied() {
    let port = free_port();
    let shop = Configured::start(&service("web", port, "instances = 1"));
    shop.wait_online("web", 1);
    let other = service("web", port, "instances = 2\npolicy = \"none\"\nvia = \"relay\"");
    shop.write(&format!("log-format = \"json\"\n{other}"));
    // As often as it is asked.
    for _ in 0..2 {
        let said = shop.reload();
        for words in [
            "log-format default → json: needs a restart of the daemon",
            "web: policy needs a restart of the daemon",
            "web: via needs a restart of the daemon (direct now, relay then)",
        ] {
            assert!(said.contains(words), "{words} in {said}");
        }
    }
    shop.wait_online("web", 2);
    let state = shop.service("web").unwrap();
    assert_eq!((state["policy"].as_str(), state["via"].as_str()), (Some("rr"), Some("direct")));
}

/// What is refused with `none`, or needs a policy that hashes, neither comes into half a force nor goes alone.
#[test]
fn a_policy_that_needs_a_restart_keeps_what_depends_on_it() {
    let (none, hashes) = (free_port(), free_port());
    let text = |first: &str, second: &str| service("none", none, first) + &service("hashes", hashes, second);
    let hashing = "instances = 1\npolicy = \"hash\"\nhash-on = \"cookie:a\"\ndeny = \"127.0.0.0/8\"";
    let shop = Configured::start(&text("instances = 1\npolicy = \"none\"", hashing));
    ["none", "hashes"].iter().for_each(|name| shop.wait_online(name, 1));
    shop.write(&text(hashing, "instances = 1\npolicy = \"none\""));
    let said = shop.reload();
    for service in ["none", "hashes"] {
        for key in ["policy", "hash-on", "deny"] {
            assert!(said.contains(&format!("{service}: {key} needs a restart of the daemon")), "{said}");
        }
    }
    let of = |name: &str| shop.service(name).map(|state| (state["policy"].clone(), state["hash_on"].clone())).unwrap();
    assert_eq!(of("none"), ("none".into(), serde_json::Value::Null));
    assert_eq!(of("hashes"), ("hash".into(), "cookie:a".into()));
    get(none).unwrap();
    get(hashes).unwrap_err();
}

#[test]
fn a_number_of_slots_set_by_hand_holds_until_the_file_says_another() {
    let port = free_port();
    let shop = Configured::start(&service("web", port, "instances = 1"));
    shop.wait_online("web", 1);
    assert_eq!(shop.ask(&["scale", "3"]).0, 0);
    shop.write(&service("web", port, "instances = 1\nenv = { GREETING = \"new\" }"));
    shop.reload();
    shop.wait_online("web", 3);
    shop.write(&service("web", port, "instances = 2"));
    shop.reload();
    shop.wait_online("web", 2);
}

#[test]
fn a_service_finds_its_directory_its_variables_and_its_user() {
    let port = free_port();
    let dir = install_dir();
    let srv = dir.path().join("srv");
    std::fs::create_dir_all(&srv).unwrap();
    write_file(&srv, "app.js", APP);
    write_file(dir.path(), "web.env", "# a comment\nGREETING=\"from the file\"\nSECOND=file\n");
    let more = "cwd = \"srv\"\nenv-file = \"web.env\"\nenv.SECOND = \"table\"\nuser = \"nobody\"\ninstances = 1\n\
                out = \"log/{service}-{slot}.log\"";
    let app = "require('http').createServer((_, r) => r.end([process.env.GREETING, process.env.SECOND, process.cwd(),
        process.getuid()].join('|'))).listen(process.env.PORT, '127.0.0.1', () => console.log('ready'))";
    write_file(&srv, "app.js", app);
    let file = write_file(dir.path(), "shop.toml", &service("web", port, more));
    let daemon = Daemon::launch(roundsman(), &["-c", file.to_str().unwrap()], port);
    daemon.wait_for("worker online");
    let body = get(port).unwrap();
    assert_eq!(body, format!("from the file|table|{}|65534", srv.canonicalize().unwrap().display()));
    let log = dir.path().join("log/web-0.log");
    eventually("the log file", seconds(5), || (std::fs::read_to_string(&log).ok()? == "ready\n").then_some(()));
}

#[test]
fn many_reloads_leave_no_descriptors_behind() {
    let port = free_port();
    let text =
        |n: usize| service("web", port, &format!("instances = 1\nmin-uptime = \"50ms\"\nenv = {{ GREETING = {n} }}"));
    let shop = Configured::start(&text(0));
    shop.wait_online("web", 1);
    let fds = || std::fs::read_dir(format!("/proc/{}/fd", shop.daemon.pid())).unwrap().count();
    let mut counts = Vec::new();
    for n in 1..9 {
        shop.write(&text(n));
        shop.reload();
        assert!(get(port).unwrap().contains(&format!(" {n} ")));
        counts.push(eventually("descriptors settle", seconds(5), || {
            let before = fds();
            // Between two looks.
            std::thread::sleep(std::time::Duration::from_millis(100));
            (fds() == before).then_some(before)
        }));
    }
    assert!(counts[7] <= counts[1] + 1, "{counts:?}");
}

#[test]
fn other_upstreams_serve_after_a_reload() {
    let (port, first, second) = (free_port(), crate::support::Upstream::echo(), crate::support::Upstream::echo());
    let proxy = |upstream: &str| {
        format!("[service.proxy]\nlisten = [\"127.0.0.1:{port}\"]\ninstances = 2\nupstream = [\"{upstream}\"]\n")
    };
    let shop = Configured::start(&proxy(&first.arg()));
    shop.wait_online("proxy", 2);
    let echo = || {
        let mut client = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
        std::io::Write::write_all(&mut client, b"ping").unwrap();
        client.shutdown(std::net::Shutdown::Write).unwrap();
        assert_eq!(crate::support::read_all(&mut client).unwrap(), b"ping");
    };
    (0..4).for_each(|_| echo());
    assert_eq!((first.count(), second.count()), (4, 0));
    shop.write(&proxy(&second.arg()));
    shop.reload();
    (0..4).for_each(|_| echo());
    assert_eq!((first.count(), second.count()), (4, 4));
}

#[test]
fn a_reload_of_one_service_applies_what_changed_in_it_alone() {
    let [a, b] = [free_port(), free_port()];
    let both = |instances: u32| {
        let more = format!("instances = {instances}");
        service("a", a, &more) + &service("b", b, &more)
    };
    let shop = Configured::start(&both(1));
    shop.wait_online("a", 1);
    shop.wait_online("b", 1);
    let pid = |name: &str| shop.service(name).unwrap()["slots"][0]["pid"].clone();
    let before = pid("a");
    shop.write(&both(2));
    let (code, said) = shop.ask(&["reload", "b"]);
    assert!(code == 0 && said.contains("b: instances 1 → 2") && !said.contains("a: "), "{said}");
    shop.wait_online("b", 2);
    shop.wait_online("a", 1);
    assert_eq!(pid("a"), before);
    assert!(shop.reload().contains("a: instances 1 → 2"));
    shop.wait_online("a", 2);
    let (code, said) = shop.ask(&["reload", "c"]);
    assert!(code == 1 && said.contains("there is no service \"c\"; here are a, b"), "{said}");
}

#[test]
fn verbs_take_the_name_of_one_service_and_mean_all_without() {
    let [a, b] = [free_port(), free_port()];
    let text = service("a", a, "instances = 1") + &service("b", b, "instances = 1");
    let shop = Configured::start(&text);
    shop.wait_online("a", 1);
    shop.wait_online("b", 1);
    let pid = |name: &str| shop.service(name).unwrap()["slots"][0]["pid"].clone();
    let before = (pid("a"), pid("b"));
    assert_eq!(shop.ask(&["restart", "a"]).0, 0);
    assert!(pid("a") != before.0 && pid("b") == before.1);
    let (code, said) = shop.ask(&["scale", "2"]);
    assert!(code == 1 && said.contains("several services; say which: a, b"), "{said}");
    let (code, said) = shop.ask(&["scale", "2", "b"]);
    assert!(code == 0 && said.contains("b: 2 slots"), "{said}");
    let (code, said) = shop.ask(&["stop", "c"]);
    assert!(code == 1 && said.contains("there is no service \"c\"; here are a, b"), "{said}");
    assert_eq!(shop.ask(&["health"]).0, 0);
    assert_eq!(shop.ask(&["stop", "a"]).0, 0);
    let (code, said) = shop.ask(&["health"]);
    assert!(code == 1 && said.contains("a: its worker is not online"), "{said}");
    assert_eq!(shop.ask(&["health", "b"]).0, 0);
    assert!(refused(a) && get(b).is_ok());
    let (code, said) = shop.ask(&["restart"]);
    assert!(code == 0 && said.contains("a: it was stopped; started") && said.contains("b: restarted"), "{said}");
    assert_eq!(shop.ask(&["stop", "a"]).0, 0);
    assert_eq!(shop.ask(&["start"]).0, 0);
    get(a).unwrap();
    let (_, said) = shop.ask(&["ls", "b"]);
    assert!(said.contains("GEN") && said.contains("delivery") && !said.contains("\na\n"), "{said}");
}

#[test]
fn one_service_given_up_leaves_the_others_and_all_given_up_end_the_daemon() {
    let port = free_port();
    let dies =
        "[service.dies]\ncommand = [\"sh\", \"-c\", \"exit 7\"]\nno-listen = true\nmax-restarts = 0\ninstances = 1\n";
    let shop = Configured::start(&(service("web", port, "instances = 1") + dies));
    shop.wait_online("web", 1);
    eventually("given up", seconds(10), || (shop.service("dies")?["slots"][0]["state"] == "errored").then_some(()));
    get(port).unwrap();
    assert_eq!(shop.ask(&["health"]).0, 1);
    let mut alone = Configured::start(dies);
    assert_eq!(alone.daemon.finish(seconds(10)).code(), 7);
}
