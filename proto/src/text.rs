//! Reading text types through serde without a copy that nobody needs.

use std::fmt;
use std::marker::PhantomData;
use std::str::FromStr;

use serde::de::{Error, Visitor};

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
