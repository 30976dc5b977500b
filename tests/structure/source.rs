//! Rust sources taken apart as far as modules need it: words, the tree of modules, the paths that leave one.

use std::path::{Path, PathBuf};

/// A word of a source: an identifier, a string with its quotes, `::`, or one other character.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    pub text: String,
    pub line: usize,
}

/// The words of a text, without comments and whitespace.
pub fn tokens(text: &str) -> Vec<Token> {
    let bytes = text.as_bytes();
    let (mut found, mut at, mut line) = (Vec::new(), 0, 1);
    while at < bytes.len() {
        let rest = &text[at..];
        let len = match bytes[at] {
            b'/' if rest.starts_with("//") => rest.find('\n').unwrap_or(rest.len()),
            b'/' if rest.starts_with("/*") => block_comment(rest),
            b'"' => quoted(rest, 1),
            b'b' | b'c' if rest[1..].starts_with('"') => quoted(rest, 2),
            b'r' | b'b' | b'c' if raw(rest).is_some() => raw(rest).unwrap(),
            b'\'' => character(rest),
            byte if byte.is_ascii_alphanumeric() || byte == b'_' => {
                rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len())
            }
            _ if rest.starts_with("::") => 2,
            _ => rest.chars().next().unwrap().len_utf8(),
        };
        let word = &rest[..len];
        let comment = word.starts_with("//") || word.starts_with("/*");
        if !comment && !word.starts_with(char::is_whitespace) {
            found.push(Token { text: word.to_owned(), line });
        }
        line += word.matches('\n').count();
        at += len;
    }
    found
}

fn block_comment(rest: &str) -> usize {
    let (mut depth, mut at) = (0, 0);
    loop {
        match &rest.as_bytes()[at..] {
            [b'/', b'*', ..] => (depth, at) = (depth + 1, at + 2),
            [b'*', b'/', ..] if depth == 1 => return at + 2,
            [b'*', b'/', ..] => (depth, at) = (depth - 1, at + 2),
            [_, ..] => at += 1,
            [] => return at,
        }
    }
}

/// The length of a string whose text begins at `from`.
fn quoted(rest: &str, from: usize) -> usize {
    let (bytes, mut at) = (rest.as_bytes(), from);
    while at < bytes.len() && bytes[at] != b'"' {
        at += if bytes[at] == b'\\' { 2 } else { 1 };
    }
    (at + 1).min(rest.len())
}

/// The length of a raw string, if one begins here.
fn raw(rest: &str) -> Option<usize> {
    let body = rest.trim_start_matches(['b', 'c']).strip_prefix('r')?;
    let hashes = body.len() - body.trim_start_matches('#').len();
    body[hashes..].starts_with('"').then_some(())?;
    let end = format!("\"{}", "#".repeat(hashes));
    let start = rest.len() - body.len() + hashes + 1;
    Some(rest[start..].find(&end).map_or(rest.len(), |at| start + at + end.len()))
}

/// The length of a character, or of a lifetime's quote.
fn character(rest: &str) -> usize {
    let mut chars = rest.char_indices().skip(1);
    match (chars.next(), chars.next()) {
        (Some((_, '\\')), _) => rest[3..].find('\'').map_or(rest.len(), |at| at + 4),
        (Some(_), Some((at, '\''))) => at + 1,
        _ => 1,
    }
}

/// A file of a crate.
#[derive(Debug)]
pub struct Source {
    pub file: PathBuf,
    /// Where it is among the modules: `["config", "file"]`; empty for the crate's root.
    pub module: Vec<String>,
    pub tokens: Vec<Token>,
}

/// A path that is named somewhere.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Use {
    pub path: Vec<String>,
    pub file: PathBuf,
    pub line: usize,
}

/// All files of the crate whose root is `root`.
pub fn crate_of(root: &Path) -> Vec<Source> {
    let mut found = Vec::new();
    add(root.to_owned(), Vec::new(), &mut found);
    found
}

fn add(file: PathBuf, module: Vec<String>, found: &mut Vec<Source>) {
    let text = std::fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    let source = Source { tokens: tokens(&text), file, module };
    let children = declared(&source);
    found.push(source);
    for (file, module) in children {
        add(file, module, found);
    }
}

