//! Stage 2: what protocol the client speaks.
//!
//! ```text
//! declared (appProtocol, well-known port) --> opaque without a byte, HTTP/2 when its preface is there
//!        else first bytes --> HTTP/2 preface | HTTP/1 request line | TLS ClientHello | opaque
//! ```
//!
//! - In: the declared protocol, then the client's bytes as they come.
//! - Out: [`Detected`]. The bytes stay in front of the connection, nothing is consumed.
//! - Refuses when: the client closes or fails before its first byte; a client of HTTP/2 sends no preface in time.
//! - Never does: make a client of a server-speaks-first protocol wait more than [`FIRST_BYTE`]; decide differently
//!   because the same bytes came in other pieces (the verdicts are pure functions, see [`verdict`]).
//! - Numbers: [`FIRST_BYTE`], [`UNDECIDED`], [`DECLARED_HTTP`], and [`MAX_PREFIX`].
//!
//! Opaque is always safe: the bytes arrive as they were sent. What is lost is only the treatment by request.

use std::io;
use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use crate::listener::ClientIo;

// HTTP by its first bytes.
pub mod http;

// TLS by its first bytes.
pub mod tls;

/// How long a client may be silent on a port whose protocol is not declared. HTTP and TLS clients speak at once: their
/// first bytes follow the handshake. A protocol whose server speaks first is silent for ever, and pays this once.
pub const FIRST_BYTE: Duration = Duration::from_millis(100);

/// How long a begun but undecided prefix may take. One retransmission on a lossy local path (200 ms and up) fits.
pub const UNDECIDED: Duration = Duration::from_secs(1);

/// How long a client of a declared HTTP port may be silent: HTTP clients open connections ahead. As long as the HTTP
/// server waits for a request's head (S-27). For HTTP/2 this is the only limit: hyper waits for a preface for ever.
pub const DECLARED_HTTP: Duration = Duration::from_secs(10);

/// Bytes after which the verdict must be in. A ClientHello with post-quantum shares is below 2 KiB; a request line longer
/// than this is HTTP by its beginning.
pub const MAX_PREFIX: usize = 8192;

/// What the client speaks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Detected {
    /// TLS, carried as it is.
    Tls {
        /// The server name that the client asks for, lower case.
        server_name: Option<String>,
    },
    /// HTTP/1.0 or HTTP/1.1.
    Http1,
    /// HTTP/2 with prior knowledge.
    Http2,
    /// Bytes.
    Opaque,
}

/// What is known before the first byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Declared {
    /// It is opaque: do not wait for the client.
    Opaque,
    /// It is HTTP/2 with prior knowledge.
    Http2,
    /// It is HTTP, of either version.
    Http,
    /// Nothing.
    Unknown,
}

/// What the bytes so far say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// This, whatever follows.
    Is(Detected),
    /// More bytes are needed.
    More,
}

