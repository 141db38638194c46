//! One hash over a whole catalogue, by which both sides see that they hold the same.

use std::collections::BTreeMap;

use sha2::{Digest, Sha256};

use super::{CatalogueEntry, Details, Protocol};

/// SHA-256 over all entries, independent of their order and of the order of their ports, endpoints and labels.
///
/// Each entry is hashed on its own, and the hashes are hashed in the order of their services. Every text goes in behind its
/// length, every list behind its count, so no two catalogues look alike. The form is part of exchange version 1: a field of a
/// later version goes in only between sides that both speak that version. The optional totals of ports are left out: they came
/// within version 1, and sides that do not know them must find the same hash. Details go in only where a service has any.
#[must_use]
pub fn catalogue_hash<'a>(entries: impl IntoIterator<Item = &'a CatalogueEntry>) -> [u8; 32] {
    let mut hashes: Vec<_> = entries.into_iter().map(|entry| (&entry.service, entry_hash(entry))).collect();
    hashes.sort_unstable();
    let mut whole = Sha256::new();
    whole.update(b"linkspan catalogue 1\0");
    whole.update((hashes.len() as u64).to_be_bytes());
    for (_, hash) in hashes {
        whole.update(hash);
    }
    whole.finalize().into()
}

fn entry_hash(entry: &CatalogueEntry) -> [u8; 32] {
    let mut hash = Writer(Sha256::new());
    hash.text(entry.service.namespace.as_str());
    hash.text(entry.service.name.as_str());
    hash.number(u64::from(entry.headless));

    let mut ports: Vec<_> = entry.ports.iter().collect();
    ports.sort_unstable_by_key(|port| (port.port, port.protocol));
    hash.number(ports.len() as u64);
    for port in ports {
        hash.number(u64::from(port.port));
        hash.number(match port.protocol {
            Protocol::Tcp => 1,
            Protocol::Udp => 2,
            Protocol::Sctp => 3,
        });
        hash.text(port.name.as_ref().map_or("", |name| name.as_str()));
        hash.text(port.app_protocol.as_deref().unwrap_or_default());
        hash.number(u64::from(port.ready));
    }

    let mut endpoints: Vec<_> = entry.endpoints.iter().collect();
    endpoints.sort_unstable();
    hash.number(endpoints.len() as u64);
    for (name, ready) in endpoints {
        hash.text(name.as_str());
        hash.number(u64::from(*ready));
    }

    hash.map(&entry.labels);
    if entry.details != Details::default() {
        let Details {
            annotations,
            exported_labels,
            exported_annotations,
            affinity_seconds,
            local_traffic,
            traffic_distribution,
        } = &entry.details;
        hash.text("details");
        [annotations, exported_labels, exported_annotations].into_iter().for_each(|map| hash.map(map));
        hash.number(affinity_seconds.map_or(0, u64::from));
        hash.number(u64::from(*local_traffic));
        hash.text(traffic_distribution.as_deref().unwrap_or_default());
    }
    hash.0.finalize().into()
}

/// Hashes values so that their borders count.
struct Writer(Sha256);

impl Writer {
    fn number(&mut self, number: u64) {
        self.0.update(number.to_be_bytes());
    }

    fn map(&mut self, map: &BTreeMap<String, String>) {
        self.number(map.len() as u64);
        for (key, value) in map {
            self.text(key);
            self.text(value);
        }
    }

    fn text(&mut self, text: &str) {
        self.number(text.len() as u64);
        self.0.update(text.as_bytes());
    }
}
