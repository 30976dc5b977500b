//! Programs on a terminal of their own, and what is to be seen there.

use std::fs::File;
use std::io::{Read, Write};
use std::num::NonZero;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::process::{Child, Command, ExitStatus};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::pty::{grantpt, posix_openpt, ptsname_r, unlockpt};
use nix::sys::signal::{Signal, kill};
use nix::sys::termios::{Termios, tcgetattr};
use nix::unistd::Pid;

use super::svg::svg;
use super::{eventually, seconds};

/// A terminal with a program that has it as its controlling terminal; the program is killed when this is dropped.
pub struct Screen {
    child: Child,
    master: Option<File>,
    slave: File,
    before: Termios,
    seen: Arc<Mutex<Seen>>,
    closing: Arc<AtomicBool>,
    reader: Option<JoinHandle<()>>,
}

struct Seen {
    parser: vt100::Parser,
    bytes: Vec<u8>,
}

/// A terminal's settings without what changes by itself.
fn settings(termios: &Termios) -> String {
    format!(
        "{:?} {:?} {:?} {:?} {:?}",
        termios.input_flags, termios.output_flags, termios.control_flags, termios.local_flags, termios.control_chars
    )
}

fn set_size(slave: &File, (width, height): (u16, u16)) {
    let words = ["rows", &height.to_string(), "cols", &width.to_string()].map(str::to_owned);
    assert!(Command::new("stty").args(words).stdin(slave.try_clone().unwrap()).status().unwrap().success());
}

fn cells(count: u16) -> NonZero<u16> {
    NonZero::new(count).unwrap()
}

impl Screen {
    pub fn start(command: &Command, (width, height): (u16, u16)) -> Self {
        // Not openpty(3): the program must not inherit this end, which would keep its terminal open.
        let master = posix_openpt(OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let name = ptsname_r(&master).unwrap();
        let slave = File::options().read(true).write(true).custom_flags(OFlag::O_NOCTTY.bits()).open(name).unwrap();
        set_size(&slave, (width, height));
        let before = tcgetattr(&slave).unwrap();
        // setsid and env become the program: its pid stays. A shell without job control ignores SIGINT for what runs in the
        // background, the tests perhaps.
        let mut on_terminal = Command::new("setsid");
        on_terminal
            .args(["--ctty", "env", "--default-signal"])
            .arg(command.get_program())
            .args(command.get_args())
            .env("TERM", "xterm");
        on_terminal.env_remove("CI").env_remove("NO_COLOR");
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => on_terminal.env(name, value),
                None => on_terminal.env_remove(name),
            };
        }
        let end = || slave.try_clone().unwrap();
        let child = on_terminal.stdin(end()).stdout(end()).stderr(end()).spawn().unwrap();
        drop(on_terminal);
        let seen = Arc::new(Mutex::new(Seen {
            parser: vt100::Parser::new(cells(height), cells(width), 0),
            bytes: Vec::new(),
        }));
        let master = File::from(OwnedFd::from(master));
        let (mut from, to) = (master.try_clone().unwrap(), seen.clone());
        let closing = Arc::new(AtomicBool::new(false));
        let closed = closing.clone();
        let reader = std::thread::spawn(move || {
            let mut buffer = [0; 65536];
            while !closed.load(Ordering::Relaxed) {
                let mut readable = [PollFd::new(from.as_fd(), PollFlags::POLLIN)];
                if poll(&mut readable, PollTimeout::from(50_u8)) == Ok(0) {
                    continue;
                }
                let Ok(n @ 1..) = from.read(&mut buffer) else { break };
                let mut seen = to.lock().unwrap();
                seen.parser.process(&buffer[..n]);
                seen.bytes.extend_from_slice(&buffer[..n]);
            }
        });
        Self { child, master: Some(master), slave, before, seen, closing, reader: Some(reader) }
    }

    pub fn text(&self) -> String {
        self.seen.lock().unwrap().parser.screen().contents()
    }

    /// A picture of the screen.
    pub fn svg(&self, title: &str) -> String {
        svg(self.seen.lock().unwrap().parser.screen(), title)
    }

    /// Whether something on the screen has a colour.
    pub fn has_colours(&self) -> bool {
        let seen = self.seen.lock().unwrap();
        let screen = seen.parser.screen();
        let (height, width) = screen.size();
        let cells = (0..height.into()).flat_map(|y| (0..width.into()).filter_map(move |x| screen.cell(y, x)));
        let mut colours = cells.flat_map(|cell| [cell.fgcolor(), cell.bgcolor()]);
        colours.any(|colour| colour != vt100::Color::Default)
    }

    /// All that was written so far.
    pub fn bytes(&self) -> String {
        String::from_utf8_lossy(&self.seen.lock().unwrap().bytes).into_owned()
    }

    /// Whether the screen is one of the program's own, with the cursor hidden.
    pub fn is_full(&self) -> bool {
        let seen = self.seen.lock().unwrap();
        seen.parser.screen().alternate_screen() && seen.parser.screen().hide_cursor()
    }

    /// Whether the terminal has another mode than at the start.
    pub fn is_raw(&self) -> bool {
        settings(&self.before) != settings(&tcgetattr(&self.slave).unwrap())
    }

    /// Fails the test unless the terminal is as before.
    #[track_caller]
    pub fn is_as_before(&self) {
        let now = tcgetattr(&self.slave).unwrap();
        assert_eq!(settings(&self.before), settings(&now));
        eventually("the screen is as before", seconds(5), || {
            let seen = self.seen.lock().unwrap();
            let screen = seen.parser.screen();
            (!screen.alternate_screen() && !screen.hide_cursor()).then_some(())
        });
    }

    #[track_caller]
    pub fn wait_for(&self, what: &str) -> String {
        self.wait_until(what, |text| text.contains(what))
    }

    #[track_caller]
    pub fn wait_until(&self, what: &str, test: impl Fn(&str) -> bool) -> String {
        let mut last = String::new();
        let found = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            eventually(what, seconds(60), || {
                last = self.text();
                test(&last).then(|| last.clone())
            })
        }));
        found.unwrap_or_else(|_| panic!("not seen: {what}\n{}", self.text()))
    }

    pub fn press(&mut self, keys: &str) {
        self.master.as_mut().unwrap().write_all(keys.as_bytes()).unwrap();
    }

    pub fn resize(&mut self, (width, height): (u16, u16)) {
        self.seen.lock().unwrap().parser.screen_mut().set_size(cells(height), cells(width));
        set_size(&self.slave, (width, height));
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).unwrap();
    }

    /// Closes the terminal, as when its window is closed.
    pub fn hang_up(&mut self) {
        self.closing.store(true, Ordering::Relaxed);
        self.reader.take().unwrap().join().unwrap();
        self.master = None;
    }

    #[track_caller]
    pub fn finish(&mut self) -> ExitStatus {
        eventually("its end", seconds(20), || self.child.try_wait().unwrap())
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.closing.store(true, Ordering::Relaxed);
    }
}
