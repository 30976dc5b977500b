//! Who may import whom, as a graph.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use crate::source::Use;

/// For each module what it may import: a module, or a part of one (`accept::policy`).
pub type Table<'a> = &'a [(&'a str, &'a [&'a str])];

/// What is wrong with the imports of modules: new ones, stale rows, unknown modules, cycles. Empty when nothing is.
pub fn check(modules: &[&str], imports: &[(String, Use)], table: Table<'_>) -> String {
    let mut wrong = String::new();
    let rows: BTreeMap<&str, &[&str]> = table.iter().copied().collect();
    for module in modules.iter().filter(|module| !rows.contains_key(*module)) {
        let _ = writeln!(wrong, "module {module} has no row");
    }
    for row in rows.keys().filter(|row| !modules.contains(row)) {
        let _ = writeln!(wrong, "row {row} has no module");
    }
    let (mut used, mut new) = (BTreeSet::new(), BTreeMap::<_, Vec<_>>::new());
    for (from, import) in imports.iter().filter(|(from, import)| import.path.first() != Some(from)) {
        let Use { path, file, line } = import;
        if !path.first().is_some_and(|to| modules.contains(&to.as_str())) {
            let _ = writeln!(wrong, "{}:{line}: {} is in no module", file.display(), path.join("::"));
            continue;
        }
        let allowed = rows.get(from.as_str()).copied().unwrap_or_default();
        let covers =
            |entry: &&&str| entry.split("::").enumerate().all(|(at, part)| path.get(at).is_some_and(|p| p == part));
        match allowed.iter().find(covers) {
            Some(entry) => drop(used.insert((from.as_str(), *entry))),
            None => new.entry((from, &path[0])).or_default().push(import),
        }
    }
    for ((from, to), imports) in new {
        let Use { path, file, line } = imports[0];
        let others =
            if imports.len() > 1 { format!(", and {} more of {to}", imports.len() - 1) } else { String::new() };
        let _ = writeln!(wrong, "{}:{line}: {from} may not import {}{others}", file.display(), path.join("::"));
    }
    for (from, entries) in &rows {
        for entry in entries.iter().filter(|entry| !used.contains(&(*from, **entry))) {
            let _ = writeln!(wrong, "{from} does not import {entry}: delete it from the table");
        }
    }
    let direct: BTreeMap<&str, BTreeSet<&str>> = modules
        .iter()
        .map(|module| {
            let of = imports.iter().filter(|(from, _)| from == module);
            (
                *module,
                of.filter_map(|(_, import)| import.path.first().map(String::as_str))
                    .filter(|to| to != module)
                    .collect(),
            )
        })
        .collect();
    for module in modules {
        if let Some(cycle) = cycle(module, &direct) {
            let _ = writeln!(wrong, "cycle: {}", cycle.join(" -> "));
        }
    }
    wrong
}

/// The shortest way from a module to itself.
fn cycle<'a>(module: &'a str, direct: &BTreeMap<&'a str, BTreeSet<&'a str>>) -> Option<Vec<&'a str>> {
    let mut ways = vec![vec![module]];
    let mut seen = BTreeSet::new();
    while !ways.is_empty() {
        let mut next = Vec::new();
        for way in &ways {
            for &to in direct.get(way[way.len() - 1]).into_iter().flatten() {
                let longer = [way.as_slice(), &[to]].concat();
                if to == module {
                    return Some(longer);
                }
                if seen.insert(to) {
                    next.push(longer);
                }
            }
        }
        ways = next;
    }
    None
}
