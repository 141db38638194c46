//! The admin server: what the process says about itself, over HTTP, read-only.
//!
//! - In: a listener of the caller; routes, readiness and metrics that any number of components register.
//! - Out: `/metrics`, `/ready`, `/live`, `/config`, a list at `/`, and the registered JSON routes.
//! - Refuses: every method but GET (405), a request body (413), heads over [`HEAD_MAX`] (431), long queries (414),
//!   connections beyond [`PER_ADDRESS`] of one address and [`CONNECTIONS`] in all (closed at once).
//! - Never does: change anything, send a CORS header, or wait for a slow client: a head takes at most [`HEAD_TIMEOUT`],
//!   an answer [`ANSWER_TIMEOUT`], a connection [`LIFETIME`].
//! - While the process drains, `/ready` says no and everything else still answers, until the drain is closed.

use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::{Body, Incoming};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::time::timeout;

use crate::backoff::Backoff;
use crate::drain::Signal;
use crate::metrics::Registry;
use crate::readiness::Readiness;
use crate::{build_info, metrics, task, text};

mod query;

pub use query::Query;

/// Longest request head, in bytes.
pub const HEAD_MAX: usize = 32 * 1024;

/// Most header fields of a request. A scraper sends about ten.
const HEADERS_MAX: usize = 64;

/// Connections of one address at the same time.
pub const PER_ADDRESS: usize = 64;

/// Connections in all: four busy addresses, so that one of them cannot lock the others out.
pub const CONNECTIONS: usize = 256;

/// Longest wait for a request's head; idle keep-alive connections end by it too.
pub const HEAD_TIMEOUT: Duration = Duration::from_secs(5);

/// Longest run of one handler.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Longest life of a connection; above any scrape, and the end of a client that reads a byte a second.
pub const LIFETIME: Duration = Duration::from_secs(60);

/// What a connection gets after its lifetime, or the drain, to finish the answer in flight.
const GRACE: Duration = Duration::from_secs(2);

/// Pauses after a failed accept: out of descriptors is not cured by asking again at once.
const ACCEPT_PAUSE: (Duration, Duration) = (Duration::from_millis(5), Duration::from_secs(1));

/// A boxed future that may move between threads.
pub type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

type Handler = Arc<dyn Fn(Query) -> BoxFuture<Result<Value, RouteError>> + Send + Sync>;

/// Why a route has no answer. The text goes to the client.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RouteError {
    /// The query makes no sense (400).
    #[error("{0}")]
    BadRequest(String),
    /// What was asked for does not exist (404).
    #[error("{0}")]
    NotFound(String),
    /// Not now (503).
    #[error("{0}")]
    Unavailable(String),
    /// Our own fault (500).
    #[error("{0}")]
    Internal(String),
}

