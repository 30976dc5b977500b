//! The counters page: one sealed memfd of 16,384 bytes per worker and generation, all words `u64`.
//!
//! Row 0 is the header; each further row belongs to one process of the worker (a relay worker has one). The rows
//! are followed by the histogram of hand-off latencies, which all processes share, and that by a relay worker's counters for
//! each upstream.

/// Size of the page in bytes.
pub const PAGE_BYTES: usize = 16_384;
/// Words in a row.
pub const ROW_WORDS: usize = 8;
/// Rows for processes, after the header.
pub const ROWS: usize = 4096 / 8 / ROW_WORDS - 1;

/// How long connections took from the master's accept(2) to the worker's receive.
pub mod latency {
    /// The first bucket's word; the others follow.
    pub const FIRST: usize = 4096 / 8;
    /// Bucket `n` counts latencies below [`bound`]`(n)`, the last one all others.
    pub const BUCKETS: usize = 18;
    /// The word of the sum in nanoseconds.
    pub const SUM: usize = FIRST + BUCKETS;

    /// The bucket for a latency in nanoseconds.
    pub const fn bucket(ns: u64) -> usize {
        let doublings = (u64::BITS - (ns >> 13).leading_zeros()) as usize;
        if doublings < BUCKETS { doublings } else { BUCKETS - 1 }
    }

    /// The upper bound of a bucket in nanoseconds: 8 µs and its doublings, up to half a second.
    pub const fn bound(bucket: usize) -> u64 {
        1 << (13 + bucket)
    }
}

/// Direct: addresses that PROXY headers name.
pub mod addresses {
    /// Connections whose addresses found no place in the record. Written by servers.
    pub const LOST: usize = super::latency::SUM + 1;
    /// Not 0 where hand-offs carry such addresses: each process gets the record of these from the master. Written by the
    /// master before the worker starts.
    pub const TRANSLATES: usize = LOST + 1;
}

/// Direct, `--drain-idle move`.
pub mod moving {
    /// Not 0 where processes watch what they read from new connections and write to them. Written by the master.
    pub const WATCHES: usize = super::addresses::TRANSLATES + 1;
    /// Not 0 while connections that the server closes between two requests are to come back to the master. Written by the
    /// master.
    pub const MOVES: usize = WATCHES + 1;
}

/// Places of the words in the header row.
pub mod header {
    /// Direct: the master has closed its copies of the sockets up to this number. Written by the master.
    pub const RELEASED: usize = 0;
    /// Direct: not 0 once a process closed a connection that another one had received; from then on the number of open
    /// connections is an estimate. Written by servers.
    pub const ESTIMATE: usize = 1;
    /// Direct: not 0 once the process that bound a stand-in has closed it; from then on those that inherited it report their
    /// closes, too. Written by the master.
    pub const CLOSES: usize = 2;
    /// Not 0 while clients wait in the master for room in this worker: whoever counts a close rings the bell; with
    /// [`AFTER_RECEIVES`], so does whoever receives from a queue. Written by the master.
    ///
    /// [`AFTER_RECEIVES`]: super::room::AFTER_RECEIVES
    pub const ROOM_WANTED: usize = 3;
    /// Direct: not 0 where connections are logged: each process gets the ring for that from the master. Written by the master
    /// before the worker starts.
    pub const LOGS: usize = 6;
    /// Relay: connections since the start whose upstream has ended, or that are closed: at most the client's end is missing.
    /// Written by the worker.
    pub const FINISHED: usize = 4;
    /// Direct: not 0 once the server was asked to stop. Written by the master.
    pub const STOPPING: usize = 5;
    /// Direct, policy none: not 0 once the worker's processes are to accept no more. Written by the master.
    pub const LEAVING: usize = 7;
}

/// Values of [`header::ROOM_WANTED`].
pub mod room {
    /// Nobody waits.
    pub const NOT_WANTED: u64 = 0;
    /// The bell is rung after each close.
    pub const AFTER_CLOSES: u64 = 1;
    /// The bell is rung after each close and each receive.
    pub const AFTER_RECEIVES: u64 = 2;
}

/// The doorbell's page, which all workers of a master share.
pub mod bell {
    /// Counts the rings; its lower half is a futex.
    pub const RINGS: usize = 0;
}

/// Places of the words in a process's row.
pub mod row {
    /// The owner's pid; 0 while the row is free.
    pub const PID: usize = 0;
    /// Connections received since the start.
    pub const RECEIVED: usize = 1;
    /// Connections closed since the start.
    pub const CLOSED: usize = 2;
    /// Bytes from clients.
    pub const BYTES_IN: usize = 3;
    /// Bytes to clients.
    pub const BYTES_OUT: usize = 4;
    /// Connections for which no upstream could be reached.
    pub const UNREACHABLE: usize = 5;
    /// Sockets that the kernel dropped because the descriptor table was full.
    pub const TRUNCATED: usize = 6;
    /// Relay: clients that wait for an upstream now.
    pub const WAITING: usize = 7;
    /// Direct, policy none: threads that are accepting a connection just now, until it is counted.
    pub const ACCEPTING: usize = 7;
}

/// A relay worker's counters for each upstream, in the order of the configuration.
pub mod upstream {
    /// The first upstream's first word; the others' follow.
    pub const FIRST: usize = 8192 / 8;
    /// Words per upstream.
    pub const WORDS: usize = 8;
    /// The most upstreams that are counted separately.
    pub const MAX: usize = 120;
    /// Attempts to connect since the start.
    pub const ATTEMPTS: usize = 0;
    /// Attempts that failed, and connections that were closed.
    pub const ENDED: usize = 1;
    /// Connections established since the start.
    pub const CONNECTIONS: usize = 2;
    /// Bytes from clients to it.
    pub const BYTES_IN: usize = 3;
    /// Bytes from it to clients.
    pub const BYTES_OUT: usize = 4;
    /// The greatest weight of an upstream or slot.
    pub const MAX_WEIGHT: u16 = 256;
}
