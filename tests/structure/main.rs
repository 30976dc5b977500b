//! The structure of the sources: which module may import which, how large they may become. A rule that is broken here is
//! a question of design; the answer is a change of the code, or of the table with a reason in the commit.
#![allow(clippy::unwrap_used)]

mod graph;
mod source;
mod types;

use std::collections::BTreeMap;
use std::path::Path;

use graph::Table;
use source::{Source, Use, crate_of, paths};

/// What each module imports. `main` is the program; a part of a module (`accept::policy`) means nothing else of it.
const ALLOWED: Table<'_> = &[
    ("abi", &[]),
    ("addr", &[]),
    ("affinity", &[]),
    ("cidr", &[]),
    ("proxy_protocol", &["cidr"]),
    ("codes", &[]),
    ("events", &[]),
    ("exchange", &[]),
    ("limited", &[]),
    ("lines", &[]),
    ("sys", &["abi"]),
    ("record", &["sys"]),
    ("output", &["record", "sys"]),
    ("proc_net", &["sys"]),
    ("program", &["codes", "sys"]),
    ("listener", &["addr", "proc_net", "record", "sys"]),
    ("handoff", &["abi", "record", "sys"]),
    ("access", &["abi", "handoff", "limited", "output", "record", "sys"]),
    ("accept", &["affinity", "cidr", "handoff", "proxy_protocol", "record", "sys"]),
    ("relay", &["abi", "addr", "exchange", "handoff", "proxy_protocol", "sys"]),
    ("node", &["affinity", "lines", "record", "sys"]),
    ("keeper", &["abi", "codes", "handoff", "sys"]),
    (
        "config",
        &[
            "abi::page::upstream::MAX_WEIGHT",
            "accept::policy::Policy",
            "access::settings",
            "addr",
            "affinity::HashOn",
            "cidr",
            "output::LogFormat",
            "output::files::Files",
            "output::sinks::Format",
            "program",
            "proxy_protocol",
            "sys::process::Credentials",
            "sys::reason",
        ],
    ),
    ("launch", &["codes", "keeper::gives", "output", "program", "sys"]),
    ("direct", &["abi", "events", "keeper::probe", "launch", "limited", "program", "record", "sys"]),
    (
        "control",
        &[
            "abi::page::latency",
            "config::instances::Change",
            "events",
            "handoff::page::Counts",
            "lines",
            "record",
            "sys::reason",
        ],
    ),
    ("admin", &["abi", "addr", "control", "limited", "listener::BACKLOG", "output::recent", "sys"]),
    (
        "worker",
        &[
            "abi",
            "accept",
            "access",
            "addr",
            "codes",
            "config",
            "direct",
            "events",
            "handoff",
            "keeper::gives",
            "launch",
            "limited",
            "node",
            "proc_net",
            "program",
            "record",
            "relay::protocol",
            "sys",
        ],
    ),
    ("slot", &["accept::orders", "config", "handoff::page", "record", "relay::protocol::ToWorker", "sys", "worker"]),
    (
        "service",
        &[
            "abi", "accept", "access", "addr", "affinity", "config", "direct", "events", "handoff", "launch",
            "limited", "listener", "node", "proc_net", "record", "relay", "slot", "sys", "worker",
        ],
    ),
    (
        "daemon",
        &[
            "abi::attach::VERSION",
            "abi::payload::VERSION",
            "accept",
            "access",
            "addr",
            "admin",
            "affinity",
            "config",
            "control",
            "direct",
            "events",
            "launch",
            "limited",
            "listener",
            "output",
            "program",
            "record",
            "relay",
            "service",
            "slot",
            "sys",
            "worker",
        ],
    ),
    (
        "exit",
        &[
            "codes",
            "config::error",
            "control::server::NameTaken",
            "daemon::DaemonError",
            "daemon::ListenError",
            "daemon::upgrade::takeover::TakeoverError",
            "sys::reason",
            "worker::delivery::DeliveryError",
        ],
    ),
    (
        "cli",
        &[
            "accept::policy::Policy",
            "addr",
            "codes",
            "config",
            "control",
            "exit",
            "output",
            "program",
            "sys::reason",
            "sys::session",
            "worker::Delivery",
            "worker::delivery",
        ],
    ),
    ("main", &["admin", "cli", "codes", "config", "control", "daemon", "exit", "keeper", "launch", "output", "relay"]),
];

