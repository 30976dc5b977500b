//! `roundsman demo`: the daemon with a built-in HTTP responder.

use std::io::{self, BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use super::Demo;
use crate::addr::ListenAddr;
use crate::codes::{OS, USAGE};
use crate::config::sources::Given;
use crate::exit::Exit;

/// The longest request head in bytes.
const MAX_HEAD: u64 = 16 * 1024;

/// The options that make a demo out of the daemon.
///
/// # Errors
/// Exit code 71 when the program cannot find its own file.
pub fn options(demo: &Demo) -> Result<Given, Exit> {
    let own = std::env::current_exe().map_err(|error| Exit::os("cannot find this program's file", &error))?;
    let instances = match demo.instances {
        crate::config::instances::Instances::Exactly(n) => n.to_string(),
        crate::config::instances::Instances::Max => "max".to_owned(),
        crate::config::instances::Instances::AllBut(n) => format!("-{n}"),
    };
    let listen = match &demo.listen {
        ListenAddr::Port(port) => port.to_string(),
        other => other.to_string(),
    };
    let words =
        ["--listen", &listen, "--instances", &instances, "--policy", &demo.policy.to_string(), "--name", "demo", "--"];
    let words = std::iter::once("roundsman").chain(words).map(std::ffi::OsString::from);
    let words = words.chain([own.into_os_string(), "demo-server".into()]);
    super::parse_words(words).map(|(_, given)| given).map_err(|error| Exit::new(USAGE, error.to_string()))
}

/// Commands to try, printed at the start.
pub fn welcome(listener: &str) -> String {
    format!(
        "roundsman demo: four processes behind one port, each connection to the next in turn.\n\n  \
         curl http://{listener}/            again and again: the slot changes\n  \
         roundsman ls                          what each slot has done\n  \
         kill -9 $(roundsman ls --json | grep -o '\"pid\":[0-9]*' | tail -1 | cut -d: -f2)\n                                        \
         a worker dies: the others go on, it comes back\n\nCtrl-C ends it.\n"
    )
}

/// The responder's `main`: HTTP on `PORT`, one thread per connection.
///
/// # Errors
/// Exit code 71 without a `PORT`, or when it cannot listen there.
pub fn serve() -> Result<(), Exit> {
    let port = std::env::var("PORT").ok().and_then(|port| port.parse().ok());
    let port: u16 = port.ok_or_else(|| Exit::new(OS, "PORT is not a port"))?;
    let slot = std::env::var("ROUNDSMAN_SLOT").unwrap_or_default();
    let listener = TcpListener::bind(("127.0.0.1", port)).map_err(|error| Exit::os("cannot listen", &error))?;
    for stream in listener.incoming() {
        match stream {
            Ok(stream) => {
                let slot = slot.clone();
                // A connection that cannot have a thread is closed.
                let _ = thread::Builder::new().stack_size(128 * 1024).spawn(move || answer(&stream, &slot));
            }
            // Most likely out of descriptors.
            Err(_) => thread::sleep(Duration::from_millis(10)),
        }
    }
    Ok(())
}

fn answer(stream: &TcpStream, slot: &str) -> io::Result<()> {
    let mut reader = BufReader::new(stream);
    loop {
        let (mut first, mut close, mut read) = (String::new(), false, 0);
        loop {
            let mut line = String::new();
            let n = io::Read::take(&mut reader, MAX_HEAD).read_line(&mut line)? as u64;
            read += n;
            if n == 0 || read > MAX_HEAD {
                return Ok(());
            }
            if line.trim_end().is_empty() {
                break;
            }
            close |= line.trim_end().eq_ignore_ascii_case("connection: close");
            if first.is_empty() {
                first = line;
            }
        }
        let body = format!("hello from slot {slot}, process {}\n", std::process::id());
        let connection = if close || first.contains("HTTP/1.0") { "close" } else { "keep-alive" };
        let head = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {}\r\nConnection: {connection}\r\n\r\n",
            body.len()
        );
        (&*stream).write_all(format!("{head}{body}").as_bytes())?;
        if connection == "close" {
            return Ok(());
        }
    }
}
