//! Which clients are served: `--allow`, `--deny`, and the limits for each source.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use super::error::{ConfigError, Kind, unusable};
use super::options::Options;
use crate::addr::ListenAddr;
use crate::cidr::{AllowDeny, Contradiction, Network};
use crate::sys::reason;

/// Size limit of a file of networks, in bytes.
const MAX_BYTES: u64 = 16 << 20;

/// A network, or a file with one in each line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NetworkWord {
    Network(Network),
    File(PathBuf),
}

impl FromStr for NetworkWord {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.strip_prefix('@') {
            Some("") => Err("a file is needed after the @: @/etc/networks".to_owned()),
            Some(file) => Ok(Self::File(file.into())),
            None => text.parse().map(Self::Network),
        }
    }
}

/// Which clients are served.
#[derive(Debug, Clone, Default)]
pub struct Clients {
    allow: Vec<NetworkWord>,
    deny: Vec<NetworkWord>,
    /// What these two amount to, with the files as they were when they were read; `None`: all are allowed.
    pub allowed: Option<Arc<AllowDeny>>,
    pub source_conns: Option<u32>,
    pub source_rate: Option<u32>,
    pub first_byte_timeout: Option<Duration>,
}

impl Clients {
    /// # Errors
    /// A file that cannot be used, a network in both lists, or an option that needs addresses where there are none.
    pub fn new(run: &Options) -> Result<Self, ConfigError> {
        let by_address = [
            ("allow", !run.clients.allow.is_empty()),
            ("deny", !run.clients.deny.is_empty()),
            ("source-conns", run.clients.source_conns.is_some()),
            ("source-rate", run.clients.source_rate.is_some()),
        ];
        let unix = |address: &ListenAddr| matches!(address, ListenAddr::Unix(_));
        if !run.listen.is_empty()
            && run.clients.proxy_from.is_empty()
            && run.listen.iter().all(|listen| unix(&listen.address))
            && let Some((key, _)) = by_address.iter().find(|(_, given)| *given)
        {
            return Err(Kind::NeedsAddresses.of(key));
        }
        let mut clients = Self {
            allow: run.clients.allow.clone(),
            deny: run.clients.deny.clone(),
            allowed: None,
            source_conns: run.clients.source_conns,
            source_rate: run.clients.source_rate,
            first_byte_timeout: run.clients.first_byte_timeout,
        };
        clients.read()?;
        Ok(clients)
    }

    /// Reads the files of networks again.
    ///
    /// # Errors
    /// A file that cannot be used, or a network in both lists; everything stays as it was then.
    pub fn read(&mut self) -> Result<(), ConfigError> {
        let (allow, deny) = (networks("allow", &self.allow)?, networks("deny", &self.deny)?);
        let both = |Contradiction(network)| Kind::Unparsed(format!("{network} is allowed, too")).of("deny");
        let any = !self.allow.is_empty() || !self.deny.is_empty();
        self.allowed = any.then(|| AllowDeny::new(&allow, &deny).map(Arc::new)).transpose().map_err(both)?;
        Ok(())
    }

    /// Whether something has to be known of connections before a worker is chosen.
    pub fn any(&self) -> bool {
        self.by_address() || self.first_byte_timeout.is_some()
    }

    /// Whether their addresses are needed for it.
    pub fn by_address(&self) -> bool {
        self.allowed.is_some() || self.source_conns.is_some() || self.source_rate.is_some()
    }
}

fn networks(key: &str, words: &[NetworkWord]) -> Result<Vec<Network>, ConfigError> {
    let mut networks = Vec::new();
    for word in words {
        match word {
            NetworkWord::Network(network) => networks.push(*network),
            NetworkWord::File(path) => networks.extend(file(path).map_err(|kind| kind.of(key))?),
        }
    }
    Ok(networks)
}

/// The networks of a file: one in each line, `#` begins a comment.
fn file(path: &Path) -> Result<Vec<Network>, Kind> {
    let refused = |why: &dyn std::fmt::Display| unusable(path, why);
    // Of a FIFO, an open that waits for its other end would have all services wait.
    let open = std::fs::OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path);
    let file = open.map_err(|error| refused(&reason(&error)))?;
    let meta = file.metadata().map_err(|error| refused(&reason(&error)))?;
    if !meta.is_file() {
        return Err(refused(&"it is not a file"));
    }
    if meta.len() > MAX_BYTES {
        return Err(refused(&"it is larger than 16 MiB"));
    }
    let mut networks = Vec::new();
    for (at, line) in BufReader::new(file.take(MAX_BYTES)).lines().enumerate() {
        let wrong = |why: &dyn std::fmt::Display| Kind::Unparsed(format!("{}:{}: {why}", path.display(), at + 1));
        let line = line.map_err(|error| wrong(&reason(&error)))?;
        let text = line.split_once('#').map_or(line.as_str(), |(text, _)| text).trim();
        if !text.is_empty() {
            networks.push(text.parse().map_err(|why: String| wrong(&why))?);
        }
    }
    Ok(networks)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn read(text: &[u8]) -> Result<usize, String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        let name = file.path().display().to_string();
        let said = |kind: Kind| kind.of("deny").to_string().replace(&name, "FILE");
        super::file(file.path()).map(|networks| networks.len()).map_err(said)
    }

    #[test]
    fn a_file_has_a_network_in_each_line() {
        assert_eq!(read(b""), Ok(0));
        assert_eq!(read(b"# ours\n10.0.0.0/8\r\n\n  2001:db8::/32 # theirs\n192.0.2.7"), Ok(3));
        for (text, expected) in [
            (&b"10.0.0.0/8\n\n10.0.0.1/8\n"[..], "--deny: FILE:3: '10.0.0.1/8' has bits behind its prefix"),
            (b"10.0.0.0/8, 11.0.0.0/8", "--deny: FILE:1: '10.0.0.0/8, 11.0.0.0/8'"),
            (b"10.0.0.0/8\n\xff\n", "--deny: FILE:2: "),
            (b"@other", "--deny: FILE:1: '@other' is no network"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.starts_with(expected), "{error}");
        }
        for (path, why) in [("/nonexistent", "No such file"), ("/dev/zero", "not a file"), ("/", "not a file")] {
            let error = super::file(Path::new(path)).unwrap_err().of("allow").to_string();
            assert!(error.starts_with(&format!("--allow {path}: ")) && error.contains(why), "{error}");
        }
    }
}
