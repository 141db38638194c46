//! An open-loop HTTP/1.1 and HTTP/2 load generator: requests are due at fixed times, whatever became of the earlier ones, and
//! latency counts from the time a request was due, so a stalled server cannot hide (coordinated omission).

#![allow(clippy::disallowed_methods, reason = "test code: its tasks and settings are its own")]

use std::collections::BTreeMap;
use std::error::Error as _;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use clap::Parser;
use http::{Request, Response, Uri};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper::client::conn::{TrySendError, http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use linkspan_tests::load::{Failure, Report};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until, timeout};

/// The longest that one request may take; a longer one counts as failed.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// Requests that were sent again.
static RESENT: AtomicUsize = AtomicUsize::new(0);

#[derive(Parser)]
struct Args {
    /// What to get: http://HOST:PORT/PATH, resolved anew for each connection.
    #[arg(long)]
    url: Uri,
    /// Requests a second over all connections.
    #[arg(long)]
    rate: u32,
    /// How long.
    #[arg(long)]
    seconds: u32,
    /// Keep-alive connections that share the rate; one that is busy when a request is due sends it late, and that counts.
    #[arg(long, default_value_t = 16)]
    connections: u32,
    /// HTTP/2 with prior knowledge.
    #[arg(long)]
    http2: bool,
}

/// A connection of either version.
enum Sender {
    Http1(http1::SendRequest<Empty<Bytes>>),
    Http2(http2::SendRequest<Empty<Bytes>>),
}

impl Sender {
    async fn connect(url: &Uri, http2: bool) -> Result<Self> {
        let authority = url.authority().context("the url has no host")?;
        let stream =
            TcpStream::connect((authority.host(), authority.port_u16().unwrap_or(80))).await.context("connect")?;
        stream.set_nodelay(true)?;
        if http2 {
            let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
            tokio::spawn(connection);
            return Ok(Self::Http2(sender));
        }
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(Self::Http1(sender))
    }

    async fn ready(&mut self) -> hyper::Result<()> {
        match self {
            Self::Http1(sender) => sender.ready().await,
            Self::Http2(sender) => sender.ready().await,
        }
    }

    async fn send(
        &mut self,
        request: Request<Empty<Bytes>>,
    ) -> Result<Response<Incoming>, TrySendError<Request<Empty<Bytes>>>> {
        match self {
            Self::Http1(sender) => sender.try_send_request(request).await,
            Self::Http2(sender) => sender.try_send_request(request).await,
        }
    }
}

struct Answer {
    at: Duration,
    latency: Duration,
    result: Result<String, String>,
}

#[tokio::main]
async fn main() -> Result<()> {
    let args = Args::parse();
    let start = Instant::now();
    let total = args.rate * args.seconds;
    let mut tasks = Vec::new();
    for lane in 0..args.connections {
        let url = args.url.clone();
        let due: Vec<Duration> = (lane..total)
            .step_by(args.connections as usize)
            .map(|n| Duration::from_secs_f64(f64::from(n) / f64::from(args.rate)))
            .collect();
        tasks.push(tokio::spawn(lane_of_requests(url, args.http2, start, due)));
    }
    let mut answers = Vec::new();
    for task in tasks {
        answers.extend(task.await?);
    }
    serde_json::to_writer(std::io::stdout(), &report(answers))?;
    Ok(())
}

async fn lane_of_requests(url: Uri, http2: bool, start: Instant, due: Vec<Duration>) -> Vec<Answer> {
    let mut sender: Option<Sender> = None;
    let mut answers = Vec::with_capacity(due.len());
    for at in due {
        sleep_until(start + at).await;
        let result = match timeout(REQUEST_TIMEOUT, request(&url, http2, &mut sender)).await {
            Ok(Ok(cluster)) => Ok(cluster),
            Ok(Err(error)) => Err(format!("{error:#}")),
            Err(_) => Err("no answer in 10 s".to_owned()),
        };
        if result.is_err() {
            sender = None;
        }
        answers.push(Answer { at, latency: Instant::now() - (start + at), result });
    }
    answers
}

/// Sends one request. A connection that was closed between two requests is replaced, as by any client: the request was
/// not sent on it. So is an HTTP/2 connection whose GOAWAY does not count the request.
async fn request(url: &Uri, http2: bool, sender: &mut Option<Sender>) -> Result<String> {
    let target = if http2 { url.to_string() } else { url.path_and_query().map_or("/", |p| p.as_str()).to_owned() };
    let mut request = Request::get(target);
    if !http2 {
        request = request.header("host", url.authority().context("the url has no host")?.as_str());
    }
    let mut request = request.body(Empty::new())?;
    let response = loop {
        let mut open = match sender.take() {
            Some(open) => open,
            None => Sender::connect(url, http2).await?,
        };
        if open.ready().await.is_err() {
            open = Sender::connect(url, http2).await?;
        }
        let again = request.clone();
        match open.send(request).await {
            Ok(response) => {
                *sender = Some(open);
                break response;
            }
            Err(mut failed) => match failed.take_message() {
                Some(unsent) => request = unsent,
                None => {
                    let error = failed.into_error();
                    if !is_unprocessed(&error) {
                        return Err(error).context("no response");
                    }
                    RESENT.fetch_add(1, Ordering::Relaxed);
                    request = again;
                }
            },
        }
    };
    let (head, body) = response.into_parts();
    let body = body.collect().await.context("truncated response")?.to_bytes();
    if head.status.is_server_error() {
        bail!("status {}: {}", head.status.as_u16(), String::from_utf8_lossy(&body).trim());
    }
    Ok(head
        .headers
        .get("x-cluster")
        .map_or_else(|| "?".to_owned(), |v| String::from_utf8_lossy(v.as_bytes()).into_owned()))
}

/// Whether the other end said in order that it will not process the request, which may be sent again then: its stream's number
/// is above the last in a GOAWAY (RFC 9113 section 6.8).
fn is_unprocessed(error: &hyper::Error) -> bool {
    let cause = error.source().and_then(|source| source.downcast_ref::<h2::Error>());
    cause.is_some_and(|cause| cause.is_go_away() && cause.is_remote() && cause.reason() == Some(h2::Reason::NO_ERROR))
}

fn report(mut answers: Vec<Answer>) -> Report {
    answers.sort_by_key(|a| a.at);
    let mut latencies: Vec<f64> = answers.iter().map(|a| a.latency.as_secs_f64() * 1e3).collect();
    latencies.sort_by(f64::total_cmp);
    let percentile =
        |p: usize| latencies.get((latencies.len() * p / 100).min(latencies.len().saturating_sub(1))).copied();
    let mut report = Report {
        requests: answers.len(),
        resent: RESENT.load(Ordering::Relaxed),
        percentiles: [50, 95, 99].map(|p| percentile(p).unwrap_or_default()),
        by_cluster: BTreeMap::new(),
        ..Report::default()
    };
    for answer in answers {
        let at_millis = u64::try_from(answer.at.as_millis()).unwrap_or(u64::MAX);
        match answer.result {
            Ok(cluster) => {
                report.good += 1;
                *report.by_cluster.entry(cluster.clone()).or_default() += 1;
                report.answers.push((at_millis, cluster));
            }
            Err(what) => {
                report.answers.push((at_millis, String::new()));
                report.failures.push(Failure { at_millis, what });
            }
        }
    }
    report
}
