//! The steps by which a connection passes the stage, one after the other.
//!
//! A step looks at a connection and says that it passes, that it waits for more of its bytes, or why it is refused. Looking costs as
//! little as the step needs: one that knows the answer without the socket makes no system call.
//!
//! To add a step: a variant of [`Step`] at its place in the order, its answers in the functions below (the compiler names them), a
//! file of its own with its look, which is called again whenever bytes have come, and what it needs in [`StageRules`]. What it finds out
//! belongs in the [`Arrival`]. `service/rules.rs` has to make the rules where its option is given. Bytes are peeked at, so the next
//! look sees the same ones and more; only a step whose bytes the server must not get takes them. A step whose time may be over without
//! harm calls [`Step::walk`] with its successor in place of a refusal.

use std::time::{Duration, Instant};

use super::client::Clients;
use super::refusals::{Refusal, StageStats};
use super::{Arrival, End, StageRules};
use super::{client, first_byte, header, key};
use crate::accept::orders::WorkerId;
use crate::affinity::head::NoKey;
use crate::affinity::sessions::Sessions;

/// What has to be known of a connection next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(super) enum Step {
    /// Its PROXY header, if it comes from a trusted source. From here on the client's address is known.
    Header,
    /// Whether that address may connect. Nothing is waited for.
    Client,
    /// Anything that is the server's.
    FirstByte,
    /// Its key, in the head of its first request.
    Key,
    /// The worker of the session that the key names.
    Session,
}

/// What a look at a connection shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Look {
    Passes,
    Waits,
    Refused(Refusal),
}

/// What becomes of a connection that was looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// All that has to be known is known.
    Passed,
    /// It has to send more for this step.
    Waits(Step),
    Refused(Refusal),
}

/// What becomes of a connection that has waited for long enough.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Late {
    Refused(Refusal),
    /// It passes, and any worker will do.
    NoKey(NoKey),
}

/// What looking needs beside the connection.
#[derive(Debug, Default)]
pub(super) struct Desk {
    /// Where first bytes are copied to.
    pub buffer: Vec<u8>,
    /// Whether every worker online was started to be told what headers say.
    pub translates: bool,
    pub clients: Clients,
    /// What workers have reported.
    pub sessions: Sessions<WorkerId>,
}

/// How a connection is looked at.
#[derive(Debug, Clone, Copy)]
pub(super) struct Seen<'a> {
    pub rules: &'a StageRules,
    pub stats: &'a StageStats,
    pub now: Instant,
    /// Whether more may come.
    pub end: End,
}

impl Step {
    pub const FIRST: Self = Self::Header;

    fn next(self) -> Option<Self> {
        match self {
            Self::Header => Some(Self::Client),
            Self::Client => Some(Self::FirstByte),
            Self::FirstByte => Some(Self::Key),
            Self::Key => Some(Self::Session),
            Self::Session => None,
        }
    }

    /// The time that it has from the first look.
    pub fn time(self, rules: &StageRules) -> Duration {
        match self {
            Self::Header => header::TIMEOUT,
            Self::Client => Duration::ZERO,
            Self::FirstByte => rules.first_byte.unwrap_or_default(),
            Self::Key => key::TIMEOUT,
            Self::Session => rules.session_wait,
        }
    }

    /// What becomes of a connection whose time for this is over.
    pub fn late(self) -> Late {
        match self {
            Self::Header => Late::Refused(Refusal::ProxyTimeout),
            Self::Client | Self::FirstByte => Late::Refused(Refusal::FirstByteTimeout),
            Self::Key => Late::NoKey(NoKey::Incomplete),
            Self::Session => Late::NoKey(NoKey::UnknownSession),
        }
    }

    /// Looks once.
    fn look(self, desk: &mut Desk, arrival: &mut Arrival, seen: Seen<'_>) -> Look {
        let Seen { rules, stats, now, end } = seen;
        match self {
            Self::Header => header::look(desk, rules, stats, arrival, end != End::Open),
            Self::Client => client::look(desk, rules, arrival, now),
            Self::FirstByte => first_byte::look(rules, arrival, end != End::Open),
            Self::Key => key::look(desk, rules, stats, arrival, end),
            Self::Session => key::session(desk, rules, stats, arrival, end),
        }
    }

    /// Goes through this step and those after it, as far as it goes now.
    pub fn walk(mut self, desk: &mut Desk, arrival: &mut Arrival, seen: Seen<'_>) -> Outcome {
        loop {
            match self.look(desk, arrival, seen) {
                Look::Passes => match self.next() {
                    Some(next) => self = next,
                    None => return Outcome::Passed,
                },
                Look::Waits => return Outcome::Waits(self),
                Look::Refused(reason) => return Outcome::Refused(reason),
            }
        }
    }
}
