//! HTTP of local clients.
//!
//! ```text
//! hyper -> handle: prepare -> pick -> remote::attempt | local::attempt -> response
//!                               ^------ never processed: next target ------|
//! ```
//!
//! - In: a client's connection, where it leads, who the client is.
//! - Out: requests, each to the target that is picked for it from the newest table; responses; one record each.
//! - Refuses when: see [`request`](super::request) for malformed requests; no target; what the target says.
//! - Never does: try a second target unless the first has said that it never processed the request and every byte of the
//!   body that was read is still at hand.
//! - Numbers: [`KEEP_ALIVE`], [`MAX_STREAMS`], [`ATTEMPTS`], [`TOLD_AFTER`] and the windows below.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version, header};
use http_body::Body as _;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioTimer;
use linkspan_proto::frames::RequestHead;
use linkspan_proto::names::ClusterName;
use linkspan_runtime::drain::Guard;
use tokio::time::Instant;

use super::body::{ClientBody, Cut, ResponseBody, Source};
use super::errors::Reply;
use super::exchange::{Exchange, Switch};
use super::request::{self, Prepared};
use super::{MAX_BUFFER, MAX_HEAD, io, trace};
use crate::context::Gateway;
use crate::listener::ClientConnection;
use crate::outcome::{Direction, Entry, Protocol};
use crate::route::{NoTarget, Route, Routed, Target};

mod guard;
mod local;
mod remote;

/// How long an HTTP/1 connection may be idle between requests. Above the 90 s of Go's client and the 60 s of most others:
/// the client closes first, and its next request never meets a closing connection.
const KEEP_ALIVE: Duration = Duration::from_secs(100);

/// Streams of one HTTP/2 client. A client of this cluster is often a proxy for many.
const MAX_STREAMS: u32 = 1024;

/// Flow-control windows towards a client. Clients are near: 512 KiB in 1 ms is 4 Gbit/s for one stream. The connection's is
/// eight times that, so that uploads whose target is slow do not stop the others; it bounds what a client makes us hold.
const STREAM_WINDOW: u32 = 512 * 1024;
const CONNECTION_WINDOW: u32 = 4 * 1024 * 1024;

/// A client that vanished without a FIN is found out by an unanswered ping.
const PING_EVERY: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(20);

/// A client that comes although this gateway leaves was sent by somebody who has not heard of it yet (kube-proxy changes its
/// rules at most once a second). An HTTP/2 connection that is told to go at once would come straight back.
const TOLD_AFTER: Duration = Duration::from_secs(1);

/// Targets tried for one request. Clusters are few; more than this many refusals in a row are an outage, and each costs
/// the client a round trip.
const ATTEMPTS: usize = 4;

/// Serves a client's connection to its end. `unfinished` holds the gateway's drain up; an HTTP/1 connection lets go of it while
/// it is idle.
///
/// How a gateway leaves its clients, in the time in which it still takes new ones and after it:
/// - HTTP/1.1: each answer says `Connection: close`. An idle connection stays, since a request may be on its way to it, until
///   it is used once more or everything else has ended.
/// - HTTP/2: GOAWAY with the highest stream id, then, a round trip later, with the last that is served (RFC 9113 section 6.8).
pub async fn serve(gateway: Arc<Gateway>, conn: ClientConnection, routed: Routed, http2: bool, unfinished: Guard) {
    let ClientConnection { io, client, worker, probe, permit, .. } = conn;
    let control = Arc::new(io::Control::new(gateway.drain.clone(), unfinished));
    let socket = io::Socket::new(io, Arc::clone(&control), http2);
    let connection = Arc::new(Connection {
        gateway,
        routed,
        client,
        probe,
        worker,
        http2,
        socket: control,
        tunnel: Mutex::default(),
    });
    let served = if http2 { serve_http2(&connection, socket).await } else { serve_http1(&connection, socket).await };
    if let Err(error) = served {
        tracing::debug!(%client, %error, "connection of a client ended");
    }
    let tunnel = connection.tunnel.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(tunnel) = tunnel {
        tunnel.await;
    }
    // The connection counts until its tunnel has ended, too.
    connection.socket.over();
    drop(permit);
}

