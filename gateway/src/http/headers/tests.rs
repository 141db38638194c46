use super::*;

fn map(fields: &[(&str, &str)]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in fields {
        headers.append(
            HeaderName::from_bytes(name.as_bytes()).expect("a name"),
            HeaderValue::from_bytes(value.as_bytes()).expect("a value"),
        );
    }
    headers
}

fn source() -> Source {
    let identity = SpiffeId::parse("spiffe://east.linkspan.internal/ns/shop/sa/web").expect("an identity");
    Source::new(identity, Assurance::Network)
}

fn identity() -> Identity {
    let by = SpiffeId::parse("spiffe://west.linkspan.internal/ns/linkspan/sa/gateway").expect("an identity");
    Identity::new(&by, &source(), &ClusterName::parse("east").expect("a name"))
}

/// S-01: names by which a client may try to pass as somebody else.
const FORGED: [&str; 12] = [
    "linkspan-source",
    "Linkspan-Source",
    "LINKSPAN_SOURCE",
    "linkspan.source",
    "x-forwarded-client-cert",
    "X_Forwarded_Client_Cert",
    "x-forwarded_client-CERT",
    "forwarded",
    "client-cert",
    "Client_Cert_Chain",
    "l5d-client-id",
    "l5d_remote_ip",
];

#[test]
fn no_forged_identity_arrives() {
    for name in FORGED {
        for value in ["spiffe://evil/ns/a/sa/b", "", "  spiffe://evil  ", "a, b", "\u{e9}vil", &"x".repeat(8192)] {
            let mut headers = map(&[(name, value), (name, value), ("accept", "*/*")]);
            strip_identity(&mut headers);
            assert_eq!(headers, map(&[("accept", "*/*")]), "{name}: {value:.20}");

            let mut headers = map(&[(name, value), ("accept", "*/*")]);
            identity().set(&mut headers);
            assert_eq!(headers.len(), 3, "{name}");
            assert_eq!(headers.get_all(&LINKSPAN_SOURCE).iter().count(), 1);
            assert_eq!(headers.get_all(&XFCC).iter().count(), 1);

            let mut trailers = map(&[(name, value), ("x-checksum", "1")]);
            strip_trailers(&mut trailers);
            assert_eq!(trailers, map(&[("x-checksum", "1")]), "{name} in trailers");
        }
    }
}

#[test]
fn envoys_and_cgis_names_are_stripped_too() {
    let mut headers = map(&[
        ("x-envoy-peer-metadata", "a"),
        ("X_Envoy_External_Address", "1.2.3.4"),
        ("proxy", "http://evil"),
        ("linkspan-error", "none"),
        ("linkspan-anything", "a"),
    ]);
    strip_identity(&mut headers);
    assert!(headers.is_empty(), "{headers:?}");
}

#[test]
fn neighbours_of_identity_names_stay() {
    let fields = [
        ("x-forwarded-for", "1.2.3.4"),
        ("x-forwarded-client-certificate-note", "a"),
        ("forwarded-by", "b"),
        ("client-certificate", "c"),
        ("linkspan", "d"),
        ("l5d", "e"),
        ("proxy-status", "f"),
        ("cookie", "a=b"),
    ];
    let mut headers = map(&fields);
    strip_identity(&mut headers);
    assert_eq!(headers, map(&fields));
}

#[test]
fn the_identity_reads_as_envoy_and_rfc_8941_write_it() {
    let mut headers = HeaderMap::new();
    identity().set(&mut headers);
    assert_eq!(
        headers[XFCC],
        "By=spiffe://west.linkspan.internal/ns/linkspan/sa/gateway;URI=spiffe://east.linkspan.internal/ns/shop/sa/web"
    );
    assert_eq!(
        headers[LINKSPAN_SOURCE],
        "\"spiffe://east.linkspan.internal/ns/shop/sa/web\";cluster=\"east\";assurance=network"
    );
}

