//! A worker never has more than its limit, and no place in it stays empty while somebody waits.

use super::{ask, body, start, wait_held};

#[test]
fn a_worker_has_no_more_connections_than_its_limit() {
    for via in ["direct", "relay"] {
        for policy in ["rr", "least-conn", "ip-hash"] {
            let app = start(&["--via", via, "-p", policy, "--worker-conns", "3"]);
            let clients: Vec<_> = (0..60).map(|_| ask(app.port, 5)).collect();
            for client in clients {
                let body = body(client);
                let most: u32 = body.split_once(' ').unwrap().0.parse().unwrap();
                assert!(most <= 3, "{via} {policy}: {body}");
            }
            wait_held(&app, 0);
            assert_eq!(app.daemon.total("connections"), 60, "{via} {policy}");
        }
    }
}
