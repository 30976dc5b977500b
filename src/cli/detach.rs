//! `roundsman -d`: starts the daemon in a session of its own, and returns when its services are online.

use std::ffi::{OsStr, OsString};
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::unistd::{User, geteuid};

use crate::config::Config;
use crate::exit::Exit;
use crate::sys::{reason, session};

/// How often the child is looked at while it says nothing.
const LOOK: Duration = Duration::from_millis(50);
/// Besides the time that services have to listen.
const GRACE: Duration = Duration::from_secs(2);
/// Bytes of the log that are shown when the start fails.
const MAX_SHOWN: u64 = 16 * 1024;

/// Starts the daemon again without `-d`, and waits until it is ready. Returns the daemon's exit code if it ends before.
///
/// # Errors
/// When the log or the process cannot be made, and with code 1 when the services are not online in time.
pub fn start(config: &Config) -> Result<u8, Exit> {
    let path = log_of(config);
    let place = path.parent().unwrap_or(Path::new("/"));
    let failed = |doing: &str| {
        let doing = format!("cannot {doing} in {} (XDG_STATE_HOME names another place)", place.display());
        move |error: io::Error| Exit::os(&doing, &error)
    };
    DirBuilder::new().recursive(true).mode(0o700).create(place).map_err(failed("make a directory"))?;
    let mut log = open(&path).map_err(failed("open a log"))?;
    let from = log.seek(SeekFrom::End(0)).map_err(failed("open a log"))?;
    let ready = Ready::bind(place, &config.name).map_err(failed("make a socket"))?;
    let mut child = spawn(&log, &ready.path).map_err(|error| Exit::os("cannot start the daemon", &error))?;
    let longest = config.services.iter().map(|(service, _)| service.limits.listen_timeout).max().unwrap_or_default();
    let pid = child.id();
    match ready.wait(&mut child, longest + GRACE) {
        Outcome::Online => {
            let names: Vec<&str> = config.services.iter().map(|(service, _)| service.name.as_str()).collect();
            println!("{} online in the background (pid {pid}); log: {}", names.join(", "), path.display());
            show_warnings(&path, from);
            Ok(0)
        }
        Outcome::Ended(status) => {
            show_written(&path, from);
            Ok(status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0)) as u8)
        }
        Outcome::Late => {
            show_written(&path, from);
            let seconds = longest.as_secs_f32();
            let name = &config.name;
            Err(Exit::new(
                1,
                format!(
                    "not online within {seconds} s (--listen-timeout); it goes on in the background (pid {pid}): roundsman \
                     ls, roundsman quit {name}; log: {}",
                    path.display()
                ),
            ))
        }
    }
}

/// The log of a daemon in the background.
pub fn log_of(config: &Config) -> PathBuf {
    directory().join(format!("{}.log", config.name))
}

/// Where logs of daemons in the background are: the state directory of this user.
fn directory() -> PathBuf {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(state) = set("XDG_STATE_HOME") {
        return state.join("roundsman");
    }
    if geteuid().is_root() {
        return PathBuf::from("/var/log/roundsman");
    }
    let home = || User::from_uid(geteuid()).ok().flatten().map(|user| user.dir);
    set("HOME").or_else(home).unwrap_or_else(std::env::temp_dir).join(".local/state/roundsman")
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o600).custom_flags(libc::O_NOFOLLOW).open(path)
}

/// Shows on stderr what was logged since a place in the file, without what is too much for a terminal.
fn show_written(path: &Path, from: u64) {
    let text = written(path, from).unwrap_or_else(|error| format!("{}: {}\n", path.display(), reason(&error)));
    let _ = io::stderr().write_all(text.as_bytes());
}

/// The last of what was logged since a place in the file.
fn written(path: &Path, from: u64) -> io::Result<String> {
    let mut log = File::open(path)?;
    let from = from.max(log.metadata()?.len().saturating_sub(MAX_SHOWN));
    log.seek(SeekFrom::Start(from))?;
    let mut bytes = Vec::new();
    log.take(MAX_SHOWN).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Shows on stderr which warnings of the daemon's own were logged since a place in the file.
fn show_warnings(path: &Path, from: u64) {
    let Ok(text) = written(path, from) else { return };
    let own = |line: &&str| line.split_whitespace().nth(1) == Some("WARN") || line.contains(r#""level":"WARN""#);
    let text: String = text.lines().filter(own).flat_map(|line| [line, "\n"]).collect();
    let _ = io::stderr().write_all(text.as_bytes());
}

fn spawn(log: &File, ready: &Path) -> io::Result<Child> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(without_detach(std::env::args_os().skip(1)));
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log.try_clone()?);
    command.env("NOTIFY_SOCKET", ready);
    for of_systemd in ["WATCHDOG_USEC", "WATCHDOG_PID"] {
        command.env_remove(of_systemd);
    }
    session::begin_own(&mut command);
    command.spawn()
}

/// The words of a command line without `-d`. It takes no value, so among joined letters it can only be the first.
pub(super) fn without_detach(words: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut ours = true;
    let one = |word: OsString| {
        ours &= word != "--";
        match word.as_bytes() {
            _ if !ours => Some(word),
            b"-d" | b"--detach" | b"--daemon" => None,
            [b'-', b'd', rest @ ..] => Some(OsString::from_vec([b"-", rest].concat())),
            _ => Some(word),
        }
    };
    words.into_iter().filter_map(one).collect()
}

#[derive(Debug)]
enum Outcome {
    Online,
    Ended(ExitStatus),
    Late,
}

/// The socket on which the daemon says that it is ready, as it says it to systemd.
struct Ready {
    socket: UnixDatagram,
    path: PathBuf,
}

impl Ready {
    fn bind(directory: &Path, name: &str) -> io::Result<Self> {
        let path = directory.join(format!(".{name}.{}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let socket = UnixDatagram::bind(&path)?;
        socket.set_read_timeout(Some(LOOK))?;
        Ok(Self { socket, path })
    }

    fn wait(&self, child: &mut Child, longest: Duration) -> Outcome {
        let until = Instant::now() + longest;
        let mut buffer = [0; 4096];
        loop {
            let n = self.socket.recv(&mut buffer).unwrap_or(0);
            if OsStr::from_bytes(&buffer[..n]).to_string_lossy().lines().any(|line| line == "READY=1") {
                return Outcome::Online;
            }
            if let Ok(Some(status)) = child.try_wait() {
                return Outcome::Ended(status);
            }
            if Instant::now() >= until {
                return Outcome::Late;
            }
        }
    }
}

impl Drop for Ready {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_own_flag_is_left_out() {
        let without = |words: &str| {
            let left = without_detach(words.split(' ').map(OsString::from));
            left.iter().map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(without("-d -l 80 --detach --daemon -- curl -d x"), "-l 80 -- curl -d x");
        assert_eq!(without("-dl 80 -n d -ndb"), "-l 80 -n d -ndb");
    }
}
