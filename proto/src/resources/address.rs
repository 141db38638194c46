//! `host:port`, as an operator writes it.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A host name or IP address, and a port. As text `host:port`, with brackets around an IPv6 address.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostPort {
    /// Host name in lower case without trailing dot, or IP address without brackets.
    pub host: String,
    /// The port; 0 stands for "the port that is bound" where the resource says so.
    pub port: u16,
}

/// Why a text is no `host:port`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not an address: write host:port, such as east.example.com:4143 or [2001:db8::1]:4143")]
pub struct AddressError {
    /// The offending text.
    pub text: String,
}

/// The longest host name, in bytes (RFC 1035 section 2.3.4, as text).
const MAX_HOST: usize = 253;

impl HostPort {
    /// Checks and keeps `text`.
    ///
    /// # Errors
    /// When `text` is not `host:port`.
    pub fn parse(text: &str) -> Result<Self, AddressError> {
        Self::split(text).ok_or_else(|| AddressError { text: text.chars().take(300).collect() })
    }

    fn split(text: &str) -> Option<Self> {
        let (host, port) = text.rsplit_once(':')?;
        if port.is_empty() || port.len() > 5 || !port.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        let port = port.parse().ok()?;
        let host = match host.strip_prefix('[') {
            Some(inner) => match inner.strip_suffix(']')?.parse().ok()? {
                IpAddr::V6(ip) => ip.to_string(),
                IpAddr::V4(_) => return None,
            },
            None => host_name(host)?,
        };
        Some(Self { host, port })
    }

    /// The host as an IP address, if it is one.
    #[must_use]
    pub fn ip(&self) -> Option<IpAddr> {
        self.host.parse().ok()
    }
}

/// A host name or IPv4 address in its one spelling.
fn host_name(text: &str) -> Option<String> {
    let name = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    if name.len() > MAX_HOST || !name.split('.').all(label) {
        return None;
    }
    // What ends in a number is an IPv4 address or a mistake (WHATWG URL section 3.5).
    let numeric = name.rsplit('.').next().is_some_and(|last| last.bytes().all(|byte| byte.is_ascii_digit()));
    (!numeric || name.parse::<std::net::Ipv4Addr>().is_ok()).then_some(name)
}

impl fmt::Display for HostPort {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(formatter, "[{}]:{}", self.host, self.port)
        } else {
            write!(formatter, "{}:{}", self.host, self.port)
        }
    }
}

impl fmt::Debug for HostPort {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "\"{self}\"")
    }
}

impl FromStr for HostPort {
    type Err = AddressError;
    fn from_str(text: &str) -> Result<Self, AddressError> {
        Self::parse(text)
    }
}

impl Serialize for HostPort {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for HostPort {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(crate::text::ParseVisitor::new("host:port"))
    }
}

impl schemars::JsonSchema for HostPort {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "HostPort".into()
    }
    fn inline_schema() -> bool {
        true
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "type": "string", "maxLength": 300, "pattern": "^.+:[0-9]{1,5}$" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_come_back_in_one_spelling() {
        for (text, expected) in [
            ("east.example.com:4143", "east.example.com:4143"),
            ("EAST.Example.com.:4143", "east.example.com:4143"),
            ("10.0.0.1:0", "10.0.0.1:0"),
            ("[2001:DB8:0::1]:4143", "[2001:db8::1]:4143"),
            ("localhost:1", "localhost:1"),
        ] {
            let parsed = HostPort::parse(text).unwrap();
            assert_eq!(parsed.to_string(), expected);
            assert_eq!(HostPort::parse(expected).unwrap(), parsed);
        }
        assert_eq!(HostPort::parse("[::1]:9").unwrap().ip(), Some("::1".parse().unwrap()));
    }

    #[test]
    fn other_texts_are_refused() {
        let long = format!("{}:1", "a.".repeat(200));
        for bad in [
            "",
            ":",
            "east",
            "east:",
            ":4143",
            "east:65536",
            "east:-1",
            "east:+1",
            "east:4143/",
            "::1:4143",
            "[::1]",
            "[::1:4143",
            "[10.0.0.1]:1",
            "10.0.0:1",
            "10.0.0.256:1",
            "a..b:1",
            "-a:1",
            "a-:1",
            "a b:1",
            "udp://a:1",
            "a%:1",
            long.as_str(),
        ] {
            assert!(HostPort::parse(bad).is_err(), "{bad}");
        }
    }
}
