//! The image itself, and what it does with no rights at all.

use std::time::Instant;

use crate::podman::{Container, Network, inspect, succeeded};
use crate::support::{eventually, seconds};

const DEMO_SERVER: [&str; 3] = ["--", "/roundsman", "demo-server"];

#[test]
#[ignore = "long: tests/run --all"]
fn it_is_small_and_says_what_it_is_and_runs_as_nobody() {
    let image = inspect("localhost/roundsman");
    let size = image["Size"].as_u64().unwrap();
    println!("the image has {size} bytes");
    assert!(size <= 8 << 20, "{size}");
    let config = &image["Config"];
    let of = |name: &str| config[name].to_string();
    assert_eq!(of("User"), r#""65532:65532""#);
    assert_eq!(of("Entrypoint"), r#"["/roundsman"]"#);
    assert_eq!(of("StopSignal"), r#""SIGTERM""#);
    assert_eq!(image["Healthcheck"]["Test"].to_string(), r#"["CMD","/roundsman","health"]"#, "{image}");
    let label = |name: &str| config["Labels"][format!("org.opencontainers.image.{name}")].as_str().unwrap().to_owned();
    assert_eq!(label("title"), "roundsman");
    assert_eq!(label("version"), env!("CARGO_PKG_VERSION"));
    assert_eq!(label("licenses"), env!("CARGO_PKG_LICENSE"));
    assert!(!label("description").is_empty());
}

#[test]
#[ignore = "long: tests/run --all"]
fn it_runs_as_it_is_and_is_healthy_and_stops_at_once() {
    let network = Network::new();
    let demo = Container::start(&network, &["localhost/roundsman"]);
    demo.wait_for("worker online", 4);
    let answers: Vec<_> = (0..8).map(|_| network.get("http://127.0.0.1:8080/").1).collect();
    for slot in 0..4 {
        let of = answers.iter().filter(|answer| answer.contains(&format!("hello from slot {slot}"))).count();
        assert_eq!(of, 2, "{answers:?}");
    }
    assert!(demo.is_healthy());
    let begin = Instant::now();
    assert_eq!(demo.stop(), 0);
    assert!(begin.elapsed() < seconds(5), "{:?}", begin.elapsed());
}

#[test]
#[ignore = "long: tests/run --all"]
fn nothing_writable_no_capability_no_root_and_a_client_in_another_container() {
    let [here, there] = Network::pair();
    let no_rights = ["--read-only", "--cap-drop", "all", "--security-opt", "no-new-privileges"];
    let arguments = ["localhost/roundsman", "-i", "3", "-l", "8080", "--via", "relay"];
    let server = Container::start(&here, &[&no_rights[..], &arguments, &DEMO_SERVER].concat());
    server.wait_for("worker online", 3);
    let url = "http://10.99.0.1:8080/";
    let script = format!("for n in 1 2 3 4 5 6 7 8 9; do wget -q -O - {url} || exit 1; done");
    let text = Container::run(&there, &["localhost/node:22-alpine", "sh", "-c", &script]);
    for slot in 0..3 {
        assert_eq!(text.matches(&format!("hello from slot {slot}")).count(), 3, "{text}");
    }
    assert!(server.is_healthy());
    // A connection that is open and idle does not keep it from its end.
    let script = format!("wget -q -O - {url} >/dev/null; exec sleep 60");
    let client = Container::start(&there, &["localhost/node:22-alpine", "sh", "-c", &script]);
    let begin = Instant::now();
    assert_eq!(server.stop(), 0);
    assert!(begin.elapsed() < seconds(10), "{:?}", begin.elapsed());
    drop(client);
}

#[test]
#[ignore = "long: tests/run --all"]
fn without_a_place_for_the_control_socket_it_says_so_and_serves() {
    let network = Network::new();
    let no_place = ["--read-only", "--read-only-tmpfs=false", "--cap-drop", "all"];
    let arguments = ["localhost/roundsman", "-i", "2", "-l", "8080", "--via", "relay"];
    let server = Container::start(&network, &[&no_place[..], &arguments, &DEMO_SERVER].concat());
    server.wait_for("worker online", 2);
    assert!(network.get("http://127.0.0.1:8080/").1.contains("hello from slot"));
    assert!(server.log().contains("control socket"), "{}", server.log());
    assert_eq!(server.stop(), 0);
}

#[test]
#[ignore = "long: tests/run --all"]
fn port_80_is_bound_by_root_and_served_by_somebody_else() {
    let network = Network::new();
    let arguments =
        ["--user", "0:0", "localhost/roundsman", "-i", "2", "-l", "80", "--user", "65532:65532", "--via", "relay"];
    let server = Container::start(&network, &[&arguments[..], &DEMO_SERVER].concat());
    server.wait_for("worker online", 2);
    assert!(network.get("http://127.0.0.1:80/").1.contains("hello from slot"));
    let service = server.service("/roundsman");
    for slot in service["slots"].as_array().unwrap() {
        for process in ["pid", "server_pid"] {
            let of = slot[process].as_u64().unwrap();
            assert_eq!(server.uid(of), Some(65532), "{process} {of}");
        }
    }
    assert_eq!(server.uid(1), Some(0));
    assert_eq!(server.stop(), 0);
}

#[test]
#[ignore = "long: tests/run --all"]
fn what_a_shell_leaves_behind_is_reaped() {
    let network = Network::new();
    let script = "for n in 1 2 3; do (sleep 0.1 &) ; done; exec node /app.js";
    let app = "require('http').createServer((_, to) => to.end('hi')).listen(process.env.PORT)";
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("app.js"), app).unwrap();
    let file =
        "FROM localhost/node:22-alpine\nCOPY --from=localhost/roundsman /roundsman /bin/roundsman\nCOPY app.js /\n";
    std::fs::write(dir.path().join("Dockerfile"), file).unwrap();
    crate::podman::build("localhost/reaping", &dir.path().join("Dockerfile"), dir.path());
    let arguments = ["localhost/reaping", "roundsman", "-i", "1", "-l", "8080", "--", "sh", "-c", script];
    let server = Container::start(&network, &arguments);
    server.wait_for("worker online", 1);
    eventually("no zombie", seconds(10), || {
        let text = succeeded(server.exec(&["sh", "-c", "cat /proc/[0-9]*/stat"]));
        (!text.lines().any(|line| line.contains(") Z "))).then_some(())
    });
    assert_eq!(server.stop(), 0);
}
