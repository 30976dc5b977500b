use std::net::TcpListener;

use super::*;
use crate::accept::orders::Order;
use crate::accept::policy::Policy;
use crate::accept::stage::{StageRules, refusals::Refusal, sources::SourceLimits};
use crate::affinity::head::NoKey;
use crate::affinity::sessions::Change;
use crate::affinity::{HashOn, digest};
use crate::handoff::{Carries, TakenBack};
use crate::proxy_protocol::balancers::Balancers;

fn rules(max_held: usize) -> Rules {
    let second = Duration::from_secs(1);
    Rules {
        policy: Policy::Rr,
        hash_on: None,
        by: AcceptedBy::Master,
        addresses: crate::accept::orders::Addresses::Ignored,
        cap: 16,
        stall_timeout: second,
        queue_timeout: 30 * second,
        hash_wait: second,
        hang_timeout: None,
        worker_conns: None,
        max_queue: None,
        abort_on_close: false,
        slow_start: Duration::ZERO,
        accept_rate: None,
        max_conns: None,
        max_held,
        max_held_by_all: 1000,
        stage: None,
    }
}

fn dispatcher(max_held: usize) -> (ServiceDispatcher, Context, Arc<OwnedFd>) {
    let rescue = crossbeam_channel::unbounded().0;
    let cx = Context {
        poll: mio::Poll::new().unwrap(),
        rescue,
        report: Box::new(|_| {}),
        staged: std::cell::Cell::default(),
        passed: std::cell::Cell::default(),
        held: std::cell::Cell::default(),
    };
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    socket.set_nonblocking(true).unwrap();
    let socket = Arc::new(OwnedFd::from(socket));
    let mut dispatcher = ServiceDispatcher::new(0, rules(max_held), Arc::default());
    dispatcher.add_listener(&cx, 0, socket.clone());
    (dispatcher, cx, socket)
}

#[test]
fn the_last_event_of_a_closed_listener_wakes_no_one_up() {
    for leaves in [ServiceDispatcher::remove_listener, ServiceDispatcher::forget_listener] {
        let (mut dispatcher, cx, _socket) = dispatcher(16);
        leaves(&mut dispatcher, &cx, 0);
        dispatcher.readable(0);
        let now = Instant::now();
        dispatcher.turn(&cx, now);
        assert_eq!(dispatcher.deadline(now), None);
    }
}

#[test]
fn a_listener_in_trouble_whose_clients_find_no_room_is_tried_later() {
    let (mut dispatcher, cx, _socket) = dispatcher(0);
    let now = Instant::now();
    dispatcher.readable(0);
    dispatcher.listeners[0].trouble = Some((libc::EMFILE, now));
    let later = now + Duration::from_secs(1);
    dispatcher.turn(&cx, later);
    assert_eq!(dispatcher.deadline(later), Some(later + RETRY));
}

#[test]
fn what_comes_back_after_the_end_of_a_stop_is_reset() {
    let (mut dispatcher, cx, _socket) = dispatcher(16);
    dispatcher.stop_now(&cx);
    let (client, server) = std::os::unix::net::UnixStream::pair().unwrap();
    let worker = WorkerId { service: 0, slot: 0, generation: 1 };
    let key = RescueKey { worker, listener: 0, stats: Arc::default() };
    dispatcher.rescued(&cx, &key, vec![TakenBack { socket: server.into(), translated: None }], Instant::now());
    assert_eq!(dispatcher.waiting(), 0);
    drop(client);
}

#[test]
fn with_every_slot_at_weight_0_clients_are_held_without_polling_until_one_has_a_weight_again() {
    let (mut dispatcher, cx, socket) = dispatcher(16);
    let now = Instant::now();
    dispatcher.set_weight(0, 0);
    let worker = |generation| WorkerId { service: 0, slot: 0, generation };
    let (queue, _end) = QueueTx::to_relay(Carries::Sockets).unwrap();
    let queue = Arc::new(queue);
    let page = Arc::new(CountersPage::create().unwrap().0);
    dispatcher.online(&cx, worker(1), vec![(0, queue.clone())], page, Arc::default(), now);
    let address = std::net::TcpListener::from(socket.try_clone().unwrap()).local_addr().unwrap();
    let _client = std::net::TcpStream::connect(address).unwrap();
    dispatcher.readable(0);
    dispatcher.turn(&cx, now);
    assert_eq!((dispatcher.waiting(), queue.pending()), (1, 0));
    assert_eq!(dispatcher.deadline(now), Some(now + dispatcher.rules.queue_timeout));
    dispatcher.set_weight(0, 3);
    dispatcher.turn(&cx, now);
    assert_eq!((dispatcher.waiting(), queue.pending()), (0, 1));
}

