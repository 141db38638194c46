//! What the DNS server counts. Labels come from closed sets: a client chooses among them, it cannot add to them.

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::RecordType;
use linkspan_runtime::metrics::Registry;
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;

use super::message::Dropped;

/// The types that queries ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
#[allow(clippy::upper_case_acronyms, reason = "the label values are the names of DNS types")]
pub enum QueryType {
    /// IPv4 address.
    A,
    /// IPv6 address.
    AAAA,
    /// Service location.
    SRV,
    /// Text.
    TXT,
    /// Start of authority.
    SOA,
    /// Name server.
    NS,
    /// Reverse lookup.
    PTR,
    /// Service binding for HTTPS.
    HTTPS,
    /// All records of a node.
    ANY,
    /// Any other type.
    Other,
    /// The question could not be read.
    None,
}

impl From<RecordType> for QueryType {
    fn from(record_type: RecordType) -> Self {
        match record_type {
            RecordType::A => Self::A,
            RecordType::AAAA => Self::AAAA,
            RecordType::SRV => Self::SRV,
            RecordType::TXT => Self::TXT,
            RecordType::SOA => Self::SOA,
            RecordType::NS => Self::NS,
            RecordType::PTR => Self::PTR,
            RecordType::HTTPS => Self::HTTPS,
            RecordType::ANY => Self::ANY,
            _ => Self::Other,
        }
    }
}

/// How queries are answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rcode {
    /// With records, or with the word that there are none of this type.
    NoError,
    /// The request is malformed.
    FormErr,
    /// There is no such name.
    NxDomain,
    /// The request is of a kind that we do not serve.
    NotImp,
    /// Not our business.
    Refused,
    /// An EDNS version that we do not know.
    BadVers,
}

impl From<Rcode> for ResponseCode {
    fn from(rcode: Rcode) -> Self {
        match rcode {
            Rcode::NoError => Self::NoError,
            Rcode::FormErr => Self::FormErr,
            Rcode::NxDomain => Self::NXDomain,
            Rcode::NotImp => Self::NotImp,
            Rcode::Refused => Self::Refused,
            Rcode::BadVers => Self::BADVERS,
        }
    }
}

impl EncodeLabelValue for Rcode {
    fn encode(&self, encoder: &mut prometheus_client::encoding::LabelValueEncoder<'_>) -> std::fmt::Result {
        let text = match self {
            Self::NoError => "NOERROR",
            Self::FormErr => "FORMERR",
            Self::NxDomain => "NXDOMAIN",
            Self::NotImp => "NOTIMP",
            Self::Refused => "REFUSED",
            Self::BadVers => "BADVERS",
        };
        EncodeLabelValue::encode(&text, encoder)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct QueryLabels {
    r#type: QueryType,
    rcode: Rcode,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DropLabels {
    reason: &'static str,
}

/// Counters of the DNS server. Cheap to clone: clones count together.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    /// Every request that got a reply. Together with `dropped`: every request that was read.
    queries: Family<QueryLabels, Counter>,
    /// Requests and connections that got none.
    dropped: Family<DropLabels, Counter>,
    /// TCP connections open now.
    pub(super) connections: Gauge,
}

impl Metrics {
    /// Makes the counters and registers them as `dns_queries_total{type,rcode}`, `dns_dropped_total{reason}` and
    /// `dns_tcp_connections`.
    #[must_use]
    pub fn register(registry: &Registry) -> Self {
        let metrics = Self::default();
        let dns = registry.group("dns");
        dns.register("queries", "DNS queries answered", metrics.queries.clone());
        dns.register("dropped", "DNS requests and connections without a reply", metrics.dropped.clone());
        dns.register("tcp_connections", "Open TCP connections of DNS clients", metrics.connections.clone());
        metrics
    }

    pub(super) fn answered(&self, qtype: QueryType, rcode: Rcode) {
        self.queries.get_or_create(&QueryLabels { r#type: qtype, rcode }).inc();
    }

    pub(super) fn dropped(&self, reason: Dropped) {
        let reason = match reason {
            Dropped::Short => "short",
            Dropped::Response => "response",
            Dropped::Long => "long",
            Dropped::Encoding => "encoding",
        };
        self.dropped.get_or_create(&DropLabels { reason }).inc();
    }

    pub(super) fn refused_connection(&self) {
        self.dropped.get_or_create(&DropLabels { reason: "connections" }).inc();
    }
}
