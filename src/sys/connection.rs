//! What the kernel knows of an open TCP connection.

use std::io;
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;

use super::sock::{local_addr, option, queued_bytes, set_option};

/// `tcpi_state`.
const ESTABLISHED: u8 = 1;
/// SO_NETNS_COOKIE, since Linux 5.14.
const SO_NETNS_COOKIE: i32 = 71;

/// Whether a socket is an open TCP connection that may have come from a listener, without TLS in the kernel.
pub fn is_open_and_of(socket: BorrowedFd<'_>, listener: BorrowedFd<'_>) -> bool {
    let mut info = [0; 8];
    let known = option(socket, libc::IPPROTO_TCP, libc::TCP_INFO, &mut info).is_ok();
    let mut protocol = [0; 16];
    let plain = option(socket, libc::IPPROTO_TCP, libc::TCP_ULP, &mut protocol).is_ok_and(|len| len == 0);
    known && info[0] == ESTABLISHED && plain && is_of(socket, listener)
}

fn is_of(socket: BorrowedFd<'_>, listener: BorrowedFd<'_>) -> bool {
    let (Some(own), Some(bound)) = (local_addr(socket), local_addr(listener)) else { return false };
    let elsewhere = matches!((namespace(socket), namespace(listener)), (Some(own), Some(bound)) if own != bound);
    reaches(own, bound) && !elsewhere
}

/// Whether a connection to an address is one to a listener that is bound to another.
fn reaches(own: SocketAddr, bound: SocketAddr) -> bool {
    let (ip, bound_ip) = (own.ip().to_canonical(), bound.ip().to_canonical());
    own.port() == bound.port() && (bound_ip.is_unspecified() || ip == bound_ip)
}

/// The network namespace of a socket, where the kernel says it.
fn namespace(socket: BorrowedFd<'_>) -> Option<u64> {
    let mut cookie = [0; 8];
    let len = option(socket, libc::SOL_SOCKET, SO_NETNS_COOKIE, &mut cookie).ok()?;
    (len == cookie.len()).then(|| u64::from_ne_bytes(cookie))
}

/// Makes a connection what accept(2) returns, whatever a server has set.
///
/// # Errors
/// As setsockopt(2) and fcntl(2).
pub fn accepted_anew(socket: BorrowedFd<'_>) -> io::Result<()> {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    let connection = socket2::SockRef::from(&socket);
    connection.set_linger(None)?;
    connection.set_read_timeout(None)?;
    connection.set_write_timeout(None)?;
    set_option(socket, libc::SOL_SOCKET, libc::SO_RCVLOWAT, &1i32.to_ne_bytes())?;
    // What it holds back is sent with this.
    set_option(socket, libc::IPPROTO_TCP, libc::TCP_CORK, &0i32.to_ne_bytes())?;
    // Without O_ASYNC.
    fcntl(socket, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    Ok(())
}

/// Bytes that were read from a TCP connection and written to it since it was made; `None` for another socket, and before Linux
/// 4.19.
pub fn so_far(socket: BorrowedFd<'_>) -> Option<(u64, u64)> {
    const WORDS: usize = 29;
    let mut queued = queued_bytes(socket).ok()? as u64;
    // Something may come in between.
    for _ in 0..4 {
        let mut info = [0; WORDS * 8];
        let len = option(socket, libc::IPPROTO_TCP, libc::TCP_INFO, &mut info).ok().filter(|&len| len >= 27 * 8)?;
        let again = queued_bytes(socket).ok()? as u64;
        if again == queued {
            let word = |at: usize| info[..len].get(at * 8..at * 8 + 8)?.try_into().ok().map(u64::from_ne_bytes);
            let unsent = word(18)? & u64::from(u32::MAX);
            return Some((word(16)?.saturating_sub(queued), word(25)?.saturating_sub(word(26)?) + unsent));
        }
        queued = again;
    }
    None
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd;

    use super::*;

    fn connect(listener: &TcpListener) -> (TcpStream, TcpStream) {
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (client, listener.accept().unwrap().0)
    }

    #[test]
    fn a_connection_is_of_the_listener_that_it_came_from() {
        let [one, two] = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let (client, accepted) = connect(&one);
        assert!(is_open_and_of(accepted.as_fd(), one.as_fd()));
        assert!(!is_open_and_of(accepted.as_fd(), two.as_fd()), "another port");
        assert!(!is_open_and_of(one.as_fd(), one.as_fd()), "it listens");
        assert!(!is_open_and_of(std::os::unix::net::UnixStream::pair().unwrap().0.as_fd(), one.as_fd()));
        drop(client);
        let mut accepted = accepted;
        assert_eq!(accepted.read(&mut [0]).unwrap(), 0);
        assert!(!is_open_and_of(accepted.as_fd(), one.as_fd()), "its client has ended it");
    }

    #[test]
    fn an_address_is_the_listener_s_own_or_any() {
        let reaches = |own: &str, bound: &str| super::reaches(own.parse().unwrap(), bound.parse().unwrap());
        assert!(reaches("127.0.0.1:80", "127.0.0.1:80") && reaches("127.0.0.1:80", "0.0.0.0:80"));
        assert!(reaches("[::ffff:127.0.0.1]:80", "[::]:80") && reaches("[::ffff:127.0.0.1]:80", "127.0.0.1:80"));
        assert!(!reaches("127.0.0.2:80", "127.0.0.1:80") && !reaches("127.0.0.1:81", "0.0.0.0:80"));
    }

    #[test]
    fn a_namespace_is_the_same_for_two_sockets_of_one() {
        let [one, two] = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        assert_eq!(namespace(one.as_fd()), namespace(two.as_fd()));
    }

    #[test]
    fn bytes_are_counted_that_were_read_and_written() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (mut client, mut accepted) = connect(&listener);
        assert_eq!(so_far(accepted.as_fd()), Some((0, 0)));
        client.write_all(b"request").unwrap();
        accepted.read_exact(&mut [0; 3]).unwrap();
        accepted.write_all(b"answer").unwrap();
        client.read_exact(&mut [0; 6]).unwrap();
        assert_eq!(so_far(accepted.as_fd()), Some((3, 6)));
    }
}
