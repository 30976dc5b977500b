//! `after`: services that start when others are ready.

use super::diagnostics::Problem;
use super::error::Kind;
use super::file::File;
use super::sources::Setting;
use super::{ServiceConfig, blame};
use std::collections::BTreeMap;

/// Reports names that the file does not have, and services that wait for each other.
pub fn check(file: &File, loaded: &[(ServiceConfig, BTreeMap<String, Setting>)], problems: &mut Vec<Problem>) {
    let known = |name: &str| file.services.iter().any(|section| section.name == name);
    for (service, _) in loaded {
        let Some(section) = file.services.iter().find(|section| section.name == service.name) else { continue };
        let unknown = service.after.iter().find(|name| !known(name));
        let kind = match unknown {
            Some(name) => {
                let known = file.services.iter().map(|section| section.name.as_str()).collect::<Vec<_>>().join(", ");
                Some(Kind::NoService { name: name.clone(), known })
            }
            None => circle(&service.name, loaded).map(Kind::Circle),
        };
        problems.extend(kind.map(|kind| blame(&kind.of("after"), section)));
    }
}

/// The way from a service back to itself, if that is the first one on it.
fn circle(start: &str, loaded: &[(ServiceConfig, BTreeMap<String, Setting>)]) -> Option<String> {
    let after = |name: &str| loaded.iter().find(|(service, _)| service.name == name).map(|(service, _)| &service.after);
    // Names that lead on, each with the way there.
    let mut ways: Vec<Vec<&str>> = vec![vec![start]];
    let mut seen: Vec<&str> = Vec::new();
    while let Some(way) = ways.pop() {
        for next in way.last().and_then(|last| after(last)).into_iter().flatten() {
            if next == start {
                let first = way.iter().min().is_some_and(|first| *first == start);
                return first.then(|| format!("{} → {start}", way.join(" → ")));
            }
            if !seen.contains(&next.as_str()) {
                seen.push(next);
                ways.push(way.iter().copied().chain([next.as_str()]).collect());
            }
        }
    }
    None
}
