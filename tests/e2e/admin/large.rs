//! Mostly waits: requests that are larger than any that this answers.

use std::io::Write;
use std::net::TcpStream;
use std::time::Instant;

use super::streams::daemon;
use crate::support::{read_all, seconds};

const SIZE: usize = 64 * 1024;

/// The status and the text of what a client gets that sends all of its request first.
fn ask(admin: u16, request: &[u8]) -> (u16, String) {
    let mut stream = TcpStream::connect(("127.0.0.1", admin)).unwrap();
    stream.set_read_timeout(Some(seconds(15))).unwrap();
    // It may be closed before all was read.
    let _ = stream.write_all(request);
    let text = String::from_utf8_lossy(&read_all(&mut stream).unwrap_or_default()).into_owned();
    let status = text.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    (status, text)
}

#[test]
fn requests_of_64_kib_are_answered_with_what_is_too_large() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("token");
    std::fs::write(&path, "correct-horse-battery\n").unwrap();
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let (daemon, admin) = daemon(&["--admin-token-file", path.to_str().unwrap()]);
    let long = "x".repeat(SIZE);
    let host = "Host: localhost\r\n";
    let right = "Authorization: Bearer correct-horse-battery\r\nContent-Type: application/json\r\n";
    let json = format!("{{\"cmd\":\"reload\",\"service\":\"{long}\"}}");
    let many: String = (0..SIZE / 64).map(|at| format!("X-{at:05}: {}\r\n", "y".repeat(54))).collect();
    let post = |headers: &str, body: &str| format!("POST /control HTTP/1.1\r\n{host}{right}{headers}\r\n{body}");
    let requests = [
        (431, "a header", format!("GET /livez HTTP/1.1\r\n{host}X-Long: {long}\r\n\r\n")),
        (431, "many headers", format!("GET /livez HTTP/1.1\r\n{host}{many}\r\n")),
        (431, "a token", format!("GET /events HTTP/1.1\r\n{host}Authorization: Bearer {long}\r\n\r\n")),
        (431, "a path", format!("GET /{long} HTTP/1.1\r\n{host}\r\n")),
        (431, "a method", format!("{long} / HTTP/1.1\r\n{host}\r\n")),
        (413, "a body", post(&format!("Content-Length: {}\r\n", json.len()), &json)),
        (413, "chunks", post("Transfer-Encoding: chunked\r\n", &format!("{:x}\r\n{json}\r\n0\r\n\r\n", json.len()))),
        (413, "a length", post("Content-Length: 9000000000\r\n", "{")),
    ];
    let begin = Instant::now();
    for (wanted, what, request) in &requests {
        let (status, text) = ask(admin, request.as_bytes());
        assert_eq!(status, *wanted, "{what}: {}", text.chars().take(500).collect::<String>());
        assert!(text.len() < 1000, "{what}: {} bytes", text.len());
    }
    // A client without the token is refused whatever it sends.
    let stranger = format!("POST /control HTTP/1.1\r\n{host}Content-Length: {}\r\n\r\n{json}", json.len());
    assert_eq!(ask(admin, stranger.as_bytes()).0, 401);
    assert!(begin.elapsed() < seconds(8), "none of them waits for more: {:?}", begin.elapsed());
    let small = "{\"cmd\":\"reload\",\"service\":\"no\"}";
    let small = post(&format!("Content-Length: {}\r\n", small.len()), small);
    assert_eq!(ask(admin, small.as_bytes()).0, 409);
    // Many at once, and a probe beside them.
    let (_, _, header) = &requests[0];
    let (_, _, body) = &requests[5];
    std::thread::scope(|scope| {
        for at in 0..40 {
            scope.spawn(move || ask(admin, if at % 2 == 0 { header } else { body }.as_bytes()));
        }
        let probe = format!("GET /livez HTTP/1.1\r\n{host}\r\n");
        assert_eq!(ask(admin, probe.as_bytes()).0, 200);
    });
    let rss = roundsman::sys::process::rss_bytes(daemon.pid());
    assert!(rss < 40 << 20, "{rss}");
    assert!(daemon.slots().iter().all(|slot| slot["generation"] == 1));
}
