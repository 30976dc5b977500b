//! The answers to the server's system calls.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use socket2::SockRef;

use super::caller::{self, Memory};
use super::master::Master;
use super::open::{self, Open};
use super::stand_in::{Connection, StandIn};
use super::undelivered::Undelivered;
use super::waker::Waker;
use crate::abi::page::row;
use crate::handoff::page::CountersPage;
use crate::sys::clock::monotonic_ns;
use crate::sys::seccomp::{Call, Notifications};

/// Stand-ins that are compared one by one; more are looked up by the inode.
const MAX_COMPARED: usize = 4;

/// What becomes of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The kernel carries it out.
    GoesOn,
    /// It returns this, or this errno.
    Returns(Result<i64, i32>),
    /// It is answered already, is answered later, or waits no more.
    Settled,
}

/// What a look at the connections shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Look {
    NoneOpen,
    /// Some are new, or closed.
    Changed,
    Same,
}

/// What all threads use: the one that answers, the one that asks the master before it answers, and the main one.
#[derive(Debug)]
pub struct Answers {
    pub notifications: Notifications,
    pub waker: Waker,
    pub state: Mutex<State>,
    /// Only of the thread that asks.
    pub(super) master: Mutex<Master>,
}

#[derive(Debug)]
pub struct State {
    pub stand_ins: Vec<StandIn>,
    /// From the first bind on.
    pub page: Option<Arc<CountersPage>>,
    /// The process that was started.
    pub server: u32,
    pub undelivered: Undelivered,
    open: Open,
    complained: bool,
}

impl State {
    /// The place of the stand-in that a thread has at a descriptor. By the open file, not by the number: descriptors are
    /// duplicated and closed unseen.
    pub fn find(&self, thread: u32, fd: i32) -> Option<usize> {
        if self.stand_ins.len() > MAX_COMPARED {
            return self.find_by_inode(thread, fd);
        }
        for (at, stand_in) in self.stand_ins.iter().enumerate() {
            match caller::has_file(thread, fd, stand_in.file().as_fd()) {
                Some(true) => return Some(at),
                Some(false) => {}
                None => return self.find_by_inode(thread, fd),
            }
        }
        None
    }

    fn find_by_inode(&self, thread: u32, fd: i32) -> Option<usize> {
        let inode = caller::inode(thread, fd)?;
        self.stand_ins.iter().position(|stand_in| stand_in.inode == inode)
    }

    /// The counters page, which is the same for all listeners.
    pub fn page_of(&mut self, file: &OwnedFd) -> Option<Arc<CountersPage>> {
        if self.page.is_none() {
            let page = CountersPage::attach(file.as_fd()).ok()?;
            page.add(row::PID, self.server.into());
            page.set_estimate();
            self.page = Some(Arc::new(page));
        }
        self.page.clone()
    }

    /// After calls on a stand-in: what was accepted is counted, but for what waits for the next call.
    fn settle(&self, at: usize) {
        if let Some(page) = self.stand_ins[at].page() {
            page.set_accepting(self.stand_ins.iter().any(StandIn::holds_some));
        }
    }

    pub fn give_all_back(&mut self) {
        self.stand_ins.iter_mut().for_each(StandIn::give_all_back);
    }

    /// Says once, in the server's own output, why it does not work.
    pub fn complain(&mut self, process: u32) {
        if !std::mem::replace(&mut self.complained, true) {
            eprintln!(
                "roundsman: the memory of process {process} cannot be reached (has it changed its user?): use --via relay"
            );
        }
    }
}

