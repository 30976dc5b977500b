//! What a connection is hashed on, so that connections with the same key reach the same worker.

mod forgotten;
pub mod head;
pub mod sessions;

use std::fmt;
use std::hash::Hasher;
use std::str::FromStr;

use siphasher::sip::SipHasher13;

/// The longest name of a cookie, parameter or header, in bytes.
const MAX_NAME: usize = 256;

/// `--hash-on`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HashOn {
    /// The client's address.
    Source,
    /// A cookie of the first request.
    Cookie(String),
    /// A parameter in the first request's target.
    Query(String),
    /// A header of the first request.
    Header(String),
    /// The session that a worker made, which it reports as `@socket.io/sticky` does.
    SocketIo,
}

impl HashOn {
    /// Whether the first request has to be read.
    pub fn reads_head(&self) -> bool {
        *self != Self::Source
    }
}

impl FromStr for HashOn {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let near = match text {
            "source" => return Ok(Self::Source),
            "socket.io" => return Ok(Self::SocketIo),
            "ip" | "src" | "client" | "address" | "ip-hash" => "; did you mean source?",
            "socketio" | "socket-io" | "sid" | "Socket.IO" => "; did you mean socket.io?",
            "cookie" => "; which one, for example cookie:route?",
            "query" | "param" | "url_param" => "; which one, for example query:tenant?",
            "header" | "hdr" => "; which one, for example header:Authorization?",
            _ => "",
        };
        let wanted = || format!("one of source, cookie:NAME, query:NAME, header:NAME, socket.io{near}");
        let (kind, name) = text.split_once(':').ok_or_else(wanted)?;
        let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
        let valid = match kind {
            "query" => |byte: u8| byte.is_ascii_graphic() && !b"&=#".contains(&byte),
            "cookie" | "header" => token,
            _ => return Err(wanted()),
        };
        if name.is_empty() || name.len() > MAX_NAME || !name.bytes().all(valid) {
            return Err(format!("'{name}' is no name of a {kind}"));
        }
        Ok(match kind {
            "cookie" => Self::Cookie(name.to_owned()),
            "query" => Self::Query(name.to_owned()),
            _ => Self::Header(name.to_owned()),
        })
    }
}

impl fmt::Display for HashOn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Source => f.write_str("source"),
            Self::Cookie(name) => write!(f, "cookie:{name}"),
            Self::Query(name) => write!(f, "query:{name}"),
            Self::Header(name) => write!(f, "header:{name}"),
            Self::SocketIo => f.write_str("socket.io"),
        }
    }
}

/// What stands for a key from here on: keys may be secrets, and have any length. The same in every run.
pub fn digest(key: &[u8]) -> u64 {
    let mut hasher = SipHasher13::new();
    hasher.write(key);
    hasher.finish()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn forms_are_read_and_written() {
        for text in ["source", "socket.io", "cookie:SERVERID", "query:tenant[id]", "header:Authorization", "query:a:b"]
        {
            assert_eq!(text.parse::<HashOn>().unwrap().to_string(), text);
        }
        assert_eq!("header:X-A".parse(), Ok(HashOn::Header("X-A".to_owned())));
        assert!(!HashOn::Source.reads_head() && HashOn::SocketIo.reads_head());
    }

    #[test]
    fn mistakes_are_named() {
        for (text, word) in [
            ("", "one of source"),
            ("ip", "did you mean source?"),
            ("sid", "did you mean socket.io?"),
            ("cookie", "cookie:route"),
            ("cookie:", "'' is no name of a cookie"),
            ("cookie:a=b", "is no name of a cookie"),
            ("header:a b", "is no name of a header"),
            ("header:a:", "is no name of a header"),
            ("query:a&b", "is no name of a query"),
            ("body:a", "one of source"),
            ("source:a", "one of source"),
        ] {
            let error = text.parse::<HashOn>().unwrap_err();
            assert!(error.contains(word), "{text}: {error}");
        }
        assert!(format!("cookie:{}", "x".repeat(257)).parse::<HashOn>().is_err());
    }
}
