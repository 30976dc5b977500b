//! Thousands of clients at once, on one thread: what becomes of each.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::ops::Range;
use std::time::{Duration, Instant};

use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};
use socket2::SockRef;

const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";

/// What a client does once it is connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    /// Sends a request.
    Asks,
    /// Sends a request, and its FIN behind it.
    HalfCloses,
    /// Sends nothing.
    Silent,
}

/// How a client goes away before it has an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    Reset,
    /// By close(2): a FIN.
    Close,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Connecting,
    Connected,
    /// Bytes of an answer have come.
    HasBytes,
    Answered,
    /// An answer that was cut by a reset.
    Cut,
    /// Closed without a byte.
    Closed,
    Reset,
    Refused,
    Left,
}

impl State {
    fn is_over(self) -> bool {
        !matches!(self, Self::Connecting | Self::Connected | Self::HasBytes)
    }
}

/// How many clients ended in which way; `open` have not ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    pub answered: usize,
    pub cut: usize,
    pub closed: usize,
    pub reset: usize,
    pub refused: usize,
    pub left: usize,
    pub connecting: usize,
    pub open: usize,
}

struct Client {
    stream: Option<TcpStream>,
    manner: Manner,
    state: State,
}

pub struct Crowd {
    poll: Poll,
    target: SocketAddr,
    clients: Vec<Client>,
}

impl Crowd {
    pub fn of(port: u16) -> Self {
        Self { poll: Poll::new().unwrap(), target: SocketAddr::from(([127, 0, 0, 1], port)), clients: Vec::new() }
    }

    /// So many more connect, without waiting for each other; their numbers.
    pub fn join(&mut self, count: usize, manner: Manner) -> Range<usize> {
        let first = self.clients.len();
        for at in first..first + count {
            let (stream, state) = match TcpStream::connect(self.target) {
                Ok(mut stream) => {
                    let interest = Interest::READABLE | Interest::WRITABLE;
                    self.poll.registry().register(&mut stream, Token(at), interest).unwrap();
                    (Some(stream), State::Connecting)
                }
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => (None, State::Refused),
                Err(error) => panic!("client {at}: {error}"),
            };
            self.clients.push(Client { stream, manner, state });
            if at % 64 == 0 {
                self.turn(Duration::ZERO);
            }
        }
        first..first + count
    }

    /// These go away, unless they have an answer already.
    pub fn leave(&mut self, who: Range<usize>, exit: Exit) {
        for client in self.clients[who].iter_mut().filter(|client| !client.state.is_over()) {
            let stream = client.stream.take().unwrap();
            if exit == Exit::Reset {
                SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
            }
            client.state = State::Left;
        }
    }

    pub fn tally(&self) -> Tally {
        let count = |state| self.clients.iter().filter(|client| client.state == state).count();
        Tally {
            answered: count(State::Answered),
            cut: count(State::Cut),
            closed: count(State::Closed),
            reset: count(State::Reset),
            refused: count(State::Refused),
            left: count(State::Left),
            connecting: count(State::Connecting),
            open: count(State::Connected) + count(State::HasBytes),
        }
    }

    /// Follows the clients until `enough`, or fails the test with `what`.
    #[track_caller]
    pub fn until(&mut self, what: &str, limit: Duration, mut enough: impl FnMut(&Tally) -> bool) -> Tally {
        let end = Instant::now() + limit;
        loop {
            self.turn(Duration::from_millis(20));
            let tally = self.tally();
            if enough(&tally) {
                return tally;
            }
            assert!(Instant::now() < end, "not within {limit:?}: {what}: {tally:?}");
        }
    }

    /// Waits until every client has an answer, a reset or a close: nobody hangs.
    #[track_caller]
    pub fn all_end(&mut self, limit: Duration) -> Tally {
        self.until("every client's end", limit, |tally| tally.open + tally.connecting == 0)
    }

    fn turn(&mut self, wait: Duration) {
        let mut events = Events::with_capacity(1024);
        match self.poll.poll(&mut events, Some(wait)) {
            Err(error) if error.kind() != ErrorKind::Interrupted => panic!("epoll: {error}"),
            _ => {}
        }
        for event in &events {
            let Token(at) = event.token();
            self.clients[at].step();
        }
    }
}

impl Client {
    fn step(&mut self) {
        let Some(stream) = &mut self.stream else { return };
        if self.state == State::Connecting {
            let failed = stream.take_error().unwrap();
            if failed.is_none() && stream.peer_addr().is_err() {
                return;
            }
            self.state = failed.map_or(State::Connected, |error| ended(error.kind(), false));
            if self.state == State::Connected && self.manner != Manner::Silent {
                // A reset that came meanwhile is seen by read.
                let _ = stream.write(REQUEST);
                if self.manner == Manner::HalfCloses {
                    let _ = stream.shutdown(Shutdown::Write);
                }
            }
        }
        let mut buffer = [0; 4096];
        while !self.state.is_over() {
            match stream.read(&mut buffer) {
                Ok(0) if self.state == State::HasBytes => self.state = State::Answered,
                Ok(0) => self.state = State::Closed,
                Ok(_) => self.state = State::HasBytes,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => self.state = ended(error.kind(), self.state == State::HasBytes),
            }
        }
        if self.state.is_over() {
            self.stream = None;
        }
    }
}

fn ended(kind: ErrorKind, has_bytes: bool) -> State {
    match kind {
        ErrorKind::ConnectionRefused => State::Refused,
        ErrorKind::ConnectionReset | ErrorKind::BrokenPipe if has_bytes => State::Cut,
        ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => State::Reset,
        other => panic!("a client's connection failed: {other:?}"),
    }
}
