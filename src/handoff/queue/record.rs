//! A queue in a daemon's record.

use std::io;

use serde::{Deserialize, Serialize};

use super::{Carries, Framing, QueueTx};
use crate::record::{Fd, Found, Kept};
use crate::sys::closer::Foreign;

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct QueueRecord {
    tx: Fd,
    rx: Fd,
    direct: bool,
    translations: bool,
}

impl QueueTx {
    pub fn record(&self, kept: &mut Kept) -> QueueRecord {
        let Self { tx, rx, framing, carries } = self;
        QueueRecord {
            tx: kept.keep(tx),
            rx: kept.keep(rx),
            direct: *framing == Framing::Single,
            translations: *carries == Carries::Translations,
        }
    }

    /// # Errors
    /// When its descriptors are not there.
    pub fn adopt(QueueRecord { tx, rx, direct, translations }: QueueRecord, found: &mut Found) -> io::Result<Self> {
        Ok(Self {
            tx: Foreign::socket(found.take(tx)?),
            rx: Foreign::socket(found.take(rx)?),
            framing: if direct { Framing::Single } else { Framing::Batched },
            carries: if translations { Carries::Translations } else { Carries::Sockets },
        })
    }
}
