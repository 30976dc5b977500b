//! The clock that processes of one machine share.

/// CLOCK_MONOTONIC in nanoseconds; never 0.
pub fn monotonic_ns() -> u64 {
    nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).map_or(1, |time| {
        let (seconds, ns) = (u64::try_from(time.tv_sec()), u64::try_from(time.tv_nsec()));
        (seconds.unwrap_or(0) * 1_000_000_000 + ns.unwrap_or(0)).max(1)
    })
}
