//! The messages of Node's IPC, from a worker and to it.

use std::fmt;

use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use crate::affinity::digest;
use crate::affinity::sessions::{Change, MAX_NAME};

/// A message from a worker.
#[derive(Debug, Clone, PartialEq)]
pub enum IpcMessage {
    /// The program's `process.send(x)`, as JSON.
    User(String),
    /// A message with a socket. The socket is of no use to us, but has to be acknowledged.
    WithHandle(Box<IpcMessage>),
    Cluster(Cluster),
    /// From Node itself, about something else.
    Ignored,
}

/// A message from a worker's side of Node's cluster module.
#[derive(Debug, Clone, PartialEq)]
pub enum Cluster {
    Query(Query),
    Listening,
    /// It exits on purpose after a reply with this sequence number.
    Leaving {
        seq: u64,
    },
}

/// `server.listen(…)` in a cluster worker.
#[derive(Clone, PartialEq)]
pub struct Query {
    /// The reply has to contain it.
    pub seq: u64,
    /// An IP address or a path; `None` for any address.
    pub address: Option<String>,
    /// -1 for a path.
    pub port: i64,
    pub kind: Kind,
    /// Distinguishes servers of one worker with the same address.
    pub index: u64,
    pub only_v6: bool,
    /// Shared by all workers of a server: a TLS server's ticket keys. Secret.
    pub data: Value,
}

impl fmt::Debug for Query {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Without the secret data.
        write!(f, "Query({})", self.key())
    }
}

/// The kind of socket that a worker asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Tcp,
    Udp4,
    Udp6,
    /// A Unix stream socket.
    Path,
}

impl Query {
    /// Identifies a server within a worker; the same for all workers.
    pub fn key(&self) -> String {
        let address = self.address.as_deref().unwrap_or("any");
        format!("{address}:{}:{:?}:{}:{}", self.port, self.kind, u8::from(self.only_v6), self.index)
    }
}

#[derive(Deserialize)]
struct Envelope<'a> {
    cmd: Option<&'a str>,
    #[serde(borrow)]
    msg: Option<&'a RawValue>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Act {
    act: Option<String>,
    seq: Option<u64>,
    address: Option<String>,
    port: Option<i64>,
    address_type: Option<Value>,
    index: Option<u64>,
    flags: Option<u64>,
    data: Option<Value>,
}

/// Parses one line.
///
/// # Errors
/// Why it is malformed.
pub fn parse(line: &[u8]) -> Result<IpcMessage, String> {
    let text = std::str::from_utf8(line).map_err(|_| "a message is not UTF-8".to_owned())?;
    // Most messages are the program's, so they are not parsed any further here.
    let whole: &RawValue = serde_json::from_str(text).map_err(|error| format!("a message is not JSON: {error}"))?;
    let Some(Envelope { cmd: Some("NODE_HANDLE"), msg }) = envelope(whole.get()) else { return inner(whole.get()) };
    let message = msg.map_or(Ok(IpcMessage::Ignored), |message| inner(message.get()))?;
    Ok(IpcMessage::WithHandle(Box::new(message)))
}

fn envelope(text: &str) -> Option<Envelope<'_>> {
    if text.starts_with('{') { serde_json::from_str(text).ok() } else { None }
}

/// A message, with or without a socket. Node packs one into another once, and so it is unpacked once.
fn inner(text: &str) -> Result<IpcMessage, String> {
    let internal = |cmd: &str| cmd.len() > "NODE_".len() && cmd.starts_with("NODE_");
    match envelope(text).and_then(|envelope| envelope.cmd) {
        Some("NODE_CLUSTER") => cluster(text),
        Some(cmd) if internal(cmd) => Ok(IpcMessage::Ignored),
        Some(_) | None => Ok(IpcMessage::User(text.to_owned())),
    }
}

fn cluster(text: &str) -> Result<IpcMessage, String> {
    let act: Act = serde_json::from_str(text).map_err(|error| format!("a cluster message: {error}"))?;
    let seq = act.seq.unwrap_or_default();
    Ok(IpcMessage::Cluster(match act.act.as_deref() {
        Some("listening") => Cluster::Listening,
        Some("exitedAfterDisconnect") => Cluster::Leaving { seq },
        Some("queryServer") => {
            let kind = match act.address_type.as_ref() {
                Some(Value::String(kind)) if kind == "udp4" => Kind::Udp4,
                Some(Value::String(kind)) if kind == "udp6" => Kind::Udp6,
                Some(Value::Number(number)) if number.as_i64() == Some(-1) => Kind::Path,
                Some(Value::Number(_)) | None => Kind::Tcp,
                Some(other) => return Err(format!("a cluster message: addressType {other}")),
            };
            Cluster::Query(Query {
                seq,
                address: act.address,
                port: act.port.unwrap_or(0),
                kind,
                index: act.index.unwrap_or(0),
                only_v6: act.flags.unwrap_or(0) & 1 == 1,
                data: act.data.unwrap_or(Value::Null),
            })
        }
        _ => return Ok(IpcMessage::Ignored),
    }))
}