/// RFC 9440 section 2.2 and Envoy's `Hash`, for whom a certificate is known.
#[test]
fn a_certificate_is_shown_whole_and_by_its_hash() {
    let by = SpiffeId::parse("spiffe://west/ns/linkspan/sa/gateway").expect("an identity");
    let cluster = ClusterName::parse("east").expect("a name");
    let caller = Source { assurance: Assurance::Mtls, certificate: Certificate::new(b"abc"), ..source() };
    let mut headers = map(&[("client-cert", ":Zm9yZ2Vk:"), ("client-cert-chain", ":Zm9yZ2Vk:")]);
    Identity::new(&by, &caller, &cluster).set(&mut headers);
    assert_eq!(headers.get_all(CLIENT_CERT).iter().collect::<Vec<_>>(), [":YWJj:"]);
    assert!(!headers.contains_key("client-cert-chain"));
    assert_eq!(
        headers[XFCC],
        "By=spiffe://west/ns/linkspan/sa/gateway;\
         Hash=ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad;\
         URI=spiffe://east.linkspan.internal/ns/shop/sa/web"
    );
    // Without one the field is only taken away.
    Identity::new(&by, &source(), &cluster).set(&mut headers);
    assert!(!headers.contains_key(CLIENT_CERT));
}

#[test]
fn values_of_xfcc_are_quoted_where_they_must() {
    assert_eq!(quoted_if_needed("spiffe://a/b"), "spiffe://a/b");
    assert_eq!(quoted_if_needed("a,b"), "\"a,b\"");
    assert_eq!(quoted_if_needed("a=\"b\";"), "\"a=\\\"b\\\";\"");
}

/// S-02: whatever `Connection` names, the identity is there afterwards, once.
#[test]
fn nominations_cannot_remove_the_identity() {
    let nominations = [
        "linkspan-source",
        "Linkspan-Source",
        "LINKSPAN-SOURCE",
        "close, linkspan-source",
        "linkspan-source, x-forwarded-client-cert",
        "x-forwarded-client-cert",
        "X-Forwarded-Client-Cert",
        "keep-alive, X-FORWARDED-CLIENT-CERT",
        "upgrade, linkspan-source",
        "linkspan-source,linkspan-source",
        " linkspan-source ",
        ",linkspan-source,",
        "te, linkspan-source",
        "connection",
        "connection, linkspan-source",
        "forwarded, client-cert",
        "l5d-client-id",
        "host, linkspan-source",
        "*",
        "linkspan_source",
    ];
    for nomination in nominations {
        for also in [header::CONNECTION, HeaderName::from_static("proxy-connection"), header::TE] {
            let mut headers = map(&[("accept", "*/*"), ("linkspan-source", "forged")]);
            headers.append(also.clone(), HeaderValue::from_str(nomination).expect("a value"));
            take_hop_by_hop(&mut headers).expect("well formed");
            identity().set(&mut headers);
            assert_eq!(headers.get_all(&LINKSPAN_SOURCE).iter().count(), 1, "{also}: {nomination}");
            assert_eq!(headers.get_all(&XFCC).iter().count(), 1, "{also}: {nomination}");
            assert!(!headers.contains_key(header::CONNECTION));
        }
    }
}

#[test]
fn hop_by_hop_fields_go_and_the_nominated_with_them() {
    let mut headers = map(&[
        ("connection", "close, x-secret"),
        ("connection", "X-Other"),
        ("keep-alive", "timeout=5"),
        ("proxy-connection", "keep-alive"),
        ("proxy-authorization", "Basic eA=="),
        ("proxy-authenticate", "Basic"),
        ("transfer-encoding", "chunked"),
        ("te", "gzip, Trailers;q=0.5"),
        ("upgrade", "websocket"),
        ("http2-settings", "AAMAAABkAAQAAP__"),
        ("x-secret", "1"),
        ("x-other", "2"),
        ("x-stays", "3"),
    ]);
    let hop = take_hop_by_hop(&mut headers).expect("well formed");
    assert_eq!(headers, map(&[("x-stays", "3")]));
    // `Connection` does not name `upgrade`: it was not meant for us.
    assert_eq!(hop, Hop { upgrade: None, trailers: true, chunked: true });
}

#[test]
fn what_the_message_needs_cannot_be_nominated_away() {
    let fields = [("host", "web"), ("content-length", "3"), ("content-type", "text/plain"), ("expect", "100-continue")];
    let mut headers = map(&fields);
    headers.append(header::CONNECTION, HeaderValue::from_static("host, content-length, content-type, expect"));
    take_hop_by_hop(&mut headers).expect("well formed");
    assert_eq!(headers, map(&fields));
}

