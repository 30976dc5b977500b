//! Starts processes; nothing else does.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::Signal;
use thiserror::Error;

use crate::codes::{NOT_EXECUTABLE, OS};
use crate::keeper::gives::Gives;
use crate::output::files::Files;
use crate::output::line::{Origin, Stream};
use crate::output::servers::Servers;
use crate::program::command::{CommandError, CommandLine};
use crate::program::node::with_inspect_port;
use crate::sys::closer;
#[cfg(test)]
use crate::sys::fake;
use crate::sys::process::{ChildSetup, Credentials, NoFile, prepare};
use crate::sys::{image, process, reason, sock};

/// The first argument of this program as a keeper.
pub const KEEPER_ROLE: &str = "keeper";

/// Starts relay workers and servers.
#[derive(Debug)]
pub struct Launcher {
    /// The running program image, for relay workers.
    image: OwnedFd,
    /// Occupies the descriptor number of Node's channel.
    _reserved: OwnedFd,
    /// The file limit with which the daemon was started; servers get it.
    nofile: NoFile,
    /// The working directory by its name, in which a `current` link may change.
    cwd: Option<PathBuf>,
    pub outputs: Servers,
}

/// Why a server does not start.
#[derive(Debug, Error)]
pub enum LaunchError {
    #[error(transparent)]
    Command(#[from] CommandError),
    #[error("cannot execute {command}: {}", reason(.source))]
    NotExecutable { command: String, source: io::Error },
    /// Out of processes, memory or descriptors: it may work in a moment.
    #[error("cannot start {command}: {}", reason(.source))]
    Exhausted { command: String, source: io::Error },
}

impl LaunchError {
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Command(error) => error.exit_code(),
            Self::NotExecutable { .. } => NOT_EXECUTABLE,
            Self::Exhausted { .. } => OS,
        }
    }
}

/// Which process is started for a command.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Launched {
    /// The server.
    #[default]
    Itself,
    /// A keeper, which starts the server.
    Kept(Gives),
    /// The same, by the wrappers that stand before the server's program: it has the user that they change to. It inherits its image
    /// as a descriptor.
    KeptBehind(Gives),
}

/// A server to be started.
#[derive(Debug)]
pub struct Server<'a> {
    pub service: &'a str,
    /// `None` for a server that all slots share.
    pub slot: Option<u32>,
    pub command: &'a CommandLine,
    pub launched: Launched,
    /// The address it is to listen on, unless it chooses itself.
    pub address: Option<SocketAddr>,
    /// The service's configured variables.
    pub variables: &'a [(String, String)],
    /// Variables set by the daemon.
    pub environment: Vec<(&'static str, String)>,
    /// Working directory; `None` for the daemon's.
    pub cwd: Option<&'a Path>,
    /// `None` for the daemon's user.
    pub user: Option<&'a Credentials>,
    pub files: &'a Files,
    /// The worker's end of Node's channel.
    pub channel: Option<BorrowedFd<'a>>,
    /// Stays open in the server, at its number.
    pub kept: Option<BorrowedFd<'a>>,
    /// The port of Node's inspector.
    pub inspect: Option<u16>,
    /// Sent by the kernel when the master dies.
    pub death_signal: Signal,
}

impl Launcher {
    /// # Errors
    /// Without /proc.
    pub fn new(nofile: NoFile, outputs: Servers) -> io::Result<Self> {
        let reserved = crate::sys::process::reserve_channel()?;
        Ok(Self { image: image::own()?, _reserved: reserved, nofile, cwd: named_cwd(), outputs })
    }

    /// The file limit with which the daemon was started.
    pub fn nofile(&self) -> NoFile {
        self.nofile
    }

    /// The shell's name for the working directory, if it was right when the daemon was started.
    pub fn cwd(&self) -> Option<&Path> {
        self.cwd.as_deref()
    }

    /// Goes on with the one that another program had.
    pub fn go_on_in(&mut self, cwd: Option<OsString>) {
        self.cwd = cwd.map(PathBuf::from).or(self.cwd.take());
    }

    /// Starts a relay worker with its end of the channel as standard input. Returns its pid.
    ///
    /// # Errors
    /// As fork(2) and execve(2).
    pub fn relay(&self, service: &str, slot: u32, user: Option<&Credentials>, channel: OwnedFd) -> io::Result<u32> {
        #[cfg(test)]
        if fake::is_staged() {
            return fake::start(Some(slot), Some(channel)).unwrap_or(Ok(0));
        }
        let mut command = Command::new(format!("/proc/self/fd/{}", self.image.as_raw_fd()));
        command.arg0(format!("roundsman: relay {service}/{slot}"));
        command.arg("relay-worker").stdin(Stdio::from(channel)).stdout(Stdio::null());
        strip(&mut command);
        prepare(
            &mut command,
            ChildSetup { death_signal: Signal::SIGKILL, nofile: None, user: user.cloned(), channel: None, kept: None },
        );
        Ok(spawn(&mut command)?.id())
    }