/// Two listeners, of which one is served by the first worker alone: it is full, the second is free.
#[test]
fn who_waits_for_one_listener_holds_up_nobody_whom_another_worker_serves() {
    let (mut dispatcher, cx, first) = dispatcher(16);
    dispatcher.rules.worker_conns = Some(1);
    let now = Instant::now();
    let second = TcpListener::bind("127.0.0.1:0").unwrap();
    second.set_nonblocking(true).unwrap();
    let second = Arc::new(OwnedFd::from(second));
    dispatcher.add_listener(&cx, 1, second.clone());
    let (full, _full_end) = QueueTx::to_relay(Carries::Sockets).unwrap();
    let (free, _free_end) = QueueTx::to_relay(Carries::Sockets).unwrap();
    let (full, free) = (Arc::new(full), Arc::new(free));
    let mut online = |slot, queues| {
        let id = WorkerId { service: 0, slot, generation: 1 };
        dispatcher.online(&cx, id, queues, Arc::new(CountersPage::create().unwrap().0), Arc::default(), now);
    };
    online(0, vec![(0, full.clone())]);
    online(1, vec![(1, free.clone())]);
    let ask = |socket: &Arc<OwnedFd>| {
        let address = std::net::TcpListener::from(socket.try_clone().unwrap()).local_addr().unwrap();
        std::net::TcpStream::connect(address).unwrap()
    };
    let mut clients = vec![ask(&first), ask(&first), ask(&first)];
    dispatcher.readable(0);
    dispatcher.turn(&cx, now);
    assert_eq!((dispatcher.waiting(), full.pending()), (2, 1));
    // Accepted while others wait; then out of the line, from behind them.
    clients.extend([ask(&second), ask(&second)]);
    dispatcher.readable(1);
    dispatcher.turn(&cx, now);
    assert_eq!((dispatcher.waiting(), full.pending(), free.pending()), (3, 1, 1));
    let id = WorkerId { service: 0, slot: 2, generation: 1 };
    let (third, _third_end) = QueueTx::to_relay(Carries::Sockets).unwrap();
    let third = Arc::new(third);
    let page = Arc::new(CountersPage::create().unwrap().0);
    dispatcher.online(&cx, id, vec![(1, third.clone())], page, Arc::default(), now);
    dispatcher.turn(&cx, now);
    assert_eq!((dispatcher.waiting(), full.pending(), third.pending()), (2, 1, 1));
}

#[test]
fn a_service_with_as_many_connections_as_it_may_have_waits_for_the_bell_and_not_by_polling() {
    let (mut dispatcher, cx, socket) = dispatcher(16);
    dispatcher.rules.max_conns = Some(1);
    let now = Instant::now();
    let worker = |generation| WorkerId { service: 0, slot: 0, generation };
    let (queue, _end) = QueueTx::to_relay(Carries::Sockets).unwrap();
    let queue = Arc::new(queue);
    let page = Arc::new(CountersPage::create().unwrap().0);
    dispatcher.online(&cx, worker(1), vec![(0, queue.clone())], page.clone(), Arc::default(), now);
    let address = std::net::TcpListener::from(socket.try_clone().unwrap()).local_addr().unwrap();
    let _clients = [(); 2].map(|()| std::net::TcpStream::connect(address).unwrap());
    dispatcher.readable(0);
    // The first turn asks for the bell, and looks once more after that.
    (0..2).for_each(|_| dispatcher.turn(&cx, now));
    assert_eq!(dispatcher.all_connections(), 1);
    assert!(page.is_room_wanted());
    assert_eq!(dispatcher.stats.limit_reached(), Some("max-conns"));
    let stall = now + dispatcher.rules.stall_timeout;
    assert!(dispatcher.deadline(now).is_some_and(|at| at >= stall.min(now + BELL_LOST)), "no polling");
    dispatcher.worker_died(&cx, worker(1), now);
    assert_eq!(dispatcher.all_connections(), 1, "it waits for another worker");
    dispatcher.rules.max_conns = Some(2);
    dispatcher.turn(&cx, now);
    dispatcher.turn(&cx, now);
    assert_eq!(dispatcher.all_connections(), 2);
}

