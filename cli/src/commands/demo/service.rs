//! The backend of the demo: a small HTTP service, one process in each site.
//!
//! In: HTTP/1.1 requests. Out: JSON that says which cluster answered and which headers arrived, and the header
//! `x-cluster`. Refuses when: nothing; it answers 200 to every path. Never does: know anything of Linkspan. It sees
//! what any backend sees.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{HeaderMap, Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use linkspan_runtime::task;
use serde::{Deserialize, Serialize};
use tokio::net::{TcpListener, TcpStream};

/// The line on standard output that says that connections are accepted.
pub(super) const READY: &str = "ready";

/// How long a client may take over the head of a request: this server is on loopback.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// A pause after a failed accept (no descriptors left), so that it does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What the service answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Answer {
    /// The cluster in which this process stands.
    pub(super) cluster: String,
    /// The request's method.
    pub(super) method: String,
    /// The request's path and query.
    pub(super) path: String,
    /// The request's headers as they arrived; several of one name are joined by `, `.
    pub(super) headers: BTreeMap<String, String>,
}

/// Serves until standard input ends.
pub(super) async fn run(cluster: String, listen: SocketAddr) -> anyhow::Result<()> {
    let listener = TcpListener::bind(listen).await.with_context(|| format!("cannot listen on {listen}"))?;
    crate::output::print(&format!("{READY}\n"))?;
    let cluster: Arc<str> = cluster.into();
    tokio::select! {
        () = accept(listener, cluster) => Ok(()),
        () = super::super::stdin_ended() => Ok(()),
    }
}

/// Accepts for ever.
pub(super) async fn accept(listener: TcpListener, cluster: Arc<str>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                // Detached: a connection ends with its client, and all end with the process.
                drop(task::spawn("demo_service", connection(stream, Arc::clone(&cluster))));
            }
            Err(error) => {
                tracing::warn!(%error, "accept failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Serves one connection to its end.
async fn connection(stream: TcpStream, cluster: Arc<str>) {
    let service = service_fn(move |request: Request<Incoming>| {
        let answer = answer(&cluster, &request);
        async move { Ok::<_, Infallible>(answer) }
    });
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "connection ended early");
    }
}

/// The answer to a request: what arrived.
fn answer(cluster: &str, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    let answer = Answer {
        cluster: cluster.to_owned(),
        method: request.method().to_string(),
        path: request.uri().path_and_query().map_or_else(|| "/".to_owned(), ToString::to_string),
        headers: headers(request.headers()),
    };
    // A map of strings has no way to fail in JSON.
    let mut body = serde_json::to_vec_pretty(&answer).unwrap_or_default();
    body.push(b'\n');
    let mut response = Response::new(Full::new(Bytes::from(body)));
    let fields = response.headers_mut();
    fields.insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
    if let Ok(value) = http::HeaderValue::from_str(cluster) {
        fields.insert("x-cluster", value);
    }
    response
}

/// Headers by name, as text.
fn headers(map: &HeaderMap) -> BTreeMap<String, String> {
    let mut headers: BTreeMap<String, String> = BTreeMap::new();
    for (name, value) in map {
        let value = String::from_utf8_lossy(value.as_bytes());
        headers
            .entry(name.to_string())
            .and_modify(|joined| {
                joined.push_str(", ");
                joined.push_str(&value);
            })
            .or_insert_with(|| value.into_owned());
    }
    headers
}
