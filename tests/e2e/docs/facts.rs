//! Tables of the documents against the program: options, exit codes, the control protocol, metrics, links.
//! Mostly waits: tests/run runs it beside others.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::path::Path;

use super::{ROOT, blocks_of, documents};
use crate::support::{Daemon, install_dir, roundsman, seconds, write_file};

fn document(name: &str) -> String {
    std::fs::read_to_string(format!("{ROOT}/{name}")).unwrap()
}

/// The rows of all tables with this head, as cells.
fn rows(text: &str, head: &str) -> Vec<Vec<String>> {
    let tables = text.split(head).skip(1).map(|rest| rest.split("\n\n").next().unwrap());
    let rows: Vec<_> = tables
        .flat_map(|table| table.lines().skip(2))
        .map(|row| row.trim_matches('|').split(" | ").map(|cell| cell.trim().to_owned()).collect())
        .collect();
    assert!(!rows.is_empty(), "no table {head}");
    rows
}

/// What stands between backticks.
fn quoted(cell: &str) -> Vec<String> {
    cell.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

/// An option: its forms, its variable, its default.
type Facts = (Vec<String>, Option<String>, Option<String>);

#[test]
fn the_table_of_options_is_that_of_the_help() {
    let help = roundsman().arg("--help").output().unwrap();
    let help = String::from_utf8_lossy(&help.stdout).into_owned();
    let help = help.split("\nOptions:\n").nth(1).unwrap().split("\nExamples:").next().unwrap();
    let mut real: BTreeMap<String, Facts> = BTreeMap::new();
    let mut latest = None;
    let mut before = "";
    for line in help.lines() {
        let text = line.trim();
        if line.len() - line.trim_start().len() <= 6 && text.starts_with('-') {
            let forms: Vec<_> = text.split(" <").next().unwrap().split(", ").map(str::to_owned).collect();
            latest = forms.last().cloned();
            real.insert(latest.clone().unwrap(), (forms, None, None));
        } else if let Some(facts) = latest.as_ref().and_then(|name| real.get_mut(name)) {
            let value = |start: &str| Some(text.strip_prefix(start)?.trim_end_matches(['=', ']']).to_owned());
            // Not what an option's text says about a default that is no value.
            if before.is_empty() || before.starts_with("[env: ") {
                facts.1 = facts.1.take().or_else(|| value("[env: "));
                facts.2 = facts.2.take().or_else(|| value("[default: "));
            }
        }
        before = text;
    }
    real.retain(|name, _| !["--help", "--version"].contains(&name.as_str()));
    assert!(real.len() >= 40, "{real:?}");
    let mut shown: BTreeMap<String, Facts> = BTreeMap::new();
    for row in rows(&document("docs/reference.md"), "| option | variable | default | meaning |") {
        let forms = quoted(&row[0]);
        let value = |cell: &str| (cell != "–").then(|| cell.trim_matches('`').to_owned());
        assert!(row[3].len() > 10, "{row:?}");
        shown.insert(forms.last().unwrap().clone(), (forms, value(&row[1]), value(&row[2])));
    }
    for (name, facts) in &real {
        assert_eq!(shown.get(name), Some(facts), "{name}");
    }
    assert_eq!(shown.len(), real.len());
}

#[test]
fn exit_codes_are_those_of_the_table() {
    let dir = install_dir();
    write_file(dir.path(), "bad.toml", "[service.web]\nlisten = 0.5\n");
    write_file(dir.path(), "plain", "no program");
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().to_string();
    let runs: [(&str, &[&str]); 7] = [
        ("0", &["--version"]),
        ("2", &["--no-such-option"]),
        ("69", &["ls"]),
        ("71", &["-l", &port, "-i", "1", "-u", "127.0.0.1:1"]),
        ("78", &["check", "-c", "bad.toml"]),
        ("126", &["-l", "127.0.0.1:0", "--", "./plain"]),
        ("127", &["-l", "127.0.0.1:0", "--", "./nothing"]),
    ];
    let table = rows(&document("docs/reference.md"), "| code | meaning |");
    let listed: BTreeSet<_> = table.iter().flat_map(|row| row[0].split(", ").map(str::to_owned)).collect();
    for (code, words) in runs {
        let mut command = roundsman();
        command.args(words).current_dir(&dir).env("XDG_RUNTIME_DIR", dir.path()).env_remove("RUNTIME_DIRECTORY");
        let end = command.output().unwrap().status;
        assert_eq!(end.code().unwrap().to_string(), code, "{words:?}");
        assert!(listed.contains(code), "{code} is not listed");
    }
    // 1 and 77 have tests of their own (lifecycle, control::trust).
    assert_eq!(listed.len(), runs.len() + ["1", "77", "other"].len(), "{listed:?}");
}

/// Sends a line; all that is answered to it.
fn ask(daemon: &Daemon, line: &str) -> Vec<String> {
    let mut stream = UnixStream::connect(daemon.control()).unwrap();
    stream.set_read_timeout(Some(seconds(30))).unwrap();
    writeln!(stream, "{line}").unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    BufReader::new(stream).lines().map(|line| line.unwrap()).collect()
}

#[test]
fn requests_are_those_of_the_control_protocol_and_its_examples_are_answered() {
    let dir = install_dir();
    let app = "console.log('a word'); process.send('a word'); require('http').createServer().listen(0, '127.0.0.1')";
    write_file(dir.path(), "app.js", app);
    let mut command = roundsman();
    command.current_dir(&dir);
    let words = ["-n", "web", "-i", "2", "--min-uptime", "100ms", "--", "node", "app.js"];
    let mut daemon = Daemon::launch(command, &words, 0);
    daemon.wait_online(2);
    let text = document("docs/control-protocol.md");
    let shown: BTreeSet<_> =
        rows(&text, "| request | fields | answer |").iter().flat_map(|row| quoted(&row[0])).collect();
    // The answer to an unknown one lists those that are known.
    let known = ask(&daemon, r#"{"cmd":"unknown"}"#).concat();
    let known: BTreeSet<_> = quoted(known.split("expected one of").nth(1).unwrap()).into_iter().collect();
    assert_eq!(shown, known);
    let mut tried = BTreeSet::new();
    for line in blocks_of("json").iter().flat_map(|block| block.lines()) {
        let answers = ask(&daemon, line);
        let last = answers.last().unwrap_or_else(|| panic!("no answer to {line}"));
        assert!(!last.starts_with(r#"{"error":"#), "{line}: {answers:?}");
        let request: serde_json::Value = serde_json::from_str(line).unwrap();
        tried.insert(request["cmd"].as_str().unwrap().to_owned());
    }
    assert_eq!(tried, known, "one without an example");
    assert_eq!(daemon.stop().code(), 0);
}

#[test]
fn metrics_are_those_of_the_table() {
    let dir = install_dir();
    let port = crate::support::free_port().to_string();
    let upstream = TcpListener::bind("127.0.0.1:0").unwrap();
    let upstream = upstream.local_addr().unwrap().to_string();
    let mut command = roundsman();
    command.current_dir(&dir);
    let words = ["-l", "127.0.0.1:0", "-i", "1", "-u", &upstream, "--admin", &port];
    let mut daemon = Daemon::launch(command, &words, 0);
    daemon.wait_online(1);
    let url = format!("http://127.0.0.1:{port}/metrics");
    let output = std::process::Command::new("curl").args(["-sS", &url]).output().unwrap();
    let real = String::from_utf8_lossy(&output.stdout).into_owned();
    let real: BTreeMap<_, _> = (real.lines().filter_map(|line| line.strip_prefix("# TYPE roundsman_")))
        .map(|line| line.split_once(' ').unwrap())
        .map(|(name, kind)| if kind == "counter" { format!("{name}_total") } else { name.to_owned() })
        .map(|name| (name.clone(), name))
        .collect();
    let text = document("docs/operations.md");
    let shown: BTreeSet<_> =
        rows(&text, "| metric | per | what it counts |").iter().flat_map(|row| quoted(&row[0])).collect();
    assert_eq!(shown, real.into_keys().collect());
    assert_eq!(daemon.stop().code(), 0);
}

#[test]
fn fields_of_ls_json_are_those_of_the_table() {
    let dir = install_dir();
    write_file(
        dir.path(),
        "app.py",
        "import sys, http.server as h\nh.test(h.SimpleHTTPRequestHandler, port=int(sys.argv[1]))",
    );
    let port = crate::support::free_port().to_string();
    let mut command = roundsman();
    command.current_dir(&dir);
    let upstream = format!("127.0.0.1:{port}");
    let words = [
        "-l",
        "127.0.0.1:0",
        "-i",
        "1",
        "--proxy-from",
        "10.0.0.0/8",
        "-u",
        &upstream,
        "--",
        "python3",
        "app.py",
        &port,
    ];
    let mut daemon = Daemon::launch(command, &words, 0);
    daemon.wait_online(1);
    let real = daemon.ls();
    let service = &real["services"][0];
    let part = |name: &str| match name {
        "daemon" => &real,
        "service" => service,
        "listener" => &service["listen"][0],
        "slot" => &service["slots"][0],
        "upstream" => &service["upstreams"][0],
        other => &service[other],
    };
    let mut shown: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for row in rows(&document("docs/reference.md"), "| of | fields | meaning |") {
        shown.entry(row[0].clone()).or_default().extend(quoted(&row[1]));
    }
    for (name, mut fields) in shown {
        let real: BTreeSet<_> = part(&name).as_object().unwrap().keys().cloned().collect();
        // Only there when they are true.
        let rare =
            ["access_lost", "stopped", "finished", "drain", "recycled", "open_is_estimate", "limit_reached", "hash_on"];
        fields.retain(|field| real.contains(field) || !rare.contains(&field.as_str()));
        assert_eq!(fields, real, "{name}");
    }
    assert_eq!(daemon.stop().code(), 0);
}

/// A heading as a part of an address.
fn anchor(heading: &str) -> String {
    let kept = |c: &char| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_');
    heading.trim_start_matches('#').trim().to_lowercase().chars().filter(kept).collect::<String>().replace(' ', "-")
}

#[test]
fn links_lead_somewhere() {
    let mut all = documents();
    for name in ["ARCHITECTURE.md", "SECURITY.md", "CONTRIBUTING.md", "CHANGELOG.md", "bench/README.md"] {
        all.push((Path::new(ROOT).join(name), document(name)));
    }
    let mut seen = 0;
    for (path, text) in &all {
        for link in text.split("](").skip(1).map(|rest| rest.split(')').next().unwrap()) {
            let (file, part) = link.split_once('#').map_or((link, None), |(file, part)| (file, Some(part)));
            if file.starts_with("http") {
                continue;
            }
            let target = if file.is_empty() { path.clone() } else { path.parent().unwrap().join(file) };
            assert!(target.exists(), "{}: {link}", path.display());
            if let Some(part) = part {
                let there = std::fs::read_to_string(&target).unwrap();
                let found = there.lines().any(|line| line.starts_with('#') && anchor(line) == part);
                assert!(found, "{}: {link}", path.display());
            }
            seen += 1;
        }
    }
    assert!(seen >= 40, "{seen}");
}

/// Names of sources in ARCHITECTURE.md, CONTRIBUTING.md and docs/.
#[test]
fn sources_that_are_named_exist() {
    let mut all = documents();
    for name in ["ARCHITECTURE.md", "CONTRIBUTING.md", "SECURITY.md", "bench/README.md"] {
        all.push((Path::new(ROOT).join(name), document(name)));
    }
    let mut seen = 0;
    for (path, text) in &all {
        for name in text.lines().flat_map(quoted).filter(|name| name.ends_with(".rs") && !name.contains(' ')) {
            let places = [format!("{ROOT}/src/{name}"), format!("{ROOT}/src/direct/{name}"), format!("{ROOT}/{name}")];
            assert!(places.iter().any(|place| Path::new(place).is_file()), "{}: {name}", path.display());
            seen += 1;
        }
    }
    assert!(seen >= 50, "{seen}");
}

/// The table of modules is that of tests/structure, which holds the sources to it. `UPDATE_DOCS=1` renews its last column.
#[test]
fn the_table_of_modules_is_the_one_that_is_guarded() {
    let guard = document("tests/structure/main.rs");
    let guard = guard.split("const ALLOWED").nth(1).unwrap().split("];").next().unwrap();
    let lists: Vec<_> = guard.split("&[").skip(1).collect();
    let text = document("ARCHITECTURE.md");
    let shown = rows(&text, "| module | subject | imports |");
    let mut wanted = Vec::new();
    for pair in lists.windows(2) {
        // A row's name stands before its list.
        let name = pair[0].rsplit('(').next().unwrap().split('"').nth(1).unwrap();
        let imports = pair[1].split(']').next().unwrap().split('"').skip(1).step_by(2);
        let imports: Vec<_> = imports.map(|import| format!("`{import}`")).collect();
        let subject = shown.iter().find(|row| row[0] == format!("`{name}`")).map_or("?", |row| row[1].as_str());
        let imports = if imports.is_empty() { "–".to_owned() } else { imports.join(", ") };
        wanted.push(format!("| `{name}` | {subject} | {imports} |"));
    }
    assert!(wanted.len() >= 20, "{wanted:?}");
    let (before, table) = text.split_once("| module | subject | imports |\n|---|---|---|\n").unwrap();
    let (table, after) = table.split_once("\n\n").unwrap();
    let wanted = wanted.join("\n");
    if std::env::var_os("UPDATE_DOCS").is_some() {
        let all = format!("{before}| module | subject | imports |\n|---|---|---|\n{wanted}\n\n{after}");
        std::fs::write(format!("{ROOT}/ARCHITECTURE.md"), all).unwrap();
    } else {
        assert_eq!(table, wanted, "ARCHITECTURE.md: UPDATE_DOCS=1 cargo test --test e2e table_of_modules renews it");
    }
    assert!(!wanted.contains("| ? |"), "a module without a subject: {wanted}");
}

/// The table of events: names, and fields of each.
pub fn table_of_events() -> BTreeMap<String, BTreeSet<String>> {
    let rows = rows(&document("docs/reference.md"), "| event | fields | when |");
    let named = rows.iter().flat_map(|row| quoted(&row[0]).into_iter().map(|name| (name, &row[1])));
    named.map(|(name, fields)| (name, quoted(fields).into_iter().collect())).collect()
}

#[test]
fn the_table_of_events_has_all_names_of_the_sources() {
    let mut sources: Vec<_> = vec![Path::new(ROOT).join("src")];
    let mut names = BTreeSet::from(["note".to_owned()]);
    while let Some(path) = sources.pop() {
        if path.is_dir() {
            sources.extend(std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        for level in ["info!(", "warn!(", "error!("] {
            let calls = text.split(level).skip(1).filter_map(|call| call.trim_start().strip_prefix("name: \""));
            names.extend(calls.map(|call| call.split('"').next().unwrap().to_owned()));
        }
    }
    assert!(names.len() > 30, "{names:?}");
    assert_eq!(table_of_events().into_keys().collect::<BTreeSet<_>>(), names);
}
