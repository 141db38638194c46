use proptest::prelude::*;

use super::*;

fn id(text: &str) -> SpiffeId {
    SpiffeId::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"))
}

#[test]
fn good_identities_are_taken_apart() {
    let identity = id("spiffe://east.linkspan.internal/ns/shop/sa/web");
    assert_eq!(identity.trust_domain().as_str(), "east.linkspan.internal");
    assert_eq!(identity.path(), "/ns/shop/sa/web");
    assert_eq!(identity.to_string(), "spiffe://east.linkspan.internal/ns/shop/sa/web");
    for good in [
        "spiffe://a/b",
        "spiffe://1.2.3.4/ns/x",
        "spiffe://a_b-c.d/A.B-C_d/...",
        "spiffe://xn--bcher-kva.example/x",
        "spiffe://east/ns/a..b",
    ] {
        assert_eq!(id(good).as_str(), good);
    }
}

#[test]
fn built_identities_are_in_the_grammar() {
    let east = TrustDomain::parse("east.linkspan.internal").unwrap();
    let namespace = Namespace::parse("shop").unwrap();
    let account = ServiceAccountName::parse("web.v2").unwrap();
    for (built, text) in [
        (SpiffeId::workload(&east, &namespace, &account), "spiffe://east.linkspan.internal/ns/shop/sa/web.v2"),
        (SpiffeId::gateway(&east), "spiffe://east.linkspan.internal/ns/linkspan/sa/gateway"),
        (SpiffeId::node(&east), "spiffe://east.linkspan.internal/ns/linkspan/sa/node"),
    ] {
        assert_eq!(built, id(text));
        assert_eq!(built.trust_domain(), &east);
    }
}

/// S-05.
#[test]
fn bad_identities_are_refused() {
    let long_id = format!("spiffe://east/{}", "a".repeat(MAX_SPIFFE_ID));
    let long_domain = format!("spiffe://{}/ns/shop", "a".repeat(MAX_TRUST_DOMAIN + 1));
    let bad = [
        // Scheme.
        "",
        "spiffe",
        "spiffe:",
        "spiffe:/",
        "spiffe://",
        "spiffe:///ns/shop",
        "Spiffe://east/ns/shop",
        "SPIFFE://east/ns/shop",
        "http://east/ns/shop",
        "https://east/ns/shop",
        "//east/ns/shop",
        "east/ns/shop",
        " spiffe://east/ns/shop",
        "spiffe:east/ns/shop",
        "spiffe+x://east/ns/shop",
        "spiffe:\\\\east\\ns",
        // Trust domain.
        "spiffe://East/ns/shop",
        "spiffe://EAST/ns/shop",
        "spiffe://east:443/ns/shop",
        "spiffe://east:/ns/shop",
        "spiffe://user@east/ns/shop",
        "spiffe://user:pass@east/ns/shop",
        "spiffe://@east/ns/shop",
        "spiffe://[::1]/ns/shop",
        "spiffe://::1/ns/shop",
        "spiffe://ea%73t/ns/shop",
        "spiffe://ea st/ns/shop",
        "spiffe://éast/ns/shop",
        "spiffe://east*/ns/shop",
        "spiffe://*/ns/shop",
        "spiffe://*.east/ns/shop",
        "spiffe://xn--east-/ns/shop",
        "spiffe://a.xn--.b/ns/shop",
        &long_domain,
        // Path.
        "spiffe://east",
        "spiffe://east/",
        "spiffe://east//",
        "spiffe://east//ns",
        "spiffe://east/ns/",
        "spiffe://east/ns//shop",
        "spiffe://east/.",
        "spiffe://east/..",
        "spiffe://east/./ns",
        "spiffe://east/ns/../sa",
        "spiffe://east/ns/.",
        "spiffe://east/ns/..",
        "spiffe://east/ns/sh%6fp",
        "spiffe://east/ns/%2e%2e/x",
        "spiffe://east/ns/shop?x=y",
        "spiffe://east/ns/shop?",
        "spiffe://east/ns/shop#x",
        "spiffe://east/ns/shop#",
        "spiffe://east/ns/sh\0op",
        "spiffe://east/ns/shop\n",
        "spiffe://east/ns/sh op",
        "spiffe://east/ns/shöp",
        "spiffe://east/ns/*",
        "spiffe://east/ns/shop/*",
        "spiffe://east/ns/sh*",
        "spiffe://east/**",
        "spiffe://east/ns/a:b",
        "spiffe://east/ns/a@b",
        "spiffe://east/ns/a+b",
        "spiffe://east/ns/a~b",
        "spiffe://east/ns/a,b",
        "spiffe://east/ns\\shop",
        "spiffe://east?ns",
        "spiffe://east#ns",
        &long_id,
    ];
    assert!(bad.len() >= 40);
    for text in bad {
        assert!(SpiffeId::parse(text).is_err(), "{text:?}");
    }
}

#[test]
fn the_limits_are_inclusive() {
    let domain = "a".repeat(MAX_TRUST_DOMAIN);
    assert!(SpiffeId::parse(&format!("spiffe://{domain}/x")).is_ok());
    let path = "a".repeat(MAX_SPIFFE_ID - "spiffe://east/".len());
    assert!(SpiffeId::parse(&format!("spiffe://east/{path}")).is_ok());
    assert_eq!(SpiffeId::parse(&format!("spiffe://east/{path}a")), Err(IdentityError::TooLong));
}

