use proptest::prelude::*;

use super::*;

fn on(text: &str) -> HashOn {
    text.parse().unwrap()
}

fn request(target: &str, headers: &str) -> Vec<u8> {
    format!("GET {target} HTTP/1.1\r\nHost: x\r\n{headers}\r\n").into_bytes()
}

fn found(key: &str) -> Found {
    Found::Key(digest(key.as_bytes()))
}

const ABSENT: Found = Found::NoKey(NoKey::Absent);

#[test]
fn cookies_are_found_by_their_exact_name() {
    for (headers, wanted) in [
        ("Cookie: route=a\r\n", found("a")),
        ("cookie:route=a\r\n", found("a")),
        ("COOKIE: x=1; route=a; y=2\r\n", found("a")),
        ("Cookie: x=1;route=a\r\n", found("a")),
        ("Cookie: route = a \r\n", found("a")),
        ("Cookie: route=\"a\"\r\n", found("a")),
        ("Cookie: route=\"a\r\n", found("\"a")),
        ("Cookie: route=a=b==\r\n", found("a=b==")),
        ("Cookie: x=1\r\nCookie: route=a\r\n", found("a")),
        ("Cookie: route=\r\nCookie: route=a\r\n", found("a")),
        ("Cookie: route=a\r\nCookie: route=b\r\n", found("a")),
        ("Cookie: route=; route=\"\"; route=a\r\n", found("a")),
        ("Cookie: route=\"\"\r\n", ABSENT),
        ("Cookie: route=\r\n", ABSENT),
        ("Cookie: Route=a\r\n", ABSENT),
        ("Cookie: xroute=a; route2=b\r\n", ABSENT),
        ("Cookie: x=route=a\r\n", ABSENT),
        ("Cookie: route\r\n", ABSENT),
        ("Set-Cookie: route=a\r\n", ABSENT),
        ("X: Cookie: route=a\r\n", ABSENT),
        ("", ABSENT),
    ] {
        assert_eq!(find(&on("cookie:route"), &request("/?route=z", headers)), wanted, "{headers}");
    }
}

#[test]
fn parameters_are_compared_as_they_are_written() {
    for (target, wanted) in [
        ("/?tenant=a", found("a")),
        ("/x/y?a=b&tenant=a&c=d", found("a")),
        ("http://example.org:80/x?tenant=a", found("a")),
        ("/?tenant=a%20b+c", found("a%20b+c")),
        ("/?tenant=a?b=c", found("a?b=c")),
        ("/?tenant=&tenant=a", found("a")),
        ("/?tenant=a&tenant=b", found("a")),
        ("/?%74enant=a", ABSENT),
        ("/?Tenant=a", ABSENT),
        ("/?xtenant=a&tenantx=a", ABSENT),
        ("/?tenant", ABSENT),
        ("/?tenant=", ABSENT),
        ("/tenant=a", ABSENT),
        ("/", ABSENT),
        ("*", ABSENT),
        ("http://example.org", ABSENT),
    ] {
        assert_eq!(find(&on("query:tenant"), &request(target, "Cookie: tenant=z\r\n")), wanted, "{target}");
    }
    assert_eq!(find(&on("query:t[id]"), &request("/?t[id]=7", "")), found("7"));
}

#[test]
fn headers_are_found_in_any_case() {
    for (headers, wanted) in [
        ("Authorization: Bearer x\r\n", found("Bearer x")),
        ("AUTHORIZATION:Bearer x  \r\n", found("Bearer x")),
        ("authorization:\r\nAuthorization: a\r\n", found("a")),
        ("Authorization: a\r\nAuthorization: b\r\n", found("a")),
        ("Authorization: \u{e9}\r\n", found("\u{e9}")),
        ("Authorization:  \r\n", ABSENT),
        ("X-Authorization: a\r\n", ABSENT),
    ] {
        assert_eq!(find(&on("header:authorization"), &request("/", headers)), wanted, "{headers}");
    }
}

#[test]
fn a_session_of_socket_io_is_one_only_beside_its_transport() {
    let on = on("socket.io");
    let target = "/socket.io/?EIO=4&transport=polling&t=O1x&sid=lv_VI97HAXpY6yYWAAAC";
    assert_eq!(find(&on, &request(target, "")), found("lv_VI97HAXpY6yYWAAAC"));
    assert_eq!(find(&on, &request("/socket.io/?EIO=4&transport=polling", "")), ABSENT);
    assert_eq!(find(&on, &request("/page?sid=lv_VI97HAXpY6yYWAAAC", "")), ABSENT);
    // An app may make the names of its sessions itself.
    for (written, name) in
        [("user%3a7%3A%20", "user:7: "), ("%", "%"), ("%3", "%3"), ("%zz%+", "%zz%+"), ("%25%33%41", "%3A")]
    {
        assert_eq!(find(&on, &request(&format!("/?transport=polling&sid={written}"), "")), found(name), "{written}");
    }
}

