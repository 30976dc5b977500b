use super::*;
use crate::abi::payload::Endpoint;
use crate::abi::translations::{PLACES, Translation, Translations};

/// As a process of a worker maps it.
fn record_memory() -> (SharedPage, TranslationsFile) {
    let file = TranslationsFile::create().unwrap();
    (SharedPage::map_sized(file.as_fd(), FILE_BYTES).unwrap(), file)
}

fn endpoint(n: u64, len: u16) -> Endpoint {
    let mut address = [0; 28];
    address[..8].copy_from_slice(&n.to_ne_bytes());
    address[20..].copy_from_slice(&n.rotate_left(7).to_ne_bytes());
    Endpoint { len, address }
}

fn translation(n: u64) -> Translation {
    Translation { client: endpoint(n, 16), destination: endpoint(!n, 28) }
}

fn is_there(record: Translations<'_>, n: u64) -> bool {
    let Some(found) = record.get(n) else { return false };
    let expected = translation(n);
    assert_eq!((found.client.len, found.client.address), (16, expected.client.address), "{n}");
    assert_eq!((found.destination.len, found.destination.address), (28, expected.destination.address), "{n}");
    true
}

#[test]
fn as_many_as_there_are_places_for_are_known_and_the_rest_is_counted() {
    let (memory, _file) = record_memory();
    let record = Translations(memory.words());
    let count = PLACES as u64;
    let known = (1..=count).filter(|n| record.insert(*n, 7, &translation(*n), |_| false)).count() as u64;
    assert_eq!((1..=count).filter(|n| is_there(record, *n)).count() as u64, known);
    assert!(known > count * 19 / 20, "{known}");
    let more = (count + 1..=count + count / 2).filter(|n| record.insert(*n, 7, &translation(*n), |_| false)).count();
    assert!(more < PLACES / 20, "{more}");
    assert_eq!((1..=count).filter(|n| is_there(record, *n)).count() as u64, known, "nothing open is forgotten");
}

#[test]
fn what_is_closed_makes_room_the_first_first_unless_somebody_still_asks() {
    let (memory, _file) = record_memory();
    let record = Translations(memory.words());
    let count = 2 * PLACES as u64;
    record.insert(count + 1, 7, &translation(count + 1), |_| false);
    record.closed(count + 1, 7);
    for n in 1..=count {
        assert!(record.insert(n, 7, &translation(n), |_| false));
        if n % 256 == 0 {
            assert!(is_there(record, count + 1), "a child has it, and asks, after {n}");
        }
        record.closed(n, 7);
    }
    assert!(is_there(record, count), "what was closed last stays for children");
    assert!((1..=count / 4).filter(|n| is_there(record, *n)).count() < PLACES / 10);
}

#[test]
fn what_a_dead_process_had_makes_room() {
    let (memory, _file) = record_memory();
    let record = Translations(memory.words());
    for n in 1..=PLACES as u64 {
        record.insert(n, 7, &translation(n), |_| false);
    }
    let known = (1..=PLACES as u64 / 2)
        .map(|n| n + (1 << 40))
        .filter(|n| record.insert(*n, 8, &translation(*n), |pid| pid == 7) && is_there(record, *n))
        .count();
    assert!(known > PLACES / 2 * 99 / 100, "{known}");
}

#[test]
fn a_record_of_nothing_is_nothing() {
    let (memory, _file) = record_memory();
    let record = Translations(memory.words());
    assert!(record.get(0).is_none() && record.get(u64::MAX).is_none() && record.get(5).is_none());
    assert!(!record.insert(0, 1, &translation(1), |_| false));
    record.closed(5, 7);
    let short = Translations(&[]);
    assert!(short.get(5).is_none() && !short.insert(5, 1, &translation(5), |_| false));
}

#[test]
fn threads_that_write_and_read_at_the_same_time_never_see_halves() {
    let (memory, _file) = record_memory();
    let record = Translations(memory.words());
    std::thread::scope(|scope| {
        for thread in 0..4_u64 {
            scope.spawn(move || {
                for round in 0..5_000 {
                    // A few sets only, so that places change hands all the time.
                    let n = (thread * 5_000 + round + 1) * PLACES as u64;
                    record.insert(n, 7, &translation(n), |_| false);
                    is_there(record, n);
                    is_there(record, n.wrapping_sub(7 * PLACES as u64));
                    record.closed(n, 7);
                }
            });
        }
    });
}
