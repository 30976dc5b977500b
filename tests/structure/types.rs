//! Methods and fields of a type, wherever its `impl` blocks are.

use crate::source::Source;

/// The functions that work on a type: those of its `impl` blocks, and free ones that take it by `&mut`.
pub fn functions_of(name: &str, sources: &[Source]) -> Vec<String> {
    sources.iter().flat_map(|source| functions_in(name, &words(source))).collect()
}

/// The fields of a type that others can see.
pub fn visible_fields(name: &str, sources: &[Source]) -> Vec<String> {
    let mut found = Vec::new();
    for source in sources {
        let words = words(source);
        let is_type = |at: &usize| words[*at..].starts_with(&["struct", name, "{"]);
        for at in (0..words.len()).filter(is_type) {
            let (mut depth, mut next) = (0, at + 2);
            loop {
                match words[next] {
                    "{" | "(" | "<" => depth += 1,
                    "}" if depth == 1 => break,
                    ">" if words[next - 1] == "-" => {}
                    "}" | ")" | ">" => depth -= 1,
                    "pub" if depth == 1 => {
                        let name =
                            words[next..].iter().position(|word| *word == ":").map(|colon| words[next + colon - 1]);
                        found.extend(name.map(str::to_owned));
                    }
                    _ => {}
                }
                next += 1;
            }
        }
    }
    found
}

fn words(source: &Source) -> Vec<&str> {
    source.tokens.iter().map(|token| token.text.as_str()).collect()
}

fn functions_in(name: &str, words: &[&str]) -> Vec<String> {
    let (mut found, mut depth, mut block) = (Vec::new(), 0, None);
    for (at, word) in words.iter().enumerate() {
        match *word {
            "{" => depth += 1,
            "}" => {
                depth -= 1;
                block = block.filter(|start| depth > *start);
            }
            // Not `-> impl Trait` and `x: impl Trait`.
            "impl" if block.is_none() && !["->", ">", ":", "&", "<", ",", "("].contains(&before(words, at)) => {
                let end = at + words[at..].iter().position(|word| *word == "{").unwrap_or(0);
                if words[..end].last() == Some(&name) {
                    block = Some(depth);
                }
            }
            "fn" => {
                let parameters =
                    &words[at..at + words[at..].iter().position(|word| ["{", ";"].contains(word)).unwrap_or(0)];
                let takes = parameters.windows(3).any(|three| three == ["&", "mut", name]);
                if block.is_some_and(|start| depth == start + 1) || block.is_none() && takes {
                    found.push(words[at + 1].to_owned());
                }
            }
            _ => {}
        }
    }
    found
}

fn before<'a>(words: &[&'a str], at: usize) -> &'a str {
    at.checked_sub(1).map_or("", |before| words[before])
}