/// The files that `mod name;` stands for.
fn declared(source: &Source) -> Vec<(PathBuf, Vec<String>)> {
    let directory = source.file.parent().unwrap();
    let stem = source.file.file_stem().unwrap();
    let owns = ["mod", "lib", "main"].iter().any(|name| stem == *name);
    let below = if owns { directory.to_owned() } else { directory.join(stem) };
    let words: Vec<&str> = source.tokens.iter().map(|token| token.text.as_str()).collect();
    let mut found = Vec::new();
    for at in 0..words.len() {
        let ["mod", name, ";"] = words[at..(at + 3).min(words.len())] else { continue };
        let module = [source.module.as_slice(), &[name.to_owned()]].concat();
        let file = match path_attribute(&words[..at]) {
            Some(path) => directory.join(path),
            None if below.join(name).join("mod.rs").is_file() => below.join(name).join("mod.rs"),
            None => below.join(format!("{name}.rs")),
        };
        found.push((file, module));
    }
    found
}

/// The value of `#[path = "…"]` among the attributes that end a text.
fn path_attribute<'a>(words: &[&'a str]) -> Option<&'a str> {
    let words = words.strip_suffix(&["pub"]).unwrap_or(words);
    let start = words.strip_suffix(&["]"])?.iter().rposition(|word| *word == "#")?;
    match words[start..] {
        ["#", "[", "path", "=", path, "]"] => Some(path.trim_matches('"')),
        _ => path_attribute(&words[..start]),
    }
}

/// The paths of a file from the crate's root: `crate::…`, `us::…` (the crate by its name), and `super::…`, with the module
/// in which they stand.
///
/// # Panics
/// Where the root itself gets another name, behind which paths would be hidden.
pub fn paths(source: &Source, us: &str) -> Vec<Use> {
    let words: Vec<&str> = source.tokens.iter().map(|token| token.text.as_str()).collect();
    let (mut found, mut module, mut braces) = (Vec::new(), source.module.clone(), Vec::new());
    let mut at = 0;
    while at < words.len() {
        let before = at.checked_sub(1).map_or("", |before| words[before]);
        match words[at] {
            "{" => {
                let inline = at >= 2 && words[at - 2] == "mod";
                if inline {
                    module.push(words[at - 1].to_owned());
                }
                braces.push(inline);
            }
            "}" if braces.pop() == Some(true) => drop(module.pop()),
            "crate" | "super" if before == "(" && words.get(at + 1) == Some(&")") => {}
            word if (word == "crate" || word == "super" || word == us) && before != "::" => {
                let place = || format!("{}:{}", source.file.display(), source.tokens[at].line);
                if words.get(at + 1) != Some(&"::") {
                    assert!(word == us, "{}: `{word}` gets another name", place());
                } else {
                    let (mut base, mut next) = (if word == "super" { module.clone() } else { Vec::new() }, at);
                    while words.get(next) == Some(&"super") {
                        assert!(base.pop().is_some(), "{}: above the root", place());
                        next += 2;
                    }
                    next += if word == "super" { 0 } else { 2 };
                    let line = source.tokens[at].line;
                    for path in leaves(&words, &mut next) {
                        found.push(Use { path: [base.clone(), path].concat(), file: source.file.clone(), line });
                    }
                    at = next;
                    continue;
                }
            }
            _ => {}
        }
        at += 1;
    }
    found
}

/// The paths of a tree: `a::{b, c::d}`. Leaves `at` behind it.
fn leaves(words: &[&str], at: &mut usize) -> Vec<Vec<String>> {
    let mut stem = Vec::new();
    loop {
        match words.get(*at) {
            Some(&"{") => {
                *at += 1;
                let mut found = Vec::new();
                while words.get(*at).is_some_and(|word| *word != "}") {
                    found.extend(leaves(words, at).into_iter().map(|path| [stem.clone(), path].concat()));
                    while words.get(*at).is_some_and(|word| !["}", ",", "{"].contains(word)) {
                        *at += 1;
                    }
                    *at += usize::from(words.get(*at) == Some(&","));
                }
                *at += 1;
                return found;
            }
            Some(word) if *word == "*" || word.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') => {
                stem.push((*word).to_owned());
                *at += 1;
            }
            _ => return vec![stem],
        }
        if words.get(*at) != Some(&"::") || words.get(*at + 1) == Some(&"<") {
            return vec![stem];
        }
        *at += 1;
    }
}
