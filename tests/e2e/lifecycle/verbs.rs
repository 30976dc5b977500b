//! Verbs of the command line and what they answer.

use super::reload::verb;
use crate::support::Daemon;

/// The exit code and both outputs.
pub fn ask(daemon: &Daemon, words: &[&str]) -> (i32, String) {
    let output = verb(daemon, words);
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    (output.status.code().unwrap(), text)
}

#[track_caller]
pub fn done(daemon: &Daemon, words: &[&str], says: &str) {
    let (code, text) = ask(daemon, words);
    assert!(code == 0 && text.contains(says), "{words:?}: {code} {text}");
}

#[track_caller]
pub fn refused(daemon: &Daemon, words: &[&str], code: i32, says: &str) {
    let (got, text) = ask(daemon, words);
    assert!(got == code && text.contains(says), "{words:?}: {got} {text}");
}
