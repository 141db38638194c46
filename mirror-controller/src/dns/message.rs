//! Bytes of one request in, bytes of its reply out. Pure: no socket, no clock; randomness comes in as an argument.
//!
//! Before anything is parsed the fixed parts of the request are looked at by hand (RFC 1035 section 4.1): so a forged
//! count cannot make the parser reserve memory, and the question that the reply repeats byte for byte (which keeps the
//! letter case that a resolver chose at random, the "0x20" defence) cannot hold a compression pointer.

use hickory_proto::op::{Edns, Metadata, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, NS, SOA, SRV, TXT};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use hickory_proto::serialize::binary::BinEncoder;
use hickory_server::net::xfer::Protocol;
use hickory_server::server::{Request, ResponseInfo};
use hickory_server::zone_handler::MessageResponseBuilder;
use rand::Rng;
use rand::seq::SliceRandom;

use super::metrics::{QueryType, Rcode};
use super::zone::{Addresses, Entry, Lookup, Node, Zone, ZoneName};

/// Seconds that an answer, or its absence, may be remembered. Short, so that a mirror that goes away is forgotten.
pub(super) const TTL: u32 = 5;

/// The largest UDP reply, also announced in our OPT record: fits an IPv6 packet of 1,280 bytes, so no path fragments it.
pub(super) const UDP_MAX: u16 = 1232;

/// The largest UDP reply to a client that does not speak EDNS (RFC 1035 section 4.2.1).
const UDP_CLASSIC: u16 = 512;

/// The largest request that is read. Real queries stay below 600 bytes; the rest is for EDNS options to come.
pub(super) const REQUEST_MAX: usize = 4096;

/// Address records in one answer. 1,000 AAAA records take 28 KB and so always fit a TCP reply of 64 KiB. MCS DNS allows
/// "a subset of ready endpoints".
const ADDRESSES_MAX: usize = 1_000;

/// SRV records in one answer: 200 of the greatest possible size (12 + 6 + 255 + 2 bytes) fit a TCP reply.
const SRV_MAX: usize = 200;

/// Records beside the question that a query may bring: OPT and a signature are all that exist.
const ADDITIONALS_MAX: u16 = 4;

/// How the request came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// One datagram; the reply is bounded by what the client can receive.
    Udp,
    /// A stream; the reply may have 64 KiB.
    Tcp,
}

/// What becomes of a request.
#[derive(Debug)]
pub enum Reply {
    /// No reply.
    Drop(Dropped),
    /// These bytes.
    Send {
        /// The message.
        bytes: Vec<u8>,
        /// The type that was asked for, for the metric.
        qtype: QueryType,
        /// How it was answered, for the metric.
        rcode: Rcode,
    },
}

/// Why a request gets no reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dropped {
    /// Shorter than a header: there is no id to answer to.
    Short,
    /// It is a response: answering it could start a loop between two servers.
    Response,
    /// Longer than `REQUEST_MAX`.
    Long,
    /// The reply could not be encoded. Never seen; kept so that the encoder's error is not a panic.
    Encoding,
}

/// Answers one request from the zone.
pub fn respond(zone: &Zone, request: &[u8], transport: Transport, rng: &mut impl Rng) -> Reply {
    if request.len() > REQUEST_MAX {
        return Reply::Drop(Dropped::Long);
    }
    let header = match Header::read(request) {
        Ok(header) => header,
        Err(dropped) => return Reply::Drop(dropped),
    };
    if header.opcode != 0 {
        return header.refusal(Rcode::NotImp);
    }
    if !header.counts_are_sane() || !question_is_plain(request) {
        return header.refusal(Rcode::FormErr);
    }
    // The source address is of no interest to an answer; hickory wants one.
    let from = std::net::SocketAddr::from(([127, 0, 0, 1], 53));
    let protocol = match transport {
        Transport::Udp => Protocol::Udp,
        Transport::Tcp => Protocol::Tcp,
    };
    let Ok(request) = Request::from_bytes(request.to_vec(), from, protocol) else {
        return header.refusal(Rcode::FormErr);
    };
    let Some(query) = request.queries.queries().first() else {
        return header.refusal(Rcode::FormErr);
    };
    let qtype = QueryType::from(query.query_type());
    let answer = if request.version() > 0 {
        Answer::only(Rcode::BadVers)
    } else {
        answer(zone, query.original().name(), query.query_type(), query.query_class(), rng)
    };
    match encode(&request, &answer, transport) {
        Some(bytes) => Reply::Send { bytes, qtype, rcode: answer.rcode },
        None => Reply::Drop(Dropped::Encoding),
    }
}

