//! Any bytes in any pieces as an HTTP message. The first byte says which side, the second how large the pieces are.

#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use linkspan_proto::frames::{
    Event, FrameError, FrameReader, Side, encode_info, encode_request_head, encode_response_head, encode_trailers,
};

/// Events with neighbouring data joined, then the verdict about the end and the raw rest.
fn read(side: Side, message: &[u8], size: usize) -> (Vec<Event>, Result<(), FrameError>, Vec<u8>) {
    let mut reader = FrameReader::new(side);
    let mut events: Vec<Event> = Vec::new();
    for chunk in message.chunks(size.max(1)) {
        reader.push(Bytes::copy_from_slice(chunk));
        loop {
            match (reader.next(), events.last_mut()) {
                (Ok(None), _) => break,
                (Err(error), _) => return (events, Err(error), Vec::new()),
                (Ok(Some(Event::Data(more))), Some(Event::Data(before))) => {
                    *before = [&before[..], &more[..]].concat().into();
                }
                (Ok(Some(event)), _) => events.push(event),
            }
        }
    }
    let end = reader.finish();
    (events, end, reader.into_rest().concat())
}

fuzz_target!(|bytes: &[u8]| {
    let [side, size, message @ ..] = bytes else { return };
    let side = if side % 2 == 0 { Side::Request } else { Side::Response };
    let pieces = read(side, message, usize::from(*size));
    assert_eq!(pieces, read(side, message, usize::MAX));
    for event in &pieces.0 {
        // What was accepted can be sent on. A head can grow past the cap only by names that came as one byte; they go as one.
        let sent = match event {
            Event::RequestHead(head) => encode_request_head(head),
            Event::ResponseHead(head) => encode_response_head(head),
            Event::Info(status, headers) => encode_info(*status, headers),
            Event::Trailers(trailers) => encode_trailers(trailers),
            Event::Data(data) => {
                assert!(!data.is_empty());
                continue;
            }
            Event::Upgraded => continue,
        };
        sent.expect("what was accepted can be sent on");
    }
});
