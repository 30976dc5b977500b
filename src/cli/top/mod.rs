//! `roundsman top`: services, slots and upstreams on a full screen, with keys for what can be done.
//!
//! Messages of threads (`feed`) go to one loop, which updates what was seen (`seen`) and what is shown (`screen`, `keys`),
//! and draws a frame of it (`rows`, `view`).

mod feed;
mod keys;
mod rows;
mod screen;
mod seen;
pub mod terminal;
mod view;

use std::collections::HashMap;
use std::io::{self, IsTerminal};
use std::mem::ManuallyDrop;
use std::path::PathBuf;
use std::time::{Instant, SystemTime};

use crossbeam_channel::{Receiver, Sender};
use ratatui::Terminal;
use ratatui::backend::CrosstermBackend;
use ratatui::layout::{Rect, Size};
use signal_hook::consts::SIGCONT;
use signal_hook::low_level::emulate_default_handler;

use self::feed::{Daemons, Follower, Message};
use self::keys::Wish;
use self::rows::{Row, rows};
use self::screen::{Logs, Mode, Screen};
use self::seen::Seen;
use self::terminal::{Guard, Output};
use self::view::{Areas, Theme, View};
use super::Target;
use super::place::Part;
use super::which::{self, nobody, unreachable};
use crate::codes::USAGE;
use crate::control::Reply;
use crate::exit::Exit;

/// Messages that wait for the loop; a flood of lines waits in the daemon, which drops some.
const MESSAGES: usize = 1024;

/// Shows services until a key or a signal ends it.
///
/// # Errors
/// [`USAGE`] without a terminal that can do it; as [`super::client::ls`].
pub fn run(target: &Target) -> Result<(), Exit> {
    check_terminal()?;
    let (daemons, only) = match (&target.name, &target.control) {
        (None, Some(socket)) => (Daemons::At(socket.clone()), None),
        (None, None) => (Daemons::All, None),
        (Some(_), _) => {
            let (socket, service) = which::one(target)?;
            (Daemons::At(socket), service)
        }
    };
    // What is wrong from the start is said where it stays to be read.
    let mut seen = Seen::default();
    let (answers, trouble) = feed::round(&daemons);
    if answers.iter().all(|(_, answer)| answer.is_err()) {
        return Err(match (answers.into_iter().next(), trouble) {
            (Some((socket, Err(error))), _) => unreachable(&socket, &error),
            _ => nobody(),
        });
    }
    seen.update(answers, Instant::now(), SystemTime::now());
    if let Some(name) = &only
        && !seen.daemons.iter().any(|watched| watched.daemon.services.iter().any(|service| service.name == *name))
    {
        return Err(Exit::new(USAGE, format!("there is no service {name:?}; roundsman ls shows them")));
    }
    let failed = |error: io::Error| Exit::os("the terminal cannot be used", &error);
    let (to, messages) = crossbeam_channel::bounded(MESSAGES);
    feed::sizes(feed::keep_sizes().map_err(failed)?, to.clone());
    feed::signals(to.clone()).map_err(failed)?;
    let guard = Guard::enter().map_err(failed)?;
    let end = Top::new(seen, only, to).and_then(|mut top| top.run(&guard, &messages, daemons));
    drop(guard);
    if let Some(signal) = end.map_err(failed)? {
        let _ = emulate_default_handler(signal);
    }
    Ok(())
}

fn check_terminal() -> Result<(), Exit> {
    let refused = |why: &str| {
        let instead = "use roundsman ls --watch, or roundsman ls --json for programs";
        Err(Exit::new(USAGE, format!("top: {why}; {instead}")))
    };
    if !io::stdout().is_terminal() {
        return refused("the output is not a terminal");
    }
    match std::env::var("TERM").unwrap_or_default().as_str() {
        "" => refused("TERM is not set"),
        "dumb" => refused("the terminal cannot show a full screen (TERM=dumb)"),
        _ => Ok(()),
    }
}

struct Top {
    /// Never dropped: that would write to a terminal that may have gone, and panic. The guard gives it back.
    terminal: ManuallyDrop<Terminal<CrosstermBackend<Output>>>,
    seen: Seen,
    /// The only service that is shown.
    only: Option<String>,
    screen: Screen,
    theme: Theme,
    to: Sender<Message>,
    follower: Option<Follower>,
    /// The process of each daemon whose events are followed.
    events: HashMap<PathBuf, (u32, Follower)>,
    /// Counts followers: lines of earlier ones are not shown.
    followers: u64,
}

impl Top {
    fn new(seen: Seen, only: Option<String>, to: Sender<Message>) -> io::Result<Self> {
        let terminal = ManuallyDrop::new(Terminal::new(CrosstermBackend::new(Output::default()))?);
        let colours = anstream::AutoStream::choice(&io::stdout()) != anstream::ColorChoice::Never;
        let theme = Theme { colours };
        Ok(Self {
            terminal,
            seen,
            only,
            screen: Screen::default(),
            theme,
            to,
            follower: None,
            events: HashMap::new(),
            followers: 0,
        })
    }

