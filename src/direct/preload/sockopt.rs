//! What a stand-in and its connections say of themselves: addresses and options.

use core::sync::atomic::Ordering::Relaxed;

use super::abi::attach::{ADDRESS_BYTES, OPTION_BYTES, SocketOption, VALUE, op};
use super::address::{AF_UNIX, Address};
use super::bind::recognize;
use super::close::{genuine, genuine_or_marked};
use super::raw::{self, EINVAL, ENOPROTOOPT, ENOTCONN, SO_DOMAIN, SO_TYPE, SOL_SOCKET};
use super::table::{StandIn, Stands};
use super::translations::End;
use super::{client, fail, next, table, translations};

const SO_RCVTIMEO: i32 = 20;
const SO_SNDTIMEO: i32 = 21;
const SO_ATTACH_FILTER: i32 = 26;
const SO_ACCEPTCONN: i32 = 30;
const SO_PROTOCOL: i32 = 38;
const SO_ATTACH_BPF: i32 = 50;
const SO_ATTACH_REUSEPORT_CBPF: i32 = 51;
const SO_ATTACH_REUSEPORT_EBPF: i32 = 52;
const SO_RCVTIMEO_NEW: i32 = 66;

/// getsockname(2).
///
/// # Safety
/// As getsockname(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn getsockname(fd: i32, address: *mut u8, len: *mut u32) -> i32 {
    if address.is_null() || len.is_null() {
        // SAFETY: as getsockname(2).
        return unsafe { next::getsockname(fd, address, len) };
    }
    let stand_in = genuine(fd).or_else(|| {
        let mut name = Address::empty();
        raw::socket_name(fd, &mut name.bytes)?;
        if name.family() == AF_UNIX { recognize(fd) } else { None }
    });
    if let Some(stand_in) = stand_in {
        // SAFETY: as getsockname(2).
        unsafe { stand_in.address().write_to(address, len) };
        return 0;
    }
    // SAFETY: as getsockname(2).
    unsafe { name(fd, address, len, next::getsockname, End::Server) }
}

/// getpeername(2).
///
/// # Safety
/// As getpeername(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn getpeername(fd: i32, address: *mut u8, len: *mut u32) -> i32 {
    if genuine(fd).is_some() {
        return fail(ENOTCONN);
    }
    // SAFETY: as getpeername(2): after success `*len` says how much of an address there is.
    unsafe {
        let result = name(fd, address, len, next::getpeername, End::Client);
        let is_unix = result == 0 && *len >= 2 && address.cast::<u16>().read_unaligned() == AF_UNIX;
        // A stand-in that this process got from another one, and has not used yet.
        if is_unix && recognize(fd).is_some() { fail(ENOTCONN) } else { result }
    }
}

/// A connection's address, in the family that its server expects.
///
/// # Safety
/// As getsockname(2).
unsafe fn name(fd: i32, to: *mut u8, len: *mut u32, ask: unsafe fn(i32, *mut u8, *mut u32) -> i32, end: End) -> i32 {
    if let Some(named) = translations::address(fd, end).filter(|_| !to.is_null() && !len.is_null()) {
        let mut own = Address::empty();
        // SAFETY: the first goes into the local, the second is as getsockname(2).
        unsafe {
            // A connection that was reset has no address any more.
            let result = ask(fd, own.bytes.as_mut_ptr(), &raw mut own.len);
            if result == 0 {
                named.write_to(to, len);
            }
            return result;
        }
    }
    let Some(family) = table::shown_family(fd).filter(|_| !to.is_null() && !len.is_null()) else {
        // SAFETY: as getsockname(2).
        return unsafe { ask(fd, to, len) };
    };
    let mut own = Address::empty();
    // SAFETY: the first goes into the local, the second is as getsockname(2).
    unsafe {
        let result = ask(fd, own.bytes.as_mut_ptr(), &raw mut own.len);
        if result == 0 {
            own.shown_as(family).write_to(to, len);
        }
        result
    }
}

/// getsockopt(2): a stand-in answers for the socket that it stands for.
///
/// # Safety
/// As getsockopt(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn getsockopt(fd: i32, level: i32, option: i32, value: *mut u8, len: *mut u32) -> i32 {
    // SAFETY: as getsockopt(2).
    let natively = || unsafe { next::getsockopt(fd, level, option, value, len) };
    if value.is_null() || len.is_null() {
        return natively();
    }
    let known = match genuine_or_marked(fd) {
        Some(stand_in) => of_stand_in(stand_in, level, option),
        None if level == SOL_SOCKET && option == SO_DOMAIN => {
            table::shown_family(fd).map(|family| Ok(whole(family.into())))
        }
        None => None,
    };
    match known {
        Some(Ok((bytes, have))) => {
            // SAFETY: as getsockopt(2): `*len` bytes are writable.
            unsafe {
                let count = have.min(*len as usize);
                core::ptr::copy_nonoverlapping(bytes.as_ptr(), value, count);
                *len = count as u32;
            }
            0
        }
        Some(Err(errno)) => fail(errno),
        None => natively(),
    }
}

