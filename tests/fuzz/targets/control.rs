//! The control socket's framing and requests: whatever comes, in whatever pieces, is a request, an error or too long.
#![no_main]

use libfuzzer_sys::fuzz_target;
use roundsman::control::Request;
use roundsman::control::requests::Requests;

fuzz_target!(|input: (Vec<u8>, u8)| {
    let (bytes, piece) = input;
    let whole = read(&bytes, bytes.len().max(1));
    let pieces = read(&bytes, usize::from(piece).max(1));
    // How it is cut changes nothing.
    assert_eq!(whole, pieces);
    for request in whole.into_iter().flatten() {
        let line = serde_json::to_vec(&request).expect("a request can be written");
        let again: Request = serde_json::from_slice(&line).expect("and read again");
        assert_eq!(again, request);
    }
});

fn read(bytes: &[u8], piece: usize) -> Vec<Result<Request, String>> {
    let mut requests = Requests::default();
    let mut found = Vec::new();
    for piece in bytes.chunks(piece) {
        if requests.push(piece).is_err() {
            break;
        }
        found.extend(requests.by_ref());
    }
    found
}
