//! How a process ended.

use nix::sys::wait::WaitStatus;

/// How a process ended: text for people, code for the daemon's own exit.
#[derive(Debug, Clone)]
pub struct LastExit {
    /// "exit code 1", "killed by SIGKILL".
    pub text: String,
    /// The code, or 128+n.
    pub code: u8,
}

impl From<WaitStatus> for LastExit {
    fn from(status: WaitStatus) -> Self {
        match status {
            WaitStatus::Exited(_, code) => Self { text: format!("exit code {code}"), code: code as u8 },
            WaitStatus::Signaled(_, signal, _) => {
                Self { text: format!("killed by {}", signal.as_str()), code: 128 + signal as i32 as u8 }
            }
            other => Self { text: format!("{other:?}"), code: 1 },
        }
    }
}