/// Two workers with as much pending as they may have, and both too late to take over from each other.
#[test]
fn workers_that_lag_are_waited_for_by_the_bell_and_not_by_polling() {
    let (mut dispatcher, cx, socket) = dispatcher(16);
    (dispatcher.rules.worker_conns, dispatcher.rules.cap) = (Some(3), 2);
    dispatcher.rules.stall_timeout = Duration::from_millis(10);
    let now = Instant::now();
    let mut workers: Vec<_> = (0..2)
        .map(|slot| {
            let ((queue, end), (page, _)) =
                (QueueTx::to_relay(Carries::Sockets).unwrap(), CountersPage::create().unwrap());
            let (queues, page) = (vec![(0, Arc::new(queue))], Arc::new(page));
            let id = WorkerId { service: 0, slot, generation: 1 };
            dispatcher.online(&cx, id, queues, page.clone(), Arc::default(), now);
            (crate::handoff::QueueRx::new(end, Carries::Sockets), page)
        })
        .collect();
    let address = std::net::TcpListener::from(socket.try_clone().unwrap()).local_addr().unwrap();
    let _clients = [(); 6].map(|()| std::net::TcpStream::connect(address).unwrap());
    dispatcher.readable(0);
    dispatcher.turn(&cx, now);
    assert_eq!(dispatcher.waiting(), 2);
    let due = now + dispatcher.rules.stall_timeout;
    assert_eq!(dispatcher.deadline(now), Some(due));
    dispatcher.turn(&cx, due);
    assert_eq!(dispatcher.deadline(due), Some(due + BELL_LOST));
    assert!(workers.iter().all(|(_, page)| page.is_receive_awaited()));
    let (queue, page) = &mut workers[0];
    let mut sockets = Vec::new();
    queue.receive(&mut sockets, &mut Vec::new()).unwrap();
    page.receives(1, sockets.len() as u64);
    dispatcher.turn(&cx, due);
    assert_eq!((sockets.len(), dispatcher.waiting()), (2, 1));
}

fn headers(max: usize) -> Arc<StageRules> {
    Arc::new(StageRules {
        proxy_from: Balancers(vec!["127.0.0.1".parse().unwrap()]),
        allowed: None,
        sources: SourceLimits::default(),
        first_byte: None,
        key: None,
        session_wait: Duration::ZERO,
        max,
    })
}

/// Two services with a stage: the first one's clients stay silent for a minute.
#[test]
fn stages_have_a_bound_together_and_the_fullest_makes_room() {
    let (mut silent, context, first) = dispatcher(16);
    let silence = StageRules {
        proxy_from: Balancers(Vec::new()),
        first_byte: Some(Duration::from_secs(60)),
        ..StageRules::clone(&headers(20))
    };
    silent.rules.stage = Some(Arc::new(silence));
    let second = Arc::new(OwnedFd::from(TcpListener::bind("127.0.0.1:0").unwrap()));
    socket2::SockRef::from(&second).set_nonblocking(true).unwrap();
    let mut balanced = ServiceDispatcher::new(1, rules(16), Arc::default());
    balanced.rules.addresses = crate::accept::orders::Addresses::Wanted;
    balanced.rules.stage = Some(headers(20));
    balanced.add_listener(&context, 0, second.clone());
    let orders = crossbeam_channel::unbounded().1;
    let mut all = crate::accept::Acceptor { context, orders, dispatchers: vec![silent, balanced] };
    let clients = |count, socket: &Arc<OwnedFd>| -> Vec<_> {
        let address = socket2::SockRef::from(socket).local_addr().unwrap().as_socket().unwrap();
        (0..count).map(|_| std::net::TcpStream::connect(address).unwrap()).collect()
    };
    let now = Instant::now();
    let turns = |all: &mut crate::accept::Acceptor| {
        all.dispatchers.iter_mut().for_each(|service| service.readable(0));
        all.turn(now);
        let waiting = [0, 1].map(|at| all.dispatchers[at].stage.len());
        let refused = [0, 1].map(|at| all.dispatchers[at].stats.stage.refused(Refusal::StageFull));
        (waiting, refused, all.context.staged.get())
    };
    let _silent = clients(30, &first);
    assert_eq!(turns(&mut all), ([20, 0], [10, 0], 20));
    let _balanced = clients(5, &second);
    assert_eq!(turns(&mut all), ([15, 5], [15, 0], 20));
    let _more = clients(15, &second);
    assert_eq!(turns(&mut all), ([10, 10], [20, 10], 20));
    (0..2).for_each(|at| all.dispatchers[at].clear_stage(None, &all.context));
    assert_eq!(all.context.staged.get(), 0);
}

#[test]
fn thousands_whose_time_is_over_leave_between_those_that_come() {
    let (mut dispatcher, cx, socket) = dispatcher(16);
    dispatcher.rules.addresses = crate::accept::orders::Addresses::Wanted;
    dispatcher.rules.stage = Some(headers(1000));
    let address = socket2::SockRef::from(&socket).local_addr().unwrap().as_socket().unwrap();
    let _clients: Vec<_> = (0..100).map(|_| std::net::TcpStream::connect(address).unwrap()).collect();
    let now = Instant::now();
    for _ in 0..3 {
        dispatcher.readable(0);
        dispatcher.turn(&cx, now);
    }
    assert_eq!(dispatcher.stage.len(), 100);
    let later = now + Duration::from_secs(4);
    let mut left = Vec::new();
    while dispatcher.deadline(later).is_some_and(|at| at <= later) {
        dispatcher.turn(&cx, later);
        left.push(dispatcher.stage.len());
    }
    assert_eq!(left, [84, 68, 52, 36, 20, 4, 0]);
}

