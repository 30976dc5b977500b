//! Programs on a terminal of a given width.

use std::fs::File;
use std::io::Read;
use std::process::{Child, Command};

use nix::pty::{Winsize, openpty};

/// Starts a program on a terminal; what it writes there is read from the file, which ends with an error.
pub fn start_on_terminal(command: &mut Command, width: u16) -> (Child, File) {
    let size = Winsize { ws_row: 24, ws_col: width, ws_xpixel: 0, ws_ypixel: 0 };
    let pty = openpty(Some(&size), None).unwrap();
    let end = || pty.slave.try_clone().unwrap();
    command.env("TERM", "xterm").env_remove("CI").stdin(end()).stdout(end()).stderr(end());
    let child = command.spawn().unwrap();
    // The command has copies, too.
    command.stdin(std::process::Stdio::null()).stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
    (child, pty.master.into())
}

/// Runs a program on a terminal to its end: what it wrote there.
pub fn on_terminal(command: &mut Command, width: u16) -> String {
    let (mut child, mut master) = start_on_terminal(command, width);
    let (mut text, mut buffer) = (Vec::new(), [0; 4096]);
    while let Ok(n @ 1..) = master.read(&mut buffer) {
        text.extend_from_slice(&buffer[..n]);
    }
    child.wait().unwrap();
    String::from_utf8_lossy(&text).replace('\r', "")
}