fn line(message: &Value) -> Vec<u8> {
    let mut line = message.to_string().into_bytes();
    line.push(b'\n');
    line
}

/// The reply to [`Query`] with a socket, on which the worker itself listens.
pub fn shared(query: &Query, data: &Value, seq: u64) -> Vec<u8> {
    let kind = match query.kind {
        Kind::Tcp | Kind::Path => "net.Native",
        Kind::Udp4 | Kind::Udp6 => "dgram.Native",
    };
    let message = json!({
        "cmd": "NODE_CLUSTER", "errno": 0, "key": query.key(), "ack": query.seq, "data": data, "seq": seq,
    });
    line(&json!({"cmd": "NODE_HANDLE", "type": kind, "msg": message}))
}

/// The reply to [`Query`] without a socket: the program gets an `error` event.
pub fn refused(query: &Query, errno: i32, seq: u64) -> Vec<u8> {
    line(&json!({
        "cmd": "NODE_CLUSTER", "errno": -errno.abs(), "key": query.key(), "ack": query.seq, "data": query.data, "seq": seq,
    }))
}

/// The reply to [`Cluster::Leaving`].
pub fn may_leave(ack: u64, seq: u64) -> Vec<u8> {
    line(&json!({"cmd": "NODE_CLUSTER", "ack": ack, "seq": seq}))
}

/// Has the worker close its servers, finish and exit.
pub fn disconnect(seq: u64) -> Vec<u8> {
    line(&json!({"cmd": "NODE_CLUSTER", "act": "disconnect", "seq": seq}))
}

/// The reply to a message with a socket.
pub fn acknowledged(came: bool) -> Vec<u8> {
    line(&json!({"cmd": if came { "NODE_HANDLE_ACK" } else { "NODE_HANDLE_NACK" }}))
}

/// A program's message to another program, as a line.
pub fn user(text: &str) -> Vec<u8> {
    let mut line = text.as_bytes().to_vec();
    line.push(b'\n');
    line
}

/// What a program's message asks the master to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Directive {
    Ready,
    /// `{type: 'broadcast', data}`: pass this on to every other worker.
    Broadcast(String),
    /// `{type: 'to', slot, data}`: pass this on to one worker.
    To(usize, String),
    /// `{type: 'sticky:connection', data: sid}` and `sticky:disconnection`, by `setupWorker` of `@socket.io/sticky`.
    Session(Change),
    /// Nothing; it is only shown to readers of messages.
    Nothing,
}

/// Interprets a program's message from slot `from`.
pub fn directive(text: &str, from: usize) -> Directive {
    #[derive(Deserialize)]
    struct Addressed<'a> {
        r#type: &'a str,
        slot: Option<usize>,
        #[serde(borrow)]
        data: Option<&'a RawValue>,
    }
    if text == "\"ready\"" {
        return Directive::Ready;
    }
    if !text.starts_with('{') {
        return Directive::Nothing;
    }
    let Ok(addressed) = serde_json::from_str::<Addressed<'_>>(text) else { return Directive::Nothing };
    let data = addressed.data.map_or("null", RawValue::get);
    match (addressed.r#type, addressed.slot) {
        ("broadcast", _) => Directive::Broadcast(format!("{{\"type\":\"broadcast\",\"from\":{from},\"data\":{data}}}")),
        ("sticky:connection", _) => {
            session(data).map_or(Directive::Nothing, |sid| Directive::Session(Change::Opened(sid)))
        }
        ("sticky:disconnection", _) => {
            session(data).map_or(Directive::Nothing, |sid| Directive::Session(Change::Closed(sid)))
        }
        ("to", Some(slot)) => Directive::To(slot, format!("{{\"type\":\"to\",\"from\":{from},\"data\":{data}}}")),
        _ => Directive::Nothing,
    }
}

