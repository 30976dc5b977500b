//! `--policy hash` and `--hash-on`: what connections are hashed on.

use super::error::{ConfigError, Kind};
use super::options::NodeIpc;
use super::service::Backend;
use crate::accept::policy::Policy;
use crate::affinity::HashOn;
use crate::program::node::is_node_script;

/// What a service's connections are hashed on; `None` under a policy that does not hash.
///
/// # Errors
/// A key that its policy has no use for, or that nobody could report.
pub fn key(
    policy: Policy,
    given: Option<HashOn>,
    no_listen: bool,
    ipc: NodeIpc,
    backend: &Backend,
) -> Result<Option<HashOn>, ConfigError> {
    let refused = |kind: Kind| Err(kind.of("hash-on"));
    match given {
        Some(_) if no_listen => refused(Kind::Excludes("no-listen")),
        Some(_) if policy != Policy::Hash => refused(Kind::NeedsPolicy("hash")),
        Some(HashOn::SocketIo) => match (backend, ipc) {
            (Backend::Upstreams(..), _) => refused(Kind::NoSessions("upstreams have none")),
            (_, NodeIpc::Off) => refused(Kind::NoSessions("node-ipc is off")),
            (Backend::Direct(command), NodeIpc::Auto) if !is_node_script(command) => {
                refused(Kind::NoSessions("run the script itself by node FILE, or set node-ipc to cluster"))
            }
            (Backend::Relayed(command), NodeIpc::Auto) if !is_node_script(command) => {
                refused(Kind::NoSessions("run the script itself by node FILE, or set node-ipc to plain"))
            }
            _ => Ok(Some(HashOn::SocketIo)),
        },
        Some(on) => Ok(Some(on)),
        None => Ok(policy.hashes().then_some(HashOn::Source)),
    }
}