impl RouteError {
    const fn status(&self) -> StatusCode {
        match self {
            Self::BadRequest(_) => StatusCode::BAD_REQUEST,
            Self::NotFound(_) => StatusCode::NOT_FOUND,
            Self::Unavailable(_) => StatusCode::SERVICE_UNAVAILABLE,
            Self::Internal(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

impl From<serde_json::Error> for RouteError {
    fn from(error: serde_json::Error) -> Self {
        Self::Internal(format!("the answer does not serialise: {error}"))
    }
}

/// Handlers by path or by component. A lock is enough: it is held for a lookup, never across an await.
#[derive(Default)]
struct Handlers(RwLock<BTreeMap<&'static str, Handler>>);

impl Handlers {
    fn insert(&self, key: &'static str, handler: Handler) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).insert(key, handler);
    }

    fn lookup(&self, key: &str) -> Option<Handler> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(key).cloned()
    }

    fn all(&self) -> BTreeMap<&'static str, Handler> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

struct Shared {
    registry: Registry,
    readiness: Readiness,
    routes: Handlers,
    config: Handlers,
}

/// The admin server's routes. Cheap to clone; components register on it before or while it serves.
#[derive(Clone)]
pub struct Admin {
    shared: Arc<Shared>,
}

impl std::fmt::Debug for Admin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Admin").field("routes", &self.paths()).finish_non_exhaustive()
    }
}

impl Admin {
    /// A server for this registry and this readiness, with the built-in routes only.
    #[must_use]
    pub fn new(registry: Registry, readiness: Readiness) -> Self {
        let shared = Shared { registry, readiness, routes: Handlers::default(), config: Handlers::default() };
        Self { shared: Arc::new(shared) }
    }

    /// Answers `GET path` with the handler's JSON. Registering a path again replaces its handler.
    pub fn route<H, F>(&self, path: &'static str, handler: H) -> &Self
    where
        H: Fn(Query) -> F + Send + Sync + 'static,
        F: Future<Output = Result<Value, RouteError>> + Send + 'static,
    {
        debug_assert!(path.starts_with('/') && !BUILT_IN.contains(&path), "{path} cannot be registered");
        self.shared.routes.insert(path, boxed(handler));
        self
    }

    /// Adds one component's part of `/config`, secrets left out: `{"<component>": ...}`.
    pub fn config<H, F>(&self, component: &'static str, handler: H) -> &Self
    where
        H: Fn(Query) -> F + Send + Sync + 'static,
        F: Future<Output = Result<Value, RouteError>> + Send + 'static,
    {
        self.shared.config.insert(component, boxed(handler));
        self
    }

    /// The registry that `/metrics` shows.
    #[must_use]
    pub fn registry(&self) -> &Registry {
        &self.shared.registry
    }

    /// The set that `/ready` shows.
    #[must_use]
    pub fn readiness(&self) -> &Readiness {
        &self.shared.readiness
    }

    /// Serves until the drain is closed. The caller spawns it: `task::vital("admin", &signal, admin.serve(..))`.
    pub async fn serve(self, listener: TcpListener, signal: Signal) {
        let connections = Connections::default();
        let mut pause = Backoff::new(ACCEPT_PAUSE.0, ACCEPT_PAUSE.1);
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = signal.closed() => return,
            };
            match accepted {
                Ok((stream, client)) => {
                    pause.reset();
                    // Over the cap the connection is dropped here: a clear end, and the backlog stays empty.
                    if let Some(permit) = connections.admit(client) {
                        let connection = self.clone().connection(stream, signal.clone());
                        drop(task::spawn("admin_connection", async move {
                            connection.await;
                            drop(permit);
                        }));
                    } else {
                        tracing::debug!(%client, "admin connection refused: too many");
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "admin accept failed");
                    tokio::time::sleep(pause.next()).await;
                }
            }
        }
    }

    /// One connection, to its end.
    async fn connection<I>(self, io: I, signal: Signal)
    where
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let draining = signal.clone();
        let service = hyper::service::service_fn(move |request| {
            let (admin, draining) = (self.clone(), draining.clone());
            async move { Ok::<_, Infallible>(admin.answer(request, draining.is_draining()).await) }
        });
        let connection = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            .max_header_size(HEAD_MAX)
            .max_buf_size(HEAD_MAX)
            .max_headers(HEADERS_MAX)
            .serve_connection(TokioIo::new(io), service);
        let mut connection = pin!(connection);
        tokio::select! {
            // Errors are the client's doing (timeouts, resets): nothing to act on.
            _ = connection.as_mut() => return,
            () = tokio::time::sleep(LIFETIME) => {}
            () = signal.closed() => {}
        }
        connection.as_mut().graceful_shutdown();
        if timeout(GRACE, connection).await.is_err() {
            tracing::debug!("admin connection cut: its client does not read");
        }
    }

    async fn answer(&self, request: Request<Incoming>, draining: bool) -> Response<Full<Bytes>> {
        if request.method() != Method::GET {
            let mut response = refusal(StatusCode::METHOD_NOT_ALLOWED, "the admin server is read-only: use GET");
            response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET"));
            return close(response);
        }
        if !request.body().is_end_stream() {
            return close(refusal(StatusCode::PAYLOAD_TOO_LARGE, "the admin server takes no request body"));
        }
        let Some(query) = Query::parse(request.uri().query().unwrap_or_default()) else {
            return close(refusal(StatusCode::URI_TOO_LONG, "the query is too long or is not UTF-8"));
        };
        match request.uri().path() {
            "/" => plain(StatusCode::OK, format!("{}\n", self.paths().join("\n"))),
            "/live" => plain(StatusCode::OK, "live\n".to_owned()),
            "/ready" => self.ready(draining),
            "/metrics" => self.metrics(),
            "/config" => respond(self.whole_config(&query).await),
            path => match self.shared.routes.lookup(path) {
                Some(handler) => respond(run(&handler, query).await),
                None => refusal(StatusCode::NOT_FOUND, "no such path; / lists them"),
            },
        }
    }

    fn ready(&self, draining: bool) -> Response<Full<Bytes>> {
        let parts = self.shared.readiness.snapshot();
        let ready = self.shared.readiness.is_ready() && !draining;
        let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        body_json(status, &json!({ "ready": ready, "draining": draining, "parts": parts }))
    }

    fn metrics(&self) -> Response<Full<Bytes>> {
        match self.shared.registry.encode() {
            Ok(page) => body(StatusCode::OK, metrics::CONTENT_TYPE, page),
            Err(std::fmt::Error) => refusal(StatusCode::INTERNAL_SERVER_ERROR, "the metrics do not encode"),
        }
    }

    async fn whole_config(&self, query: &Query) -> Result<Value, RouteError> {
        let mut whole = serde_json::Map::new();
        whole.insert("build".to_owned(), serde_json::to_value(build_info::current())?);
        for (component, handler) in self.shared.config.all() {
            whole.insert(component.to_owned(), run(&handler, query.clone()).await?);
        }
        Ok(Value::Object(whole))
    }

    fn paths(&self) -> Vec<&'static str> {
        let registered = self.shared.routes.all();
        BUILT_IN.iter().copied().filter(|path| *path != "/").chain(registered.into_keys()).collect()
    }
}

/// Paths that components cannot take.
const BUILT_IN: [&str; 5] = ["/", "/config", "/live", "/metrics", "/ready"];

fn boxed<H, F>(handler: H) -> Handler
where
    H: Fn(Query) -> F + Send + Sync + 'static,
    F: Future<Output = Result<Value, RouteError>> + Send + 'static,
{
    Arc::new(move |query| Box::pin(handler(query)))
}

async fn run(handler: &Handler, query: Query) -> Result<Value, RouteError> {
    match timeout(ANSWER_TIMEOUT, handler(query)).await {
        Ok(answer) => answer,
        Err(_) => Err(RouteError::Unavailable("no answer in time".to_owned())),
    }
}

fn respond(answer: Result<Value, RouteError>) -> Response<Full<Bytes>> {
    match answer {
        Ok(value) => body_json(StatusCode::OK, &value),
        Err(error) => refusal(error.status(), &error.to_string()),
    }
}

fn refusal(status: StatusCode, why: &str) -> Response<Full<Bytes>> {
    body_json(status, &json!({ "error": text::clean(why) }))
}

fn plain(status: StatusCode, text: String) -> Response<Full<Bytes>> {
    body(status, "text/plain; charset=utf-8", text)
}

fn body_json(status: StatusCode, value: &Value) -> Response<Full<Bytes>> {
    match text::json_pretty(value) {
        Ok(mut text) => {
            text.push('\n');
            body(status, "application/json", text)
        }
        Err(_) => plain(StatusCode::INTERNAL_SERVER_ERROR, "the answer does not serialise\n".to_owned()),
    }
}

fn body(status: StatusCode, content_type: &'static str, text: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// Ends the connection after this answer: what follows on it may be a body that nobody reads.
fn close(mut response: Response<Full<Bytes>>) -> Response<Full<Bytes>> {
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    response
}

/// Who is connected, by address.
#[derive(Clone, Debug, Default)]
struct Connections {
    by_address: Arc<Mutex<HashMap<IpAddr, usize>>>,
}

#[derive(Debug)]
struct Permit {
    connections: Connections,
    address: IpAddr,
}

impl Connections {
    fn admit(&self, client: SocketAddr) -> Option<Permit> {
        let address = client.ip().to_canonical();
        let mut by_address = self.by_address.lock().unwrap_or_else(PoisonError::into_inner);
        if by_address.values().sum::<usize>() >= CONNECTIONS {
            return None;
        }
        let count = by_address.entry(address).or_default();
        if *count >= PER_ADDRESS {
            return None;
        }
        *count += 1;
        drop(by_address);
        Some(Permit { connections: self.clone(), address })
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut by_address = self.connections.by_address.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = by_address.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                by_address.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests;
