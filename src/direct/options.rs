//! The options of a listener that the master sets or reads for a server: known ones whose values are plain bytes.

use libc::{IPPROTO_IP, IPPROTO_IPV6, IPPROTO_TCP, SOL_SOCKET};

/// Whether an option may be set: its value holds neither a pointer nor a descriptor of the caller.
pub fn may_set(level: i32, name: i32) -> bool {
    PLAIN.contains(&(level, name))
}

/// Whether an option may be read, by the same rule.
pub fn may_get(level: i32, name: i32) -> bool {
    may_set(level, name) || ONLY_READ.contains(&(level, name))
}

/// Whether a TCP socket has options of this level.
pub fn is_level(level: i32) -> bool {
    [SOL_SOCKET, IPPROTO_IP, IPPROTO_TCP, IPPROTO_IPV6].contains(&level)
}

/// From linux/tcp.h, linux/in.h and linux/in6.h, where libc has no name for it on every target.
const TCP_FASTOPEN_KEY: i32 = 33;
const TCP_FASTOPEN_NO_COOKIE: i32 = 34;
const TCP_NOTSENT_LOWAT: i32 = 25;
const TCP_SAVE_SYN: i32 = 27;
const TCP_INQ: i32 = 36;
const TCP_TX_DELAY: i32 = 37;
const IP_MINTTL: i32 = 21;
const IP_LOCAL_PORT_RANGE: i32 = 51;
const IPV6_MINHOPCOUNT: i32 = 73;
const IPV6_AUTOFLOWLABEL: i32 = 70;
const IPV6_FREEBIND: i32 = 78;
const SO_ZEROCOPY: i32 = 60;
const SO_COOKIE: i32 = 57;
const SO_TXREHASH: i32 = 74;

const PLAIN: [(i32, i32); 77] = [
    (SOL_SOCKET, libc::SO_REUSEADDR),
    (SOL_SOCKET, libc::SO_REUSEPORT),
    (SOL_SOCKET, libc::SO_KEEPALIVE),
    (SOL_SOCKET, libc::SO_LINGER),
    (SOL_SOCKET, libc::SO_RCVBUF),
    (SOL_SOCKET, libc::SO_SNDBUF),
    (SOL_SOCKET, libc::SO_RCVLOWAT),
    (SOL_SOCKET, libc::SO_SNDLOWAT),
    (SOL_SOCKET, libc::SO_RCVTIMEO),
    (SOL_SOCKET, libc::SO_SNDTIMEO),
    (SOL_SOCKET, libc::SO_OOBINLINE),
    (SOL_SOCKET, libc::SO_DONTROUTE),
    (SOL_SOCKET, libc::SO_BROADCAST),
    (SOL_SOCKET, libc::SO_NO_CHECK),
    (SOL_SOCKET, libc::SO_TIMESTAMP),
    (SOL_SOCKET, libc::SO_TIMESTAMPNS),
    (SOL_SOCKET, libc::SO_TIMESTAMPING),
    (SOL_SOCKET, libc::SO_RXQ_OVFL),
    (SOL_SOCKET, libc::SO_LOCK_FILTER),
    (SOL_SOCKET, libc::SO_SELECT_ERR_QUEUE),
    (SOL_SOCKET, libc::SO_INCOMING_CPU),
    (SOL_SOCKET, libc::SO_MAX_PACING_RATE),
    (SOL_SOCKET, libc::SO_PRIORITY),
    (SOL_SOCKET, libc::SO_DEBUG),
    (SOL_SOCKET, libc::SO_MARK),
    (SOL_SOCKET, libc::SO_RCVBUFFORCE),
    (SOL_SOCKET, libc::SO_SNDBUFFORCE),
    (SOL_SOCKET, libc::SO_BUSY_POLL),
    (SOL_SOCKET, libc::SO_PREFER_BUSY_POLL),
    (SOL_SOCKET, libc::SO_BINDTODEVICE),
    (SOL_SOCKET, SO_ZEROCOPY),
    (SOL_SOCKET, SO_TXREHASH),
    (IPPROTO_TCP, libc::TCP_NODELAY),
    (IPPROTO_TCP, libc::TCP_CONGESTION),
    (IPPROTO_TCP, libc::TCP_MAXSEG),
    (IPPROTO_TCP, libc::TCP_CORK),
    (IPPROTO_TCP, libc::TCP_KEEPIDLE),
    (IPPROTO_TCP, libc::TCP_KEEPINTVL),
    (IPPROTO_TCP, libc::TCP_KEEPCNT),
    (IPPROTO_TCP, libc::TCP_SYNCNT),
    (IPPROTO_TCP, libc::TCP_LINGER2),
    (IPPROTO_TCP, libc::TCP_DEFER_ACCEPT),
    (IPPROTO_TCP, libc::TCP_WINDOW_CLAMP),
    (IPPROTO_TCP, libc::TCP_QUICKACK),
    (IPPROTO_TCP, libc::TCP_USER_TIMEOUT),
    (IPPROTO_TCP, libc::TCP_FASTOPEN),
    (IPPROTO_TCP, libc::TCP_THIN_LINEAR_TIMEOUTS),
    (IPPROTO_TCP, libc::TCP_THIN_DUPACK),
    (IPPROTO_TCP, TCP_NOTSENT_LOWAT),
    (IPPROTO_TCP, TCP_SAVE_SYN),
    (IPPROTO_TCP, TCP_FASTOPEN_KEY),
    (IPPROTO_TCP, TCP_FASTOPEN_NO_COOKIE),
    (IPPROTO_TCP, TCP_INQ),
    (IPPROTO_TCP, TCP_TX_DELAY),
    (IPPROTO_IP, libc::IP_TOS),
    (IPPROTO_IP, libc::IP_TTL),
    (IPPROTO_IP, libc::IP_TRANSPARENT),
    (IPPROTO_IP, libc::IP_MTU_DISCOVER),
    (IPPROTO_IP, libc::IP_RECVERR),
    (IPPROTO_IP, libc::IP_RECVTOS),
    (IPPROTO_IP, libc::IP_RECVTTL),
    (IPPROTO_IP, libc::IP_PKTINFO),
    (IPPROTO_IP, libc::IP_FREEBIND),
    (IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT),
    (IPPROTO_IP, IP_MINTTL),
    (IPPROTO_IP, IP_LOCAL_PORT_RANGE),
    (IPPROTO_IPV6, libc::IPV6_V6ONLY),
    (IPPROTO_IPV6, libc::IPV6_UNICAST_HOPS),
    (IPPROTO_IPV6, libc::IPV6_TCLASS),
    (IPPROTO_IPV6, libc::IPV6_TRANSPARENT),
    (IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER),
    (IPPROTO_IPV6, libc::IPV6_RECVERR),
    (IPPROTO_IPV6, libc::IPV6_RECVPKTINFO),
    (IPPROTO_IPV6, libc::IPV6_RECVTCLASS),
    (IPPROTO_IPV6, IPV6_MINHOPCOUNT),
    (IPPROTO_IPV6, IPV6_AUTOFLOWLABEL),
    (IPPROTO_IPV6, IPV6_FREEBIND),
];

