use http::header::{CONTENT_LENGTH, CONTENT_TYPE, COOKIE, HOST, TRANSFER_ENCODING};
use http::{HeaderName, HeaderValue};
use proptest::prelude::*;

use super::*;

fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
    pairs
        .iter()
        .map(|(name, value)| (HeaderName::try_from(*name).unwrap(), HeaderValue::try_from(*value).unwrap()))
        .collect()
}

fn request(pairs: &[(&str, &str)]) -> RequestHead {
    RequestHead {
        method: Method::POST,
        scheme: Scheme::HTTP,
        authority: Some(Authority::from_static("web-west.shop.svc.cluster.local:80")),
        path_and_query: PathAndQuery::from_static("/cart?item=1"),
        version: HttpVersion::H1,
        headers: headers(pairs),
    }
}

fn response(status: u16, pairs: &[(&str, &str)]) -> ResponseHead {
    ResponseHead { status: StatusCode::from_u16(status).unwrap(), headers: headers(pairs) }
}

fn data(bytes: &[u8]) -> Bytes {
    [&data_prefix(bytes.len())[..], bytes].concat().into()
}

/// All events of a message whose bytes arrive in pieces of `size`, with neighbouring data joined; then the end.
fn read(side: Side, message: &[u8], size: usize) -> Result<Vec<Event>, FrameError> {
    let mut reader = FrameReader::new(side);
    let mut events = Vec::new();
    for chunk in message.chunks(size.max(1)) {
        reader.push(Bytes::copy_from_slice(chunk));
        while let Some(event) = reader.next()? {
            match (events.last_mut(), event) {
                (Some(Event::Data(before)), Event::Data(more)) => *before = [&before[..], &more[..]].concat().into(),
                (_, event) => events.push(event),
            }
        }
    }
    reader.finish()?;
    Ok(events)
}

fn whole(side: Side, frames: &[Bytes]) -> Result<Vec<Event>, FrameError> {
    read(side, &frames.concat(), usize::MAX)
}

#[test]
fn a_request_comes_back_in_any_pieces() {
    let head = request(&[("host", "web"), ("content-type", "text/plain"), ("x-own", "1"), ("x-own", "2")]);
    let trailers = headers(&[("grpc-status", "0"), ("x-sum", "abc")]);
    let message = [
        encode_request_head(&head).unwrap(),
        data(b"hello "),
        data(b""),
        data(b"world"),
        encode_trailers(&trailers).unwrap(),
    ]
    .concat();
    let expected =
        vec![Event::RequestHead(head), Event::Data(Bytes::from_static(b"hello world")), Event::Trailers(trailers)];
    for size in 1..=message.len() {
        assert_eq!(read(Side::Request, &message, size).unwrap(), expected, "pieces of {size}");
    }
}

#[test]
fn a_response_comes_back_with_its_interim_ones() {
    let early = headers(&[("link", "</style.css>")]);
    let head = response(200, &[("content-length", "3")]);
    let message = [
        encode_info(StatusCode::CONTINUE, &HeaderMap::new()).unwrap(),
        encode_info(StatusCode::from_u16(103).unwrap(), &early).unwrap(),
        encode_response_head(&head).unwrap(),
        data(b"abc"),
    ];
    let expected = vec![
        Event::Info(StatusCode::CONTINUE, HeaderMap::new()),
        Event::Info(StatusCode::from_u16(103).unwrap(), early),
        Event::ResponseHead(head),
        Event::Data(Bytes::from_static(b"abc")),
    ];
    assert_eq!(whole(Side::Response, &message).unwrap(), expected);
}

