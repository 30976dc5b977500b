//! What a server does instead of listening where it is expected, as far as /proc and its script tell.

use crate::abi::attach::VARIABLE;
use crate::proc_net;
use crate::sys::process;

/// Where a process, or one below it, listens.
pub fn listens_on(pid: u32) -> Option<String> {
    let ports: Vec<_> = proc_net::ports_of(pid).iter().map(|port| format!(":{port}")).collect();
    (!ports.is_empty()).then(|| ports.join(", "))
}

/// It listens there, and the preload library has no part in it.
pub fn by_itself(pid: u32, ports: &str) -> String {
    let why = if proc_net::lacks_variable(pid, VARIABLE) {
        "it was started without the environment that it got (env -i, sudo, su), and so lost the preload library"
    } else {
        "what listens there cannot be preloaded"
    };
    format!("server listens on {ports} by itself: {why}; use --via relay")
}

/// It listens, and nobody comes there by way of a port of ours.
pub fn elsewhere(pid: u32) -> Option<String> {
    let pids = process::tree(pid);
    if proc_net::is_in_another_network(&pids) {
        return Some(
            "it runs in another network namespace, and what listens there cannot be reached from here".to_owned(),
        );
    }
    let sockets = proc_net::unix_sockets_of(&pids);
    (!sockets.is_empty())
        .then(|| format!("it listens on the Unix socket {} instead; let it listen on a port", sockets.join(", ")))
}
