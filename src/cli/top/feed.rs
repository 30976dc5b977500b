//! What the loop waits for, from threads of their own: keys, states, results, lines, signals.

use std::io::{self, BufRead, BufReader};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant, UNIX_EPOCH};

use crossbeam_channel::{Receiver, Sender};
use nix::sys::signal::{SigSet, Signal};
use ratatui::crossterm::event::{self, Event, KeyEvent, KeyEventKind};
use signal_hook::consts::{SIGCONT, SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use signal_hook::iterator::Signals;
use signal_hook::low_level::emulate_default_handler;

use super::screen::{LineKind, LogLine, Order};
use super::seen::{Answers, Happened, MAX_EVENTS, PACE};
use super::terminal;
use crate::cli::{events, logs};
use crate::control::ask::{ask, ls_of};
use crate::control::{Reply, Request, socket_path};
use crate::output::line::Stream;
use crate::sys::reason;

/// Time for a daemon to answer.
const TIMEOUT: Duration = Duration::from_secs(2);
/// Past lines of a log.
const LINES: usize = 200;
/// The longest line of a log that is kept, in characters.
const MAX_LINE: usize = 4096;
/// Time for the loop to end after a signal.
const GRACE: Duration = Duration::from_secs(2);

#[derive(Debug)]
pub enum Message {
    Key(KeyEvent),
    Resized,
    /// No more keys can be read.
    NoKeys(io::Error),
    /// The states, or why no daemon can be found.
    States(Answers, Option<String>),
    /// A step or the end of an order, with its name.
    Progress(String, Reply),
    /// A line of a log, by its follower's number; an error is its end.
    Line(u64, Result<LogLine, String>),
    Happened(Happened),
    Signal(i32),
}

/// Which daemons are watched.
#[derive(Debug, Clone)]
pub enum Daemons {
    /// The one at a control socket.
    At(PathBuf),
    /// All of this user.
    All,
}

/// Asks all daemons at once.
pub fn round(daemons: &Daemons) -> (Answers, Option<String>) {
    let sockets = match daemons {
        Daemons::At(socket) => vec![socket.clone()],
        Daemons::All => match socket_path::all() {
            Ok(sockets) => sockets,
            Err(why) => return (Vec::new(), Some(why.to_string())),
        },
    };
    let answers = thread::scope(|scope| {
        let asked: Vec<_> =
            sockets.iter().map(|socket| (socket, scope.spawn(move || ls_of(socket, TIMEOUT)))).collect();
        let answer = |(socket, thread): (&PathBuf, thread::ScopedJoinHandle<'_, io::Result<_>>)| {
            let failed = |_| Err(io::Error::other("the question failed"));
            (socket.clone(), thread.join().unwrap_or_else(failed))
        };
        asked.into_iter().map(answer).collect()
    });
    (answers, None)
}

/// Sends the states once a second, and when `now` says so.
pub fn states(daemons: Daemons, now: Receiver<()>, to: Sender<Message>) {
    thread::spawn(move || {
        loop {
            let begin = Instant::now();
            let (answers, trouble) = round(&daemons);
            if to.send(Message::States(answers, trouble)).is_err() {
                return;
            }
            if now.recv_deadline(begin + PACE) == Err(crossbeam_channel::RecvTimeoutError::Disconnected) {
                return;
            }
        }
    });
}

/// Keeps changes of the terminal's size from all threads that begin after this, besides the one of [`sizes`]. Where crossterm
/// gets one together with a key, it returns the change and forgets the key until there is another one.
///
/// # Errors
/// As sigprocmask(2).
pub fn keep_sizes() -> io::Result<SigSet> {
    let sizes = SigSet::from(Signal::SIGWINCH);
    sizes.thread_block()?;
    Ok(sizes)
}

/// Sends changes of the terminal's size.
pub fn sizes(sizes: SigSet, to: Sender<Message>) {
    thread::spawn(move || while sizes.wait().is_ok() && to.send(Message::Resized).is_ok() {});
}

/// Sends keys.
pub fn keys(to: Sender<Message>) {
    thread::spawn(move || {
        loop {
            let message = match event::read() {
                Ok(Event::Key(key)) if key.kind != KeyEventKind::Release => Message::Key(key),
                Ok(_) => continue,
                Err(error) => Message::NoKeys(error),
            };
            let over = matches!(message, Message::NoKeys(_));
            if to.send(message).is_err() || over {
                return;
            }
        }
    });
}

/// Sends signals. One that ends the program ends it in any case: the loop may hang in a write to a terminal that is held.
///
/// # Errors
/// When handlers cannot be set.
pub fn signals(to: Sender<Message>) -> io::Result<()> {
    let mut signals = Signals::new([SIGTERM, SIGHUP, SIGINT, SIGQUIT, SIGCONT])?;
    thread::spawn(move || {
        for signal in signals.forever() {
            let _ = to.send_timeout(Message::Signal(signal), GRACE);
            if signal != SIGCONT {
                thread::sleep(GRACE);
                terminal::leave();
                let _ = emulate_default_handler(signal);
            }
        }
    });
    Ok(())
}

/// Carries out an order.
pub fn carry_out(order: Order, to: Sender<Message>) {
    thread::spawn(move || {
        let Order { key, name, request, .. } = order;
        let failed = |error: io::Error| Reply::Error(reason(&error));
        let own = format!("{}: ", key.service);
        let answers = match ask(&key.socket, &request, TIMEOUT) {
            Ok(stream) => BufReader::new(stream),
            Err(error) => return drop(to.send(Message::Progress(name, failed(error)))),
        };
        for line in answers.lines() {
            let reply = line.and_then(|line| Ok(serde_json::from_str::<Reply>(&line)?));
            let reply = reply.unwrap_or_else(failed);
            let over = !matches!(reply, Reply::Step(_));
            // The name has the service already.
            let text = |text: String| text.strip_prefix(&*own).map(str::to_owned).unwrap_or(text);
            let reply = match reply {
                Reply::Step(step) => Reply::Step(text(step)),
                Reply::Done(done) => Reply::Done(text(done)),
                Reply::Error(why) => Reply::Error(text(why)),
            };
            if to.send(Message::Progress(name.clone(), reply)).is_err() || over {
                return;
            }
        }
        let _ = to.send(Message::Progress(name, Reply::Error("the daemon ended".to_owned())));
    });
}

/// Lines that are being followed; ends when dropped.
#[derive(Debug)]
pub struct Follower(UnixStream);

impl Drop for Follower {
    fn drop(&mut self) {
        let _ = self.0.shutdown(Shutdown::Both);
    }
}

/// Sends the last lines of a service or slot, and those to come.
///
/// # Errors
/// As connect(2).
pub fn follow(
    socket: &Path,
    service: String,
    slot: Option<u32>,
    number: u64,
    to: Sender<Message>,
) -> io::Result<Follower> {
    let request = Request::Logs { service: Some(service), slot, lines: LINES, follow: true, events: true };
    let stream = ask(socket, &request, TIMEOUT)?;
    let follower = Follower(stream.try_clone()?);
    thread::spawn(move || {
        for line in BufReader::new(stream).lines() {
            let shown = line.and_then(|line| Ok(serde_json::from_str::<logs::Shown>(&line)?));
            let line = shown.map_err(|error| reason(&error)).and_then(read);
            let over = line.is_err();
            if to.send(Message::Line(number, line)).is_err() || over {
                return;
            }
        }
        let _ = to.send(Message::Line(number, Err("the daemon ended".to_owned())));
    });
    Ok(follower)
}

/// Sends the last events of a daemon, or of one service, and those to come.
///
/// # Errors
/// As connect(2).
pub fn happenings(socket: &Path, service: Option<String>, to: Sender<Message>) -> io::Result<Follower> {
    let request = Request::Events { service, slot: None, lines: MAX_EVENTS, follow: true };
    let stream = ask(socket, &request, TIMEOUT)?;
    let follower = Follower(stream.try_clone()?);
    thread::spawn(move || {
        for line in BufReader::new(stream).lines().map_while(Result::ok) {
            // A daemon of another version may not know the request: then there are none.
            let Ok(events::Shown::Event(event)) = serde_json::from_str(&line) else { continue };
            let happened = Happened {
                at: humantime::parse_rfc3339(&event.time).unwrap_or(UNIX_EPOCH),
                bad: event.level != "info",
                place: events::place(&event),
                text: format!("{}{}", event.message, events::fields(&event)),
            };
            if to.send(Message::Happened(happened)).is_err() {
                return;
            }
        }
    });
    Ok(follower)
}

fn read(shown: logs::Shown) -> Result<LogLine, String> {
    let own = |text: String| LogLine { origin: String::new(), kind: LineKind::Event, text };
    match shown {
        logs::Shown::Line(line) => {
            let kind = match line.stream {
                Stream::Err => LineKind::Err,
                Stream::Event => LineKind::Event,
                Stream::Out | Stream::Message => LineKind::Out,
            };
            Ok(LogLine { origin: line.label(), kind, text: line.line.chars().take(MAX_LINE).collect() })
        }
        logs::Shown::Dropped { dropped } => Ok(own(format!("… {dropped} lines dropped"))),
        logs::Shown::Reply(Reply::Error(why)) => Err(why),
        logs::Shown::Reply(Reply::Step(text) | Reply::Done(text)) => Ok(own(text)),
    }
}
