//! Any bytes in any pieces as a control stream. The first byte says how large the pieces are.

#![no_main]

use libfuzzer_sys::fuzz_target;
use linkspan_proto::control::{ControlError, ControlMessage, ControlReader, encode, open};

fn read(stream: &[u8], size: usize) -> (Vec<ControlMessage>, Option<ControlError>) {
    let mut reader = ControlReader::new();
    let mut messages = Vec::new();
    for chunk in stream.chunks(size.max(1)) {
        reader.push(chunk);
        loop {
            match reader.next() {
                Ok(None) => break,
                Ok(Some(message)) => messages.push(message),
                Err(error) => return (messages, Some(error)),
            }
        }
    }
    (messages, None)
}

fuzz_target!(|bytes: &[u8]| {
    let [size, stream @ ..] = bytes else { return };
    let (messages, error) = read(stream, usize::from(*size));
    assert_eq!((messages.clone(), error), read(stream, usize::MAX));
    let mut again = open().to_vec();
    messages.iter().for_each(|message| again.extend_from_slice(&encode(message)));
    assert_eq!(read(&again, 7), (messages, None));
});
