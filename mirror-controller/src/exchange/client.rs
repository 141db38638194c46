//! One linked peer, to which we listen: pipes come and go, the peer's catalogue stays. One pipe is used, the others wait.
//!
//! - **In**: pipes; the peer's messages.
//! - **Out**: the peer's [`PeerState`], and its catalogue on disk.
//! - **Refuses when**: a message is over the cap (before it is read), malformed, or violates the session: the pipe ends, the
//!   last good catalogue stays.
//! - **Never does**: remove anything because a pipe ended; end a pipe because another came.
//! - **Numbers**: [`OUTGOING`], [`INCOMING`], [`TAKE_OVER`], and [`linkspan_proto::exchange::MAX_MESSAGE_LEN`].

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use futures::future::{Either, select};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioIo, TokioTimer};
use linkspan_proto::exchange::{MAX_MESSAGE_LEN, Message, SubscriberMessage};
use linkspan_proto::generated::exchange as wire;
use linkspan_proto::generated::exchange::exchange_client::ExchangeClient;
use linkspan_proto::names::ClusterName;
use linkspan_runtime::task;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;

use super::metrics::Direction;
use super::pipe::{PIPES_MAX, Pipe};
use super::server::KEEP_ALIVE;
use super::session::{Freshness, Subscriber, View};
use super::{Context, PeerState, Peers, now};

/// Answers on their way to the peer: one for each message of it, and there is one at a time.
pub const OUTGOING: usize = 16;
/// Messages of the peer that wait to be handled; at a megabyte each this is what a peer can make us hold.
pub const INCOMING: usize = 2;
/// After the loss of a pipe another one has this long to bring both sides to agree before anybody is told that they do not. One
/// that waits takes a round trip; a gateway whose link moved to another gateway of the peer opens one within half a second.
pub const TAKE_OVER: Duration = Duration::from_secs(2);

/// The reason of a pipe that closed. Its gateway went, or the link, or the peer's controller.
const CLOSED: &str = "Closed";
/// The reason of a pipe on which nothing moves any more.
const UNRESPONSIVE: &str = "Unresponsive";

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
    mut arriving: mpsc::Receiver<Pipe>,
    output: Output,
    mut stopped: watch::Receiver<bool>,
) {
    let mut pipes = Pipes::default();
    let mut trouble: Option<Trouble> = None;
    // Until when the loss of a pipe is not told.
    let mut quiet_until: Option<Instant> = None;
    let mut saver = output.context.store.saver(&output.peer, &subscriber);
    loop {
        if pipes.take_over() {
            subscriber.connected(now());
        }
        if !pipes.send_all(&mut subscriber, &output) {
            trouble = Some((UNRESPONSIVE, "the peer takes no answers".to_owned()));
            pipes.end();
            subscriber.disconnected();
            continue;
        }
        let now = now();
        let view = subscriber.view(now);
        if view.synchronised && view.freshness == Freshness::Fresh {
            (trouble, quiet_until) = (None, None);
        }
        if quiet_until.is_none_or(|until| now >= until) {
            output.publish(&view, pipes.in_use(), trouble.as_ref());
        }
        saver.offer(&subscriber, now);
        let quiet = quiet_until.filter(|until| *until > now);
        let deadline = subscriber.deadline(now).into_iter().chain(saver.deadline()).chain(quiet).min();
        let result = tokio::select! {
            pipe = arriving.recv() => {
                let Some(pipe) = pipe else { break };
                pipes.add(&output.peer, pipe);
                Ok(())
            }
            received = pipes.receive() => match received {
                Ok(message) => {
                    output.context.metrics.message(&output.peer, Direction::Received);
                    subscriber
                        .message(message, self::now())
                        .map_err(|violation| (violation.reason(), violation.to_string()))
                }
                Err(trouble) => Err(trouble),
            },
            () = sleep_until(deadline) => {
                subscriber.timeout(self::now()).map_err(|violation| (violation.reason(), violation.to_string()))
            }
            _ = stopped.wait_for(|stopped| *stopped) => break,
        };
        if let Err((reason, why)) = result {
            report_end(&output, reason, &why);
            // That a gateway went is no news if another one, or the next connection of the same, comes at once. What the peer
            // did wrong is.
            quiet_until = match reason {
                CLOSED | UNRESPONSIVE if view.synchronised => Some(self::now() + TAKE_OVER),
                CLOSED | UNRESPONSIVE => quiet_until,
                _ => None,
            };
            trouble = Some((reason, why));
            pipes.end();
            subscriber.disconnected();
        }
    }
    saver.finish(&subscriber).await;
}

