//! One linked peer, to which we listen: pipes come and go, the peer's catalogue stays.
//!
//! - **In**: pipes; the peer's messages.
//! - **Out**: the peer's [`PeerState`], and its catalogue on disk.
//! - **Refuses when**: a message is over the cap (before it is read), malformed, or violates the session: the pipe ends, the
//!   last good catalogue stays.
//! - **Never does**: remove anything because a pipe ended.
//! - **Numbers**: [`OUTGOING`], [`INCOMING`], and [`linkspan_proto::exchange::MAX_MESSAGE_LEN`].

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use hyper_util::rt::TokioIo;
use linkspan_proto::exchange::{MAX_MESSAGE_LEN, Message, SubscriberMessage};
use linkspan_proto::generated::exchange as wire;
use linkspan_proto::generated::exchange::exchange_client::ExchangeClient;
use linkspan_proto::names::ClusterName;
use linkspan_runtime::task;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Endpoint;

use super::metrics::Direction;
use super::pipe::Pipe;
use super::session::{Freshness, Subscriber, View};
use super::{Context, PeerState, Peers};

/// Answers on their way to the peer: one for each message of it, and there is one at a time.
pub const OUTGOING: usize = 16;
/// Messages of the peer that wait to be handled; at a megabyte each this is what a peer can make us hold.
pub const INCOMING: usize = 2;

