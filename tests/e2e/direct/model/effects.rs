//! What a step does to the generator's model.

use super::sequences::{File, Model, Register, Step};

impl Model {
    /// The file at a register, if this is its only descriptor.
    pub(super) fn last_of(&self, register: usize) -> Option<&File> {
        let file = self.registers.get(register).copied().flatten()?.file;
        let copies = self.registers.iter().chain(&self.parent).flatten().filter(|other| other.file == file).count();
        (copies == 1).then(|| &self.files[file])
    }

    pub(super) fn open(&mut self, register: i32, file: File, cloexec: bool) {
        self.files.push(file);
        let file = self.files.len() - 1;
        self.registers[register as usize] = Some(Register { file, cloexec, passed: false });
    }

    pub(super) fn close(&mut self, register: usize) {
        let last = self.last_of(register).map(|file| (file.port, file.listening));
        if let Some((Some(port), listening)) = last {
            self.ports[port].bound = false;
            self.ports[port].used |= listening;
        }
        if let Some(closed) = self.registers[register].take()
            && !self.registers.iter().chain(&self.parent).flatten().any(|other| other.file == closed.file)
        {
            let file = &mut self.files[closed.file];
            (file.port, file.listening, file.shut) = (None, false, false);
        }
    }

    pub(super) fn copy(&mut self, to: i32, from: i32, cloexec: bool) {
        if let Some(register) = self.registers[from as usize] {
            self.registers[to as usize] = Some(Register { cloexec, ..register });
        }
    }

    /// Takes the step into the sequence, and its effect into the model.
    pub(super) fn take(&mut self, step: Step) {
        self.steps.push(step);
        let Step(name, [a, b, c, _]) = step;
        let file = |model: &Self, at: i32| model.registers.get(at as usize).copied().flatten().map(|at| at.file);
        match name {
            "socket" => {
                let (v6, nonblock) = (b != 0, c & 1 != 0);
                self.open(a, File { v6, nonblock, ..File::default() }, c & 2 != 0);
            }
            "epoll" => self.open(a, File { epoll: true, ..File::default() }, true),
            "bind" => {
                let Some(at) = file(self, a) else { return };
                self.files[at].tried = !self.files[at].epoll;
                let valid = step.1[3] == 0 && (c >= 2) == self.files[at].v6;
                if valid && self.files[at].port.is_none() && !self.files[at].epoll && !self.ports[b as usize].bound {
                    self.files[at].port = Some(b as usize);
                    self.ports[b as usize].bound = true;
                }
            }
            "listen" => {
                if let Some(at) = file(self, a).filter(|&at| self.files[at].port.is_some()) {
                    let file = &mut self.files[at];
                    (file.listening, file.shut) = (true, false);
                }
            }
            "connect" => {
                let Some(at) = file(self, a).filter(|&at| !self.files[at].listening) else { return };
                if let Some(own) = self.files[at].port {
                    self.ports[own].used = true;
                }
                let to = self.files.iter().position(|to| to.port == Some(b as usize) && to.listening && !to.shut);
                if let Some(to) = to {
                    self.files[to].waiting += 1;
                    self.files[at].connected = true;
                    self.ports[b as usize].used = true;
                } else if self.files[at].port == Some(b as usize) {
                    // To itself.
                    self.files[at].connected = true;
                } else {
                    // Its state after a refused connection is the kernel's alone; a second attempt depends on it.
                    self.files[at].spoiled = true;
                }
            }
            "accept" => {
                let Some(at) = file(self, b) else { return };
                if self.files[at].waiting > 0 && c & 4 == 0 {
                    self.files[at].waiting -= 1;
                    self.registers.iter_mut().flatten().filter(|it| it.file == at).for_each(|it| it.passed = false);
                    let (v6, nonblock) = (self.files[at].v6, c & 1 != 0);
                    self.open(a, File { v6, nonblock, connected: true, ..File::default() }, c & 2 != 0);
                }
            }
            "close" | "range" => self.close(a as usize),
            "shutdown" => {
                if let Some(at) = file(self, a) {
                    let listening = self.files[at].listening;
                    self.files[at].ended |= self.files[at].tried && (!listening || self.files[at].shut);
                    if (listening || self.files[at].tried) && b != 1 {
                        self.files[at].shut = true;
                        if let Some(port) = self.files[at].port {
                            self.ports[port].used = true;
                        }
                    }
                }
            }
            "dup" | "pass" => self.copy(a, b, false),
            "give" => {
                if let Some(register) = self.registers[b as usize] {
                    let file = register.file;
                    let known = self.parent.iter().flatten().find(|other| other.file == file);
                    let passed = known.map_or(self.files[file].tried, |other| other.passed);
                    self.parent[a as usize] = Some(Register { file, cloexec: false, passed });
                }
            }
            "setfd" => {
                if let Some(register) = &mut self.registers[a as usize] {
                    register.cloexec = b != 0;
                }
            }
            "fdup" => self.copy(a, b, c != 0),
            "dup2" if a != b && file(self, a).is_some() && file(self, b).is_some() => {
                self.close(a as usize);
                self.copy(a, b, c != 0);
            }
            "control" => {
                if let (Some(epoll), Some(watched)) = (file(self, a), file(self, c))
                    && self.files[epoll].epoll
                    && b == 0
                {
                    self.files[epoll].watched.push(watched);
                }
                if let Some(watched) = file(self, c) {
                    // EPOLLET, EPOLLONESHOT, both.
                    self.files[watched].edge |= b < 2 && matches!(step.1[3] >> 8, 1..=3);
                }
            }
            "wait" => {
                let Some(epoll) = file(self, a) else { return };
                for watched in self.files[epoll].watched.clone() {
                    self.files[watched].reported |= self.files[watched].edge;
                }
            }
            "setfl" => {
                if let Some(at) = file(self, a) {
                    self.files[at].nonblock = b != 0;
                }
            }
            "fionbio" => {
                if let Some(at) = file(self, a) {
                    self.files[at].nonblock = c != 0;
                }
            }
            _ => {}
        }
    }
}
