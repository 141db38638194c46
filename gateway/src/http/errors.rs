//! Answers that the gateway gives itself, where the service cannot.
//!
//! - In: why a request got no answer from the service.
//! - Out: an HTTP response that says so in one sentence, with the reason as one word in `linkspan-error`; for gRPC the same
//!   as a trailers-only response.
//! - Refuses when: never; this is the refusal.
//! - Never does: tell a client about the inside of a cluster: no addresses, no versions, no echo of what it sent.
//! - Numbers: statuses are mapped in `proto::refusal` and here, once.

use std::borrow::Cow;

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderValue};
use http::{Response, StatusCode};
use linkspan_proto::refusal::Refusal;

use super::body::Cut;
use super::headers::LINKSPAN_ERROR;
use crate::link::StreamError;
use crate::outcome::Outcome;
use crate::route::NoTarget;

/// The methods of which a 405 says that they are allowed (RFC 9110 section 15.5.6).
const ALLOW: &str = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS, TRACE";

/// What is wrong with a request that is not passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Invalid {
    /// CONNECT, plain or extended.
    #[error("CONNECT is not carried: connect to the mirrored address itself, any protocol passes")]
    Connect,
    /// Several hosts, or one that is none.
    #[error("the request's host is not valid")]
    Host,
    /// The request line and the host name different servers (S-16).
    #[error("the request names two different hosts")]
    Hosts,
    /// No path that begins with a slash.
    #[error("the request's target is not valid")]
    Target,
    /// Neither http nor https.
    #[error("the request's scheme is neither http nor https")]
    Scheme,
    /// See [`HeaderError::Length`](super::headers::HeaderError::Length).
    #[error("the request's content-length is not valid")]
    Length,
    /// See [`HeaderError::TransferCoding`](super::headers::HeaderError::TransferCoding).
    #[error("the request has a transfer coding other than chunked")]
    TransferCoding,
    /// Over the caps of the link.
    #[error("the request's header fields are too large")]
    TooLarge,
    /// The body broke off or was malformed.
    #[error("the request's body is not well formed")]
    Body,
}

impl Invalid {
    const fn status(self) -> StatusCode {
        match self {
            Self::Connect => StatusCode::METHOD_NOT_ALLOWED,
            Self::Hosts => StatusCode::MISDIRECTED_REQUEST,
            Self::TransferCoding => StatusCode::NOT_IMPLEMENTED,
            Self::TooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::Host | Self::Target | Self::Scheme | Self::Length | Self::Body => StatusCode::BAD_REQUEST,
        }
    }

    const fn reason(self) -> &'static str {
        match self {
            Self::Connect => "connect_refused_by_gateway",
            Self::Hosts => "misdirected",
            Self::TooLarge => "head_too_large",
            _ => "bad_request",
        }
    }
}

/// An answer of the gateway's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Reply {
    status: StatusCode,
    grpc: u32,
    reason: &'static str,
    sentence: Cow<'static, str>,
    outcome: Outcome,
}

impl Reply {
    /// The request cannot be passed on as it is.
    pub(crate) fn invalid(why: Invalid) -> Self {
        Self {
            status: why.status(),
            // What gRPC clients make of a 400, 405, ... (gRPC, "HTTP to gRPC status code mapping"): INTERNAL, and
            // UNIMPLEMENTED for what we do not carry.
            grpc: if matches!(why, Invalid::Connect | Invalid::TransferCoding) { 12 } else { 13 },
            reason: why.reason(),
            sentence: why.to_string().into(),
            outcome: Outcome::ClientInvalid,
        }
    }

    /// A gateway or the backend refused it.
    pub(crate) fn refused(refusal: Refusal) -> Self {
        Self {
            status: StatusCode::from_u16(refusal.http_status()).unwrap_or(StatusCode::BAD_GATEWAY),
            grpc: refusal.grpc_status(),
            reason: refusal.reason(),
            sentence: refusal.sentence().into(),
            outcome: Outcome::Refused(refusal),
        }
    }

    /// No cluster can take it.
    pub(crate) fn no_target(why: &NoTarget) -> Self {
        Self {
            status: StatusCode::SERVICE_UNAVAILABLE,
            grpc: 14,
            reason: Outcome::NoTarget.label(),
            sentence: why.to_string().into(),
            outcome: Outcome::NoTarget,
        }
    }

    /// The name is mirrored no longer.
    pub(crate) fn no_route() -> Self {
        Self {
            status: StatusCode::NOT_FOUND,
            grpc: 14,
            reason: Outcome::NoRoute.label(),
            sentence: "this name is not mirrored any more".into(),
            outcome: Outcome::NoRoute,
        }
    }

    /// The link broke while the request was on its way. It may have been processed: it is not tried elsewhere.
    pub(crate) fn link_lost() -> Self {
        Self {
            status: StatusCode::BAD_GATEWAY,
            grpc: 14,
            reason: Outcome::LinkLost.label(),
            sentence: "the link to the other cluster was lost".into(),
            outcome: Outcome::LinkLost,
        }
    }

    /// Nothing moved for the idle limit.
    pub(crate) fn idle() -> Self {
        Self { outcome: Outcome::Idle, ..Self::refused(Refusal::Idle) }
    }