type Value = ([u8; OPTION_BYTES], usize);

fn whole(number: i32) -> Value {
    let mut bytes = [0; OPTION_BYTES];
    bytes[..4].copy_from_slice(&number.to_ne_bytes());
    (bytes, 4)
}

/// A stand-in's option; `None`: its own descriptor has it.
fn of_stand_in(stand_in: &StandIn, level: i32, option: i32) -> Option<Result<Value, i32>> {
    match (level, option) {
        (SOL_SOCKET, SO_DOMAIN) => return Some(Ok(whole(i32::from(stand_in.address().family())))),
        // A shared listener may listen already, for other workers: a server that asks before listen(2) would leave it out.
        (SOL_SOCKET, SO_ACCEPTCONN) => return Some(Ok(whole(i32::from(!stand_in.is_shut())))),
        _ if stand_in.stands() == Stands::Listener => return None,
        (SOL_SOCKET, SO_TYPE) => return Some(Ok(whole(1))),
        (SOL_SOCKET, SO_PROTOCOL) => return Some(Ok(whole(6))),
        (SOL_SOCKET, SO_RCVTIMEO | SO_RCVTIMEO_NEW | SO_SNDTIMEO) => return None,
        _ => {}
    }
    let wanted = SocketOption { level, name: option, len: OPTION_BYTES as u32, value: [0; OPTION_BYTES] };
    let answer = client::request_with(op::GET_OPTION, stand_in.listener.load(Relaxed), packed(&wanted), None)?;
    if answer.reply.kind == VALUE {
        let bytes = answer.reply.address;
        let mut value = [0; OPTION_BYTES];
        value.copy_from_slice(&bytes[12..]);
        let len = u32::from_ne_bytes([bytes[8], bytes[9], bytes[10], bytes[11]]) as usize;
        return Some(Ok((value, len.min(OPTION_BYTES))));
    }
    Some(Err(answer.errno().unwrap_or(EINVAL)))
}

/// setsockopt(2): on a stand-in it is the master who sets the listener's option, and the kernel's answer comes back.
///
/// # Safety
/// As setsockopt(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn setsockopt(fd: i32, level: i32, option: i32, value: *const u8, len: u32) -> i32 {
    // SAFETY: as setsockopt(2).
    let natively = || unsafe { next::setsockopt(fd, level, option, value, len) };
    let Some(stand_in) = genuine_or_marked(fd).filter(|stand_in| stand_in.stands() == Stands::Queue) else {
        return natively();
    };
    match (level, option) {
        (SOL_SOCKET, SO_RCVTIMEO | SO_RCVTIMEO_NEW | SO_SNDTIMEO) => return natively(),
        // Their values point into this process, or are descriptors of it.
        (SOL_SOCKET, SO_ATTACH_FILTER | SO_ATTACH_BPF | SO_ATTACH_REUSEPORT_CBPF | SO_ATTACH_REUSEPORT_EBPF) => {
            return fail(ENOPROTOOPT);
        }
        _ if value.is_null() || len as usize > OPTION_BYTES => return fail(EINVAL),
        _ => {}
    }
    let mut wanted = SocketOption { level, name: option, len, value: [0; OPTION_BYTES] };
    // SAFETY: as setsockopt(2): `len` bytes are readable, and they fit.
    unsafe { core::ptr::copy_nonoverlapping(value, wanted.value.as_mut_ptr(), len as usize) };
    let answer = client::request_with(op::SET_OPTION, stand_in.listener.load(Relaxed), packed(&wanted), None);
    answer.and_then(|answer| answer.errno()).map_or(0, fail)
}

/// An option as it travels.
pub fn packed(option: &SocketOption) -> [u8; ADDRESS_BYTES] {
    let mut bytes = [0; ADDRESS_BYTES];
    bytes[..4].copy_from_slice(&option.level.to_ne_bytes());
    bytes[4..8].copy_from_slice(&option.name.to_ne_bytes());
    bytes[8..12].copy_from_slice(&option.len.to_ne_bytes());
    bytes[12..].copy_from_slice(&option.value);
    bytes
}
