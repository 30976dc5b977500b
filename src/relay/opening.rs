//! Connects a session to its upstream: choice, attempt, first bytes, and the next choice after a failure.

use std::io;
use std::os::fd::AsFd;
use std::time::Instant;

use mio::Poll;
use mio::event::Event;

use super::connect::Started;
use super::protocol::FromWorker;
use super::pump::{End, Nodelay};
use super::session::{Fate, Moved, Side, Stage};
use super::sessions::{RETRY, Sessions, ticks, token};
use super::upstreams::{Address, Change, Upstreams};
use crate::abi::page::row;
use crate::sys::{reason, sock};

impl Sessions {
    /// Connects a session to an upstream and writes the first `first` bytes of the buffer to it.
    pub(super) fn connect(&mut self, poll: &Poll, index: usize, now: Instant, first: usize) {
        let tick = self.tick(now);
        let Some(session) = self.slab.get_mut(index) else { return };
        let generation = session.generation;
        while let Some(target) = self.upstreams.pick(now) {
            let Some(address) = self.upstreams.address(target) else { break };
            let nodelay = match address {
                Address::Tcp(..) => Nodelay::AtSecondWrite,
                Address::Unix(..) => Nodelay::Set,
            };
            if let Some(entry) = &mut session.entry {
                entry.connects();
            }
            let error = match self.sources.connect(address) {
                Ok(Started::Going(socket)) => {
                    let mut end = End::new(socket, nodelay);
                    if first == 0 {
                        // epoll will report it as established.
                        end.writable = false;
                        session.target = target;
                        session.upstream = Stage::Connecting(end, tick);
                        self.connecting += 1;
                        return self.act_on(poll, index, now, Fate::Waits);
                    }
                    match end.write(&self.buffer[..first]) {
                        Ok(written) => {
                            session.keep(&self.buffer[written..first]);
                            session.target = target;
                            if written > 0 {
                                let written = session.of_client(written as u64);
                                self.page.add(row::BYTES_IN, written);
                                self.upstreams.moved(target, written, 0);
                                if let Some(entry) = &mut session.entry {
                                    entry.moved(Moved { forth: written, back: 0 }, None);
                                    entry.connected();
                                }
                                end.readable = false;
                                session.upstream = Stage::Established(end);
                                self.established(target);
                                // There may be more to read from the client.
                                return self.advance(poll, index, now);
                            }
                            session.upstream = Stage::Connecting(end, tick);
                            self.connecting += 1;
                            return self.act_on(poll, index, now, Fate::Waits);
                        }
                        Err(error) => error,
                    }
                }
                Ok(Started::Later) => {
                    self.upstreams.closed(target);
                    break;
                }
                Err(error) => error,
            };
            Self::failed(&mut self.upstreams, &mut self.reports, &mut self.stale, target, &error, now);
        }
        session.keep(&self.buffer[..first]);
        session.upstream = Stage::Waiting;
        self.waiting.push(token(index, generation, Side::Client));
        self.page.set_waiting(self.waiting.len());
        self.retry.get_or_insert(now + RETRY);
        self.act_on(poll, index, now, Fate::Waits);
    }

    fn established(&mut self, target: usize) {
        let change = self.upstreams.established(target);
        self.report_up(target, change);
    }

    pub(super) fn report_up(&mut self, target: usize, change: Change) {
        if change == Change::Turned
            && let Some(address) = self.upstreams.address(target)
        {
            self.reports.push(FromWorker::UpstreamUp { address: address.to_string() });
        }
    }

    pub(super) fn failed(
        upstreams: &mut Upstreams,
        reports: &mut Vec<FromWorker>,
        stale: &mut Vec<(usize, String, u16)>,
        target: usize,
        error: &io::Error,
        now: Instant,
    ) {
        if upstreams.failed(target, now, error) == Change::Turned
            && let Some(address) = upstreams.address(target)
        {
            reports.push(FromWorker::UpstreamDown { address: address.to_string(), error: reason(error) });
        }
        stale.extend(upstreams.name(target));
    }

    /// Takes the result of a connect(2) from an event.
    pub(super) fn finish_connect(&mut self, poll: &Poll, index: usize, now: Instant, event: &Event) {
        let Some(session) = self.slab.get_mut(index) else { return };
        let Some(end) = session.end_mut(Side::Upstream) else { return };
        if (event.is_error() || event.is_write_closed())
            && let Ok(Some(error)) = socket2::SockRef::from(&end.socket).take_error()
        {
            return self.connect_failed(poll, index, now, &error);
        }
        if event.is_writable() {
            let target = session.target;
            session.established();
            if let Some(entry) = &mut session.entry {
                entry.connected();
            }
            self.connecting -= 1;
            self.established(target);
            self.advance(poll, index, now);
        }
    }

    /// An attempt failed or took too long: the next upstream.
    pub(super) fn connect_failed(&mut self, poll: &Poll, index: usize, now: Instant, error: &io::Error) {
        let Some(session) = self.slab.get_mut(index) else { return };
        session.upstream = Stage::Waiting;
        self.connecting -= 1;
        let target = std::mem::replace(&mut session.target, usize::MAX);
        Self::failed(&mut self.upstreams, &mut self.reports, &mut self.stale, target, error, now);
        self.connect(poll, index, now, 0);
    }

    /// New attempts for sessions without an upstream, until their connect timeout is over.
    pub(super) fn retry_waiting(&mut self, poll: &Poll, now: Instant) {
        let tick = self.tick(now);
        let timeout = ticks(self.connect_timeout);
        for token in std::mem::take(&mut self.waiting) {
            let Some(index) = self.live(token) else { continue };
            let Some(session) = self.slab.get(index) else { continue };
            if !matches!(session.upstream, Stage::Waiting) {
                continue;
            }
            if tick.saturating_sub(session.begun) >= timeout {
                self.page.add(row::UNREACHABLE, 1);
                sock::reset_on_close(session.client.socket.as_fd());
                self.close(index);
            } else {
                self.connect(poll, index, now, 0);
            }
        }
        self.page.set_waiting(self.waiting.len());
    }
}
