//! Socket options that a server sets and reads on a listener.

use std::os::fd::AsFd;

use super::{Handler, errno};
use crate::abi::attach::{OPTION_BYTES, SocketOption};
use crate::accept::orders::ListenerId;
use crate::direct::attach::AttachReply;
use crate::direct::options;
use crate::listener::Listener;
use crate::sys::process::Credentials;
use crate::sys::{rights, sock};

impl Handler<'_> {
    pub(super) fn set_option(&mut self, at: usize, id: ListenerId, option: &SocketOption, uid: u32) -> AttachReply {
        let reply = set(self.listeners.find(id), option, uid);
        let is_reuse = (option.level, option.name) == (libc::SOL_SOCKET, libc::SO_REUSEADDR);
        if let (AttachReply::Errno(0), true, Some(direct)) = (&reply, is_reuse, self.slots[at].attachment_mut()) {
            let on = option.value.iter().take(size_of::<i32>()).any(|&byte| byte != 0);
            let _ = if on { direct.exclusive.remove(&id) } else { direct.exclusive.insert(id) };
        }
        reply
    }
}

/// Our rights are not lent to a server that has less of them.
pub fn set(listener: Option<&Listener>, option: &SocketOption, uid: u32) -> AttachReply {
    let Some(listener) = listener else { return AttachReply::Errno(libc::EINVAL) };
    let value = &option.value[..(option.len as usize).min(OPTION_BYTES)];
    if !options::may_set(option.level, option.name) {
        return AttachReply::Errno(libc::ENOPROTOOPT);
    }
    let set = || sock::set_option(listener.socket.as_fd(), option.level, option.name, value);
    match rights::as_server(Credentials::of(uid).as_ref(), set) {
        Ok(()) => AttachReply::Errno(0),
        Err(error) => errno(&error, libc::EINVAL),
    }
}

pub fn get(listener: Option<&Listener>, option: &SocketOption) -> AttachReply {
    let Some(listener) = listener else { return AttachReply::Errno(libc::EINVAL) };
    if !options::may_get(option.level, option.name) {
        // As the kernel says it of a level that it does not know.
        let known = options::is_level(option.level);
        return AttachReply::Errno(if known { libc::ENOPROTOOPT } else { libc::EOPNOTSUPP });
    }
    let mut value = [0; OPTION_BYTES];
    match sock::option(listener.socket.as_fd(), option.level, option.name, &mut value) {
        Ok(len) => AttachReply::Value(SocketOption { len: len as u32, value, ..*option }),
        Err(error) => errno(&error, libc::EINVAL),
    }
}
