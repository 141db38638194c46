//! Any bytes as a catalogue message.

#![no_main]

use libfuzzer_sys::fuzz_target;
use linkspan_proto::exchange::{
    CatalogueEntry, MAX_ENDPOINTS, MAX_LABELS, MAX_PORTS, MAX_SERVICES, Message, SubscriberMessage, catalogue_hash,
};
use linkspan_proto::generated::exchange as wire;
use prost::Message as _;

fn check(entries: &[CatalogueEntry]) {
    assert!(entries.len() <= MAX_SERVICES);
    for entry in entries {
        assert!(
            entry.ports.len() <= MAX_PORTS
                && entry.endpoints.len() <= MAX_ENDPOINTS
                && entry.labels.len() <= MAX_LABELS
        );
        assert!(entry.ports.iter().all(|port| port.port != 0));
    }
    assert_eq!(catalogue_hash(entries), catalogue_hash(entries.iter().rev()));
}

fuzz_target!(|bytes: &[u8]| {
    if let Ok(message) = wire::CatalogueMessage::decode(bytes).map(Message::try_from)
        && let Ok(message) = message
    {
        if let Message::Entries(entries) | Message::Delta { upserts: entries, .. } = &message {
            check(entries);
        }
        let again = wire::CatalogueMessage::from(message.clone()).encode_to_vec();
        assert_eq!(again.len(), message.encoded_len());
        let read = wire::CatalogueMessage::decode(&again[..]).expect("what we write is well formed");
        assert_eq!(Message::try_from(read).as_ref(), Ok(&message));
    }
    if let Ok(message) = wire::SubscriberMessage::decode(bytes).map(SubscriberMessage::try_from)
        && let Ok(message) = message
    {
        assert_eq!(SubscriberMessage::try_from(wire::SubscriberMessage::from(message.clone())), Ok(message));
    }
});
