//! Lines of relay workers.

use super::{Logged, Seen, agrees, number};
use crate::support::{Process, install_dir};

#[test]
fn a_thousand_connections_to_nginx_are_a_thousand_lines_with_the_clients_bytes() {
    let dir = install_dir();
    let nginx = Process::nginx(dir.path());
    let upstream = format!("127.0.0.1:{}", nginx.port);
    let logged = Logged::in_dir(dir, &["-i", "2", "-u", &upstream]);
    let seen: Vec<Seen> = (0..1000).map(|_| logged.request().unwrap()).collect();
    let lines = logged.lines(1000);
    agrees(&lines, &seen);
    for line in &lines {
        assert_eq!(
            (&line["service"], &line["end"], &line["upstream"]),
            (&"web".into(), &"server".into(), &upstream.as_str().into())
        );
        assert_eq!(line["listener"], format!("127.0.0.1:{}", logged.port));
        assert_eq!((number(line, "generation"), number(line, "retransmits")), (1, 0));
        let duration = (line["duration_ms"].as_f64().unwrap() * 1000.0) as u64 + 1;
        assert!(number(line, "wait_us") + number(line, "connect_us") <= duration && duration < 20_000_000, "{line}");
        assert!(number(line, "rtt_us") > 0 && number(line, "slot") < 2, "{line}");
    }
    assert_eq!(logged.lost(), 0);
}