#[test]
fn others_are_named() {
    let long = |bytes: usize| {
        let head = request("/", "A: \r\n").len();
        request("/", &format!("A: {}\r\n", "x".repeat(bytes - head)))
    };
    let many = |count: usize| request("/", &"A: b\r\n".repeat(count - 1));
    let cases: &[(&str, Vec<u8>, Found)] = &[
        ("nothing", vec![], Found::NeedsMore),
        ("the first line", b"GET / HTTP/1.1\r\n".to_vec(), Found::NeedsMore),
        ("all but the end", request("/", "")[..request("/", "").len() - 1].to_vec(), Found::NeedsMore),
        ("HTTP/1.0", b"GET / HTTP/1.0\r\n\r\n".to_vec(), ABSENT),
        ("bare line feeds", b"GET / HTTP/1.1\nA: b\n\n".to_vec(), ABSENT),
        ("empty lines before", b"\r\n\r\nGET / HTTP/1.1\r\n\r\n".to_vec(), ABSENT),
        ("a body", [request("/", ""), vec![0; 20_000]].concat(), ABSENT),
        ("TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec(), Found::NoKey(NoKey::Tls)),
        ("HTTP/2", HTTP2.to_vec(), Found::NoKey(NoKey::Http2)),
        ("HTTP/2 with frames", [HTTP2, &[0; 9]].concat(), Found::NoKey(NoKey::Http2)),
        ("a part of HTTP/2's", b"PRI * HT".to_vec(), Found::NeedsMore),
        ("a longer part", b"PRI * HTTP/2.0\r\n\r\nSM".to_vec(), Found::NeedsMore),
        ("HTTP/2 in a request", b"GET / HTTP/2.0\r\n\r\n".to_vec(), Found::NoKey(NoKey::NotHttp)),
        ("HTTP/0.9", b"GET /\r\n".to_vec(), Found::NoKey(NoKey::NotHttp)),
        ("Redis", b"*1\r\n$4\r\nPING\r\n".to_vec(), Found::NoKey(NoKey::NotHttp)),
        ("SSH", b"SSH-2.0-OpenSSH_9.2\r\n".to_vec(), Found::NoKey(NoKey::NotHttp)),
        ("NUL", b"\0".to_vec(), Found::NoKey(NoKey::NotHttp)),
        ("NUL in a header", request("/", "A: \0\r\n"), Found::NoKey(NoKey::NotHttp)),
        ("a header with a space", request("/", "A : b\r\n"), Found::NoKey(NoKey::NotHttp)),
        ("a folded header", request("/", "Cookie: a=b;\r\n route=c\r\n"), Found::NoKey(NoKey::NotHttp)),
        ("not UTF-8", b"GET /\xff HTTP/1.1\r\n\r\n".to_vec(), Found::NoKey(NoKey::NotHttp)),
        ("a long method", vec![b'A'; MAX_BYTES], Found::NoKey(NoKey::TooLarge)),
        ("16 KiB", long(MAX_BYTES), ABSENT),
        ("a byte more", long(MAX_BYTES + 1), Found::NoKey(NoKey::TooLarge)),
        ("that without its last byte", long(MAX_BYTES + 1)[..MAX_BYTES].to_vec(), Found::NoKey(NoKey::TooLarge)),
        ("128 headers", many(128), ABSENT),
        ("129 headers", many(129), Found::NoKey(NoKey::TooLarge)),
    ];
    for (what, bytes, wanted) in cases {
        assert_eq!(find(&on("cookie:route"), bytes), *wanted, "{what}");
    }
    // The first line is enough for what stands in it.
    assert_eq!(find(&on("query:a"), b"GET /?a=b HTTP/1.1\r"), found("b"));
    assert_eq!(find(&on("query:a"), b"GET /?a=b HTTP/1."), Found::NeedsMore);
}

fn all() -> impl Strategy<Value = HashOn> {
    prop::sample::select(vec![on("cookie:a"), on("query:a"), on("header:a"), on("socket.io")])
}

proptest! {
    /// A request in pieces has the answer of the whole, and no answer is taken back.
    #[test]
    fn pieces_change_nothing(
        on in all(),
        bytes in "(GET|P|PRI) [/*][?a=b&]{0,9} HTTP/[12]\\.[01]\r?\n((a|Cookie|A): ?[a=b;\" ]{0,9}\r?\n){0,4}\r?\n?[a-c\\x00]{0,9}",
        flip in prop::option::of((any::<prop::sample::Index>(), any::<u8>())),
    ) {
        let mut bytes = bytes.into_bytes();
        if let Some((at, byte)) = flip {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        let mut answer = Found::NeedsMore;
        for len in 0..=bytes.len() {
            let now = find(&on, &bytes[..len]);
            prop_assert!(answer == Found::NeedsMore || now == answer, "{answer:?} became {now:?} at {len}");
            answer = now;
        }
    }

    #[test]
    fn anything_is_judged(on in all(), bytes in prop::collection::vec(any::<u8>(), 0..64)) {
        let long: Vec<u8> = bytes.iter().copied().chain([b'a']).cycle().take(MAX_BYTES).collect();
        prop_assert_ne!(find(&on, &long), Found::NeedsMore);
    }
}
