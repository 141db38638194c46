//! The client of the demo: single calls, and a steady load that counts who answered.
//!
//! In: an address, a source address, a rate. Out: every answer with the time at which it was due.
//! Never does: wait for one answer before it sends the next (the load is open: a slow backend does not hide itself), send
//! anything twice.
//! Numbers: a call is given up after 10 s.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::{HeaderMap, Request, StatusCode};
use hyper_util::rt::TokioIo;
use linkspan_runtime::task;
use tokio::net::TcpSocket;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio_util::task::TaskTracker;

/// A call is given up after this time: twice what the gateway needs to notice a dead peer (4 s), and then some.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// Answers of the demo's service are below 2 KiB, those of the admin listener below 1 MiB.
const BODY_LIMIT: usize = 1 << 20;

/// Where calls go and where they come from.
#[derive(Clone, Debug)]
pub(super) struct Target {
    /// The client's own address: it decides which workload the gateway sees.
    pub(super) source: IpAddr,
    /// The mirrored address and port.
    pub(super) address: SocketAddr,
    /// The name in the `Host` header.
    pub(super) host: String,
}

/// What a single call got.
#[derive(Debug)]
pub(super) struct Reply {
    /// The status.
    pub(super) status: StatusCode,
    /// The headers.
    pub(super) headers: HeaderMap,
    /// The body.
    pub(super) body: Bytes,
}

