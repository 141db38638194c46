//! Generated types to domain types and back. They go no further than this file.

use std::collections::BTreeSet;

use prost::Message as _;

use super::{
    CatalogueEntry, CataloguePort, Details, ExchangeError, MAX_AFFINITY_SECONDS, MAX_ANNOTATIONS, MAX_ENDPOINTS,
    MAX_LABELS, MAX_MESSAGE_LEN, MAX_METADATA_LEN, MAX_NAME_LEN, MAX_PORTS, MAX_SERVICES, Message, Protocol,
    SubscriberMessage,
};
use crate::generated::exchange as wire;
use crate::metadata::{is_annotation, is_label};
use crate::names::{ClusterName, EndpointName, Namespace, PortName, ServiceKey, ServiceName};

/// The most bytes of a reason.
const MAX_REASON_LEN: usize = 256;

impl Message {
    /// How many bytes the message takes on the wire, to be held against [`MAX_MESSAGE_LEN`].
    #[must_use]
    pub fn encoded_len(&self) -> usize {
        wire::CatalogueMessage::from(self.clone()).encoded_len()
    }
}

/// Cuts the entries of a snapshot into [`Message::Entries`] that each stay within [`MAX_MESSAGE_LEN`].
#[must_use]
pub fn batches(entries: impl IntoIterator<Item = CatalogueEntry>) -> Vec<Message> {
    // A message adds two tags and lengths around its entries, 5 bytes each at most.
    const ROOM: usize = MAX_MESSAGE_LEN - 64;
    let (mut messages, mut batch, mut taken) = (Vec::new(), Vec::new(), 0);
    for entry in entries {
        // An entry's own tag and length take at most 5 bytes: an entry is far below 1 MiB by the other caps.
        let length = wire::Entry::from(entry.clone()).encoded_len() + 5;
        if taken + length > ROOM && !batch.is_empty() {
            messages.push(Message::Entries(std::mem::take(&mut batch)));
            taken = 0;
        }
        taken += length;
        batch.push(entry);
    }
    if !batch.is_empty() {
        messages.push(Message::Entries(batch));
    }
    messages
}

impl From<Message> for wire::CatalogueMessage {
    fn from(message: Message) -> Self {
        use wire::catalogue_message::Body;
        let body = match message {
            Message::SnapshotBegin { epoch, version, count } => {
                Body::Begin(wire::SnapshotBegin { epoch, version, count })
            }
            Message::Entries(entries) => {
                Body::Entries(wire::Entries { entries: entries.into_iter().map(Into::into).collect() })
            }
            Message::SnapshotEnd { version, hash } => {
                Body::End(wire::SnapshotEnd { version, hash: hash.to_vec().into() })
            }
            Message::Delta { from, to, upserts, removals, hash } => Body::Delta(wire::Delta {
                from,
                to,
                upserts: upserts.into_iter().map(Into::into).collect(),
                removals: removals.iter().map(Into::into).collect(),
                hash: hash.to_vec().into(),
            }),
        };
        Self { body: Some(body) }
    }
}

impl TryFrom<wire::CatalogueMessage> for Message {
    type Error = ExchangeError;

    fn try_from(message: wire::CatalogueMessage) -> Result<Self, ExchangeError> {
        use wire::catalogue_message::Body;
        match message.body.ok_or(ExchangeError::Missing("the message's body"))? {
            Body::Begin(begin) => {
                at_most("services", begin.count as usize, MAX_SERVICES)?;
                Ok(Self::SnapshotBegin { epoch: begin.epoch, version: begin.version, count: begin.count })
            }
            Body::Entries(batch) => Ok(Self::Entries(entries(batch.entries)?)),
            Body::End(end) => Ok(Self::SnapshotEnd { version: end.version, hash: hash(&end.hash)? }),
            Body::Delta(delta) => {
                at_most("removals", delta.removals.len(), MAX_SERVICES)?;
                // Equal versions are a heartbeat: nothing changed, and the hash says so.
                let changes = !delta.upserts.is_empty() || !delta.removals.is_empty();
                if delta.to < delta.from || (delta.to == delta.from && changes) {
                    return Err(ExchangeError::Field("the delta's version"));
                }
                let upserts = entries(delta.upserts)?;
                let removals = delta.removals.into_iter().map(service).collect::<Result<Vec<_>, _>>()?;
                let upserted = upserts.iter().map(|entry| &entry.service);
                unique("a service", upserted.chain(&removals))?;
                Ok(Self::Delta { from: delta.from, to: delta.to, upserts, removals, hash: hash(&delta.hash)? })
            }
        }
    }
}

