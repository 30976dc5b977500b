//! `--admin`: health and metrics over HTTP, for orchestrators. A thread of its own with its own reactor: whatever comes in
//! here, connections and workers do not notice.

mod metrics;
mod places;
mod serve;

use std::io;
use std::net::TcpListener;
use std::sync::Arc;
use std::thread;

use crossbeam_channel::Sender;
use mio::Waker;
use socket2::SockRef;
use tokio::sync::oneshot;

use crate::addr::AdminAddr;
use crate::control::status::Daemon;
use crate::listener::BACKLOG;

/// The way to the control thread, which alone knows the state.
#[derive(Debug, Clone)]
pub struct Ask {
    questions: Sender<oneshot::Sender<Daemon>>,
    waker: Arc<Waker>,
}

impl Ask {
    /// Questions go in there, and the control thread is woken for each.
    pub fn new(questions: Sender<oneshot::Sender<Daemon>>, waker: Arc<Waker>) -> Self {
        Self { questions, waker }
    }

    fn state(&self) -> Option<oneshot::Receiver<Daemon>> {
        let (answer, receiver) = oneshot::channel();
        // Full: the control thread is far behind. Both fail only then and at the end.
        self.questions.try_send(answer).ok()?;
        self.waker.wake().ok()?;
        Some(receiver)
    }
}

/// Binds.
///
/// # Errors
/// As bind(2).
pub fn bind(address: AdminAddr) -> io::Result<TcpListener> {
    let listener = TcpListener::bind(address.0)?;
    listener.set_nonblocking(true)?;
    // As many as the kernel allows: a probe that does not fit in is only tried again after a second.
    SockRef::from(&listener).listen(BACKLOG)?;
    Ok(listener)
}

/// Starts the thread.
///
/// # Errors
/// When it cannot be had, or its reactor.
pub fn start(listener: TcpListener, ask: Ask) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build()?;
    thread::Builder::new().name("admin".into()).spawn(move || runtime.block_on(serve::serve(listener, ask)))?;
    Ok(())
}
