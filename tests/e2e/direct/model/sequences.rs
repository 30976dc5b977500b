//! Random sequences of socket calls. The generator keeps a coarse model of descriptors, files and ports, only to make
//! sequences that get somewhere, and none whose result depends on time.

use std::fmt;

use crate::support::Random;

/// Registers that hold descriptors, and ports of one sequence.
pub const REGISTERS: usize = 16;
const PORTS: usize = 4;
/// Connections that wait at one listener.
pub const MAX_WAITING: u32 = 3;

/// A line of the script: its name and four small numbers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Step(pub &'static str, pub [i32; 4]);

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d] = self.1;
        write!(f, "{} {a} {b} {c} {d}", self.0)
    }
}

/// What the generator draws from a seed.
struct Draw(Random);

impl Draw {
    fn below(&mut self, n: usize) -> usize {
        self.0.below(n as u64) as usize
    }

    fn percent(&mut self, n: u64) -> bool {
        self.0.below(100) < n
    }

    fn of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())]
    }
}

/// An open file, of which several descriptors may exist.
#[derive(Clone, Debug, Default)]
pub struct File {
    pub epoll: bool,
    pub v6: bool,
    pub nonblock: bool,
    /// Bound to this port of the sequence.
    pub port: Option<usize>,
    /// A bind was tried: it may stand for a listener.
    pub tried: bool,
    pub listening: bool,
    pub shut: bool,
    /// shutdown(2) while it did not listen: connections of a later listen(2) inherit that.
    pub ended: bool,
    /// Connections that nobody has accepted.
    pub waiting: u32,
    pub connected: bool,
    /// What it answers from now on depends on time: it is only closed.
    pub spoiled: bool,
    /// Files that an epoll watches.
    pub watched: Vec<usize>,
    /// An epoll reports each of its events only once.
    pub edge: bool,
    /// Such an epoll has been waited for.
    pub reported: bool,
}

#[derive(Clone, Copy, Debug)]
pub struct Register {
    pub file: usize,
    pub cloexec: bool,
    /// It came from another process image or over a Unix socket.
    pub passed: bool,
}

#[derive(Clone, Copy, Debug, Default)]
pub struct Port {
    /// A file that was bound to it exists.
    pub bound: bool,
    /// A listener of it was closed or shut down, or it was connected to.
    pub used: bool,
}

pub struct Model {
    random: Draw,
    pub registers: [Option<Register>; REGISTERS],
    pub files: Vec<File>,
    pub ports: [Port; PORTS],
    pub steps: Vec<Step>,
    /// Inside a fork or exec.
    pub in_child: bool,
    /// There: what its parent has, and gets from it.
    pub parent: [Option<Register>; REGISTERS],
    /// For policy none.
    pub none: bool,
}

/// The sequence of a seed, for policy none or one of the others.
pub fn sequence(seed: u64, none: bool) -> Vec<Step> {
    let mut model = Model {
        random: Draw(Random(seed)),
        registers: [None; REGISTERS],
        files: Vec::new(),
        ports: Default::default(),
        steps: Vec::new(),
        in_child: false,
        parent: [None; REGISTERS],
        none,
    };
    if model.random.percent(85) {
        model.listener();
    }
    let length = 8 + model.random.below(24);
    while model.steps.len() < length {
        model.step();
    }
    model.steps
}

const OPERATIONS: &[(&str, usize)] = &[
    ("socket", 5),
    ("set", 4),
    ("get", 4),
    ("bind", 6),
    ("listen", 6),
    ("connect", 10),
    ("accept", 12),
    ("close", 4),
    ("range", 1),
    ("shutdown", 3),
    ("dup", 3),
    ("fdup", 1),
    ("dup2", 2),
    ("pass", 2),
    ("give", 3),
    ("fork", 3),
    ("exec", 2),
    ("poll", 8),
    ("select", 3),
    ("epoll", 2),
    ("control", 7),
    ("wait", 8),
    ("bytes", 10),
    ("unread", 2),
    ("fionbio", 1),
    ("setfl", 2),
    ("getfl", 2),
    ("setfd", 1),
    ("getfd", 1),
    ("name", 3),
    ("peer", 3),
    ("timeout", 1),
];

