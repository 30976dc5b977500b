//! The clock that processes of one machine share, and the local time.
#![allow(unsafe_code)]

use std::time::SystemTime;

use std::time::Instant;

/// The time now; in a simulation, its own.
pub fn now() -> Instant {
    #[cfg(test)]
    if let Some(now) = super::fake::now() {
        return now;
    }
    Instant::now()
}

/// CLOCK_MONOTONIC in nanoseconds; never 0.
pub fn monotonic_ns() -> u64 {
    nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).map_or(1, |time| {
        let (seconds, ns) = (u64::try_from(time.tv_sec()), u64::try_from(time.tv_nsec()));
        (seconds.unwrap_or(0) * 1_000_000_000 + ns.unwrap_or(0)).max(1)
    })
}

/// A point in local time, as TZ or /etc/localtime say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Local {
    pub year: i32,
    /// From 1.
    pub month: i32,
    pub day: i32,
    pub hour: i32,
    pub minute: i32,
    pub second: i32,
    pub ms: u32,
}

pub fn local(at: SystemTime) -> Option<Local> {
    let since = at.duration_since(SystemTime::UNIX_EPOCH).ok()?;
    let seconds = libc::time_t::try_from(since.as_secs()).ok()?;
    let mut tm = std::mem::MaybeUninit::<libc::tm>::zeroed();
    // SAFETY: both point to live values; localtime_r writes one `tm` and keeps neither. TZ is never changed by us.
    let known = unsafe { !libc::localtime_r(&raw const seconds, tm.as_mut_ptr()).is_null() };
    // SAFETY: all bytes were zeroed, which is a valid `tm`.
    let tm = unsafe { tm.assume_init() };
    known.then_some(Local {
        year: tm.tm_year + 1900,
        month: tm.tm_mon + 1,
        day: tm.tm_mday,
        hour: tm.tm_hour,
        minute: tm.tm_min,
        second: tm.tm_sec,
        ms: since.subsec_millis(),
    })
}
