//! Node's channel: whatever a worker writes, in whatever pieces, is a message or an error.
#![no_main]

use libfuzzer_sys::fuzz_target;
use roundsman::lines::Lines;
use roundsman::node::channel::LONGEST;
use roundsman::node::message::{self, Cluster, Heard};

fuzz_target!(|input: (Vec<u8>, u8)| {
    let (bytes, piece) = input;
    let whole = read(&bytes, bytes.len().max(1));
    // How it is cut changes nothing.
    assert_eq!(whole, read(&bytes, usize::from(piece).max(1)));
    for heard in whole.into_iter().flatten() {
        match heard {
            Heard::User(text) => {
                // What is passed on is a line of JSON.
                let meant = message::meant(&text, 0);
                for text in [Some(text), passed(meant)].into_iter().flatten() {
                    let line = message::user(&text);
                    assert_eq!(line.iter().filter(|&&byte| byte == b'\n').count(), 1);
                    serde_json::from_slice::<&serde_json::value::RawValue>(&line).expect("JSON");
                }
            }
            Heard::Cluster(Cluster::Query(query)) => {
                let answer = message::shared(&query, &query.data, 1);
                assert_eq!(answer.iter().filter(|&&byte| byte == b'\n').count(), 1);
            }
            _ => {}
        }
    }
});

fn passed(meant: message::Meant) -> Option<String> {
    match meant {
        message::Meant::Broadcast(text) | message::Meant::To(_, text) => Some(text),
        message::Meant::Ready | message::Meant::Nothing => None,
    }
}

fn read(bytes: &[u8], piece: usize) -> Vec<Result<Heard, String>> {
    let (mut lines, mut found) = (Lines::up_to(LONGEST), Vec::new());
    for piece in bytes.chunks(piece) {
        lines.push(piece).expect("short enough");
        while let Some(line) = lines.next() {
            found.push(message::parse(&line));
        }
    }
    found
}