    /// Starts a server. Returns its pid.
    ///
    /// # Errors
    /// See [`LaunchError`].
    pub fn server(&self, server: &Server<'_>) -> Result<u32, LaunchError> {
        #[cfg(test)]
        if let Some(pid) = fake::start(server.slot, None) {
            return pid.map_err(|source| LaunchError::Exhausted { command: server.command.to_string(), source });
        }
        if let Some(cwd) = &self.cwd {
            // If it is gone, the daemon stays where it is.
            let _ = std::env::set_current_dir(cwd);
        }
        let program = server.command.program()?;
        let slot = server.slot.unwrap_or(0);
        let mut arguments = server.command.arguments(slot, server.address);
        let death_signal = (server.death_signal as i32).to_string();
        let mut command = match server.launched {
            Launched::Itself => {
                let mut command = Command::new(program);
                command.arg0(server.command.arg0());
                command
            }
            Launched::Kept(gives) => {
                let mut command = Command::new(format!("/proc/self/fd/{}", self.image.as_raw_fd()));
                command.arg0(format!("roundsman: keeper {}/{slot}", server.service));
                command.args([KEEPER_ROLE, &death_signal, gives.word()]).arg(program).arg(server.command.arg0());
                command
            }
            Launched::KeptBehind(gives) => {
                let mut command = Command::new(program);
                command.arg0(server.command.arg0());
                if let (Some((wrapped, program)), Some(image)) = (server.command.wrapped(), server.kept) {
                    let words = [KEEPER_ROLE.into(), death_signal.into(), gives.word().into(), program.into()];
                    let keeper = std::iter::once(image::path_of(image).into()).chain(words);
                    // The first word of all is no argument.
                    let at = wrapped.words_before() - 1;
                    arguments.splice(at..at, keeper);
                }
                command
            }
        };
        let arguments = arguments.into_iter().map(|word| match server.inspect {
            Some(port) => with_inspect_port(word, port),
            None => word,
        });
        command.args(arguments).stdin(Stdio::null());
        strip(&mut command);
        if let Some(cwd) = server.cwd {
            command.current_dir(cwd).env("PWD", cwd);
        }
        command.envs(server.variables.iter().map(|(name, value)| (name, value)));
        command.env("ROUNDSMAN_SERVICE", server.service);
        if server.slot.is_some() {
            command.env("ROUNDSMAN_SLOT", slot.to_string()).env("NODE_APP_INSTANCE", slot.to_string());
        }
        if let Some(address) = server.address {
            command.env("PORT", address.port().to_string()).env("HOST", address.ip().to_string());
        }
        command.envs(server.environment.iter().map(|(name, value)| (name, value)));
        prepare(
            &mut command,
            ChildSetup {
                death_signal: server.death_signal,
                nofile: Some(self.nofile),
                user: server.user.cloned(),
                channel: server.channel.map(|fd| fd.as_raw_fd()),
                kept: server.kept.map(|fd| fd.as_raw_fd()),
            },
        );
        let name = || server.command.to_string();
        let pipe = || sock::pipe().map_err(|source| LaunchError::Exhausted { command: name(), source });
        let ((out, theirs), (err, theirs_too)) = (pipe()?, pipe()?);
        command.stdout(Stdio::from(theirs)).stderr(Stdio::from(theirs_too));
        let child = spawn(&mut command).map_err(|source| match source.raw_os_error() {
            Some(libc::EAGAIN | libc::ENOMEM | libc::EMFILE | libc::ENFILE) => {
                LaunchError::Exhausted { command: name(), source }
            }
            _ => LaunchError::NotExecutable { command: name(), source },
        })?;
        // Before its pipes are read: this is the first that `logs` shows of it.
        tracing::info!(name: "server-started", service = %server.service, slot = server.slot, pid = child.id(), "server started");
        let files = server.files.clone().into();
        let origin = Origin { service: server.service.into(), slot: server.slot, pid: child.id(), files };
        self.outputs.add(origin.clone(), Stream::Out, out);
        self.outputs.add(origin, Stream::Err, err);
        Ok(child.id())
    }
}

#[cfg(test)]
impl Launcher {
    pub fn to_test() -> io::Result<Self> {
        Self::new(NoFile { soft: 1000, hard: 1000 }, Servers::start(None, crate::output::recent::Recent::default())?)
    }

    pub fn again(&self) -> io::Result<Self> {
        Self::new(self.nofile, self.outputs.clone())
    }
}

