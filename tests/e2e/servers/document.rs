//! docs/servers.md, made of what passed.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::cell::Shown;
use super::list::{Family, Server};
use super::talk::Seen;

const PATH: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/servers.md");
pub const RENEW: &str = "UPDATE_DOCS=1 cargo test --test e2e -- --ignored each_server_of_the_list renews it";
const HEAD: &str = "| server | version | delivery | client's address | notes |\n|---|---|---|---|---|\n";

pub fn read() -> String {
    std::fs::read_to_string(PATH).unwrap_or_default()
}

fn rows(text: &str) -> impl Iterator<Item = (&str, &str)> {
    let rows = text.split(HEAD).skip(1).flat_map(|table| table.lines().take_while(|row| row.starts_with("| ")));
    rows.map(|row| (row[2..].split(" | ").next().unwrap(), row))
}

/// The servers that a document names.
pub fn named(text: &str) -> Vec<&str> {
    rows(text).map(|(name, _)| name).collect()
}

pub fn introduction(families: &[Family]) -> String {
    let served = families.iter().flat_map(|family| &family.server).filter(|server| server.cannot.is_none()).count();
    format!(
        "# Servers that are tested

`tests/run --all` runs {served} servers behind roundsman, unmodified, each with `--policy rr` and with `--policy none`, in two
processes unless the notes say otherwise. With each policy

- every connection is answered, and with `rr` every process gets some;
- `roundsman reload` replaces all processes while three clients send requests: none fails;
- a process is killed with SIGKILL: the others go on serving, and it is replaced;
- `roundsman` stops with exit code 0, and so do the servers, without being killed.

*Delivery* is what `roundsman ls NAME` shows; [docs/direct.md](direct.md) says what it means. Go and static programs were started with
`--via direct`; by themselves they are relayed, unless no_new_privs is set. The *client's address* is \"seen\" where the server
named the client's own port, \"roundsman's\" where it named that of a relayed connection, and \"–\" where a server does not say whom it talks to. This file is
written by the test. The versions are those of the machine it ran on.
"
    )
}

fn row(server: &Server, shown: Option<&Shown>) -> String {
    let mut notes: Vec<String> = Vec::new();
    if server.instances == 1 {
        notes.push("one process (`-i 1`)".to_owned());
    }
    notes.extend(server.no_none.iter().map(|why| format!("not with `none`: {why}")));
    notes.extend(server.no_reload.iter().map(|why| format!("no reload: {why}")));
    notes.extend([&server.recovers, &server.cannot].into_iter().flatten().cloned());
    if !server.notes.is_empty() {
        notes.push(server.notes.clone());
    }
    let (version, delivery, seen) = match shown {
        None => ("–", "not served", "–"),
        Some(shown) => {
            let seen = match shown.seen {
                Seen::Client => "seen",
                Seen::Other => "roundsman's",
                Seen::Nothing => "–",
            };
            (&*shown.version, &*shown.delivery, seen)
        }
    };
    format!("| {} | {version} | {delivery} | {seen} | {} |\n", server.name, notes.join("; "))
}

/// Rows of servers that did not run are those of the document before.
fn written(families: &[Family], shown: &BTreeMap<String, Shown>, before: &str) -> String {
    let before: BTreeMap<_, _> = rows(before).collect();
    let mut text = introduction(families);
    for family in families {
        write!(text, "\n## {}\n\n{HEAD}", family.title).unwrap();
        for server in &family.server {
            match (shown.get(&server.name), before.get(&*server.name)) {
                (None, Some(row)) if server.cannot.is_none() => writeln!(text, "{row}").unwrap(),
                (None, None) if server.cannot.is_none() => {}
                (shown, _) => text.push_str(&row(server, shown)),
            }
        }
    }
    text
}

/// All but the column of versions.
fn without_versions(text: &str) -> String {
    let line = |line: &str| {
        let cells: Vec<_> = line.split(" | ").collect();
        if cells.len() == 5 { [&cells[..1], &cells[2..]].concat().join(" | ") } else { line.to_owned() }
    };
    text.lines().map(line).collect::<Vec<_>>().join("\n")
}

/// The document says what was shown, or is written anew.
pub fn compare(families: &[Family], shown: &BTreeMap<String, Shown>) {
    let text = written(families, shown, &read());
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(PATH, text).unwrap();
    } else {
        assert_eq!(without_versions(&read()), without_versions(&text), "docs/servers.md: {RENEW}");
    }
}