#[test]
fn upgrades_are_kept_apart_and_h2c_is_none() {
    let offered = |fields: &[(&str, &str)]| {
        let mut headers = map(fields);
        take_hop_by_hop(&mut headers)
            .expect("well formed")
            .upgrade
            .map(|value| value.to_str().expect("text").to_owned())
    };
    assert_eq!(offered(&[("connection", "Upgrade"), ("upgrade", "websocket")]).as_deref(), Some("websocket"));
    assert_eq!(offered(&[("connection", "keep-alive, upgrade"), ("upgrade", "a, b/2")]).as_deref(), Some("a, b/2"));
    assert_eq!(offered(&[("connection", "upgrade"), ("upgrade", "h2c, websocket")]).as_deref(), Some("websocket"));
    assert_eq!(offered(&[("connection", "upgrade, http2-settings"), ("upgrade", "h2c")]), None);
    assert_eq!(offered(&[("connection", "upgrade")]), None);
    assert_eq!(offered(&[("upgrade", "websocket")]), None);
}

#[test]
fn s_19_codings_other_than_chunked_are_refused() {
    for value in ["gzip, chunked", "gzip", "identity", "chunked, chunked", "chunked;q=1", "xchunked", ""] {
        let mut headers = map(&[("transfer-encoding", value)]);
        assert_eq!(take_hop_by_hop(&mut headers), Err(HeaderError::TransferCoding), "{value}");
    }
    let mut headers = map(&[("transfer-encoding", " Chunked ")]);
    assert!(take_hop_by_hop(&mut headers).expect("well formed").chunked);
}

#[test]
fn s_19_content_length_is_one_number() {
    let length = |values: &[&str]| {
        let fields: Vec<(&str, &str)> = values.iter().map(|value| ("content-length", *value)).collect();
        let mut headers = map(&fields);
        content_length(&mut headers).map(|length| (length, headers.get_all(header::CONTENT_LENGTH).iter().count()))
    };
    assert_eq!(length(&[]), Ok((None, 0)));
    assert_eq!(length(&["0"]), Ok((Some(0), 1)));
    assert_eq!(length(&["18446744073709551615"]), Ok((Some(u64::MAX), 1)));
    assert_eq!(length(&["5", "5"]), Ok((Some(5), 1)));
    assert_eq!(length(&["5, 5", "5"]), Ok((Some(5), 1)));
    for bad in
        [&["5", "6"][..], &["5, 6"], &["+5"], &["-5"], &[""], &["5,"], &["0x5"], &["5 5"], &["18446744073709551616"]]
    {
        assert_eq!(length(bad), Err(HeaderError::Length), "{bad:?}");
    }
}

#[test]
fn cookie_crumbs_become_one_cookie() {
    let mut headers = map(&[("cookie", "a=1"), ("cookie", "b=2; c=3"), ("cookie", "d=4")]);
    join_cookies(&mut headers);
    assert_eq!(headers, map(&[("cookie", "a=1; b=2; c=3; d=4")]));
    join_cookies(&mut headers);
    assert_eq!(headers, map(&[("cookie", "a=1; b=2; c=3; d=4")]));
}

#[test]
fn baggage_loses_only_what_claims_an_identity() {
    let mut headers = map(&[("baggage", "userId=alice,k8s.namespace.name=prod, serverNode=DF%2028;isolated")]);
    strip_identity(&mut headers);
    assert_eq!(headers, map(&[("baggage", "userId=alice,serverNode=DF%2028;isolated")]));
    let untouched = map(&[("baggage", "a=1 , b=2"), ("baggage", "c=3")]);
    let mut headers = untouched.clone();
    strip_identity(&mut headers);
    assert_eq!(headers, untouched);
    let mut headers = map(&[("baggage", "Service.Name=admin")]);
    strip_identity(&mut headers);
    assert!(headers.is_empty());
}

#[test]
fn trailers_carry_no_framing() {
    let mut trailers = map(&[
        ("grpc-status", "0"),
        ("content-length", "5"),
        ("transfer-encoding", "chunked"),
        ("host", "evil"),
        ("authorization", "Bearer x"),
        ("connection", "close"),
    ]);
    strip_trailers(&mut trailers);
    assert_eq!(trailers, map(&[("grpc-status", "0")]));
}

#[test]
fn grpc_is_told_by_its_content_type() {
    for (value, grpc) in [
        ("application/grpc", true),
        ("application/grpc+proto", true),
        ("Application/GRPC;charset=utf-8", true),
        ("application/grpc-web", false),
        ("application/grpc-web+proto", false),
        ("application/json", false),
        ("text/application/grpc", false),
        ("", false),
    ] {
        assert_eq!(is_grpc(&map(&[("content-type", value)])), grpc, "{value}");
    }
    assert!(!is_grpc(&HeaderMap::new()));
}
