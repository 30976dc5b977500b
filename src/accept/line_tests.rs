use std::os::unix::net::UnixStream;

use super::*;

fn held(listener: ListenerId, since: Instant) -> Held {
    let (_, socket) = UnixStream::pair().unwrap();
    Held { listener, socket: socket.into(), client: Client::default(), since, watched: false, slot: None }
}

/// The listeners in the order in which they are served.
fn served(line: &mut Line, is_served: impl Fn(ListenerId) -> bool + Copy) -> Vec<ListenerId> {
    std::iter::from_fn(|| {
        let ticket = line.next(is_served)?.0;
        line.remove(ticket).map(|held| held.listener)
    })
    .collect()
}

#[test]
fn first_come_first_served_over_all_listeners() {
    let (mut line, now) = (Line::default(), Instant::now());
    for listener in [2, 0, 2, 1, 0] {
        let ticket = line.ticket();
        line.insert(ticket, held(listener, now));
    }
    // One that was taken back from a worker, and one that had waited longer than that.
    for listener in [3, 1] {
        let ticket = line.ticket_at_head();
        line.insert(ticket, held(listener, now));
    }
    assert_eq!(line.len(), 7);
    assert_eq!(served(&mut line, |listener| listener != 2), [1, 3, 0, 1, 0]);
    assert_eq!(served(&mut line, |_| true), [2, 2]);
    assert_eq!(line.len(), 0);
}

#[test]
fn one_that_left_its_worker_s_line_comes_back_to_its_place() {
    let (mut line, now) = (Line::default(), Instant::now());
    let tickets: Vec<_> = (0..3).map(|_| line.ticket()).collect();
    for (at, listener) in [(2, 12), (0, 10), (1, 11)] {
        line.insert(tickets[at], held(listener, now));
    }
    assert_eq!(served(&mut line, |_| true), [10, 11, 12]);
}

#[test]
fn the_overdue_are_found_wherever_they_stand() {
    let (mut line, now) = (Line::default(), Instant::now());
    let second = Duration::from_secs(1);
    for (listener, age) in [(0, 5), (1, 4), (0, 1), (1, 0)] {
        let ticket = line.ticket();
        line.insert(ticket, held(listener, now - age * second));
    }
    for age in [3, 0] {
        let ticket = line.ticket_at_head();
        line.insert(ticket, held(7, now - age * second));
    }
    assert_eq!(line.oldest(), Some(now - 5 * second));
    let overdue = line.take_overdue(3 * second, now);
    assert_eq!(overdue.iter().map(|held| held.listener).collect::<Vec<_>>(), [0, 1, 7]);
    assert_eq!((line.len(), line.oldest()), (3, Some(now - second)));
    assert_eq!(line.take_listener(7).len(), 1);
    assert_eq!((line.take().len(), line.len()), (2, 0));
}
