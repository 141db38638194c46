//! Requests of peers.
//!
//! ```text
//! link -> head -> clean -> identity -> upstream -> response -> link
//!           |________ body __________^      |______ body ______^
//! ```
//!
//! - In: an admitted stream of kind `Http`: the proof that this caller may have this export.
//! - Out: one request to one of its endpoints, one response, one record.
//! - Refuses when: the head is late or makes no sense; the backend cannot be reached or breaks off; the caller's deadline
//!   passes; nothing moves for [`IDLE`](super::IDLE); the caller is no longer allowed to. Each as a reset with its reason:
//!   the egress side makes the answer.
//! - Never does: believe that the peer has cleaned the fields; end a response whose backend broke off.
//! - Numbers: [`HEAD_WAIT`] 5 s.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use hyper::upgrade::OnUpgrade;
use linkspan_proto::frames::{self, Event, FrameError, HttpVersion, RequestHead, Side};
use linkspan_proto::identity::SpiffeId;
use linkspan_proto::refusal::Refusal;
use linkspan_proto::stream_header::StreamHeader;
use tokio::time::Instant;

use super::body::{BackendBody, Cut, Frames as _, LinkBody, Next, Reader, RequestBody, is_bodiless};
use super::exchange::{Exchange, IdleTimer, Switch};
use super::headers::{self, Identity};
use super::interim::Interims;
use super::pool::Pool;
use super::request::{self, Cleaned};
use super::upstream::{self, Answer};
use super::via;
use crate::context::Gateway;
use crate::link::{RecvHalf, SendHalf, StreamError};
use crate::outcome::{Entry, Outcome, Protocol};
use crate::remote::{Admitted, Review};

mod respond;

/// How long a peer may take from the stream header to the last byte of the request's head (S-27), and from a 101 to its
/// own UPGRADED. Both follow at once.
const HEAD_WAIT: Duration = Duration::from_secs(5);

/// Serves one request.
pub async fn serve(
    gateway: Arc<Gateway>,
    admitted: Admitted,
    header: StreamHeader,
    send: SendHalf,
    recv: RecvHalf,
    mut entry: Entry,
) {
    let deadline = header.deadline.and_then(|left| Instant::now().checked_add(left));
    let mut reader = Reader::new(recv, Side::Request);
    let opened = tokio::time::timeout(HEAD_WAIT, open(&mut reader)).await;
    let opened = opened.unwrap_or(Err(Cut::Frames(FrameError::Truncated)));
    if let Ok(Opened { head, .. }) = &opened {
        entry.protocol = match head.version {
            _ if headers::is_grpc(&head.headers) => Protocol::Grpc,
            HttpVersion::H1 => Protocol::Http1,
            HttpVersion::H2 => Protocol::Http2,
        };
        entry.method = Some(head.method.clone());
    }
    let exchange = Arc::new(Exchange::new(gateway.record(entry), Switch::new(false)));
    let mut request = Serving { gateway, admitted, send, exchange, deadline, idle: IdleTimer::default() };
    let served = match opened {
        Ok(opened) => request.serve(opened, reader).await,
        Err(cut) => {
            reader.stop(cut.refusal());
            Err(cut)
        }
    };
    if let Err(cut) = served {
        request.exchange.note(|record| record.entry().note = Some(format!("{cut:?}")));
        request.exchange.ended(outcome(cut));
        request.send.reset(cut.refusal());
    }
    // A body that still comes is not wanted: the connection that reads it is not used again.
    request.exchange.request.stop();
}

/// A request's head, clean.
struct Opened {
    head: RequestHead,
    cleaned: Cleaned,
    body: bool,
}

/// Reads and cleans the head.
async fn open(reader: &mut Reader) -> Result<Opened, Cut> {
    let mut head = match reader.next().await? {
        Next::Event(Event::RequestHead(head)) => head,
        Next::Event(_) => return Err(Cut::Frames(FrameError::OutOfOrder)),
        Next::End => return Err(Cut::Frames(FrameError::Truncated)),
    };
    let cleaned = request::clean(&mut head).map_err(|_| Cut::Frames(FrameError::Malformed("request")))?;
    // Behind an offer to upgrade comes nothing before its answer.
    let body = !cleaned.upgrade && reader.has_body().await?;
    if !body && cleaned.length.is_some_and(|length| length > 0) {
        return Err(Cut::Frames(FrameError::LengthMismatch));
    }
    Ok(Opened { head, cleaned, body })
}

/// One request in service.
struct Serving {
    gateway: Arc<Gateway>,
    admitted: Admitted,
    send: SendHalf,
    exchange: Arc<Exchange>,
    deadline: Option<Instant>,
    idle: IdleTimer,
}

