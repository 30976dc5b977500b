//! Clients that leave while they wait in the line: they are dropped, so that no worker gets a connection that nobody wants.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use mio::Token;

use super::Context;
use super::dispatcher::ServiceDispatcher;
use super::line::Ticket;
use super::orders::ServiceId;
use super::waits::ShedReason;
use crate::sys::{epoll, sock};

/// Tokens of clients have this bit, their service's id, and their ticket in the bits below.
const CLIENTS: usize = 1 << 62;
const TICKET_BITS: u32 = 44;

fn token(service: ServiceId, ticket: Ticket) -> Token {
    Token(CLIENTS | (service << TICKET_BITS) | (ticket as usize & ((1 << TICKET_BITS) - 1)))
}

/// The service and the ticket of a client's token; `None` for the other tokens.
pub(super) fn client(Token(token): Token) -> Option<(ServiceId, Ticket)> {
    let unused = usize::BITS - TICKET_BITS;
    let service = (token & !CLIENTS) >> TICKET_BITS;
    let ticket = (token << unused) as Ticket >> unused;
    (token & CLIENTS != 0 && token < super::deaths::DEATH.0).then_some((service, ticket))
}

impl Context {
    /// Has the end of a client's side, or a reset, reported.
    pub(super) fn watch_client(&self, socket: &OwnedFd, service: ServiceId, ticket: Ticket) -> io::Result<()> {
        epoll::add_hangup(&self.poll, socket.as_fd(), token(service, ticket))
    }
}

impl ServiceDispatcher {
    /// An event for a client that waits: drops it if it has left.
    pub(super) fn client_event(&mut self, ticket: Ticket, cx: &Context) {
        let Some(held) = self.line.get(ticket).or_else(|| self.workers.get_in_line(ticket)) else { return };
        if sock::has_left(held.socket.as_fd(), self.rules.abort_on_close)
            && let Some(held) = self.line.remove(ticket).or_else(|| self.workers.leave_line(ticket))
        {
            self.give_up(vec![held], ShedReason::ClientLeft, cx);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_tells_the_service_and_the_ticket() {
        for (service, ticket) in [(0, 0), (0, -1), (3, 1), (70_000, -(1 << 40)), (1, (1 << 43) - 1)] {
            assert_eq!(client(token(service, ticket)), Some((service, ticket)));
        }
        for other in
            [super::super::WAKER, super::super::deaths::DEATH, Token(0), Token(70_000 * super::super::LISTENERS + 5)]
        {
            assert_eq!(client(other), None);
        }
    }
}
