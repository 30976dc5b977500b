use super::*;

#[test]
fn a_call_waits_until_a_connection_has_left_or_stays() {
    /// No other test uses it.
    const FD: i32 = 60_100;
    assert!(prepare());
    let Some(watched) = at(FD) else { panic!("no room") };
    watched.owner.store(crate::arch::pid(), Relaxed);
    table::received(FD, 1, None, true);
    let after = |act: &(dyn Fn() + Sync)| {
        watched.leaving.store(1, SeqCst);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(std::time::Duration::from_millis(20));
                act();
            });
            enter(FD).map(|entered| entered.is_ok())
        })
    };
    assert_eq!(after(&|| watched.leaving.store(0, SeqCst)), Some(true));
    assert_eq!(after(&|| watched.owner.store(0, SeqCst)), Some(true), "a child goes on");
    watched.owner.store(crate::arch::pid(), Relaxed);
    // Another file may be there.
    let kind = table::going(FD);
    assert_eq!(after(&|| assert!(!table::gone(FD, kind))), None);
    assert_eq!(watched.inside.load(SeqCst), 0);
}

#[test]
fn what_the_kernel_counts() {
    let mut info: TcpInfo = [0; 29];
    (info[16], info[25], info[26], info[18]) = (100, 500, 40, 7 | 9 << 32);
    assert!(of_info(&info, 30) == Some(SoFar { read: 70, written: 467 }));
    assert!(of_info(&info, 101).is_none());
    info[26] = 501;
    assert!(of_info(&info, 0).is_none());
}

#[test]
fn parts_are_taken_as_far_as_they_went() {
    let (one, two) = (*b"abc", *b"defg");
    let part = |bytes: &[u8]| Part { at: bytes.as_ptr() as usize, len: bytes.len() };
    let parts = [part(&one), part(&[]), part(&two)];
    for n in 0..=7 {
        let mut all = Vec::new();
        // SAFETY: they are three, with seven bytes.
        unsafe { each_part(parts.as_ptr(), 3, n, |part| all.extend_from_slice(part)) };
        assert_eq!(all, b"abcdefg"[..n]);
    }
}

/// A watched connection of this process, after one request and its answer.
fn at_rest(fd: i32) -> &'static Watched {
    assert!(prepare());
    let Some(watched) = at(fd) else { panic!("no room") };
    // SAFETY: no other test uses this descriptor's place.
    unsafe { (*watched.exchange.get()).write(Exchange::new(0, 0)) };
    watched.owner.store(crate::arch::pid(), Relaxed);
    watched.generation.store(counts::generation(), Relaxed);
    watched.with(|exchange| {
        exchange.has_read(b"GET / HTTP/1.1\r\n\r\n");
        exchange.has_written(b"HTTP/1.1 204 No Content\r\n\r\n");
    });
    table::received(fd, 1, None, true);
    watched
}

const COUNTED: SoFar = SoFar { read: 18, written: 27 };

#[test]
fn only_the_process_that_received_a_connection_has_it() {
    let watched = at_rest(60_101);
    assert!(watched.is_own());
    watched.generation.store(counts::generation().wrapping_add(2), Relaxed);
    assert!(!watched.is_own(), "a fork has the same pid in a namespace of its own");
    watched.generation.store(counts::generation(), Relaxed);
    watched.owner.store(crate::arch::pid() + 1, Relaxed);
    assert!(!watched.is_own());
}

#[test]
fn what_was_not_seen_keeps_a_connection() {
    let watched = at_rest(60_102);
    assert!(watched.may_move() && watched.is_at_rest(COUNTED));
    assert!(
        !watched.is_at_rest(SoFar { read: 19, ..COUNTED }) && !watched.is_at_rest(SoFar { written: 28, ..COUNTED })
    );
    let inside = enter(60_102);
    assert!(!watched.may_move(), "a thread uses it");
    drop(inside);
    assert!(watched.may_move());
    watched.busy.store(1, SeqCst);
    assert!(!watched.may_move(), "another thread reads or writes at this moment");
    watched.busy.store(0, SeqCst);
    assert!(!watched.may_move() && !watched.is_at_rest(COUNTED), "and who came first nobody knows");
}

#[test]
fn unusual_calls_lose_a_connection() {
    for flags in [MSG_OOB, MSG_TRUNC, MSG_ERRQUEUE, MSG_ZEROCOPY, MSG_FASTOPEN] {
        let watched = at_rest(60_103);
        watched.lost.store(0, SeqCst);
        let Some(Ok(inside)) = enter(60_103) else { panic!("not watched") };
        assert!(inside.moved(-1, flags).is_none() && watched.lost.load(SeqCst) == 0, "it failed");
        assert!(inside.moved(3, flags).is_none() && watched.lost.load(SeqCst) == 1, "{flags:x}");
    }
    let watched = at_rest(60_103);
    watched.lost.store(0, SeqCst);
    lose(60_103);
    assert!(!watched.may_move());
}

#[test]
fn nothing_that_was_only_looked_at_counts_as_read() {
    let watched = at_rest(60_104);
    let Some(Ok(inside)) = enter(60_104) else { panic!("not watched") };
    let bytes = *b"GET";
    // SAFETY: the bytes lie there.
    unsafe { inside.read(3, bytes.as_ptr() as usize, MSG_PEEK) };
    assert!(watched.is_at_rest(COUNTED));
    // SAFETY: as above.
    unsafe { inside.read(3, bytes.as_ptr() as usize, 0) };
    assert!(!watched.is_at_rest(SoFar { read: 21, ..COUNTED }), "the next request has begun");
}
