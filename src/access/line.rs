//! One line for one connection.

use std::fmt;
use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::SystemTime;

use serde::{Serialize, Serializer};

use super::settings::AccessFormat;
use crate::abi::access::Place;
use crate::output::time::utc;

/// How a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum End {
    /// The client was the first to end its side.
    Client,
    /// The server was; or the relay worker, which found no upstream or saw no byte for too long.
    Server,
    /// The client reset it, or it timed out.
    Reset,
    /// Its process ended.
    WorkerExit,
}

impl End {
    fn name(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Server => "server",
            Self::Reset => "reset",
            Self::WorkerExit => "worker-exit",
        }
    }
}

/// A line. Its fields are the JSON object's; they are a contract (docs/reference.md).
#[derive(Debug, Clone, Serialize)]
pub struct Line<'a> {
    /// When it was accepted; under the policy none, when the worker had it.
    #[serde(serialize_with = "time")]
    pub time: SystemTime,
    pub service: &'a str,
    pub slot: u32,
    pub generation: u64,
    pub client: Option<SocketAddr>,
    pub listener: Option<&'a str>,
    /// From the accept to the worker's receive.
    pub wait_us: Option<u64>,
    /// From the accept to the close.
    #[serde(serialize_with = "milliseconds")]
    pub duration_ms: u64,
    pub bytes_in: Option<u64>,
    pub bytes_out: Option<u64>,
    pub rtt_us: Option<u32>,
    pub retransmits: Option<u32>,
    pub end: End,
    #[serde(flatten)]
    pub relay: Option<Relayed>,
}

/// What only a relay worker has.
#[derive(Debug, Clone, Serialize)]
pub struct Relayed {
    /// `None`: none could be reached.
    pub upstream: Option<String>,
    pub connect_us: Option<u32>,
}

fn time<S: Serializer>(at: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&utc(*at))
}

/// Of microseconds.
fn milliseconds<S: Serializer>(us: &u64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(*us as f64 / 1000.0)
}

impl Line<'_> {
    /// Appends it with its end.
    pub fn write(&self, to: &mut Vec<u8>, format: AccessFormat) {
        match format {
            // A Vec takes everything.
            AccessFormat::Json => drop(serde_json::to_writer(&mut *to, self)),
            AccessFormat::Text => drop(self.write_text(to)),
        }
        to.push(b'\n');
    }

    /// As HAProxy's `option tcplog`, as far as the fields are the same.
    fn write_text(&self, to: &mut Vec<u8>) -> io::Result<()> {
        let connect = self.relay.as_ref().and_then(|relay| relay.connect_us).map(u64::from);
        let upstream = self.relay.as_ref().map(|relay| relay.upstream.as_deref().unwrap_or("-"));
        write!(
            to,
            "{} [{}] {} {}/{}.{} {}/{}/{} {}/{} {} {}/{} {}",
            OrDash(self.client),
            Date(self.time),
            self.listener.unwrap_or("-"),
            self.service,
            self.slot,
            self.generation,
            OrDash(self.wait_us.map(Milliseconds)),
            OrDash(connect.map(Milliseconds)),
            Milliseconds(self.duration_ms),
            OrDash(self.bytes_in),
            OrDash(self.bytes_out),
            self.end.name(),
            OrDash(self.rtt_us),
            OrDash(self.retransmits),
            upstream.unwrap_or("-"),
        )
    }
}

struct OrDash<T>(Option<T>);

impl<T: fmt::Display> fmt::Display for OrDash<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Some(value) => value.fmt(f),
            None => f.write_str("-"),
        }
    }
}

/// Of microseconds.
struct Milliseconds(u64);

impl fmt::Display for Milliseconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:03}", self.0 / 1000, self.0 % 1000)
    }
}

/// `22/Nov/2026:00:32:09.123`, UTC.
struct Date(SystemTime);

impl fmt::Display for Date {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
        let utc = utc(self.0);
        let (Some(year), Some(month), Some(day), Some(time)) =
            (utc.get(..4), utc.get(5..7), utc.get(8..10), utc.get(11..23))
        else {
            return f.write_str(&utc);
        };
        let month = month.parse::<usize>().ok().and_then(|month| MONTHS.get(month.wrapping_sub(1)));
        write!(f, "{day}/{}/{year}:{time}", month.unwrap_or(&"-"))
    }
}

/// The address in a record, if it is one; a v4-mapped one as IPv4.
pub fn address(place: &Place) -> Option<SocketAddr> {
    let bytes = &place.bytes;
    let port = u16::from_be_bytes([bytes[2], bytes[3]]);
    let ip: IpAddr = match (i32::from(u16::from_ne_bytes([bytes[0], bytes[1]])), place.len) {
        (libc::AF_INET, 16..) => Ipv4Addr::from(<[u8; 4]>::try_from(&bytes[4..8]).ok()?).into(),
        (libc::AF_INET6, 28..) => Ipv6Addr::from(<[u8; 16]>::try_from(&bytes[8..24]).ok()?).to_canonical(),
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn line() -> Line<'static> {
        Line {
            time: SystemTime::UNIX_EPOCH + Duration::from_millis(1_795_307_529_123),
            service: "web",
            slot: 1,
            generation: 2,
            client: Some("127.0.0.1:4321".parse().unwrap()),
            listener: Some("127.0.0.1:8080"),
            wait_us: Some(35),
            duration_ms: 1234,
            bytes_in: Some(78),
            bytes_out: Some(612),
            rtt_us: Some(45),
            retransmits: Some(0),
            end: End::Client,
            relay: None,
        }
    }

    fn written(line: &Line<'_>, format: AccessFormat) -> String {
        let mut bytes = Vec::new();
        line.write(&mut bytes, format);
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn json_has_units_in_its_names() {
        assert_eq!(
            written(&line(), AccessFormat::Json),
            concat!(
                r#"{"time":"2026-11-22T00:32:09.123Z","service":"web","slot":1,"generation":2,"client":"127.0.0.1:4321","#,
                r#""listener":"127.0.0.1:8080","wait_us":35,"duration_ms":1.234,"bytes_in":78,"bytes_out":612,"#,
                r#""rtt_us":45,"retransmits":0,"end":"client"}"#,
                "\n"
            )
        );
        let relay = Some(Relayed { upstream: Some("10.0.0.1:80".to_owned()), connect_us: Some(80) });
        let json = written(&Line { relay, end: End::WorkerExit, ..line() }, AccessFormat::Json);
        assert!(json.ends_with("\"end\":\"worker-exit\",\"upstream\":\"10.0.0.1:80\",\"connect_us\":80}\n"), "{json}");
    }

    #[test]
    fn text_is_a_line_of_the_known_kind() {
        assert_eq!(
            written(&line(), AccessFormat::Text),
            "127.0.0.1:4321 [22/Nov/2026:00:32:09.123] 127.0.0.1:8080 web/1.2 0.035/-/1.234 78/612 client 45/0 -\n"
        );
        let relay = Some(Relayed { upstream: None, connect_us: None });
        let unknown = Line { client: None, wait_us: None, bytes_in: None, end: End::Reset, relay, ..line() };
        assert_eq!(
            written(&unknown, AccessFormat::Text),
            "- [22/Nov/2026:00:32:09.123] 127.0.0.1:8080 web/1.2 -/-/1.234 -/612 reset 45/0 -\n"
        );
    }
}