/// S-06.
#[test]
fn prefixes_are_whole_segments() {
    let web = id("spiffe://east.example/ns/shop/sa/web");
    for prefix in ["spiffe://east.example/ns", "spiffe://east.example/ns/shop", "spiffe://east.example/ns/shop/sa/web"]
    {
        assert!(web.has_prefix(&id(prefix)), "{prefix}");
    }
    for other in [
        "spiffe://east.example/ns/sho",
        "spiffe://east.example/ns/shop/sa/we",
        "spiffe://east.example/n",
        "spiffe://east-example/ns/shop",
        "spiffe://east.example/ns/shop/sa/web/more",
        "spiffe://east.example/ns/shopping",
        "spiffe://west.example/ns/shop",
        "spiffe://east.exampl/ns",
        "spiffe://east.example/ns/s.op",
    ] {
        assert!(!web.has_prefix(&id(other)), "{other}");
    }
}

#[test]
fn assurance_is_ordered_and_spelt() {
    assert!(Assurance::Gateway < Assurance::Network && Assurance::Network < Assurance::Mtls);
    assert_eq!(Assurance::default(), Assurance::Gateway);
    for assurance in Assurance::ALL {
        assert_eq!(serde_json::to_string(&assurance).unwrap(), format!("\"{assurance}\""));
    }
    assert!(serde_json::from_str::<Assurance>("\"Mtls\"").is_err());
}

/// The grammar once more, written as a machine over single characters, to hold the parser against.
fn in_grammar(text: &str) -> bool {
    let Some(rest) = text.strip_prefix("spiffe://") else { return false };
    let domain: String = rest.chars().take_while(|c| *c != '/').collect();
    let path: String = rest.chars().skip_while(|c| *c != '/').collect();
    let domain_char = |c: char| "abcdefghijklmnopqrstuvwxyz0123456789._-".contains(c);
    let segment_char = |c: char| domain_char(c) || "ABCDEFGHIJKLMNOPQRSTUVWXYZ".contains(c);
    let fake = domain.split('.').any(|label| label.starts_with("xn--") && label.ends_with('-'));
    if domain.is_empty() || domain.len() > 255 || !domain.chars().all(domain_char) || fake || text.len() > 2048 {
        return false;
    }
    let mut segment = String::new();
    let mut segments = Vec::new();
    for c in path.chars().chain("/".chars()) {
        if c == '/' {
            segments.push(std::mem::take(&mut segment));
        } else {
            segment.push(c);
        }
    }
    // The first is what stands before the leading slash: nothing.
    segments.len() >= 2
        && segments[0].is_empty()
        && segments[1..].iter().all(|s| !s.is_empty() && s != "." && s != ".." && s.chars().all(segment_char))
}

/// S-05: the accepted set, over a million texts near the grammar.
#[test]
fn the_accepted_set_is_the_grammar() {
    const PIECES: [&str; 32] = [
        "spiffe://",
        "east",
        ".",
        "..",
        "/",
        "/",
        "/ns",
        "/sa",
        "a",
        "Z",
        "0",
        "-",
        "_",
        "%",
        "%2e",
        ":",
        "@",
        "?",
        "#",
        "*",
        "[",
        "]",
        " ",
        "\0",
        "é",
        "xn--",
        "east.example",
        "/./",
        "\\",
        "spiffe:",
        "S",
        "/ns/shop/sa/web",
    ];
    let mut state = 1_u64;
    let mut next = |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from((state >> 33) % below as u64).unwrap()
    };
    let (mut accepted, mut text) = (0, String::new());
    for _ in 0..1_000_000 {
        text.clear();
        if next(8) != 0 {
            text.push_str("spiffe://");
        }
        for _ in 0..next(6) {
            // Mostly pieces that can be good, so that many texts are.
            let piece = if next(4) == 0 { next(PIECES.len()) } else { [1, 4, 6, 7, 8, 10, 11, 26, 31][next(9)] };
            text.push_str(PIECES[piece]);
        }
        let parsed = SpiffeId::parse(&text);
        assert_eq!(parsed.is_ok(), in_grammar(&text), "{text:?}");
        if let Ok(parsed) = parsed {
            accepted += 1;
            assert_eq!(parsed.to_string(), text);
            assert_eq!(format!("spiffe://{}{}", parsed.trust_domain(), parsed.path()), text);
        }
    }
    assert!(accepted > 100_000, "{accepted}");
}

proptest! {
    #[test]
    fn print_and_parse_are_inverse(text in "spiffe://[a-z0-9._-]{1,40}(/[A-Za-z0-9_-][A-Za-z0-9._-]{0,20}){1,6}") {
        if in_grammar(&text) {
            let parsed = id(&text);
            prop_assert_eq!(format!("{parsed}").parse::<SpiffeId>().unwrap(), parsed.clone());
            let json = serde_json::to_string(&parsed).unwrap();
            prop_assert_eq!(serde_json::from_str::<SpiffeId>(&json).unwrap(), parsed);
        }
    }

    #[test]
    fn any_text_is_judged_without_panic(text in ".*") {
        prop_assert_eq!(SpiffeId::parse(&text).is_ok(), in_grammar(&text));
        drop(TrustDomain::parse(&text));
    }
}
