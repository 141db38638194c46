use linkspan_proto::identity::{Assurance, Source, SpiffeId};
use linkspan_proto::names::ClusterName;

use super::*;

fn parts(request: http::request::Builder) -> Parts {
    request.body(()).expect("a request").into_parts().0
}

fn get(target: &str) -> http::request::Builder {
    Request::get(target)
}

fn prepared(request: http::request::Builder, body: bool) -> Result<Prepared, Invalid> {
    prepare(parts(request), body, "web-west.shop.svc.cluster.local")
}

fn identity() -> Identity {
    let id = |text| SpiffeId::parse(text).expect("an identity");
    let source = Source::new(id("spiffe://east/ns/a/sa/b"), Assurance::Mtls);
    Identity::new(&id("spiffe://west/ns/linkspan/sa/gateway"), &source, &ClusterName::parse("east").expect("a name"))
}

#[test]
fn s_18_the_target_keeps_every_byte() {
    for target in ["/", "/a//b/../c", "/%2f%5C;x=1?y=%20&z", "/?", "/a?b?c", "/\u{e9}"] {
        let prepared = prepared(get(target).header("host", "web"), false).expect(target);
        assert_eq!(prepared.head.path_and_query.as_str(), target);
    }
    let absolute = prepared(get("http://web/a?b"), false).expect("an absolute form");
    assert_eq!(absolute.head.path_and_query, "/a?b");
    let empty = prepared(get("http://web"), false).expect("an absolute form without a path");
    assert_eq!(empty.head.path_and_query, "/");
    let query = prepared(get("http://web?b"), false).expect("an absolute form without a path");
    assert_eq!(query.head.path_and_query, "/?b");
    let star = prepared(Request::options("*").header("host", "web"), false).expect("an asterisk form");
    assert_eq!(star.head.path_and_query, "*");
    assert_eq!(prepared(get("*").header("host", "web"), false).map(drop), Err(Invalid::Target));
    assert_eq!(prepared(get("web:80").header("host", "web"), false).map(drop), Err(Invalid::Target));
    assert_eq!(prepared(Request::connect("web:80"), false).map(drop), Err(Invalid::Connect));
}

#[test]
fn s_16_s_17_the_host_is_one_and_stays_as_it_was_written() {
    let host = |request: http::request::Builder| {
        prepared(request, false).map(|prepared| {
            assert!(!prepared.head.headers.contains_key(header::HOST), "it travels as the authority");
            prepared.head.authority.map(|authority| authority.to_string())
        })
    };
    assert_eq!(host(get("/").header("host", "Web.Shop:8080")), Ok(Some("Web.Shop:8080".into())));
    assert_eq!(host(get("/").header("host", "[::1]:80")), Ok(Some("[::1]:80".into())));
    assert_eq!(host(get("http://Web/").header("host", "web")), Ok(Some("Web".into())));
    assert_eq!(host(get("http://web/").header("host", "WEB.:80")), Ok(Some("web".into())));
    assert_eq!(host(get("https://web/").header("host", "web:443")), Ok(Some("web".into())));
    assert_eq!(host(get("http://web/").header("host", "web:8080")), Err(Invalid::Hosts));
    assert_eq!(host(get("http://web/").header("host", "other")), Err(Invalid::Hosts));
    assert_eq!(host(get("/").header("host", "a").header("host", "a")), Err(Invalid::Host));
    assert_eq!(host(get("/").header("host", "user@web")), Err(Invalid::Host));
    assert_eq!(host(get("/").header("host", "web/")), Err(Invalid::Host));
    assert_eq!(host(get("/")), Err(Invalid::Host));
    let old = get("/").version(Version::HTTP_10);
    assert_eq!(host(old), Ok(Some("web-west.shop.svc.cluster.local".into())));
}

