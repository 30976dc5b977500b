//! Socket addresses as the kernel lays them out.

use super::abi::attach::ADDRESS_BYTES;

pub const AF_UNIX: u16 = 1;
pub const AF_INET: u16 = 2;
pub const AF_INET6: u16 = 10;

const IPV4_BYTES: u32 = 16;
const IPV6_BYTES: u32 = ADDRESS_BYTES as u32;

/// Whether a family is IPv4 or IPv6.
pub fn is_ip(family: u16) -> bool {
    matches!(family, AF_INET | AF_INET6)
}

#[derive(Clone, Copy, PartialEq, Eq)]
#[cfg_attr(test, derive(Debug))]
pub struct Address {
    pub bytes: [u8; ADDRESS_BYTES],
    /// What the kernel gave, or would give: may be more than there are bytes.
    pub len: u32,
}

impl Address {
    /// Room for any address.
    pub const fn empty() -> Self {
        Self { bytes: [0; ADDRESS_BYTES], len: ADDRESS_BYTES as u32 }
    }

    /// An IPv4 or IPv6 address that travelled without its length.
    pub fn from_bytes(bytes: [u8; ADDRESS_BYTES]) -> Self {
        let mut address = Self { bytes, len: IPV6_BYTES };
        if address.family() == AF_INET {
            address.len = IPV4_BYTES;
        }
        address
    }

    pub fn family(&self) -> u16 {
        u16::from_ne_bytes([self.bytes[0], self.bytes[1]])
    }

    pub fn port(&self) -> u16 {
        u16::from_be_bytes([self.bytes[2], self.bytes[3]])
    }

    pub fn is_ip(&self) -> bool {
        is_ip(self.family())
    }

    /// What a server passed to bind(2), if it is an address for TCP.
    ///
    /// # Safety
    /// `address` is readable for `len` bytes, or null.
    pub unsafe fn for_tcp(address: *const u8, len: u32) -> Option<Self> {
        if address.is_null() || len < IPV4_BYTES {
            return None;
        }
        let have = len.min(IPV6_BYTES);
        let mut own = Self { bytes: [0; ADDRESS_BYTES], len: have };
        // SAFETY: `len` bytes are readable by the caller's word, and `have` is no more.
        unsafe { core::ptr::copy_nonoverlapping(address, own.bytes.as_mut_ptr(), have as usize) };
        match own.family() {
            AF_INET => own.len = IPV4_BYTES,
            AF_INET6 if have == IPV6_BYTES => {}
            _ => return None,
        }
        Some(own)
    }

    /// Copies it to where a server wants it, cut to its room, as the kernel does.
    ///
    /// # Safety
    /// As accept(2): `to` is writable for `*len` bytes, or null.
    pub unsafe fn write_to(&self, to: *mut u8, len: *mut u32) {
        if to.is_null() || len.is_null() {
            return;
        }
        let have = (self.len as usize).min(ADDRESS_BYTES);
        // SAFETY: by the caller's word; at most `*len` and at most ADDRESS_BYTES bytes are copied.
        unsafe {
            core::ptr::copy_nonoverlapping(self.bytes.as_ptr(), to, have.min(*len as usize));
            *len = have as u32;
        }
    }

    /// In another family: IPv4 as v4-mapped IPv6, and the reverse. An IPv6 client has no IPv4 address: a server that only
    /// knows IPv4 sees 0.0.0.0 and the client's port.
    pub fn shown_as(&self, family: u16) -> Self {
        let mut shown = Self { bytes: [0; ADDRESS_BYTES], len: 0 };
        let (from, to) = (&self.bytes, &mut shown.bytes);
        to[..2].copy_from_slice(&family.to_ne_bytes());
        to[2..4].copy_from_slice(&from[2..4]);
        match (self.family(), family) {
            (AF_INET6, AF_INET) => {
                const MAPPED: [u8; 12] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff];
                if from[8..20] == MAPPED {
                    to[4..8].copy_from_slice(&from[20..24]);
                }
                shown.len = IPV4_BYTES;
            }
            (AF_INET, AF_INET6) => {
                to[18] = 0xff;
                to[19] = 0xff;
                to[20..24].copy_from_slice(&from[4..8]);
                shown.len = IPV6_BYTES;
            }
            _ => return *self,
        }
        shown
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v4(ip: [u8; 4], port: u16) -> Address {
        let mut bytes = [0; ADDRESS_BYTES];
        bytes[..2].copy_from_slice(&AF_INET.to_ne_bytes());
        bytes[2..4].copy_from_slice(&port.to_be_bytes());
        bytes[4..8].copy_from_slice(&ip);
        Address::from_bytes(bytes)
    }

    #[test]
    fn an_ipv4_address_survives_the_way_through_ipv6() {
        let address = v4([192, 0, 2, 7], 8080);
        let mapped = address.shown_as(AF_INET6);
        assert_eq!((mapped.family(), mapped.port(), mapped.len), (AF_INET6, 8080, 28));
        assert_eq!(mapped.bytes[8..24], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 192, 0, 2, 7]);
        assert_eq!(mapped.shown_as(AF_INET), address);
        assert_eq!(address.shown_as(AF_INET), address);
    }

    #[test]
    fn an_ipv6_client_without_an_ipv4_address_keeps_its_port() {
        let mut six = v4([0; 4], 9).shown_as(AF_INET6);
        six.bytes[8..24].copy_from_slice(&[0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        assert_eq!(six.shown_as(AF_INET), v4([0; 4], 9));
    }

    #[test]
    fn only_whole_ip_addresses_are_for_tcp() {
        let mut bytes = v4([127, 0, 0, 1], 80).bytes;
        let mut read = |family: u16, len| {
            bytes[..2].copy_from_slice(&family.to_ne_bytes());
            // SAFETY: the array is as long as the longest length given here.
            unsafe { Address::for_tcp(bytes.as_ptr(), len) }.map(|address| (address.len, address.port()))
        };
        assert_eq!((read(AF_INET, 16), read(AF_INET, 28)), (Some((16, 80)), Some((16, 80))));
        assert_eq!((read(AF_INET, 15), read(AF_INET6, 27), read(AF_UNIX, 28)), (None, None, None));
        assert_eq!(read(AF_INET6, 28), Some((28, 80)));
        // SAFETY: null is allowed.
        assert_eq!(unsafe { Address::for_tcp(core::ptr::null(), 28) }, None);
    }

    #[test]
    fn a_short_buffer_gets_the_beginning_and_the_whole_length() {
        let (mut room, mut len) = ([7u8; 8], 6u32);
        // SAFETY: six bytes are writable.
        unsafe { v4([127, 0, 0, 1], 80).write_to(room.as_mut_ptr(), &raw mut len) };
        assert_eq!((room, len), ([2, 0, 0, 80, 127, 0, 7, 7], 16));
    }
}
