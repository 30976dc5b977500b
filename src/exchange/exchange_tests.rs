use super::*;

const GET: &str = "GET / HTTP/1.1\r\nHost: x\r\n\r\n";
const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
const PIECES: &str = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n";

/// What happens on a connection, in its order.
#[derive(Clone, Copy, Debug)]
enum Step<'a> {
    Reads(&'a str),
    Writes(&'a str),
}
use Step::{Reads, Writes};

fn after(steps: &[Step], split: impl Fn(&[u8]) -> Vec<Vec<u8>>) -> Exchange {
    let mut exchange = Exchange::new(7, 0);
    for step in steps {
        match step {
            Reads(text) => split(text.as_bytes()).iter().for_each(|part| exchange.has_read(part)),
            Writes(text) => split(text.as_bytes()).iter().for_each(|part| exchange.has_written(part)),
        }
    }
    exchange
}

/// However the bytes are split, the result is the same.
fn is_at_rest(steps: &[Step]) -> bool {
    let whole = after(steps, |bytes| vec![bytes.to_vec()]);
    let each = after(steps, |bytes| bytes.iter().map(|&byte| vec![byte]).collect());
    assert_eq!(whole.is_at_rest(), each.is_at_rest(), "{steps:?} byte by byte");
    assert_eq!((whole.read, whole.written), (each.read, each.written));
    let text = |step: &Step| match step {
        Reads(text) | Writes(text) => text.len(),
    };
    let longest = steps.iter().map(text).max().unwrap_or(0);
    for at in 1..longest {
        let split = after(steps, |bytes| {
            let at = at.min(bytes.len());
            vec![bytes[..at].to_vec(), bytes[at..].to_vec()]
        });
        assert_eq!(whole.is_at_rest(), split.is_at_rest(), "{steps:?} split at {at}");
    }
    whole.is_at_rest()
}

fn post(body: &str) -> String {
    format!("POST /a?b=c HTTP/1.1\r\nHost: x\r\ncontent-length:\t{} \r\n\r\n{body}", body.len())
}

#[test]
fn between_two_requests_it_can_go_on_elsewhere() {
    let (post, empty) = (post("GET /evil HTTP/1.1\r\n\r\n"), post(""));
    let chunked = "POST / HTTP/1.1\r\nTransfer-Encoding: Chunked\r\nConnection: Keep-Alive\r\n\r\n5\r\nGET /\r\n1\r\n \r\n0\r\n\r\n";
    let long =
        format!("GET /{} HTTP/1.1\r\nCookie: {}\r\nX-{}: 1\r\n\r\n", "x".repeat(900), "y".repeat(900), "z".repeat(50));
    for request in [GET, &post, &empty, chunked, &long, "OPTIONS * HTTP/1.1\r\n\r\n", "GET http://a/ HTTP/1.1\r\n\r\n"]
    {
        for answer in [
            OK,
            PIECES,
            "HTTP/1.1 204 No Content\r\n\r\n",
            "HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n",
            "HTTP/1.1 200\r\nContent-Length: 0\r\nConnection: keep-alive\r\nKeep-Alive: timeout=5\r\n\r\n",
            "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 404 Not Found\r\nContent-Length: 1\r\n\r\n-",
            "HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Basic realm=\"x\"\r\nContent-Length: 0\r\n\r\n",
        ] {
            assert!(is_at_rest(&[Reads(request), Writes(answer)]), "{request:?} {answer:?}");
            assert!(is_at_rest(&[Reads(GET), Writes(OK), Reads(request), Writes(answer)]), "{request:?} {answer:?}");
        }
    }
    // Both of two requests that came together were answered, together or one by one.
    let two = GET.repeat(2);
    assert!(is_at_rest(&[Reads(&two), Writes(&OK.repeat(2))]));
    assert!(is_at_rest(&[Reads(&two), Writes(OK), Writes(PIECES)]));
    // Answered before the body came.
    assert!(is_at_rest(&[Reads(&post[..post.len() - 4]), Writes(OK), Reads(&post[post.len() - 4..])]));
}

#[test]
fn an_answer_that_is_not_complete_keeps_it() {
    for answer in [
        "",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\no",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok!",
        "HTTP/1.1 100 Continue\r\n\r\n",
        // SSE, cut by the server.
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nTrailer: x\r\n",
        // The last five bytes of a chunk are not the end.
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n0\r\n\r\n",
    ] {
        assert!(!is_at_rest(&[Reads(GET), Writes(answer)]), "{answer:?}");
    }
}

#[test]
fn answers_that_end_or_change_the_connection_keep_it() {
    for answer in [
        "HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
        "HTTP/1.1 200 OK\r\n\r\nok",
        "HTTP/1.1 200 OK\r\n\r\n",
        "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok",
        "HTTP/1.1 200 OK\r\nConnection: keep-alive, close\r\nContent-Length: 2\r\n\r\nok",
        "HTTP/1.1 200 OK\r\nConnection: keep-alive                                   , close\r\nContent-Length: 2\r\n\r\nok",
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 600 Unknown\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nok",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nTrailer: x\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;x=y\r\na\r\n0\r\n\r\n",
        "HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n",
        "HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: NTLM\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 401 Unauthorized\r\nwww-authenticate: negotiate abc\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 200 OK\nContent-Length: 2\n\nok",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n folded\r\n\r\nok",
        "HTTP/1.1 200 OK\r\nContent-Length: +2\r\n\r\nok",
        "HTTP/1.1 200 OK\r\nContent-Length : 2\r\n\r\nok",
        "HTTP/2 200\r\nContent-Length: 2\r\n\r\nok",
        "+PONG\r\n",
        "\x15\x03\x03\x00\x02\x01\x00",
    ] {
        assert!(!is_at_rest(&[Reads(GET), Writes(answer)]), "{answer:?}");
        // For good.
        assert!(!is_at_rest(&[Reads(GET), Writes(answer), Reads(GET), Writes(OK)]), "{answer:?}");
    }
    // More answers than requests.
    assert!(!is_at_rest(&[Reads(GET), Writes(OK), Writes(OK)]));
    assert!(!is_at_rest(&[Writes(OK), Reads(GET)]));
    assert!(!is_at_rest(&[Writes("HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n")]));
    assert!(!is_at_rest(&[Reads(GET), Writes(OK), Writes("HTTP/1.1 100 Continue\r\n\r\n")]));
}

#[test]
fn a_request_that_was_begun_keeps_it() {
    let post = post("GET /evil HTTP/1.1\r\nHost: x\r\n\r\n");
    for at in 1..post.len() {
        assert!(!is_at_rest(&[Reads(&post[..at])]), "{at}");
        assert!(!is_at_rest(&[Reads(GET), Writes(OK), Reads(&post[..at])]), "{at}");
        // Answered before it was read.
        assert!(!is_at_rest(&[Reads(GET), Writes(OK), Reads(&post[..at]), Writes(OK)]), "{at}");
    }
    let two = GET.repeat(2);
    assert!(!is_at_rest(&[Reads(&two), Writes(OK)]));
    assert!(!is_at_rest(&[Reads(&two[..two.len() - 1]), Writes(OK)]));
    assert!(!is_at_rest(&[Reads(GET), Writes(OK), Reads(GET)]));
    assert!(!is_at_rest(&[Reads(GET), Writes(OK), Reads("\r")]));
    assert!(!is_at_rest(&[Reads(GET), Writes(OK), Writes("\r")]));
    assert!(!is_at_rest(&[]));
}

#[test]
fn what_is_no_plain_request_keeps_it() {
    for request in [
        "PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\nGET / HTTP/1.1\r\n\r\n",
        "\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "PRI * HTTP/1.1\r\n\r\n",
        "PING\r\n",
        "*1\r\n$4\r\nPING\r\n",
        "\x16\x03\x01\x02\0\x01\0\x01\x7c\x03\x03",
        "\r\nGET / HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.0\r\n\r\n",
        "GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
        "GET /\r\n",
        "GET  / HTTP/1.1\r\n\r\n",
        "GET /a b HTTP/1.1\r\n\r\n",
        "GET /\tHTTP/1.1\r\n\r\n",
        "GET\t/ HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.1 \r\n\r\n",
        "get / HTTP/1.1\r\n\r\n",
        "GET x HTTP/1.1\r\n\r\n",
        "POST / HTTP/1.1\r\nContent_Length: 5\r\n\r\n",
        "POST / HTTP/1.1\r\nTransfer_Encoding: chunked\r\n\r\n",
        "HEAD / HTTP/1.1\r\n\r\n",
        "CONNECT a:1 HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.1\nHost: x\n\n",
        "GET / HTTP/1.1\r\nHost: x\r\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: x\ry\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: \0\r\n\r\n",
        "GET / HTTP/1.1\r\nHost\r\n\r\n",
        "GET / HTTP/1.1\r\n: x\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: x\r\n y\r\n\r\n",
        "GET / HTTP/1.1\r\nConnection: close\r\n\r\n",
        "GET / HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
        "GET / HTTP/1.1\r\nAuthorization: NTLM TlRMTVNTUAABAAAAB4IIogAAAAAAAAAAAAAAAAAAAAAGAbEd\r\n\r\n",
        "GET / HTTP/1.1\r\nAuthorization: Negotiate YII\r\n\r\n",
        "POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n-",
        "POST / HTTP/1.1\r\nContent-Length: 1, 1\r\n\r\n-",
        "POST / HTTP/1.1\r\nContent-Length: 0x1\r\n\r\n-",
        "POST / HTTP/1.1\r\nContent-Length:\r\n\r\n",
        "POST / HTTP/1.1\r\nContent-Length: 1                                              \r\n\r\n-",
        "POST / HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\n-",
        "POST / HTTP/1.1\r\nContent_Length: 1\r\n\r\n-",
        "POST / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nTransfer-Encoding: identity\r\n\r\n",
        "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\na\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nab\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n",
        "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n\r\n",
        "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0 \r\n\r\n",
    ] {
        assert!(!is_at_rest(&[Reads(request)]), "{request:?}");
        assert!(!is_at_rest(&[Reads(request), Writes(OK)]), "{request:?}");
        assert!(!is_at_rest(&[Reads(GET), Writes(OK), Reads(request), Writes(OK)]), "{request:?}");
        assert!(!is_at_rest(&[Reads(request), Writes(OK), Reads(GET), Writes(OK)]), "{request:?}");
    }
}

#[test]
fn a_file_s_bytes_count_only_within_a_body() {
    let with_head = |head: &str, unseen: u64| {
        let mut exchange = after(&[Reads(GET), Writes(head)], |bytes| vec![bytes.to_vec()]);
        exchange.has_written_unseen(unseen);
        assert_eq!(exchange.written, head.len() as u64 + unseen);
        exchange.is_at_rest()
    };
    let head = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n";
    assert!(with_head(head, 5) && !with_head(head, 4) && !with_head(head, 6));
    assert!(with_head(&format!("{head}12"), 3));
    assert!(!with_head("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n", 7));
    assert!(!with_head("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", 5));
}

#[test]
fn a_connection_that_went_on_here_may_go_on_unused() {
    assert!(!Exchange::new(100, 0).is_at_rest(), "a child may have it");
    let mut resumed = Exchange::new(100, 50);
    assert!(resumed.is_at_rest());
    resumed.has_read(b"G");
    assert!(!resumed.is_at_rest());
}

/// Any bytes, split in any way: never a panic, and the same result as whole.
#[test]
fn random_bytes_split_at_random_give_the_same() {
    let mut state = 88_172_645_463_325_252_u64;
    let mut random = move |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % below as u64) as usize
    };
    let chunked = "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nGET /\r\n0\r\n\r\n";
    let seeds = [GET.to_owned(), post("GET / HTTP/1.1\r\n\r\n"), chunked.to_owned()].map(String::into_bytes);
    for _ in 0..20_000 {
        let mut bytes: Vec<u8> = (0..1 + random(3)).flat_map(|_| seeds[random(seeds.len())].clone()).collect();
        for _ in 0..random(3) {
            let at = random(bytes.len());
            match random(3) {
                0 => bytes[at] = b"\r\n :\t0G\x80"[random(8)],
                1 => bytes.truncate(at + 1),
                _ => bytes.insert(at, b"\r\n :\t1HX"[random(8)]),
            }
        }
        let (mut whole, mut split) = (Exchange::new(0, 1), Exchange::new(0, 1));
        whole.has_read(&bytes);
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let (part, behind) = rest.split_at(1 + random(rest.len()));
            split.has_read(part);
            rest = behind;
        }
        let of = |one: &Exchange| {
            (one.requests.is_lost(), one.requests.heads, one.requests.ended, one.requests.is_between())
        };
        assert_eq!(of(&whole), of(&split), "{:?}", String::from_utf8_lossy(&bytes));
    }
}

#[test]
fn the_rest_of_a_body_need_not_be_seen() {
    let mut exchange = Exchange::new(0, 0);
    assert!(exchange.is_unused() && exchange.unread(Direction::Requests) == 0);
    exchange.has_read(b"POST / HTTP/1.1\r\nContent-Length: 100\r\n\r\n12345");
    assert!(!exchange.is_unused() && exchange.unread(Direction::Requests) == 95);
    exchange.has_read_unseen(95);
    assert_eq!((exchange.unread(Direction::Requests), exchange.read), (0, 40 + 100));
    exchange.has_written(PIECES.split_at(PIECES.len() - 5).0.as_bytes());
    assert!(exchange.is_streaming() && !exchange.is_at_rest());
    exchange.has_written(b"0\r\n\r\n");
    assert!(!exchange.is_streaming() && exchange.is_at_rest() && !exchange.is_lost());
    // One byte that is more than the body.
    exchange.has_read(b"POST / HTTP/1.1\r\nContent-Length: 1\r\n\r\n");
    exchange.has_read_unseen(2);
    assert!(exchange.is_lost() && exchange.unread(Direction::Answers) == u64::MAX);
}