/// Why detection ended without an answer.
#[derive(Debug, thiserror::Error)]
pub enum DetectError {
    /// The client closed before its first byte.
    #[error("the client closed before its first byte")]
    Closed,
    /// No preface on a port that is declared HTTP/2.
    #[error("closed or silent for 10 s before a whole HTTP/2 preface")]
    NoPreface,
    /// The client's socket failed.
    #[error("the client's socket failed: {0}")]
    Io(#[from] io::Error),
}

/// Ports whose protocol is opaque to us or whose server speaks first, where nothing else is declared: Linkerd's default
/// list and a few more. FTP, SSH, Telnet, SMTP (25, 465, 587), POP3, LDAP, IMAP, MSSQL, MySQL, RDP, Galera (4444, 4567,
/// 4568), PostgreSQL, AMQP, Redis, Kafka, Elasticsearch transport, memcached, MongoDB.
const OPAQUE_PORTS: [u16; 24] = [
    21, 22, 23, 25, 110, 143, 389, 465, 587, 1433, 3306, 3389, 4444, 4567, 4568, 5432, 5672, 6379, 9092, 9300, 11211,
    27017, 993, 995,
];

impl Declared {
    /// From the port's `appProtocol`, else from its number.
    #[must_use]
    pub fn of(app_protocol: Option<&str>, port: u16) -> Self {
        let Some(app_protocol) = app_protocol else {
            return if OPAQUE_PORTS.contains(&port) { Self::Opaque } else { Self::Unknown };
        };
        // Kubernetes' own names carry a prefix, IANA's do not; case does not matter in practice.
        let name = app_protocol.to_ascii_lowercase();
        match name.strip_prefix("kubernetes.io/").unwrap_or(&name) {
            "h2c" | "http2" | "grpc" => Self::Http2,
            "http" | "http1" | "http/1.1" | "ws" => Self::Http,
            "linkerd.io/opaque" | "opaque" | "tcp" | "tls" | "https" | "wss" | "ftp" | "ssh" | "telnet" | "smtp"
            | "pop3" | "imap" | "ldap" | "ldaps" | "mysql" | "mariadb" | "postgres" | "postgresql" | "pgsql"
            | "mssql" | "ms-sql-s" | "redis" | "mongo" | "mongodb" | "memcache" | "memcached" | "kafka" | "amqp"
            | "amqps" | "mqtt" | "nats" | "rdp" | "vnc" | "rsync" | "cassandra" | "cql" | "zookeeper" => Self::Opaque,
            _ => Self::Unknown,
        }
    }
}

/// What `prefix` is. Pure; once it says `Is`, every longer prefix says the same.
#[must_use]
pub fn verdict(prefix: &[u8]) -> Verdict {
    if prefix.is_empty() {
        return Verdict::More;
    }
    match (http::verdict(prefix), tls::verdict(prefix)) {
        (Verdict::Is(Detected::Opaque), other) | (other, Verdict::Is(Detected::Opaque)) => other,
        (Verdict::Is(detected), _) | (_, Verdict::Is(detected)) => Verdict::Is(detected),
        (Verdict::More, Verdict::More) => Verdict::More,
    }
}

/// The best guess when no more bytes come in time.
#[must_use]
pub fn guess(prefix: &[u8]) -> Detected {
    match verdict(prefix) {
        Verdict::Is(detected) => detected,
        Verdict::More if http::has_begun(prefix) => Detected::Http1,
        Verdict::More if tls::has_begun(prefix) => Detected::Tls { server_name: None },
        Verdict::More => Detected::Opaque,
    }
}

/// Decides, reading as much as needed and waiting as long as allowed.
///
/// # Errors
/// When the client is gone before its first byte, or sends no HTTP/2 preface where one is due.
pub async fn detect(io: &mut ClientIo, declared: Declared) -> Result<Detected, DetectError> {
    let begun = Instant::now();
    let first = match declared {
        Declared::Opaque => return Ok(Detected::Opaque),
        Declared::Http2 | Declared::Http => begun + DECLARED_HTTP,
        Declared::Unknown => begun + FIRST_BYTE,
    };
    let mut deadline = first;
    loop {
        match (declared, verdict(io.prefix())) {
            // What is no preface gets its answer from the HTTP/2 server.
            (Declared::Http2, Verdict::Is(_)) | (Declared::Http, Verdict::Is(Detected::Http2)) => {
                return Ok(Detected::Http2);
            }
            // Declared HTTP that looks like anything else gets its 400 from the HTTP server.
            (Declared::Http, Verdict::Is(_)) => return Ok(Detected::Http1),
            (_, Verdict::Is(detected)) => return Ok(detected),
            (_, Verdict::More) => {}
        }
        match timeout_at(deadline, io.fill()).await {
            Err(_) if declared == Declared::Http2 => return Err(DetectError::NoPreface),
            Err(_) if declared == Declared::Http => return Ok(Detected::Http1),
            Err(_) => return Ok(guess(io.prefix())),
            Ok(Err(error)) => return Err(error.into()),
            Ok(Ok(0)) if io.prefix().is_empty() => return Err(DetectError::Closed),
            Ok(Ok(0)) if declared == Declared::Http2 => return Err(DetectError::NoPreface),
            // A FIN behind an undecided prefix: carried as it is.
            Ok(Ok(0)) => return Ok(guess(io.prefix())),
            Ok(Ok(_)) => deadline = deadline.max(begun + UNDECIDED),
        }
    }
}

#[cfg(test)]
mod tests;
