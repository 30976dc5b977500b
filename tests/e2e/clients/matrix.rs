//! All options together: by delivery, policy and family, with a PROXY header and without.
//! Mostly waits: tests/run runs it beside others.

use std::net::TcpStream;

use super::{ask, from, intake, is_reset, refused, start};
use crate::proxy::{v1, v2};
use crate::support::{eventually, seconds};

/// The balancer's address.
const BALANCER: &str = "127.0.0.9";

const OPTIONS: [&str; 14] = [
    "-i",
    "2",
    "--proxy-from",
    BALANCER,
    "--allow",
    "127.0.0.0/8,::1,192.0.2.0/24,2001:db8::/32",
    "--deny",
    "127.0.0.3,192.0.2.7,2001:db8:0:1::/64",
    "--source-conns",
    "2",
    "--first-byte-timeout",
    "20s",
    "--worker-conns",
    "100",
];

#[test]
fn addresses_and_limits_hold_for_every_delivery_policy_and_family() {
    for (via, policy, host) in [
        ("direct", "rr", "0.0.0.0"),
        ("direct", "least-conn", "[::]"),
        ("relay", "rr", "[::]"),
        ("relay", "least-conn", "0.0.0.0"),
    ] {
        let what = format!("{via} {policy} {host}");
        let daemon = start(host, &[&OPTIONS[..], &["--via", via, "--policy", policy]].concat());
        let port = daemon.port;
        let header = |client: &str| v2(client, if client.contains(':') { "2001:db8::" } else { "203.0.113.1" }, &[]);
        let behind = |client: &str| ask(from(BALANCER, port), &header(client));

        // Addresses.
        is_reset(&what, ask(from("127.0.0.3", port), b""));
        for denied in ["192.0.2.7", "203.0.113.5", "2001:db8:0:1::7", "2001:db9::1"] {
            is_reset(&format!("{what} {denied}"), behind(denied));
        }
        is_reset(&what, ask(from(BALANCER, port), &v1("192.0.2.7", "203.0.113.1")));
        assert_eq!(refused(&daemon, "denied"), 6, "{what}");

        // The source's limit: an address, or a /64 of IPv6.
        let groups: Vec<Vec<&str>> = [
            Some(vec!["127.0.0.5"; 3]),
            (host == "[::]").then(|| vec!["::1"; 3]),
            Some(vec!["192.0.2.8"; 3]),
            Some(vec!["2001:db8::1", "2001:db8::2", "2001:db8::3"]),
        ]
        .into_iter()
        .flatten()
        .collect();
        let reach = |client: &str| match client.starts_with("127.") || client == "::1" {
            true => ask(from(client, port), b""),
            false => behind(client),
        };
        let limited = groups.len() as u64;
        for group in groups {
            let what = format!("{what} {group:?}");
            let [first, second, third] = group[..] else { unreachable!() };
            let held: [TcpStream; 2] = [first, second].map(|client| reach(client).expect(&what));
            let before = refused(&daemon, "source-conns");
            is_reset(&what, reach(third));
            assert_eq!(refused(&daemon, "source-conns"), before + 1, "{what}");
            let [gone, _held] = held;
            drop(gone);
            // The server has to notice.
            eventually(&what, seconds(10), || reach(third).ok());
        }
        // One on behalf of nobody: the balancer's own.
        let check = ask(from(BALANCER, port), b"PROXY UNKNOWN\r\n").expect(&what);
        let seen = intake(&daemon);
        assert!(seen["refused"]["source-conns"].as_u64().unwrap() >= limited, "{seen}");
        assert_eq!((&seen["waiting"], &seen["refused"]["first-byte-timeout"]), (&0.into(), &0.into()), "{what}");
        daemon.wait_for("--allow and --deny exclude their addresses");
        daemon.wait_for("their source has --source-conns open");
        drop(check);
    }
}
