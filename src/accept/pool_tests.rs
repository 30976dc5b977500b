use std::net::TcpListener;

use super::*;

fn rules(most_held: usize) -> Rules {
    let second = Duration::from_secs(1);
    Rules {
        policy: Policy::Rr,
        by: AcceptedBy::Master,
        addresses: crate::accept::orders::Addresses::Ignored,
        cap: 16,
        stall_timeout: second,
        queue_timeout: 30 * second,
        hash_wait: second,
        hang_timeout: None,
        most_held,
    }
}

fn pool(most_held: usize) -> (Pool, Poll, Arc<OwnedFd>) {
    let poll = Poll::new().unwrap();
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    socket.set_nonblocking(true).unwrap();
    let socket = Arc::new(OwnedFd::from(socket));
    let mut pool = Pool::new(0, rules(most_held), Arc::default());
    pool.add_listener(&poll, 0, socket.clone());
    (pool, poll, socket)
}

fn reporter() -> Reporter {
    Reporter { rescue: crossbeam_channel::unbounded().0, report: Box::new(|_| {}) }
}

#[test]
fn the_last_event_of_a_listener_that_has_gone_wakes_nobody_up() {
    for leaves in [Pool::remove_listener, Pool::forget_listener] {
        let (mut pool, poll, _socket) = pool(16);
        leaves(&mut pool, &poll, 0);
        pool.readable(0);
        let now = Instant::now();
        pool.turn(&poll, now, &reporter());
        assert_eq!(pool.deadline(now), None);
    }
}

#[test]
fn a_listener_in_trouble_whose_clients_find_no_room_is_tried_later() {
    let (mut pool, poll, _socket) = pool(0);
    let now = Instant::now();
    pool.readable(0);
    pool.listeners[0].trouble = Some((libc::EMFILE, now));
    let later = now + Duration::from_secs(1);
    pool.turn(&poll, later, &reporter());
    assert_eq!(pool.deadline(later), Some(later + RETRY));
}

#[test]
fn what_comes_back_after_the_end_of_a_stop_is_reset() {
    let (mut pool, _poll, _socket) = pool(16);
    pool.stop_now(&reporter());
    let (client, server) = std::os::unix::net::UnixStream::pair().unwrap();
    let worker = WorkerId { service: 0, slot: 0, generation: 1 };
    let key = RescueKey { worker, listener: 0, stats: Arc::default() };
    pool.rescued(&key, vec![server.into()], Instant::now(), &reporter());
    assert_eq!(pool.waiting(), 0);
    drop(client);
}
