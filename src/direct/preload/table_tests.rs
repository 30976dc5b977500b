//! Numbers no file has are enough here: the table never looks at what is there, but for a stand-in's own file.

use super::*;
use crate::address::{AF_INET, AF_INET6};

/// Descriptors that no other test uses.
const FIRST: i32 = 60_000;

#[test]
fn a_stand_in_is_known_by_all_its_descriptors_until_the_last_goes() {
    let address = Address::empty();
    let Some(page) = counts::page_of_zeros() else { panic!("no page") };
    let new = |listener| New {
        listener,
        page,
        keep: -1,
        stands: Stands::Queue,
        nonblock: false,
        listens: true,
        address: &address,
    };
    let (one, other, another) = (FIRST, FIRST + 1, FIRST + 2);
    assert!(put_stand_in(one, &new(7)).is_some() && is_stand_in(one) && !is_stand_in(other));
    copy(one, other);
    assert!(is_stand_in(other) && !is_last(one) && !is_last(other));
    assert_eq!(first_known(FIRST as u32, u32::MAX), Some(one));
    assert_eq!(remove_stand_in(one), None, "it has another descriptor");
    assert!(is_last(other));
    // Another one for the same listener: the master is not to hear of the end of the first.
    assert!(put_stand_in(another, &new(7)).is_some());
    assert_eq!(remove_stand_in(other), None);
    assert_eq!(remove_stand_in(another), Some(7));
    assert!(!is_stand_in(another) && !knows(another));
    // More than there are places for.
    let taken = (0..STAND_INS as i32 + 1).filter(|n| put_stand_in(FIRST + 10 + n, &new(8)).is_some()).count();
    assert_eq!(taken, STAND_INS);
    for n in 0..STAND_INS as i32 {
        remove_stand_in(FIRST + 10 + n);
    }
}

#[test]
fn a_mark_is_a_stand_in_that_is_not_known_yet() {
    let fd = FIRST + 200;
    mark(fd);
    assert!(is_marked(fd) && is_stand_in(fd) && is_looked_at(fd) && knows(fd) && stand_in(fd).is_none());
    closing(fd);
    assert!(!is_marked(fd) && !is_stand_in(fd));
}

#[test]
fn a_connection_is_shown_in_the_family_that_its_server_expects() {
    for (at, shown) in [(0, None), (1, Some(AF_INET)), (2, Some(AF_INET6))] {
        let fd = FIRST + 300 + at;
        received(fd, 5, shown, at == 1);
        assert_eq!((is_watched(fd), is_looked_at(fd)), (at == 1, at == 1));
        assert_eq!((shown_family(fd), is_stand_in(fd), knows(fd)), (shown, false, true));
        copy(fd, fd + 10);
        assert!(!knows(fd + 10), "a copy of a connection is not counted");
        forget(fd);
    }
}

#[test]
fn numbers_beyond_the_table_are_nothing() {
    for fd in [-1, i32::MIN, TRACKED as i32, i32::MAX] {
        mark(fd);
        assert!(!is_stand_in(fd) && !knows(fd) && stand_in(fd).is_none());
    }
    assert_eq!(first_known(TRACKED as u32, u32::MAX), None);
    assert_eq!(first_known(10, 3), None);
}
