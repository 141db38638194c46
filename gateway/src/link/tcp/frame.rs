//! What the bytes of a pipe mean: a preface, then packets with their lengths. No I/O.

use std::ops::Range;

/// The first bytes from either side: nobody who is no gateway gets any further. No other protocol begins like this, and
/// its last two bytes show what a terminal or a proxy changed on the way.
pub const PREFACE: [u8; 16] = *b"LINKSPAN TCP 1\r\n";

/// The largest packet, which is what a UDP datagram could hold (RFC 9000 section 18.2).
pub(in crate::link) const MAX_PACKET: usize = 65_527;

/// Bytes of a length.
pub(super) const LENGTH: usize = 2;

/// Room for the first packets: handshakes of strangers need little.
const SMALL: usize = 4 * 1024;

/// Room once much comes in: four of the largest packets for each read.
const LARGE: usize = 256 * 1024;

/// Why the bytes cannot be right.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(in crate::link) enum FrameError {
    /// The first bytes are not ours.
    #[error("the other side does not speak the link protocol over TCP")]
    NotAGateway,
    /// No packet is empty.
    #[error("an empty packet")]
    Empty,
    /// Nor larger than [`MAX_PACKET`].
    #[error("a packet of {0} bytes; at most {MAX_PACKET} are allowed")]
    Oversize(usize),
}

/// The length that goes before a packet; `None`: no packet has this size.
pub(super) fn length(packet: usize) -> Option<[u8; LENGTH]> {
    let length = u16::try_from(packet).ok().filter(|_| (1..=MAX_PACKET).contains(&packet))?;
    Some(length.to_be_bytes())
}

/// Finds packets in what has been read.
#[derive(Debug)]
pub(super) struct Deframer {
    buffer: Vec<u8>,
    /// What is read and not given out yet.
    held: Range<usize>,
    /// Bytes of the preface that have not been seen.
    preface_left: usize,
}

impl Deframer {
    /// A stream whose preface is still to come.
    pub(super) fn before_preface() -> Self {
        Self { buffer: Vec::new(), held: 0..0, preface_left: PREFACE.len() }
    }

    /// A stream whose preface has been taken.
    pub(super) fn after_preface() -> Self {
        Self { preface_left: 0, ..Self::before_preface() }
    }

    /// Where to read into. Never empty after [`Self::next`] has given `None`.
    pub(super) fn space(&mut self) -> &mut [u8] {
        if self.held.is_empty() {
            self.held = 0..0;
        } else if self.held.start > 0 {
            // Less than one packet.
            self.buffer.copy_within(self.held.clone(), 0);
            self.held = 0..self.held.len();
        }
        let full = self.held.end == self.buffer.len();
        if full && self.buffer.len() < LARGE {
            let larger = if self.buffer.is_empty() { SMALL } else { (self.buffer.len() * 4).min(LARGE) };
            self.buffer.resize(larger, 0);
        }
        &mut self.buffer[self.held.end..]
    }

    /// So much was read.
    pub(super) fn filled(&mut self, bytes: usize) {
        self.held.end = (self.held.end + bytes).min(self.buffer.len());
    }

    /// The next whole packet.
    pub(super) fn next(&mut self) -> Result<Option<&[u8]>, FrameError> {
        self.take_preface()?;
        if self.preface_left > 0 {
            return Ok(None);
        }
        let Some((length, rest)) = self.buffer[self.held.clone()].split_first_chunk::<LENGTH>() else {
            return Ok(None);
        };
        let length = usize::from(u16::from_be_bytes(*length));
        match length {
            0 => return Err(FrameError::Empty),
            length if length > MAX_PACKET => return Err(FrameError::Oversize(length)),
            length if length > rest.len() => return Ok(None),
            _ => {}
        }
        let start = self.held.start + LENGTH;
        self.held.start = start + length;
        Ok(Some(&self.buffer[start..start + length]))
    }