impl Answers {
    pub fn new(notifications: Notifications, master: Master, waker: Waker, server: u32) -> Self {
        // Where the kernel cannot, the switch goes by way of its scheduler.
        notifications.switch_at_once();
        let (stand_ins, undelivered, open) = Default::default();
        let state = State { stand_ins, page: None, server, undelivered, open, complained: false };
        Self { notifications, waker, state: Mutex::new(state), master: Mutex::new(master) }
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Answers until no process has the filter any more. Calls for which the master is asked go to [`Answers::carry_out`].
    pub fn run(&self, requests: &Sender<Call>) {
        loop {
            match self.notifications.receive() {
                Ok(call) if self.asks_the_master(&call) => {
                    let _ = requests.send(call);
                }
                Ok(call) => {
                    let outcome = self.answer(&call, &mut self.state());
                    // Fails when the call waits no more.
                    let _ = self.finish(&call, outcome);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {
                    let mut end = [PollFd::new(self.notifications.as_fd(), PollFlags::POLLIN)];
                    let ended = poll(&mut end, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
                        && end[0].revents().is_some_and(|events| events.contains(PollFlags::POLLHUP));
                    if ended {
                        return;
                    }
                }
                Err(_) => return,
            }
        }
    }

    pub(super) fn finish(&self, call: &Call, outcome: Outcome) -> io::Result<()> {
        match outcome {
            Outcome::GoesOn => self.notifications.go_on(call.id),
            Outcome::Returns(result) => self.notifications.answer(call.id, result),
            Outcome::Settled => Ok(()),
        }
    }

    fn answer(&self, call: &Call, state: &mut State) -> Outcome {
        if call.thread == 0 {
            return Outcome::GoesOn;
        }
        let fd = call.arguments[0] as i32;
        match call.number {
            libc::SYS_accept | libc::SYS_accept4 => match state.find(call.thread, fd) {
                Some(at) => {
                    let outcome = self.accept(call, state, at);
                    state.settle(at);
                    outcome
                }
                None if caller::is_hidden(call.thread) => {
                    state.complain(call.thread);
                    Outcome::Returns(Err(libc::EPERM))
                }
                None => Outcome::GoesOn,
            },
            libc::SYS_fcntl | libc::SYS_ioctl => match state.find(call.thread, fd) {
                Some(at) => self.set_mode(call, state, at),
                None => Outcome::GoesOn,
            },
            libc::SYS_getsockname => match state.find(call.thread, fd) {
                Some(at) => self.name(call, state, at),
                None => Outcome::GoesOn,
            },
            libc::SYS_getsockopt => self.option(call, state),
            _ => Outcome::GoesOn,
        }
    }

    /// getsockname(2) on a stand-in.
    fn name(&self, call: &Call, state: &mut State, at: usize) -> Outcome {
        let [_, to, len, ..] = call.arguments;
        match Memory::of(call, &self.notifications).write_address(&state.stand_ins[at].address, to, len) {
            Ok(()) => Outcome::Returns(Ok(0)),
            Err(error) => not_written(&error, call, state),
        }
    }

    fn accept(&self, call: &Call, state: &mut State, at: usize) -> Outcome {
        let stand_in = &mut state.stand_ins[at];
        if !stand_in.listens || flags(call) & !(libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC) != 0 {
            return Outcome::Returns(Err(libc::EINVAL));
        }
        let next = match stand_in.next() {
            Ok(next) => next,
            Err(error) => return Outcome::Returns(Err(errno(&error))),
        };
        match next {
            Some(connection) => match self.deliver(call, state, at, connection) {
                Ok(outcome) => outcome,
                Err(connection) => {
                    state.stand_ins[at].give_back(connection);
                    self.pass_on(state, at);
                    Outcome::Settled
                }
            },
            None if stand_in.blocks() => {
                // A thread waits for one call; what it waited for before was interrupted.
                stand_in.waiting.retain(|other| other.thread != call.thread);
                stand_in.waiting.push_back(*call);
                self.waker.await_file(stand_in.file(), at);
                Outcome::Settled
            }
            None => Outcome::Returns(Err(libc::EAGAIN)),
        }
    }

    /// Gives a connection to the thread that has called.
    ///
    /// # Errors
    /// The connection, when the call waits no more.
    fn deliver(
        &self,
        call: &Call,
        state: &mut State,
        at: usize,
        connection: Connection,
    ) -> Result<Outcome, Connection> {
        let [_, to, len, ..] = call.arguments;
        let (flags, client) = (flags(call), connection.client());
        if flags & libc::SOCK_NONBLOCK == 0 {
            // The master accepts non-blocking; this server wants it blocking. Cannot fail for a socket that is open.
            let _ = SockRef::from(&connection.socket).set_nonblocking(false);
        }
        if to != 0 {
            let shown = state.stand_ins[at].shown(client);
            match Memory::of(call, &self.notifications).write_address(&shown, to, len) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(connection),
                Err(error) => {
                    if error.kind() == io::ErrorKind::PermissionDenied {
                        state.stand_ins[at].give_back(connection);
                    }
                    // Else the connection is closed, as the kernel does it.
                    return Ok(not_written(&error, call, state));
                }
            }
        }
        let noted = state.open.note(connection.socket.as_fd(), &client);
        match self.notifications.give(call.id, connection.socket.as_fd(), flags & libc::SOCK_CLOEXEC != 0) {
            Ok(()) => {}
            Err(error) => {
                if noted.is_some() {
                    state.open.forget_last();
                }
                return match error.raw_os_error() {
                    Some(errno @ (libc::EMFILE | libc::ENFILE | libc::ENOMEM)) => {
                        state.stand_ins[at].give_back(connection);
                        Ok(Outcome::Returns(Err(errno)))
                    }
                    _ => Err(connection),
                };
            }
        }
        if let Some(page) = state.page.as_ref().filter(|_| !connection.only_wakes()) {
            page.add(row::RECEIVED, 1);
            if let Some(accepted) = connection.accepted() {
                page.record_latency(1, monotonic_ns().saturating_sub(accepted));
            }
            if noted.is_none() {
                page.add(row::CLOSED, 1);
            }
        }
        if noted == Some(true) {
            self.waker.wake();
        }
        Ok(Outcome::Settled)
    }

    /// On the main thread: something may be in the queue of a stand-in, where threads wait.
    pub fn arrived(&self, at: usize) {
        let state = &mut *self.state();
        if at < state.stand_ins.len() {
            self.pass_on(state, at);
            state.settle(at);
        }
    }

    /// Gives what there is to the threads that wait for it.
    fn pass_on(&self, state: &mut State, at: usize) {
        state.stand_ins[at].waiting.retain(|call| self.notifications.waits(call.id));
        while let Some(call) = state.stand_ins[at].waiting.pop_front() {
            let mut connection = match state.stand_ins[at].next() {
                Ok(Some(connection)) => connection,
                Ok(None) => {
                    state.stand_ins[at].waiting.push_front(call);
                    break;
                }
                Err(error) => {
                    let _ = self.notifications.answer(call.id, Err(errno(&error)));
                    continue;
                }
            };
            let mut call = call;
            loop {
                match self.deliver(&call, state, at, connection) {
                    Ok(outcome) => {
                        if let Outcome::Returns(result) = outcome {
                            let _ = self.notifications.answer(call.id, result);
                        }
                        break;
                    }
                    Err(undelivered) => match state.stand_ins[at].waiting.pop_front() {
                        Some(next) => (call, connection) = (next, undelivered),
                        None => {
                            state.stand_ins[at].give_back(undelivered);
                            break;
                        }
                    },
                }
            }
        }
        let stand_in = &state.stand_ins[at];
        if !stand_in.waiting.is_empty() && !stand_in.page().is_some_and(CountersPage::is_leaving) {
            self.waker.await_file(stand_in.file(), at);
        }
    }

    /// Counts what was closed since the last look.
    pub fn look(&self) -> Look {
        let (mut connections, new) = self.state().open.take();
        let closed = open::take_closed(&mut connections);
        let mut state = self.state();
        if let Some(page) = &state.page {
            page.add(row::CLOSED, closed);
        }
        match state.open.put_back(connections) {
            false => Look::NoneOpen,
            true if new || closed > 0 => Look::Changed,
            true => Look::Same,
        }
    }
}

fn errno(error: &io::Error) -> i32 {
    error.raw_os_error().unwrap_or(libc::EIO)
}

/// The flags of accept4(2).
fn flags(call: &Call) -> i32 {
    if call.number == libc::SYS_accept4 { call.arguments[3] as i32 } else { 0 }
}

/// What becomes of a call whose result could not be written to its memory.
pub(super) fn not_written(error: &io::Error, call: &Call, state: &mut State) -> Outcome {
    match error.kind() {
        io::ErrorKind::NotFound => return Outcome::Settled,
        io::ErrorKind::PermissionDenied => {
            state.complain(call.thread);
            return Outcome::Returns(Err(libc::EPERM));
        }
        _ => {}
    }
    let errno = error.raw_os_error().filter(|&errno| errno == libc::EINVAL).unwrap_or(libc::EFAULT);
    Outcome::Returns(Err(errno))
}
