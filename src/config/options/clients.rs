//! Options about clients: who they are, which of them are served, and what each source may have.

use std::time::Duration;

use clap::Args;

use crate::config::clients::NetworkWord;
use crate::config::values::{age, number, rate};
use crate::proxy_protocol::balancers::Balancer;
use crate::proxy_protocol::sending::Version as ProxyVersion;

/// Options about clients.
#[derive(Debug, Clone, Args)]
pub struct ClientOptions {
    /// Networks of balancers in front; their connections begin with a PROXY header: 10.0.0.0/8
    ///
    /// `unix`: connections on Unix listeners. Version 1 or 2. The server sees the client's address. A connection from there without a valid header is reset; for all others
    /// the first bytes are data.
    #[arg(long, hide_short_help = true, value_name = "CIDR", env = "ROUNDSMAN_PROXY_FROM", value_delimiter = ',')]
    pub proxy_from: Vec<Balancer>,
    /// Networks whose clients may connect, and no others: 10.0.0.0/8, or @FILE with one per line
    ///
    /// Where --deny has networks, too, the longest prefix decides. Others are reset. Files are read again by a reload.
    #[arg(long, hide_short_help = true, value_name = "CIDR", env = "ROUNDSMAN_ALLOW", value_delimiter = ',')]
    pub allow: Vec<NetworkWord>,
    /// Networks whose clients may not connect: 192.0.2.0/24, or @FILE with one per line
    #[arg(long, hide_short_help = true, value_name = "CIDR", env = "ROUNDSMAN_DENY", value_delimiter = ',')]
    pub deny: Vec<NetworkWord>,
    /// Connections that one source has at a time; more are reset [default: no limit]
    ///
    /// A source is an IPv4 address or a /64 of IPv6.
    #[arg(long, hide_short_help = true, value_name = "N", env = "ROUNDSMAN_SOURCE_CONNS", value_parser = |text: &str| number(text, 1..=65_536))]
    pub source_conns: Option<u32>,
    /// Connections that one source opens per second; more are reset: 50/s [default: no limit]
    ///
    /// As many as in a second may come at once.
    #[arg(long, hide_short_help = true, value_name = "RATE", env = "ROUNDSMAN_SOURCE_RATE", value_parser = rate)]
    pub source_rate: Option<u32>,
    /// Reset a client that has sent nothing for this long; no worker gets it before [default: off]
    ///
    /// Not for servers that speak first: SMTP, FTP, SSH, MySQL, IMAP, POP3.
    #[arg(long, hide_short_help = true, value_name = "TIME", env = "ROUNDSMAN_FIRST_BYTE_TIMEOUT", value_parser = age)]
    pub first_byte_timeout: Option<Duration>,
    /// Begin connections to upstreams and relayed commands with a PROXY header, which says who the client is: v1, v2
    ///
    /// The server has to expect it. A command gets its connections by relay then.
    #[arg(
        long,
        hide_short_help = true,
        value_name = "VERSION",
        env = "ROUNDSMAN_SEND_PROXY",
        hide_possible_values = true
    )]
    pub send_proxy: Option<ProxyVersion>,
}