impl From<SubscriberMessage> for wire::SubscriberMessage {
    fn from(message: SubscriberMessage) -> Self {
        use wire::subscriber_message::Body;
        let body = match message {
            SubscriberMessage::Hello { cluster, version, known } => Body::Hello(wire::SubscriberHello {
                cluster: cluster.to_string(),
                version,
                known: known.map(|(epoch, version, hash)| wire::Known { epoch, version, hash: hash.to_vec().into() }),
            }),
            SubscriberMessage::Ack { version } => Body::Ack(wire::Ack { version }),
            SubscriberMessage::Resync { mut reason } => {
                reason.truncate(reason.floor_char_boundary(MAX_REASON_LEN));
                Body::Resync(wire::Resync { reason })
            }
        };
        Self { body: Some(body) }
    }
}

impl TryFrom<wire::SubscriberMessage> for SubscriberMessage {
    type Error = ExchangeError;

    fn try_from(message: wire::SubscriberMessage) -> Result<Self, ExchangeError> {
        use wire::subscriber_message::Body;
        match message.body.ok_or(ExchangeError::Missing("the message's body"))? {
            Body::Hello(hello) => Ok(Self::Hello {
                cluster: ClusterName::parse(&hello.cluster).map_err(|_| ExchangeError::Field("the cluster name"))?,
                version: hello.version,
                known: hello.known.map(|known| Ok((known.epoch, known.version, hash(&known.hash)?))).transpose()?,
            }),
            Body::Ack(ack) => Ok(Self::Ack { version: ack.version }),
            Body::Resync(resync) => {
                let bad = resync.reason.len() > MAX_REASON_LEN || resync.reason.chars().any(char::is_control);
                if bad { Err(ExchangeError::Field("the reason")) } else { Ok(Self::Resync { reason: resync.reason }) }
            }
        }
    }
}

impl From<&ServiceKey> for wire::ServiceName {
    fn from(key: &ServiceKey) -> Self {
        Self { namespace: key.namespace.to_string(), name: key.name.to_string() }
    }
}

impl From<CatalogueEntry> for wire::Entry {
    fn from(entry: CatalogueEntry) -> Self {
        let port = |port: CataloguePort| wire::Port {
            port: u32::from(port.port),
            name: port.name.map_or_else(String::new, |name| name.to_string()),
            protocol: match port.protocol {
                Protocol::Tcp => wire::Protocol::Tcp,
                Protocol::Udp => wire::Protocol::Udp,
                Protocol::Sctp => wire::Protocol::Sctp,
            }
            .into(),
            app_protocol: port.app_protocol.unwrap_or_default(),
            ready: port.ready,
            total: port.total,
        };
        let endpoint = |(name, ready): (EndpointName, bool)| wire::Endpoint { name: name.to_string(), ready };
        Self {
            service: Some((&entry.service).into()),
            headless: entry.headless,
            ports: entry.ports.into_iter().map(port).collect(),
            endpoints: entry.endpoints.into_iter().map(endpoint).collect(),
            labels: entry.labels,
            annotations: entry.details.annotations,
            exported_labels: entry.details.exported_labels,
            exported_annotations: entry.details.exported_annotations,
            affinity_seconds: entry.details.affinity_seconds.unwrap_or_default(),
            local_traffic: entry.details.local_traffic,
            traffic_distribution: entry.details.traffic_distribution.unwrap_or_default(),
        }
    }
}

impl TryFrom<wire::Entry> for CatalogueEntry {
    type Error = ExchangeError;

    fn try_from(entry: wire::Entry) -> Result<Self, ExchangeError> {
        at_most("ports of one service", entry.ports.len(), MAX_PORTS)?;
        at_most("endpoints of one service", entry.endpoints.len(), MAX_ENDPOINTS)?;
        if !entry.headless && !entry.endpoints.is_empty() {
            return Err(ExchangeError::Field("an endpoint of a service that is not headless"));
        }
        let details = details(&entry)?;
        let mut ports = entry.ports.into_iter().map(port).collect::<Result<Vec<_>, _>>()?;
        ports.sort_unstable_by_key(|port| (port.port, port.protocol));
        unique("a port", ports.iter().map(|port| (port.port, port.protocol)))?;
        unique("a port name", ports.iter().filter_map(|port| port.name.as_ref()))?;
        let mut endpoints = Vec::with_capacity(entry.endpoints.len());
        for endpoint in entry.endpoints {
            let name = EndpointName::parse(&endpoint.name).map_err(|_| ExchangeError::Field("an endpoint name"))?;
            endpoints.push((name, endpoint.ready));
        }
        endpoints.sort_unstable();
        unique("an endpoint", endpoints.iter().map(|(name, _)| name))?;
        let entry = Self {
            service: service(entry.service.ok_or(ExchangeError::Missing("the entry's service"))?)?,
            headless: entry.headless,
            ports,
            endpoints,
            labels: entry.labels,
            details,
        };
        at_most("bytes of labels and annotations of one service", entry.metadata_len(), MAX_METADATA_LEN)?;
        Ok(entry)
    }
}

