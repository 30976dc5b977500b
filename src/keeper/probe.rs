//! A trial of what a keeper needs, under the servers' credentials: one keeper, one server that listens and accepts once.

use std::ffi::{CStr, OsString};
use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use super::caller::{self, Memory};
use super::gives::Gives;
use super::server::{self, Started};
use crate::abi::attach::VARIABLE;
use crate::sys::seccomp::{Call, Notifications};
use crate::sys::sock::PeerAddress;
use crate::sys::{reason, sock};

/// Of every keeper's process, as ps(1) shows it.
pub const NAME: &CStr = c"roundsman-keep";
/// The role of the trial's keeper.
pub const ROLE: &str = "keeper-probe";
/// The role of the trial's server.
pub const SERVER_ROLE: &str = "keeper-probe-server";
/// The trial's result where all is well.
pub const GOOD: &str = "all";
/// The same where sockets cannot be taken from servers.
pub const WITHOUT_SOCKETS: &str = "without sockets";

/// The port that the trial's server binds: nothing is bound there.
const PORT: u16 = 9;

/// How long after the end of the trial's server the last answer may take.
const AFTER_END: Duration = Duration::from_secs(1);

/// What went wrong.
type Refused = String;

fn because(what: &'static str) -> impl Fn(io::Error) -> Refused {
    move |error| format!("{what}: {}", reason(&error))
}

/// Where the memory of another process of the same user is out of reach, which setting of the kernel's forbids it.
fn not_read(error: io::Error) -> Refused {
    let scope = std::fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope").unwrap_or_default();
    let refused = because("its memory cannot be read")(error);
    match scope.trim() {
        scope @ ("2" | "3") => format!("{refused} (kernel.yama.ptrace_scope is {scope})"),
        _ => refused,
    }
}

/// The trial's keeper: its result is the line that it prints.
pub fn main() -> u8 {
    match attempt() {
        Ok(true) => println!("{GOOD}"),
        Ok(false) => println!("{WITHOUT_SOCKETS}"),
        Err(refused) => println!("{refused}"),
    }
    0
}

/// Whether sockets can be taken from servers.
fn attempt() -> Result<bool, Refused> {
    if std::env::var_os(VARIABLE).is_none() {
        return Err("the command clears the environment of what it starts, and with it ROUNDSMAN_ATTACH".to_owned());
    }
    let own = OsString::from("/proc/self/exe");
    let role = std::iter::once(OsString::from(SERVER_ROLE));
    let Started { mut server, notifications } =
        server::start(&own, &own, role, Gives::Queues.rules()).map_err(|error| match error.raw_os_error() {
            Some(libc::EBUSY) => "its system calls are watched by another program already (seccomp)".to_owned(),
            _ => because("its system calls cannot be answered (seccomp)")(error),
        })?;
    let (result, answered) = mpsc::channel();
    thread::spawn(move || result.send(answer(&notifications)));
    let ended = server.wait();
    // Without a server, older kernels let the other thread wait for ever.
    match answered.recv_timeout(AFTER_END) {
        Ok(Ok(takes)) if ended.is_ok_and(|status| status.success()) => Ok(takes),
        Ok(Err(refused)) => Err(refused),
        _ => Err("a trial of it failed (seccomp)".to_owned()),
    }
}

/// Answers the trial's server.
fn answer(notifications: &Notifications) -> Result<bool, Refused> {
    let mut takes = true;
    let (queue, _sender) = sock::seqpacket_pair().map_err(because("a socket pair"))?;
    loop {
        let call = match notifications.receive() {
            Ok(call) => call,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(because("its system calls cannot be answered (seccomp)")(error)),
        };
        let step = match call.number {
            libc::SYS_bind => bind(&call, notifications, &queue).map(|taken| takes = taken),
            libc::SYS_accept | libc::SYS_accept4 => return accept(&call, notifications, &queue).map(|()| takes),
            libc::SYS_listen => notifications.answer(call.id, Ok(0)).map_err(because("listen(2) cannot be answered")),
            _ => notifications.go_on(call.id).map_err(because("its system calls cannot be answered (seccomp)")),
        };
        if let Err(refused) = step {
            let _ = notifications.answer(call.id, Err(libc::EPERM));
            return Err(refused);
        }
    }
}

fn bind(call: &Call, notifications: &Notifications, queue: &OwnedFd) -> Result<bool, Refused> {
    let memory = Memory::of(call, notifications);
    let bytes: [u8; 4] = memory.read(call.arguments[1], 4).map_err(not_read)?;
    if u16::from_be_bytes([bytes[2], bytes[3]]) != PORT {
        return Err("its memory cannot be read".to_owned());
    }
    let fd = call.arguments[0] as i32;
    if caller::inode(call.thread, fd).is_none() {
        return Err("its descriptors cannot be seen".to_owned());
    }
    let taken = caller::take(call.thread, fd).is_ok();
    let put = notifications.put_at(call.id, queue.as_fd(), fd, true);
    put.map_err(because("it cannot be given a descriptor (Linux 5.14 is needed)"))?;
    let done = notifications.answer(call.id, Ok(0));
    done.map(|()| taken).map_err(because("its system calls cannot be answered (seccomp)"))
}

fn accept(call: &Call, notifications: &Notifications, queue: &OwnedFd) -> Result<(), Refused> {
    let [_, to, len, ..] = call.arguments;
    let memory = Memory::of(call, notifications);
    let client = PeerAddress::from(std::net::SocketAddr::from((Ipv4Addr::LOCALHOST, PORT)));
    memory.write_address(&client, to, len).map_err(because("its memory cannot be written"))?;
    let given = notifications.give(call.id, queue.as_fd(), true);
    given.map_err(because("it cannot be given a connection (Linux 5.14 is needed)"))
}

/// The trial's server: exit code 0 when it was given a connection.
pub fn server() -> u8 {
    // Natively refused, but for root; so that the exit code tells whether somebody answers.
    let given = TcpListener::bind((Ipv4Addr::LOCALHOST, PORT)).and_then(|listener| listener.accept());
    u8::from(!given.is_ok_and(|(_, client)| client.port() == PORT))
}
