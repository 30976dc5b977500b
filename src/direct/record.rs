//! The preload library's place in a daemon's record: workers' processes may start others with it.

use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use super::{Place, Preload, Written, locked};
use crate::record::{Fd, Found, Kept};

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PreloadRecord {
    path: String,
    place: PlaceRecord,
    #[serde(default)]
    before: Vec<WrittenRecord>,
}

/// A file with its device and inode, and the lock on it.
type WrittenRecord = (PathBuf, (u64, u64), Option<Fd>);

#[derive(Debug, Clone, Serialize, Deserialize)]
enum PlaceRecord {
    Ours(Fd),
    Inherited(Fd),
    /// With the device and inode of the file, and the lock on it.
    File(PathBuf, (u64, u64), Option<Fd>),
}

impl Preload {
    pub fn record(&self, kept: &mut Kept) -> PreloadRecord {
        let Self { path, place, doubt: _, before } = self;
        let place = match place {
            Place::Ours(fd) => PlaceRecord::Ours(kept.keep(fd)),
            Place::Inherited(fd) => PlaceRecord::Inherited(kept.keep(fd)),
            Place::File(written) => {
                let (path, identity, lock) = locked(written).record(kept);
                PlaceRecord::File(path, identity, lock)
            }
        };
        let before = before.lock().unwrap_or_else(PoisonError::into_inner);
        let before = before.iter().map(|written| written.record(kept)).collect();
        PreloadRecord { path: path.clone(), place, before }
    }

    /// # Errors
    /// When its file is not there.
    pub fn adopt(PreloadRecord { path, place, before }: PreloadRecord, found: &mut Found) -> io::Result<Self> {
        let place = match place {
            PlaceRecord::Ours(fd) => Place::Ours(found.take(fd)?),
            PlaceRecord::Inherited(fd) => Place::Inherited(found.take(fd)?),
            PlaceRecord::File(file, identity, lock) => {
                Place::File(Mutex::new(Written::adopt((file, identity, lock), found)?))
            }
        };
        let before = before.into_iter().map(|written| Written::adopt(written, found)).collect::<io::Result<_>>()?;
        let mut preload = Self::at(path, place);
        preload.before = Mutex::new(before);
        Ok(preload)
    }
}

impl Written {
    fn record(&self, kept: &mut Kept) -> WrittenRecord {
        let Self { path, identity, lock } = self;
        (path.clone(), *identity, lock.as_ref().map(|lock| kept.keep(&**lock)))
    }

    fn adopt((path, identity, lock): WrittenRecord, found: &mut Found) -> io::Result<Self> {
        let lock = lock.map(|fd| found.take(fd)).transpose()?.map(File::from);
        let lock = lock.and_then(|file| Flock::lock(file, FlockArg::LockSharedNonblock).ok());
        Ok(Self { path, identity, lock })
    }
}
