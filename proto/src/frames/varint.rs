//! LEB128, the varint of protobuf: seven bits a byte, low bits first.

/// The most bytes that a length takes: 63 bits.
pub(crate) const MAX: usize = 9;

/// Writes `value`, which is below 2^63; returns how many bytes it took.
pub(crate) fn write(mut value: u64, out: &mut [u8]) -> usize {
    let mut taken = 0;
    loop {
        let low = (value & 0x7f) as u8;
        value >>= 7;
        let more = value != 0 && taken + 1 < MAX;
        out[taken] = if more { low | 0x80 } else { low };
        taken += 1;
        if !more {
            return taken;
        }
    }
}

/// Reads a value byte by byte.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Reader {
    value: u64,
    taken: usize,
}

/// More bytes than a length may have.
#[derive(Debug)]
pub(crate) struct Overlong;

impl Reader {
    /// Takes one byte; the value once it is complete.
    pub(crate) fn push(&mut self, byte: u8) -> Result<Option<u64>, Overlong> {
        if self.taken == MAX {
            return Err(Overlong);
        }
        self.value |= u64::from(byte & 0x7f) << (7 * self.taken);
        self.taken += 1;
        Ok((byte < 0x80).then_some(self.value))
    }
}

/// Takes a value from the front of `bytes`.
pub(crate) fn take(bytes: &mut bytes::Bytes) -> Option<usize> {
    let mut reader = Reader::default();
    for (index, byte) in bytes.iter().enumerate() {
        if let Some(value) = reader.push(*byte).ok()? {
            bytes::Buf::advance(bytes, index + 1);
            return usize::try_from(value).ok();
        }
    }
    None
}
