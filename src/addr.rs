//! The written forms of addresses: `--listen`, `--upstream`, `--admin`.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ListenAddr {
    /// An IP address and a port.
    Tcp(SocketAddr),
    /// A port on all addresses: `[::]` for both families, else `0.0.0.0`.
    Port(u16),
    /// A Unix socket; an abstract one's name begins with a NUL byte.
    Unix(PathBuf),
}

/// `--listen`: an address, and the port that the application insists on where that is another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listen {
    pub address: ListenAddr,
    /// What the server binds.
    pub app_port: Option<u16>,
}

impl FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // A path may have an equals sign in it.
        if let Some((address, app)) = text.rsplit_once('=').filter(|_| !text.starts_with("unix:")) {
            let app_port = app
                .parse()
                .ok()
                .filter(|&port| port != 0)
                .ok_or_else(|| format!("'{app}' is not a port (1 to 65535); ADDR=APP_PORT, for example 80=3000"))?;
            return Ok(Self { address: address.parse()?, app_port: Some(app_port) });
        }
        Ok(Self { address: text.parse()?, app_port: None })
    }
}

impl Listen {
    /// The port that a server binds to be served here; `None` where the kernel chooses one, or there is none.
    pub fn served_port(&self) -> Option<u16> {
        let own = match &self.address {
            ListenAddr::Tcp(address) => Some(address.port()),
            ListenAddr::Port(port) => Some(*port),
            ListenAddr::Unix(_) => None,
        };
        self.app_port.or(own).filter(|&port| port != 0)
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.address {
            ListenAddr::Port(port) => write!(f, "{port}")?,
            other => write!(f, "{other}")?,
        }
        self.app_port.map_or(Ok(()), |port| write!(f, "={port}"))
    }
}

impl fmt::Display for ListenAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "{address}"),
            Self::Port(port) => write!(f, "port {port}"),
            Self::Unix(path) => f.write_str(&unix(path)),
        }
    }
}

impl FromStr for ListenAddr {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            return unix_path(path).map(Self::Unix);
        }
        if let Ok(port) = text.parse::<u16>() {
            return Ok(Self::Port(port));
        }
        if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err("a port is at most 65535".to_owned());
        }
        if let Ok(address) = text.parse::<SocketAddr>() {
            return Ok(Self::Tcp(address));
        }
        if text.parse::<IpAddr>().is_ok() {
            return Err(format!("the port is missing: {}", with_port(text)));
        }
        if let Some(port) = text.strip_prefix(':').or_else(|| text.strip_prefix("*:")) {
            return port.parse().map(Self::Port).map_err(|_| bad_port(port));
        }
        match split_port(text)? {
            ("localhost", port) => Ok(Self::Tcp(SocketAddr::from(([127, 0, 0, 1], port)))),
            (host, port) if host.parse::<IpAddr>().is_ok_and(|ip| ip.is_ipv6()) => {
                Err(format!("an IPv6 address needs brackets: [{host}]:{port}"))
            }
            (host, _) => Err(format!("'{host}' is not an IP address; listen on an address of this machine or a port")),
        }
    }
}

/// An address that a relay connects to, as the user wrote it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Upstream {
    /// A name or address and a port; a name may stand for several addresses.
    Host {
        /// Name, IPv4 or IPv6 address without brackets.
        host: String,
        port: u16,
    },
    /// A Unix socket; an abstract one's name begins with a NUL byte.
    Unix(PathBuf),
}

impl fmt::Display for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Host { host, port } => write!(f, "{host}:{port}"),
            Self::Unix(path) => f.write_str(&unix(path)),
        }
    }
}

/// A Unix address as it is written: `unix:/path`, or `unix:@name` for an abstract one, which begins with a NUL byte.
pub fn unix(path: &Path) -> String {
    match path.as_os_str().as_bytes().strip_prefix(b"\0") {
        Some(name) => format!("unix:@{}", String::from_utf8_lossy(name)),
        None => format!("unix:{}", path.display()),
    }
}

impl FromStr for Upstream {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            return unix_path(path).map(Self::Unix);
        }
        if let Some((scheme, rest)) = text.split_once("://") {
            return Err(format!("{scheme}:// is not part of an address; write {}", rest.trim_end_matches('/')));
        }
        if let Ok(address) = text.parse::<SocketAddr>() {
            return Ok(Self::Host { host: address.ip().to_string(), port: nonzero(address.port())? });
        }
        if text.parse::<IpAddr>().is_ok() {
            return Err(format!("the port is missing: {}", with_port(text)));
        }
        if text.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(format!("the host is missing: 127.0.0.1:{text}"));
        }
        let (host, port) = split_port(text)?;
        if host.contains(':') {
            return Err(format!("an IPv6 address needs brackets: [{host}]:{port}"));
        }
        let valid = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
        if host.is_empty() || host.len() > 253 || !host.bytes().all(valid) {
            return Err(format!("'{host}' is not a host name"));
        }
        Ok(Self::Host { host: host.to_owned(), port: nonzero(port)? })
    }
}

