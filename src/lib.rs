//! roundsman: a round-robin TCP load-balancing daemon. The parts, in the order data flows:
//!
//! | module | what it is |
//! |---|---|
//! | [`cli`] | the command line: verbs, hints, completions |
//! | [`config`] | the validated configuration: options, file, defaults, delivery |
//! | [`addr`] | written forms of addresses |
//! | [`cidr`] | written forms of networks |
//! | [`program`] | what is known of a command before it runs |
//! | [`listener`] | listening sockets, bound or adopted |
//! | [`proxy_protocol`] | the header in which a balancer in front says who its client is |
//! | [`affinity`] | what a connection is hashed on: keys in a request's head, sessions |
//! | [`accept`] | the accept thread: listeners → policy → hand-off |
//! | [`handoff`] | queues that carry accepted sockets, counters pages, rescue |
//! | [`abi`] | what two processes must agree on |
//! | [`access`] | the access log: a line for each connection |
//! | [`exchange`] | where the requests and answers of an HTTP/1.1 connection begin and end |
//! | [`relay`] | the relay worker: bytes between clients and upstreams |
//! | [`direct`] | accepted sockets into the server itself: attach socket, preload library |
//! | [`keeper`] | parent of a server that cannot be preloaded: answers its system calls |
//! | [`node`] | Node's IPC: its channel, cluster messages |
//! | [`lines`] | streams taken apart into lines: the control socket's and Node's |
//! | [`launch`] | the one place that starts processes |
//! | [`daemon`] | the control thread: signals, children, timers → reconcile → actions |
//! | [`service`] | one service at run time: its slots, reloads, stops |
//! | [`slot`] | one slot of a service: its lifecycle, its worker, those that make room for it |
//! | [`worker`] | one generation of a slot: its processes, and what connects them to us |
//! | [`record`] | what a daemon leaves to the program that takes its place |
//! | [`events`] | what the control thread waits on |
//! | [`control`] | the control socket, both ends |
//! | [`admin`] | health and metrics over HTTP |
//! | [`output`] | the log, written by its own thread |
//! | [`limited`] | warnings that others can cause, a second apart, and other limits of rate |
//! | [`proc_net`] | look-ups in /proc: who has a port, which sockets a process has |
//! | [`exit`] | exit code and message of each error |
//! | [`codes`] | exit codes |
//! | [`sys`] | system calls: the only `unsafe` |

pub mod abi;
pub mod accept;
pub mod access;
pub mod addr;
pub mod admin;
pub mod affinity;
pub mod cidr;
pub mod cli;
pub mod codes;
pub mod config;
pub mod control;
pub mod daemon;
pub mod direct;
pub mod events;
pub mod exchange;
pub mod exit;
pub mod handoff;
pub mod keeper;
pub mod launch;
pub mod limited;
pub mod lines;
pub mod listener;
pub mod node;
pub mod output;
pub mod proc_net;
pub mod program;
pub mod proxy_protocol;
pub mod record;
pub mod relay;
pub mod service;
pub mod slot;
pub mod sys;
pub mod worker;
