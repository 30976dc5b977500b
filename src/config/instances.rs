//! `--instances`: how many slots, and why.

use std::str::FromStr;

use nix::sched::{CpuSet, sched_getaffinity};
use nix::unistd::Pid;

pub const MAX_INSTANCES: u32 = 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Instances {
    /// One per CPU: `max`, or PM2's 0.
    Max,
    /// One per CPU, minus this many.
    AllBut(u32),
    Exactly(u32),
}

impl FromStr for Instances {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let hint = || format!("1 to {MAX_INSTANCES}, 'max' (or 0, as PM2 has it), or -1 for all CPUs but one");
        if text == "max" || text == "0" {
            // PM2 writes 0 for max.
            return Ok(Self::Max);
        }
        match text.parse::<i64>() {
            Ok(n @ 1..) if n <= i64::from(MAX_INSTANCES) => Ok(Self::Exactly(n as u32)),
            Ok(n) if n < 0 && n >= -i64::from(MAX_INSTANCES) => Ok(Self::AllBut(n.unsigned_abs() as u32)),
            _ => Err(hint()),
        }
    }
}

impl Instances {
    /// The number of slots and, where the machine decides it, the reason.
    pub fn resolve(self) -> (u32, Option<String>) {
        let counted = || cpus(affinity(), quota());
        match self {
            Self::Exactly(n) => (n, None),
            Self::Max => {
                let (n, why) = counted();
                (n, Some(why))
            }
            Self::AllBut(less) => {
                let (n, why) = counted();
                (n.saturating_sub(less).max(1), Some(format!("{why}, less {less}")))
            }
        }
    }
}

/// CPUs that this process may use: the affinity mask, bounded by the quota rounded up.
fn cpus(affinity: u32, quota: Option<f64>) -> (u32, String) {
    let affinity = affinity.clamp(1, MAX_INSTANCES);
    match quota {
        // std's available_parallelism rounds 1.5 down to 1 and so leaves a third unused.
        Some(quota) if (quota.ceil() as u32).max(1) < affinity => {
            ((quota.ceil() as u32).max(1), format!("CPU quota of {quota}"))
        }
        _ => (affinity, format!("{affinity} CPU{}", if affinity == 1 { "" } else { "s" })),
    }
}

fn affinity() -> u32 {
    let Ok(set) = sched_getaffinity(Pid::from_raw(0)) else { return 1 };
    (0..CpuSet::count()).filter(|&cpu| set.is_set(cpu).unwrap_or(false)).count() as u32
}

/// The smallest CPU quota of our cgroup and those above it, in CPUs.
fn quota() -> Option<f64> {
    let own = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let mut quotas = Vec::new();
    for line in own.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { continue };
        let v1 = controllers.split(',').any(|name| name == "cpu");
        if !controllers.is_empty() && !v1 {
            continue;
        }
        let mounts: &[&str] =
            if v1 { &["/sys/fs/cgroup/cpu,cpuacct", "/sys/fs/cgroup/cpu"] } else { &["/sys/fs/cgroup"] };
        for mount in mounts {
            // In a container without a cgroup namespace the path is the host's, and the mount is our own root.
            let ancestors = std::path::Path::new(path).ancestors();
            for group in ancestors.map(|path| format!("{mount}{}", path.display())) {
                quotas.extend(if v1 { quota_v1(&group) } else { quota_v2(&group) });
            }
        }
    }
    quotas.into_iter().min_by(f64::total_cmp)
}

fn quota_v2(group: &str) -> Option<f64> {
    parse_v2(&std::fs::read_to_string(format!("{group}/cpu.max")).ok()?)
}

fn parse_v2(text: &str) -> Option<f64> {
    let (quota, period) = text.trim().split_once(' ')?;
    ratio(quota, period)
}

fn quota_v1(group: &str) -> Option<f64> {
    let read = |name| std::fs::read_to_string(format!("{group}/{name}")).ok();
    ratio(&read("cpu.cfs_quota_us")?, &read("cpu.cfs_period_us")?)
}

fn ratio(quota: &str, period: &str) -> Option<f64> {
    let (quota, period): (f64, f64) = (quota.trim().parse().ok()?, period.trim().parse().ok()?);
    (quota > 0.0 && period > 0.0).then_some(quota / period)
}

/// `roundsman scale`: a number of slots, or a change of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Change {
    To(u32),
    By(i32),
}

impl Change {
    /// The resulting number, given the present one.
    pub fn from(self, now: u32) -> u32 {
        match self {
            Self::To(count) => count,
            Self::By(change) => now.saturating_add_signed(change),
        }
    }
}

impl FromStr for Change {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |text: &str| text.parse().map_err(|_| format!("'{text}' is not a number: 4, +1, -1"));
        if text.starts_with(['+', '-']) { number(text).map(Self::By) } else { number(text).map(|n| Self::To(n as u32)) }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn written_forms() {
        for (text, wanted) in [
            ("max", Instances::Max),
            ("0", Instances::Max),
            ("-1", Instances::AllBut(1)),
            ("1", Instances::Exactly(1)),
            ("1024", Instances::Exactly(1024)),
        ] {
            assert_eq!(text.parse::<Instances>().unwrap(), wanted);
        }
        for text in ["", "0x", "5000", "1.5", "-5000", "many"] {
            assert!(text.parse::<Instances>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_quota_is_rounded_up_and_bounded_by_the_affinity() {
        assert_eq!(cpus(8, Some(0.5)).0, 1);
        assert_eq!(cpus(8, Some(1.5)), (2, "CPU quota of 1.5".into()));
        assert_eq!(cpus(2, Some(3.0)), (2, "2 CPUs".into()));
        assert_eq!(cpus(8, None).0, 8);
    }

    #[test]
    fn quota_files() {
        assert_eq!(parse_v2("150000 100000\n"), Some(1.5));
        assert_eq!(parse_v2("max 100000\n"), None);
        assert_eq!(ratio("-1\n", "100000\n"), None);
    }
}
