//! W3C trace context: what a client sent is passed on untouched, what it did not send is begun here.
//!
//! - In: the fields `traceparent` and `tracestate` of a request.
//! - Out: exactly one valid `traceparent`.
//! - Refuses when: nothing; a malformed context is replaced, and its `tracestate` with it (W3C trace-context section 3.3).
//! - Never does: record a span of its own into a client's trace, change the sampling decision of a client.
//! - Numbers: version 00 is 55 characters; a longer text of a later version is taken as long as it begins the same way.

use http::header::{HeaderMap, HeaderName, HeaderValue};
use rand::Rng;

/// The field that names the trace and the caller's span.
pub(crate) const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// Vendors' additions to it.
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// Length of a version 00 text.
const LENGTH: usize = 55;

/// A text of a later version may be longer. Cut off where nobody would still call it a context.
const MAX_LENGTH: usize = 512;

/// Leaves one valid `traceparent` in `headers`.
pub(crate) fn ensure(headers: &mut HeaderMap) {
    let mut values = headers.get_all(&TRACEPARENT).iter();
    let valid = values.next().is_some_and(|value| is_valid(value.as_bytes())) && values.next().is_none();
    if valid {
        return;
    }
    headers.remove(&TRACESTATE);
    headers.insert(TRACEPARENT, generate());
}

/// The context of a message, for records and logs.
pub(crate) fn parent(headers: &HeaderMap) -> Option<String> {
    let value = headers.get(&TRACEPARENT)?;
    if !is_valid(value.as_bytes()) {
        return None;
    }
    value.to_str().ok().map(str::to_owned)
}

/// A new trace. Its sampled flag is set: to a backend that samples by its parent (the default of OpenTelemetry), a clear
/// flag would mean that somebody decided against recording, and all traces that begin at a gateway would be lost.
fn generate() -> HeaderValue {
    let mut random = rand::rng();
    // Neither may be all zero; the loop runs a second time once in 2^64.
    let (trace, span) = loop {
        let (trace, span): (u128, u64) = (random.random(), random.random());
        if trace != 0 && span != 0 {
            break (trace, span);
        }
    };
    HeaderValue::try_from(format!("00-{trace:032x}-{span:016x}-01")).expect("hexadecimal digits and dashes")
}

fn is_valid(text: &[u8]) -> bool {
    if text.len() < LENGTH || text.len() > MAX_LENGTH {
        return false;
    }
    let field = |from: usize, to: usize| text.get(from..to).unwrap_or_default();
    let hex = |part: &[u8]| part.iter().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    let nonzero = |part: &[u8]| part.iter().any(|byte| *byte != b'0');
    let (version, trace, span, flags) = (field(0, 2), field(3, 35), field(36, 52), field(53, 55));
    let dashes = [2, 35, 52].iter().all(|at| text.get(*at) == Some(&b'-'));
    let end = match version {
        b"00" => text.len() == LENGTH,
        // Section 3.2.3: a later version may go on after a dash.
        _ => text.len() == LENGTH || text.get(LENGTH) == Some(&b'-'),
    };
    dashes
        && end
        && version != b"ff"
        && [version, trace, span, flags].into_iter().all(hex)
        && nonzero(trace)
        && nonzero(span)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn a_clients_context_is_passed_on() {
        for good in [
            GOOD,
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00",
            "cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-what-the-future-holds",
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(TRACEPARENT, HeaderValue::from_static(good));
            headers.insert(TRACESTATE, HeaderValue::from_static("rojo=00f067aa0ba902b7"));
            let before = headers.clone();
            ensure(&mut headers);
            assert_eq!(headers, before);
            assert_eq!(parent(&headers).as_deref(), Some(good));
        }
    }

    #[test]
    fn a_missing_one_is_begun() {
        let mut headers = HeaderMap::new();
        ensure(&mut headers);
        let first = headers.get(&TRACEPARENT).cloned().expect("generated");
        assert!(is_valid(first.as_bytes()));
        headers.clear();
        ensure(&mut headers);
        assert_ne!(headers.get(&TRACEPARENT), Some(&first));
    }

    #[test]
    fn a_malformed_one_is_replaced_with_its_state() {
        for bad in [
            "",
            "00",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more",
            "00_0af7651916cd43dd8448eb211c80319c_b7ad6b7169203331_01",
            "00-0af7651916cd43dd8448eb211c80319g-b7ad6b7169203331-01",
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(TRACEPARENT, HeaderValue::from_str(bad).expect("a value"));
            headers.insert(TRACESTATE, HeaderValue::from_static("a=b"));
            assert_eq!(parent(&headers), None, "{bad}");
            ensure(&mut headers);
            assert!(is_valid(headers[TRACEPARENT].as_bytes()), "{bad}");
            assert!(!headers.contains_key(&TRACESTATE), "{bad}");
        }
    }

    #[test]
    fn two_of_them_are_none() {
        let mut headers = HeaderMap::new();
        headers.append(TRACEPARENT, HeaderValue::from_static(GOOD));
        headers.append(TRACEPARENT, HeaderValue::from_static(GOOD));
        ensure(&mut headers);
        assert_eq!(headers.get_all(&TRACEPARENT).iter().count(), 1);
        assert_ne!(headers[TRACEPARENT], GOOD);
    }
}