#[test]
fn body_bytes_are_not_copied() {
    let mut reader = FrameReader::new(Side::Request);
    reader.push(encode_request_head(&request(&[])).unwrap());
    assert!(matches!(reader.next(), Ok(Some(Event::RequestHead(_)))));
    let chunk = data(&[7; 4096]);
    let range = chunk.as_ptr_range();
    reader.push(chunk.clone());
    match reader.next() {
        Ok(Some(Event::Data(bytes))) => {
            assert_eq!(bytes.len(), 4096);
            assert!(range.contains(&bytes.as_ptr()));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_head_in_one_chunk_is_not_copied() {
    let value = "v".repeat(100);
    let encoded = encode_request_head(&request(&[("x-long", &value)])).unwrap();
    let range = encoded.as_ptr_range();
    let mut reader = FrameReader::new(Side::Request);
    reader.push(encoded.clone());
    match reader.next() {
        Ok(Some(Event::RequestHead(head))) => assert!(range.contains(&head.headers["x-long"].as_bytes().as_ptr())),
        other => panic!("{other:?}"),
    }
}

#[test]
fn sensitive_values_stay_sensitive() {
    let mut head = request(&[]);
    for name in ["authorization", "x-secret"] {
        let mut value = HeaderValue::from_static("s3cret");
        value.set_sensitive(true);
        head.headers.append(HeaderName::from_static(name), value);
    }
    head.headers.append(COOKIE, HeaderValue::from_static("a=b"));
    match whole(Side::Request, &[encode_request_head(&head).unwrap()]).unwrap().remove(0) {
        Event::RequestHead(read) => {
            assert!(read.headers["authorization"].is_sensitive() && read.headers["x-secret"].is_sensitive());
            assert!(!read.headers["cookie"].is_sensitive());
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn heads_without_a_host_or_with_a_star_travel() {
    let head = RequestHead {
        method: Method::OPTIONS,
        authority: None,
        path_and_query: PathAndQuery::from_static("*"),
        scheme: Scheme::HTTPS,
        version: HttpVersion::H2,
        ..request(&[])
    };
    let events = whole(Side::Request, &[encode_request_head(&head).unwrap()]).unwrap();
    assert_eq!(events, [Event::RequestHead(head)]);
}

#[test]
fn upgrades_leave_the_rest_raw() {
    for cut in 0..6 {
        let head = response(101, &[("upgrade", "websocket")]);
        let message = [&encode_response_head(&head).unwrap()[..], &upgraded(), b"\x01\x02raw"].concat();
        let at = message.len() - cut;
        let mut reader = FrameReader::new(Side::Response);
        reader.push(Bytes::copy_from_slice(&message[..at]));
        assert_eq!(reader.next(), Ok(Some(Event::ResponseHead(head))));
        let upgraded = reader.next();
        reader.push(Bytes::copy_from_slice(&message[at..]));
        if upgraded == Ok(None) {
            assert_eq!(reader.next(), Ok(Some(Event::Upgraded)));
        } else {
            assert_eq!(upgraded, Ok(Some(Event::Upgraded)));
        }
        assert_eq!(reader.next(), Ok(None));
        assert_eq!(reader.finish(), Ok(()));
        assert_eq!(reader.into_rest().concat(), b"\x01\x02raw");
    }
}

#[test]
fn frames_out_of_order_are_refused() {
    let head = || encode_request_head(&request(&[])).unwrap();
    let answer = || encode_response_head(&response(200, &[])).unwrap();
    let trailers = || encode_trailers(&HeaderMap::new()).unwrap();
    let info = || encode_info(StatusCode::CONTINUE, &HeaderMap::new()).unwrap();
    for (side, frames) in [
        (Side::Request, vec![data(b"a")]),
        (Side::Request, vec![trailers()]),
        (Side::Request, vec![upgraded()]),
        (Side::Request, vec![info(), head()]),
        (Side::Request, vec![head(), head()]),
        (Side::Request, vec![head(), info()]),
        (Side::Request, vec![head(), trailers(), data(b"a")]),
        (Side::Request, vec![head(), trailers(), trailers()]),
        (Side::Request, vec![head(), trailers(), upgraded()]),
        (Side::Response, vec![answer(), info()]),
        (Side::Response, vec![answer(), answer()]),
    ] {
        assert_eq!(whole(side, &frames), Err(FrameError::OutOfOrder), "{frames:?}");
    }
    assert_eq!(whole(Side::Request, &[Bytes::from_static(&[5])]), Err(FrameError::UnknownType(5)));
}

#[test]
fn a_message_that_ends_early_is_truncated() {
    let message = [
        encode_request_head(&request(&[])).unwrap(),
        data(b"hello"),
        encode_trailers(&headers(&[("a", "b")])).unwrap(),
    ];
    let head_len = message[0].len();
    let data_len = message[1].len();
    let message = message.concat();
    for end in 0..message.len() {
        let expected = if end == head_len || end == head_len + data_len { Ok(()) } else { Err(FrameError::Truncated) };
        assert_eq!(read(Side::Request, &message[..end], 3).map(drop), expected, "{end}");
    }
}

#[test]
fn s_20_bodies_have_the_length_they_announce() {
    let length = |side: Side, announced: &str, body: &[&[u8]]| {
        let pair = [("content-length", announced)];
        let head = match side {
            Side::Request => encode_request_head(&request(&pair)).unwrap(),
            Side::Response => encode_response_head(&response(200, &pair)).unwrap(),
        };
        let mut frames = vec![head];
        frames.extend(body.iter().map(|bytes| data(bytes)));
        whole(side, &frames).map(drop)
    };
    for side in [Side::Request, Side::Response] {
        assert_eq!(length(side, "5", &[b"he", b"llo"]), Ok(()));
        assert_eq!(length(side, "0", &[]), Ok(()));
        assert_eq!(length(side, "5", &[b"hello!"]), Err(FrameError::LengthMismatch));
        assert_eq!(length(side, "5", &[b"hell"]), Err(FrameError::LengthMismatch));
        for bad in ["-1", "+1", "", "1,1", "0x1", "1 ", "99999999999999999999"] {
            assert_eq!(length(side, bad, &[]), Err(FrameError::Malformed("content-length")), "{bad}");
        }
    }
    // An answer to HEAD, and a 304, announce a body that they do not have.
    assert_eq!(length(Side::Response, "5", &[]), Ok(()));
    assert_eq!(length(Side::Request, "5", &[]), Err(FrameError::LengthMismatch));
    let twice =
        |values: &[(&str, &str)]| whole(Side::Request, &[encode_request_head(&request(values)).unwrap(), data(b"a")]);
    assert!(twice(&[("content-length", "1"), ("content-length", "1")]).is_ok());
    assert!(twice(&[("content-length", "1"), ("content-length", "2")]).is_err());
}

#[test]
fn s_20_transfer_encoding_does_not_travel() {
    let mut head = request(&[("host", "web"), ("transfer-encoding", "chunked")]);
    let encoded = encode_request_head(&head).unwrap();
    head.headers.remove(TRANSFER_ENCODING);
    assert_eq!(whole(Side::Request, &[encoded]).unwrap(), [Event::RequestHead(head.clone())]);
    // A hostile peer writes it out.
    let mut payload = BytesMut::new();
    payload.put_slice(&[1, 3]);
    payload.put_slice(b"GET");
    payload.put_slice(&[0, 0, 1, b'/', 1, 0, 17]);
    payload.put_slice(b"transfer-encoding");
    payload.put_slice(&[7]);
    payload.put_slice(b"chunked");
    let frame = [&[frame::HEAD, u8::try_from(payload.len()).unwrap()][..], &payload].concat();
    assert_eq!(whole(Side::Request, &[frame.into()]), Err(FrameError::Malformed("transfer-encoding")));
}

/// A HEAD frame of a request with these parts.
fn raw_head(version: u8, method: &[u8], scheme: u8, authority: &[u8], path: &[u8], headers: &[u8]) -> Bytes {
    let text = |text: &[u8]| {
        let mut length = [0; varint::MAX];
        let taken = varint::write(text.len() as u64, &mut length);
        [&length[..taken], text].concat()
    };
    let payload = [&[version][..], &text(method), &[scheme], &text(authority), &text(path), headers].concat();
    let mut length = [0; varint::MAX];
    let taken = varint::write(payload.len() as u64, &mut length);
    [&[frame::HEAD][..], &length[..taken], &payload].concat().into()
}

#[test]
fn s_20_heads_that_http_does_not_know_are_refused() {
    let good = |headers: &[u8]| whole(Side::Request, &[raw_head(1, b"GET", 0, b"web", b"/", headers)]);
    assert!(good(&[0]).is_ok());
    for (what, head) in [
        ("version", raw_head(3, b"GET", 0, b"web", b"/", &[0])),
        ("method", raw_head(1, b"GE T", 0, b"web", b"/", &[0])),
        ("method", raw_head(1, b"", 0, b"web", b"/", &[0])),
        ("method", raw_head(1, b"CONNECT", 0, b"web", b"/", &[0])),
        ("method", raw_head(1, &[b'A'; 65], 0, b"web", b"/", &[0])),
        ("scheme", raw_head(1, b"GET", 2, b"web", b"/", &[0])),
        ("authority", raw_head(1, b"GET", 0, b"web/x", b"/", &[0])),
        ("authority", raw_head(1, b"GET", 0, b"we b", b"/", &[0])),
        ("path", raw_head(1, b"GET", 0, b"web", b"", &[0])),
        ("path", raw_head(1, b"GET", 0, b"web", b"x", &[0])),
        ("path", raw_head(1, b"GET", 0, b"web", b"http://other/", &[0])),
        ("path", raw_head(1, b"GET", 0, b"web", b"/ HTTP/1.1\r\nx: y", &[0])),
        ("path", raw_head(1, b"GET", 0, b"web", b"*x", &[0])),
    ] {
        assert_eq!(whole(Side::Request, std::slice::from_ref(&head)), Err(FrameError::Malformed(what)), "{head:?}");
    }
    for (what, bytes) in [
        ("header count", &b""[..]),
        ("header name", b"\x01"),
        ("header name", b"\x01\x7f\x00"),
        ("header name", b"\x01\x00\x00\x00"),
        ("header name", b"\x01\x00\x01A\x00"),
        ("header name", b"\x01\x00\x03a:b\x00"),
        ("header name", b"\x01\x00\x07x\r\nfoo:\x00"),
        ("header value", b"\x01\x24\x03a\r\n"),
        ("header value", b"\x01\x24\x01\x00"),
        ("header value", b"\x01\x24\x05ab"),
        ("bytes behind the headers", b"\x01\x24\x01ab"),
    ] {
        assert_eq!(good(bytes), Err(FrameError::Malformed(what)), "{bytes:?}");
    }
}

#[test]
fn statuses_are_where_they_belong() {
    assert!(encode_info(StatusCode::OK, &HeaderMap::new()).is_err());
    assert!(encode_info(StatusCode::SWITCHING_PROTOCOLS, &HeaderMap::new()).is_err());
    assert!(encode_response_head(&response(100, &[])).is_err());
    for (kind, status) in
        [(frame::HEAD, 100_u16), (frame::HEAD, 99), (frame::HEAD, 1000), (frame::INFO, 101), (frame::INFO, 200)]
    {
        let status = status.to_be_bytes();
        let bytes = Bytes::copy_from_slice(&[kind, 3, status[0], status[1], 0]);
        assert_eq!(whole(Side::Response, &[bytes]), Err(FrameError::Malformed("status")));
    }
}

#[test]
fn s_25_caps_hold_in_both_directions() {
    let many: Vec<_> = (0..=MAX_HEADERS).map(|index| format!("x-{index}")).collect();
    let pairs: Vec<_> = many.iter().map(|name| (name.as_str(), "v")).collect();
    assert!(encode_request_head(&request(&pairs[..MAX_HEADERS])).is_ok());
    assert_eq!(encode_request_head(&request(&pairs)), Err(FrameError::TooManyHeaders));
    let long = "v".repeat(MAX_HEAD_LEN);
    assert_eq!(encode_request_head(&request(&[("x-long", &long)])), Err(FrameError::TooLong));
    assert_eq!(encode_trailers(&headers(&[("x-long", &long)])), Err(FrameError::TooLong));
    assert!(encode_trailers(&headers(&[("x-long", &"v".repeat(MAX_HEAD_LEN - 100))])).is_ok());

    let mut length = [0; varint::MAX];
    for (kind, size) in [(frame::HEAD, MAX_HEAD_LEN + 1), (frame::HEAD, usize::MAX >> 1), (frame::UPGRADED, 1)] {
        let taken = varint::write(size as u64, &mut length);
        let mut reader = FrameReader::new(Side::Request);
        if kind == frame::UPGRADED {
            reader.push(encode_request_head(&request(&[])).unwrap());
            assert!(reader.next().is_ok());
        }
        reader.push([&[kind][..], &length[..taken]].concat().into());
        assert_eq!(reader.next(), Err(FrameError::TooLong));
        assert_eq!(reader.next(), Err(FrameError::TooLong), "an error stays");
        assert_eq!(reader.finish(), Err(FrameError::TooLong));
    }
    // A length of ten bytes.
    let endless = [&[frame::HEAD][..], &[0xff; 10]].concat();
    assert_eq!(read(Side::Request, &endless, 1), Err(FrameError::TooLong));
    // 257 headers by count, and by a count that nothing backs.
    for count in [&[0x81_u8, 0x02][..], &[0xff, 0xff, 0xff, 0xff, 0x07]] {
        let head = raw_head(1, b"GET", 0, b"", b"/", count);
        assert_eq!(whole(Side::Request, &[head]), Err(FrameError::TooManyHeaders));
    }
    let infos = vec![encode_info(StatusCode::CONTINUE, &HeaderMap::new()).unwrap(); 33];
    assert_eq!(whole(Side::Response, &infos), Err(FrameError::TooManyInfos));
}

#[test]
fn data_prefixes_are_short() {
    assert_eq!(data_prefix(1).len(), 2);
    assert_eq!(data_prefix(64 * 1024).len(), 4);
    assert_eq!(data_prefix(usize::MAX >> 1).len(), 10);
}

#[test]
fn common_heads_are_small() {
    let mut head = request(&[("user-agent", "curl/8"), ("accept", "*/*"), ("content-type", "application/json")]);
    head.headers.insert(HOST, HeaderValue::from_static("web"));
    head.headers.insert(CONTENT_LENGTH, HeaderValue::from_static("2"));
    head.headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    assert!(encode_request_head(&head).unwrap().len() < 110);
}

fn any_headers(max: usize) -> impl Strategy<Value = HeaderMap> {
    let name = prop_oneof![
        "[a-z][a-z0-9-]{0,12}",
        Just("grpc-status".to_owned()),
        Just("cookie".to_owned()),
        Just("accept".to_owned())
    ];
    let value = proptest::collection::vec(prop_oneof![32..127_u8, 128..=255_u8, Just(9)], 0..30);
    proptest::collection::vec((name, value, any::<bool>()), 0..max).prop_map(|pairs| {
        let mut map = HeaderMap::new();
        for (name, value, sensitive) in pairs {
            let mut value = HeaderValue::from_bytes(&value).unwrap();
            value.set_sensitive(sensitive);
            map.append(HeaderName::try_from(name).unwrap(), value);
        }
        map.remove(CONTENT_LENGTH);
        map.remove(TRANSFER_ENCODING);
        map
    })
}

proptest! {
    #[test]
    fn any_message_comes_back_in_any_pieces(
        map in any_headers(20), trailers in proptest::option::of(any_headers(5)), body in proptest::collection::vec(any::<u8>(), 0..300),
        path in "/[a-z0-9/]{0,30}(\\?[a-z=&]{0,20})?", sizes in proptest::collection::vec(1..40_usize, 1..20), response in any::<bool>(),
    ) {
        let side = if response { Side::Response } else { Side::Request };
        let (head, first) = if response {
            let head = ResponseHead { status: StatusCode::OK, headers: map };
            (encode_response_head(&head).unwrap(), Event::ResponseHead(head))
        } else {
            let head = RequestHead { path_and_query: path.parse().unwrap(), headers: map, ..request(&[]) };
            (encode_request_head(&head).unwrap(), Event::RequestHead(head))
        };
        let mut message = head.to_vec();
        body.chunks(70).for_each(|chunk| message.extend_from_slice(&data(chunk)));
        let mut expected = vec![first];
        if !body.is_empty() {
            expected.push(Event::Data(body.into()));
        }
        if let Some(trailers) = trailers {
            message.extend_from_slice(&encode_trailers(&trailers).unwrap());
            expected.push(Event::Trailers(trailers));
        }
        let mut reader = FrameReader::new(side);
        let (mut events, mut rest, mut sizes) = (Vec::new(), &message[..], sizes.iter().cycle());
        while !rest.is_empty() {
            let (chunk, behind) = rest.split_at((*sizes.next().unwrap()).min(rest.len()));
            rest = behind;
            reader.push(Bytes::copy_from_slice(chunk));
            while let Some(event) = reader.next().unwrap() {
                match (events.last_mut(), event) {
                    (Some(Event::Data(before)), Event::Data(more)) => *before = Bytes::from([&before[..], &more[..]].concat()),
                    (_, event) => events.push(event),
                }
            }
        }
        prop_assert_eq!(reader.finish(), Ok(()));
        prop_assert_eq!(events, expected);
    }

    #[test]
    fn a_damaged_message_is_read_or_refused(
        map in any_headers(10), damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8), size in 1..50_usize,
    ) {
        let head = RequestHead { headers: map, ..request(&[]) };
        let mut message = [encode_request_head(&head).unwrap(), data(&[1; 50]), encode_trailers(&headers(&[("a", "b")])).unwrap()].concat();
        for (place, value) in damage {
            let place = place.index(message.len());
            message[place] = value;
        }
        drop(read(Side::Request, &message, size));
        drop(read(Side::Response, &message, size));
    }

    #[test]
    fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..300), size in 1..50_usize) {
        drop(read(Side::Request, &bytes, size));
        drop(read(Side::Response, &bytes, size));
    }
}
