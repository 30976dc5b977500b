//! What events say of a client's end.

use mio::event::Event;

/// How much of its connection a client has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::accept) enum End {
    /// Nothing, as far as is known.
    Open,
    /// Its side: nothing more will come, but it may wait for the answer.
    Half,
    /// All of it, or it has reset it: nobody is there for an answer.
    Whole,
}

impl End {
    pub fn of(event: &Event) -> Self {
        match event {
            event if event.is_error() || event.is_write_closed() => Self::Whole,
            event if event.is_read_closed() => Self::Half,
            _ => Self::Open,
        }
    }
}
