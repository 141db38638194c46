//! Batches of packets for the kernel that are larger than quinn's.
//!
//! quinn 0.11 gives at most ten packets to a system call (`MAX_TRANSMIT_SEGMENTS`, a private constant); the kernel takes as many as
//! fit into 64 KiB, and each call walks the whole of IP and the device once. With forty a bulk sender spends a fifth to two
//! fifths less processor time for a gigabyte. So a batch that is full, which says that more is to come, waits for the next one: until
//! a batch that is not full, another destination, the end of the room, or the end of this turn of the runtime. Anything else goes out
//! at once, uncopied.

use std::net::{IpAddr, SocketAddr};

use quinn::udp::{EcnCodepoint, Transmit};

use super::MAX_BATCH;

/// Packets in a full batch of quinn's.
const FULL: usize = 10;

/// The most segments that every kernel with segmentation offload takes (`UDP_MAX_SEGMENTS` before Linux 6.8).
const MAX_SEGMENTS: usize = 64;

/// What the packets of a batch have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Head {
    destination: SocketAddr,
    source: Option<IpAddr>,
    ecn: Option<EcnCodepoint>,
    segment: usize,
}

/// Packets that wait. Pure.
#[derive(Debug, Default)]
pub(super) struct Batch {
    head: Option<Head>,
    bytes: Vec<u8>,
    /// Counts what was added, so that somebody who looks twice sees whether there was more.
    pub(super) added: u64,
}

impl Batch {
    pub(super) fn is_empty(&self) -> bool {
        self.head.is_none()
    }

    /// Whether this is a full batch behind which others of its size fit.
    pub(super) fn is_worth_waiting(transmit: &Transmit<'_>) -> bool {
        let length = transmit.contents.len();
        transmit.segment_size.is_some_and(|segment| length == FULL * segment) && 2 * length <= MAX_BATCH
    }

    /// Whether it may be sent behind what waits here.
    pub(super) fn fits(&self, transmit: &Transmit<'_>) -> bool {
        let Some(head) = self.head else { return true };
        let length = self.bytes.len() + transmit.contents.len();
        // A single packet has no segment size; it may be the last of a batch if it is not larger than the others.
        let segment = match transmit.segment_size {
            Some(segment) => segment,
            None if transmit.contents.len() <= head.segment => head.segment,
            None => return false,
        };
        Head::of(transmit, segment) == head && length <= MAX_BATCH && length.div_ceil(segment) <= MAX_SEGMENTS
    }

    /// Adds what [`Self::fits`]. All but the last must be [worth waiting](Self::is_worth_waiting): those end with a whole packet.
    pub(super) fn add(&mut self, transmit: &Transmit<'_>) {
        let segment = transmit.segment_size.unwrap_or(transmit.contents.len());
        self.head.get_or_insert_with(|| Head::of(transmit, segment));
        self.bytes.extend_from_slice(transmit.contents);
        self.added += 1;
    }

    /// Whether another full batch of quinn's has no room.
    pub(super) fn is_full(&self) -> bool {
        let segment = self.head.map_or(0, |head| head.segment);
        let length = self.bytes.len() + FULL * segment;
        length > MAX_BATCH || length > MAX_SEGMENTS * segment
    }

    /// All that waits, as one.
    pub(super) fn transmit(&self) -> Option<Transmit<'_>> {
        let Head { destination, source, ecn, segment } = self.head?;
        Some(Transmit { destination, ecn, contents: &self.bytes, segment_size: Some(segment), src_ip: source })
    }

    /// It was sent.
    pub(super) fn clear(&mut self) {
        self.head = None;
        self.bytes.clear();
    }
}

impl Head {
    fn of(transmit: &Transmit<'_>, segment: usize) -> Self {
        Self { destination: transmit.destination, source: transmit.src_ip, ecn: transmit.ecn, segment }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEAR: SocketAddr = SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 1);

    fn packets(contents: &[u8], segment: usize) -> Transmit<'_> {
        let segment_size = (contents.len() > segment).then_some(segment);
        Transmit { destination: NEAR, ecn: None, contents, segment_size, src_ip: None }
    }

    #[test]
    fn four_full_batches_go_out_as_one_and_nothing_is_lost_or_mixed_up() {
        let bytes: Vec<u8> = (0..4 * 14_720_u32).map(|index| index as u8).collect();
        let mut batch = Batch::default();
        for part in bytes.chunks(14_720) {
            let part = packets(part, 1472);
            assert!(Batch::is_worth_waiting(&part) && batch.fits(&part) && !batch.is_full());
            batch.add(&part);
        }
        assert!(batch.is_full());
        let whole = batch.transmit().unwrap();
        assert_eq!((whole.contents, whole.segment_size), (&bytes[..], Some(1472)));
        batch.clear();
        assert!(batch.is_empty() && batch.transmit().is_none());
    }

    #[test]
    fn what_is_not_full_does_not_wait() {
        let bytes = vec![0; 14_720];
        assert!(!Batch::is_worth_waiting(&packets(&bytes[..1200], 1472)));
        assert!(!Batch::is_worth_waiting(&packets(&bytes[..14_719], 1472)), "it ends with a short packet");
        assert!(!Batch::is_worth_waiting(&packets(&bytes[..13_248], 1472)), "nine packets");
        let jumbo = vec![0; 62_804];
        assert!(!Batch::is_worth_waiting(&packets(&jumbo, 8972)), "no second one has room");
    }

    #[test]
    fn a_shorter_last_part_may_follow_and_nothing_of_another_kind() {
        let bytes = vec![0; 14_720];
        let full = packets(&bytes, 1472);
        let mut batch = Batch::default();
        batch.add(&full);
        assert!(batch.fits(&packets(&bytes[..5000], 1472)));
        assert!(batch.fits(&packets(&bytes[..100], 1472)), "one short packet");
        assert!(!batch.fits(&packets(&bytes[..1473], 1473)), "one long packet");
        assert!(!batch.fits(&packets(&bytes, 1400)));
        assert!(!batch.fits(&Transmit { destination: SocketAddr::new(NEAR.ip(), 2), ..full.clone() }));
        assert!(!batch.fits(&Transmit { ecn: Some(EcnCodepoint::Ect0), ..full.clone() }));
        assert!(!batch.fits(&Transmit { src_ip: Some(NEAR.ip()), ..full }));
    }

    #[test]
    fn a_batch_is_never_too_large_for_the_kernel() {
        for segment in [1200, 1252, 1452, 1472, 2000, 3000] {
            let bytes = vec![0; FULL * segment];
            let mut batch = Batch::default();
            let mut parts = 0;
            while batch.fits(&packets(&bytes, segment)) {
                batch.add(&packets(&bytes, segment));
                parts += 1;
            }
            let whole = batch.transmit().unwrap();
            assert!(whole.contents.len() <= MAX_BATCH && parts * FULL <= MAX_SEGMENTS, "{segment}: {parts}");
        }
    }
}
