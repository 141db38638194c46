//! gRPC's deadline: read from a client, passed on to a backend as what is left of it.
//!
//! - In: a request's fields; when the exchange must be over.
//! - Out: how long the client gives; the field `grpc-timeout` with the rest of that, after queueing, retries and the link.
//! - Never does: invent the field, lengthen it, touch a request that is not gRPC's.
//! - Numbers: at most 8 digits and a unit (gRPC over HTTP/2, `Timeout`).
//!
//! Clocks of two clusters are not compared: a deadline crosses the link as a time that is left, so the one way of the link
//! itself does not count.

use std::time::Duration;

use http::header::{HeaderMap, HeaderName, HeaderValue};
use tokio::time::Instant;

use super::headers::is_grpc;

const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");

/// The largest amount: 8 digits.
const MOST: u128 = 99_999_999;

/// The units, finest first, in nanoseconds.
const UNITS: [(char, u128); 6] = [
    ('n', 1),
    ('u', 1_000),
    ('m', 1_000_000),
    ('S', 1_000_000_000),
    ('M', 60 * 1_000_000_000),
    ('H', 3_600 * 1_000_000_000),
];

/// How long a gRPC client gives. What is no timeout is no deadline, as gRPC's own servers take it.
pub(crate) fn of(headers: &HeaderMap) -> Option<Duration> {
    let value = headers.get(GRPC_TIMEOUT)?;
    if is_grpc(headers) { parse(value) } else { None }
}

/// Leaves no more in the field than there is until `deadline`.
pub(crate) fn shorten(headers: &mut HeaderMap, deadline: Option<Instant>) {
    let (Some(deadline), Some(given)) = (deadline, of(headers)) else { return };
    let left = deadline.saturating_duration_since(Instant::now());
    if left < given {
        headers.insert(GRPC_TIMEOUT, format(left));
    }
}

fn parse(value: &HeaderValue) -> Option<Duration> {
    let text = value.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let amount: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(amount * 3600),
        "M" => Duration::from_secs(amount * 60),
        "S" => Duration::from_secs(amount),
        "m" => Duration::from_millis(amount),
        "u" => Duration::from_micros(amount),
        "n" => Duration::from_nanos(amount),
        _ => return None,
    })
}

/// In the finest unit that it fits, rounded down. Nothing left is one nanosecond: the amount must be positive.
fn format(left: Duration) -> HeaderValue {
    let nanos = left.as_nanos().max(1);
    let fitting = UNITS.iter().map(|(unit, size)| (nanos / size, unit)).find(|(amount, _)| *amount <= MOST);
    let (amount, unit) = fitting.unwrap_or((MOST, &'H'));
    // Digits and a letter are always a field value.
    HeaderValue::try_from(format!("{amount}{unit}")).unwrap_or_else(|_| HeaderValue::from_static("1n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grpc(timeout: &str) -> HeaderMap {
        let fields = [("content-type", "application/grpc"), ("grpc-timeout", timeout)];
        let field = |(name, value)| (HeaderName::from_static(name), HeaderValue::from_str(value).expect("a value"));
        fields.into_iter().map(field).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn the_backend_gets_what_is_left() {
        let mut headers = grpc("1500m");
        let deadline = Instant::now() + of(&headers).expect("a deadline");
        shorten(&mut headers, Some(deadline));
        assert_eq!(headers[GRPC_TIMEOUT], "1500m", "all of it is left");
        tokio::time::advance(Duration::from_millis(400)).await;
        shorten(&mut headers, Some(deadline));
        assert_eq!(headers[GRPC_TIMEOUT], "1100000u");
        tokio::time::advance(Duration::from_micros(1_099_999)).await;
        shorten(&mut headers, Some(deadline));
        assert_eq!(headers[GRPC_TIMEOUT], "1000n");
        tokio::time::advance(Duration::from_secs(1)).await;
        shorten(&mut headers, Some(deadline));
        assert_eq!(headers[GRPC_TIMEOUT], "1n", "never zero, never below");
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_lengthened_or_invented() {
        let later = Some(Instant::now() + Duration::from_secs(60));
        let mut headers = grpc("5S");
        shorten(&mut headers, later);
        assert_eq!(headers[GRPC_TIMEOUT], "5S");
        shorten(&mut headers, None);
        assert_eq!(headers[GRPC_TIMEOUT], "5S");
        let mut odd = grpc("5 S");
        shorten(&mut odd, later);
        assert_eq!(odd[GRPC_TIMEOUT], "5 S", "no timeout to anybody");
        let mut without = grpc("5S");
        without.remove(GRPC_TIMEOUT);
        shorten(&mut without, later);
        assert!(!without.contains_key(GRPC_TIMEOUT));
        let mut plain = grpc("500S");
        plain.insert("content-type", HeaderValue::from_static("text/plain"));
        shorten(&mut plain, later);
        assert_eq!(plain[GRPC_TIMEOUT], "500S");
    }

    #[test]
    fn every_time_is_written_shortly_and_never_longer_than_it_is() {
        use proptest::prelude::*;
        let longest = Duration::from_secs(99_999_999 * 3600);
        for (left, expected) in [
            (Duration::ZERO, "1n"),
            (Duration::from_nanos(99_999_999), "99999999n"),
            (Duration::from_millis(100), "100000u"),
            (Duration::from_secs(100), "100000m"),
            (Duration::from_secs(100_000), "100000S"),
            (Duration::from_secs(100_000_000), "1666666M"),
            (longest, "99999999H"),
            (Duration::MAX, "99999999H"),
        ] {
            assert_eq!(format(left), expected);
        }
        proptest!(|(nanos in 1..u64::MAX)| {
            let left = Duration::from_nanos(nanos);
            let value = format(left);
            prop_assert!(value.len() <= 9);
            let read = parse(&value).expect("a timeout");
            // The coarser unit takes over where the finer one has eight digits: at least five of them are kept.
            prop_assert!(read <= left && left - read < left / 100_000 + Duration::from_nanos(1), "{:?} {:?}", value, left);
        });
    }
}
