//! `--upstream`: addresses, each followed by words about it: `10.0.0.5:6379,weight=3,10.0.0.6:6379,backup`.
//!
//! A comma always separates, so a Unix socket's path cannot have one; an equals sign is part of a path.

use std::ffi::OsString;
use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use toml::de::{DeTable, DeValue};

use super::diagnostics::{Problem, nearest};
use super::error::Kind;
use super::file::{Loose, text};
use super::options::number;
use crate::abi::page::upstream::MAX_WEIGHT;
use crate::addr::Upstream;

/// An upstream of the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WeightedUpstream {
    pub address: Upstream,
    /// Its share beside the others, 0 to 256; 0: gets nothing.
    pub weight: u16,
    /// Used only while none of the others is up.
    pub backup: bool,
}

/// A part of the option's value between commas.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Word {
    Address(Upstream),
    /// `weight=3`
    Weight(u16),
    /// `backup`
    Backup,
}

impl fmt::Display for Word {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => write!(f, "{address}"),
            Self::Weight(weight) => write!(f, "weight={weight}"),
            Self::Backup => f.write_str("backup"),
        }
    }
}

/// The names of words, and of a file's keys besides `addr`.
const NAMES: [&str; 2] = ["weight", "backup"];

/// Whether a part belongs to the address before it, and is none itself.
pub fn is_attribute(text: &str) -> bool {
    text == "backup" || (text.contains('=') && !text.starts_with("unix:"))
}

/// Parses a weight.
///
/// # Errors
/// When it is not a whole number from 0 to 256.
pub fn weight(text: &str) -> Result<u16, String> {
    let weight = number(text, 0..=u32::from(MAX_WEIGHT)).map_err(|why| format!("weight: {why}"))?;
    Ok(u16::try_from(weight).unwrap_or(MAX_WEIGHT))
}

impl FromStr for Word {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if is_attribute(text) {
            return match text.split_once('=') {
                None => Ok(Self::Backup),
                Some(("weight", value)) => weight(value).map(Self::Weight),
                Some(("backup", _)) => Err("backup takes no value".to_owned()),
                Some((name, _)) => Err(match nearest(name, NAMES) {
                    Some(near) => format!("unknown word '{name}'; did you mean {}?", example(near)),
                    None => format!("unknown word '{name}'; an address may have weight=0..{MAX_WEIGHT} and backup"),
                }),
            };
        }
        text.parse().map(Self::Address).map_err(|why: String| match text {
            "down" | "disabled" | "drain" => format!("unknown word '{text}'; did you mean weight=0?"),
            _ if text.contains([':', '.', '/']) => why,
            _ => match nearest(text, NAMES) {
                Some(near) => format!("unknown word '{text}'; did you mean {}?", example(near)),
                None => why,
            },
        })
    }
}

fn example(name: &str) -> String {
    if name == "weight" { "weight=3".to_owned() } else { name.to_owned() }
}

/// Puts words to the addresses before them.
///
/// # Errors
/// A word without an address before it, or twice at one address; no upstream that is not a backup, or has a weight.
pub fn grouped(words: Vec<Word>) -> Result<Vec<WeightedUpstream>, Kind> {
    let wrong = |why: String| Err(Kind::Unparsed(why));
    let mut upstreams: Vec<WeightedUpstream> = Vec::new();
    // Those given for the last address.
    let (mut weighted, mut backup) = (false, false);
    for word in words {
        let last = upstreams.last_mut();
        match (word, last) {
            (Word::Address(address), _) => {
                upstreams.push(WeightedUpstream { address, weight: 1, backup: false });
                (weighted, backup) = (false, false);
            }
            (word, None) => {
                return wrong(format!("{word} has no address before it; for example 10.0.0.5:6379,{word}"));
            }
            (Word::Weight(_), Some(last)) if weighted => {
                return wrong(format!("{}: weight is given twice", last.address));
            }
            (Word::Backup, Some(last)) if backup => {
                return wrong(format!("{}: backup is given twice", last.address));
            }
            (Word::Weight(weight), Some(last)) => (last.weight, weighted) = (weight, true),
            (Word::Backup, Some(last)) => (last.backup, backup) = (true, true),
        }
    }
    match upstreams.as_slice() {
        [] => {}
        [one] if one.backup => return wrong(format!("{} is a backup of no other upstream", one.address)),
        all if all.iter().all(|one| one.backup) => {
            return wrong("all upstreams are backups; one at least must be none".to_owned());
        }
        all if all.iter().all(|one| one.weight == 0) => {
            return wrong("every weight is 0: no upstream would get a connection".to_owned());
        }
        _ => {}
    }
    Ok(upstreams)
}