/// The fixed part of a request.
struct Header {
    id: [u8; 2],
    opcode: u8,
    recursion_desired: bool,
    counts: [u16; 4],
}

impl Header {
    const LEN: usize = 12;

    fn read(request: &[u8]) -> Result<Self, Dropped> {
        let Some((header, _)) = request.split_first_chunk::<{ Self::LEN }>() else {
            return Err(Dropped::Short);
        };
        let &[id0, id1, flags, _, qd0, qd1, an0, an1, ns0, ns1, ar0, ar1] = header;
        if flags & 0x80 != 0 {
            return Err(Dropped::Response);
        }
        Ok(Self {
            id: [id0, id1],
            opcode: (flags >> 3) & 0x0f,
            recursion_desired: flags & 1 != 0,
            counts: [
                u16::from_be_bytes([qd0, qd1]),
                u16::from_be_bytes([an0, an1]),
                u16::from_be_bytes([ns0, ns1]),
                u16::from_be_bytes([ar0, ar1]),
            ],
        })
    }

    /// One question, no answers; the authority section is used by IXFR alone, which we refuse anyway.
    fn counts_are_sane(&self) -> bool {
        matches!(self.counts, [1, 0, 0, additionals] if additionals <= ADDITIONALS_MAX)
    }

    /// A bare header: nothing of a malformed request is repeated, so nothing can be reflected with it.
    fn refusal(&self, rcode: Rcode) -> Reply {
        let [id0, id1] = self.id;
        let flags = 0x80 | self.opcode << 3 | u8::from(self.recursion_desired);
        let code: ResponseCode = rcode.into();
        let bytes = vec![id0, id1, flags, code.low(), 0, 0, 0, 0, 0, 0, 0, 0];
        Reply::Send { bytes, qtype: QueryType::None, rcode }
    }
}

/// Whether the question is a name of plain labels (no compression pointer, at most 255 bytes) with type and class.
fn question_is_plain(request: &[u8]) -> bool {
    let mut rest = request.get(Header::LEN..).unwrap_or_default();
    let mut length = 0;
    loop {
        let Some((&label, tail)) = rest.split_first() else { return false };
        length += 1 + usize::from(label);
        if label > 63 || length > 255 {
            return false;
        }
        let Some(tail) = tail.get(usize::from(label)..) else { return false };
        rest = tail;
        if label == 0 {
            return rest.len() >= 4;
        }
    }
}

/// What a reply holds, before it is bytes.
struct Answer {
    rcode: Rcode,
    /// Whether the name lies in one of our zones.
    authoritative: bool,
    answers: Vec<Record>,
    /// The zone's SOA where the answer is that there is nothing (RFC 2308).
    soa: Option<Record>,
    additionals: Vec<Record>,
}

impl Answer {
    fn only(rcode: Rcode) -> Self {
        Self { rcode, authoritative: false, answers: Vec::new(), soa: None, additionals: Vec::new() }
    }
}

/// Whether answers to this type would be a whole zone or a whole node (RFC 6895 section 3.1: meta types and OPT).
fn is_meta(qtype: RecordType) -> bool {
    let number = u16::from(qtype);
    number == 0 || number == 41 || (128..=255).contains(&number)
}

