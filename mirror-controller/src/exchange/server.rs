//! One pipe on which a peer listens to us: an HTTP/2 connection, one gRPC call, one publishing session.
//!
//! - **In**: the newest [`Feed`]; the peer's answers.
//! - **Out**: what [`Publisher`] says.
//! - **Refuses when**: a second call comes on one pipe, a message is over [`REQUEST_MAX`], the session is violated.
//! - **Never does**: wait for a slow peer with more than one message in hand.
//! - **Numbers**: [`REQUEST_MAX`], [`STUCK`], [`KEEP_ALIVE`].

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use linkspan_proto::exchange::SubscriberMessage;
use linkspan_proto::generated::exchange as wire;
use linkspan_proto::generated::exchange::exchange_server::{Exchange, ExchangeServer};
use linkspan_proto::names::ClusterName;
use linkspan_runtime::task;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use super::metrics::Direction;
use super::session::{Publisher, Violation};
use super::{Context, Feed, now, pipe::Pipe};

/// A subscriber's messages are names, numbers and one hash.
pub const REQUEST_MAX: usize = 16 * 1024;
/// A peer that takes no byte of a message for this long is gone, whatever its connection says.
pub const STUCK: Duration = Duration::from_secs(30);
/// HTTP/2 pings: a pipe whose link vanished does not close by itself.
pub const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// Serves one pipe until it ends or `stop` is cancelled.
pub(super) async fn serve(
    context: &Arc<Context>,
    peer: ClusterName,
    feed: watch::Receiver<Arc<Feed>>,
    pipe: Pipe,
    stop: CancellationToken,
) {
    let ended = stop.child_token();
    // Whatever ends this function ends the session too.
    let _guard = ended.clone().drop_guard();
    let publishing =
        Publishing { context: Arc::clone(context), peer: peer.clone(), feed, ended, called: AtomicBool::new(false) };
    let service = ExchangeServer::new(publishing).max_decoding_message_size(REQUEST_MAX);
    let connection = hyper::server::conn::http2::Builder::new(task::Executor("exchange_http"))
        .timer(TokioTimer::new())
        // One call, and room to refuse a second properly.
        .max_concurrent_streams(4)
        .keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE)
        .serve_connection(TokioIo::new(pipe), TowerToHyperService::new(service));
    tokio::select! {
        result = connection => {
            if let Err(error) = result {
                tracing::debug!(%peer, %error, "publishing pipe ended");
            }
        }
        () = stop.cancelled() => tracing::debug!(%peer, "publishing pipe ended: the link is removed"),
        () = context.signal.draining() => {}
    }
}

struct Publishing {
    context: Arc<Context>,
    peer: ClusterName,
    feed: watch::Receiver<Arc<Feed>>,
    ended: CancellationToken,
    called: AtomicBool,
}

type Answers = mpsc::Sender<Result<wire::CatalogueMessage, Status>>;

#[tonic::async_trait]
impl Exchange for Publishing {
    type SubscribeStream = ReceiverStream<Result<wire::CatalogueMessage, Status>>;

    async fn subscribe(
        &self,
        request: Request<Streaming<wire::SubscriberMessage>>,
    ) -> Result<Response<Self::SubscribeStream>, Status> {
        if self.called.swap(true, Ordering::Relaxed) {
            return Err(Status::failed_precondition("this pipe has its call already"));
        }
        // One message in hand: while it waits, newer states replace older ones inside the session.
        let (answers, stream) = mpsc::channel(1);
        let (context, peer, feed) = (Arc::clone(&self.context), self.peer.clone(), self.feed.clone());
        let ended = self.ended.clone();
        drop(task::spawn("exchange_publish", async move {
            tokio::select! {
                () = publish(&context, peer, feed, request.into_inner(), answers) => {}
                () = ended.cancelled() => {}
            }
        }));
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

/// Drives one session to its end.
async fn publish(
    context: &Context,
    peer: ClusterName,
    mut feed: watch::Receiver<Arc<Feed>>,
    mut requests: Streaming<wire::SubscriberMessage>,
    answers: Answers,
) {
    let mut publisher = Publisher::new(peer.clone(), Arc::clone(&feed.borrow_and_update()), now());
    loop {
        while let Some(message) = publisher.poll(now()) {
            context.metrics.message(&peer, Direction::Sent);
            match tokio::time::timeout(STUCK, answers.send(Ok(message.into()))).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return context.metrics.ended(&peer, "Closed"),
                Err(_) => return context.metrics.ended(&peer, Violation::Unresponsive.reason()),
            }
        }
        let result = tokio::select! {
            message = requests.message() => match message {
                Ok(Some(message)) => {
                    context.metrics.message(&peer, Direction::Received);
                    match SubscriberMessage::try_from(message) {
                        Ok(message) => publisher.message(message, now()).map_err(|violation| violation.to_string()),
                        Err(error) => Err(error.to_string()),
                    }
                }
                Ok(None) | Err(_) => return context.metrics.ended(&peer, "Closed"),
            },
            changed = feed.changed() => {
                if changed.is_err() {
                    return;
                }
                publisher.publish(Arc::clone(&feed.borrow_and_update()));
                Ok(())
            }
            () = tokio::time::sleep_until(publisher.deadline().into()) => {
                publisher.timeout(now()).map_err(|violation| violation.to_string())
            }
            () = answers.closed() => return context.metrics.ended(&peer, "Closed"),
        };
        if let Err(why) = result {
            tracing::warn!(%peer, why, "the peer's subscription is ended");
            context.metrics.ended(&peer, "Violation");
            // Nobody waits for a peer to read why.
            drop(answers.try_send(Err(Status::invalid_argument(why))));
            return;
        }
    }
}