async fn serve_http1(connection: &Arc<Connection>, socket: io::Socket) -> hyper::Result<()> {
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(KEEP_ALIVE)
        .max_header_size(MAX_HEAD)
        .max_buf_size(MAX_BUFFER)
        // The gateway is no origin server (RFC 9110 section 6.6.1).
        .auto_date_header(false);
    let service = service_fn(|request| Arc::clone(connection).call(request));
    let mut serving = pin!(builder.serve_connection(socket, service).with_upgrades());
    tokio::select! {
        biased;
        served = serving.as_mut() => return served,
        () = connection.gateway.drain.draining() => {}
    }
    connection.socket.draining();
    tokio::select! {
        biased;
        served = serving.as_mut() => return served,
        () = connection.gateway.drain.closed() => {}
    }
    if connection.socket.is_idle() {
        serving.as_mut().graceful_shutdown();
        return serving.await;
    }
    connection.socket.drained();
    Ok(())
}

async fn serve_http2(connection: &Arc<Connection>, socket: io::Socket) -> hyper::Result<()> {
    let mut builder = http2::Builder::new(guard::Executor);
    builder
        .timer(TokioTimer::new())
        .max_header_list_size(u32::try_from(MAX_HEAD).unwrap_or(u32::MAX))
        .max_concurrent_streams(MAX_STREAMS)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_TIMEOUT)
        .auto_date_header(false);
    let service = service_fn(|request| Arc::clone(connection).call(request));
    let mut serving = pin!(builder.serve_connection(socket, service));
    tokio::select! {
        biased;
        served = serving.as_mut() => return served,
        () = connection.time_to_go() => {}
    }
    connection.socket.parting();
    serving.as_mut().graceful_shutdown();
    tokio::select! {
        biased;
        served = serving => served,
        () = connection.gateway.drain.closed() => {
            connection.socket.drained();
            Ok(())
        }
    }
}

/// A client's connection, as its requests see it.
struct Connection {
    gateway: Arc<Gateway>,
    routed: Routed,
    client: SocketAddr,
    probe: bool,
    worker: usize,
    http2: bool,
    socket: Arc<io::Control>,
    /// What the connection turned into.
    tunnel: Mutex<Option<BoxFuture<'static, ()>>>,
}

/// One request on its way.
struct Call {
    connection: Arc<Connection>,
    route: Arc<Route>,
    exchange: Arc<Exchange>,
    head: RequestHead,
    /// The HEAD frame, once it was needed.
    encoded: Option<Bytes>,
    /// Taken by an attempt, given back if that failed and another may be made.
    body: Option<ClientBody>,
    deadline: Option<Instant>,
    grpc: bool,
    upgrade: Option<OnUpgrade>,
    /// The client understands interim responses.
    interim: bool,
    attempt: usize,
    /// A response or a reply has taken over.
    answered: bool,
}

/// Why an attempt brought no response.
struct Miss {
    reply: Reply,
    /// Nothing was processed: another target may be tried.
    elsewhere: bool,
    note: String,
}

impl Miss {
    fn cut(cut: Cut, elsewhere: bool) -> Self {
        let reply = Reply::cut(cut);
        Self { elsewhere, note: format!("{}: {cut:?}", reply.outcome()), reply }
    }

    fn no_target(error: &NoTarget) -> Self {
        Self { reply: Reply::no_target(error), elsewhere: false, note: error.to_string() }
    }
}

impl Connection {
    async fn call(self: Arc<Self>, request: Request<Incoming>) -> Result<Response<ResponseBody>, Infallible> {
        self.socket.request_begun();
        let mut response = self.handle(request).await;
        // What the connection turned into has no next request.
        let is_last =
            !self.http2 && self.gateway.drain.is_leaving() && response.status() != StatusCode::SWITCHING_PROTOCOLS;
        if is_last {
            // RFC 9112 section 9.6: the connection is closed behind this answer, and the client sends nothing more on it.
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            self.socket.parting();
        }
        Ok(response)
    }

