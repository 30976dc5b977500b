//! The counters page: one sealed memfd of 4,096 bytes per worker and generation, all words `u64`.
//!
//! Row 0 is the header; each further row belongs to one process of the worker (a relay worker has one).

/// Size of the page in bytes.
pub const PAGE_BYTES: usize = 4096;
/// Words in a row.
pub const ROW_WORDS: usize = 8;
/// Rows for processes, behind the header.
pub const ROWS: usize = PAGE_BYTES / 8 / ROW_WORDS - 1;

/// Places of the words in the header row.
pub mod header {
    /// Direct: up to this number the master has closed its copies of the sockets that it sent.
    pub const RELEASED: usize = 0;
    /// Direct: not 0 once a process closed a connection that another one had received. What is open is an estimate then.
    pub const ESTIMATE: usize = 1;
}

/// Places of the words in a process's row.
pub mod row {
    /// Process that owns the row; 0 = free.
    pub const PID: usize = 0;
    /// Connections received, ever.
    pub const RECEIVED: usize = 1;
    /// Of those, closed.
    pub const CLOSED: usize = 2;
    /// Bytes from clients.
    pub const BYTES_IN: usize = 3;
    /// Bytes to clients.
    pub const BYTES_OUT: usize = 4;
    /// Connections for which no upstream could be reached.
    pub const UNREACHABLE: usize = 5;
    /// Sockets that the kernel dropped because the descriptor table was full.
    pub const TRUNCATED: usize = 6;
}
