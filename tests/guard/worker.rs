//! A relay worker under valgrind: allocations and instructions per connection. The test is its master.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Command, Stdio};

use roundsman::addr::Upstream;
use roundsman::handoff::page::CountersPage;
use roundsman::handoff::{Carries, QueueTx};
use roundsman::relay::protocol::{self, FromWorker, Resolved, Setup, Source, ToWorker};
use roundsman::sys::{clock, sock};

use crate::support::{self, eventually, seconds};

/// What valgrind says of a worker that carried so many connections, one after the other.
fn carried(tool: &str, connections: usize) -> String {
    let upstream = support::Upstream::echo();
    let (channel, theirs) = sock::seqpacket_pair().unwrap();
    let (_page, page) = CountersPage::create().unwrap();
    let (queue, end) = QueueTx::to_relay(Carries::Sockets).unwrap();
    let output = if tool.contains("callgrind") { "--callgrind-out-file=/dev/null" } else { "--leak-check=no" };
    let mut command = Command::new("valgrind");
    command.args([tool, output, env!("CARGO_BIN_EXE_roundsman"), "relay-worker"]);
    let child = command.stdin(Stdio::from(theirs)).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let host = Upstream::Host { host: "127.0.0.1".to_owned(), port: upstream.address.port() };
    let setup = Setup {
        slot: 0,
        listeners: 1,
        source: Source::Queues,
        upstreams: vec![Resolved { upstream: host, addresses: vec![upstream.address], weight: 1, backup: false }],
        shared: false,
        log: false,
        bell: false,
        translates: false,
        send_proxy: None,
        batch: 16,
        capacity: 1000,
        pipes: 8,
        connect_timeout_ms: 5_000,
        idle_timeout_ms: 60_000,
        moves: false,
        drain_spread_ms: None,
    };
    protocol::send(channel.as_fd(), &setup, &[page.as_fd(), end.as_fd()]).unwrap();
    drop((page, end));
    eventually("the worker is ready", seconds(30), || {
        protocol::receive::<FromWorker>(channel.as_fd(), &mut Vec::new()).ok()?
    });
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    for _ in 0..connections {
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let socket = listener.accept().unwrap().0;
        socket.set_nonblocking(true).unwrap();
        let socket = OwnedFd::from(socket);
        // Its bytes are there before it is handed over: nothing depends on who is quicker.
        client.write_all(b"ping").unwrap();
        queue.send([socket.as_fd()].into_iter(), clock::monotonic_ns()).unwrap();
        drop(socket);
        let mut answer = [0; 4];
        client.read_exact(&mut answer).unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        assert_eq!(client.read(&mut answer).unwrap(), 0);
    }
    protocol::send(channel.as_fd(), &ToWorker::Drain, &[]).unwrap();
    drop(queue);
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The number behind a word.
pub fn number_behind(text: &str, word: &str) -> f64 {
    let found = text.split_once(word).unwrap_or_else(|| panic!("no {word:?} in {text}")).1;
    let digits: String =
        found.trim_start_matches([' ', ':']).chars().take_while(|c| c.is_ascii_digit() || *c == ',').collect();
    digits.replace(',', "").parse().unwrap()
}

/// What one connection more costs.
fn per_connection(tool: &str, word: &str) -> f64 {
    let (few, many) = (100, 500);
    let cost = |connections| number_behind(&carried(tool, connections), word);
    (cost(many) - cost(few)) / (many - few) as f64
}

#[test]
fn a_relayed_connection_allocates_next_to_nothing() {
    let allocations = per_connection("--tool=memcheck", "total heap usage:");
    println!("relay worker: {allocations:.3} allocations per connection");
    assert!(allocations <= 0.05, "{allocations}");
}

#[test]
fn a_relayed_connection_takes_few_instructions_of_our_own() {
    let instructions = per_connection("--tool=callgrind", "Collected");
    println!("relay worker: {instructions:.0} instructions per connection");
    assert!(instructions > 500.0, "nothing was counted");
    // 10,100 until each turn also asked whether sessions are to be given back or ended one by one.
    assert!(instructions <= 10_900.0, "{instructions}");
}
