//! What the state knows of one connection, whoever dialled it.

use std::net::SocketAddr;
use std::time::Instant;

use linkspan_proto::configuration::Carrier;

use super::{HelloFacts, Leave};
use crate::link::health::Probes;

/// What is known of a connection.
#[derive(Debug)]
pub(super) struct Known {
    /// The slot and address, for those that we dialled.
    pub(super) dialled: Option<(usize, SocketAddr)>,
    pub(super) carrier: Carrier,
    pub(super) probes: Probes,
    /// Which of our certificates it was made with.
    pub(super) certificate: u32,
    /// Since when; a connection counts from its hello on.
    pub(super) since: Instant,
    pub(super) hello: Option<HelloFacts>,
    /// The peer wants to leave it.
    pub(super) leaving: Option<Leave>,
    /// We told the peer that we want to leave it.
    pub(super) left: Option<Leave>,
    pub(super) finishing: bool,
    /// Rounds of resolution that did not show its address.
    pub(super) missing: u8,
}

impl Known {
    pub(super) fn new(dialled: Option<(usize, SocketAddr)>, carrier: Carrier, certificate: u32, now: Instant) -> Self {
        Self {
            dialled,
            carrier,
            probes: Probes::default(),
            certificate,
            since: now,
            hello: None,
            leaving: None,
            left: None,
            finishing: false,
            missing: 0,
        }
    }

    /// New streams on it are still welcome on both sides: it is about to be replaced, at most, or we are about to end and
    /// serve the last of our own clients.
    pub(super) fn takes_streams(&self) -> bool {
        self.hello.is_some()
            && !self.finishing
            && matches!(self.leaving, None | Some(Leave::Rotation))
            && matches!(self.left, None | Some(Leave::Rotation | Leave::Shutdown))
    }

    /// Whether both end at the same process of the peer, as far as hellos have told.
    pub(super) fn same_gateway(&self, other: &Self) -> bool {
        self.hello.as_ref().zip(other.hello.as_ref()).is_some_and(|(one, other)| one.boot_id == other.boot_id)
    }

    pub(super) fn is_leaving(&self) -> bool {
        self.leaving.is_some() || self.left.is_some()
    }

    /// Whether the peer dialled it, over this carrier.
    pub(super) fn is_accepted_over(&self, carrier: Carrier) -> bool {
        self.dialled.is_none() && self.carrier == carrier
    }

    /// Good on both sides and here to stay.
    pub(super) fn is_settled(&self) -> bool {
        self.hello.is_some() && !self.is_leaving()
    }
}
