//! Lines of unmodified servers.

use super::{Logged, Seen, agrees};
use crate::support::table::table;
use crate::support::{free_port, install_dir};

/// The servers close their connections after one answer.
#[test]
fn lines_of_real_servers_have_the_clients_bytes() {
    for (name, count) in [("node", 1000), ("python threads per connection", 50), ("gunicorn sync", 50), ("nginx", 200)]
    {
        let dir = install_dir();
        let port = free_port();
        let server = table(dir.path(), port).into_iter().find(|server| server.name == name).unwrap();
        let words: Vec<&str> = server.command.iter().map(String::as_str).collect();
        let options = [&["-i", "2", "--via", "direct", "--"], &words[..]].concat();
        let logged = Logged::at(dir, port, &options);
        logged.daemon.wait_online(2);
        let seen: Vec<Seen> = (0..count).map(|_| logged.request().unwrap()).collect();
        let lines = logged.lines(count);
        agrees(&lines, &seen);
        for line in &lines {
            assert_eq!((&line["end"], &line["service"]), (&"server".into(), &"web".into()), "{name}: {line}");
            assert!(line["wait_us"].is_u64() && line.get("upstream").is_none(), "{name}: {line}");
        }
        let slots: std::collections::BTreeSet<_> = lines.iter().map(|line| line["slot"].as_u64()).collect();
        assert_eq!((slots.len(), logged.lost()), (2, 0), "{name}");
    }
}
