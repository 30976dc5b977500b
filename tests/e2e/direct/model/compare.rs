//! Runs sequences natively and under direct delivery, each in a network namespace of its own, and finds the first step whose
//! answer differs.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use super::sequences::Step;
use crate::support::{Daemon, Killed, eventually, install_dir, seconds};

/// Sequences of one run of the program: each has ports of its own, below the ephemeral ones.
const BATCH: usize = 500;

/// The first step of a sequence that answers otherwise than natively.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    pub step: String,
    pub native: String,
    pub direct: String,
}

impl Difference {
    /// What is the same for the same cause: the call and both answers, without the place in the script.
    pub fn kind(&self) -> String {
        format!("{}: {} natively, {} directly", self.step, self.native, self.direct)
    }
}

/// Runs all sequences both ways; the differences by the sequences' places. One that does not show again is no difference:
/// a machine that stood still made a timer too short.
pub fn compare(program: &str, policy: &str, sequences: &[Vec<Step>]) -> BTreeMap<usize, Difference> {
    let mut found = BTreeMap::new();
    for (batch, part) in sequences.chunks(BATCH).enumerate() {
        let mut differing = once(program, policy, part, Of::Whole);
        for _ in 0..2 {
            let places: Vec<usize> = differing.keys().copied().collect();
            if places.is_empty() {
                break;
            }
            let again: Vec<_> = places.iter().map(|&at| part[at].clone()).collect();
            let seen = once(program, policy, &again, Of::Whole);
            differing = seen.into_iter().map(|(at, difference)| (places[at], difference)).collect();
        }
        found.extend(differing.into_iter().map(|(at, difference)| (batch * BATCH + at, difference)));
    }
    found
}

/// What is compared.
#[derive(PartialEq, Eq)]
enum Of {
    Whole,
    /// Sequences that may have lost what makes them listen.
    Shorter,
}

fn once(program: &str, policy: &str, sequences: &[Vec<Step>], of: Of) -> BTreeMap<usize, Difference> {
    let dir = install_dir();
    let mut text = String::new();
    for (at, sequence) in sequences.iter().enumerate() {
        writeln!(text, "seq {at} 0 0 0").unwrap();
        sequence.iter().for_each(|step| writeln!(text, "{step}").unwrap());
    }
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (script, native, direct) = (path("script"), path("native"), path("direct"));
    std::fs::write(&script, text).unwrap();
    let apart = |command: &[&str]| {
        let mut apart = Command::new("unshare");
        apart.args(["-n", "sh", "-c", "ip link set lo up && exec \"$0\" \"$@\""]).args(command);
        apart.stdin(Stdio::null());
        apart
    };
    let _native = Killed::spawn(&mut apart(&[program, &script, &native]));
    // What a worker binds after the first start of all slots is left to the kernel: that of the second one, which only waits,
    // does not end.
    let options =
        ["-i", "2", "--listen-timeout", "1h", "-p", policy, "--via", "direct", "--", program, &script, &direct];
    let daemon = Daemon::launch(apart(&[env!("CARGO_BIN_EXE_roundsman")]), &options, 0);
    let limit = seconds(120 + 2 * sequences.len() as u64);
    let [native, direct] = [native, direct].map(|file| {
        let whole = || std::fs::read_to_string(&file).ok();
        let what = || format!("{file}\n{}", daemon.log());
        eventually(&what(), limit, whole)
    });
    if of == Of::Shorter {
        return differences(&native, &direct);
    }
    // Not the kernel's: else the comparison says nothing.
    let listens = sequences.iter().filter(|steps| steps.iter().any(|step| step.0 == "listen")).count();
    let listening = || (daemon.log().matches(" listening ").count() > listens / 2).then_some(());
    eventually(&format!("half of {listens} listeners"), seconds(20), listening);
    differences(&native, &direct)
}

/// The answers of one run, by sequence: `NUMBER NAME ANSWER` each.
fn blocks(text: &str) -> Vec<Vec<(&str, &str)>> {
    let mut blocks: Vec<Vec<(&str, &str)>> = Vec::new();
    for line in text.lines() {
        let (_, rest) = line.split_once(' ').unwrap_or_default();
        let (name, answer) = rest.split_once(' ').unwrap_or((rest, ""));
        match name {
            "seq" => blocks.push(Vec::new()),
            _ => blocks.last_mut().unwrap().push((name, answer)),
        }
    }
    blocks
}

fn differences(native: &str, direct: &str) -> BTreeMap<usize, Difference> {
    let (native, direct) = (blocks(native), blocks(direct));
    assert_eq!(native.len(), direct.len());
    let mut found = BTreeMap::new();
    for (at, (native, direct)) in native.iter().zip(&direct).enumerate() {
        let none = ("", "nothing");
        for step in 0..native.len().max(direct.len()) {
            let (a, b) = (native.get(step).unwrap_or(&none), direct.get(step).unwrap_or(&none));
            if a != b {
                let name = if a.0.is_empty() { b.0 } else { a.0 };
                let texts = (a.1.to_owned(), b.1.to_owned());
                found.insert(at, Difference { step: name.to_owned(), native: texts.0, direct: texts.1 });
                break;
            }
        }
    }
    found
}

/// The shortest sequence that this one can be cut down to, step by step, with the same difference.
pub fn shrink(program: &str, policy: &str, sequence: &[Step], difference: &Difference) -> Vec<Step> {
    let mut best = sequence.to_vec();
    loop {
        let shorter: Vec<Vec<Step>> = (0..best.len()).rev().filter_map(|at| without(&best, at)).collect();
        let same = once(program, policy, &shorter, Of::Shorter);
        let found = same.iter().find(|(_, other)| other.kind() == difference.kind());
        let Some((&at, _)) = found else { return best };
        best = shorter[at].clone();
    }
}

/// The sequence without one step; a fork or exec goes with all of its steps, and stays for the others of them.
fn without(sequence: &[Step], at: usize) -> Option<Vec<Step>> {
    let mut shorter = sequence.to_vec();
    let removed = shorter.remove(at);
    let is_child = |step: &Step| matches!(step.0, "fork" | "exec");
    if is_child(&removed) {
        shorter.drain(at..(at + removed.1[0] as usize).min(shorter.len()));
    } else if let Some(parent) = (0..at).rev().find(|&parent| is_child(&sequence[parent]))
        && at <= parent + sequence[parent].1[0] as usize
    {
        shorter[parent].1[0] -= 1;
        if shorter[parent].1[0] == 0 {
            return None;
        }
    }
    (!shorter.is_empty()).then_some(shorter)
}

/// A sequence as it is kept in a file.
pub fn parse(path: &Path) -> Vec<Step> {
    let text = std::fs::read_to_string(path).unwrap();
    let step = |line: &str| {
        let mut words = line.split_whitespace();
        let name: &'static str = String::leak(words.next()?.to_owned());
        let numbers: Vec<i32> = words.map(|word| word.parse().unwrap()).collect();
        Some(Step(name, numbers.try_into().ok()?))
    };
    text.lines().filter(|line| !line.starts_with('#')).filter_map(step).collect()
}
