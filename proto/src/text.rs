//! Reading text types through serde without a copy that nobody needs.

use std::fmt;
use std::marker::PhantomData;
use std::net::SocketAddr;
use std::str::FromStr;

use ipnet::IpNet;
use serde::de::{Error, Visitor};
use serde::{Deserialize, Deserializer};

/// Deserialises any type that parses from text, with its own error.
pub(crate) struct ParseVisitor<T> {
    what: &'static str,
    parsed: PhantomData<T>,
}

impl<T> ParseVisitor<T> {
    pub(crate) const fn new(what: &'static str) -> Self {
        Self { what, parsed: PhantomData }
    }
}

impl<T: FromStr<Err: fmt::Display>> Visitor<'_> for ParseVisitor<T> {
    type Value = T;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "a {}", self.what)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<T, E> {
        text.parse().map_err(E::custom)
    }
}

/// `Deserialize` for socket addresses, with a message that says what to write.
pub(crate) fn socket_address<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SocketAddr, D::Error> {
    deserializer.deserialize_str(HintVisitor::new("write an IP address and port, such as 0.0.0.0:4143 or [::]:4143"))
}

/// As [`socket_address`], where `null` means none.
pub(crate) fn optional_socket_address<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<SocketAddr>, D::Error> {
    struct Address(SocketAddr);
    impl<'de> Deserialize<'de> for Address {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            socket_address(deserializer).map(Self)
        }
    }
    Ok(Option::<Address>::deserialize(deserializer)?.map(|address| address.0))
}

/// `Deserialize` for address ranges, with a message that says what to write.
pub(crate) fn network<'de, D: Deserializer<'de>>(deserializer: D) -> Result<IpNet, D::Error> {
    deserializer.deserialize_str(HintVisitor::new("write an address range, such as 10.0.0.0/24 or fd00::/64"))
}

/// Deserialises a type whose own error does not help.
struct HintVisitor<T> {
    hint: &'static str,
    parsed: PhantomData<T>,
}

impl<T> HintVisitor<T> {
    const fn new(hint: &'static str) -> Self {
        Self { hint, parsed: PhantomData }
    }
}

impl<T: FromStr> Visitor<'_> for HintVisitor<T> {
    type Value = T;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.hint)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<T, E> {
        text.parse().map_err(|_| E::custom(self.hint))
    }
}
