//! System calls for which the master is asked before they are answered, on a thread of their own.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::PoisonError;
use std::sync::mpsc::Receiver;

use super::answers::{Answers, Outcome};
use super::caller;
use super::master::Reply;
use crate::abi::attach::ADDRESS_BYTES;
use crate::sys::seccomp::Call;

impl Answers {
    /// Whether a call is one of these. Those on other sockets, connections among them, do not wait for the ones before.
    pub(super) fn asks_the_master(&self, call: &Call) -> bool {
        match call.number {
            libc::SYS_bind => true,
            libc::SYS_listen | libc::SYS_shutdown | libc::SYS_setsockopt => {
                call.thread != 0 && self.state().find(call.thread, call.arguments[0] as i32).is_some()
            }
            _ => false,
        }
    }

    /// Answers calls for which the master is asked: it may take its time, while connections are accepted.
    pub fn carry_out(&self, calls: &Receiver<Call>) {
        for call in calls.iter().filter(|call| self.notifications.waits(call.id)) {
            let outcome = self.request(&call);
            let _ = self.finish(&call, outcome);
            // A signal may take the place of an answer that is on its way.
            if outcome == Outcome::Returns(Ok(0)) && [libc::SYS_bind, libc::SYS_shutdown].contains(&call.number) {
                self.state().undelivered.note(&call);
            }
        }
    }

    fn request(&self, call: &Call) -> Outcome {
        if call.thread == 0 {
            return Outcome::GoesOn;
        }
        if call.number == libc::SYS_bind {
            return self.bind(call);
        }
        let found = self.state().find(call.thread, call.arguments[0] as i32);
        match found {
            Some(at) if call.number == libc::SYS_listen => Outcome::Returns(self.listen(call, at)),
            Some(at) if call.number == libc::SYS_shutdown => Outcome::Returns(self.shut_down(call, at)),
            Some(at) => self.set_option(call, at),
            None => Outcome::GoesOn,
        }
    }

    /// Asks the master on behalf of a thread, while it waits.
    pub(super) fn ask(&self, call: &Call, op: u16, number: u32, address: &[u8; ADDRESS_BYTES]) -> io::Result<Reply> {
        let process = caller::process_of(call.thread).unwrap_or_else(|| self.state().server);
        self.ask_with(call, process, op, number, address, None)
    }

    /// The same with a socket.
    pub(super) fn ask_with(
        &self,
        call: &Call,
        process: u32,
        op: u16,
        number: u32,
        address: &[u8; ADDRESS_BYTES],
        socket: Option<BorrowedFd<'_>>,
    ) -> io::Result<Reply> {
        let mut master = self.master.lock().unwrap_or_else(PoisonError::into_inner);
        master.ask(|| self.notifications.waits(call.id), process, op, number, address, socket)
    }
}
