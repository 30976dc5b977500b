//! What bench/run needs and wrk cannot do: an open loop (latency from the scheduled start), bursts, thousands of idle
//! connections, uneven lifetimes, slow requests beside fast ones, random arrivals compared with an ideal queue, and the
//! smallest possible server. Where thousands are open at once, one thread and epoll. Results are one line of JSON.

mod client;
mod clock;
mod fifo;
mod hold;
mod keep;
mod paths;
mod poisson;
mod request;
mod serve;
mod silent;
mod sleeper;

use std::net::SocketAddr;
use std::time::Duration;

use clap::Parser;

#[derive(Parser)]
enum Role {
    /// Connections with one request each, started at a fixed rate whatever the answers do.
    Open {
        target: SocketAddr,
        /// Connections per second.
        #[arg(long)]
        rate: f64,
        #[arg(long)]
        seconds: f64,
    },
    /// So many connections at once, one request each; how long until the last answer.
    Burst {
        target: SocketAddr,
        #[arg(long)]
        connections: usize,
        /// Closes at the first answer: the server keeps its connections.
        #[arg(long)]
        once: bool,
    },
    /// Opens connections, one request each, says "ready", and keeps them until its standard input ends.
    Hold {
        target: SocketAddr,
        #[arg(long)]
        connections: usize,
    },
    /// Clients that post on a connection that they keep, says "ready", and ends with its standard input.
    Keep {
        target: SocketAddr,
        #[arg(long)]
        clients: usize,
        /// Between a client's requests.
        #[arg(long)]
        pause_ms: u64,
    },
    /// Connections that stay open for uneven times: one in ten long, the others short.
    Lifetimes {
        target: SocketAddr,
        #[arg(long)]
        connections: usize,
        /// Opened per second.
        #[arg(long)]
        rate: f64,
    },
    /// Tries to connect and to get an answer from now on; says when it did, in milliseconds.
    First { target: SocketAddr },
    /// Clients that ask one after the other, one request per connection: some for /slow, others for /fast.
    Beside {
        target: SocketAddr,
        #[arg(long)]
        slow: usize,
        #[arg(long)]
        fast: usize,
        #[arg(long)]
        seconds: f64,
    },
    /// Clients that ask now and then, one request per connection, beside others that connect and send nothing, and come again
    /// when they are closed.
    Silent {
        target: SocketAddr,
        #[arg(long)]
        silent: usize,
        #[arg(long)]
        clients: usize,
        /// Mean time between an answer and the next connection.
        #[arg(long)]
        pause_ms: f64,
        #[arg(long)]
        seconds: f64,
        /// The clients that ask send a PROXY header first.
        #[arg(long)]
        proxy: bool,
    },
    /// Who answers: connections by worker, which the answers name.
    Who {
        target: SocketAddr,
        #[arg(long)]
        connections: usize,
        /// At a time.
        #[arg(long)]
        clients: usize,
        /// All stay open until the end.
        #[arg(long)]
        keep: bool,
    },
    /// Random arrivals at servers (`serve --sleep`) that do one thing at a time; how long they wait, and how long they
    /// would have waited in an ideal queue.
    Poisson {
        target: SocketAddr,
        #[arg(long)]
        connections: usize,
        #[arg(long)]
        servers: usize,
        /// Mean service time.
        #[arg(long)]
        mean_ms: f64,
        /// Share of the time that the servers are busy.
        #[arg(long)]
        load: f64,
        #[arg(long)]
        seed: u64,
    },
    /// Accept, read, answer, close. On PORT of the environment unless told otherwise.
    Serve {
        #[arg(long)]
        port: Option<u16>,
        /// Shares the port with others by SO_REUSEPORT.
        #[arg(long)]
        reuse_port: bool,
        /// Leaves closing to the client.
        #[arg(long)]
        keep: bool,
        /// Accepts all at once, and serves one at a time: each request (GET /MICROSECONDS) takes its time.
        #[arg(long, conflicts_with_all = ["reuse_port", "keep"])]
        sleep: bool,
    },
}

fn main() -> std::io::Result<()> {
    match Role::parse() {
        Role::Open { target, rate, seconds } => client::open(target, rate, seconds),
        Role::Burst { target, connections, once } => client::burst(target, connections, once),
        Role::Hold { target, connections } => hold::hold(target, connections),
        Role::Keep { target, clients, pause_ms } => keep::keep(target, clients, Duration::from_millis(pause_ms)),
        Role::Lifetimes { target, connections, rate } => hold::lifetimes(target, connections, rate),
        Role::First { target } => client::first(target),
        Role::Beside { target, slow, fast, seconds } => paths::beside(target, slow, fast, seconds),
        Role::Silent { target, silent, clients, pause_ms, seconds, proxy } => {
            silent::silent(target, &silent::Plan { silent, clients, pause_ms, seconds, proxy })
        }
        Role::Who { target, connections, clients, keep } => paths::who(target, connections, clients, keep),
        Role::Poisson { target, connections, servers, mean_ms, load, seed } => {
            poisson::poisson(target, &poisson::Plan { connections, servers, mean_ms, load, seed })
        }
        Role::Serve { port, sleep: true, .. } => sleeper::serve(port),
        Role::Serve { port, reuse_port, keep, .. } => serve::serve(port, reuse_port, keep),
    }
}
