//! listen(2), shutdown(2) and the blocking mode of a stand-in.

use super::answers::{Answers, Outcome, State, not_written};
use super::caller::Memory;
use crate::abi::attach::{ADDRESS_BYTES, op};
use crate::sys::seccomp::Call;

impl Answers {
    /// Blocking or not, by F_SETFL or FIONBIO. A listener that workers share stays as it is.
    pub(super) fn set_mode(&self, call: &Call, state: &mut State, at: usize) -> Outcome {
        let value = call.arguments[2];
        let blocks = match call.number {
            libc::SYS_fcntl => Ok(value as i32 & libc::O_NONBLOCK == 0),
            _ => Memory::of(call, &self.notifications).read(value, 4).map(|on| i32::from_ne_bytes(on) == 0),
        };
        match blocks {
            Ok(blocks) if state.stand_ins[at].set_blocking(blocks) => Outcome::Returns(Ok(0)),
            Ok(_) => Outcome::GoesOn,
            Err(error) => not_written(&error, call, state),
        }
    }

    /// shutdown(2) on a stand-in ends listening.
    pub(super) fn shut_down(&self, call: &Call, at: usize) -> Result<i64, i32> {
        if call.arguments[1] as i32 as u32 > libc::SHUT_RDWR as u32 {
            return Err(libc::EINVAL);
        }
        let listener = {
            let state = &mut *self.state();
            let stand_in = &mut state.stand_ins[at];
            if !stand_in.listens {
                return if state.undelivered.take(call) { Ok(0) } else { Err(libc::ENOTCONN) };
            }
            stand_in.listens = false;
            for waits in stand_in.waiting.drain(..) {
                let _ = self.notifications.answer(waits.id, Err(libc::EINVAL));
            }
            stand_in.listener
        };
        let _ = self.ask(call, op::SHUT, listener, &[0; ADDRESS_BYTES]);
        Ok(0)
    }

    /// listen(2) on a stand-in.
    pub(super) fn listen(&self, call: &Call, at: usize) -> Result<i64, i32> {
        let listener = self.state().stand_ins[at].listener;
        match self.ask(call, op::LISTEN, listener, &[0; ADDRESS_BYTES]) {
            Ok(reply) if reply.number == 0 => {
                let state = &mut *self.state();
                state.stand_ins[at].listens = true;
                state.undelivered.listens(call.arguments[0]);
                Ok(0)
            }
            Ok(reply) => Err(reply.number as i32),
            Err(_) => Err(libc::EADDRINUSE),
        }
    }
}
