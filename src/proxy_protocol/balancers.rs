//! Written forms of the sources whose connections begin with a header, and sets of them: `10.0.0.0/8`, `unix`.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use crate::cidr::Network;

/// Where a balancer connects from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Balancer {
    /// By TCP.
    Network(Network),
    /// On any of the service's Unix listeners: whoever may connect there is known by the socket's permissions.
    Unix,
}

impl FromStr for Balancer {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "unix" => Ok(Self::Unix),
            network => network.parse().map(Self::Network),
        }
    }
}

impl fmt::Display for Balancer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Network(network) => network.fmt(f),
            Self::Unix => f.write_str("unix"),
        }
    }
}

/// Several of them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Balancers(pub Vec<Balancer>);

impl Balancers {
    /// Whether a connection from there begins with a header. `None`: it came on a Unix listener.
    pub fn contain(&self, ip: Option<IpAddr>) -> bool {
        self.0.iter().any(|balancer| match (balancer, ip) {
            (Balancer::Network(network), Some(ip)) => network.contains(ip),
            (Balancer::Unix, None) => true,
            (Balancer::Network(_), None) | (Balancer::Unix, Some(_)) => false,
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn networks_are_for_addresses_and_unix_for_those_without() {
        let balancers = |text: &str| Balancers(text.split(',').map(|word| word.parse().unwrap()).collect());
        let ip = |text: &str| Some(text.parse().unwrap());
        let networks = balancers("10.0.0.0/8,2001:db8::/32");
        assert!(networks.contain(ip("10.1.2.3")) && networks.contain(ip("2001:db8::1")));
        assert!(!networks.contain(ip("11.0.0.1")) && !networks.contain(None));
        assert!(balancers("unix").contain(None) && !balancers("unix").contain(ip("127.0.0.1")));
        let both = balancers("10.0.0.0/8,unix");
        assert!(both.contain(None) && both.contain(ip("10.1.2.3")) && !both.contain(ip("127.0.0.1")));
        assert_eq!("unix".parse::<Balancer>().unwrap().to_string(), "unix");
        for wrong in ["Unix", "unix:", "unix:/path", ""] {
            assert!(wrong.parse::<Balancer>().unwrap_err().contains("is no network"), "{wrong}");
        }
    }
}
