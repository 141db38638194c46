use std::net::{Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;
use prost::Message;

use super::*;
use crate::generated::stream as generated;
use crate::identity::{Assurance, Certificate, MAX_CERTIFICATE, SpiffeId};

fn header() -> StreamHeader {
    StreamHeader {
        service: Some(ServiceKey::parse("shop/web").unwrap()),
        port: 80,
        endpoint: Some(EndpointName::parse("web-0").unwrap()),
        source: Some(Source::new(
            SpiffeId::parse("spiffe://east.linkspan.internal/ns/shop/sa/cart").unwrap(),
            Assurance::Network,
        )),
        traceparent: Some("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".to_owned()),
        deadline: Some(Duration::from_millis(1500)),
        path: vec![ClusterName::parse("east").unwrap()],
        attempt: 1,
        client: Some("10.0.0.7:51234".parse().unwrap()),
        ..StreamHeader::new(StreamKind::Http)
    }
}

/// The body of an encoded header, behind kind and length.
fn body(encoded: &[u8]) -> &[u8] {
    let (_, prefix) = wire::length(&encoded[1..]).unwrap().unwrap();
    &encoded[1 + prefix..]
}

/// Kind, length and any body.
fn framed(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![kind];
    prost::encoding::encode_varint(body.len() as u64, &mut bytes);
    bytes.extend_from_slice(body);
    bytes
}

fn decode(open: &generated::StreamOpen) -> Result<StreamHeader, HeaderError> {
    match StreamHeader::decode(&framed(1, &open.encode_to_vec()))? {
        Decoded::Complete { header, .. } => Ok(header),
        Decoded::Incomplete => panic!("a whole header"),
    }
}

/// What the generated code makes of a header.
fn open(header: &StreamHeader) -> generated::StreamOpen {
    generated::StreamOpen::decode(body(&header.encode().unwrap())).unwrap()
}

#[test]
fn a_header_comes_back_with_its_payload_left() {
    let encoded = header().encode().unwrap();
    assert!(encoded.len() < 200, "{}", encoded.len());
    let with_payload = [&encoded[..], b"GET / HTTP/1.1"].concat();
    assert_eq!(
        StreamHeader::decode(&with_payload),
        Ok(Decoded::Complete { header: header(), consumed: encoded.len() })
    );
}

#[test]
fn every_prefix_is_incomplete() {
    let encoded = header().encode().unwrap();
    for cut in 0..encoded.len() {
        assert_eq!(StreamHeader::decode(&encoded[..cut]), Ok(Decoded::Incomplete), "{cut}");
    }
}

#[test]
fn the_generated_code_agrees() {
    let open = open(&header());
    assert_eq!(open.service, Some(generated::Service { namespace: "shop".into(), name: "web".into() }));
    assert_eq!((open.port, open.endpoint.as_str(), open.attempt), (80, "web-0", 1));
    let source = open.source.clone().unwrap();
    assert_eq!(source.identity, "spiffe://east.linkspan.internal/ns/shop/sa/cart");
    assert_eq!(source.assurance(), generated::Assurance::Network);
    assert_eq!((open.deadline_micros, &open.path), (1_500_000, &vec!["east".to_owned()]));
    assert_eq!(open.client.clone().unwrap().ip, vec![10, 0, 0, 7]);
    assert_eq!(decode(&open).unwrap(), StreamHeader { kind: StreamKind::Tcp, ..header() });
}

#[test]
fn probe_and_exchange_need_no_target() {
    for kind in [StreamKind::Probe, StreamKind::Exchange] {
        let encoded = StreamHeader::new(kind).encode().unwrap();
        assert_eq!(&encoded[..], [kind.code(), 0]);
        assert!(matches!(StreamHeader::decode(&encoded), Ok(Decoded::Complete { consumed: 2, .. })));
    }
    for kind in [StreamKind::Tcp, StreamKind::Http, StreamKind::Udp] {
        assert_eq!(StreamHeader::new(kind).encode(), Err(HeaderError::NoTarget));
        assert_eq!(StreamHeader::decode(&[kind.code(), 0]), Err(HeaderError::NoTarget));
        let no_source = StreamHeader { source: None, ..header() };
        assert_eq!(StreamHeader { kind, ..no_source }.encode(), Err(HeaderError::NoSource));
    }
}

#[test]
fn unknown_kinds_are_refused_at_the_first_byte() {
    for code in (0..=255).filter(|code| StreamKind::from_code(*code).is_none()) {
        let error = StreamHeader::decode(&[code]).unwrap_err();
        assert_eq!((error, error.refusal()), (HeaderError::UnknownKind(code), Refusal::UnsupportedKind));
    }
}

#[test]
fn lengths_over_the_cap_are_refused_before_the_body() {
    assert_eq!(StreamHeader::decode(&[1, 0x80, 0x40]), Ok(Decoded::Incomplete));
    assert_eq!(StreamHeader::decode(&[1, 0x81, 0x40]), Err(HeaderError::TooLong));
    assert_eq!(StreamHeader::decode(&[1, 0xff, 0xff]), Err(HeaderError::TooLong));
    assert_eq!(StreamHeader::decode(&[1, 0x80, 0x80]), Err(HeaderError::TooLong));
}

#[test]
fn the_largest_header_fits_its_cap() {
    let longest = |length: usize| "a".repeat(length);
    let identity = format!("spiffe://{}/{}", longest(255), longest(2048 - 255 - 10));
    let header = StreamHeader {
        service: Some(ServiceKey::parse(&format!("{}/{}", longest(63), longest(63))).unwrap()),
        port: u16::MAX,
        endpoint: Some(EndpointName::parse(&longest(63)).unwrap()),
        source: Some(Source {
            identity: SpiffeId::parse(&identity).unwrap(),
            assurance: Assurance::Mtls,
            certificate: Certificate::new(&[0x30; MAX_CERTIFICATE]),
        }),
        deadline: Some(Duration::MAX),
        path: vec![ClusterName::parse(&longest(63)).unwrap(); MAX_PATH_LEN],
        attempt: u32::MAX,
        client: Some((Ipv6Addr::from(u128::MAX), u16::MAX).into()),
        ..header()
    };
    assert!(header.encode().unwrap().len() <= MAX_HEADER_LEN + 3);
    let too_long = StreamHeader { path: vec![ClusterName::parse("a").unwrap(); MAX_PATH_LEN + 1], ..header };
    assert_eq!(too_long.encode(), Err(HeaderError::LongPath));
}

#[test]
fn a_long_path_is_a_loop() {
    let mut open = open(&header());
    open.path = vec!["a".to_owned(); MAX_PATH_LEN + 1];
    let error = decode(&open).unwrap_err();
    assert_eq!((error, error.refusal()), (HeaderError::LongPath, Refusal::Loop));
}

#[test]
fn fields_that_are_no_names_are_refused() {
    type Change = fn(&mut generated::StreamOpen);
    let changes: [Change; 14] = [
        |open| open.service.as_mut().unwrap().namespace = "Shop".into(),
        |open| open.service.as_mut().unwrap().name = String::new(),
        |open| open.service.as_mut().unwrap().name = "a/b".into(),
        |open| open.port = 0,
        |open| open.port = 65536,
        |open| open.endpoint = "a.b".into(),
        |open| open.source.as_mut().unwrap().identity = "spiffe://east".into(),
        |open| open.source.as_mut().unwrap().identity = String::new(),
        |open| open.source.as_mut().unwrap().assurance = 3,
        |open| open.source = None,
        |open| open.trace = vec![1; 24].into(),
        |open| open.trace = vec![0; 25].into(),
        |open| open.path = vec![String::new()],
        |open| open.client.as_mut().unwrap().ip = vec![1; 5].into(),
    ];
    for (index, change) in changes.into_iter().enumerate() {
        let mut open = open(&header());
        change(&mut open);
        let error = decode(&open).expect_err(&format!("change {index}"));
        assert_eq!(error.refusal(), Refusal::BadHeader);
    }
}

#[test]
fn a_certificate_travels_with_mtls_alone_and_within_its_cap() {
    let with = |assurance, certificate| {
        let source = Source { certificate, ..Source::new(header().source.unwrap().identity, assurance) };
        StreamHeader { source: Some(source), ..header() }
    };
    let whole = with(Assurance::Mtls, Certificate::new(&[7; MAX_CERTIFICATE]));
    assert_eq!(decode(&open(&whole)).unwrap().source, whole.source);
    assert_eq!(open(&whole).source.unwrap().certificate.len(), MAX_CERTIFICATE);
    // Without one nothing is added: what older peers send and read.
    assert_eq!(open(&with(Assurance::Mtls, None)).source.unwrap().certificate.len(), 0);
    assert_eq!(Certificate::new(&[7; MAX_CERTIFICATE + 1]), None);
    assert_eq!(Certificate::new(&[]), None);

    let claimed = with(Assurance::Network, Certificate::new(&[7; 100]));
    assert_eq!(claimed.encode(), Err(HeaderError::Field("certificate")));
    for change in [
        |source: &mut generated::Source| source.certificate = vec![7; MAX_CERTIFICATE + 1].into(),
        |source: &mut generated::Source| source.assurance = 1,
    ] {
        let mut open = open(&whole);
        change(open.source.as_mut().unwrap());
        assert_eq!(decode(&open), Err(HeaderError::Field("certificate")));
    }
}

#[test]
fn fields_of_later_versions_are_skipped() {
    let mut bytes = body(&header().encode().unwrap()).to_vec();
    for (wire, value) in [(0, &[5][..]), (2, b"\x02hi"), (1, &[0; 8]), (5, &[0; 4])] {
        prost::encoding::encode_varint((100 << 3) | wire, &mut bytes);
        bytes.extend_from_slice(value);
    }
    let decoded = StreamHeader::decode(&framed(2, &bytes)).unwrap();
    assert_eq!(decoded, Decoded::Complete { header: header(), consumed: framed(2, &bytes).len() });
}

#[test]
fn deep_groups_are_refused_without_overflow() {
    let groups: Vec<u8> = std::iter::repeat_n([0xa3, 0x06], 4000).flatten().collect();
    assert_eq!(StreamHeader::decode(&framed(1, &groups)), Err(HeaderError::Malformed));
}

#[test]
fn only_version_00_traces_travel() {
    for bad in [
        "",
        "00",
        "01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        "00-4BF92F3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
        "00_4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-x",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0é",
    ] {
        let sent = StreamHeader { traceparent: Some(bad.to_owned()), ..header() };
        assert_eq!(open(&sent).trace.len(), 0, "{bad}");
    }
}

#[test]
fn a_deadline_that_has_passed_is_still_one() {
    let sent = StreamHeader { deadline: Some(Duration::ZERO), ..header() };
    assert_eq!(open(&sent).deadline_micros, 1);
}

fn label() -> impl Strategy<Value = String> {
    "[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?"
}

fn any_header() -> impl Strategy<Value = StreamHeader> {
    let der = proptest::collection::vec(any::<u8>(), 0..300);
    let source = ("[a-z0-9.]{1,20}", "[A-Za-z0-9_-]{1,20}", 0..3_usize, der);
    let source = source.prop_map(|(domain, path, assurance, der)| Source {
        identity: SpiffeId::parse(&format!("spiffe://{domain}/{path}")).unwrap(),
        assurance: Assurance::ALL[assurance],
        certificate: Certificate::new(&der).filter(|_| Assurance::ALL[assurance] == Assurance::Mtls),
    });
    let client = prop_oneof![
        (any::<[u8; 4]>(), any::<u16>()).prop_map(|(ip, port)| SocketAddr::from((Ipv4Addr::from(ip), port))),
        (any::<[u8; 16]>(), any::<u16>()).prop_map(|(ip, port)| SocketAddr::from((Ipv6Addr::from(ip), port))),
    ];
    let trace = "00-[0-9a-f]{31}1-[0-9a-f]{15}1-[0-9a-f]{2}";
    let target = (0..5_usize, label(), label(), 1..=u16::MAX, proptest::option::of(label()), source);
    let rest = (
        proptest::option::of(trace),
        proptest::option::of(1..u64::MAX),
        proptest::collection::vec(label(), 0..6),
        any::<u32>(),
        proptest::option::of(client),
    );
    (target, rest).prop_map(
        |((kind, namespace, name, port, endpoint, source), (trace, micros, path, attempt, client))| StreamHeader {
            kind: StreamKind::ALL[kind],
            service: Some(ServiceKey::parse(&format!("{namespace}/{name}")).unwrap()),
            port,
            endpoint: endpoint.map(|text| EndpointName::parse(&text).unwrap()),
            source: Some(source),
            traceparent: trace,
            deadline: micros.map(Duration::from_micros),
            path: path.iter().map(|text| ClusterName::parse(text).unwrap()).collect(),
            attempt,
            client,
        },
    )
}

proptest! {
    #[test]
    fn any_header_comes_back(header in any_header()) {
        let encoded = header.encode().unwrap();
        let expected = Decoded::Complete { header: header.clone(), consumed: encoded.len() };
        prop_assert_eq!(StreamHeader::decode(&encoded).unwrap(), expected);
        // What the generated code reads and writes again is the same header.
        let rewritten = framed(header.kind.code(), &open(&header).encode_to_vec());
        match StreamHeader::decode(&rewritten).unwrap() {
            Decoded::Complete { header: again, .. } => prop_assert_eq!(again, header),
            Decoded::Incomplete => prop_assert!(false, "a whole header"),
        }
    }

    #[test]
    fn a_damaged_header_is_read_or_refused(
        header in any_header(), damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6), cut in any::<prop::sample::Index>(),
    ) {
        let mut bytes = header.encode().unwrap().to_vec();
        for (place, value) in damage {
            let place = place.index(bytes.len());
            bytes[place] = value;
        }
        drop(StreamHeader::decode(&bytes));
        drop(StreamHeader::decode(&bytes[..cut.index(bytes.len())]));
    }

    #[test]
    fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..400), kind in 1..=5_u8) {
        drop(StreamHeader::decode(&bytes));
        if let Ok(Decoded::Complete { header, .. }) = StreamHeader::decode(&framed(kind, &bytes)) {
            // Whatever is accepted can be sent on.
            prop_assert!(header.encode().is_ok());
        }
    }
}
