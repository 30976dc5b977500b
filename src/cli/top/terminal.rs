//! The terminal while it shows a full screen, and its way back on every exit.

use std::io::{self, Stdout, Write, stdout};
use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering};

use ratatui::crossterm::cursor::{Hide, Show};
use ratatui::crossterm::execute;
use ratatui::crossterm::style::ResetColor;
use ratatui::crossterm::terminal::{EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode};

/// Whether the terminal is ours: there is one, and one guard.
static ENTERED: AtomicBool = AtomicBool::new(false);

/// The terminal is ours until this is dropped, and also until a panic, which may end the process at once.
#[derive(Debug)]
pub struct Guard(());

impl Guard {
    /// Takes the terminal: no echo, no line mode, a screen of our own.
    ///
    /// # Errors
    /// When there is no terminal to read keys from, or it cannot be written to.
    pub fn enter() -> io::Result<Self> {
        static HOOK: Once = Once::new();
        HOOK.call_once(|| {
            let before = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |panic| {
                leave();
                before(panic);
            }));
        });
        take()?;
        Ok(Self(()))
    }

    /// Gives the terminal back while the process is stopped (Ctrl-Z), and takes it again.
    ///
    /// # Errors
    /// As [`Guard::enter`].
    pub fn suspend(&self) -> io::Result<()> {
        leave();
        nix::sys::signal::raise(nix::sys::signal::Signal::SIGTSTP)?;
        take()
    }

    /// Takes it again after the shell may have changed it.
    ///
    /// # Errors
    /// As [`Guard::enter`].
    pub fn again(&self) -> io::Result<()> {
        leave();
        take()
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        leave();
    }
}

fn take() -> io::Result<()> {
    enable_raw_mode()?;
    ENTERED.store(true, Ordering::SeqCst);
    execute!(stdout(), EnterAlternateScreen, Hide)
}

/// Gives the terminal back, once.
pub fn leave() {
    if !ENTERED.swap(false, Ordering::SeqCst) {
        return;
    }
    // The modes first: writing may block on a terminal that is held, or fail on one that is gone.
    let _ = disable_raw_mode();
    let _ = execute!(stdout(), ResetColor, LeaveAlternateScreen, Show);
}

/// Standard output, a frame at a time. What is left of a frame when the terminal is given back is not written.
#[derive(Debug)]
pub struct Output {
    out: Stdout,
    frame: Vec<u8>,
}

impl Default for Output {
    fn default() -> Self {
        Self { out: stdout(), frame: Vec::new() }
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.frame.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let frame = std::mem::take(&mut self.frame);
        if !ENTERED.load(Ordering::SeqCst) {
            return Ok(());
        }
        self.out.write_all(&frame)?;
        self.out.flush()
    }
}
