//! Options that are a choice between words.

use clap::ValueEnum;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Via {
    /// Direct where the command can take it, else relay
    Auto,
    /// Hand accepted sockets to the server itself
    Direct,
    /// Carry bytes to the server
    Relay,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum OnErrored {
    /// End with the server's exit code
    Exit,
    /// Keep running
    Stay,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum DrainIdle {
    /// It ends with the worker
    Close,
    /// Another worker goes on with it
    Move,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum OnExit {
    /// Start the server again
    Restart,
    /// Its work is done
    Ok,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum NodeIpc {
    /// Cluster for `node FILE` with direct delivery, plain by relay
    Auto,
    /// No channel
    Off,
    /// Messages, and no cluster: for apps that fork workers themselves
    Plain,
    /// A worker of Node's cluster
    Cluster,
}
