//! A datagram of a UDP association, as it crosses a link.
//!
//! ```text
//! flow: varint | payload, as the client or the backend sent it
//! ```
//!
//! The flow is the id of the association's stream on the same QUIC connection, so both sides know it without a word. A
//! datagram may arrive before the header of that stream does, and after its end.
//!
//! In: a QUIC datagram. Out: the flow and the payload, which may be empty.
//! Refuses when: there is no whole varint in front.
//! Numbers: [`FLOW_LEN_MAX`], [`PAYLOAD_MAX`].

use bytes::Bytes;

use crate::frames::varint;

/// The most bytes that a flow takes: stream ids of QUIC are below 2^62.
pub const FLOW_LEN_MAX: usize = varint::MAX;

/// The largest payload of a UDP datagram over IPv4. Over a QUIC connection less fits: a packet of its path, less the rest.
pub const PAYLOAD_MAX: usize = 65_507;

/// What stands in front of every payload of one flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowPrefix {
    bytes: [u8; FLOW_LEN_MAX],
    length: u8,
}

impl FlowPrefix {
    /// That of `flow`. Bits above the 63rd are not there in any stream id, and are left out.
    #[must_use]
    pub fn new(flow: u64) -> Self {
        let mut bytes = [0; FLOW_LEN_MAX];
        let length = varint::write(flow & (u64::MAX >> 1), &mut bytes);
        // At most nine.
        Self { bytes, length: u8::try_from(length).unwrap_or_default() }
    }

    /// The bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.length)]
    }
}

/// Takes a datagram apart; `None`: it is none.
#[must_use]
pub fn split(datagram: Bytes) -> Option<(u64, Bytes)> {
    let mut reader = varint::Reader::default();
    for (index, byte) in datagram.iter().enumerate().take(FLOW_LEN_MAX) {
        if let Some(flow) = reader.push(*byte).ok()? {
            return Some((flow, datagram.slice(index + 1..)));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn nothing_and_a_cut_flow_are_no_datagrams() {
        assert_eq!(split(Bytes::new()), None);
        assert_eq!(split(Bytes::from_static(&[0x80])), None);
        assert_eq!(split(Bytes::from_static(&[0xff; 40])), None);
    }

    #[test]
    fn a_small_flow_costs_one_byte_and_a_payload_may_be_empty() {
        assert_eq!(FlowPrefix::new(4).as_bytes(), [4]);
        assert_eq!(split(Bytes::from_static(&[4])), Some((4, Bytes::new())));
    }

    proptest! {
        #[test]
        fn what_is_put_together_comes_apart(flow in 0..1_u64 << 62, payload in prop::collection::vec(any::<u8>(), 0..2000)) {
            let mut datagram = FlowPrefix::new(flow).as_bytes().to_vec();
            prop_assert!(datagram.len() <= FLOW_LEN_MAX);
            datagram.extend_from_slice(&payload);
            prop_assert_eq!(split(datagram.into()), Some((flow, Bytes::from(payload))));
        }

        #[test]
        fn whatever_comes_is_taken_apart_or_refused(datagram in prop::collection::vec(any::<u8>(), 0..64)) {
            let length = datagram.len();
            if let Some((_, payload)) = split(datagram.into()) {
                prop_assert!(payload.len() < length);
            }
        }
    }
}
