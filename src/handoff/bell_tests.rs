//! Rings, and those who might be missed.

use super::*;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use crate::abi::page::row;
use crate::handoff::page::{CountersPage, Rings};
use crate::handoff::{Carries, QueueRx, QueueTx};

#[test]
fn every_ring_is_heard() {
    let (heard, hears) = channel();
    let bell = Bell::hang(move || heard.send(()).unwrap()).unwrap();
    let rope = BellRope::attach(bell.as_fd()).unwrap();
    for _ in 0..100 {
        rope.ring();
        hears.recv_timeout(Duration::from_secs(20)).unwrap();
    }
}

#[test]
fn somebody_else_who_waits_takes_no_ring() {
    let (heard, hears) = channel();
    let bell = Bell::hang(move || heard.send(()).unwrap()).unwrap();
    let rope = BellRope::attach(bell.as_fd()).unwrap();
    const RUNG: u64 = 100;
    for _ in 0..8 {
        let memory = BellRope::attach(bell.as_fd()).unwrap();
        thread::spawn(move || {
            let rings = &memory.0.words()[RINGS];
            while let now @ ..RUNG = rings.load(SeqCst) {
                futex::wait(rings, now as u32);
            }
        });
    }
    for _ in 0..RUNG {
        rope.ring();
        hears.recv_timeout(Duration::from_secs(20)).unwrap();
    }
}

/// Waits for another thread, on whatever CPU that is. False when it has waited for long.
fn spin(until: impl Fn() -> bool) -> bool {
    let begin = Instant::now();
    for n in 1_u32.. {
        if until() {
            return true;
        }
        std::hint::spin_loop();
        if n.is_multiple_of(1 << 12) {
            thread::yield_now();
            if begin.elapsed() > Duration::from_secs(10) {
                return false;
            }
        }
    }
    false
}

/// A line of the CPU's cache.
#[derive(Default)]
#[repr(align(64))]
struct Elsewhere(AtomicU64);

/// The master gives the worker a connection, some time later sets the mark, looks, and sleeps until it hears the bell. The
/// worker acts as soon as it has the connection. Neither waits for the other in between: whatever order their CPUs make
/// visible, the master sees what was done or hears the bell. Runs for a second at most.
fn no_ring_is_lost(
    rounds: u64,
    page: &CountersPage,
    rings: Rings,
    give: impl Fn(),
    act: impl Fn() -> bool + Send,
    is_done: impl Fn(u64) -> bool,
) {
    const END: u64 = u64::MAX;
    let (given, rung) = (AtomicU64::new(0), AtomicU64::new(0));
    let (given, rung) = (&given, &rung);
    // What the other CPU wrote last: stores into it keep those behind them from being visible for a while.
    let elsewhere: [Elsewhere; 40] = std::array::from_fn(|_| Elsewhere::default());
    let write = |round| elsewhere.iter().for_each(|line| line.0.store(round, Relaxed));
    let write = &write;
    let end = Instant::now() + Duration::from_secs(1);
    let (done, lost) = thread::scope(|scope| {
        scope.spawn(move || {
            for round in 1.. {
                if !spin(|| given.load(Acquire) >= round) || given.load(Acquire) == END {
                    return;
                }
                write(round);
                if act() {
                    rung.fetch_add(1, Release);
                }
            }
        });
        let mut lost = false;
        let mut round = 0;
        while round < rounds && !lost && (!round.is_multiple_of(256) || Instant::now() < end) {
            round += 1;
            let mut heard = rung.load(Acquire);
            give();
            write(round);
            given.store(round, Release);
            // At all distances from what the worker does.
            (0..round % 64).for_each(|n| _ = std::hint::black_box(n));
            page.want_room(rings);
            while !lost && !is_done(round) {
                lost = !spin(|| rung.load(Acquire) != heard);
                heard = rung.load(Acquire);
            }
            page.want_room(Rings::Never);
        }
        given.store(END, Release);
        (round, lost)
    });
    assert!(!lost, "in round {done}");
    assert!(done > 100, "{done} rounds");
}

#[test]
fn no_ring_after_a_close_is_lost() {
    let (page, _fd) = CountersPage::create().unwrap();
    page.add(row::PID, 1);
    let close = || {
        page.add(row::CLOSED, 1);
        page.is_room_wanted()
    };
    // Not `closed`, which takes its time before it looks.
    let closed = page.word(0, row::CLOSED);
    let is_closed = |round| closed.load(Acquire) == round;
    no_ring_is_lost(1_000_000, &page, Rings::AfterCloses, || page.add(row::RECEIVED, 1), close, is_closed);
}

#[test]
fn no_ring_after_a_receive_is_lost() {
    let (page, _fd) = CountersPage::create().unwrap();
    let (queue, end) = QueueTx::to_relay(Carries::Sockets).unwrap();
    let end = std::sync::Mutex::new(QueueRx::new(end, Carries::Sockets));
    let receive = || {
        end.lock().unwrap().receive(&mut Vec::new(), &mut Vec::new()).unwrap();
        page.is_receive_awaited()
    };
    let is_received = |_| queue.pending() == 0;
    no_ring_is_lost(1_000_000, &page, Rings::AfterReceives, || queue.send_empty().unwrap(), receive, is_received);
}
