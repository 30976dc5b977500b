//! Connections that leave the stage, and those that are held.

use super::*;
use crate::accept::stage::End;

/// A worker online that may have this much pending; its end, and its page.
fn worker(
    dispatcher: &mut ServiceDispatcher,
    cx: &Context,
    cap: u32,
    now: Instant,
) -> (crate::handoff::QueueRx, Arc<QueueTx>, Arc<CountersPage>) {
    dispatcher.rules.cap = cap;
    let (queue, end) = QueueTx::to_relay(Carries::Sockets).unwrap();
    let (queue, page) = (Arc::new(queue), Arc::new(CountersPage::create().unwrap().0));
    let id = WorkerId { service: 0, slot: 0, generation: 1 };
    dispatcher.online(cx, id, vec![(0, queue.clone())], page.clone(), Arc::default(), now);
    (crate::handoff::QueueRx::new(end, Carries::Sockets), queue, page)
}

fn silence(max: usize) -> Arc<StageRules> {
    let first_byte = Some(Duration::from_secs(60));
    Arc::new(StageRules { proxy_from: Balancers(Vec::new()), first_byte, ..StageRules::clone(&headers(max)) })
}

#[test]
fn those_that_have_passed_stay_in_the_stage_while_nothing_has_room_for_them() {
    let (mut dispatcher, cx, socket) = dispatcher(3);
    let now = Instant::now();
    let (mut end, queue, page) = worker(&mut dispatcher, &cx, 2, now);
    dispatcher.rules.stage = Some(silence(100));
    let address = socket2::SockRef::from(&socket).local_addr().unwrap().as_socket().unwrap();
    let mut clients: Vec<_> = (0..11).map(|_| std::net::TcpStream::connect(address).unwrap()).collect();
    dispatcher.readable(0);
    dispatcher.turn(&cx, now);
    assert_eq!((dispatcher.stage.len(), queue.pending()), (11, 0));
    clients[..10].iter_mut().for_each(|client| std::io::Write::write_all(client, b"x").unwrap());
    (0..10).for_each(|place| dispatcher.staged_event(place, End::Open, now, &cx));
    assert_eq!(dispatcher.deadline(now), Some(now));
    let state = |dispatcher: &ServiceDispatcher| (queue.pending(), dispatcher.waiting(), dispatcher.stage.len());
    for _ in 0..2 {
        dispatcher.turn(&cx, now);
        assert_eq!((state(&dispatcher), cx.staged.get(), cx.passed.get()), ((2, 0, 9), 1, 8));
        assert_eq!(dispatcher.deadline(now), Some(now + RETRY), "there is room when the worker has received");
    }
    let mut sockets = Vec::new();
    while end.receive(&mut sockets, &mut Vec::new()).unwrap() != crate::handoff::Reception::Empty {}
    page.receives(1, sockets.len() as u64);
    dispatcher.turn(&cx, now);
    assert_eq!((sockets.len(), state(&dispatcher)), (2, (2, 0, 7)));
    // Two come back from it, and there is room for one more in the line.
    dispatcher.worker_died(&cx, WorkerId { service: 0, slot: 0, generation: 1 }, now);
    dispatcher.turn(&cx, now);
    assert_eq!(state(&dispatcher), (0, 3, 6));
    // They have nobody leave that waits, and have a bound of their own.
    dispatcher.rules.stage = Some(silence(4));
    let mut all = [dispatcher];
    (0..3).for_each(|_| crate::accept::stage::crowd::make_room(&mut all, 0, &cx));
    let [mut dispatcher] = all;
    assert_eq!((cx.staged.get(), cx.passed.get()), (1, 4));
    assert_eq!(dispatcher.stats.stage.refused(Refusal::StageFull), 1);
    dispatcher.clear_stage(None, &cx);
    assert_eq!((dispatcher.stage.len(), cx.staged.get(), cx.passed.get()), (0, 0, 0));
}

#[test]
fn clients_held_have_a_bound_for_all_services_together() {
    let (first, context, first_socket) = dispatcher(16);
    let second_socket = Arc::new(OwnedFd::from(TcpListener::bind("127.0.0.1:0").unwrap()));
    socket2::SockRef::from(&second_socket).set_nonblocking(true).unwrap();
    let mut second = ServiceDispatcher::new(1, rules(16), Arc::default());
    second.add_listener(&context, 0, second_socket.clone());
    let orders = crossbeam_channel::unbounded().1;
    let mut all = crate::accept::Acceptor { context, orders, dispatchers: vec![first, second] };
    all.dispatchers.iter_mut().for_each(|service| service.rules.max_held_by_all = 20);
    let _clients: Vec<_> = [&first_socket, &second_socket]
        .into_iter()
        .flat_map(|socket| {
            let address = socket2::SockRef::from(socket).local_addr().unwrap().as_socket().unwrap();
            (0..20).map(move |_| std::net::TcpStream::connect(address).unwrap())
        })
        .collect();
    let turn = |all: &mut crate::accept::Acceptor| {
        all.dispatchers.iter_mut().for_each(|service| service.readable(0));
        all.turn(Instant::now());
        [0, 1].map(|at| all.dispatchers[at].waiting())
    };
    assert_eq!(turn(&mut all), [16, 4]);
    let context = &all.context;
    all.dispatchers[0].refuse(context);
    assert_eq!(all.dispatchers[0].waiting(), 0);
    assert_eq!(turn(&mut all), [4, 16]);
    assert_eq!(all.context.held.get(), 20);
}

