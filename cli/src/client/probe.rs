//! One probe through a mirror: what a client of the service would see.
//!
//! A TCP probe connects and waits a moment. The gateway accepts a connection before it knows how the other side stands,
//! so what counts is whether it *stays* open: a refusal on the way comes back as a reset. An HTTP probe sends one
//! `HEAD /`; every answer of the service is good, whatever its status, and what the gateways answer themselves carries
//! the header `linkspan-error`.
//!
//! Probes come from an address of their own ([`linkspan_proto::probe`]), so that this side's gateway does not count them as
//! traffic of users. For the peer's gateway they are calls like any other: a peer that could hide its calls would.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, header};
use http_body_util::{Empty, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use linkspan_proto::probe as mark;
use linkspan_runtime::task;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

/// How long a connection may take: the listener is on this machine.
const CONNECT: Duration = Duration::from_millis(500);

/// How long a TCP probe watches the connection: detection (100 ms), a round trip, and the second that the far gateway
/// gives to connecting.
const WATCH: Duration = Duration::from_millis(1500);

/// How long an HTTP answer may take: a second for the far gateway's connection, and more than people wait for a page.
pub(crate) const ANSWER: Duration = Duration::from_secs(3);

/// How long a probe may take in all.
pub(crate) const PATIENCE: Duration = CONNECT.saturating_add(ANSWER);

/// The header by which a gateway says that the answer is its own, and why.
const ERROR_HEADER: &str = "linkspan-error";

/// What to speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Language {
    /// Nothing: connect and listen.
    Tcp,
    /// HTTP/1.1.
    Http1,
    /// HTTP/2 without TLS.
    Http2,
    /// gRPC: a health check, which every server can at least decline.
    Grpc,
}

impl Language {
    /// From Kubernetes' `appProtocol`. Without one a probe does not guess: the service may be anything.
    pub(crate) fn of(app_protocol: Option<&str>) -> Self {
        match app_protocol.map(str::to_ascii_lowercase).as_deref() {
            Some("http" | "kubernetes.io/ws") => Self::Http1,
            Some("http2" | "h2c" | "kubernetes.io/h2c") => Self::Http2,
            Some("grpc") => Self::Grpc,
            _ => Self::Tcp,
        }
    }
}

/// What a probe found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Found {
    /// The service answers, or a connection to it stands; with what was seen.
    Works(String),
    /// Nothing accepts connections at the mirror's address.
    NotListening,
    /// A gateway refused, with its reason (`denied`, `no_backend`, ...).
    Refused(String),
    /// The connection was cut without a reason.
    Cut,
    /// Nothing came back in time.
    Silence,
    /// The probe itself could not be made.
    Impossible(String),
}

/// Probes `address`; `host` is the name that a client would have used.
pub(crate) async fn probe(address: SocketAddr, host: &str, language: Language) -> Found {
    let stream = match timeout(CONNECT, connect(address)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) if error.kind() == ErrorKind::ConnectionRefused => return Found::NotListening,
        Ok(Err(error)) => return Found::Impossible(error.to_string()),
        Err(_) => return Found::NotListening,
    };
    match language {
        Language::Tcp => watch(stream).await,
        Language::Http1 | Language::Http2 | Language::Grpc => {
            let authority = format!("{host}:{}", address.port());
            match timeout(ANSWER, request(stream, &authority, language)).await {
                Ok(Ok(response)) => judge(&response),
                Ok(Err(error)) => failed(&error),
                Err(_) => Found::Silence,
            }
        }
    }
}

/// Connects from the address by which the gateway knows that no user asks, where there is such an address.
async fn connect(address: SocketAddr) -> std::io::Result<TcpStream> {
    if address.is_ipv4()
        && let Ok(socket) = TcpSocket::new_v4()
        && socket.bind(SocketAddr::from((mark::SOURCE, 0))).is_ok()
    {
        match socket.connect(address).await {
            // From a loopback address nothing but this machine can be reached.
            Err(error) if error.kind() != ErrorKind::ConnectionRefused => {}
            connected => return connected,
        }
    }
    TcpStream::connect(address).await
}

async fn watch(mut stream: TcpStream) -> Found {
    let mut first = [0; 64];
    match timeout(WATCH, stream.read(&mut first)).await {
        Ok(Ok(0)) => Found::Works("connected; the service closed the connection".to_owned()),
        Ok(Ok(_)) => Found::Works("connected; the service speaks first".to_owned()),
        Ok(Err(error)) if error.kind() == ErrorKind::ConnectionReset => Found::Cut,
        Ok(Err(error)) => Found::Impossible(error.to_string()),
        Err(_) => Found::Works("connected".to_owned()),
    }
}