    /// When to tell an HTTP/2 client to go: when the gateway leaves, but not before it has sent a request, or it would have come
    /// for nothing.
    async fn time_to_go(&self) {
        let drain = &self.gateway.drain;
        let came_late = drain.is_leaving();
        drain.leaving().await;
        let served = async {
            if came_late {
                tokio::time::sleep(TOLD_AFTER).await;
            }
            self.socket.first_request().await;
        };
        tokio::select! {
            () = served => {}
            () = drain.draining() => {}
        }
    }

    async fn handle(self: &Arc<Self>, mut request: Request<Incoming>) -> Response<ResponseBody> {
        let on_upgrade = hyper::upgrade::on(&mut request);
        let (parts, incoming) = request.into_parts();
        let (method, version) = (parts.method.clone(), parts.version);
        let grpc = super::headers::is_grpc(&parts.headers);
        let table = self.gateway.table.load();
        let route = table.current(&self.routed.route).map(Arc::clone);
        let mut entry = self.entry(&method, grpc);
        let body = !incoming.is_end_stream();
        let prepared = match (request::prepare(parts, body, self.routed.route.name()), &route) {
            (Err(why), _) => Err(Reply::invalid(why)),
            (Ok(_), None) => Err(Reply::no_route()),
            (Ok(prepared), Some(route)) => Ok((prepared, route.pick(&self.gateway.links, &[]), Arc::clone(route))),
        };
        drop(table);
        let held = matches!(&prepared, Ok((prepared, ..)) if prepared.expects);
        if let Ok((prepared, first, _)) = &prepared {
            entry.traceparent = trace::parent(&prepared.head.headers);
            entry.peer = first.as_ref().ok().map(|target| target.cluster.clone());
        }
        let exchange = Arc::new(Exchange::new(self.gateway.record(entry), Switch::new(held)));
        if !body {
            exchange.request.done();
        }
        let (prepared, first, route) = match prepared {
            Ok(prepared) => prepared,
            Err(reply) => return self.reply(&reply, exchange, grpc, &method),
        };
        let Prepared { head, length, upgrade, timeout, .. } = prepared;
        let mut call = Call {
            connection: Arc::clone(self),
            route,
            body: body.then(|| ClientBody::new(incoming, self.http2, length, Arc::clone(&exchange))),
            exchange: Arc::clone(&exchange),
            head,
            encoded: None,
            deadline: timeout.and_then(|timeout| Instant::now().checked_add(timeout)),
            grpc,
            upgrade: upgrade.then_some(on_upgrade),
            interim: version == Version::HTTP_11,
            attempt: 0,
            answered: false,
        };
        let carried = call.carry(first).await;
        call.answered = true;
        match carried {
            Ok(response) => response,
            Err(miss) => {
                exchange.note(|record| record.entry().note = Some(miss.note));
                self.reply(&miss.reply, exchange, grpc, &method)
            }
        }
    }

    fn entry(&self, method: &Method, grpc: bool) -> Entry {
        let protocol = match (grpc, self.http2) {
            (true, _) => Protocol::Grpc,
            (false, true) => Protocol::Http2,
            (false, false) => Protocol::Http1,
        };
        let mut entry = Entry::new(Direction::Outbound, protocol);
        entry.service = Some(self.routed.route.service().clone());
        entry.port = self.routed.route.port();
        entry.mirror = Some(self.routed.route.name().clone());
        entry.source = Some(self.routed.source.clone());
        entry.client = Some(self.client);
        entry.probe = self.probe;
        entry.method = Some(method.clone());
        entry
    }

    /// The gateway's own answer.
    fn reply(&self, reply: &Reply, exchange: Arc<Exchange>, grpc: bool, method: &Method) -> Response<ResponseBody> {
        exchange.ended(reply.outcome());
        exchange.note(|record| {
            record.answered();
            record.entry().status = Some(if grpc { 200 } else { reply.status().as_u16() });
            record.entry().grpc_status = grpc.then(|| reply.grpc_status());
        });
        let (parts, text) = reply.response(grpc, *method != Method::HEAD);
        self.socket.final_response();
        let source = if text.is_empty() { Source::Empty } else { Source::Text(text) };
        Response::from_parts(parts, ResponseBody::new(source, exchange, Arc::clone(&self.socket), self.http2))
    }

