//! Parsers of the options' values, with hints for what people type elsewhere.

use std::ops::RangeInclusive;
use std::time::Duration;

use clap::ValueEnum;

use crate::accept::policy::Policy;
use crate::addr::ListenAddr;

/// As [`Policy`]'s own parser, with hints for the names that other programs have.
pub fn policy(text: &str) -> Result<Policy, String> {
    if let Ok(policy) = Policy::from_str(text, true) {
        return Ok(policy);
    }
    if text.parse::<ListenAddr>().is_ok() {
        return Err(format!("-p is --policy; did you mean -l {text} (--listen)?"));
    }
    let near = match text.to_ascii_lowercase().replace(['_', ' '], "-").as_str() {
        "roundrobin" | "round-robin" | "sched-rr" => Some("rr"),
        "leastconn" | "least-conn" | "least-connections" | "least" => Some("least-conn"),
        "iphash" | "ip-hash" | "source" => Some("ip-hash"),
        "sched-none" | "off" => Some("none"),
        _ => None,
    };
    let hint = near.map(|near| format!("; did you mean {near}?")).unwrap_or_default();
    Err(format!("one of rr, least-conn, ip-hash, hash, none{hint}"))
}

/// The longest time: the clock can always be set forward by it.
const MAX_TIME: Duration = Duration::from_secs(10 * 366 * 24 * 3600);

pub(super) fn time(text: &str) -> Result<Duration, String> {
    let time = humantime::parse_duration(text).map_err(|error| match text.parse::<f64>() {
        Ok(_) => format!("a unit is needed: {text}ms or {text}s"),
        Err(_) => error.to_string(),
    })?;
    if time > MAX_TIME { Err("a time is at most 10 years".to_owned()) } else { Ok(time) }
}

pub(super) fn age(text: &str) -> Result<Duration, String> {
    match time(text)? {
        Duration::ZERO => Err("longer than 0; leave it out for no limit".to_owned()),
        age => Ok(age),
    }
}

pub(super) fn percent(text: &str) -> Result<u8, String> {
    let number = text.strip_suffix('%').and_then(|number| number.parse().ok());
    number.filter(|percent| *percent <= 100).ok_or_else(|| "0% to 100% is needed".to_owned())
}

/// A whole number of that range.
pub fn number(text: &str, range: RangeInclusive<u32>) -> Result<u32, String> {
    let (least, most) = (*range.start(), *range.end());
    let wanted = if most == u32::MAX { format!("{least} or more") } else { format!("{least} to {most}") };
    let number = text.parse().ok().filter(|number| range.contains(number));
    number.ok_or_else(|| format!("a whole number is needed: {wanted}"))
}

/// A number per second, as `1000/s`.
pub(super) fn rate(text: &str) -> Result<u32, String> {
    let wanted = || "a rate per second is needed: 1000/s, from 1/s to 1000000/s".to_owned();
    number(text.strip_suffix("/s").ok_or_else(wanted)?, 1..=1_000_000).map_err(|_| wanted())
}

pub(super) fn range(text: &str) -> Result<(Duration, Duration), String> {
    let (from, to) = text.split_once("..").ok_or("two times: 100ms..15s")?;
    let (from, to) = (time(from)?, time(to)?);
    if from > to || from.is_zero() { Err("from a shorter to a longer time: 100ms..15s".into()) } else { Ok((from, to)) }
}

pub(super) fn signal(text: &str) -> Result<nix::sys::signal::Signal, String> {
    let name = text.to_ascii_uppercase();
    let name = if name.starts_with("SIG") { name } else { format!("SIG{name}") };
    name.parse().map_err(|_| format!("'{text}' is not a signal; TERM, INT, QUIT, …"))
}

pub(super) fn level(text: &str) -> Result<String, String> {
    let level = text.to_ascii_lowercase();
    match level.as_str() {
        "error" | "warn" | "info" | "debug" | "trace" => Ok(level),
        "warning" => Ok("warn".to_owned()),
        _ => Err("one of error, warn, info, debug".to_owned()),
    }
}

pub(super) fn variable(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() && !text.contains('\0') => Ok((key.to_owned(), value.to_owned())),
        _ => Err("KEY=VALUE is needed".to_owned()),
    }
}
