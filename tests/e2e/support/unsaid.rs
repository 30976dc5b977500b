//! What the daemon does not say.

use std::path::Path;
use std::sync::OnceLock;

/// None of these words is in a log. Each has to be in our sources: an assertion that something is not said would hold for
/// ever once it is said in other words.
#[track_caller]
pub fn unsaid(log: &str, words: &[&str]) {
    static SOURCES: OnceLock<String> = OnceLock::new();
    let sources = SOURCES.get_or_init(|| {
        let mut text = String::new();
        read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut text);
        text
    });
    for word in words {
        assert!(sources.contains(word), "{word:?} is not said anywhere in src");
        assert!(!log.contains(word), "{word:?} is said: {log}");
    }
}

fn read(path: &Path, text: &mut String) {
    if path.is_dir() {
        std::fs::read_dir(path).unwrap().for_each(|entry| read(&entry.unwrap().path(), text));
    } else if path.extension().is_some_and(|end| end == "rs") {
        text.push_str(&std::fs::read_to_string(path).unwrap());
    }
}
