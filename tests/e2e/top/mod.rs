//! `roundsman top` and `ls --watch`, on terminals of their own.

mod acts;
mod exits;
mod shows;
mod storms;
mod watch;

use std::path::Path;
use std::process::Command;

use crate::support::{Daemon, Screen, eventually, free_port, roundsman, seconds, write_file};

/// web: two slots with a port; proxy: in front of it; job: so many slots without a port.
fn daemon(dir: &Path, jobs: usize) -> Daemon {
    let (port, proxy) = (free_port(), free_port());
    let text = format!(
        "[service.web]\nlisten = \"127.0.0.1:{port}\"\ninstances = 2\ncommand = [{:?}, \"demo-server\"]\n\
         [service.proxy]\nlisten = \"127.0.0.1:{proxy}\"\ninstances = 1\nupstream = [\"127.0.0.1:{port}\", \"127.0.0.1:1\"]\n\
         [service.job]\nno-listen = true\ninstances = {jobs}\nmin-uptime = \"10ms\"\ncommand = [\"sleep\", \"1000\"]\n",
        env!("CARGO_BIN_EXE_roundsman"),
    );
    let file = write_file(dir, "a.toml", &text);
    let daemon = Daemon::launch(roundsman(), &["-c", file.to_str().unwrap()], port);
    eventually("all are online", seconds(60), || {
        let state = daemon.ls();
        let services = state["services"].as_array()?;
        let slots: Vec<_> = services.iter().flat_map(|service| service["slots"].as_array().unwrap()).collect();
        (slots.len() == 3 + jobs && slots.iter().all(|slot| slot["state"] == "online")).then_some(())
    });
    daemon
}

/// The binary with the daemon's control socket.
fn client(daemon: &Daemon, words: &[&str]) -> Command {
    let mut command = roundsman();
    command.args(words).env("ROUNDSMAN_CONTROL", daemon.control());
    command
}

fn top(daemon: &Daemon, size: (u16, u16)) -> Screen {
    let screen = Screen::start(&client(daemon, &["top"]), size);
    screen.wait_for("roundsman");
    screen
}

/// The words of the line that begins with a word.
fn line(text: &str, first: &str) -> Vec<String> {
    let words = text.lines().map(|line| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>());
    words.into_iter().find(|words| words.first().is_some_and(|word| word == first)).unwrap_or_default()
}

/// Whether a line of the table begins with a word; events begin with a time.
fn has(text: &str, first: &str) -> bool {
    !line(text, first).is_empty()
}
