//! `--admin`: a page, health and metrics over HTTP. It has a thread and a reactor of its own, so that requests
//! here cost connections and workers nothing.

mod actions;
mod client;
mod metrics;
mod page;
mod places;
mod plain;
mod serve;
mod stream;
mod stream_places;
pub mod token;
mod view;

use std::io;
use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;

use crossbeam_channel::Sender;
use mio::Waker;
use socket2::SockRef;
use tokio::sync::oneshot;

use crate::addr::AdminAddr;
use crate::control::status::Daemon;
use crate::listener::BACKLOG;
use crate::output::recent::Recent;
use token::Token;

/// Asks the control thread for the daemon's state.
#[derive(Debug, Clone)]
pub struct Ask {
    questions: Sender<oneshot::Sender<Daemon>>,
    waker: Arc<Waker>,
}

impl Ask {
    pub fn new(questions: Sender<oneshot::Sender<Daemon>>, waker: Arc<Waker>) -> Self {
        Self { questions, waker }
    }

    fn state(&self) -> Option<oneshot::Receiver<Daemon>> {
        let (answer, receiver) = oneshot::channel();
        // Full: the control thread is far behind. Otherwise both fail only at the daemon's end.
        self.questions.try_send(answer).ok()?;
        self.waker.wake().ok()?;
        Some(receiver)
    }
}

/// Binds the listener.
pub fn bind(address: AdminAddr) -> io::Result<TcpListener> {
    let listener = TcpListener::bind(address.0)?;
    listener.set_nonblocking(true)?;
    // As much backlog as the kernel allows: a probe that finds it full is only tried again after a second.
    SockRef::from(&listener).listen(BACKLOG)?;
    Ok(listener)
}

/// What the thread serves with, besides the daemon's state.
#[derive(Debug)]
pub struct Open {
    pub listener: TcpListener,
    pub token: Token,
    pub recent: Recent,
}

/// Starts the thread. `control`: the path of the control socket, for actions.
///
/// # Errors
/// When the thread or its reactor cannot be had.
pub fn start(open: Open, ask: Ask, control: Option<PathBuf>) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build()?;
    let serve = move || runtime.block_on(serve::serve(open, ask, control));
    thread::Builder::new().name("admin".into()).spawn(serve)?;
    Ok(())
}
