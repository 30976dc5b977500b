//! A stand-in is a listening socket: random sequences of socket calls answer the same natively and under direct delivery.
//!
//! With `MODEL_SEED` one run is made, of `MODEL_COUNT` sequences from that seed on, with `MODEL_LIBC` (glibc, musl) and
//! `MODEL_POLICY`. `MODEL_EVERYTHING=1` also tries what is known to differ. What is found is shown by kind, with seeds and
//! the shortest sequence (`MODEL_SHRINK` kinds of them).
//! Mostly waits: tests/run runs it beside others.

mod allowed;
mod compare;
mod effects;
mod sequences;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use crate::support::step_programs;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Whether also the sequences are made that are known to differ.
fn everything() -> bool {
    number("MODEL_EVERYTHING") == Some(1)
}

fn same_as_natively(program: &str, policy: &str, first: u64, count: u64) {
    let seeds = first..first + count;
    let (seeds, sequences): (Vec<u64>, Vec<_>) =
        seeds.map(|seed| (seed, sequences::sequence(seed, policy == "none"))).unzip();
    let differing = compare::compare(program, policy, &sequences);
    let mut kinds: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    for (at, difference) in &differing {
        kinds.entry(difference.kind()).or_default().push(*at);
    }
    let mut kinds: Vec<_> = kinds.into_iter().collect();
    kinds.sort_by_key(|(_, places)| std::cmp::Reverse(places.len()));
    let mut report = String::new();
    for (n, (kind, places)) in kinds.iter().enumerate() {
        let some: Vec<u64> = places.iter().take(5).map(|&at| seeds[at]).collect();
        writeln!(report, "{} of {}: {kind}; seeds {some:?}", places.len(), seeds.len()).unwrap();
        if n < number("MODEL_SHRINK").unwrap_or(4) as usize {
            let shortest = places.iter().min_by_key(|&&at| sequences[at].len()).unwrap();
            let steps = compare::shrink(program, policy, &sequences[*shortest], &differing[shortest]);
            steps.iter().for_each(|step| writeln!(report, "    {step}").unwrap());
        }
    }
    assert!(differing.is_empty(), "{} of {} differ ({program}, {policy})\n{report}", differing.len(), seeds.len());
}

#[test]
fn sequences_of_calls_answer_as_natively() {
    let [glibc, musl] = step_programs();
    if let Some(first) = number("MODEL_SEED") {
        let of = |name: &str, otherwise: &str| std::env::var(name).unwrap_or(otherwise.to_owned());
        let program = if of("MODEL_LIBC", "glibc") == "musl" { musl } else { glibc };
        return same_as_natively(program, &of("MODEL_POLICY", "rr"), first, number("MODEL_COUNT").unwrap_or(1));
    }
    same_as_natively(glibc, "rr", 1, 600);
    same_as_natively(musl, "rr", 10_001, 250);
    same_as_natively(glibc, "none", 20_001, 150);
}

#[test]
#[ignore = "a hundred thousand sequences take an hour"]
fn very_many_sequences_of_calls_answer_as_natively() {
    let [glibc, musl] = step_programs();
    same_as_natively(glibc, "rr", 1_000_000, 50_000);
    same_as_natively(musl, "rr", 2_000_000, 40_000);
    same_as_natively(glibc, "none", 3_000_000, 10_000);
}

/// The shortest sequences of what was found and mended.
#[test]
fn what_differed_once_answers_as_natively() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/e2e/direct/model/found");
    let mut files: Vec<_> = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(!files.is_empty());
    let sequences: Vec<_> = files.iter().map(|file| compare::parse(file)).collect();
    for program in step_programs() {
        let differing = compare::compare(program, "rr", &sequences);
        let named: Vec<_> = differing.iter().map(|(&at, found)| (&files[at], found)).collect();
        assert!(named.is_empty(), "{program}: {named:#?}");
    }
}