/// A peer that leaves the host in `Host`, as an HTTP/2 client may (RFC 9113 section 8.3.1).
#[test]
fn a_peers_request_without_authority_is_for_its_host() {
    let cleaned =
        |version, authority: Option<&str>, hosts: &[&'static str]| -> Result<(String, Option<String>), Invalid> {
            let headers = hosts.iter().map(|host| (header::HOST, HeaderValue::from_static(host))).collect();
            let mut head = RequestHead {
                method: Method::GET,
                scheme: Scheme::HTTP,
                authority: authority.map(|authority| authority.parse().expect("an authority")),
                path_and_query: PathAndQuery::from_static("/a//b/..%2f;x?y=%20"),
                version,
                headers,
            };
            clean(&mut head)?;
            let request = to_backend(head, &identity(), RequestBody::Empty);
            let host = request.headers().get(header::HOST).map(|host| host.to_str().expect("text").to_owned());
            Ok((request.uri().to_string(), host))
        };
    let target = "/a//b/..%2f;x?y=%20";
    let full = Ok((format!("http://web:8080{target}"), None));
    assert_eq!(cleaned(HttpVersion::H2, Some("web:8080"), &[]), full);
    assert_eq!(cleaned(HttpVersion::H2, None, &["web:8080"]), full);
    assert_eq!(cleaned(HttpVersion::H2, Some("web:8080"), &["other"]), full);
    let one = Ok((target.to_owned(), Some("web:8080".to_owned())));
    assert_eq!(cleaned(HttpVersion::H1, None, &["web:8080"]), one);
    assert_eq!(cleaned(HttpVersion::H1, Some("web:8080"), &["a", "b"]), one);
    // HTTP/1.0 needs none.
    assert_eq!(cleaned(HttpVersion::H1, None, &[]), Ok((target.to_owned(), Some(String::new()))));
    for hosts in [&[][..], &[""], &["a", "a"], &["user@web"], &["a b"]] {
        assert_eq!(cleaned(HttpVersion::H2, None, hosts), Err(Invalid::Host), "{hosts:?}");
    }
}

#[test]
fn a_peers_asterisk_is_for_options_alone() {
    let cleaned = |method: Method| {
        clean(&mut RequestHead {
            method,
            scheme: Scheme::HTTP,
            authority: Some(Authority::from_static("web")),
            path_and_query: PathAndQuery::from_static("*"),
            version: HttpVersion::H1,
            headers: HeaderMap::new(),
        })
        .map(drop)
    };
    assert_eq!(cleaned(Method::OPTIONS), Ok(()));
    assert_eq!(cleaned(Method::GET), Err(Invalid::Target));
}

#[test]
fn schemes_other_than_http_are_refused() {
    assert_eq!(prepared(get("ftp://web/"), false).map(drop), Err(Invalid::Scheme));
    assert_eq!(prepared(get("https://web/"), false).expect("https").head.scheme, Scheme::HTTPS);
    assert_eq!(prepared(get("/").header("host", "web"), false).expect("none").head.scheme, Scheme::HTTP);
}

#[test]
fn s_19_s_20_lengths_agree_with_the_body() {
    let length = |value: &str, body| {
        prepared(Request::post("/").header("host", "web").header("content-length", value), body)
            .map(|prepared| prepared.length)
    };
    assert_eq!(length("5", true), Ok(Some(5)));
    assert_eq!(length("0", false), Ok(Some(0)));
    // HTTP/2: END_STREAM on a head that announces a body.
    assert_eq!(length("5", false), Err(Invalid::Length));
    assert_eq!(length("x", true), Err(Invalid::Length));
    let both =
        Request::post("/").header("host", "web").header("content-length", "5").header("transfer-encoding", "chunked");
    let both = prepared(both, true).expect("chunked wins");
    assert_eq!((both.length, both.head.headers.get(header::CONTENT_LENGTH)), (None, None));
}

#[test]
fn continue_is_expected_only_where_it_can_be_sent() {
    let expects = |version, body| {
        let request = Request::post("/").version(version).header("host", "web").header("expect", "100-Continue");
        let prepared = prepared(request, body).expect("well formed");
        (prepared.expects, prepared.head.headers.contains_key(header::EXPECT))
    };
    assert_eq!(expects(Version::HTTP_11, true), (true, true));
    assert_eq!(expects(Version::HTTP_11, false), (false, false));
    assert_eq!(expects(Version::HTTP_10, true), (false, false));
    assert_eq!(expects(Version::HTTP_2, true), (false, true));
}

#[test]
fn an_upgrade_needs_http_1_1_and_no_body() {
    let offers = |version, body| {
        let request = get("/").version(version).header("host", "web").header("connection", "upgrade");
        let prepared = prepared(request.header("upgrade", "websocket"), body).expect("well formed");
        assert_eq!(prepared.upgrade, prepared.head.headers.contains_key(header::UPGRADE));
        prepared.upgrade
    };
    assert!(offers(Version::HTTP_11, false));
    assert!(!offers(Version::HTTP_11, true));
    assert!(!offers(Version::HTTP_10, false));
    assert!(!offers(Version::HTTP_2, false));
}

