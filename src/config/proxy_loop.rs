//! Refuses a proxy whose upstream is its own listener: each connection would open another until descriptors run out.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

use super::error::{ConfigError, Kind};
use super::upstream::WeightedUpstream;
use crate::addr::{Listen, ListenAddr, Upstream};

/// Refuses upstreams that are listeners of the same service.
///
/// # Errors
/// For the first such pair.
pub fn refuse(listen: &[Listen], upstreams: &[WeightedUpstream]) -> Result<(), ConfigError> {
    for WeightedUpstream { address: upstream, .. } in upstreams {
        if let Some(Listen { address, .. }) = listen.iter().find(|listen| is_same(&listen.address, upstream)) {
            return Err(Kind::Loop { upstream: upstream.clone(), listener: address.clone() }.of("upstream"));
        }
    }
    Ok(())
}

fn is_same(listen: &ListenAddr, upstream: &Upstream) -> bool {
    let (listen, host, port) = match (listen, upstream) {
        (ListenAddr::Unix(own), Upstream::Unix(other)) => return real(own) == real(other),
        (ListenAddr::Tcp(address), Upstream::Host { host, port }) => (*address, host, *port),
        // Both families.
        (ListenAddr::Port(own), Upstream::Host { host, port }) => {
            (SocketAddr::from((Ipv6Addr::UNSPECIFIED, *own)), host, *port)
        }
        (ListenAddr::Unix(_), Upstream::Host { .. }) | (_, Upstream::Unix(_)) => return false,
    };
    listen.port() == port && addresses(host).into_iter().any(|ip| reaches(ip, listen.ip().to_canonical()))
}

/// Whether a connection to an address arrives at a listener.
fn reaches(to: IpAddr, listener: IpAddr) -> bool {
    match listener {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) => to.is_ipv4() && is_local(to),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => is_local(to),
        own => to == own,
    }
}

/// The addresses of a host that are known without a name server.
fn addresses(host: &str) -> Vec<IpAddr> {
    let loopback = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
    match host.parse::<IpAddr>().map(|ip| ip.to_canonical()) {
        // Connecting to the unspecified address means this machine.
        Ok(IpAddr::V4(Ipv4Addr::UNSPECIFIED)) => vec![loopback[0]],
        Ok(IpAddr::V6(Ipv6Addr::UNSPECIFIED)) => vec![loopback[1]],
        Ok(ip) => vec![ip],
        Err(_) if host.eq_ignore_ascii_case("localhost") => loopback.to_vec(),
        Err(_) => Vec::new(),
    }
}

/// Whether an address is one of this machine.
fn is_local(ip: IpAddr) -> bool {
    let own = |address: nix::ifaddrs::InterfaceAddress| {
        let address = address.address?;
        let v4 = address.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|address| IpAddr::V6(address.ip())))
    };
    ip.is_loopback() || nix::ifaddrs::getifaddrs().is_ok_and(|mut all| all.any(|one| own(one) == Some(ip)))
}

/// The path without links, also for a socket that does not exist yet.
fn real(path: &Path) -> PathBuf {
    let resolved = || Some(std::fs::canonicalize(path.parent()?).ok()?.join(path.file_name()?));
    let absolute = || std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    std::fs::canonicalize(path).ok().or_else(resolved).unwrap_or_else(absolute)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn own_listeners_are_known_under_every_address() {
        for (listen, upstream, wanted) in [
            ("127.0.0.1:80", "127.0.0.1:80", true),
            ("127.0.0.1:80", "localhost:80", true),
            ("127.0.0.1:80", "0.0.0.0:80", true),
            ("127.0.0.1:80", "[::ffff:127.0.0.1]:80", true),
            ("80", "127.0.0.1:80", true),
            ("80", "127.1.2.3:80", true),
            ("80", "[::1]:80", true),
            ("0.0.0.0:80", "127.0.0.1:80", true),
            ("[::]:80", "127.0.0.1:80", true),
            ("[::1]:80", "LOCALHOST:80", true),
            ("unix:/tmp/no-such-1", "unix:/tmp/../tmp/no-such-1", true),
            ("127.0.0.1:80", "127.0.0.1:81", false),
            ("127.0.0.1:80", "127.0.0.2:80", false),
            ("0.0.0.0:80", "[::1]:80", false),
            ("127.0.0.1:80", "[::1]:80", false),
            ("80", "192.0.2.1:80", false),
            ("80", "example.org:80", false),
            ("0", "127.0.0.1:80", false),
            ("unix:/tmp/no-such-1", "unix:/tmp/no-such-2", false),
            ("unix:/tmp/no-such-1", "127.0.0.1:80", false),
            ("80", "unix:/tmp/no-such-1", false),
        ] {
            assert_eq!(is_same(&listen.parse().unwrap(), &upstream.parse().unwrap()), wanted, "{listen} {upstream}");
        }
    }
}
