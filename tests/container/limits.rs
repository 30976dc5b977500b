//! What the container may use decides how many workers there are, and how large they may grow.

use std::thread::available_parallelism;

use crate::podman::{Container, Network};
use crate::support::{eventually, seconds};

/// The number of slots that `-i max` gives under these options, and why it says.
fn instances(options: &[&str]) -> (usize, String) {
    let network = Network::new();
    let arguments =
        ["localhost/roundsman", "-i", "max", "-l", "8080", "--via", "relay", "--", "/roundsman", "demo-server"];
    let server = Container::start(&network, &[options, &arguments].concat());
    server.wait_for("worker online", 1);
    let slots = server.service("/roundsman")["slots"].as_array().unwrap().len();
    let log = server.log();
    let line = log.lines().find(|line| line.contains("instances=")).unwrap().to_owned();
    assert!(line.contains(&format!("instances={slots} ")), "{line}");
    assert_eq!(server.stop(), 0);
    (slots, line)
}

#[test]
#[ignore = "long: tests/run --all"]
fn a_cpu_quota_rounded_up_is_the_number_of_workers() {
    let machine = available_parallelism().unwrap().get();
    for (quota, wanted) in [("0.5", 1), ("1.5", 2), ("3", 3)] {
        let (slots, line) = instances(&["--cpus", quota]);
        assert_eq!(slots, wanted.min(machine), "{quota}: {line}");
        // A quota of as much as there is, or more, is no reason.
        let why = if wanted < machine { format!("CPU quota of {quota}") } else { format!("why={machine} CPU") };
        assert!(line.contains(&why) || line.contains(&format!("why=\"{machine} CPU")), "{quota}: {line}");
    }
}

#[test]
#[ignore = "long: tests/run --all"]
fn a_cpuset_is_the_number_of_workers() {
    let (slots, line) = instances(&["--cpuset-cpus", "0"]);
    assert!(slots == 1 && line.contains("1 CPU"), "{line}");
    let (slots, line) = instances(&["--cpuset-cpus", "0,1"]);
    assert!(slots == 2 && line.contains("2 CPUs"), "{line}");
}

#[test]
#[ignore = "long: tests/run --all"]
fn a_worker_that_grows_is_replaced_before_the_kernel_ends_the_container() {
    let network = Network::new();
    // Each request keeps 8 MB. Two workers of 450 MB in 1,000 MB.
    let app = "const kept = []; require('http').createServer((_, to) => { kept.push(Buffer.alloc(8 << 20, 1)); \
               to.end('kept ' + kept.length) }).listen(process.env.PORT)";
    let limits = ["--memory", "1000m", "--memory-swap", "1000m", "--user", "1000:1000"];
    let arguments = ["-i", "2", "-l", "8080", "--max-memory", "90%", "--", "node", "-e", app];
    let image = crate::apps::with_roundsman("localhost/node:22-bookworm-slim");
    let server = Container::start(&network, &[&limits[..], &[image.as_str(), "roundsman"], &arguments].concat());
    server.wait_for("worker online", 2);
    let replaced = || server.log().contains("450") && server.log().matches("worker online").count() > 2;
    eventually("a successor", seconds(60), || {
        let (status, body) = network.get("http://127.0.0.1:8080/");
        assert!(status == 200, "{status} {body}");
        replaced().then_some(())
    });
    assert_eq!(server.state()["OOMKilled"], false);
    assert_eq!(server.stop(), 0);
}
