//! Records of other versions. `records` has one of each version that was ever written, with workers of every kind, clients that wait, and
//! a worker on its way out: what reads it no more cannot take over from a daemon that runs.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde_json::{Value, json};

use super::said;
use crate::support::{install_dir, roundsman, write_file};

fn records() -> Vec<PathBuf> {
    let all = std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/e2e/upgrade/records")).unwrap();
    let all: Vec<PathBuf> = all.map(|entry| entry.unwrap().path()).collect();
    assert!(!all.is_empty());
    all
}

/// Whether a daemon could be taken over that left this; what is said of it.
fn tried(record: &Path) -> (i32, String) {
    let file = std::fs::File::open(record).unwrap();
    said(roundsman().args(["try-record", "-c", "nothing.toml"]).stdin(Stdio::from(file)).output().unwrap())
}

#[test]
fn records_of_versions_before_are_understood() {
    let dir = install_dir();
    for path in records() {
        let (code, text) = tried(&path);
        assert!(code == 0 && text.contains("can go on"), "{}: {text}", path.display());
        let record: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        let other = |change: &dyn Fn(&mut Value)| {
            let mut record = record.clone();
            change(&mut record);
            tried(&write_file(dir.path(), "record.json", &record.to_string()))
        };
        // What a later version of the same number adds.
        let (code, text) = other(&|record| {
            record["later"] = json!({"a": [1]});
            record["services"][0]["later"] = json!(true);
            record["services"][0]["slots"][0]["later"] = json!(null);
        });
        assert_eq!(code, 0, "{text}");
        for (at, version) in [(0, 99), (1, 99), (2, 0)] {
            let (code, text) = other(&|record| record["versions"][at] = json!(version));
            assert!(code == 1 && text.contains("version"), "{text}");
        }
        let (code, text) = other(&|record| *record = json!({"versions": record["versions"], "version": "0.0.0"}));
        assert!(code == 1 && text.contains("cannot read the record"), "{text}");
        let (code, text) = other(&|record| record["services"][0]["via"] = json!("relay"));
        assert!(code == 1 && text.contains("would be direct in place of relay"), "{text}");
    }
}

#[test]
fn what_is_no_record_is_refused() {
    let dir = install_dir();
    for text in ["", "nonsense", "[]", "{}", "{\"versions\":[],\"version\":\"1\"}"] {
        let (code, said) = tried(&write_file(dir.path(), "record.json", text));
        assert!(code == 1 && (said.contains("record")), "{text}: {said}");
    }
}