const ONLY_READ: [(i32, i32); 12] = [
    (SOL_SOCKET, libc::SO_PEERCRED),
    (SOL_SOCKET, libc::SO_TYPE),
    (SOL_SOCKET, libc::SO_DOMAIN),
    (SOL_SOCKET, libc::SO_PROTOCOL),
    (SOL_SOCKET, libc::SO_ERROR),
    (SOL_SOCKET, libc::SO_ACCEPTCONN),
    (SOL_SOCKET, SO_COOKIE),
    (IPPROTO_TCP, libc::TCP_INFO),
    (IPPROTO_IP, libc::IP_MTU),
    (IPPROTO_IP, libc::IP_OPTIONS),
    (IPPROTO_IPV6, libc::IPV6_MTU),
    (IPPROTO_IPV6, libc::IPV6_RECVHOPLIMIT),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_with_pointers_are_never_passed_on() {
        let never = [
            (SOL_SOCKET, libc::SO_ATTACH_FILTER),
            (SOL_SOCKET, libc::SO_ATTACH_BPF),
            (SOL_SOCKET, libc::SO_ATTACH_REUSEPORT_CBPF),
            (SOL_SOCKET, libc::SO_ATTACH_REUSEPORT_EBPF),
            (IPPROTO_TCP, libc::TCP_ULP),
            (IPPROTO_TCP, libc::TCP_MD5SIG),
            (IPPROTO_TCP, libc::TCP_REPAIR),
            (IPPROTO_TCP, 35), // TCP_ZEROCOPY_RECEIVE
            (IPPROTO_IP, 64),  // IPT_SO_SET_REPLACE
            (IPPROTO_IPV6, 64),
        ];
        for (level, name) in never {
            assert!(!may_set(level, name) && !may_get(level, name), "{level} {name}");
        }
    }
}
