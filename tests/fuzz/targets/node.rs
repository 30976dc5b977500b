//! Node's channel: whatever a worker writes, in whatever pieces, is a message or an error.
#![no_main]

use libfuzzer_sys::fuzz_target;
use roundsman::lines::Lines;
use roundsman::node::channel::LONGEST;
use roundsman::node::message::{self, Cluster, Directive, IpcMessage};

fuzz_target!(|input: (Vec<u8>, u8)| {
    let (bytes, piece) = input;
    let whole = read(&bytes, bytes.len().max(1));
    // How it is cut changes nothing.
    assert_eq!(whole, read(&bytes, usize::from(piece).max(1)));
    for heard in whole.into_iter().flatten() {
        match heard {
            IpcMessage::User(text) => {
                // What is passed on is a line of JSON.
                let meant = message::directive(&text, 0);
                for text in [Some(text), passed(meant)].into_iter().flatten() {
                    let line = message::user(&text);
                    assert_eq!(line.iter().filter(|&&byte| byte == b'\n').count(), 1);
                    serde_json::from_slice::<&serde_json::value::RawValue>(&line).expect("JSON");
                }
            }
            IpcMessage::Cluster(Cluster::Query(query)) => {
                let answer = message::shared(&query, &query.data, 1);
                assert_eq!(answer.iter().filter(|&&byte| byte == b'\n').count(), 1);
            }
            _ => {}
        }
    }
});

fn passed(meant: Directive) -> Option<String> {
    match meant {
        Directive::Broadcast(text) | Directive::To(_, text) => Some(text),
        Directive::Ready | Directive::Session(_) | Directive::Nothing => None,
    }
}

fn read(bytes: &[u8], piece: usize) -> Vec<Result<IpcMessage, String>> {
    let (mut lines, mut found) = (Lines::up_to(LONGEST), Vec::new());
    for piece in bytes.chunks(piece) {
        lines.push(piece).expect("short enough");
        while let Some(line) = lines.next() {
            found.push(message::parse(&line));
        }
    }
    found
}
