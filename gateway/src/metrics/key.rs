//! What tells one series from another.

use std::borrow::Borrow;
use std::hash::{Hash, Hasher};

use linkspan_proto::names::{ClusterName, ServiceKey};

use crate::outcome::{Direction, Entry};

/// The labels that all families share.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    /// Seen from this gateway.
    pub direction: Direction,
    /// The other cluster, or our own name; `None` while or where it is not known.
    pub peer: Option<ClusterName>,
    /// The service called; `None` where the name is not one of ours.
    pub service: Option<ServiceKey>,
    /// The service's port number; 0 where the service is `None`.
    pub port: u16,
}

impl Key {
    /// The same direction alone, for what has no room any more.
    pub(super) fn unnamed(&self) -> Self {
        Self { direction: self.direction, peer: None, service: None, port: 0 }
    }
}

/// A key that borrows, so that looking one up clones nothing.
#[derive(PartialEq, Eq, Hash)]
pub(super) struct Parts<'a> {
    pub(super) direction: Direction,
    pub(super) peer: Option<&'a ClusterName>,
    pub(super) service: Option<&'a ServiceKey>,
    pub(super) port: u16,
}

/// Anything that holds the parts of a key: a [`Key`] or an [`Entry`].
pub(super) trait AsKey {
    fn parts(&self) -> Parts<'_>;
}

impl AsKey for Key {
    fn parts(&self) -> Parts<'_> {
        let (peer, service) = (self.peer.as_ref(), self.service.as_ref());
        Parts { direction: self.direction, peer, service, port: self.port }
    }
}

impl AsKey for Entry {
    fn parts(&self) -> Parts<'_> {
        let (peer, service) = (self.peer.as_ref(), self.service.as_ref());
        Parts { direction: self.direction, peer, service, port: self.port }
    }
}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        // Must hash as the borrowed form does, which derives.
        self.parts().hash(state);
    }
}

impl Hash for dyn AsKey + '_ {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.parts().hash(state);
    }
}

impl PartialEq for dyn AsKey + '_ {
    fn eq(&self, other: &Self) -> bool {
        self.parts() == other.parts()
    }
}

impl Eq for dyn AsKey + '_ {}

impl<'a> Borrow<dyn AsKey + 'a> for Key {
    fn borrow(&self) -> &(dyn AsKey + 'a) {
        self
    }
}