/// Labels are checked here too.
fn details(entry: &wire::Entry) -> Result<Details, ExchangeError> {
    for labels in [&entry.labels, &entry.exported_labels] {
        at_most("labels of one service", labels.len(), MAX_LABELS)?;
        if !labels.iter().all(|(key, value)| is_label(key, value)) {
            return Err(ExchangeError::Field("a label"));
        }
    }
    for annotations in [&entry.annotations, &entry.exported_annotations] {
        at_most("annotations of one service", annotations.len(), MAX_ANNOTATIONS)?;
        if !annotations.iter().all(|(key, value)| is_annotation(key, value)) {
            return Err(ExchangeError::Field("an annotation"));
        }
    }
    let distribution = &entry.traffic_distribution;
    if distribution.len() > MAX_NAME_LEN || !is_qualified(distribution) {
        return Err(ExchangeError::Field("a trafficDistribution"));
    }
    if entry.affinity_seconds > MAX_AFFINITY_SECONDS {
        return Err(ExchangeError::Field("a session affinity"));
    }
    Ok(Details {
        annotations: entry.annotations.clone(),
        exported_labels: entry.exported_labels.clone(),
        exported_annotations: entry.exported_annotations.clone(),
        affinity_seconds: Some(entry.affinity_seconds).filter(|seconds| *seconds > 0),
        local_traffic: entry.local_traffic,
        traffic_distribution: Some(distribution.clone()).filter(|text| !text.is_empty()),
    })
}

fn entries(entries: Vec<wire::Entry>) -> Result<Vec<CatalogueEntry>, ExchangeError> {
    at_most("services", entries.len(), MAX_SERVICES)?;
    let entries = entries.into_iter().map(CatalogueEntry::try_from).collect::<Result<Vec<_>, _>>()?;
    unique("a service", entries.iter().map(|entry| &entry.service))?;
    Ok(entries)
}

fn service(name: wire::ServiceName) -> Result<ServiceKey, ExchangeError> {
    Ok(ServiceKey {
        namespace: Namespace::parse(&name.namespace).map_err(|_| ExchangeError::Field("a namespace"))?,
        name: ServiceName::parse(&name.name).map_err(|_| ExchangeError::Field("a service name"))?,
    })
}

fn port(port: wire::Port) -> Result<CataloguePort, ExchangeError> {
    let number = u16::try_from(port.port).ok().filter(|number| *number > 0);
    let name = match port.name.as_str() {
        "" => None,
        name => Some(PortName::parse(name).map_err(|_| ExchangeError::Field("a port name"))?),
    };
    let app_protocol = Some(port.app_protocol).filter(|text| !text.is_empty());
    if app_protocol.as_ref().is_some_and(|text| text.len() > MAX_NAME_LEN || !is_qualified(text)) {
        return Err(ExchangeError::Field("an appProtocol"));
    }
    if port.total.is_some_and(|total| total < port.ready) {
        return Err(ExchangeError::Field("a port's number of endpoints"));
    }
    Ok(CataloguePort {
        port: number.ok_or(ExchangeError::Field("a port number"))?,
        name,
        protocol: match wire::Protocol::try_from(port.protocol) {
            Ok(wire::Protocol::Tcp) => Protocol::Tcp,
            Ok(wire::Protocol::Udp) => Protocol::Udp,
            Ok(wire::Protocol::Sctp) => Protocol::Sctp,
            Ok(wire::Protocol::Unspecified) | Err(_) => return Err(ExchangeError::Field("a port's protocol")),
        },
        app_protocol,
        ready: port.ready,
        total: port.total,
    })
}

fn hash(bytes: &[u8]) -> Result<[u8; 32], ExchangeError> {
    bytes.try_into().map_err(|_| ExchangeError::Field("the hash"))
}

/// Characters of Kubernetes' qualified names.
fn is_qualified(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'/'))
}

const fn at_most(what: &'static str, count: usize, max: usize) -> Result<(), ExchangeError> {
    if count > max { Err(ExchangeError::TooMany { what, count, max }) } else { Ok(()) }
}

fn unique<T: Ord>(what: &'static str, items: impl Iterator<Item = T>) -> Result<(), ExchangeError> {
    let mut seen = BTreeSet::new();
    for item in items {
        if !seen.insert(item) {
            return Err(ExchangeError::Twice(what));
        }
    }
    Ok(())
}