    fn set_tunnel(&self, tunnel: BoxFuture<'static, ()>) {
        self.socket.upgraded();
        *self.tunnel.lock().unwrap_or_else(PoisonError::into_inner) = Some(tunnel);
    }
}

impl Call {
    /// Tries targets until one answers.
    async fn carry(&mut self, first: Result<Target, NoTarget>) -> Result<Response<ResponseBody>, Miss> {
        let mut target = first.map_err(|error| Miss::no_target(&error))?;
        let mut tried: Vec<ClusterName> = Vec::new();
        loop {
            self.exchange.note(|record| {
                record.entry().peer = Some(target.cluster.clone());
                record.entry().attempts += 1;
            });
            let attempt = if target.local { self.attempt_local().await } else { self.attempt_remote(&target).await };
            let miss = match attempt {
                Err(miss) if miss.elsewhere => miss,
                ended => return ended,
            };
            tracing::debug!(target = %target.cluster, why = %miss.note, "target failed; trying the next one");
            tried.push(target.cluster);
            self.attempt = tried.len();
            if tried.len() == ATTEMPTS {
                return Err(miss);
            }
            // The newest table: the failure may be the reason for which it has just changed.
            let gateway = &self.connection.gateway;
            if let Some(route) = gateway.table.load().current(&self.route) {
                self.route = Arc::clone(route);
            }
            target = match self.route.pick(&gateway.links, &tried) {
                Ok(target) => target,
                // The last target's own reason says more than "all tried".
                Err(_) => return Err(miss),
            };
        }
    }

    /// Takes the body back from a failed attempt; whether another attempt has all of it.
    fn take_back(&mut self, body: Option<ClientBody>) -> bool {
        let Some(mut body) = body else { return self.body.is_none() };
        let whole = body.can_rewind();
        body.rewind();
        self.body = Some(body);
        whole
    }

    /// A response whose head is known.
    fn respond(&self, mut parts: http::response::Parts, source: Source, announces: bool) -> Response<ResponseBody> {
        let connection = &self.connection;
        request::to_client(&mut parts.headers, connection.http2);
        self.exchange.moved();
        let grpc = self.grpc && super::headers::is_grpc(&parts.headers);
        self.exchange.note(|record| {
            record.answered();
            record.entry().status = Some(parts.status.as_u16());
            record.entry().grpc_status = super::body::grpc_status(&parts.headers);
        });
        connection.socket.final_response();
        let body =
            ResponseBody::new(source, Arc::clone(&self.exchange), Arc::clone(&connection.socket), connection.http2)
                .grpc(grpc)
                .announcing(announces);
        Response::from_parts(parts, body)
    }

    /// An interim response of whoever serves the request.
    fn interim(&self, status: StatusCode, mut headers: HeaderMap) {
        self.exchange.moved();
        if status == StatusCode::CONTINUE {
            // Reading the body makes hyper send the 100.
            self.exchange.request.open();
        } else if self.interim && !self.connection.http2 {
            request::clean_interim(&mut headers);
            self.connection.socket.interim(status, &headers);
        }
    }

    /// What the deadline leaves.
    fn left(&self) -> Result<Option<Duration>, Miss> {
        let Some(deadline) = self.deadline else { return Ok(None) };
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(Miss::cut(Cut::Deadline, false)) } else { Ok(Some(left)) }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        if !self.answered {
            // hyper dropped it: the client is gone, or the drain's deadline has passed.
            self.exchange.ended(self.connection.socket.dropped());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every connection of a client has room for one request, whether or not it serves one (S-27: 40 KiB each).
    #[test]
    fn s_27_a_request_in_service_is_small() {
        fn size<A, B, F>(_: fn(A, B) -> F) -> usize {
            size_of::<F>()
        }
        let size = size(Connection::call);
        assert!(size <= 8 * 1024, "{size} bytes");
    }
}
