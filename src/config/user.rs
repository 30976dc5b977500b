//! `--user`: credentials of servers.

use nix::unistd::{Gid, Group, Uid, User};
use thiserror::Error;

use crate::sys::process::Credentials;

#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum UserError {
    #[error("no such user")]
    NoUser,
    #[error("no such group")]
    NoGroup,
    #[error("only root can run servers as another user")]
    NotRoot,
}

/// Finds a user by name or number, optionally followed by a colon and a group.
///
/// # Errors
/// When it does not exist, or we may not change users.
pub fn find(text: &str) -> Result<Credentials, UserError> {
    let (name, group) = text.split_once(':').map_or((text, None), |(name, group)| (name, Some(group)));
    let known = match name.parse::<u32>() {
        Ok(uid) => User::from_uid(Uid::from_raw(uid)).ok().flatten(),
        Err(_) => User::from_name(name).ok().flatten(),
    };
    let (uid, own) = match (&known, name.parse::<u32>()) {
        (Some(user), _) => (user.uid, user.gid),
        // Containers run as numbers that are in no passwd file.
        (None, Ok(uid)) => (Uid::from_raw(uid), Gid::from_raw(uid)),
        (None, Err(_)) => return Err(UserError::NoUser),
    };
    let gid = match group {
        None => own,
        Some(group) => match group.parse::<u32>() {
            Ok(gid) => Gid::from_raw(gid),
            Err(_) => match Group::from_name(group) {
                Ok(Some(group)) => group.gid,
                _ => return Err(UserError::NoGroup),
            },
        },
    };
    if !nix::unistd::geteuid().is_root() && uid != nix::unistd::geteuid() {
        return Err(UserError::NotRoot);
    }
    let name = known.and_then(|user| std::ffi::CString::new(user.name).ok());
    let groups = match name.filter(|_| group.is_none()) {
        Some(name) => nix::unistd::getgrouplist(&name, gid).unwrap_or_else(|_| vec![gid]),
        None => vec![gid],
    };
    Ok(Credentials { uid, gid, groups })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_are_found_and_others_are_named() {
        let root = find("root").unwrap();
        assert_eq!((root.uid.as_raw(), root.gid.as_raw()), (0, 0));
        assert_eq!(find("0:0").unwrap().gid.as_raw(), 0);
        assert_eq!(find("no-such-user"), Err(UserError::NoUser));
        assert_eq!(find("0:no-such-group"), Err(UserError::NoGroup));
    }
}
