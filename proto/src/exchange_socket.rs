//! The first line on `exchange.sock`, between the gateway and the controller of one cluster.
//!
//! The gateway carries the catalogue exchange over the link but does not read it: it connects to the controller's
//! socket, says with one line of JSON which peer this is and which part the controller plays, and pipes raw HTTP/2 after
//! that.
//!
//! ```text
//! {"peer":"west","role":"subscriber"}\n  HTTP/2 ...
//! ```
//!
//! Refuses when: there is no line end in the first [`MAX_PREAMBLE_LEN`] bytes, or the line is anything else.

use serde::{Deserialize, Serialize};

use crate::names::ClusterName;

/// The most bytes of the line, its end included.
pub const MAX_PREAMBLE_LEN: usize = 1024;

/// Which part the controller plays on a pipe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// The controller is the gRPC client: it wants the peer's catalogue. Our gateway opened the stream.
    Subscriber,
    /// The controller is the gRPC server: the peer wants our catalogue. The peer's gateway opened the stream.
    Publisher,
}

/// The line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Preamble {
    /// The peer at the other end, as its certificate proved.
    pub peer: ClusterName,
    /// The controller's part.
    pub role: Role,
}

/// Why bytes are no preamble.
#[derive(Debug, thiserror::Error)]
pub enum PreambleError {
    /// No line end in time.
    #[error("the preamble is longer than 1024 bytes")]
    TooLong,
    /// Not the JSON that it should be.
    #[error("the preamble is not valid: {0}")]
    Malformed(#[from] serde_json::Error),
}

impl Preamble {
    /// The line with its end.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let role = match self.role {
            Role::Subscriber => "subscriber",
            Role::Publisher => "publisher",
        };
        // A cluster name needs no escapes.
        format!("{{\"peer\":\"{}\",\"role\":\"{role}\"}}\n", self.peer).into_bytes()
    }

    /// Reads the line from the bytes that have arrived so far; with it, how many bytes it took. `None`: not yet.
    ///
    /// # Errors
    /// When the line is too long or not a preamble.
    pub fn decode(bytes: &[u8]) -> Result<Option<(Self, usize)>, PreambleError> {
        let window = bytes.get(..MAX_PREAMBLE_LEN).unwrap_or(bytes);
        match window.iter().position(|byte| *byte == b'\n') {
            Some(end) => Ok(Some((serde_json::from_slice(&window[..end])?, end + 1))),
            None if bytes.len() >= MAX_PREAMBLE_LEN => Err(PreambleError::TooLong),
            None => Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn preamble(role: Role) -> Preamble {
        Preamble { peer: ClusterName::parse("west").unwrap(), role }
    }

    #[test]
    fn the_line_is_as_documented() {
        assert_eq!(preamble(Role::Subscriber).encode(), b"{\"peer\":\"west\",\"role\":\"subscriber\"}\n");
    }

    #[test]
    fn a_line_comes_back_whatever_follows_and_however_it_is_cut() {
        for role in [Role::Subscriber, Role::Publisher] {
            let line = preamble(role).encode();
            for cut in 0..line.len() {
                assert!(Preamble::decode(&line[..cut]).unwrap().is_none());
            }
            let with_more = [&line[..], b"PRI * HTTP/2.0\r\n"].concat();
            assert_eq!(Preamble::decode(&with_more).unwrap(), Some((preamble(role), line.len())));
        }
    }

    #[test]
    fn other_lines_are_refused() {
        for bad in [
            "\n",
            "{}\n",
            "null\n",
            "{\"peer\":\"West\",\"role\":\"publisher\"}\n",
            "{\"peer\":\"w\",\"role\":\"x\"}\n",
        ] {
            assert!(Preamble::decode(bad.as_bytes()).is_err(), "{bad}");
        }
        let extra = b"{\"peer\":\"west\",\"role\":\"publisher\",\"more\":1}\n";
        assert!(Preamble::decode(extra).is_err());
        assert!(Preamble::decode(&[b' '; MAX_PREAMBLE_LEN - 1]).unwrap().is_none());
        assert!(matches!(Preamble::decode(&[b' '; MAX_PREAMBLE_LEN]), Err(PreambleError::TooLong)));
    }
}