    /// Returns the signal that ended it, if one did.
    fn run(&mut self, guard: &Guard, messages: &Receiver<Message>, daemons: Daemons) -> io::Result<Option<i32>> {
        let (again, soon) = crossbeam_channel::bounded(1);
        feed::states(daemons, soon, self.to.clone());
        feed::keys(self.to.clone());
        self.follow_events();
        loop {
            self.draw()?;
            // All that has come is taken in before the next frame.
            let first = messages.recv().map_err(io::Error::other)?;
            for message in std::iter::once(first).chain(messages.try_iter().take(MESSAGES)) {
                match message {
                    Message::Key(key) => match self.key(key)? {
                        Wish::Quit => return Ok(None),
                        Wish::Suspend => {
                            guard.suspend()?;
                            self.redraw()?;
                        }
                        Wish::Order(order) => {
                            self.screen.say(format!("{} …", order.name), false);
                            feed::carry_out(*order, self.to.clone());
                        }
                        Wish::Logs => self.logs(),
                        Wish::LogsEnd => self.follower = None,
                        Wish::Redraw => self.redraw()?,
                        Wish::None => {}
                    },
                    Message::Resized => self.terminal.autoresize()?,
                    Message::NoKeys(error) => return Err(error),
                    Message::States(answers, trouble) => {
                        self.seen.trouble = trouble;
                        self.seen.update(answers, Instant::now(), SystemTime::now());
                        self.follow_events();
                    }
                    Message::Happened(event) => self.seen.happened(event),
                    Message::Progress(name, reply) => {
                        let (text, failed) = match reply {
                            Reply::Step(text) | Reply::Done(text) => (text, false),
                            Reply::Error(text) => (text, true),
                        };
                        self.screen.say(format!("{name}: {text}"), failed);
                        let _ = again.try_send(());
                    }
                    Message::Line(number, line) => self.line(number, line),
                    Message::Signal(SIGCONT) => {
                        guard.again()?;
                        self.redraw()?;
                    }
                    Message::Signal(signal) => return Ok(Some(signal)),
                }
            }
        }
    }

    /// Draws everything in the next frame. (Terminal::clear would ask the terminal for its cursor, and wait for the answer.)
    fn redraw(&mut self) -> io::Result<()> {
        let size = self.terminal.size()?;
        self.terminal.resize(Rect::from(size))
    }

    /// Follows the events of daemons that are new.
    fn follow_events(&mut self) {
        for watched in self.seen.daemons.iter().filter(|watched| watched.gone.is_none()) {
            let pid = watched.daemon.pid;
            if self.events.get(&watched.socket).is_none_or(|(known, _)| *known != pid)
                && let Ok(follower) = feed::happenings(&watched.socket, self.only.clone(), self.to.clone())
            {
                self.events.insert(watched.socket.clone(), (pid, follower));
            }
        }
    }

    fn rows(&self) -> Vec<Row<'_>> {
        rows(&self.seen, self.only.as_deref(), self.screen.sort, &self.screen.filter)
    }

    fn draw(&mut self) -> io::Result<()> {
        let Size { width, height } = self.terminal.size()?;
        let page = Areas::of(Rect::new(0, 0, width, height), &self.seen).page();
        let rows = rows(&self.seen, self.only.as_deref(), self.screen.sort, &self.screen.filter);
        self.screen.settle(&rows, page);
        let clock = view::time_of_day(SystemTime::now());
        let view = View { seen: &self.seen, rows: &rows, screen: &self.screen, theme: self.theme, clock: &clock };
        self.terminal.draw(|frame| view::draw(frame, &view))?;
        Ok(())
    }

    fn key(&mut self, key: ratatui::crossterm::event::KeyEvent) -> io::Result<Wish> {
        let height = usize::from(self.terminal.size()?.height);
        let rows = rows(&self.seen, self.only.as_deref(), self.screen.sort, &self.screen.filter);
        Ok(keys::press(&mut self.screen, &rows, key, height / 2))
    }

    /// Shows the lines of the selected service or slot.
    fn logs(&mut self) {
        let rows = self.rows();
        let Some(row) = rows.get(self.screen.at) else { return };
        let key = row.key();
        let slot = match key.part {
            Part::Slot(slot) => Some(slot),
            Part::Whole | Part::Upstream(_) => None,
        };
        let part = slot.map_or(Part::Whole, Part::Slot);
        let name = rows::label(&key.service, &part);
        self.followers += 1;
        match feed::follow(&key.socket, key.service, slot, self.followers, self.to.clone()) {
            Ok(follower) => {
                self.follower = Some(follower);
                self.screen.mode = Mode::Logs(Logs::new(self.followers, name));
            }
            Err(error) => self.screen.say(format!("logs {name}: {}", crate::sys::reason(&error)), true),
        }
    }

    fn line(&mut self, number: u64, line: Result<screen::LogLine, String>) {
        let Mode::Logs(logs) = &mut self.screen.mode else { return };
        if logs.number != number {
            return;
        }
        match line {
            Ok(line) => logs.push(line),
            Err(why) => logs.end = Some(why),
        }
    }
}