    fn take_preface(&mut self) -> Result<(), FrameError> {
        let held = &self.buffer[self.held.clone()];
        let seen = held.len().min(self.preface_left);
        let due = PREFACE.len() - self.preface_left;
        if held[..seen] != PREFACE[due..due + seen] {
            return Err(FrameError::NotAGateway);
        }
        self.preface_left -= seen;
        self.held.start += seen;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Everything that comes out of these bytes, read in pieces of these sizes.
    fn deframe(mut deframer: Deframer, bytes: &[u8], pieces: &[usize]) -> Result<Vec<Vec<u8>>, FrameError> {
        let (mut packets, mut left, mut turn) = (Vec::new(), bytes, 0);
        loop {
            while let Some(packet) = deframer.next()? {
                packets.push(packet.to_vec());
            }
            if left.is_empty() {
                return Ok(packets);
            }
            let space = deframer.space();
            let piece = pieces[turn % pieces.len()].clamp(1, space.len()).min(left.len());
            let (now, later) = left.split_at(piece);
            space[..piece].copy_from_slice(now);
            deframer.filled(piece);
            (left, turn) = (later, turn + 1);
        }
    }

    fn frame(packets: &[Vec<u8>]) -> Vec<u8> {
        packets.iter().flat_map(|packet| [&length(packet.len()).unwrap()[..], packet].concat()).collect()
    }

    proptest! {
        #[test]
        fn what_goes_in_comes_out_however_it_is_cut(
            sizes in prop::collection::vec(prop_oneof![1..40_usize, 1000..3000_usize, 60_000..=MAX_PACKET], 0..12),
            pieces in prop::collection::vec(prop_oneof![1..4_usize, 1..100_000_usize], 1..6),
        ) {
            let packets: Vec<Vec<u8>> = sizes.iter().enumerate().map(|(n, size)| vec![n as u8; *size]).collect();
            let bytes = [&PREFACE[..], &frame(&packets)].concat();
            // In single bytes a megabyte takes too long.
            let pieces = if bytes.len() > 10_000 { vec![pieces[0].max(777)] } else { pieces };
            prop_assert_eq!(deframe(Deframer::before_preface(), &bytes, &pieces), Ok(packets));
        }

        #[test]
        fn any_bytes_are_taken_or_refused_within_bounds(
            bytes in prop::collection::vec(any::<u8>(), 0..20_000),
            piece in 1..5000_usize,
        ) {
            let mut deframer = Deframer::after_preface();
            for chunk in bytes.chunks(piece) {
                let mut chunk = chunk;
                while !chunk.is_empty() {
                    let space = deframer.space();
                    prop_assert!(!space.is_empty());
                    let taken = space.len().min(chunk.len());
                    space[..taken].copy_from_slice(&chunk[..taken]);
                    deframer.filled(taken);
                    chunk = &chunk[taken..];
                    loop {
                        match deframer.next() {
                            Ok(Some(packet)) => prop_assert!((1..=MAX_PACKET).contains(&packet.len())),
                            Ok(None) => break,
                            Err(_) => return Ok(()),
                        }
                    }
                    prop_assert!(deframer.buffer.len() <= LARGE);
                }
            }
        }
    }

    #[test]
    fn s_27_impossible_lengths_are_refused() {
        let of = |length: u16| deframe(Deframer::after_preface(), &length.to_be_bytes(), &[2]);
        assert_eq!(of(0), Err(FrameError::Empty));
        assert_eq!(of(65_528), Err(FrameError::Oversize(65_528)));
        assert_eq!(of(65_527), Ok(vec![]), "its bytes are still to come");
        assert_eq!((length(0), length(MAX_PACKET + 1)), (None, None));
        assert_eq!(length(MAX_PACKET), Some([0xff, 0xf7]));
    }

    #[test]
    fn a_stranger_is_known_by_the_first_byte_that_is_wrong() {
        let read = |bytes: &[u8]| deframe(Deframer::before_preface(), bytes, &[3]);
        assert_eq!(read(b"GET / HTTP/1.1\r\n"), Err(FrameError::NotAGateway));
        assert_eq!(read(b"LINKSPAN TCP 2\r\n"), Err(FrameError::NotAGateway));
        assert_eq!(read(b"LINKSPAN TCP 1"), Ok(vec![]));
    }

    #[test]
    fn little_traffic_needs_little_memory() {
        let mut deframer = Deframer::after_preface();
        for _ in 0..1000 {
            let space = deframer.space();
            space[..3].copy_from_slice(&[0, 1, 7]);
            deframer.filled(3);
            assert_eq!(deframer.next(), Ok(Some(&[7][..])));
        }
        assert_eq!(deframer.buffer.len(), SMALL);
    }
}
