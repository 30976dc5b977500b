//! Places for streams: a few, of which strangers cannot take all, nor one source all of those that strangers may have.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::places::network;
use super::view::Viewer;

/// Streams at once.
pub const MAX_STREAMS: usize = 16;
/// Streams of strangers.
const MAX_STRANGERS: usize = 8;
/// Streams of strangers from one network.
const MAX_PER_NETWORK: usize = 4;

/// The streams that are open.
#[derive(Debug, Clone, Default)]
pub struct StreamPlaces(Arc<Mutex<Taken>>);

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    strangers: HashMap<IpAddr, usize>,
}

/// A place, free again when dropped.
#[derive(Debug)]
pub struct StreamPlace {
    places: StreamPlaces,
    /// The network of a stranger.
    stranger: Option<IpAddr>,
}

impl StreamPlaces {
    /// A place for a viewer.
    ///
    /// # Errors
    /// Why there is none.
    pub fn take(&self, viewer: Viewer, peer: IpAddr) -> Result<StreamPlace, String> {
        let stranger = (viewer == Viewer::Stranger).then(|| network(peer));
        let mut taken = self.taken();
        if taken.all >= MAX_STREAMS {
            return Err(format!("{MAX_STREAMS} pages are open already, and more are not served; close one of them"));
        }
        if let Some(network) = stranger {
            if taken.strangers.values().sum::<usize>() >= MAX_STRANGERS {
                return Err(format!("{MAX_STRANGERS} pages without the token are open already; others need the token"));
            }
            let of_network = taken.strangers.entry(network).or_default();
            if *of_network >= MAX_PER_NETWORK {
                return Err(format!(
                    "{MAX_PER_NETWORK} pages without the token are open from your address already; others need the token"
                ));
            }
            *of_network += 1;
        }
        taken.all += 1;
        drop(taken);
        Ok(StreamPlace { places: self.clone(), stranger })
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for StreamPlace {
    fn drop(&mut self) {
        let mut taken = self.places.taken();
        taken.all = taken.all.saturating_sub(1);
        if let Some(network) = self.stranger
            && let Some(count) = taken.strangers.get_mut(&network)
        {
            *count = count.saturating_sub(1);
            if *count == 0 {
                taken.strangers.remove(&network);
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn strangers_leave_places_for_others_and_for_each_other() {
        let places = StreamPlaces::default();
        let take = |viewer, peer: &str| places.take(viewer, peer.parse().unwrap());
        let mut open: Vec<_> = (0..4).map(|n| take(Viewer::Stranger, &format!("fd00::{n}")).unwrap()).collect();
        assert!(take(Viewer::Stranger, "fd00::5").unwrap_err().contains("from your address"));
        open.extend((0..4).map(|n| take(Viewer::Stranger, &format!("10.0.0.{n}")).unwrap()));
        assert!(take(Viewer::Stranger, "10.0.0.9").unwrap_err().contains("8 pages without the token"));
        open.extend((0..8).map(|_| take(Viewer::Trusted, "10.0.0.0").unwrap()));
        assert!(take(Viewer::Trusted, "127.0.0.1").unwrap_err().contains("16 pages are open"));
        open.truncate(7);
        assert!(take(Viewer::Stranger, "fd00::").unwrap_err().contains("from your address"));
        open.push(take(Viewer::Stranger, "10.0.0.9").unwrap());
        drop(open);
        let taken = places.taken();
        assert!(taken.all == 0 && taken.strangers.is_empty(), "{taken:?}");
    }
}
