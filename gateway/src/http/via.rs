//! `Via`: which exported services a request has passed, so that one that circles through backends is stopped.
//!
//! Between gateways the stream header carries the clusters passed. A backend that is itself a proxy sends the request on
//! as a client of its own gateway, and there the header begins anew; the field `Via`, which proxies pass on and add to
//! (RFC 9110 section 7.6.3), does not. Each entry of ours names a service in a cluster, not the cluster alone: a request
//! may well pass a cluster twice on its way to another service, but never the same service twice.
//!
//! A client can write anything into the field. It can only have its own request refused.

use http::header::{HeaderMap, HeaderValue, VIA};
use linkspan_proto::frames::HttpVersion;
use linkspan_proto::names::{ClusterName, ServiceKey};

/// Marks an entry as ours. Long enough a name that no proxy calls itself so by chance.
const SUFFIX: &str = "linkspan";

/// Adds the entry for `service` in `cluster`. False: it is there already, the request has come round.
#[must_use]
pub(crate) fn pass(headers: &mut HeaderMap, service: &ServiceKey, cluster: &ClusterName, version: HttpVersion) -> bool {
    let place = format!("{}.{}.{cluster}.{SUFFIX}", service.name, service.namespace);
    if entries(headers).any(|entry| entry.eq_ignore_ascii_case(place.as_bytes())) {
        return false;
    }
    let version = match version {
        HttpVersion::H1 => "1.1",
        HttpVersion::H2 => "2",
    };
    // Names are letters, digits, hyphens and dots: always a field value.
    if let Ok(value) = HeaderValue::from_str(&format!("{version} {place}")) {
        headers.append(VIA, value);
    }
    true
}

/// The receivers that the field names: the second word of each entry.
fn entries(headers: &HeaderMap) -> impl Iterator<Item = &[u8]> {
    headers
        .get_all(VIA)
        .iter()
        .flat_map(|value| value.as_bytes().split(|&byte| byte == b','))
        .filter_map(|entry| entry.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty()).nth(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn web() -> ServiceKey {
        "shop/web".parse().expect("a service")
    }

    fn west() -> ClusterName {
        ClusterName::parse("west").expect("a cluster")
    }

    #[test]
    fn the_same_service_in_the_same_cluster_is_passed_once() {
        let mut headers = HeaderMap::new();
        assert!(pass(&mut headers, &web(), &west(), HttpVersion::H1));
        assert_eq!(headers[VIA], "1.1 web.shop.west.linkspan");
        assert!(!pass(&mut headers, &web(), &west(), HttpVersion::H2));
    }

    #[test]
    fn another_service_or_cluster_may_follow() {
        let mut headers = HeaderMap::new();
        assert!(pass(&mut headers, &web(), &west(), HttpVersion::H1));
        assert!(pass(&mut headers, &"shop/api".parse().expect("a service"), &west(), HttpVersion::H2));
        assert!(pass(&mut headers, &web(), &ClusterName::parse("east").expect("a cluster"), HttpVersion::H1));
        assert_eq!(headers.get_all(VIA).iter().count(), 3);
    }

    #[test]
    fn entries_are_found_among_those_of_other_proxies() {
        for value in [
            "1.0 fred, 1.1 p.example.net, 1.1 WEB.shop.west.linkspan (edge)",
            "1.1 web.shop.west.linkspan,1.1 haproxy",
            "HTTP/1.1\tweb.shop.west.linkspan",
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(VIA, HeaderValue::from_str(value).expect("a value"));
            assert!(!pass(&mut headers, &web(), &west(), HttpVersion::H1), "{value}");
        }
        for value in ["1.1 web.shop.west.linkspan.example", "web.shop.west.linkspan", ",,, ,", "1.1"] {
            let mut headers = HeaderMap::new();
            headers.insert(VIA, HeaderValue::from_str(value).expect("a value"));
            assert!(pass(&mut headers, &web(), &west(), HttpVersion::H1), "{value}");
        }
    }
}
