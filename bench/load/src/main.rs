//! What bench/run needs and wrk cannot do: an open loop (latency from the scheduled start), bursts, thousands of idle
//! connections, uneven lifetimes, and the smallest possible server. One thread, epoll. Results are one line of JSON.

mod client;
mod hold;
mod serve;

use std::net::SocketAddr;

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
    },
}

fn main() -> std::io::Result<()> {
    match Role::parse() {
        Role::Open { target, rate, seconds } => client::open(target, rate, seconds),
        Role::Burst { target, connections, once } => client::burst(target, connections, once),
        Role::Hold { target, connections } => hold::hold(target, connections),
        Role::Lifetimes { target, connections, rate } => hold::lifetimes(target, connections, rate),
        Role::First { target } => client::first(target),
        Role::Serve { port, reuse_port, keep } => serve::serve(port, reuse_port, keep),
    }
}