fn sessions() -> Rules {
    let stage = StageRules {
        proxy_from: Balancers(Vec::new()),
        key: Some(HashOn::SocketIo),
        session_wait: Duration::from_secs(1),
        ..StageRules::clone(&headers(1000))
    };
    let (policy, hash_on) = (Policy::Hash, Some(HashOn::SocketIo));
    Rules { policy, hash_on, stage: Some(Arc::new(stage)), ..rules(16) }
}

fn opened(session: u64) -> Change {
    Change::Opened(digest(session.to_string().as_bytes()))
}

/// A client that asks for a session.
fn asks_for(session: u64, socket: &OwnedFd) -> std::net::TcpStream {
    let address = socket2::SockRef::from(socket).local_addr().unwrap().as_socket().unwrap();
    let mut client = std::net::TcpStream::connect(address).unwrap();
    std::io::Write::write_all(
        &mut client,
        format!("GET /?transport=polling&sid={session} HTTP/1.1\r\n\r\n").as_bytes(),
    )
    .unwrap();
    client
}

#[test]
fn a_report_is_for_those_that_wait_for_its_session_and_for_no_others() {
    let (mut dispatcher, cx, socket) = dispatcher(16);
    dispatcher.set_rules(sessions());
    let (now, worker) = (Instant::now(), WorkerId { service: 0, slot: 0, generation: 1 });
    let (queue, _end) = QueueTx::to_relay(Carries::Sockets).unwrap();
    let queue = Arc::new(queue);
    let page = Arc::new(CountersPage::create().unwrap().0);
    dispatcher.online(&cx, worker, vec![(0, queue.clone())], page, Arc::default(), now);
    let clients: Vec<_> = [1, 2, 2, 3].iter().map(|session| asks_for(*session, &socket)).collect();
    dispatcher.readable(0);
    dispatcher.turn(&cx, now);
    let state = |dispatcher: &ServiceDispatcher| {
        (dispatcher.stage.len(), dispatcher.stage.awaited(), queue.pending(), dispatcher.stats.stage.keys.load(Relaxed))
    };
    assert_eq!(state(&dispatcher), (4, 4, 0, 0));
    let other = WorkerId { generation: 2, ..worker };
    for (from, change) in [(worker, opened(9)), (other, opened(1)), (worker, opened(2))] {
        dispatcher.change_sessions(from, &[change], now, &cx);
    }
    dispatcher.turn(&cx, now);
    assert_eq!(state(&dispatcher), (2, 2, 2, 2));
    // One is over as soon as it has begun, and the worker of the other goes.
    let Change::Opened(first) = opened(1) else { return };
    dispatcher.change_sessions(worker, &[opened(1), Change::Closed(first)], now, &cx);
    dispatcher.drain(&cx, worker);
    dispatcher.turn(&cx, now + Duration::from_secs(1));
    assert_eq!((dispatcher.stage.len(), dispatcher.stage.awaited(), dispatcher.waiting()), (0, 0, 2));
    let more = [1, 2].map(|session| asks_for(session, &socket));
    dispatcher.readable(0);
    dispatcher.turn(&cx, now);
    assert_eq!((dispatcher.stage.len(), dispatcher.waiting()), (0, 4), "both are known to be over");
    assert_eq!(dispatcher.stats.stage.without_key(NoKey::UnknownSession), 3);
    // Other rules: nothing is left of this.
    dispatcher.online(
        &cx,
        other,
        vec![(0, queue.clone())],
        Arc::new(CountersPage::create().unwrap().0),
        Arc::default(),
        now,
    );
    dispatcher.change_sessions(other, &[opened(5)], now, &cx);
    dispatcher.set_rules(rules(16));
    let Change::Opened(fifth) = opened(5) else { return };
    assert_eq!(dispatcher.stage.session(fifth), None);
    drop((clients, more));
}

#[test]
fn one_worker_that_reports_very_much_does_not_keep_the_accept_thread() {
    let (dispatcher, context, _socket) = dispatcher(16);
    let (sender, orders) = crossbeam_channel::unbounded();
    let mut all = crate::accept::Acceptor { context, orders, dispatchers: vec![dispatcher] };
    let worker = WorkerId { service: 0, slot: 0, generation: 1 };
    for _ in 0..10 {
        sender.send(Order::Sessions { worker, changes: vec![opened(1); 1500] }).unwrap();
    }
    let mut left = Vec::new();
    while all.obey_some(Instant::now()) {
        left.push(sender.len());
    }
    assert_eq!(left, [7, 4, 1]);
}

#[path = "dispatcher_stage_tests.rs"]
mod stage;

#[path = "dispatcher_moved_tests.rs"]
mod moved;
