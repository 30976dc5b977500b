//! What is at a stand-in's descriptors while it does not listen (before listen(2), after shutdown(2)): an unconnected Unix
//! socket. It polls, receives, accepts and is shut down as a TCP socket that is only bound. Its name begins as the queue's
//! does, so that a process that gets it by exec or over a Unix socket recognizes it, and tells the address, in case the master
//! has given up the listener by then.

use super::abi::attach::{ADDRESS_BYTES, QUEUE_NAME};
use super::address::Address;
use super::raw::{self, EMFILE, NAME_BYTES, O_NONBLOCK, O_RDWR};
use super::table::{self, StandIn, Stands};
use super::{epolls, fail};

const NAME: &[u8] = b"idle-";
const HEX: &[u8; 16] = b"0123456789abcdef";

/// A new one, non-blocking or not, for a listener.
pub fn socket(listener: u32, address: &Address, nonblock: usize) -> Result<i32, i32> {
    let fd = raw::unix_seqpacket().ok_or_else(|| fail(EMFILE))?;
    raw::set_status_flags(fd, O_RDWR | nonblock);
    let mut name = Name { bytes: [0; NAME_BYTES], len: 0 };
    name.push(QUEUE_NAME.as_bytes());
    name.push_number(u64::from(listener));
    name.push(b":");
    name.push(NAME);
    // The inode is this socket's alone.
    name.push_number(raw::device_and_inode(fd).map_or(0, |(_, inode)| inode));
    name.push(b"-");
    for byte in address.bytes.iter().take(address.len as usize) {
        name.push(&[HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]);
    }
    raw::bind_abstract(fd, name.bytes.get(..name.len).unwrap_or(&[]));
    Ok(fd)
}

/// Whether a name that begins as a queue's is an idle socket's: `rest` follows the listener's number.
pub fn is_idle(rest: &[u8]) -> bool {
    rest.strip_prefix(b":").is_some_and(|rest| rest.starts_with(NAME))
}

/// The address in such a name: `rest` as for [`is_idle`].
pub fn address(rest: &[u8]) -> Option<Address> {
    let hex = rest.rsplit(|&byte| byte == b'-').next()?;
    let mut bytes = [0; ADDRESS_BYTES];
    for (place, digits) in bytes.iter_mut().zip(hex.chunks_exact(2)) {
        let digit = |at: usize| Some((*digits.get(at)? as char).to_digit(16)? as u8);
        *place = digit(0)? << 4 | digit(1)?;
    }
    Some(Address::from_bytes(bytes)).filter(Address::is_ip)
}

struct Name {
    bytes: [u8; NAME_BYTES],
    len: usize,
}

impl Name {
    fn push(&mut self, bytes: &[u8]) {
        for byte in bytes {
            if let Some(place) = self.bytes.get_mut(self.len) {
                *place = *byte;
                self.len += 1;
            }
        }
    }

    fn push_number(&mut self, number: u64) {
        let divisor = (0..19).fold(1u64, |divisor, _| if number / divisor >= 10 { divisor * 10 } else { divisor });
        let mut divisor = divisor;
        while divisor > 0 {
            self.push(&[b'0' + (number / divisor % 10) as u8]);
            divisor /= 10;
        }
    }
}

/// Puts an open file at all descriptors of a stand-in, in the place of what is there, with the same blocking mode and
/// time-outs, and registered with the same epoll instances. Closes `file`.
pub fn replace(stand_in: &'static StandIn, file: i32) {
    stand_in.will_be(file);
    let mut first = true;
    table::each_fd(stand_in, |fd| {
        if first {
            first = false;
            let nonblock = match stand_in.stands() {
                Stands::Queue => raw::status_flags(fd) & O_NONBLOCK,
                Stands::Listener => usize::from(stand_in.nonblock()) * O_NONBLOCK,
            };
            raw::set_status_flags(file, O_RDWR | nonblock);
            raw::copy_timeouts(fd, file);
        }
        put(fd, file);
    });
    stand_in.is_now(file);
    raw::close(file);
}

/// Puts an open file at one descriptor, registered with the same epoll instances; whether that succeeded.
pub fn put(fd: i32, file: i32) -> bool {
    let registered = epolls::take_out(fd);
    let done = raw::dup3(file, fd, raw::cloexec_of(fd));
    registered.put_back(fd);
    done
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_idle_socket_is_named() {
        for number in [0, 7, 10, 4_294_967_295, u64::MAX] {
            let mut name = Name { bytes: [0; NAME_BYTES], len: 0 };
            name.push(b"x:");
            name.push_number(number);
            assert_eq!(&name.bytes[..name.len], format!("x:{number}").as_bytes());
        }
        let mut bytes = [0; ADDRESS_BYTES];
        bytes[..8].copy_from_slice(&[2, 0, 0x1f, 0x90, 192, 0, 2, 255]);
        let bound = Address::from_bytes(bytes);
        let fd = socket(u32::MAX, &bound, O_NONBLOCK).unwrap_or(-1);
        let mut name = [0; 3 + NAME_BYTES];
        let len = raw::socket_name(fd, &mut name).unwrap_or(0);
        assert!(name[..len].starts_with(b"\x01\0\0roundsman-queue:4294967295:idle-"), "{name:?}");
        assert_eq!(address(&name[29..len]), Some(bound));
        assert_eq!((address(b":idle-5-zz00"), address(b":idle-5-"), address(b"")), (None, None, None));
        assert!(raw::is_nonblocking(fd));
        raw::close(fd);
        assert!(is_idle(b":idle-5") && !is_idle(b":1234-5-6") && !is_idle(b""));
    }
}
