//! Finds the daemon and the service that a verb is for.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use nix::unistd::{Uid, User, geteuid};

use super::client::{live, names};
use super::{Target, Targets};
use crate::codes::{NO_DAEMON, NOT_PERMITTED, USAGE};
use crate::config::other_programs::ecosystem;
use crate::control::ask::ls_of;
use crate::control::socket_path;
use crate::control::status::Daemon;
use crate::exit::Exit;
use crate::sys::reason;

/// PM2's name for every service.
const ALL: &str = "all";

/// A control socket, and a service; `None`: all of them.
type Meant = (PathBuf, Option<String>);

/// The targets of a verb.
///
/// # Errors
/// As [`one`], before anything is asked.
pub fn each(targets: &Targets) -> Result<Vec<Meant>, Exit> {
    let target = |name: Option<&String>| Target { name: name.cloned(), control: targets.control.clone() };
    match targets.names.as_slice() {
        [] => Ok(vec![match &targets.control {
            Some(path) => (path.clone(), None),
            None => only(live()?, "; or all")?,
        }]),
        [name] if name == ALL => match &targets.control {
            Some(path) => Ok(vec![all_of(path)]),
            None => all(),
        },
        several => {
            let mut meant: Vec<Meant> = Vec::new();
            for name in several {
                let one = one(&target(Some(name)))?;
                if !meant.contains(&one) {
                    meant.push(one);
                }
            }
            Ok(meant)
        }
    }
}

/// Every service of every daemon, unless one has that name.
fn all() -> Result<Vec<Meant>, Exit> {
    let live = live()?;
    if let Some((socket, _)) = live.iter().find(|(_, daemon)| has(daemon, ALL)) {
        return Ok(vec![(socket.clone(), Some(ALL.to_owned()))]);
    }
    if live.is_empty() { Err(nobody()) } else { Ok(live.into_iter().map(|(socket, _)| (socket, None)).collect()) }
}

fn all_of(socket: &Path) -> Meant {
    let named = ls_of(socket, super::client::TIMEOUT).is_ok_and(|daemon| has(&daemon, ALL));
    (socket.to_owned(), named.then(|| ALL.to_owned()))
}

fn has(daemon: &Daemon, name: &str) -> bool {
    daemon.services.iter().any(|service| service.name == name)
}

/// The daemon and the service of a verb that takes one.
///
/// # Errors
/// [`NO_DAEMON`] when there is none, [`NOT_PERMITTED`] when it is another user's, [`USAGE`] when it is not clear which.
pub fn one(target: &Target) -> Result<Meant, Exit> {
    if let Some(path) = &target.control {
        return Ok((path.clone(), target.name.clone()));
    }
    let live = live()?;
    let Some(name) = &target.name else { return only(live, "") };
    if let Some((socket, _)) = live.iter().find(|(_, daemon)| has(daemon, name)) {
        return Ok((socket.clone(), Some(name.clone())));
    }
    // A daemon of several services has a name, too.
    if let Some((socket, _)) = live.iter().find(|(path, _)| path.file_stem().is_some_and(|stem| stem == name.as_str()))
    {
        return Ok((socket.clone(), None));
    }
    let slot = name.rsplit_once('/').filter(|(_, slot)| slot.parse::<u32>().is_ok());
    if let Some((service, _)) = slot.filter(|(service, _)| live.iter().any(|(_, daemon)| has(daemon, service))) {
        return Err(Exit::new(USAGE, format!("{name} is a slot; this is for the whole service: {service}")));
    }
    if let Some(advice) = ecosystem(name) {
        return Err(Exit::new(USAGE, format!("{name} is not the name of a running service, and it {advice}")));
    }
    let runner = crate::program::command::runner(name);
    if runner.is_some() || Path::new(name).exists() || name.contains('/') {
        let run = runner.map_or_else(|| name.clone(), |runner| format!("{runner} {name}"));
        let run = if name.ends_with(".toml") { format!("-c {name}") } else { format!("-- {run}") };
        let message =
            format!("'{name}' is not the name of a running service; to run it as the server: roundsman {run}");
        return Err(Exit::new(USAGE, message));
    }
    if live.is_empty() {
        return Err(nobody());
    }
    let daemons: Vec<Daemon> = live.into_iter().map(|(_, daemon)| daemon).collect();
    Err(Exit::new(USAGE, format!("there is no service {name:?}; running are {}", names(&daemons))))
}

/// The only daemon. `or`: what else can be said where there are several.
fn only(mut live: Vec<(PathBuf, Daemon)>, or: &str) -> Result<Meant, Exit> {
    match (live.pop(), live.is_empty()) {
        (None, _) => Err(nobody()),
        (Some((socket, _)), true) => Ok((socket, None)),
        (Some(last), false) => {
            live.push(last);
            let daemons: Vec<Daemon> = live.into_iter().map(|(_, daemon)| daemon).collect();
            Err(Exit::new(USAGE, format!("several daemons are running; say which: {}{or}", names(&daemons))))
        }
    }
}

/// The error for no answering daemon: there is none, or it is another user's.
pub fn nobody() -> Exit {
    let directory = socket_path::directory();
    if let Err(error) = std::fs::read_dir(&directory)
        && error.kind() == io::ErrorKind::PermissionDenied
    {
        return unreachable(&directory, &error);
    }
    let refused = |socket: PathBuf| UnixStream::connect(&socket).err().map(|error| (socket, error));
    let refused = socket_path::all().unwrap_or_default().into_iter().filter_map(refused);
    if let Some((socket, error)) =
        refused.into_iter().find(|(_, error)| error.kind() == io::ErrorKind::PermissionDenied)
    {
        return unreachable(&socket, &error);
    }
    let of_root = if !geteuid().is_root()
        && [socket_path::OF_ROOT, socket_path::OF_UNIT].iter().any(|place| Path::new(place).exists())
    {
        "; for daemons of root: sudo roundsman ls"
    } else {
        ""
    };
    none(&format!("looked in {}{of_root}", directory.display()))
}

/// Why a control socket cannot be used.
pub fn unreachable(socket: &Path, error: &io::Error) -> Exit {
    if error.kind() != io::ErrorKind::PermissionDenied {
        return none(&format!("{}: {}", socket.display(), reason(error)));
    }
    // Under a directory that we may not enter only that one can be examined.
    let owner = socket.ancestors().find_map(|path| std::fs::symlink_metadata(path).ok()).map(|meta| meta.uid());
    let owner = owner.filter(|&uid| uid != geteuid().as_raw()).map(|uid| match User::from_uid(Uid::from_raw(uid)) {
        Ok(Some(user)) => user.name,
        _ => format!("uid {uid}"),
    });
    let whose = owner.map(|name| format!(": it belongs to {name}; try sudo")).unwrap_or_default();
    Exit::new(NOT_PERMITTED, format!("permission denied for the control socket {}{whose}", socket.display()))
}

fn none(why: &str) -> Exit {
    Exit::new(NO_DAEMON, format!("no roundsman daemon is running ({why})"))
}
