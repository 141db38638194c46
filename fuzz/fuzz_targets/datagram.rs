//! Any bytes as a datagram of an association.

#![no_main]

use libfuzzer_sys::fuzz_target;
use linkspan_proto::datagram::{FLOW_LEN_MAX, FlowPrefix, split};

fuzz_target!(|bytes: &[u8]| {
    if let Some((flow, payload)) = split(bytes.to_vec().into()) {
        assert!(bytes.ends_with(&payload) && bytes.len() - payload.len() <= FLOW_LEN_MAX);
        let again = [FlowPrefix::new(flow).as_bytes(), &payload].concat();
        assert!(again.len() <= bytes.len() && split(again.into()) == Some((flow, payload)));
    }
});
