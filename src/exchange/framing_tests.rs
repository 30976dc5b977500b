use super::*;

fn after(direction: Direction, text: &str) -> Framing {
    let mut framing = Framing::NEW;
    framing.add(direction, text.as_bytes(), 10);
    framing
}

#[test]
fn heads_and_ends_are_counted() {
    let post = "POST / HTTP/1.1\r\nContent-Length: 3\r\n\r\n";
    let of = |direction, text: &str| {
        let framing = after(direction, text);
        (framing.heads, framing.ended, framing.is_between(), framing.is_lost())
    };
    assert_eq!(of(Direction::Requests, post), (1, 0, false, false));
    assert_eq!(of(Direction::Requests, &format!("{post}abc{post}ab")), (2, 1, false, false));
    assert_eq!(of(Direction::Requests, &format!("{post}abc{post}abc")), (2, 2, true, false));
    assert_eq!(of(Direction::Requests, &format!("{post}abcd")), (1, 1, false, false));
    let ok = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
    assert_eq!(of(Direction::Answers, &ok.repeat(10)), (10, 10, true, false));
    assert_eq!(of(Direction::Answers, &ok.repeat(11)), (10, 10, false, true));
}

#[test]
fn a_line_keeps_its_beginning_and_its_end() {
    for split in 0..30 {
        let text = b"GET /0123456789012345678901234567890123456789 HTTP/1.1\r\n";
        let mut line = NO_LINE;
        let (first, whole) = line.take(&text[..split]);
        assert!(first == split && !whole);
        assert_eq!(line.take(&text[split..]), (text.len() - split, true));
        assert!(line.is_request() && !line.is_whole() && !line.spoilt, "{split}");
        assert_eq!((line.len, line.first()), (54, &text[..KEPT]));
    }
}

#[test]
fn a_header_has_a_name() {
    let of = |text: &str| {
        let mut line = NO_LINE;
        line.take(text.as_bytes());
        line.header().map(|(name, value)| (name.to_vec(), value.map(<[u8]>::to_vec)))
    };
    assert_eq!(of("A-b: c\r\n"), Some((b"A-b".to_vec(), Some(b" c".to_vec()))));
    assert_eq!(of("A b: c\r\n"), None);
    assert_eq!(of("A : c\r\n"), None);
    assert_eq!(of("A\r\n"), None);
    assert_eq!(of(&format!("{}: c\r\n", "a".repeat(50))).map(|(name, value)| (name.len(), value)), Some((KEPT, None)));
    assert_eq!(of(&format!("{} b: c\r\n", "a".repeat(30))), None);
}
