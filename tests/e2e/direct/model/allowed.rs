//! Which steps may follow: none whose answer depends on time, and none that is known to differ.

use super::sequences::{File, MAX_WAITING, Model, REGISTERS, Register, Step};

impl Model {
    /// Whether what follows does not depend on time, and is not among what is known to differ.
    pub(super) fn is_allowed(&self, step: &Step) -> bool {
        let Step(name, [a, b, c, d]) = *step;
        let subject = self.subject(step);
        if subject.is_some_and(|(file, _)| file.spoiled) && !matches!(name, "close" | "range") {
            return false;
        }
        // What a descriptor at this register would lose by being closed.
        let closes = match name {
            "close" | "range" | "dup2" => self.last_of(a as usize),
            _ => None,
        };
        if closes.is_some_and(|file| file.listening && file.waiting > 0) {
            return false;
        }
        let allowed = match name {
            // Connections to themselves, to ports whose listener is gone (it goes a moment later), beyond the backlog.
            "connect" => subject.is_none_or(|(file, _)| {
                let port = b as usize;
                let to = self.files.iter().find(|to| to.port == Some(port) && to.listening && !to.shut);
                let free = !self.ports[port].used && !self.ports[port].bound;
                !file.epoll
                    && !file.nonblock
                    && !file.connected
                    && file.port.is_none()
                    && (to.is_some_and(|to| to.waiting < MAX_WAITING && d >= 0 && to.v6 == file.v6)
                        || to.is_none() && free)
            }),
            "bind" => {
                let other = self.ports[b as usize];
                !other.used && subject.is_none_or(|(file, _)| !file.connected)
                    // Two families or two addresses of one port: whether they go together is another test's subject.
                    && (!other.bound || self.files.iter().any(|file| {
                        file.port == Some(b as usize) && subject.is_some_and(|(own, _)| own.v6 == file.v6)
                    }))
                    && (c < 2 || subject.is_none_or(|(file, _)| file.v6))
            }
            "shutdown" => subject.is_none_or(|(file, _)| file.waiting == 0),
            "bytes" => subject.is_none_or(|(file, _)| !file.epoll),
            "accept" => subject.is_none_or(|(file, _)| !file.epoll),
            "setfl" | "fionbio" => subject.is_none_or(|(file, _)| !file.epoll),
            "fork" | "exec" => !self.in_child,
            "control" => self.files.len() > 1 && a != c,
            _ => true,
        };
        allowed && (super::everything() || !self.is_known(step))
    }

    /// What is known to differ: docs/direct.md names it.
    fn is_known(&self, step: &Step) -> bool {
        let Step(name, [a, ..]) = *step;
        let Some((file, passed)) = self.subject(step) else { return false };
        match name {
            // What another process, or a descriptor that the library does not know, shut down is not known here.
            // One that does not listen keeps it for later: its reads end (0), and so do the connections of a later listen(2).
            "shutdown" => {
                let elsewhere = passed || self.in_child || self.unknown_besides(a).is_some();
                file.tried && (elsewhere || !file.listening || file.shut)
            }
            // A listener that lives on only where the library does not know it yet is given up, and one that was passed to
            // its own process is a stand-in of its own there: its end takes it out of epoll instances.
            "close" | "range" | "dup2" if self.unknown_besides(a) == Some(true) => true,
            "close" | "range" | "dup2" => passed && self.last_of(a as usize).is_none(),
            // Whether it listens is known where listen(2) was called; and the kernel refuses to listen again while there are
            // connections, unless SO_REUSEADDR is set.
            "listen" => {
                let elsewhere = passed || self.in_child || self.unknown_besides(a).is_some();
                let changes = file.tried && !file.listening || file.shut;
                changes && elsewhere || file.shut && self.files.iter().any(|file| file.connected)
            }
            "connect" => file.shut,
            // Given up by the master: nobody tells another process what it was.
            "accept" | "bytes" | "peer" | "get" | "unread" | "name" | "set" | "setfl" | "fionbio" => {
                passed && file.shut
            }
            // Under none the shared listener is non-blocking for who does not know it yet.
            "getfl" => passed,
            _ => false,
        }
    }

    /// Whether the file of a register has other descriptors that the library does not know: `Some(true)` if no other is known.
    fn unknown_besides(&self, register: i32) -> Option<bool> {
        let this = usize::try_from(register).ok()?;
        let file = self.registers.get(this).copied().flatten()?.file;
        let others: Vec<Register> = (0..REGISTERS)
            .filter(|&at| at != this)
            .filter_map(|at| self.registers[at])
            .filter(|at| at.file == file)
            .collect();
        others.iter().any(|other| other.passed).then(|| others.iter().all(|other| other.passed))
    }

    /// The register that a step is about, its file, and whether the register was passed here.
    fn subject(&self, step: &Step) -> Option<(&File, bool)> {
        let at = match step.0 {
            "accept" | "dup" | "fdup" | "dup2" | "pass" => step.1[1],
            _ => step.1[0],
        };
        let register = self.registers.get(usize::try_from(at).ok()?).copied().flatten()?;
        Some((self.files.get(register.file)?, register.passed))
    }
}