/// No module has more than this share of all code, in percent.
const MAX_SHARE: usize = 15;
/// Lines of a file.
const MAX_LINES: usize = 400;
/// Functions in `impl Service`, and those that take `&mut Service`.
const MAX_FUNCTIONS: usize = 35;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn library() -> Vec<Source> {
    crate_of(&root().join("src/lib.rs"))
}

/// Each import with the top-level module in which it stands.
fn imports(sources: &[Source]) -> Vec<(String, Use)> {
    let of = |source: &Source| {
        let from = source.module.first().map_or("main", String::as_str).to_owned();
        paths(source, "roundsman").into_iter().map(move |import| (from.clone(), import))
    };
    sources.iter().flat_map(of).collect()
}

fn names(sources: &[Source]) -> Vec<&str> {
    let mut names: Vec<&str> = sources.iter().filter_map(|source| Some(source.module.first()?.as_str())).collect();
    names.dedup();
    names.push("main");
    names
}

#[test]
fn modules_import_what_the_table_allows_and_never_in_a_circle() {
    let library = library();
    let program = crate_of(&root().join("src/main.rs"));
    let imports = [imports(&library), imports(&program)].concat();
    let wrong = graph::check(&names(&library), &imports, ALLOWED);
    assert!(wrong.is_empty(), "\n{wrong}");
}

#[test]
fn the_preload_library_has_nothing_of_the_program_but_abi_and_exchange() {
    let preload = crate_of(&root().join("src/direct/preload/lib.rs"));
    let own = ["src/direct/preload", "src/abi", "src/exchange"].map(|path| root().join(path).canonicalize().unwrap());
    for source in preload {
        let file = source.file.canonicalize().unwrap();
        assert!(own.iter().any(|own| file.starts_with(own)), "{}", file.display());
    }
}

/// Lines without those of unit tests, which stand at the end of a file or in files of their own.
fn code_lines(file: &Path, text: &str) -> usize {
    let of_tests = |part: &std::ffi::OsStr| {
        let part = part.to_string_lossy();
        part.ends_with("tests.rs") || part == "fake.rs" || part == "simulation"
    };
    if file.iter().any(of_tests) {
        return 0;
    }
    let mut lines = text.lines().zip(text.lines().skip(1)).enumerate();
    let tests = lines.find(|(_, (line, next))| *line == "#[cfg(test)]" && !next.ends_with(';'));
    tests.map_or(text.lines().count(), |(at, _)| at)
}