impl Model {
    fn listener(&mut self) {
        let port = self.random.below(PORTS) as i32;
        let v6 = self.random.percent(25);
        let any = i32::from(self.random.percent(40));
        let how = self.random.below(4) as i32;
        self.take(Step("socket", [0, i32::from(v6), how, 0]));
        if self.random.percent(60) {
            self.take(Step("set", [0, 0, 1, 0]));
        }
        self.take(Step("bind", [0, port, if v6 { 2 + any } else { any }, 0]));
        if self.random.percent(90) {
            let backlog = self.random.of(&[5, 128, -1, 100_000]);
            self.take(Step("listen", [0, backlog, 0, 0]));
        }
    }

    fn step(&mut self) {
        let all: usize = OPERATIONS.iter().map(|(_, weight)| weight).sum();
        let mut at = self.random.below(all);
        let name = OPERATIONS
            .iter()
            .find(|(_, weight)| {
                let found = at < *weight;
                at = at.saturating_sub(*weight);
                found
            })
            .map_or("getfl", |(name, _)| name);
        if let Some(step) = self.propose(name)
            && self.is_allowed(&step)
        {
            match name {
                "fork" | "exec" => self.child(name),
                _ => self.take(step),
            }
        }
    }

    /// A register that holds a file of this kind, mostly; else any.
    fn register(&mut self, wanted: impl Fn(&File) -> bool) -> i32 {
        let fits: Vec<usize> = (0..REGISTERS).filter(|&at| self.file(at).is_some_and(&wanted)).collect();
        let open: Vec<usize> = (0..REGISTERS).filter(|&at| self.registers[at].is_some()).collect();
        if !fits.is_empty() && self.random.percent(85) {
            self.random.of(&fits) as i32
        } else if !open.is_empty() && self.random.percent(90) {
            self.random.of(&open) as i32
        } else {
            self.random.below(REGISTERS) as i32
        }
    }

    fn free(&mut self) -> Option<i32> {
        (0..REGISTERS).find(|&at| self.registers[at].is_none() && self.parent[at].is_none()).map(|at| at as i32)
    }

    fn file(&self, register: usize) -> Option<&File> {
        self.files.get(self.registers.get(register).copied().flatten()?.file)
    }