#[test]
fn grpc_timeouts() {
    let timeout = |value: &str, content_type: &str| {
        let request = Request::post("/").header("host", "web").header("grpc-timeout", value);
        prepared(request.header("content-type", content_type), true).expect("well formed").timeout
    };
    let grpc = "application/grpc";
    assert_eq!(timeout("5S", grpc), Some(Duration::from_secs(5)));
    assert_eq!(timeout("100m", grpc), Some(Duration::from_millis(100)));
    assert_eq!(timeout("99999999u", grpc), Some(Duration::from_micros(99_999_999)));
    assert_eq!(timeout("7n", grpc), Some(Duration::from_nanos(7)));
    assert_eq!(timeout("2M", grpc), Some(Duration::from_secs(120)));
    assert_eq!(timeout("99999999H", grpc), Some(Duration::from_secs(99_999_999 * 3600)));
    for none in ["", "S", "5", "5x", "-5S", "999999999S", "5 S", "\u{e9}"] {
        assert_eq!(timeout(none, grpc), None, "{none}");
    }
    assert_eq!(timeout("5S", "application/json"), None);
}

#[test]
fn a_request_to_an_http_1_backend() {
    let request = Request::post("http://Web:8080/a?b")
        .version(Version::HTTP_11)
        .header("te", "trailers")
        .header("cookie", "a=1")
        .header("cookie", "b=2")
        .header("x-forwarded-client-cert", "forged");
    let head = prepared(request, false).expect("well formed").head;
    let request = to_backend(head, &identity(), RequestBody::Empty);
    assert_eq!(request.uri(), "/a?b");
    assert_eq!(request.version(), Version::HTTP_11);
    let headers = request.headers();
    assert_eq!(headers[header::HOST], "Web:8080");
    assert_eq!(headers[header::COOKIE], "a=1; b=2");
    assert_eq!(headers[header::TE], "trailers");
    assert_eq!(headers[header::CONNECTION], "te");
    assert_eq!(headers.get_all("x-forwarded-client-cert").iter().count(), 1);
    assert!(!headers.contains_key(header::TRANSFER_ENCODING));
}

#[test]
fn a_request_to_an_http_2_backend() {
    let request = Request::post("http://Web:8080/a?b").version(Version::HTTP_2).header("te", "trailers");
    let head = prepared(request.header("cookie", "a=1").header("cookie", "b=2"), false).expect("well formed").head;
    let request = to_backend(head, &identity(), RequestBody::Empty);
    assert_eq!(request.uri(), "http://Web:8080/a?b");
    assert_eq!(request.version(), Version::HTTP_2);
    assert_eq!(request.headers().get_all(header::COOKIE).iter().count(), 2);
    assert_eq!(request.headers()[header::TE], "trailers");
    for name in [header::HOST, header::CONNECTION, header::UPGRADE] {
        assert!(!request.headers().contains_key(&name), "{name}");
    }
}

#[test]
fn a_backends_response_has_one_length() {
    let answer = |status: u16, fields: &[(&'static str, &'static str)]| {
        let headers =
            fields.iter().map(|(name, value)| (name.parse().expect("a name"), HeaderValue::from_static(value)));
        from_backend(StatusCode::from_u16(status).expect("a status"), headers.collect())
            .map(|(head, length)| (head.headers.contains_key(header::CONTENT_LENGTH), length))
    };
    assert_eq!(answer(200, &[("content-length", "5")]), Ok((true, Some(5))));
    assert_eq!(answer(200, &[("content-length", "5"), ("transfer-encoding", "chunked")]), Ok((false, None)));
    assert_eq!(answer(204, &[("content-length", "0")]), Ok((false, Some(0))));
    assert_eq!(answer(304, &[("content-length", "5")]), Ok((true, Some(5))));
    assert_eq!(answer(200, &[("transfer-encoding", "gzip, chunked")]), Err(HeaderError::TransferCoding));
    assert_eq!(answer(200, &[("content-length", "five")]), Err(HeaderError::Length));
}

#[test]
fn upgrade_stays_where_it_says_something() {
    let upgrade = |status: u16| {
        let headers = HeaderMap::from_iter([
            (header::CONNECTION, HeaderValue::from_static("Upgrade")),
            (header::UPGRADE, HeaderValue::from_static("websocket")),
        ]);
        let status = StatusCode::from_u16(status).expect("a status");
        let (head, _) = from_backend(status, headers).expect("well formed");
        let (_, mut headers, _) = from_link(head).expect("well formed");
        to_client(&mut headers, false);
        headers.contains_key(header::UPGRADE) && headers.contains_key(header::CONNECTION)
    };
    assert!(upgrade(101));
    assert!(upgrade(426));
    // Some servers advertise with every response.
    assert!(!upgrade(200));
}
