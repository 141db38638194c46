//! A request to a backend of this cluster, for a peer's caller (ingress) or a local one.
//!
//! ```text
//! Admitted --pick--> endpoint --pool or connect--> connection --request--> Answer{response, lease, endpoint}
//!               ^-- another one: nothing was sent --'
//! ```
//!
//! - In: a request whose fields are clean and whose identity is set.
//! - Out: the backend's response head with its body behind it, and what must be held as long as it is read.
//! - Refuses when: no endpoint takes the connection, the backend breaks off before its response, our own request body is cut.
//! - Never does: send a request a second time that may have been read by a backend, with one exception: a request of a safe
//!   method without a body, over a reused connection that ended before any byte of a response. Such a connection was closed by
//!   its idle limit while the request was on its way; RFC 9110 section 9.2.2 allows it.
//! - Numbers: [`ATTEMPTS`](crate::backend::ATTEMPTS) endpoints.

use std::error::Error;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::{Method, Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::TrySendError;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioIo, TokioTimer};
use linkspan_proto::refusal::Refusal;
use linkspan_runtime::task;
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::body::{BodyError, Cut, RequestBody};
use super::pool::{Http2, Key, Lease, Pool, SharedState};
use super::{MAX_BUFFER, MAX_HEAD, deadline};
use crate::backend::{ATTEMPTS, EndpointGuard, Endpoints, connect, introduce};
use crate::remote::Admitted;

/// Flow-control windows towards a backend. A backend is near: 1 MiB in 1 ms is 8 Gbit/s for one stream. The connection's
/// must be larger than that of a few streams whose readers are slow, or they stop all others.
const STREAM_WINDOW: u32 = 1024 * 1024;
const CONNECTION_WINDOW: u32 = 16 * 1024 * 1024;

/// A backend that vanished without a FIN is found out by an unanswered ping, while requests wait for it.
const PING_EVERY: Duration = Duration::from_secs(20);
const PING_TIMEOUT: Duration = Duration::from_secs(10);

/// A backend's answer.
pub(crate) struct Answer {
    /// Head and body.
    pub(crate) response: Response<Incoming>,
    /// The connection; [`Lease::recycle`] it when the body is complete, drop it when it was cut.
    pub(crate) lease: Lease,
    /// Counts the endpoint as busy.
    pub(crate) endpoint: EndpointGuard,
}

/// Why there is no answer.
#[derive(Debug)]
pub(crate) struct Failed {
    /// What the caller is told.
    pub(crate) cut: Cut,
    /// The last endpoint tried.
    pub(crate) address: Option<SocketAddr>,
    /// The request, if no backend can have seen any of it.
    pub(crate) unsent: Option<Box<Request<RequestBody>>>,
}

impl Failed {
    fn refused(refusal: Refusal, address: Option<SocketAddr>, unsent: Request<RequestBody>) -> Self {
        Self { cut: Cut::Refused(refusal), address, unsent: Some(Box::new(unsent)) }
    }
}

/// Sends `request` to an endpoint of the export. `deadline` is for the backend to know; whoever waits keeps it.
pub(crate) async fn send(
    pool: &Arc<Pool>,
    admitted: &Admitted,
    http2: bool,
    mut request: Request<RequestBody>,
    deadline: Option<Instant>,
) -> Result<Answer, Failed> {
    let endpoints = Endpoints::of(admitted);
    let mut tried: Vec<SocketAddr> = Vec::new();
    let mut last = Refusal::NoBackend;
    // Reused connections are tried until one fails; from then on only fresh ones.
    let mut reuse = true;
    loop {
        let picked = if tried.len() < ATTEMPTS { endpoints.pick(&tried).ok() } else { None };
        let Some(mut endpoint) = picked else {
            return Err(Failed::refused(last, tried.last().copied(), request));
        };
        let address = endpoint.address();
        let (mut lease, reused) = match connection(pool, admitted, Key::new(admitted, address), http2, reuse).await {
            Ok(found) => found,
            Err(error) if error.is_endpoints() => {
                tracing::debug!(service = %admitted.service(), %error, "connect failed; trying another endpoint");
                endpoint.failed();
                tried.push(address);
                last = error.refusal();
                continue;
            }
            Err(error) => return Err(Failed::refused(error.refusal(), Some(address), request)),
        };
        // After waiting for a connection, on every try anew.
        deadline::shorten(request.headers_mut(), deadline);
        let spare = spare(&request, reused || http2);
        let error = match lease.send(request).await {
            Ok(response) => {
                endpoint.answered();
                return Ok(Answer { response, lease, endpoint });
            }
            Err(error) => error,
        };
        // Some backends close a fresh connection at once (overload): that is the endpoint's fault; a stale connection is
        // nobody's.
        let (again, stale) = retry(error, spare, reused);
        match again {
            Ok(unsent) if stale && reuse => {
                reuse = false;
                request = unsent;
            }
            Ok(unsent) => {
                endpoint.failed();
                tried.push(address);
                last = Refusal::ConnectRefused;
                request = unsent;
            }
            Err(cut) => {
                if cut == Cut::Backend {
                    endpoint.failed();
                }
                return Err(Failed { cut, address: Some(address), unsent: None });
            }
        }
    }
}

