//! The first bytes of a connection whose key is looked for: any, in any pieces, are judged once and for all.
#![no_main]

use libfuzzer_sys::fuzz_target;
use roundsman::affinity::HashOn;
use roundsman::affinity::head::{Found, MAX_BYTES, find};

fuzz_target!(|bytes: &[u8]| {
    for on in ["cookie:a", "query:a", "header:a", "socket.io"] {
        let Ok(on) = on.parse::<HashOn>() else { return };
        let mut answer = Found::NeedsMore;
        for len in 0..=bytes.len().min(MAX_BYTES + 16) {
            let now = find(&on, &bytes[..len]);
            match answer {
                Found::NeedsMore => assert!(len < MAX_BYTES || now != Found::NeedsMore, "{len} bytes and no end"),
                answer => assert_eq!(answer, now, "bytes behind a head change it"),
            }
            answer = now;
        }
    }
});