/// A session's name, as its digest.
fn session(data: &str) -> Option<u64> {
    let name: String = serde_json::from_str(data).ok()?;
    (1..=MAX_NAME).contains(&name.len()).then(|| digest(name.as_bytes()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn messages_of_node_and_of_programs_are_told_apart() {
        let user = |text: &str| Ok(IpcMessage::User(text.to_owned()));
        for text in
            ["1", "\"ready\"", "null", "[1]", "{\"cmd\":3}", "{\"cmd\":\"NODE_\"}", "{\"cmd\":\"node_x\"}", "{}"]
        {
            assert_eq!(parse(text.as_bytes()), user(text), "{text}");
        }
        assert_eq!(parse(b"{\"cmd\":\"NODE_SOMETHING\"}"), Ok(IpcMessage::Ignored));
        assert_eq!(
            parse(b"{\"cmd\":\"NODE_CLUSTER\",\"act\":\"listening\",\"seq\":0}"),
            Ok(IpcMessage::Cluster(Cluster::Listening))
        );
        let handle = b"{\"cmd\":\"NODE_HANDLE\",\"type\":\"net.Socket\",\"msg\":{\"a\":1}}";
        assert_eq!(parse(handle), Ok(IpcMessage::WithHandle(Box::new(IpcMessage::User("{\"a\":1}".into())))));
        let deep = "{\"cmd\":\"NODE_HANDLE\",\"msg\":".repeat(200_000) + "1" + &"}".repeat(200_000);
        assert_eq!(parse(deep.as_bytes()), Ok(IpcMessage::WithHandle(Box::new(IpcMessage::Ignored))));
        for bad in [&b"{"[..], b"", b"\xff", b"{\"cmd\":\"NODE_CLUSTER\",\"seq\":\"x\"}"] {
            assert!(parse(bad).is_err(), "{:?}", String::from_utf8_lossy(bad));
        }
    }

    #[test]
    fn a_query_is_understood_and_its_data_is_nowhere_in_its_debug_text() {
        let text = r#"{"act":"queryServer","address":null,"port":443,"addressType":4,"fd":-1,"flags":0,"index":1,
            "data":{"ticketKeys":"secret"},"cmd":"NODE_CLUSTER","seq":7}"#;
        let Ok(IpcMessage::Cluster(Cluster::Query(query))) = parse(text.as_bytes()) else { panic!() };
        assert_eq!((query.port, query.kind, query.index, query.seq), (443, Kind::Tcp, 1, 7));
        assert!(!format!("{query:?}").contains("secret"));
        let again = String::from_utf8(shared(&query, &query.data, 3)).unwrap();
        assert!(again.contains("\"ticketKeys\":\"secret\"") && again.contains("\"ack\":7"), "{again}");
        assert_ne!(query.key(), Query { index: 2, ..query.clone() }.key());
    }

    #[test]
    fn what_a_program_asks_of_us() {
        assert_eq!(directive("\"ready\"", 0), Directive::Ready);
        let data = r#"{"type":"broadcast","from":2,"data":{"a":[1, 2]}}"#;
        assert_eq!(directive(r#"{"type":"broadcast","data":{"a":[1, 2]}}"#, 2), Directive::Broadcast(data.into()));
        assert_eq!(
            directive(r#"{"slot":1,"type":"to"}"#, 0),
            Directive::To(1, r#"{"type":"to","from":0,"data":null}"#.into())
        );
        let sid = digest(b"lv_VI97HAXpY6yYWAAAC");
        for (text, wanted) in [
            (r#"{"type":"sticky:connection","data":"lv_VI97HAXpY6yYWAAAC"}"#, Directive::Session(Change::Opened(sid))),
            (
                r#"{"data":"lv_VI97HAXpY6yYWAAAC","type":"sticky:disconnection"}"#,
                Directive::Session(Change::Closed(sid)),
            ),
            (r#"{"type":"sticky:connection","data":""}"#, Directive::Nothing),
            (r#"{"type":"sticky:connection","data":7}"#, Directive::Nothing),
            (r#"{"type":"sticky:connection"}"#, Directive::Nothing),
            (r#"{"type":"sticky:http-response","data":"x"}"#, Directive::Nothing),
        ] {
            assert_eq!(directive(text, 0), wanted, "{text}");
        }
        let long = format!(r#"{{"type":"sticky:connection","data":"{}"}}"#, "x".repeat(MAX_NAME + 1));
        assert_eq!(directive(&long, 0), Directive::Nothing);
        for other in ["{}", "3", r#"{"type":"to"}"#, r#"{"type":3}"#, r#"{"type":"process:msg"}"#] {
            assert_eq!(directive(other, 0), Directive::Nothing, "{other}");
        }
    }
}