/// What to do after a failed request: send it again (it was not read, or may be read twice), or give up. The second value:
/// the connection was stale, the endpoint may be fine.
fn retry(
    mut error: TrySendError<Request<RequestBody>>,
    spare: Option<Request<RequestBody>>,
    reused: bool,
) -> (Result<Request<RequestBody>, Cut>, bool) {
    if let Some(unsent) = error.take_message() {
        return (Ok(unsent), reused);
    }
    let error = error.into_error();
    if let Some(cut) = find::<BodyError>(&error).map(|error| error.cut) {
        return (Err(cut), false);
    }
    let refused = find::<h2::Error>(&error).is_some_and(never_processed);
    let broke_off = error.is_incomplete_message() || find::<std::io::Error>(&error).is_some();
    match spare {
        Some(spare) if refused => (Ok(spare), false),
        Some(spare) if reused && broke_off && is_safe(spare.method()) => (Ok(spare), true),
        _ => (Err(Cut::Backend), false),
    }
}

/// A copy of a request that has no body, where it may be needed.
fn spare(request: &Request<RequestBody>, needed: bool) -> Option<Request<RequestBody>> {
    if !needed || !matches!(request.body(), RequestBody::Empty) {
        return None;
    }
    let mut spare = Request::new(RequestBody::Empty);
    *spare.method_mut() = request.method().clone();
    *spare.uri_mut() = request.uri().clone();
    *spare.version_mut() = request.version();
    *spare.headers_mut() = request.headers().clone();
    *spare.extensions_mut() = request.extensions().clone();
    Some(spare)
}

/// Whether the method asks for nothing to change (RFC 9110 section 9.2.1).
fn is_safe(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE)
}

/// RFC 9113 sections 6.8 and 8.7: the stream was above the last one of a GOAWAY, or refused: not processed at all.
fn never_processed(error: &h2::Error) -> bool {
    error.reason() == Some(h2::Reason::REFUSED_STREAM)
        || (error.is_go_away() && error.is_remote() && error.reason() == Some(h2::Reason::NO_ERROR))
}

fn find<'a, E: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a E> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        next = error.source();
    }
    None
}

impl Lease {
    async fn send(
        &mut self,
        request: Request<RequestBody>,
    ) -> Result<Response<Incoming>, TrySendError<Request<RequestBody>>> {
        match self {
            Self::Http1 { sender, .. } => sender.try_send_request(request).await,
            Self::Http2 { sender, .. } => sender.try_send_request(request).await,
        }
    }
}

/// A connection to the endpoint; whether it has served a request before.
async fn connection(
    pool: &Arc<Pool>,
    admitted: &Admitted,
    key: Key,
    http2: bool,
    reuse: bool,
) -> Result<(Lease, bool), crate::backend::DialError> {
    if !http2 {
        if reuse && let Some(lease) = pool.idle_http1(&key) {
            return Ok((lease, true));
        }
        let stream = open(admitted, key.address()).await?;
        let sender = handshake_http1(stream).await;
        let address = key.address();
        let sender = sender.map_err(|_| crate::backend::DialError::Refused(address))?;
        return Ok((pool.home(key).lease(sender), false));
    }
    // Waits for somebody else's connect once; if that brought nothing, makes its own.
    let mut impatient = !reuse;
    loop {
        match pool.http2(&key, impatient) {
            Http2::Ready(lease) => return Ok((lease, true)),
            Http2::Wait(gate) => {
                // It is never given out, only closed.
                drop(gate.acquire().await);
                impatient = true;
            }
            Http2::Connect(connecting) => {
                let address = key.address();
                let stream = open(admitted, address).await?;
                let (sender, state) =
                    handshake_http2(stream).await.map_err(|_| crate::backend::DialError::Refused(address))?;
                return Ok((connecting.connected(sender, state), false));
            }
        }
    }
}

/// Connects, and says who calls where the export asks for that: a connection serves one caller only, see [`Key`].
async fn open(admitted: &Admitted, address: SocketAddr) -> Result<TcpStream, crate::backend::DialError> {
    let mut stream = connect(address).await?;
    introduce(&mut stream, admitted, address, None, None).await?;
    Ok(stream)
}

async fn handshake_http1(stream: TcpStream) -> hyper::Result<http1::SendRequest<RequestBody>> {
    let mut builder = http1::Builder::new();
    builder.max_header_size(MAX_HEAD).max_buf_size(MAX_BUFFER);
    let (sender, connection) = builder.handshake(TokioIo::new(stream)).await?;
    // Detached: ends with the connection, which ends with the last of its sender and its exchange.
    drop(task::spawn("backend_http1", async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "connection to a backend ended");
        }
    }));
    Ok(sender)
}

async fn handshake_http2(stream: TcpStream) -> hyper::Result<(http2::SendRequest<RequestBody>, Arc<SharedState>)> {
    let mut builder = http2::Builder::new(task::Executor("backend_http2_stream"));
    builder
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(MAX_HEAD as u32)
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_TIMEOUT);
    let (sender, connection) = builder.handshake(TokioIo::new(stream)).await?;
    let state = SharedState::new();
    let driver = Driver { connection, state: Arc::clone(&state) };
    drop(task::spawn("backend_http2", async move {
        if let Err(error) = driver.await {
            tracing::debug!(%error, "connection to a backend ended");
        }
    }));
    Ok((sender, state))
}

/// Drives a connection and keeps an eye on how many streams the backend allows.
struct Driver {
    connection: http2::Connection<TokioIo<TcpStream>, RequestBody, task::Executor>,
    state: Arc<SharedState>,
}

impl Future for Driver {
    type Output = hyper::Result<()>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let polled = Pin::new(&mut self.connection).poll(cx);
        if polled.is_pending() {
            self.state.allow(self.connection.current_max_send_streams());
        }
        polled
    }
}
