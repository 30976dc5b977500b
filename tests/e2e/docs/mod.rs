//! README.md and docs/: every command is typed as it stands there, every table is held against the program.

mod commands;
pub mod facts;
mod pictures;
mod release;

use std::path::{Path, PathBuf};

pub const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// The README and the documents of docs/, each with its text.
fn documents() -> Vec<(PathBuf, String)> {
    let mut paths = vec![Path::new(ROOT).join("README.md")];
    let docs = std::fs::read_dir(Path::new(ROOT).join("docs")).unwrap();
    let docs = docs.map(|entry| entry.unwrap().path());
    let mut more: Vec<_> = docs.filter(|path| path.extension().is_some_and(|ending| ending == "md")).collect();
    more.sort();
    assert!(more.len() >= 5, "{more:?}");
    paths.extend(more);
    paths.into_iter().map(|path| (path.clone(), std::fs::read_to_string(path).unwrap())).collect()
}

/// Blocks between fences, of all documents: language and text.
fn blocks() -> Vec<(String, String)> {
    let mut all = Vec::new();
    for (path, text) in documents() {
        let mut parts = text.split("```");
        parts.next();
        while let Some(block) = parts.next() {
            let (language, body) = block.split_once('\n').unwrap();
            all.push((language.to_owned(), body.to_owned()));
            assert!(parts.next().is_some(), "a fence that is not closed in {}", path.display());
        }
    }
    all
}

/// Blocks of one language.
fn blocks_of(language: &str) -> Vec<String> {
    let found: Vec<_> = blocks().into_iter().filter(|(of, _)| of == language).map(|(_, body)| body).collect();
    assert!(!found.is_empty(), "no {language}");
    found
}