/// `--admin`: a port alone is on loopback.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AdminAddr(pub SocketAddr);

impl FromStr for AdminAddr {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("'{text}' is not an address: 9900 (on 127.0.0.1), 0.0.0.0:9900, [::1]:9900");
        let number = text.strip_prefix(':').unwrap_or(text);
        match number.parse::<u16>() {
            Ok(port) => Ok(Self(SocketAddr::from(([127, 0, 0, 1], port)))),
            Err(_) => text.replace("localhost:", "127.0.0.1:").parse().map(Self).map_err(|_| wrong()),
        }
    }
}

fn split_port(text: &str) -> Result<(&str, u16), String> {
    let (host, port) = text.rsplit_once(':').ok_or_else(|| format!("the port is missing: {text}:8080"))?;
    Ok((host, port.parse().map_err(|_| bad_port(port))?))
}

fn bad_port(port: &str) -> String {
    format!("'{port}' is not a port (0 to 65535)")
}

fn with_port(ip: &str) -> String {
    if ip.contains(':') { format!("[{ip}]:8080") } else { format!("{ip}:8080") }
}

fn nonzero(port: u16) -> Result<u16, String> {
    if port == 0 { Err("port 0 cannot be connected to".to_owned()) } else { Ok(port) }
}

/// The kernel's bound on a Unix socket's path (sun_path less its end).
const MAX_PATH: usize = 107;

fn unix_path(path: &str) -> Result<PathBuf, String> {
    match path.len() {
        0 => Err("the path is missing: unix:/run/app.sock".to_owned()),
        n if n > MAX_PATH => Err(format!("a Unix socket's path has at most {MAX_PATH} bytes, this one {n}")),
        _ if path.contains('\0') => Err("a path has no NUL byte; an abstract address is unix:@name".to_owned()),
        _ if path == "@" => Err("the name is missing: unix:@app".to_owned()),
        // As socat, systemd and /proc/net/unix write it.
        _ => Ok(path.strip_prefix('@').map_or_else(|| path.into(), |name| format!("\0{name}").into())),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn listen_addresses() {
        let tcp = |text: &str| ListenAddr::Tcp(text.parse().unwrap());
        for (text, wanted) in [
            ("0.0.0.0:80", tcp("0.0.0.0:80")),
            ("[::1]:80", tcp("[::1]:80")),
            ("8080", ListenAddr::Port(8080)),
            (":8080", ListenAddr::Port(8080)),
            ("*:8080", ListenAddr::Port(8080)),
            ("localhost:1", tcp("127.0.0.1:1")),
            ("unix:/run/a.sock", ListenAddr::Unix("/run/a.sock".into())),
            ("unix:@a", ListenAddr::Unix("\0a".into())),
            ("unix:./@a", ListenAddr::Unix("./@a".into())),
        ] {
            assert_eq!(text.parse::<ListenAddr>().unwrap(), wanted, "{text}");
        }
        for (text, word) in [
            ("", "missing"),
            ("70000", "65535"),
            ("1.2.3.4", "1.2.3.4:8080"),
            ("::1", "[::1]:8080"),
            ("fe80::1:80x", "not a port"),
            ("example.org:80", "not an IP address"),
            ("1.2.3.4:x", "not a port"),
            ("unix:", "missing"),
            ("unix:@", "missing"),
        ] {
            let error = text.parse::<ListenAddr>().unwrap_err();
            assert!(error.contains(word), "{text}: {error}");
        }
        assert!(format!("unix:/{}", "x".repeat(200)).parse::<ListenAddr>().is_err());
    }

    #[test]
    fn upstream_addresses() {
        for text in ["127.0.0.1:80", "[::1]:80", "db.internal:5432", "unix:/run/a.sock", "unix:@a", "my_host:1"] {
            assert_eq!(text.parse::<Upstream>().unwrap().to_string(), text);
        }
        for (text, word) in [
            ("3000", "127.0.0.1:3000"),
            ("http://a:80/", "a:80"),
            ("host", "missing"),
            ("host:0", "port 0"),
            ("::1", "[::1]:8080"),
            ("a b:80", "not a host name"),
            (":80", "not a host name"),
        ] {
            let error = text.parse::<Upstream>().unwrap_err();
            assert!(error.contains(word), "{text}: {error}");
        }
    }

    #[test]
    fn a_port_alone_is_on_loopback() {
        for (text, wanted) in [
            ("9900", "127.0.0.1:9900"),
            (":9900", "127.0.0.1:9900"),
            ("localhost:9900", "127.0.0.1:9900"),
            ("0.0.0.0:9900", "0.0.0.0:9900"),
            ("[::1]:1", "[::1]:1"),
        ] {
            assert_eq!(text.parse::<AdminAddr>().unwrap().0.to_string(), wanted);
        }
        assert!("example.org:80".parse::<AdminAddr>().is_err() && "99999".parse::<AdminAddr>().is_err());
    }
}
