use proptest::prelude::*;

use super::*;

fn hello() -> Hello {
    Hello {
        version_min: 1,
        version_max: 3,
        features: 5,
        cluster: ClusterName::parse("east").unwrap(),
        gateway_id: "gateway-0".into(),
        boot_id: "a1b2".into(),
        software_version: "0.1.0".into(),
        worker: 1,
        workers: 2,
        unix_seconds: 1_700_000_000,
    }
}

fn messages() -> [ControlMessage; 3] {
    let away = GoAway { drain_millis: 10_000, reason: "certificate renewed".into() };
    let credit = Credit { stream: 4, limit: 1 << 40 };
    [ControlMessage::Hello(hello()), ControlMessage::GoAway(away), ControlMessage::Credit(credit)]
}

fn read(bytes: &[u8], size: usize) -> Result<Vec<ControlMessage>, ControlError> {
    let mut reader = ControlReader::new();
    let mut read = Vec::new();
    for chunk in bytes.chunks(size.max(1)) {
        reader.push(chunk);
        while let Some(message) = reader.next()? {
            read.push(message);
        }
    }
    Ok(read)
}

/// A control stream with these bodies.
fn stream(bodies: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = open().to_vec();
    for body in bodies {
        prost::encoding::encode_varint(body.len() as u64, &mut bytes);
        bytes.extend_from_slice(body);
    }
    bytes
}

#[test]
fn messages_come_back_in_any_pieces() {
    let mut bytes = open().to_vec();
    messages().iter().for_each(|message| bytes.extend_from_slice(&encode(message)));
    for size in 1..=bytes.len() {
        assert_eq!(read(&bytes, size).unwrap(), messages(), "pieces of {size}");
    }
}

#[test]
fn the_first_byte_names_the_stream() {
    assert_eq!(read(&[1], 1), Err(ControlError::UnknownKind(1)));
    assert_eq!(ControlError::UnknownKind(1).refusal(), Refusal::UnsupportedKind);
}

#[test]
fn messages_of_later_versions_are_skipped() {
    // Field 99, which nobody knows; then an empty message.
    let later = vec![0x9a, 0x06, 0x02, b'h', b'i'];
    let known = encode(&messages()[1]).slice(1..).to_vec();
    assert_eq!(read(&stream(&[later, Vec::new(), known]), 4).unwrap(), messages()[1..2]);
}

#[test]
fn caps_and_texts_are_enforced() {
    assert_eq!(read(&[0, 0x81, 0x80, 0x01], 1), Err(ControlError::TooLong));
    assert_eq!(read(&[0, 0xff, 0xff, 0xff], 1), Err(ControlError::TooLong));
    let mut reader = ControlReader::new();
    reader.push(&[0, 0x80, 0x80, 0x01]);
    assert_eq!(reader.next(), Ok(None), "exactly 16384 bytes are allowed");

    for change in [
        |hello: &mut wire::Hello| hello.cluster = "East".into(),
        |hello: &mut wire::Hello| hello.gateway_id = "a".repeat(MAX_TEXT_LEN + 1),
        |hello: &mut wire::Hello| hello.software_version = "\u{1b}[31m".into(),
    ] {
        let mut hello = wire::Hello { cluster: "east".into(), ..wire::Hello::default() };
        change(&mut hello);
        let body = wire::Control { body: Some(wire::control::Body::Hello(hello)) }.encode_to_vec();
        assert!(matches!(read(&stream(&[body]), 9), Err(ControlError::Field(_))));
    }
    assert_eq!(read(&stream(&[vec![0xff; 20]]), 9), Err(ControlError::Malformed));
}

#[test]
fn long_texts_are_cut_when_sent() {
    let long = ControlMessage::GoAway(GoAway { drain_millis: 1, reason: "é".repeat(MAX_TEXT_LEN) });
    match &read(&[&open()[..], &encode(&long)].concat(), 100).unwrap()[..] {
        [ControlMessage::GoAway(away)] => assert_eq!(away.reason, "é".repeat(MAX_TEXT_LEN / 2)),
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_newest_common_version_is_agreed() {
    let side = |version_min, version_max| Hello { version_min, version_max, ..hello() };
    assert_eq!(side(1, 3).agree(&side(2, 5)), Some(3));
    assert_eq!(side(1, 1).agree(&side(1, 1)), Some(1));
    assert_eq!(side(1, 2).agree(&side(3, 4)), None);
    assert_eq!(side(3, 4).agree(&side(1, 2)), None);
}

proptest! {
    #[test]
    fn any_bytes_are_read_or_refused(mut bytes in proptest::collection::vec(any::<u8>(), 0..300), size in 1..40_usize) {
        drop(read(&bytes, size));
        bytes.insert(0, 0);
        drop(read(&bytes, size));
    }

    #[test]
    fn a_damaged_stream_is_read_or_refused(place in any::<prop::sample::Index>(), value in any::<u8>(), size in 1..40_usize) {
        let mut bytes = open().to_vec();
        messages().iter().for_each(|message| bytes.extend_from_slice(&encode(message)));
        let place = place.index(bytes.len());
        bytes[place] = value;
        drop(read(&bytes, size));
    }
}
