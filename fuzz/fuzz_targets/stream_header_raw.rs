//! Any bytes as a stream header.

#![no_main]

use libfuzzer_sys::fuzz_target;
use linkspan_proto::stream_header::{Decoded, MAX_HEADER_LEN, StreamHeader};

fuzz_target!(|bytes: &[u8]| {
    match StreamHeader::decode(bytes) {
        Ok(Decoded::Complete { header, consumed }) => {
            assert!(consumed <= bytes.len() && consumed <= MAX_HEADER_LEN + 3);
            let again = header.encode().expect("what was accepted can be sent on");
            match StreamHeader::decode(&again) {
                Ok(Decoded::Complete { header: read, consumed }) => assert!(read == header && consumed == again.len()),
                other => panic!("{other:?}"),
            }
            for cut in 0..consumed {
                assert!(matches!(StreamHeader::decode(&bytes[..cut]), Ok(Decoded::Incomplete)));
            }
        }
        Ok(Decoded::Incomplete) => assert!(bytes.len() < MAX_HEADER_LEN + 3),
        Err(_) => {}
    }
});
