//! `--admin-token-file`: who may act, and see what is not for everybody.

use std::io::Read;
use std::net::IpAddr;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use axum::http::{HeaderMap, header};
use subtle::ConstantTimeEq;
use thiserror::Error;

use super::view::Viewer;
use crate::sys::reason;

/// Characters of a token.
const LENGTHS: std::ops::RangeInclusive<usize> = 16..=1024;
/// Headers of a proxy: the client is someone else than the peer.
const FORWARDED: [&str; 4] = ["forwarded", "x-forwarded-for", "x-real-ip", "via"];

#[derive(Debug, Error)]
pub enum TokenError {
    #[error("cannot read {}: {}", .path.display(), reason(.source))]
    Unreadable { path: PathBuf, source: std::io::Error },
    #[error("cannot use {}: it is not a regular file", .0.display())]
    NotAFile(PathBuf),
    #[error("cannot use {}: it belongs to uid {uid}", .path.display())]
    Foreign { path: PathBuf, uid: u32 },
    #[error("cannot use {}: others can read or change it; chmod 600", .0.display())]
    Open(PathBuf),
    #[error("cannot use {}: a token is 16 to 1024 characters without spaces; openssl rand -hex 32 makes one", .0.display())]
    NotAToken(PathBuf),
}

/// The token in force, shared by the threads; none without a file.
#[derive(Debug, Clone, Default)]
pub struct Token {
    path: Option<PathBuf>,
    value: Arc<Mutex<Option<Box<str>>>>,
}

/// What a request's `Authorization` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Claim {
    /// There is none.
    None,
    Right,
    Wrong,
}

impl Token {
    /// Of a file, or none.
    ///
    /// # Errors
    /// See [`TokenError`].
    pub fn of(path: Option<&Path>) -> Result<Self, TokenError> {
        let value = path.map(read).transpose()?;
        Ok(Self { path: path.map(Path::to_owned), value: Arc::new(Mutex::new(value)) })
    }

    /// Reads the file again; on an error the token stays as it was.
    ///
    /// # Errors
    /// See [`TokenError`].
    pub fn reread(&self) -> Result<(), TokenError> {
        if let Some(path) = &self.path {
            let new = read(path)?;
            *self.value.lock().unwrap_or_else(PoisonError::into_inner) = Some(new);
        }
        Ok(())
    }

    pub fn is_configured(&self) -> bool {
        self.path.is_some()
    }

    /// Compares in a time that does not depend on where the texts differ.
    pub fn claim(&self, headers: &HeaderMap) -> Claim {
        let Some(given) = headers.get(header::AUTHORIZATION) else { return Claim::None };
        let given = given.as_bytes();
        let given = given.get(..7).filter(|scheme| scheme.eq_ignore_ascii_case(b"bearer ")).map(|_| &given[7..]);
        let value = self.value.lock().unwrap_or_else(PoisonError::into_inner);
        match (given, &*value) {
            (Some(given), Some(token)) if bool::from(given.ct_eq(token.as_bytes())) => Claim::Right,
            _ => Claim::Wrong,
        }
    }
}

/// Who asks: without a token, only someone on this machine is trusted.
pub fn viewer(claim: Claim, peer: IpAddr, headers: &HeaderMap) -> Option<Viewer> {
    let local = || peer.to_canonical().is_loopback() && !FORWARDED.iter().any(|name| headers.contains_key(*name));
    match claim {
        Claim::Wrong => None,
        Claim::Right => Some(Viewer::Trusted),
        Claim::None if local() => Some(Viewer::Trusted),
        Claim::None => Some(Viewer::Stranger),
    }
}