fn report_end(output: &Output, reason: &'static str, why: &str) {
    output.context.metrics.ended(&output.peer, reason);
    if reason == CLOSED {
        tracing::debug!(peer = %output.peer, why, "subscribing pipe ended");
    } else {
        tracing::warn!(peer = %output.peer, reason, why, "the peer's catalogue session is ended; the last good one stays");
    }
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

/// The pipes to one peer.
#[derive(Default)]
struct Pipes {
    used: Option<Session>,
    /// In the order in which they came.
    waiting: Vec<Session>,
}

impl Pipes {
    /// Another gateway of ours, or the same one again, has reached the peer.
    fn add(&mut self, peer: &ClusterName, pipe: Pipe) {
        if self.waiting.len() < PIPES_MAX {
            self.waiting.push(Session::open(peer.clone(), pipe));
        } else {
            tracing::debug!(%peer, "a pipe more than are kept waiting is closed");
        }
    }

    /// Puts a pipe to use if none is. The newest: the gateway of an older one may be on its way out. Says whether one was.
    fn take_over(&mut self) -> bool {
        while self.used.is_none()
            && let Some(mut session) = self.waiting.pop()
        {
            if session.begin() {
                self.used = Some(session);
                return true;
            }
        }
        false
    }

    const fn in_use(&self) -> bool {
        self.used.is_some()
    }

    /// Closes the one in use.
    fn end(&mut self) {
        self.used = None;
    }

    /// Sends what the session has to say. False: the peer does not take it.
    fn send_all(&self, subscriber: &mut Subscriber, output: &Output) -> bool {
        self.used.as_ref().is_none_or(|used| used.send_all(subscriber, output))
    }

    /// The next message, or why the pipe in use has ended. Those that wait and have ended are forgotten meanwhile.
    async fn receive(&mut self) -> Result<Message, Trouble> {
        poll_fn(|context| {
            self.waiting.retain_mut(|session| session.incoming.poll_recv(context).is_pending());
            let Some(used) = &mut self.used else { return Poll::Pending };
            used.incoming
                .poll_recv(context)
                .map(|received| received.unwrap_or_else(|| Err((CLOSED, "the pipe to the peer closed".to_owned()))))
        })
        .await
    }
}

/// One pipe, and the call on it once it is used. Dropping it closes both.
struct Session {
    /// Taken when it is used.
    begin: Option<oneshot::Sender<()>>,
    outgoing: mpsc::Sender<wire::SubscriberMessage>,
    incoming: mpsc::Receiver<Result<Message, Trouble>>,
    call: JoinHandle<()>,
}

impl Session {
    fn open(peer: ClusterName, pipe: Pipe) -> Self {
        let (begin, begun) = oneshot::channel();
        let (outgoing, requests) = mpsc::channel(OUTGOING);
        let (answers, incoming) = mpsc::channel(INCOMING);
        let call = task::spawn("exchange_subscribe", async move {
            if let Err(trouble) = call(pipe, begun, requests, &answers).await {
                tracing::trace!(%peer, reason = trouble.0, "subscription ended");
                // The follower may be gone already, and then nobody wants to know.
                answers.send(Err(trouble)).await.ok();
            }
        });
        Self { begin: Some(begin), outgoing, incoming, call }
    }

    /// Makes the call. False: the pipe has ended.
    fn begin(&mut self) -> bool {
        self.begin.take().is_some_and(|begin| begin.send(()).is_ok())
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

fn closed(error: &dyn std::fmt::Display) -> Trouble {
    (CLOSED, format!("the pipe to the peer closed: {error}"))
}

/// One pipe to its end: the connection at once, the call on it when it has `begun`.
async fn call(
    pipe: Pipe,
    begun: oneshot::Receiver<()>,
    requests: mpsc::Receiver<wire::SubscriberMessage>,
    answers: &mpsc::Sender<Result<Message, Trouble>>,
) -> Result<(), Trouble> {
    let handshake = http2::Builder::new(task::Executor("exchange_http"))
        .timer(TokioTimer::new())
        .keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE)
        // One that waits must be known to be alive: it is needed when another one is not.
        .keep_alive_while_idle(true)
        .handshake(TokioIo::new(pipe));
    let (sender, connection) = handshake.await.map_err(|error| closed(&error))?;
    let mut connection = pin!(connection);
    tokio::select! {
        begun = begun => {
            if begun.is_err() {
                return Ok(());
            }
        }
        ended = connection.as_mut() => {
            return Err(ended.map_or_else(|error| closed(&error), |()| closed(&"the other end closed it")));
        }
    }
    let subscribed = pin!(subscribe(sender, requests, answers));
    match select(subscribed, connection).await {
        Either::Left((result, _)) => result,
        // What came before the end counts.
        Either::Right((_, subscribed)) => subscribed.await,
    }
}

/// The gRPC call, until it ends.
async fn subscribe(
    mut sender: http2::SendRequest<tonic::body::Body>,
    requests: mpsc::Receiver<wire::SubscriberMessage>,
    answers: &mpsc::Sender<Result<Message, Trouble>>,
) -> Result<(), Trouble> {
    let connection = tower::service_fn(move |request| sender.send_request(request));
    // The name says nothing: there is one connection, and it is there already.
    let origin = http::Uri::from_static("http://exchange.linkspan");
    let mut client = ExchangeClient::with_origin(connection, origin).max_decoding_message_size(MAX_MESSAGE_LEN);
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