impl Target {
    /// Opens a connection from the source address.
    async fn connect(&self) -> anyhow::Result<SendRequest<Empty<Bytes>>> {
        let socket = if self.address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        socket
            .bind(SocketAddr::new(self.source, 0))
            .with_context(|| format!("cannot use {} as source", self.source))?;
        let stream =
            socket.connect(self.address).await.with_context(|| format!("cannot connect to {}", self.address))?;
        stream.set_nodelay(true)?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        // Detached: it ends when its sender is dropped or the other side closes, and the sender gets the error.
        drop(task::spawn("demo_client", async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "connection ended early");
            }
        }));
        Ok(sender)
    }

    /// One GET on a connection of its own.
    pub(super) async fn get(&self, path: &str, headers: &[(&'static str, &str)]) -> anyhow::Result<Reply> {
        let call = async {
            let mut sender = self.connect().await?;
            exchange(&mut sender, &self.host, path, headers).await
        };
        tokio::time::timeout(CALL_TIMEOUT, call).await.context("no answer in 10 s")?
    }

    /// One GET that must answer 200 with JSON.
    pub(super) async fn json<T: serde::de::DeserializeOwned>(
        &self,
        path: &str,
        headers: &[(&'static str, &str)],
    ) -> anyhow::Result<T> {
        let reply = self.get(path, headers).await?;
        if reply.status != StatusCode::OK {
            bail!("{} answers {}: {}", self.host, reply.status, String::from_utf8_lossy(&reply.body).trim());
        }
        serde_json::from_slice(&reply.body).with_context(|| format!("{} answers something else", self.host))
    }
}

/// Sends one GET and reads the whole answer.
async fn exchange(
    sender: &mut SendRequest<Empty<Bytes>>,
    host: &str,
    path: &str,
    headers: &[(&'static str, &str)],
) -> anyhow::Result<Reply> {
    let mut request = Request::get(path).header(http::header::HOST, host);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let (head, body) = sender.send_request(request.body(Empty::new())?).await?.into_parts();
    let body = Limited::new(body, BODY_LIMIT).collect().await.map_err(|error| anyhow::anyhow!(error))?.to_bytes();
    Ok(Reply { status: head.status, headers: head.headers, body })
}

/// One answer of the load.
#[derive(Clone, Debug)]
pub(super) struct Answer {
    /// When the request was due to be sent.
    pub(super) due: Instant,
    /// How long the answer took from then.
    pub(super) took: Duration,
    /// The cluster that answered, or why nobody did.
    pub(super) from: Result<String, String>,
}

/// Connections and answers that all requests of a load share.
#[derive(Debug)]
struct Shared {
    target: Target,
    /// Connections that wait for a request. Its length is bounded by the requests under way at one time.
    idle: Mutex<Vec<SendRequest<Empty<Bytes>>>>,
    /// Bounded by the life of a demo: some ten thousand.
    answers: Mutex<Vec<Answer>>,
}

/// A steady load that runs beside the story.
#[derive(Debug)]
pub(super) struct Load {
    shared: Arc<Shared>,
    stop: oneshot::Sender<()>,
    runner: JoinHandle<()>,
}

impl Load {
    /// Starts `rate` requests a second.
    pub(super) fn start(target: Target, rate: u32) -> Self {
        let shared = Arc::new(Shared { target, idle: Mutex::default(), answers: Mutex::default() });
        let (stop, stopped) = oneshot::channel();
        let runner = task::spawn("demo_load", run(Arc::clone(&shared), rate, stopped));
        Self { shared, stop, runner }
    }

    /// All answers so far to requests that were due at `from` or later, in the order in which they were due.
    pub(super) fn answers(&self, from: Instant) -> Vec<Answer> {
        sorted(&self.shared, from)
    }

    /// Ends the load, waits for what is under way, returns all answers.
    pub(super) async fn finish(self) -> anyhow::Result<Vec<Answer>> {
        // The runner has ended by itself only if it panicked, which the next line reports.
        let _ended = self.stop.send(());
        self.runner.await.context("the load generator failed")?;
        let mut all = std::mem::take(&mut *self.shared.answers.lock().unwrap_or_else(PoisonError::into_inner));
        all.sort_by_key(|answer| answer.due);
        Ok(all)
    }
}

/// The answers since `from`, sorted.
fn sorted(shared: &Shared, from: Instant) -> Vec<Answer> {
    let all = shared.answers.lock().unwrap_or_else(PoisonError::into_inner);
    let mut answers: Vec<Answer> = all.iter().filter(|answer| answer.due >= from).cloned().collect();
    drop(all);
    answers.sort_by_key(|answer| answer.due);
    answers
}

/// Sends at the rate until `stopped`, then waits for the requests under way.
async fn run(shared: Arc<Shared>, rate: u32, mut stopped: oneshot::Receiver<()>) {
    let mut ticks = tokio::time::interval(Duration::from_secs(1) / rate.max(1));
    // After a stall of this machine the missed requests are sent at once: the load stays what it says.
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Burst);
    let under_way = TaskTracker::new();
    loop {
        let due = tokio::select! {
            due = ticks.tick() => due.into_std(),
            _ = &mut stopped => break,
        };
        // Detached, but tracked: each writes its answer down by itself.
        drop(task::spawn("demo_request", under_way.track_future(request(Arc::clone(&shared), due))));
    }
    under_way.close();
    under_way.wait().await;
}

/// One request of the load.
async fn request(shared: Arc<Shared>, due: Instant) {
    let from = match tokio::time::timeout(CALL_TIMEOUT, send(&shared)).await {
        Ok(Ok(cluster)) => Ok(cluster),
        Ok(Err(error)) => Err(format!("{error:#}")),
        Err(_) => Err("no answer in 10 s".to_owned()),
    };
    let answer = Answer { due, took: due.elapsed(), from };
    shared.answers.lock().unwrap_or_else(PoisonError::into_inner).push(answer);
}

/// Sends on a connection that waits, or on a new one. Returns who answered.
async fn send(shared: &Shared) -> anyhow::Result<String> {
    let mut sender = loop {
        let idle = shared.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        match idle {
            // Closed while it waited: nothing was sent on it.
            Some(sender) if sender.is_closed() => {}
            Some(sender) => break sender,
            None => break shared.target.connect().await?,
        }
    };
    let reply = exchange(&mut sender, &shared.target.host, "/load", &[]).await?;
    if sender.ready().await.is_ok() {
        shared.idle.lock().unwrap_or_else(PoisonError::into_inner).push(sender);
    }
    if reply.status != StatusCode::OK {
        let reason = reply.headers.get("linkspan-error").and_then(|value| value.to_str().ok()).unwrap_or("no reason");
        bail!("{} ({reason})", reply.status);
    }
    reply.headers.get("x-cluster").and_then(|value| value.to_str().ok()).map(str::to_owned).context("no x-cluster")
}

#[cfg(test)]
mod tests;