impl Serving {
    async fn serve(&mut self, opened: Opened, reader: Reader) -> Result<(), Cut> {
        let Opened { mut head, cleaned, body } = opened;
        let own = &self.gateway.own.cluster;
        if !via::pass(&mut head.headers, self.admitted.service(), own, head.version) {
            return Err(Cut::Refused(Refusal::Loop));
        }
        let method = head.method.clone();
        let http2 = head.version == HttpVersion::H2;
        let by = SpiffeId::gateway(&self.gateway.own.trust_domain);
        let identity = Identity::new(&by, self.admitted.source(), self.admitted.cluster());
        let (body, reader) = if body {
            let body = LinkBody::new(reader, cleaned.length, Arc::clone(&self.exchange), Side::Request);
            (RequestBody::Link(Box::new(body)), None)
        } else {
            // Kept: dropping it would tell the peer that we want no more of the request, and of its upgrade.
            (RequestBody::Empty, Some(reader))
        };
        let mut request = request::to_backend(head, &identity, body);
        let interims = (!http2).then(|| Interims::of(&mut request));
        let Answer { mut response, lease, endpoint } = self.ask(request, http2, interims.as_deref(), &cleaned).await?;
        self.exchange.note(|record| {
            record.answered();
            record.entry().backend = Some(endpoint.address());
            record.entry().status = Some(response.status().as_u16());
            record.entry().grpc_status = super::body::grpc_status(response.headers());
        });
        let on_upgrade = hyper::upgrade::on(&mut response);
        let (parts, incoming) = response.into_parts();
        let (head, length) = request::from_backend(parts.status, parts.headers).map_err(|_| Cut::Backend)?;
        if head.status == StatusCode::SWITCHING_PROTOCOLS {
            let reader = reader.filter(|_| cleaned.upgrade).ok_or(Cut::Backend)?;
            // Boxed: rare, and large.
            return Box::pin(self.switch(&head, on_upgrade, reader)).await;
        }
        let bodiless = is_bodiless(&method, head.status);
        let mut body = BackendBody::new(incoming, http2);
        if body.at_end() && !bodiless && length.is_some_and(|length| length > 0) {
            return Err(Cut::Length);
        }
        let left = if bodiless { None } else { length };
        self.respond(&head, &mut body, left).await?;
        self.exchange.note(|record| {
            if let Some(status) = body.grpc_status() {
                record.entry().grpc_status = Some(status);
            }
        });
        self.exchange.ended(Outcome::Ok);
        drop(reader);
        lease.recycle();
        Ok(())
    }

    /// Sends the request to a backend; passes interim responses on while it waits.
    async fn ask(
        &mut self,
        request: http::Request<RequestBody>,
        http2: bool,
        interims: Option<&Interims>,
        cleaned: &Cleaned,
    ) -> Result<Answer, Cut> {
        let pool = Pool::of_this_worker();
        let mut asking = pin!(upstream::send(&pool, &self.admitted, http2, request, self.deadline));
        let mut late = pin!(sleep_until(self.deadline));
        let review = Review { table: &self.gateway.table, admitted: &self.admitted };
        let mut revoked = pin!(review.until_revoked());
        loop {
            tokio::select! {
                biased;
                (status, headers) = Interims::next_of(interims) => {
                    self.exchange.moved();
                    if status != StatusCode::CONTINUE || cleaned.expects {
                        let info = frames::encode_info(status, &headers).map_err(|_| Cut::Backend)?;
                        self.send.write(info).await.map_err(Cut::Stream)?;
                    }
                }
                answer = &mut asking => {
                    return answer.map_err(|failed| {
                        self.exchange.note(|record| record.entry().backend = failed.address);
                        failed.cut
                    });
                }
                why = self.send.stopped() => return Err(stopped(why)),
                () = self.idle.expired(&self.exchange) => return Err(Cut::Idle),
                () = &mut late => return Err(Cut::Deadline),
                why = &mut revoked => return Err(Cut::Refused(why)),
            }
        }
    }

    /// 101: both sides change to another protocol.
    async fn switch(
        &mut self,
        head: &frames::ResponseHead,
        on_upgrade: OnUpgrade,
        mut reader: Reader,
    ) -> Result<(), Cut> {
        let head = frames::encode_response_head(head).map_err(|_| Cut::Backend)?;
        self.send.write_all(&mut [head, frames::upgraded()]).await.map_err(Cut::Stream)?;
        let next = tokio::time::timeout(HEAD_WAIT, reader.next()).await;
        match next.unwrap_or(Err(Cut::Idle))? {
            Next::Event(Event::Upgraded) => {}
            Next::Event(_) => return Err(Cut::Frames(FrameError::OutOfOrder)),
            Next::End => return Err(Cut::Unwanted),
        }
        let backend = on_upgrade.await.map_err(|_| Cut::Backend)?;
        let Some(record) = self.exchange.take_record() else { return Ok(()) };
        let Self { gateway, admitted, send, .. } = self;
        super::upgrade::from_link(gateway, admitted, backend, send, reader.into_raw(), record).await;
        Ok(())
    }
}

/// The peer reads no more, or the link is gone.
fn stopped(why: Option<Refusal>) -> Cut {
    Cut::Stream(why.map_or(StreamError::LinkLost, StreamError::Stopped))
}

/// How a request that was cut counts on this side.
fn outcome(cut: Cut) -> Outcome {
    match cut {
        // The peer is nearer to the client: the client left.
        Cut::Stream(StreamError::Stopped(Refusal::Cancelled) | StreamError::Reset(Refusal::Cancelled)) => {
            Outcome::ClientGone
        }
        cut => cut.outcome(),
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every stream of a peer has one of these.
    #[test]
    fn a_request_in_service_is_small() {
        fn size<A, B, C, D, E, G, F>(_: fn(A, B, C, D, E, G) -> F) -> usize {
            size_of::<F>()
        }
        let size = size(serve);
        assert!(size <= 10 * 1024, "{size} bytes");
    }
}