/// The words of a file's table: `{ addr = "b:1", weight = 3, backup = true }`. Mistakes go to `problems`.
pub fn words_of(
    table: &DeTable<'_>,
    whole: Range<usize>,
    problems: &mut Vec<Problem>,
) -> Vec<(OsString, Range<usize>)> {
    let (mut addr, mut others, mut backup) = (None, Vec::new(), None);
    for (name, value) in table {
        let mut wrong = |message: String| problems.push(Problem::new(message, value.span()));
        let span = || value.span();
        match (name.get_ref().as_ref(), value.get_ref()) {
            ("addr", DeValue::String(text)) if text.contains(',') => {
                wrong("an address has no comma; `weight` and `backup` are keys beside it".to_owned());
                addr = Some(None);
            }
            ("addr", DeValue::String(text)) => addr = Some(Some((OsString::from(text.as_ref()), span()))),
            ("addr", other) => {
                wrong(format!("`addr` is a string, not of type {}", other.type_str()));
                addr = Some(None);
            }
            ("weight", DeValue::Integer(_)) => {
                let weight = text(value.get_ref(), Loose::No).unwrap_or_default();
                others.push((format!("weight={weight}").into(), span()));
            }
            ("weight", other) => {
                wrong(format!("`weight` is a number, 0 to {MAX_WEIGHT}, not of type {}", other.type_str()))
            }
            ("backup", DeValue::Boolean(true)) => backup = Some(("backup".into(), span())),
            ("backup", DeValue::Boolean(false)) => {}
            ("backup", _) => wrong("`backup` is true or false".to_owned()),
            (key, _) => {
                let near = match key {
                    "address" | "server" | "host" => Some("addr"),
                    _ => nearest(key, NAMES.into_iter().chain(["addr"])),
                };
                if near == Some("addr") {
                    addr = Some(None);
                }
                let advice = near.map_or_else(
                    || "an upstream has `addr`, `weight` and `backup`".to_owned(),
                    |near| format!("did you mean `{near}`?"),
                );
                problems.push(Problem::new(format!("unknown key `{key}`; {advice}"), name.span()));
            }
        }
    }
    match addr {
        Some(Some(address)) => std::iter::once(address).chain(others).chain(backup).collect(),
        Some(None) => Vec::new(),
        None => {
            problems.push(Problem::new("`addr` is missing: { addr = \"10.0.0.5:6379\", weight = 3 }", whole));
            Vec::new()
        }
    }
}

/// Values of the option as a TOML list that means the same.
pub fn list(values: &[OsString], quoted: impl Fn(&OsString) -> String) -> String {
    let mut entries: Vec<Vec<String>> = Vec::new();
    for value in values {
        for part in value.to_string_lossy().split(',') {
            match entries.last_mut().filter(|_| is_attribute(part)) {
                Some(last) => last.push(part.to_owned()),
                None => entries.push(vec![part.to_owned()]),
            }
        }
    }
    entries
        .iter_mut()
        .filter_map(|parts| parts.get_mut(1..))
        .for_each(|words| words.sort_by_key(|word| word == "backup"));
    let entry = |parts: &Vec<String>| {
        let key = |part: &String| match part.split_once('=') {
            Some((key, value)) => format!("{key} = {value}"),
            None => format!("{part} = true"),
        };
        match parts.as_slice() {
            [] => String::new(),
            [address] => quoted(&address.into()),
            [address, words @ ..] => {
                let words: Vec<_> = words.iter().map(key).collect();
                format!("{{ addr = {}, {} }}", quoted(&address.into()), words.join(", "))
            }
        }
    };
    format!("[{}]", entries.iter().map(entry).collect::<Vec<_>>().join(", "))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<Vec<WeightedUpstream>, String> {
        let words = text.split(',').map(str::parse).collect::<Result<Vec<Word>, _>>()?;
        grouped(words).map_err(|kind| kind.of("upstream").to_string())
    }

    #[test]
    fn words_belong_to_the_address_before_them() {
        let of = |text| {
            let all = parsed(text).unwrap();
            all.iter().map(|one| (one.address.to_string(), one.weight, one.backup)).collect::<Vec<_>>()
        };
        let one = |address: &str, weight, backup| (address.to_owned(), weight, backup);
        assert_eq!(of("a:1"), [one("a:1", 1, false)]);
        assert_eq!(
            of("a:1,weight=3,b:2,backup,[::1]:3,backup,weight=256,unix:/run/a=b.sock,weight=0"),
            [one("a:1", 3, false), one("b:2", 1, true), one("[::1]:3", 256, true), one("unix:/run/a=b.sock", 0, false)]
        );
        assert_eq!(of("weight:1,backup:2,weight=0"), [one("weight:1", 1, false), one("backup:2", 0, false)]);
    }

    #[test]
    fn mistakes_are_named() {
        for (text, word) in [
            ("a:1,weight=257", "0 to 256"),
            ("a:1,weight=-1", "0 to 256"),
            ("a:1,weight=", "0 to 256"),
            ("a:1,weight=1.5", "0 to 256"),
            ("a:1,wieght=3", "did you mean weight=3?"),
            ("a:1,weigth", "did you mean weight=3?"),
            ("a:1,bakcup", "did you mean backup?"),
            ("a:1,backup=true", "backup takes no value"),
            ("a:1,max_fails=3", "unknown word 'max_fails'"),
            ("a:1,down", "weight=0"),
            ("a:1,b", "the port is missing: b:8080"),
            ("a:1,", "is missing"),
            ("weight=3,a:1", "weight=3 has no address before it"),
            ("backup,a:1", "backup has no address before it"),
            ("a:1,weight=3,weight=3", "a:1: weight is given twice"),
            ("a:1,backup,weight=2,backup,b:1", "a:1: backup is given twice"),
            ("a:1,backup", "a:1 is a backup of no other"),
            ("a:1,backup,b:1,backup", "all upstreams are backups"),
            ("a:1,weight=0", "every weight is 0"),
            ("a:1,weight=0,b:1,backup,weight=0", "every weight is 0"),
        ] {
            let error = parsed(text).unwrap_err();
            assert!(error.contains(word), "{text}: {error}");
        }
        assert!(parsed("a:1,weight=0,b:1,backup").is_ok(), "drained, with a backup");
    }
}