fn answer(zone: &Zone, name: &Name, qtype: RecordType, class: DNSClass, rng: &mut impl Rng) -> Answer {
    if class != DNSClass::IN || is_meta(qtype) {
        return Answer::only(Rcode::Refused);
    }
    let Some(lower) = host_labels(name) else {
        return Answer::only(Rcode::Refused);
    };
    let labels: Vec<&str> = lower.iter().map(String::as_str).collect();
    match zone.lookup(&labels) {
        Lookup::Foreign => Answer::only(Rcode::Refused),
        Lookup::Missing(zone_name) => {
            Answer { authoritative: true, soa: Some(soa(zone, zone_name)), ..Answer::only(Rcode::NxDomain) }
        }
        Lookup::Found(zone_name, node) => {
            let (answers, additionals) = records(zone, zone_name, &node, name, qtype, rng);
            let soa = answers.is_empty().then(|| soa(zone, zone_name));
            Answer { rcode: Rcode::NoError, authoritative: true, answers, soa, additionals }
        }
    }
}

/// The labels in lower case, or `None` when one holds a byte that stands in no host or service name. A dot *inside* a
/// label is one of them: joined with dots such a name would look like another.
fn host_labels(name: &Name) -> Option<Vec<String>> {
    name.iter()
        .map(|label| {
            let text = std::str::from_utf8(label).ok()?;
            text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'.').then(|| text.to_ascii_lowercase())
        })
        .collect()
}

/// The records of a node that have this type, and the addresses that spare the client a second query.
fn records(
    zone: &Zone,
    zone_name: ZoneName,
    node: &Node<'_>,
    name: &Name,
    qtype: RecordType,
    rng: &mut impl Rng,
) -> (Vec<Record>, Vec<Record>) {
    let one = |data: RData| vec![Record::from_rdata(name.clone(), TTL, data)];
    match (node, qtype) {
        (Node::Apex, RecordType::SOA) => (vec![soa(zone, zone_name).with_name(name)], Vec::new()),
        (Node::Apex, RecordType::NS) => (one(RData::NS(NS(name_server(zone_name)))), Vec::new()),
        (Node::Version, RecordType::TXT) => (one(RData::TXT(TXT::new(vec!["1.0.0".to_owned()]))), Vec::new()),
        (Node::Service(entry), RecordType::A | RecordType::AAAA) => {
            (shuffled(address_records(name, &entry.addresses, qtype), ADDRESSES_MAX, rng), Vec::new())
        }
        (Node::Host(host), RecordType::A | RecordType::AAAA) => {
            (address_records(name, &host.addresses, qtype), Vec::new())
        }
        (Node::Service(entry), RecordType::SRV) => {
            // TCP and UDP on the same number are one place to go to: SRV says nothing of the protocol here.
            let mut ports: Vec<u16> = entry.ports.iter().map(|port| port.port).collect();
            ports.sort_unstable();
            ports.dedup();
            srv_records(name, entry, &ports, rng)
        }
        (Node::Port(entry, port), RecordType::SRV) => srv_records(name, entry, &[*port], rng),
        _ => (Vec::new(), Vec::new()),
    }
}

/// Puts the answers in random order, so that clients which take the first one spread over all, and keeps `max` of them.
fn shuffled(mut records: Vec<Record>, max: usize, rng: &mut impl Rng) -> Vec<Record> {
    records.shuffle(rng);
    records.truncate(max);
    records
}

fn address_records(name: &Name, addresses: &Addresses, qtype: RecordType) -> Vec<Record> {
    let record = |data: RData| Record::from_rdata(name.clone(), TTL, data);
    match qtype {
        RecordType::A => addresses.v4.iter().map(|&v4| record(RData::A(A(v4)))).collect(),
        RecordType::AAAA => addresses.v6.iter().map(|&v6| record(RData::AAAA(AAAA(v6)))).collect(),
        _ => Vec::new(),
    }
}

