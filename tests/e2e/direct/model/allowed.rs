//! Which steps may follow: none whose answer depends on time, and none that is known to differ.

use super::sequences::{File, MAX_WAITING, Model, Register, Step};

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
            // Connections to ports whose listener is gone (it goes a moment later), beyond the backlog.
            "connect" => subject.is_none_or(|(file, _)| {
                let port = b as usize;
                let to = self.files.iter().find(|to| to.port == Some(port) && to.listening && !to.shut);
                let free = !self.ports[port].used && !self.ports[port].bound;
                let itself = file.port == Some(port) && !file.shut;
                let arrives = to.is_some_and(|to| to.waiting < MAX_WAITING && d >= 0 && to.v6 == file.v6);
                let reaches = arrives || to.is_none() && (free || itself);
                !file.epoll && !file.connected && (file.listening || reaches && !file.nonblock)
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
            "fork" => !self.in_child,
            // A program that is given another one's epoll instances shares them, and would take out what it closes.
            "exec" => {
                let stays = |at: &Register| self.files[at.file].epoll && !at.cloexec;
                !self.in_child && !self.registers.iter().flatten().any(stays)
            }
            "give" => self.in_child && subject.is_some_and(|(file, _)| !file.connected && !file.epoll),
            "control" => self.files.len() > 1 && a != c,
            _ => true,
        };
        allowed && (super::everything() || !self.is_known(step))
    }

    /// What is known to differ: docs/direct.md names it.
    fn is_known(&self, step: &Step) -> bool {
        let Some((file, passed)) = self.subject(step) else { return false };
        let elsewhere = passed || self.in_child;
        match step.0 {
            // Another process does not learn of it.
            "shutdown" => file.tried && (elsewhere || self.none),
            // Whether it listens is known where listen(2) was called; and the kernel refuses to listen again while there are
            // connections, unless SO_REUSEADDR is set.
            "listen" => {
                let changes = file.tried && !file.listening || file.shut;
                changes && elsewhere || file.ended || file.shut && self.files.iter().any(|file| file.connected)
            }
            "connect" if file.shut || file.ended || file.tried && elsewhere => true,
            // What was reported as hung up is so once more.
            "bind" if file.reported => true,
            // The other process keeps the socket itself.
            "bind" => {
                self.in_child && self.parent.iter().flatten().any(|other| std::ptr::eq(&self.files[other.file], file))
            }
            // What is left to be sent is a number of the kernel's own after shutdown(2).
            "unread" if step.1[1] == 1 && file.shut => true,
            // Under none the shared listener is non-blocking for who does not know it yet, and each process has a mode of its own.
            "getfl" | "accept" | "connect" if self.none && passed => true,
            "setfl" | "fionbio" if self.none && self.in_child && file.tried => true,
            // Given up by the master: nobody tells another process what it was.
            "accept" | "bytes" | "peer" | "get" | "unread" | "name" | "set" | "setfl" | "fionbio" => {
                passed && file.shut
            }
            _ => false,
        }
    }

    /// The register that a step is about, its file, and whether the register was passed here.
    fn subject(&self, step: &Step) -> Option<(&File, bool)> {
        let at = match step.0 {
            "accept" | "dup" | "fdup" | "dup2" | "pass" | "give" => step.1[1],
            _ => step.1[0],
        };
        let register = self.registers.get(usize::try_from(at).ok()?).copied().flatten()?;
        Some((self.files.get(register.file)?, register.passed))
    }
}
