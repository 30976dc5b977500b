//! getsockopt(2) and setsockopt(2) on stand-ins. Only those options are notified that a server asks its listening socket for, and
//! not its connections.

use super::answers::{Answers, Outcome, State, not_written};
use super::caller::Memory;
use crate::abi::attach::{ADDRESS_BYTES, OPTION_BYTES, STATUS, op};
use crate::sys::seccomp::Call;
use crate::sys::seccomp_filter::Rule;

/// From what kind of socket a server tells that it was given a listener (Go's net.FileListener, for one).
pub const READ: Rule = Rule::NotifiedOptions(
    libc::SYS_getsockopt,
    libc::SOL_SOCKET,
    &[libc::SO_TYPE, libc::SO_ACCEPTCONN, libc::SO_PROTOCOL, libc::SO_DOMAIN],
);
/// What only a listener has.
pub const SET: Rule =
    Rule::NotifiedOptions(libc::SYS_setsockopt, libc::IPPROTO_TCP, &[libc::TCP_DEFER_ACCEPT, libc::TCP_FASTOPEN]);

impl Answers {
    pub(super) fn option(&self, call: &Call, state: &mut State) -> Outcome {
        let [fd, _, name, to, len, _] = call.arguments;
        let Some(at) = state.find(call.thread, fd as i32) else { return Outcome::GoesOn };
        let stand_in = &state.stand_ins[at];
        let value = match name as i32 {
            libc::SO_TYPE => libc::SOCK_STREAM,
            libc::SO_ACCEPTCONN => i32::from(stand_in.listens),
            libc::SO_PROTOCOL => libc::IPPROTO_TCP,
            libc::SO_DOMAIN => stand_in.family(),
            _ => return Outcome::GoesOn,
        };
        match Memory::of(call, &self.notifications).write_option(value, to, len) {
            Ok(()) => Outcome::Returns(Ok(0)),
            Err(error) => not_written(&error, call, state),
        }
    }

    /// The master sets the listener's option.
    pub(super) fn set_option(&self, call: &Call, at: usize) -> Outcome {
        let [_, level, name, from, len, _] = call.arguments;
        let len = len as u32 as usize;
        if len > OPTION_BYTES {
            return Outcome::Returns(Err(libc::EINVAL));
        }
        let value: [u8; OPTION_BYTES] = match Memory::of(call, &self.notifications).read(from, len) {
            Ok(value) => value,
            Err(error) => return not_written(&error, call, &mut self.state()),
        };
        // As `SocketOption` has it.
        let mut option = [0; ADDRESS_BYTES];
        option[..4].copy_from_slice(&(level as i32).to_ne_bytes());
        option[4..8].copy_from_slice(&(name as i32).to_ne_bytes());
        option[8..12].copy_from_slice(&(len as u32).to_ne_bytes());
        option[12..].copy_from_slice(&value);
        let listener = self.state().stand_ins[at].listener;
        Outcome::Returns(match self.ask(call, op::SET_OPTION, listener, &option) {
            Ok(reply) if reply.kind == STATUS && reply.number != 0 => Err(reply.number as i32),
            // Without a master the option is of no use.
            _ => Ok(0),
        })
    }
}
