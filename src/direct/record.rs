//! The preload library's place in a daemon's record: workers' processes may start others with it.

use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use super::{Place, Preload, Written};
use crate::record::{Fd, Found, Kept};

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PreloadRecord {
    path: String,
    place: PlaceRecord,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
enum PlaceRecord {
    Ours(Fd),
    Inherited(Fd),
    /// With the device and inode of the file, and the lock on it.
    File(PathBuf, (u64, u64), Option<Fd>),
}

impl Preload {
    pub fn record(&self, kept: &mut Kept) -> PreloadRecord {
        let Self { path, place, doubt: _ } = self;
        let place = match place {
            Place::Ours(fd) => PlaceRecord::Ours(kept.keep(fd)),
            Place::Inherited(fd) => PlaceRecord::Inherited(kept.keep(fd)),
            Place::File(written) => {
                let Written { path, identity, lock } = &*written.lock().unwrap_or_else(PoisonError::into_inner);
                PlaceRecord::File(path.clone(), *identity, lock.as_ref().map(|lock| kept.keep(&**lock)))
            }
        };
        PreloadRecord { path: path.clone(), place }
    }

    /// # Errors
    /// When its file is not there.
    pub fn adopt(PreloadRecord { path, place }: PreloadRecord, found: &mut Found) -> io::Result<Self> {
        let place = match place {
            PlaceRecord::Ours(fd) => Place::Ours(found.take(fd)?),
            PlaceRecord::Inherited(fd) => Place::Inherited(found.take(fd)?),
            PlaceRecord::File(file, identity, lock) => {
                let lock = lock.map(|fd| found.take(fd)).transpose()?.map(File::from);
                let lock = lock.and_then(|file| Flock::lock(file, FlockArg::LockSharedNonblock).ok());
                Place::File(Mutex::new(Written { path: file, identity, lock }))
            }
        };
        Ok(Self::at(path, place))
    }
}
