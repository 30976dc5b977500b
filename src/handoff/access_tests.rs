#![allow(clippy::unwrap_used)]
use super::*;
use crate::abi::access::{ALL, Closed, NONE, Place, Received};
use crate::handoff::bell::Bell;
use std::os::fd::AsFd;

fn received(id: u32) -> Received {
    let client = Place { len: 16, bytes: std::array::from_fn(|at| at as u8) };
    Received { pid: 7, fd: 8, id, listener: 9, accepted: 10, received: 11, client }
}

fn closed(id: u32) -> Closed {
    let address = Place { len: 28, bytes: [5; 28] };
    let (bytes_in, bytes_out) = (u64::MAX, 6);
    Closed { id, end: 2, closed: 3, bytes_in, bytes_out, rtt: 4, retransmits: NONE, connect: 7, upstream: 8, address }
}

fn ring(share: u64) -> (AccessReader, AccessWriter) {
    let (reader, file) = AccessReader::create(share).unwrap();
    let bell = Bell::hang(|| {}).unwrap();
    (reader, AccessWriter::attach(file.as_fd(), bell.as_fd()).unwrap())
}

#[test]
fn what_was_written_is_read_once() {
    let (mut reader, writer) = ring(ALL);
    for round in 0..3 * RECORDS {
        let id = writer.received(1, received).unwrap();
        writer.closed(closed(id));
        let taken = reader.take();
        assert_eq!(taken.records, [Record::Received(received(id)), Record::Closed(closed(id))], "{round}");
        assert_eq!(reader.take(), Taken::default());
    }
}

#[test]
fn a_full_ring_takes_nothing_and_counts() {
    let (mut reader, writer) = ring(ALL);
    for _ in 0..RECORDS + 10 {
        writer.closed(closed(1));
    }
    let taken = reader.take();
    assert_eq!((taken.records.len() as u64, taken.lost), (RECORDS, 10));
    writer.closed(closed(1));
    let taken = reader.take();
    assert_eq!((taken.records.len(), taken.lost), (1, 0));
}

#[test]
fn an_unfinished_record_is_passed_over_after_a_while_and_a_late_writer_spoils_at_most_one() {
    let (mut reader, writer) = ring(ALL);
    let memory = Ring(writer.memory.words());
    let late = memory.claim().unwrap();
    writer.closed(closed(2));
    for _ in 0..MAX_WAITS {
        assert_eq!(reader.take(), Taken { unfinished: true, ..Taken::default() });
    }
    let taken = reader.take();
    assert_eq!((taken.records, taken.lost), (vec![Record::Closed(closed(2))], 1));
    // The writer goes on when another one has the place.
    for _ in 2..RECORDS {
        writer.closed(closed(3));
    }
    reader.take();
    writer.closed(closed(4));
    let _ = memory.write(late, &Record::Closed(closed(5)));
    writer.closed(closed(6));
    let all: Vec<Taken> = (0..=MAX_WAITS).map(|_| reader.take()).collect();
    let records: Vec<&Record> = all.iter().flat_map(|taken| &taken.records).collect();
    assert_eq!(records, [&Record::Closed(closed(6))]);
    assert_eq!(all.iter().map(|taken| taken.lost).sum::<u64>(), 1);
}

#[test]
fn a_share_is_drawn() {
    for (percent, from, to) in [(10, 800, 1200), (50, 4700, 5300)] {
        let (mut reader, writer) = ring(ALL / 100 * percent);
        let mut drawn = 0;
        for at in 0..10_000 {
            drawn += u32::from(writer.received(1_000_000 + at * 997, received).is_some());
            reader.take();
        }
        assert!((from..to).contains(&drawn), "{drawn} of 10000 at {percent}%");
    }
}

#[test]
fn whatever_lies_in_the_memory_is_bounded_and_counted() {
    let (mut reader, writer) = ring(ALL);
    let words = writer.memory.words();
    let mut seed = 1u64;
    let mut random = || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        seed ^ (seed >> 29)
    };
    let mut lost = 0u64;
    for _ in 0..200 {
        for word in words {
            word.store(random(), std::sync::atomic::Ordering::Relaxed);
        }
        let taken = reader.take();
        assert!(taken.records.len() as u64 <= RECORDS);
        lost += taken.lost;
    }
    assert!(lost >= 200, "{lost}");
    // Records whose checksum is right, of kinds that are none, or with any contents.
    words[0].store(reader.tail, std::sync::atomic::Ordering::Relaxed);
    words[8].store(reader.tail, std::sync::atomic::Ordering::Relaxed);
    let before = reader.take().lost;
    assert!(before <= MAX_LOST);
    writer.closed(closed(1));
    assert_eq!(reader.take().records.len(), 1, "the ring is of use again");
}
