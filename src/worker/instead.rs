//! What a server does instead of listening where it is expected, as far as /proc and its script tell.

use std::path::{Path, PathBuf};

use crate::abi::attach::VARIABLE;
use crate::proc_net;
use crate::program::elf;
use crate::sys::{inspect, process};

/// Unix sockets that are named.
const MAX_NAMED: usize = 3;

/// Where a process, or one below it, listens.
pub fn listens_on(pid: u32) -> Option<String> {
    names(proc_net::ports_of(pid))
}

fn names(ports: impl IntoIterator<Item = u16>) -> Option<String> {
    let names: Vec<_> = ports.into_iter().map(|port| format!(":{port}")).collect();
    (!names.is_empty()).then(|| names.join(", "))
}

/// That it, or a process below it, listens where the preload library has no part, why, and what to do. `has_flags`: whether
/// `--listen` says what is served.
pub fn by_itself(root: u32, has_flags: bool) -> Option<String> {
    let listeners = proc_net::listeners_of(root);
    let (&port, &pid) = listeners.first_key_value()?;
    let ports = names(listeners.into_keys())?;
    let image = PathBuf::from(format!("/proc/{pid}/exe"));
    let program = inspect::look(pid, || std::fs::read_link(&image)).unwrap_or_default();
    // The link's target is not what is run where the file was replaced, or in another root.
    let examined = inspect::look(pid, || match elf::examine(&image) {
        Err(elf::Obstacle::Unreadable { source, .. }) => Err(source),
        examined => Ok(examined.err()),
    });
    let obstacle = examined.ok().flatten();
    let why = match obstacle {
        Some(elf::Obstacle::Go(_)) => format!("{} is a Go program, which cannot be preloaded", program.display()),
        Some(elf::Obstacle::Static(_)) => format!("{} is linked statically and cannot be preloaded", program.display()),
        _ if !proc_net::lacks_variable(pid, VARIABLE) => "what listens there cannot be preloaded".to_owned(),
        _ if program.file_name() == Some(Path::new("dovecot").as_os_str()) => {
            return Some(format!(
                "listens on {ports} by itself: Dovecot clears the environment of its processes; add to its configuration: \
                 import_environment = $import_environment LD_PRELOAD {VARIABLE}"
            ));
        }
        _ => format!(
            "it was started without the environment that it got (env -i, sudo, su), and so lost the preload library; let \
             it keep LD_PRELOAD and {VARIABLE}"
        ),
    };
    let relay = match has_flags {
        true => "use --via relay".to_owned(),
        false => format!("use --via relay -l {port}"),
    };
    let or = if why.contains("let it keep") { ", or " } else { "; " };
    Some(format!("listens on {ports} by itself: {why}{or}{relay} (it then has to listen on its PORT)"))
}

/// It listens, and nobody comes there by way of a port of ours.
pub fn elsewhere(pid: u32) -> Option<String> {
    let pids = process::tree(pid);
    if proc_net::is_in_another_network(&pids) {
        return Some(
            "it runs in another network namespace, and what listens there cannot be reached from here; run roundsman in that \
             namespace, too, or the server in ours"
                .to_owned(),
        );
    }
    let sockets = proc_net::unix_sockets_of(&pids);
    let (named, more) = sockets.split_at(sockets.len().min(MAX_NAMED));
    let more = if more.is_empty() { String::new() } else { format!(" and {} more", more.len()) };
    (!named.is_empty())
        .then(|| format!("it listens on the Unix socket {}{more} instead; let it listen on a port", named.join(", ")))
}
