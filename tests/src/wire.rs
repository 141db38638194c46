//! Protobuf by hand, for headers that our own encoder would not write.

/// A protobuf message that grows field by field; nothing is checked.
#[derive(Clone, Debug, Default)]
pub struct Message(Vec<u8>);

impl Message {
    /// An empty message.
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    /// Adds a field of bytes, text or a message.
    #[must_use]
    pub fn bytes(mut self, tag: u32, value: impl AsRef<[u8]>) -> Self {
        let value = value.as_ref();
        varint(u64::from(tag) << 3 | 2, &mut self.0);
        varint(value.len() as u64, &mut self.0);
        self.0.extend_from_slice(value);
        self
    }

    /// Adds a number.
    #[must_use]
    pub fn number(mut self, tag: u32, value: u64) -> Self {
        varint(u64::from(tag) << 3, &mut self.0);
        varint(value, &mut self.0);
        self
    }

    /// The message with its length, as it stands on a control stream.
    pub fn control(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        varint(self.0.len() as u64, &mut bytes);
        bytes.extend_from_slice(&self.0);
        bytes
    }

    /// The message as a stream header: kind byte, length, message (proto/proto/stream.proto).
    pub fn header(&self, kind: u8) -> Vec<u8> {
        let mut bytes = vec![kind];
        varint(self.0.len() as u64, &mut bytes);
        bytes.extend_from_slice(&self.0);
        bytes
    }
}

impl AsRef<[u8]> for Message {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

fn varint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value.to_le_bytes()[0] | 0x80);
        value >>= 7;
    }
    out.push(value.to_le_bytes()[0]);
}