/// One SRV record per port, and for a headless service per ready host and port; with the targets' addresses beside them.
fn srv_records(name: &Name, entry: &Entry, ports: &[u16], rng: &mut impl Rng) -> (Vec<Record>, Vec<Record>) {
    let mut targets: Vec<(&Name, &Addresses)> = match &entry.hosts {
        None => vec![(&entry.name, &entry.addresses)],
        Some(hosts) => hosts.values().map(|host| (&host.name, &host.addresses)).collect(),
    };
    // A target whose address is withheld is no place to go to.
    targets.retain(|(_, addresses)| !addresses.is_empty());
    targets.shuffle(rng);
    targets.truncate(SRV_MAX.checked_div(ports.len()).unwrap_or(0).max(1));
    // All targets are equal: one priority, and the weights share 100, as Kubernetes' DNS does it.
    let weight =
        100_u16.checked_div(u16::try_from(targets.len() * ports.len()).unwrap_or(u16::MAX)).unwrap_or(1).max(1);
    let mut answers = Vec::with_capacity(targets.len() * ports.len());
    let mut additionals = Vec::new();
    for (target, addresses) in targets {
        for &port in ports {
            let data = RData::SRV(SRV::new(0, weight, port, target.clone()));
            answers.push(Record::from_rdata(name.clone(), TTL, data));
        }
        if !ports.is_empty() {
            additionals.extend(address_records(target, addresses, RecordType::A));
            additionals.extend(address_records(target, addresses, RecordType::AAAA));
        }
    }
    (answers, additionals)
}

fn name_of(text: &str) -> Name {
    Name::from_ascii(text).expect("the fixed names of the zones are valid names")
}

fn name_server(zone: ZoneName) -> Name {
    name_of(&format!("ns.dns.{}.", zone.apex()))
}

/// The zone's SOA. Its last field is how long "there is no such name" may be remembered (RFC 2308).
fn soa(zone: &Zone, zone_name: ZoneName) -> Record {
    let apex = zone_name.apex();
    let mailbox = name_of(&format!("hostmaster.{apex}."));
    let data = SOA::new(name_server(zone_name), mailbox, zone.serial(), 7200, 1800, 86_400, TTL);
    Record::from_rdata(name_of(&format!("{apex}.")), TTL, RData::SOA(data))
}

/// Answers carry the name in the letter case of the question.
trait WithName {
    fn with_name(self, name: &Name) -> Self;
}

impl WithName for Record {
    fn with_name(mut self, name: &Name) -> Self {
        self.name = name.clone();
        self
    }
}

/// Encodes the reply. What does not fit is left out whole: first the additional records, which a client can ask for;
/// then everything, with TC set, so that the client comes back over TCP and nobody takes a part for the whole
/// (RFC 2181 section 9).
fn encode(request: &Request, answer: &Answer, transport: Transport) -> Option<Vec<u8>> {
    let limit = match transport {
        Transport::Tcp => u16::MAX,
        Transport::Udp if request.edns.is_some() => request.max_payload().clamp(UDP_CLASSIC, UDP_MAX),
        Transport::Udp => UDP_CLASSIC,
    };
    // RFC 6891 section 7: who sends OPT gets OPT.
    let edns = request.edns.as_ref().map(|theirs| {
        let mut ours = Edns::new();
        ours.set_max_payload(UDP_MAX);
        // RFC 3225 section 3: the DO bit is copied, although nothing here is signed.
        ours.set_dnssec_ok(theirs.flags().dnssec_ok);
        ours
    });
    let mut metadata = Metadata::response_from_request(&request.metadata);
    metadata.authoritative = answer.authoritative;
    metadata.response_code = answer.rcode.into();

    let write = |metadata: Metadata, answers: &[Record], additionals: &[Record]| {
        let mut builder = MessageResponseBuilder::new(&request.queries, None);
        if let Some(edns) = &edns {
            builder.edns(edns);
        }
        let message = builder.build(metadata, answers, [], &answer.soa, additionals);
        let mut bytes = Vec::with_capacity(usize::from(UDP_CLASSIC));
        let mut encoder = BinEncoder::new(&mut bytes);
        encoder.set_max_size(limit);
        let info: ResponseInfo = message.destructive_emit(&mut encoder).ok()?;
        (!info.truncation || metadata.truncation).then_some(bytes)
    };
    write(metadata, &answer.answers, &answer.additionals).or_else(|| write(metadata, &answer.answers, &[])).or_else(
        || {
            metadata.truncation = true;
            write(metadata, &[], &[])
        },
    )
}