/// A reload takes the stage away, and one that has waited there passes in the same turn in which its listener goes.
#[test]
fn the_last_one_to_pass_leaves_no_turn_due_where_its_listener_goes() {
    let (mut dispatcher, cx, socket) = dispatcher(16);
    let now = Instant::now();
    dispatcher.rules.stage = Some(silence(10));
    let address = socket2::SockRef::from(&socket).local_addr().unwrap().as_socket().unwrap();
    let mut client = std::net::TcpStream::connect(address).unwrap();
    dispatcher.readable(0);
    dispatcher.turn(&cx, now);
    dispatcher.set_rules(rules(16));
    std::io::Write::write_all(&mut client, b"x").unwrap();
    dispatcher.staged_event(0, End::Open, now, &cx);
    assert_eq!((dispatcher.stage.len(), dispatcher.deadline(now)), (1, Some(now)));
    dispatcher.forget_listener(&cx, 0);
    dispatcher.turn(&cx, now);
    assert_eq!((dispatcher.stage.len(), dispatcher.deadline(now)), (0, None));
}

#[test]
fn who_waits_in_the_stage_of_a_service_that_is_given_up_is_refused_at_once_and_counted() {
    type End = fn(&mut ServiceDispatcher, &Context);
    let ends: [(End, bool); 3] = [
        (ServiceDispatcher::refuse_all, false),
        (ServiceDispatcher::stop_now, false),
        (ServiceDispatcher::pause_now, true),
    ];
    for (end, pauses) in ends {
        let (mut dispatcher, cx, socket) = dispatcher(16);
        dispatcher.rules.stage = Some(silence(10));
        let address = socket2::SockRef::from(&socket).local_addr().unwrap().as_socket().unwrap();
        let _clients = [(); 2].map(|()| std::net::TcpStream::connect(address).unwrap());
        dispatcher.readable(0);
        dispatcher.turn(&cx, Instant::now());
        assert_eq!(dispatcher.stage.len(), 2);
        if pauses {
            dispatcher.pause();
        }
        end(&mut dispatcher, &cx);
        assert_eq!((dispatcher.stage.len(), dispatcher.stats.shed.count(ShedReason::NoWorker)), (0, 2));
    }
}

/// A reload takes `--proxy-from` out while a balancer's connection waits for its header.
#[test]
fn a_header_that_comes_when_a_worker_would_not_be_told_of_it_is_data() {
    let (mut dispatcher, cx, socket) = dispatcher(16);
    let now = Instant::now();
    dispatcher.rules.addresses = crate::accept::orders::Addresses::Wanted;
    dispatcher.rules.stage = Some(headers(10));
    let address = socket2::SockRef::from(&socket).local_addr().unwrap().as_socket().unwrap();
    let mut client = std::net::TcpStream::connect(address).unwrap();
    dispatcher.readable(0);
    dispatcher.turn(&cx, now);
    assert_eq!(dispatcher.stage.len(), 1);
    dispatcher.rules.stage = None;
    let (mut end, ..) = worker(&mut dispatcher, &cx, 2, now);
    std::io::Write::write_all(&mut client, b"PROXY TCP4 192.0.2.7 203.0.113.1 1 2\r\nping").unwrap();
    dispatcher.staged_event(0, End::Open, now, &cx);
    dispatcher.turn(&cx, now);
    let mut sockets = Vec::new();
    end.receive(&mut sockets, &mut Vec::new()).unwrap();
    let mut bytes = [0; 100];
    let read = std::io::Read::read(&mut std::net::TcpStream::from(sockets.remove(0)), &mut bytes).unwrap();
    assert_eq!(&bytes[..read], b"PROXY TCP4 192.0.2.7 203.0.113.1 1 2\r\nping");
}

#[test]
fn a_client_that_has_reset_is_dropped_when_its_connection_comes_back() {
    let (mut dispatcher, cx, socket) = dispatcher(16);
    dispatcher.set_rules(sessions());
    let listener = TcpListener::from(socket.try_clone().unwrap());
    let clients = [(); 2].map(|()| std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap());
    listener.set_nonblocking(false).unwrap();
    let taken = [(); 2].map(|()| TakenBack { socket: listener.accept().unwrap().0.into(), translated: None });
    let [gone, stays] = clients;
    socket2::SockRef::from(&gone).set_linger(Some(Duration::ZERO)).unwrap();
    drop(gone);
    // A reset is on its way for a moment where another processor has to take it in.
    while !taken.iter().any(|back| crate::sys::sock::has_left(std::os::fd::AsFd::as_fd(&back.socket), false)) {
        std::thread::yield_now();
    }
    let key = RescueKey { worker: WorkerId { service: 0, slot: 0, generation: 1 }, listener: 0, stats: Arc::default() };
    dispatcher.rescued(&cx, &key, taken.into(), Instant::now());
    assert_eq!((dispatcher.waiting(), dispatcher.stats.shed.count(ShedReason::ClientLeft)), (1, 1));
    drop(stays);
}
