//! What the preload library adds to each byte that a server moves: read, write, recv and send on descriptors that are not
//! stand-ins.

use std::collections::BTreeMap;
use std::process::{Command, Stdio};

use crate::support::listener_programs;
use crate::worker::number_behind;

const LIBRARY: &str = concat!(env!("OUT_DIR"), "/preload.so");
/// How often the program moves a byte: by write, read, send and recv.
const FEW: u32 = 1_000;
const MANY: u32 = 3_000;
const CALLS: f64 = 4.0;

fn moves(tool: &mut Command, program: &str, count: u32) -> String {
    let output = tool
        .args([program, "moves", &count.to_string(), "/dev/null"])
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("{error} (tests/install)"));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_read_or_write_elsewhere_costs_a_few_instructions() {
    for program in listener_programs() {
        let instructions = |library: Option<&str>, count| {
            let mut tool = Command::new("valgrind");
            tool.args(["--tool=callgrind", "--callgrind-out-file=/dev/null"]);
            tool.envs(library.map(|library| ("LD_PRELOAD", library)));
            number_behind(&moves(&mut tool, program, count), "Collected")
        };
        let each =
            |library| (instructions(library, MANY) - instructions(library, FEW)) / (f64::from(MANY - FEW) * CALLS);
        let (natively, with) = (each(None), each(Some(LIBRARY)));
        println!("{program}: {natively:.2} instructions per call, {with:.2} with the library");
        assert!(with > natively, "{program}: the library was not in between");
        // A bound, a load, a comparison and a jump.
        assert!(with - natively <= 10.5, "{program}: {natively:.2}, {with:.2} with the library");
    }
}

#[test]
fn a_read_or_write_elsewhere_makes_no_other_system_call() {
    let calls = |program: &str, count| {
        let mut strace = Command::new("strace");
        strace.args(["-f", "-qqq", "-E", &format!("LD_PRELOAD={LIBRARY}")]);
        let mut calls = BTreeMap::<String, i64>::new();
        for line in moves(&mut strace, program, count).lines() {
            let name = line.split('(').next().unwrap_or_default().rsplit(' ').next().unwrap_or_default();
            *calls.entry(name.to_owned()).or_default() += 1;
        }
        calls
    };
    for program in listener_programs() {
        let (few, many) = (calls(program, FEW), calls(program, MANY));
        let more: BTreeMap<_, _> =
            many.iter().map(|(name, n)| (name.as_str(), n - few.get(name).unwrap_or(&0))).collect();
        let expected = ["read", "recvfrom", "sendto", "write"].map(|name| (name, i64::from(MANY - FEW)));
        let changed: BTreeMap<_, _> = more.into_iter().filter(|(_, more)| *more != 0).collect();
        assert_eq!(changed, expected.into(), "{program}");
    }
}