#[test]
fn no_module_and_no_file_is_too_large() {
    let (mut lines, mut wrong) = (BTreeMap::<String, usize>::new(), Vec::new());
    let mut directories = vec![root().join("src")];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
                continue;
            }
            let text = std::fs::read_to_string(&path).unwrap();
            let count = text.lines().count();
            let below = path.strip_prefix(root().join("src")).unwrap();
            let module = match below.starts_with("direct/preload") {
                // A library of its own, for other programs.
                true => "preload".into(),
                false => below.components().next().unwrap().as_os_str().to_string_lossy(),
            };
            *lines.entry(module.trim_end_matches(".rs").to_owned()).or_default() += code_lines(below, &text);
            let max = MAX_LINES;
            if count > max {
                wrong.push(format!("{}: {count} lines, {max} at most", below.display()));
            }
        }
    }
    let all: usize = lines.values().sum();
    for (module, lines) in lines {
        let max = MAX_SHARE;
        if lines * 100 > all * max {
            wrong.push(format!("{module}: {lines} of {all} lines, {max} % at most"));
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn a_service_has_few_functions_and_no_open_fields() {
    let library = library();
    let functions = types::functions_of("Service", &library);
    let max = MAX_FUNCTIONS;
    assert!(functions.len() <= max, "{} functions, {max} at most: {functions:?}", functions.len());
    let fields = types::visible_fields("Service", &library).len();
    assert_eq!(fields, 0, "fields of Service are visible to others");
}

#[test]
fn errors_have_types() {
    let manifest = std::fs::read_to_string(root().join("Cargo.toml")).unwrap();
    assert!(!manifest.lines().any(|line| line.starts_with("anyhow")), "each module has its own errors");
}

fn source(module: &[&str], text: &str) -> Source {
    let module = module.iter().map(|name| (*name).to_owned()).collect();
    Source { file: "x.rs".into(), module, tokens: source::tokens(text) }
}

fn paths_in(module: &[&str], text: &str) -> Vec<String> {
    paths(&source(module, text), "roundsman").into_iter().map(|found| found.path.join("::")).collect()
}

#[test]
fn a_path_is_found_however_it_is_written() {
    for (text, wanted) in [
        ("use crate::a::B;", &["a::B"][..]),
        ("pub use crate::a::{self, b::{C, D as E}, f::*};", &["a::self", "a::b::C", "a::b::D", "a::f::*"]),
        ("use crate::{a, b::{C}, d::E};", &["a", "b::C", "d::E"]),
        ("use {crate::a::B, std::io};", &["a::B"]),
        (
            "fn f(x: &crate::a::B<crate::c::D>) -> crate::e::F { crate::g::h::<u8>(x) }",
            &["a::B", "c::D", "e::F", "g::h"],
        ),
        ("impl crate::a::B for X {}", &["a::B"]),
        ("let x = roundsman::a::b();", &["a::b"]),
        ("macro_rules! m { () => { $crate::a::b() } }", &["a::b"]),
        ("use super::a::B;", &["top::a::B"]),
        ("use super::super::a::B;", &["a::B"]),
        ("mod tests { use super::super::super::a::B; } use super::c;", &["a::B", "top::c"]),
        ("mod tests { fn f() { if x {} } use super::*; }", &["top::inner::*"]),
        ("pub(crate) fn f() {} pub(super) fn g() {}", &[]),
        (
            "// crate::a::B\n/* crate::a /* x */ crate::b */ \"crate::c\" r#\"crate::d \" \"# b\"\\\"crate::e\" '\"' 'a'",
            &[],
        ),
        ("fn f<'a>(x: &'a str) { ('{', '\\'', crate::a::b) }", &["a::b"]),
    ] {
        assert_eq!(paths_in(&["top", "inner"], text), wanted, "{text}");
    }
}

#[test]
#[should_panic(expected = "gets another name")]
fn the_root_has_one_name() {
    paths_in(&["a"], "use crate as c; use c::b::D;");
}

#[test]
fn what_the_table_does_not_say_is_wrong() {
    let import = |from: &str, path: &str| {
        let path = path.split("::").map(str::to_owned).collect();
        (from.to_owned(), Use { path, file: "x.rs".into(), line: 7 })
    };
    let table: Table<'_> = &[("a", &["b::c"]), ("b", &[]), ("main", &["a"])];
    let modules = ["a", "b", "main"];
    let right = [import("a", "b::c::D"), import("main", "a::f"), import("b", "b::own")];
    assert_eq!(graph::check(&modules, &right, table), "");
    let with = |more| graph::check(&modules, &[&right[..], &[more]].concat(), table);
    assert_eq!(with(import("a", "b::other")), "x.rs:7: a may not import b::other\n");
    assert_eq!(with(import("a", "x::y")), "x.rs:7: x::y is in no module\n");
    let circle = with(import("b", "a"));
    assert!(circle.contains("b may not import a") && circle.contains("cycle: a -> b -> a"), "{circle}");
    assert_eq!(graph::check(&modules, &right[..1], table), "main does not import a: delete it from the table\n");
    assert_eq!(graph::check(&["a", "b", "d", "main"], &right, table), "module d has no row\n");
    assert_eq!(graph::check(&["a", "b"], &right, table), "row main has no module\n");
}

#[test]
fn functions_and_fields_are_counted_wherever_they_are() {
    let text = "pub struct Service { pub a: A, b: fn(u8) -> B, pub(super) c: C<{ 1 }>, d: [u8; { pub_(); 2 }] }
        impl Service { pub fn one(&self) { fn inner() {} } pub(super) fn two(&mut self) -> impl Fn(u8) { |_| {} } }
        impl<'a> From<Service> for Other { fn from(x: Service) -> Self { x } }
        impl fmt::Display for crate::Service { fn fmt(&self) {} }
        impl Services { fn no(&self) {} }
        fn three(service: &mut Service, x: u8) {} fn no(service: &Service) {}";
    let sources = [source(&["a"], text)];
    assert_eq!(types::functions_of("Service", &sources), ["one", "two", "fmt", "three"]);
    assert_eq!(types::visible_fields("Service", &sources), ["a", "c"]);
}