    /// The exchange was cut before the head of a response.
    pub(crate) fn cut(cut: Cut) -> Self {
        match cut {
            Cut::Client => Self::invalid(Invalid::Body),
            Cut::Idle => Self::idle(),
            Cut::Stream(StreamError::LinkLost | StreamError::Closed) => Self::link_lost(),
            _ => Self::refused(cut.refusal()),
        }
    }

    /// The same behind a gRPC response that was cut half way.
    pub(crate) fn trailers(&self) -> HeaderMap {
        let mut trailers = HeaderMap::with_capacity(3);
        self.put_grpc(&mut trailers);
        trailers
    }

    /// How this counts.
    pub(crate) fn outcome(&self) -> Outcome {
        self.outcome
    }

    /// The status line's code, before gRPC hides it behind a 200.
    pub(crate) fn status(&self) -> StatusCode {
        self.status
    }

    /// The status in a gRPC answer.
    pub(crate) fn grpc_status(&self) -> u32 {
        self.grpc
    }

    /// The response. `with_body`: not for HEAD.
    pub(crate) fn response(&self, grpc: bool, with_body: bool) -> (http::response::Parts, Bytes) {
        let mut response = Response::new(());
        let headers = response.headers_mut();
        if grpc {
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
            self.put_grpc(headers);
            return (response.into_parts().0, Bytes::new());
        }
        headers.insert(LINKSPAN_ERROR, HeaderValue::from_static(self.reason));
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        if self.status == StatusCode::METHOD_NOT_ALLOWED {
            headers.insert(header::ALLOW, HeaderValue::from_static(ALLOW));
        }
        let body = Bytes::from(format!("linkspan: {}\n", self.sentence));
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from(body.len()));
        *response.status_mut() = self.status;
        (response.into_parts().0, if with_body { body } else { Bytes::new() })
    }

    fn put_grpc(&self, fields: &mut HeaderMap) {
        fields.insert("grpc-status", HeaderValue::from(self.grpc));
        if let Ok(message) = HeaderValue::try_from(grpc_message(&format!("linkspan: {}", self.sentence))) {
            fields.insert("grpc-message", message);
        }
        fields.insert(LINKSPAN_ERROR, HeaderValue::from_static(self.reason));
    }
}

/// gRPC's percent-encoding of a message: what is not printable ASCII, and `%` itself.
fn grpc_message(text: &str) -> String {
    use std::fmt::Write as _;
    text.bytes().fold(String::with_capacity(text.len()), |mut encoded, byte| {
        match byte {
            b' '..=b'$' | b'&'..=b'~' => encoded.push(char::from(byte)),
            // Writing to a String cannot fail.
            _ => _ = write!(encoded, "%{byte:02X}"),
        }
        encoded
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_a_status_a_word_and_a_sentence() {
        let (parts, body) = Reply::refused(Refusal::Denied).response(false, true);
        assert_eq!(parts.status, 403);
        assert_eq!(parts.headers[LINKSPAN_ERROR], "denied");
        assert_eq!(parts.headers[header::CONTENT_LENGTH], body.len().to_string().as_str());
        assert_eq!(&body[..], b"linkspan: the export policy does not allow this caller\n");
    }

    #[test]
    fn grpc_gets_trailers_only() {
        let (parts, body) = Reply::refused(Refusal::Deadline).response(true, true);
        assert_eq!(parts.status, 200);
        assert!(body.is_empty());
        assert_eq!(parts.headers["grpc-status"], "4");
        assert_eq!(parts.headers["grpc-message"], "linkspan: the request's deadline passed");
        assert_eq!(parts.headers[LINKSPAN_ERROR], "deadline");
        assert!(!parts.headers.contains_key(header::CONTENT_LENGTH));
    }

    #[test]
    fn connect_is_refused_with_what_is_allowed() {
        let (parts, body) = Reply::invalid(Invalid::Connect).response(false, true);
        assert_eq!(parts.status, 405);
        assert_eq!(parts.headers[header::ALLOW], ALLOW);
        assert!(String::from_utf8(body.to_vec()).expect("text").contains("CONNECT is not carried"));
    }

    #[test]
    fn an_answer_to_head_announces_a_body_and_has_none() {
        let (parts, body) = Reply::refused(Refusal::NoBackend).response(false, false);
        assert!(body.is_empty());
        assert_ne!(parts.headers[header::CONTENT_LENGTH], "0");
    }

    #[test]
    fn every_refusal_has_an_answer() {
        for refusal in Refusal::ALL {
            let reply = Reply::refused(refusal);
            assert!(reply.status().is_client_error() || reply.status().is_server_error(), "{refusal}");
            assert_ne!(reply.grpc_status(), 0, "{refusal}");
        }
        assert_eq!(Reply::idle().status(), 504);
        assert_eq!(Reply::invalid(Invalid::Hosts).status(), 421);
    }

    #[test]
    fn grpc_messages_are_percent_encoded() {
        assert_eq!(grpc_message("a b\n100% \u{e9}"), "a b%0A100%25 %C3%A9");
    }
}