fn read(path: &Path) -> Result<Box<str>, TokenError> {
    let fail = |source| TokenError::Unreadable { path: path.to_owned(), source };
    // Not waiting for a writer if it is a FIFO.
    let file = std::fs::OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(fail)?;
    let meta = file.metadata().map_err(fail)?;
    if !meta.is_file() {
        return Err(TokenError::NotAFile(path.to_owned()));
    }
    if ![0, nix::unistd::geteuid().as_raw()].contains(&meta.uid()) {
        return Err(TokenError::Foreign { path: path.to_owned(), uid: meta.uid() });
    }
    // A group may read it: the owner's, or Kubernetes' fsGroup.
    if meta.mode() & 0o027 != 0 {
        return Err(TokenError::Open(path.to_owned()));
    }
    let mut bytes = Vec::new();
    file.take(*LENGTHS.end() as u64 + 2).read_to_end(&mut bytes).map_err(fail)?;
    let token = bytes.trim_ascii();
    let fits = LENGTHS.contains(&token.len()) && token.iter().all(u8::is_ascii_graphic);
    let token = std::str::from_utf8(token).ok().filter(|_| fits);
    token.map(Into::into).ok_or_else(|| TokenError::NotAToken(path.to_owned()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_token_file_is_private_and_has_one_token() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        let with = |text: &str, mode: u32| {
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            Token::of(Some(&path)).map_err(|error| error.to_string())
        };
        assert!(with("0123456789abcdef\n", 0o600).is_ok());
        assert!(with("0123456789abcdef\n", 0o640).is_ok());
        for mode in [0o644, 0o604, 0o660, 0o602] {
            assert!(with("0123456789abcdef", mode).unwrap_err().contains("chmod 600"), "{mode:o}");
        }
        for text in ["", "short", "0123456789 abcdef", "0123456789abcdef\n0123456789abcdef", &"x".repeat(1025)] {
            assert!(with(text, 0o600).unwrap_err().contains("a token is"), "{text}");
        }
        assert!(Token::of(Some(dir.path())).unwrap_err().to_string().contains("not a regular file"));
        nix::unistd::mkfifo(&dir.path().join("fifo"), nix::sys::stat::Mode::S_IRUSR).unwrap();
        assert!(Token::of(Some(&dir.path().join("fifo"))).unwrap_err().to_string().contains("not a regular file"));
        assert!(Token::of(Some(&dir.path().join("none"))).unwrap_err().to_string().contains("No such file"));
    }

    #[test]
    fn what_a_request_claims() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        let write = |text: &str| {
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        };
        write("0123456789abcdef");
        let token = Token::of(Some(&path)).unwrap();
        let claim = |token: &Token, value: &str| {
            token.claim(&[(header::AUTHORIZATION, value.parse().unwrap())].into_iter().collect())
        };
        assert_eq!(token.claim(&HeaderMap::new()), Claim::None);
        assert_eq!(claim(&token, "Bearer 0123456789abcdef"), Claim::Right);
        assert_eq!(claim(&token, "bearer 0123456789abcdef"), Claim::Right);
        for wrong in
            ["", "Bearer", "Bearer ", "Bearer 0123456789abcde", "Bearer 0123456789abcdeg", "Basic 0123456789abcdef"]
        {
            assert_eq!(claim(&token, wrong), Claim::Wrong, "{wrong}");
        }
        assert_eq!(claim(&Token::default(), "Bearer "), Claim::Wrong, "nobody has the token that is none");
        // Read again; what cannot be used leaves the old one.
        write("fedcba9876543210");
        token.reread().unwrap();
        assert_eq!(claim(&token, "Bearer fedcba9876543210"), Claim::Right);
        write("short");
        assert!(token.reread().is_err());
        assert_eq!(claim(&token, "Bearer fedcba9876543210"), Claim::Right);
        assert_eq!(claim(&token, "Bearer short"), Claim::Wrong);
    }

    #[test]
    fn who_is_trusted() {
        let of = |claim, peer: &str, header: Option<&'static str>| {
            let headers = header.map(|name| (name.parse().unwrap(), "10.0.0.1".parse().unwrap())).into_iter().collect();
            viewer(claim, peer.parse().unwrap(), &headers)
        };
        assert_eq!(of(Claim::None, "127.0.0.1", None), Some(Viewer::Trusted));
        assert_eq!(of(Claim::None, "::ffff:127.0.0.1", None), Some(Viewer::Trusted));
        assert_eq!(of(Claim::None, "10.0.0.1", None), Some(Viewer::Stranger));
        assert_eq!(of(Claim::None, "127.0.0.1", Some("x-forwarded-for")), Some(Viewer::Stranger));
        assert_eq!(of(Claim::Right, "10.0.0.1", Some("forwarded")), Some(Viewer::Trusted));
        assert_eq!(of(Claim::Wrong, "127.0.0.1", None), None);
    }
}