    fn propose(&mut self, name: &'static str) -> Option<Step> {
        let random = |model: &mut Self, n: usize| model.random.below(n) as i32;
        let numbers = match name {
            "socket" => [self.free()?, i32::from(self.random.percent(25)), random(self, 4), 0],
            "set" => [self.register(|_| true), self.random.of(&[0, 1, 2, 10]), random(self, 2), 0],
            "get" => [self.register(|file| file.port.is_some()), random(self, 12), 0, 0],
            "bind" => {
                let at = self.register(|file| !file.epoll && file.port.is_none() && !file.connected);
                let v6 = self.file(at as usize).is_some_and(|file| file.v6);
                let kind = random(self, 2) + if v6 { 2 } else { 0 };
                let length = if self.random.percent(5) { self.random.of(&[3, 15]) } else { 0 };
                [at, random(self, PORTS), kind, length]
            }
            "listen" => [self.register(|file| file.port.is_some()), self.random.of(&[5, 128, -1, 100_000]), 0, 0],
            "connect" => {
                // Mostly one that has no port of its own yet.
                let bound = self.random.percent(5);
                let at = self
                    .register(|file| !file.epoll && !file.connected && !file.nonblock && file.port.is_some() == bound);
                let listening: Vec<usize> =
                    self.files.iter().filter(|file| file.listening).filter_map(|file| file.port).collect();
                let port = if !listening.is_empty() && self.random.percent(90) {
                    self.random.of(&listening)
                } else {
                    self.random.below(PORTS)
                };
                let v6 = self.file(at as usize).is_some_and(|file| file.v6);
                let listener = (0..REGISTERS).find(|&at| {
                    let known = self.registers[at].is_some_and(|register| !register.passed);
                    known && self.file(at).is_some_and(|file| file.listening && file.port == Some(port))
                });
                [at, port as i32, if v6 { 2 } else { 0 }, listener.map_or(-1, |at| at as i32)]
            }
            "accept" => {
                let from = self.register(|file| file.listening);
                let how = if self.random.percent(5) { 4 } else { self.random.of(&[0, 0, 1, 2, 3, 8, 16]) };
                let length = if self.random.percent(10) { self.random.of(&[4, 16, 28, -1]) } else { 0 };
                [self.free()?, from, how, length]
            }
            "close" | "range" => [self.register(|_| true), 0, 0, 0],
            "shutdown" => [self.register(|file| file.connected || file.listening), random(self, 3), 0, 0],
            "dup" => [self.free()?, self.register(|file| file.port.is_some()), 0, 0],
            "fdup" => [self.free()?, self.register(|file| file.port.is_some()), random(self, 2), 0],
            "dup2" => {
                [self.register(|file| file.connected), self.register(|file| file.port.is_some()), random(self, 2), 0]
            }
            "pass" | "give" => [self.free()?, self.register(|file| file.port.is_some()), 0, 0],
            "fork" | "exec" => [0; 4],
            "poll" => [self.register(|file| file.port.is_some()), self.random.of(&[1, 1, 3, 4, 5, 0x2001, 0]), 3, 0],
            "select" => [self.register(|file| file.port.is_some()), 3, self.random.of(&[1, 1, 3, 5, 7]), 0],
            "epoll" => [self.free()?, 0, 0, 0],
            "control" => {
                let epoll = self.register(|file| file.epoll);
                let watched = self.register(|file| file.port.is_some());
                let events = self.random.of(&[1, 1, 1, 5, 0x81]);
                let how = random(self, 5);
                let what = if how == 4 { self.random.of(&[0, 2]) } else { self.random.of(&[0, 0, 0, 1, 2]) };
                // EPOLLEXCLUSIVE takes no other events.
                let events = if how == 4 { events & 5 } else { events };
                [epoll, what, watched, events | how << 8]
            }
            "wait" => [self.register(|file| file.epoll), 3, 0, 0],
            "bytes" => {
                let at = self.register(|file| file.connected || file.listening);
                [at, random(self, 15), random(self, 8), self.random.of(&[0, 1, 3])]
            }
            "unread" => [self.register(|file| file.port.is_some()), random(self, 2), 0, 0],
            "fionbio" => [self.register(|_| true), 0, random(self, 2), 0],
            "setfl" | "setfd" => [self.register(|_| true), random(self, 2), 0, 0],
            "timeout" => [self.register(|file| file.listening), self.random.of(&[0, 5]), 0, 0],
            _ => [self.register(|file| file.port.is_some()), 0, 0, 0],
        };
        Some(Step(name, numbers))
    }

    /// Some steps in a child, which ends after them.
    fn child(&mut self, name: &'static str) {
        let exec = name == "exec";
        self.parent = self.registers;
        let at = self.steps.len();
        self.steps.push(Step(name, [0; 4]));
        self.in_child = true;
        if exec {
            for register in &mut self.registers {
                *register = register.filter(|register| !register.cloexec);
                if let Some(register) = register {
                    register.passed = self.files[register.file].tried;
                }
            }
        }
        let length = 1 + self.random.below(5);
        while self.steps.len() < at + 1 + length {
            self.step();
        }
        self.in_child = false;
        self.steps[at].1[0] = (self.steps.len() - at - 1) as i32;
        // What only the child had ends with it.
        let parent = std::mem::replace(&mut self.parent, [None; REGISTERS]);
        for register in self.registers.iter().flatten() {
            if !parent.iter().flatten().any(|other| other.file == register.file) {
                let file = &mut self.files[register.file];
                if let Some(port) = file.port.take() {
                    self.ports[port].used = true;
                    self.ports[port].bound = false;
                    (file.listening, file.waiting) = (false, 0);
                }
                // Its connections end, some of them by a reset.
                self.files.iter_mut().filter(|file| file.connected).for_each(|file| file.spoiled = true);
            }
        }
        self.registers = parent;
        for file in &mut self.files {
            // Where the child closed a copy, the parent has its own.
            file.spoiled |= file.waiting > MAX_WAITING;
        }
        for at in 0..self.files.len() {
            if let Some(port) = self.files[at].port {
                self.ports[port].bound = true;
            }
        }
    }
}
