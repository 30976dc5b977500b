//! How many functions know a type from the inside: its methods, and functions that may change its fields.

use super::source::{Source, tokens};

/// Methods of `name` in a file; where its private fields can be reached (in the module `home`), also functions that take
/// `&mut name`.
pub fn of(name: &str, home: &str, source: &Source) -> Vec<String> {
    let words: Vec<&str> = source.tokens.iter().map(|token| token.text.as_str()).collect();
    let (mut found, mut depth, mut inside) = (Vec::new(), 0, None);
    for at in 0..words.len() {
        match words[at] {
            "{" => depth += 1,
            "}" => depth -= 1,
            "impl" if inside.is_none_or(|outer| depth <= outer) => {
                let header = words[at..].split(|word| *word == "{").next().unwrap();
                let own = header.iter().rev().take_while(|word| **word != "for").any(|word| *word == name);
                inside = own.then_some(depth);
            }
            "fn" if words.get(at + 1).is_some_and(|word| word.starts_with(|c: char| c.is_alphabetic())) => {
                let header = words[at..].split(|word| matches!(*word, "{" | ";")).next().unwrap();
                let method = inside.is_some_and(|outer| depth == outer + 1);
                let reaches = source.module.first().is_some_and(|module| module == home);
                if method || reaches && header.windows(2).any(|pair| pair == ["mut", name]) {
                    found.push(format!("{}::{}", source.module.join("::"), words[at + 1]));
                }
            }
            _ => {}
        }
    }
    found
}

#[test]
fn methods_and_functions_are_counted() {
    let text = "impl A { fn a(&self) { fn inner() {} } pub fn b() { x(|c| { c }) } } fn no(a: &A) {} impl<'a> B for A { fn c() {} }
        impl A for B { fn no() {} } impl B { fn no() -> A { A { x: 1 } } } fn d<'a>(a: &'a mut A) {} fn e(a: &mut A, b: fn(A)) {}";
    let source = Source { file: "x.rs".into(), module: vec!["m".to_owned()], tokens: tokens(text) };
    assert_eq!(of("A", "m", &source), ["m::a", "m::b", "m::c", "m::d", "m::e"]);
    assert_eq!(of("A", "n", &source), ["m::a", "m::b", "m::c"]);
}
