//! The query string of an admin request.

use std::str::FromStr;

use super::RouteError;
use crate::text;

/// Longest query, in bytes; ours have one or two short parameters.
const LENGTH_MAX: usize = 1024;

/// Most parameters.
const PARAMETERS_MAX: usize = 16;

/// Decoded `name=value` pairs, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Query {
    pairs: Vec<(String, String)>,
}

impl Query {
    /// Decodes a query string; `None` when it is over its caps or is not UTF-8.
    #[must_use]
    pub fn parse(query: &str) -> Option<Self> {
        if query.len() > LENGTH_MAX {
            return None;
        }
        let mut pairs = Vec::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            if pairs.len() == PARAMETERS_MAX {
                return None;
            }
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            pairs.push((decode(name)?, decode(value)?));
        }
        Some(Self { pairs })
    }

    /// The first value of this name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.pairs.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// The first value of this name as a `T`, or nothing where it is absent.
    ///
    /// # Errors
    /// [`RouteError::BadRequest`] where it is there and does not parse.
    pub fn parsed<T: FromStr>(&self, name: &str) -> Result<Option<T>, RouteError> {
        let Some(value) = self.get(name) else {
            return Ok(None);
        };
        match value.parse() {
            Ok(value) => Ok(Some(value)),
            Err(_) => Err(RouteError::BadRequest(format!("{name}={} is not understood", text::Clean(value)))),
        }
    }

    /// All pairs, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.pairs.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }
}

/// Percent-decoding, with `+` for a space. A `%` without two hex digits stands for itself.
fn decode(text: &str) -> Option<String> {
    let mut rest = text.as_bytes();
    let mut out = Vec::with_capacity(rest.len());
    while let [byte, tail @ ..] = rest {
        rest = tail;
        match (byte, tail) {
            (b'+', _) => out.push(b' '),
            (b'%', [high, low, after @ ..]) if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => {
                out.push(hex(*high) << 4 | hex(*low));
                rest = after;
            }
            _ => out.push(*byte),
        }
    }
    String::from_utf8(out).ok()
}

/// The value of an ASCII hex digit.
const fn hex(digit: u8) -> u8 {
    match digit {
        b'0'..=b'9' => digit - b'0',
        b'a'..=b'f' => digit - b'a' + 10,
        _ => digit.wrapping_sub(b'A').wrapping_add(10) & 0xf,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decodes() {
        let query = Query::parse("window=10&name=a%2Fb+c&flag&x=%zz&window=20").expect("parses");
        assert_eq!(query.get("window"), Some("10"));
        assert_eq!(query.get("name"), Some("a/b c"));
        assert_eq!(query.get("flag"), Some(""));
        assert_eq!(query.get("x"), Some("%zz"));
        assert_eq!(query.get("none"), None);
        assert_eq!(query.parsed::<u32>("window"), Ok(Some(10)));
        assert_eq!(query.parsed::<u32>("none"), Ok(None));
        assert!(query.parsed::<u32>("name").is_err());
        assert_eq!(query.iter().count(), 5);
        assert_eq!(Query::parse("a=%C3%A9%4a").expect("parses").get("a"), Some("éJ"));
    }

    #[test]
    fn caps_hold() {
        assert_eq!(Query::parse(&"a".repeat(LENGTH_MAX + 1)), None);
        assert_eq!(Query::parse(&"a&".repeat(PARAMETERS_MAX + 1)), None);
        assert_eq!(Query::parse("a=%ff"), None);
        assert!(Query::parse("").is_some());
    }
}
