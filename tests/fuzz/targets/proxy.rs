//! PROXY headers: whatever a balancer sends, in whatever pieces, is judged once and for all.
#![no_main]

use libfuzzer_sys::fuzz_target;
use roundsman::proxy_protocol::{MAX_BYTES, parse};

fuzz_target!(|bytes: &[u8]| {
    let mut judged = None;
    for len in 0..=bytes.len().min(MAX_BYTES + 16) {
        let now = parse(&bytes[..len]);
        match judged {
            None if now == Ok(None) => assert!(len < MAX_BYTES, "{len} bytes and no end"),
            None => judged = Some(now),
            Some(before) => assert_eq!(before, now, "bytes behind a header change it"),
        }
        if let Ok(Some(header)) = now {
            assert!(header.len <= len, "more is taken off than is there");
        }
    }
});