/// Why a pipe ended, for the peer's status.
type Trouble = (&'static str, String);

/// Where a follower tells what it knows.
#[derive(Debug)]
pub(super) struct Output {
    peer: ClusterName,
    context: Arc<Context>,
    peers: watch::Sender<Arc<Peers>>,
}

impl Output {
    pub(super) fn new(peer: ClusterName, context: Arc<Context>, peers: watch::Sender<Arc<Peers>>) -> Self {
        Self { peer, context, peers }
    }

    /// Publishes the peer's state if it differs.
    pub(super) fn publish(&self, view: &View, connected: bool, trouble: Option<&Trouble>) {
        self.peers.send_if_modified(|peers| {
            let old = peers.get(&self.peer);
            let confirmed_unix = if view.synchronised {
                Some(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs())
            } else {
                old.and_then(|old| old.confirmed_unix)
            };
            let mut state = PeerState { view: view.clone(), connected, confirmed_unix, trouble: trouble.cloned() };
            if let Some(old) = old {
                // The time alone is no news: it would wake everybody with every heartbeat.
                let confirmed_unix = std::mem::replace(&mut state.confirmed_unix, old.confirmed_unix);
                if state == **old {
                    return false;
                }
                state.confirmed_unix = confirmed_unix;
            }
            Arc::make_mut(peers).insert(self.peer.clone(), Arc::new(state));
            true
        });
        self.context.metrics.viewed(&self.peer, view);
    }
}

/// Follows one peer until `stopped`.
pub(super) async fn follow(
    mut subscriber: Subscriber,
    mut pipes: mpsc::Receiver<Pipe>,
    output: Output,
    mut stopped: watch::Receiver<bool>,
) {
    let mut session: Option<Session> = None;
    let mut trouble: Option<Trouble> = None;
    let mut saver = output.context.store.saver(&output.peer, &subscriber);
    loop {
        let now = Instant::now();
        if let Some(open) = &session
            && !open.send_all(&mut subscriber, &output)
        {
            trouble = Some(("Unresponsive", "the peer takes no answers".to_owned()));
            session = None;
            subscriber.disconnected();
        }
        let view = subscriber.view(now);
        if view.synchronised && view.freshness == Freshness::Fresh {
            trouble = None;
        }
        output.publish(&view, session.is_some(), trouble.as_ref());
        saver.offer(&subscriber, now);
        let deadline = subscriber.deadline(now).into_iter().chain(saver.deadline()).min();
        let result = tokio::select! {
            pipe = pipes.recv() => {
                let Some(pipe) = pipe else { break };
                // The newest pipe wins: the old one may be dead without knowing.
                session = Some(Session::open(output.peer.clone(), pipe));
                subscriber.connected(Instant::now());
                Ok(())
            }
            received = receive(&mut session) => match received {
                Ok(message) => {
                    output.context.metrics.message(&output.peer, Direction::Received);
                    subscriber
                        .message(message, Instant::now())
                        .map_err(|violation| (violation.reason(), violation.to_string()))
                }
                Err(trouble) => Err(trouble),
            },
            () = sleep_until(deadline) => {
                subscriber.timeout(Instant::now()).map_err(|violation| (violation.reason(), violation.to_string()))
            }
            _ = stopped.wait_for(|stopped| *stopped) => break,
        };
        if let Err((reason, why)) = result {
            report_end(&output, reason, &why);
            trouble = Some((reason, why));
            session = None;
            subscriber.disconnected();
        }
    }
    saver.finish(&subscriber).await;
}

fn report_end(output: &Output, reason: &'static str, why: &str) {
    output.context.metrics.ended(&output.peer, reason);
    if reason == "Closed" {
        tracing::debug!(peer = %output.peer, why, "subscribing pipe ended");
    } else {
        tracing::warn!(peer = %output.peer, reason, why, "the peer's catalogue session is ended; the last good one stays");
    }
}

async fn receive(session: &mut Option<Session>) -> Result<Message, Trouble> {
    match session {
        Some(session) => {
            session.incoming.recv().await.unwrap_or_else(|| Err(("Closed", "the pipe to the peer closed".to_owned())))
        }
        None => std::future::pending().await,
    }
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

/// One pipe and the call on it. Dropping it closes both.
struct Session {
    outgoing: mpsc::Sender<wire::SubscriberMessage>,
    incoming: mpsc::Receiver<Result<Message, Trouble>>,
    call: JoinHandle<()>,
}

impl Session {
    fn open(peer: ClusterName, pipe: Pipe) -> Self {
        let (outgoing, requests) = mpsc::channel(OUTGOING);
        let (answers, incoming) = mpsc::channel(INCOMING);
        let call = task::spawn("exchange_subscribe", async move {
            if let Err(trouble) = call(pipe, requests, &answers).await {
                tracing::trace!(%peer, reason = trouble.0, "subscription ended");
                // The follower may be gone already, and then nobody wants to know.
                answers.send(Err(trouble)).await.ok();
            }
        });
        Self { outgoing, incoming, call }
    }

    /// Sends what the session has to say. False: the peer does not take it.
    fn send_all(&self, subscriber: &mut Subscriber, output: &Output) -> bool {
        while let Some(message) = subscriber.poll() {
            let message: SubscriberMessage = message;
            match self.outgoing.try_send(message.into()) {
                Ok(()) => output.context.metrics.message(&output.peer, Direction::Sent),
                // Closed: the call ended, and its reason is on the way.
                Err(mpsc::error::TrySendError::Closed(_)) => return true,
                Err(mpsc::error::TrySendError::Full(_)) => return false,
            }
        }
        true
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.call.abort();
    }
}

/// The gRPC call over one pipe, until it ends.
async fn call(
    pipe: Pipe,
    requests: mpsc::Receiver<wire::SubscriberMessage>,
    answers: &mpsc::Sender<Result<Message, Trouble>>,
) -> Result<(), Trouble> {
    let closed = |error: &dyn std::fmt::Display| ("Closed", format!("the pipe to the peer closed: {error}"));
    let pipe = Arc::new(Mutex::new(Some(pipe)));
    // There is one connection and no way to dial another: a second request for one fails, and with it the call.
    let connector = tower::service_fn(move |_: http::Uri| {
        let pipe = pipe.lock().unwrap_or_else(PoisonError::into_inner).take();
        std::future::ready(pipe.map(TokioIo::new).ok_or_else(|| std::io::Error::from(std::io::ErrorKind::NotConnected)))
    });
    let channel = Endpoint::from_static("http://exchange.linkspan")
        .http2_keep_alive_interval(Duration::from_secs(10))
        .keep_alive_timeout(Duration::from_secs(10))
        .keep_alive_while_idle(true)
        .connect_with_connector(connector)
        .await
        .map_err(|error| closed(&error))?;
    let mut client = ExchangeClient::new(channel).max_decoding_message_size(MAX_MESSAGE_LEN);
    let mut stream =
        client.subscribe(ReceiverStream::new(requests)).await.map_err(|status| closed(&status.message()))?.into_inner();
    loop {
        let message = match stream.message().await {
            Ok(Some(message)) => message,
            Ok(None) => return Err(closed(&"the peer ended the call")),
            Err(status) if status.code() == tonic::Code::OutOfRange => {
                return Err(("MessageTooLarge", format!("a message is larger than {MAX_MESSAGE_LEN} bytes")));
            }
            Err(status) => return Err(closed(&linkspan_runtime::text::clean(status.message()))),
        };
        let message = Message::try_from(message)
            .map_err(|error| ("InvalidCatalogue", format!("the peer's catalogue is not valid: {error}")))?;
        if answers.send(Ok(message)).await.is_err() {
            return Ok(());
        }
    }
}
