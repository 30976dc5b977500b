//! `--max-memory`: a size, or a part of what the container may have.

use std::str::FromStr;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MaxMemory {
    /// Bytes for each worker.
    Bytes(u64),
    /// Percent of the container's limit (or the machine's memory), divided by the slots.
    Percent(u64),
}

/// Units, in bytes; those without `i` mean the same here, as with Docker and PM2.
const UNITS: [(&str, u64); 12] = [
    ("KIB", 1 << 10),
    ("MIB", 1 << 20),
    ("GIB", 1 << 30),
    ("KB", 1 << 10),
    ("MB", 1 << 20),
    ("GB", 1 << 30),
    ("K", 1 << 10),
    ("M", 1 << 20),
    ("G", 1 << 30),
    ("B", 1),
    ("TIB", 1 << 40),
    ("T", 1 << 40),
];

impl FromStr for MaxMemory {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("'{text}' is not a size: 512MiB, 1G, 90%");
        if let Some(percent) = text.strip_suffix('%') {
            let percent = percent.parse().ok().filter(|percent| (1..=100).contains(percent));
            return percent.map(Self::Percent).ok_or_else(wrong);
        }
        size(text).and_then(|bytes| if bytes >= 1 << 20 { Ok(Self::Bytes(bytes)) } else { Err(wrong()) })
    }
}

/// Parses a size such as `512MiB` or `1G` to bytes.
///
/// # Errors
/// With an example of the right form.
pub fn size(text: &str) -> Result<u64, String> {
    let upper = text.to_ascii_uppercase();
    let digits = upper.bytes().take_while(u8::is_ascii_digit).count();
    let wrong = || format!("'{text}' is not a size: 512MiB, 1G");
    let number: u64 = upper[..digits].parse().map_err(|_| wrong())?;
    let unit = UNITS.iter().find(|(name, _)| *name == upper[digits..].trim_start());
    let Some((_, unit)) = unit else {
        return Err(if digits == upper.len() {
            format!("a unit is needed: {text}M (or KiB, MiB, GiB)")
        } else {
            wrong()
        });
    };
    number.checked_mul(*unit).ok_or_else(wrong)
}

impl MaxMemory {
    /// Bytes per slot; `None` for a percentage where the limit is unknown.
    pub fn per_slot(self, slots: u32) -> Option<u64> {
        match self {
            Self::Bytes(bytes) => Some(bytes),
            Self::Percent(percent) => Some(limit()? / 100 * percent / u64::from(slots.max(1))),
        }
    }
}

/// Memory limit of this container in bytes: the cgroup's, else the machine's memory.
pub fn limit() -> Option<u64> {
    let read = |path: &str| std::fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    let own = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let v2 = own.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or("/").trim_end_matches('/').to_owned();
    let cgroup = [
        format!("/sys/fs/cgroup{v2}/memory.max"),
        "/sys/fs/cgroup/memory.max".to_owned(),
        "/sys/fs/cgroup/memory/memory.limit_in_bytes".to_owned(),
    ];
    let info = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let total = info.lines().find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB")?.parse().ok());
    let total = total.map(|kilobytes: u64| kilobytes * 1024);
    // cgroup v1 reports a number beyond all memory where there is no limit.
    cgroup.iter().filter_map(|path| read(path)).chain(total).min()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_percentages() {
        for (text, bytes) in [("512MiB", 512 << 20), ("1G", 1 << 30), ("300m", 300 << 20), ("2048KB", 2 << 20)] {
            assert_eq!(text.parse(), Ok(MaxMemory::Bytes(bytes)), "{text}");
        }
        assert_eq!("90%".parse(), Ok(MaxMemory::Percent(90)));
        for bad in ["", "512", "0%", "101%", "12X", "1KiB", "-5M", "99999999999999T"] {
            assert!(bad.parse::<MaxMemory>().is_err(), "{bad}");
        }
        let all = MaxMemory::Percent(100).per_slot(1).unwrap();
        assert!(all > 1 << 20 && MaxMemory::Percent(50).per_slot(4).unwrap() <= all / 8);
    }
}