async fn request(stream: TcpStream, authority: &str, language: Language) -> Result<Response<Incoming>, hyper::Error> {
    let io = TokioIo::new(stream);
    let agent = concat!("linkspan-check/", env!("CARGO_PKG_VERSION"));
    let head =
        |uri: String, method: Method| Request::builder().method(method).uri(uri).header(header::USER_AGENT, agent);
    match language {
        Language::Tcp | Language::Http1 => {
            let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await?;
            drop(task::spawn("probe", async move { drop(connection.await) }));
            let request = head("/".to_owned(), Method::HEAD)
                .header(header::HOST, authority)
                .header(header::CONNECTION, "close")
                .body(Empty::<Bytes>::new())
                .expect("a fixed request with a DNS name as its host is valid");
            sender.send_request(request).await
        }
        Language::Http2 => {
            let (mut sender, connection) = hyper::client::conn::http2::handshake(task::Executor("probe"), io).await?;
            drop(task::spawn("probe", async move { drop(connection.await) }));
            let request = head(format!("http://{authority}/"), Method::HEAD)
                .body(Empty::<Bytes>::new())
                .expect("a fixed request with a DNS name as its host is valid");
            sender.send_request(request).await
        }
        Language::Grpc => {
            let (mut sender, connection) = hyper::client::conn::http2::handshake(task::Executor("probe"), io).await?;
            drop(task::spawn("probe", async move { drop(connection.await) }));
            // An empty message: not compressed, length 0.
            let request = head(format!("http://{authority}/grpc.health.v1.Health/Check"), Method::POST)
                .header(header::CONTENT_TYPE, "application/grpc")
                .header(header::TE, "trailers")
                .body(Full::new(Bytes::from_static(&[0; 5])))
                .expect("a fixed request with a DNS name as its host is valid");
            sender.send_request(request).await
        }
    }
}

fn judge(response: &Response<Incoming>) -> Found {
    match response.headers().get(ERROR_HEADER) {
        Some(reason) => Found::Refused(String::from_utf8_lossy(reason.as_bytes()).into_owned()),
        None => Found::Works(format!("HTTP {}", response.status().as_u16())),
    }
}

/// The connection broke before an answer.
fn failed(error: &hyper::Error) -> Found {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if error.downcast_ref::<std::io::Error>().is_some_and(|error| error.kind() == ErrorKind::ConnectionReset) {
            return Found::Cut;
        }
        cause = error.source();
    }
    // An answer that is no HTTP still shows that the service is there; that is for its owner to look at.
    if error.is_parse() { Found::Works("answers, though not in HTTP".to_owned()) } else { Found::Cut }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;

    use super::*;

    /// A server that answers each connection by `serve` and lives as long as the test's runtime.
    async fn server<F, Fut>(serve: F) -> SocketAddr
    where
        F: Fn(TcpStream) -> Fut + Send + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let address = listener.local_addr().expect("bound");
        drop(task::spawn("test_server", async move {
            while let Ok((stream, _)) = listener.accept().await {
                serve(stream).await;
            }
        }));
        address
    }

    async fn http(answer: &'static str) -> Found {
        let address = server(move |mut stream| async move {
            let mut request = [0; 1024];
            drop(stream.read(&mut request).await);
            drop(stream.write_all(answer.as_bytes()).await);
        })
        .await;
        probe(address, "web-west.shop.svc.cluster.local", Language::Http1).await
    }

    #[tokio::test]
    async fn any_answer_of_the_service_is_good() {
        assert_eq!(http("HTTP/1.1 200 OK\r\n\r\n").await, Found::Works("HTTP 200".to_owned()));
        assert_eq!(http("HTTP/1.1 500 Oops\r\n\r\n").await, Found::Works("HTTP 500".to_owned()));
    }

    #[tokio::test]
    async fn an_answer_of_a_gateway_carries_its_reason() {
        let answer = "HTTP/1.1 403 Forbidden\r\nlinkspan-error: denied\r\ncontent-length: 0\r\n\r\n";
        assert_eq!(http(answer).await, Found::Refused("denied".to_owned()));
    }

    #[tokio::test]
    async fn probes_carry_their_mark() {
        let (seen, mut source) = tokio::sync::mpsc::unbounded_channel();
        let address = server(move |stream| {
            let seen = seen.clone();
            async move { seen.send(stream.peer_addr().expect("connected").ip()).expect("the test waits for it") }
        })
        .await;
        probe(address, "x", Language::Tcp).await;
        assert_eq!(source.recv().await, Some(mark::SOURCE.into()));
    }

    #[tokio::test]
    async fn no_listener_is_told_from_a_cut_connection() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let address = listener.local_addr().expect("bound");
        drop(listener);
        assert_eq!(probe(address, "x", Language::Tcp).await, Found::NotListening);

        let address = server(|stream| async move {
            // Lingering for no time turns the close into a reset.
            drop(stream.set_zero_linger());
        })
        .await;
        assert_eq!(probe(address, "x", Language::Tcp).await, Found::Cut);
        assert_eq!(probe(address, "x", Language::Http1).await, Found::Cut);
    }

    #[tokio::test]
    async fn a_service_that_waits_or_speaks_first_is_good() {
        let address = server(|mut stream| async move {
            drop(stream.write_all(b"220 ready\r\n").await);
        })
        .await;
        assert_eq!(
            probe(address, "x", Language::Tcp).await,
            Found::Works("connected; the service speaks first".to_owned())
        );
        let address = server(|stream| async move {
            tokio::time::sleep(Duration::from_secs(30)).await;
            drop(stream);
        })
        .await;
        assert_eq!(probe(address, "x", Language::Tcp).await, Found::Works("connected".to_owned()));
    }

    #[test]
    fn only_declared_http_is_spoken() {
        assert_eq!(Language::of(Some("HTTP")), Language::Http1);
        assert_eq!(Language::of(Some("kubernetes.io/h2c")), Language::Http2);
        assert_eq!(Language::of(Some("grpc")), Language::Grpc);
        assert_eq!(Language::of(Some("https")), Language::Tcp);
        assert_eq!(Language::of(None), Language::Tcp);
    }
}
