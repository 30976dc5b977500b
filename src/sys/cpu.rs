//! How much CPU time processes use, in percent of one CPU.

use std::collections::HashMap;

use nix::time::{clock_getcpuclockid, clock_gettime};
use nix::unistd::{Pid, SysconfVar, sysconf};

use super::clock::monotonic_ns;

/// The shortest measured interval; within it, callers get the use since the sample before.
const MIN_INTERVAL_NS: u64 = 500_000_000;

#[derive(Debug, Clone, Copy)]
struct Sample {
    at: u64,
    used: u64,
}

/// CPU use of processes since they were last asked for, or over their lives the first time.
#[derive(Debug, Default)]
pub struct CpuMeter {
    /// By pid: the newest sample, the one before it, and the last round that asked.
    samples: HashMap<u32, (Sample, Option<Sample>, u64)>,
    round: u64,
}

impl CpuMeter {
    /// Forgets processes that the last round did not ask for.
    pub fn begin_round(&mut self) {
        let last = self.round;
        self.samples.retain(|_, (.., round)| *round == last);
        self.round += 1;
    }

    /// 0 for a process that is gone.
    pub fn percent(&mut self, pid: u32) -> f64 {
        let now = monotonic_ns();
        let Some(used) = cpu_ns(pid) else { return 0.0 };
        let new = Sample { at: now, used };
        let known = self.samples.get(&pid).copied();
        let reference = known.and_then(|(newest, before, _)| {
            // A clock that runs backwards is another process's.
            [Some(newest), before].into_iter().flatten().find(|old| old.at + MIN_INTERVAL_NS <= now && old.used <= used)
        });
        let kept = match known {
            Some((newest, before, _)) if newest.at + MIN_INTERVAL_NS > now && newest.used <= used => (newest, before),
            known => (new, known.map(|(newest, ..)| newest).filter(|newest| newest.used <= used)),
        };
        self.samples.insert(pid, (kept.0, kept.1, self.round));
        let (used, time) = match reference {
            Some(old) => (used - old.used, now - old.at),
            None => (used, age_ns(pid)),
        };
        100.0 * used as f64 / time.max(1_000_000) as f64
    }
}

/// CPU time that a process has used, in nanoseconds.
fn cpu_ns(pid: u32) -> Option<u64> {
    let clock = clock_getcpuclockid(Pid::from_raw(pid.try_into().ok()?)).ok()?;
    let time = clock_gettime(clock).ok()?;
    Some(u64::try_from(time.tv_sec()).ok()? * 1_000_000_000 + u64::try_from(time.tv_nsec()).ok()?)
}

/// How long ago a process was started, in nanoseconds; 0 when it is gone.
fn age_ns(pid: u32) -> u64 {
    let started = || {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name may have spaces and brackets.
        let ticks: u64 = stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()?;
        let a_second = u64::try_from(sysconf(SysconfVar::CLK_TCK).ok()??).ok()?;
        Some(ticks * 1_000 / a_second * 1_000_000)
    };
    let booted = clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME);
    let now = booted.map_or(0, |time| time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64);
    started().map_or(0, |started| now.saturating_sub(started))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    fn spin(time: Duration) {
        let begin = Instant::now();
        while begin.elapsed() < time {
            std::hint::black_box(begin);
        }
    }

    #[test]
    fn use_is_measured_since_the_last_look_and_a_second_look_at_once_says_the_same() {
        let (mut meter, own) = (CpuMeter::default(), std::process::id());
        meter.begin_round();
        assert!(meter.percent(own) >= 0.0);
        let used = cpu_ns(own).unwrap();
        spin(Duration::from_millis(600));
        meter.begin_round();
        let busy = meter.percent(own);
        // What the machine gave us.
        let given = (cpu_ns(own).unwrap() - used) as f64;
        assert!(busy > 0.0 && given > 0.0, "{busy} {given}");
        meter.begin_round();
        let again = meter.percent(own);
        assert!((again - busy).abs() < busy.max(20.0), "{busy} and {again}");
        assert_eq!(meter.percent(u32::MAX), 0.0);
    }

    #[test]
    fn processes_that_are_not_asked_for_are_forgotten() {
        let mut meter = CpuMeter::default();
        meter.begin_round();
        meter.percent(std::process::id());
        meter.begin_round();
        meter.begin_round();
        assert!(meter.samples.is_empty());
    }

    #[test]
    fn the_age_of_a_process_is_known() {
        let age = age_ns(std::process::id());
        assert!(age < 3_600_000_000_000, "{age}");
        assert!(age_ns(1) > age);
        assert_eq!(age_ns(u32::MAX), 0);
    }
}