/// The working directory by the shell's name for it, if that is right.
fn named_cwd() -> Option<PathBuf> {
    let named = PathBuf::from(std::env::var_os("PWD")?);
    (named.is_absolute() && named.canonicalize().ok()? == std::env::current_dir().ok()?.canonicalize().ok()?)
        .then_some(named)
}

/// The end of a trial that was killed is waited for so long.
const KILLED_WITHIN: Duration = Duration::from_millis(100);
/// The bytes of output of a trial that are looked at: all that a pipe has room for.
const TRIAL_OUTPUT: usize = 64 * 1024;

/// Runs a command without input under the servers' credentials and returns its output. `kept` stays open in it, at its
/// number.
///
/// # Errors
/// As fork(2) and execve(2); `TimedOut` when it has not ended within `limit`.
pub fn trial(
    command: &mut Command,
    limit: Duration,
    user: Option<&Credentials>,
    kept: Option<BorrowedFd<'_>>,
) -> io::Result<std::process::Output> {
    let kept = kept.map(|fd| fd.as_raw_fd());
    let setup = ChildSetup { death_signal: Signal::SIGKILL, nofile: None, user: user.cloned(), channel: None, kept };
    prepare(command.stdin(Stdio::null()), setup);
    let mut child = spawn(command.stdout(Stdio::piped()).stderr(Stdio::piped()))?;
    let pidfd = process::pidfd_open(child.id())?;
    if !process::ends_within(&pidfd, limit) {
        process::kill_tree(child.id());
        // One that has gained rights is out of our reach.
        if process::ends_within(&pidfd, KILLED_WITHIN) {
            child.wait()?;
        }
        return Err(io::ErrorKind::TimedOut.into());
    }
    let (stdout, stderr) = (child.stdout.take().map(OwnedFd::from), child.stderr.take().map(OwnedFd::from));
    Ok(std::process::Output { status: child.wait()?, stdout: left_in(stdout), stderr: left_in(stderr) })
}

/// What is in a pipe, without waiting: a process that the trial left behind may have its other end.
fn left_in(pipe: Option<OwnedFd>) -> Vec<u8> {
    let mut bytes = vec![0; TRIAL_OUTPUT];
    let mut len = 0;
    if let Some(pipe) = pipe.filter(|pipe| fcntl(pipe, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).is_ok()) {
        let mut pipe = File::from(pipe);
        while let Some(read) = pipe.read(&mut bytes[len..]).ok().filter(|&read| read > 0) {
            len += read;
        }
    }
    bytes.truncate(len);
    bytes
}

/// Tries a program, with a word before our own arguments, and a file as standard input. Returns its pid and what it writes, which
/// can be read without blocking.
///
/// # Errors
/// As fork(2) and execve(2).
pub fn try_program(image: BorrowedFd<'_>, word: &str, input: OwnedFd) -> io::Result<(u32, OwnedFd)> {
    let (said, theirs) = sock::pipe()?;
    let mut command = Command::new(format!("/proc/self/fd/{}", image.as_raw_fd()));
    command.arg0("roundsman").arg(word).args(std::env::args_os().skip(1));
    command.stdin(Stdio::from(input)).stdout(Stdio::from(theirs.try_clone()?)).stderr(Stdio::from(theirs));
    command.env_remove("NOTIFY_SOCKET");
    prepare(
        &mut command,
        ChildSetup { death_signal: Signal::SIGKILL, nofile: None, user: None, channel: None, kept: None },
    );
    Ok((spawn(&mut command)?.id(), said))
}

/// Starts a process while the closer threads are paused.
fn spawn(command: &mut Command) -> io::Result<std::process::Child> {
    let _pause = closer::pause();
    command.spawn()
}

/// Removes our own settings and other supervisors' channels from a child's environment.
fn strip(command: &mut Command) {
    let foreign = ["LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "NOTIFY_SOCKET", "NODE_CHANNEL_FD", "NODE_UNIQUE_ID"];
    for name in foreign {
        command.env_remove(name);
    }
    let ours = |name: &OsString| name.to_str().is_some_and(|name| name.starts_with("ROUNDSMAN_"));
    for (name, _) in std::env::vars_os().filter(|(name, _)| ours(name)) {
        command.env_remove(name);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn a_trial_does_not_wait_for_what_it_leaves_behind() {
        let start = Instant::now();
        let output =
            trial(Command::new("sh").args(["-c", "sleep 30 & echo $!"]), Duration::from_secs(10), None, None).unwrap();
        assert!(start.elapsed() < Duration::from_secs(20));
        let left = String::from_utf8(output.stdout).unwrap();
        process::signal(left.trim().parse().unwrap(), Signal::SIGKILL);
        assert!(output.status.success());
    }
}
