//! One attempt on a peer cluster: a stream of the link.
//!
//! ```text
//! out  header + HEAD [+ DATA that is there already]  DATA ...  [TRAILERS] FIN     (or UPGRADED raw)
//! in   INFO ...  HEAD  DATA ...  [TRAILERS] FIN                                   (or HEAD 101 UPGRADED raw)
//! ```

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use http::{Response, StatusCode};
use linkspan_proto::frames::{self, Event, FrameError, ResponseHead, Side};
use linkspan_proto::refusal::Refusal;
use linkspan_proto::stream_header::{StreamHeader, StreamKind};
use linkspan_runtime::task;
use tokio::time::Instant;

use super::{Call, Miss};
use crate::http::IDLE;
use crate::http::body::{ClientBody, Cut, Gathered, LinkBody, Next, Reader, ResponseBody, Source, gather, is_bodiless};
use crate::http::errors::{Invalid, Reply};
use crate::http::exchange::{IdleTimer, Wanted};
use crate::http::request;
use crate::http::upgrade::{self, Tunnel};
use crate::link::{OpenError, SendHalf};
use crate::outcome::Outcome;
use crate::route::Target;

/// How much later than the ingress side this one looks at the deadline: its own answer says more, if it comes.
const DEADLINE_GRACE: Duration = Duration::from_millis(500);

impl Call {
    /// Sends the request to a peer and waits for the head of the response.
    pub(super) async fn attempt_remote(&mut self, target: &Target) -> Result<Response<ResponseBody>, Miss> {
        let connection = &self.connection;
        let opened = connection.gateway.links.open(connection.worker, &target.cluster).await;
        let (send, recv) = opened.map_err(Miss::open)?;
        let chunks = vec![self.stream_header()?, self.head_frame()?];
        let upgrade = self.upgrade.is_some();
        let mut pump = Pump { send, body: self.body.take(), chunks, ended: false, finish: !upgrade, done: false };
        pump.prime(self.exchange.request.wanted() == Wanted::NotYet).await;
        let mut reader = Reader::new(recv, Side::Response);
        match self.head(&mut pump, &mut reader).await {
            Ok(head) => self.answer(head, pump, reader).await,
            Err((cut, fresh)) => {
                let Pump { body, .. } = pump;
                let never =
                    fresh && matches!(cut, Cut::Stream(error) if error.refusal().is_some_and(Refusal::never_processed));
                let whole = self.take_back(body);
                Err(Miss::cut(cut, never && whole))
            }
        }
    }

    /// The head of the response, while the request's body goes out. With an error: whether nothing of a response has come.
    async fn head(&mut self, pump: &mut Pump, reader: &mut Reader) -> Result<ResponseHead, (Cut, bool)> {
        let mut idle = IdleTimer::default();
        let mut fresh = true;
        let mut pumping = pin!(pump.run());
        let mut pumped = false;
        let mut late = pin!(deadline(self.deadline));
        loop {
            let next = tokio::select! {
                biased;
                result = &mut pumping, if !pumped => {
                    pumped = true;
                    match result {
                        // The client's body broke: nothing will come of this.
                        Err(cut @ Cut::Client) => return Err((cut, false)),
                        // What stopped the body is told by the response, or by its reset.
                        Ok(()) | Err(_) => continue,
                    }
                }
                next = reader.next() => next,
                () = idle.expired(&self.exchange) => Err(Cut::Idle),
                () = &mut late => Err(Cut::Deadline),
            };
            match next.map_err(|cut| (cut, fresh))? {
                Next::Event(Event::Info(status, headers)) => {
                    fresh = false;
                    self.interim(status, headers);
                }
                Next::Event(Event::ResponseHead(head)) => return Ok(head),
                Next::Event(_) => return Err((Cut::Frames(FrameError::OutOfOrder), false)),
                Next::End => return Err((Cut::Frames(FrameError::Truncated), false)),
            }
        }
    }

    /// Turns the head into a response, and lets the rest of the request's body go out beside it.
    async fn answer(
        &mut self,
        head: ResponseHead,
        mut pump: Pump,
        mut reader: Reader,
    ) -> Result<Response<ResponseBody>, Miss> {
        let switching = head.status == StatusCode::SWITCHING_PROTOCOLS;
        let (status, headers, length) =
            request::from_link(head).map_err(|_| Miss::cut(Cut::Frames(FrameError::Malformed("head")), false))?;
        let mut parts = Response::new(()).into_parts().0;
        (parts.status, parts.headers) = (status, headers);
        if switching {
            // Boxed: rare, and large.
            return Box::pin(self.switch(parts, pump, reader)).await;
        }
        if !pump.done {
            self.detach(pump, status);
        } else if self.upgrade.is_some() {
            // The offer was declined: the request ends here.
            _ = pump.send.finish();
        }
        let bodiless = is_bodiless(&self.head.method, status);
        // A peer that says nothing more is silent like any other.
        let body = tokio::time::timeout(IDLE, has_body(&mut reader, bodiless)).await;
        let body = body.unwrap_or(Err(Cut::Idle)).map_err(|cut| Miss::cut(cut, false))?;
        let source = match (body, length) {
            (true, _) => Source::Link(Box::new(LinkBody::new(reader, length, self.exchange.clone(), Side::Response))),
            (false, Some(1..)) if !bodiless => return Err(Miss::cut(Cut::Length, false)),
            (false, _) => Source::Empty,
        };
        let announces = bodiless && status == StatusCode::NOT_MODIFIED && length.is_some();
        Ok(self.respond(parts, source, announces))
    }

    /// The response has begun, the request's body has not ended: it goes on in a task of its own, because a client that
    /// does not read the response may well go on sending (gRPC does).
    fn detach(&self, mut pump: Pump, status: StatusCode) {
        let refused = status.is_client_error() || status.is_server_error();
        if refused && self.exchange.request.wanted() == Wanted::NotYet {
            // RFC 9110 section 10.1.1: it was told instead of `100 Continue`, and need not send its body.
            self.exchange.request.stop();
            return;
        }
        self.exchange.request.open();
        if let Some(body) = &mut pump.body {
            body.forget();
        }
        let exchange = Arc::clone(&self.exchange);
        // Detached: ends with the body, or when the response is over (the switch), or when the peer stops the stream, or
        // when it takes nothing more of it: the switch is not looked at while a write waits.
        drop(task::spawn("http_request_body", async move {
            let mut idle = IdleTimer::default();
            tokio::select! {
                _ = pump.run() => {}
                () = idle.expired(&exchange) => {}
            }
        }));
    }

    /// 101: both sides change to another protocol.
    async fn switch(
        &mut self,
        parts: http::response::Parts,
        pump: Pump,
        mut reader: Reader,
    ) -> Result<Response<ResponseBody>, Miss> {
        let out_of_order = || Miss::cut(Cut::Frames(FrameError::OutOfOrder), false);
        let on_upgrade = self.upgrade.take().filter(|_| pump.done).ok_or_else(out_of_order)?;
        let next = tokio::time::timeout(IDLE, reader.next()).await.unwrap_or(Err(Cut::Idle));
        match next.map_err(|cut| Miss::cut(cut, false))? {
            Next::Event(Event::Upgraded) => {}
            Next::Event(_) | Next::End => return Err(out_of_order()),
        }
        let connection = &self.connection;
        let response = self.respond(parts, Source::Empty, false);
        let record = self.exchange.take_record();
        if let Some(record) = record {
            let tunnel = Tunnel { gateway: connection.gateway.clone(), on_upgrade, record };
            connection.set_tunnel(Box::pin(upgrade::to_link(tunnel, pump.send, reader.into_raw())));
        }
        Ok(response)
    }

    fn stream_header(&self) -> Result<Bytes, Miss> {
        let connection = &self.connection;
        let mirror = self.route.mirror();
        let header = StreamHeader {
            service: Some(mirror.service.clone()),
            port: self.route.port(),
            endpoint: mirror.endpoint.clone(),
            source: Some(connection.routed.source.clone()),
            traceparent: crate::http::trace::parent(&self.head.headers),
            deadline: self.left()?,
            path: vec![connection.gateway.own.cluster.clone()],
            attempt: u32::try_from(self.attempt).unwrap_or(u32::MAX),
            client: Some(connection.client),
            ..StreamHeader::new(StreamKind::Http)
        };
        header.encode().map_err(|error| Miss { note: error.to_string(), ..Miss::too_large() })
    }

    /// The HEAD frame; encoded once for all attempts.
    fn head_frame(&mut self) -> Result<Bytes, Miss> {
        if let Some(encoded) = &self.encoded {
            return Ok(encoded.clone());
        }
        let encoded = frames::encode_request_head(&self.head)
            .map_err(|error| Miss { note: error.to_string(), ..Miss::too_large() })?;
        Ok(self.encoded.insert(encoded).clone())
    }
}

impl Miss {
    fn open(error: OpenError) -> Self {
        Self { reply: Reply::refused(error.refusal()), elsewhere: true, note: error.to_string() }
    }

    fn too_large() -> Self {
        Self { reply: Reply::invalid(Invalid::TooLarge), elsewhere: false, note: Outcome::ClientInvalid.to_string() }
    }
}

/// Whether a body follows the head. A response that has none by its nature may still end a moment after its head (HTTP/2
/// backends send END_STREAM in a frame of its own): then its end is waited for.
async fn has_body(reader: &mut Reader, bodiless: bool) -> Result<bool, Cut> {
    if !bodiless {
        return reader.has_body().await;
    }
    match reader.next().await? {
        Next::End => Ok(false),
        Next::Event(_) => Err(Cut::Frames(FrameError::OutOfOrder)),
    }
}

/// Resolves a little after the deadline; never, where there is none.
async fn deadline(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at + DEADLINE_GRACE).await,
        None => std::future::pending().await,
    }
}

/// Sends a request: what was gathered, then the body as it comes, then FIN.
struct Pump {
    send: SendHalf,
    body: Option<ClientBody>,
    /// Gathered and not written yet; of an interrupted write, what is left.
    chunks: Vec<Bytes>,
    /// All of the body is in `chunks`.
    ended: bool,
    /// A FIN belongs behind it. Not behind an offer to upgrade.
    finish: bool,
    /// Everything is written, and the FIN if it belongs there.
    done: bool,
}

impl Pump {
    /// Gathers what is there of the body already, so that it shares the head's packet. `held`: the client sends nothing
    /// before it was told to continue.
    async fn prime(&mut self, held: bool) {
        let heads = self.chunks.len();
        let Some(body) = &mut self.body else {
            self.ended = true;
            return;
        };
        // hyper reads a body only when it is asked for: the first look asks, and the task of the connection answers
        // before this one is polled again.
        for again in [!held, false] {
            let gathered = poll_fn(|cx| Poll::Ready(gather(body, cx, &mut self.chunks, |_| {}))).await;
            match gathered {
                Ok(Gathered::End) => self.ended = true,
                // A cut is found again, and dealt with, by `run`.
                Ok(Gathered::Enough) | Err(_) => {}
                Ok(Gathered::Pending) if again && self.chunks.len() == heads => {
                    tokio::task::yield_now().await;
                    continue;
                }
                Ok(Gathered::Pending) => {}
            }
            break;
        }
        if !self.ended && self.chunks.len() == heads {
            // Tells the other side that there is a body (see `Reader::has_body`).
            self.chunks.push(frames::data_prefix(0));
        }
    }

    /// Sends everything. May be dropped and called again: nothing is lost and nothing is sent twice.
    async fn run(&mut self) -> Result<(), Cut> {
        let result = self.send_all().await;
        if let Err(cut) = &result {
            self.send.reset(cut.refusal());
        }
        result
    }

    async fn send_all(&mut self) -> Result<(), Cut> {
        loop {
            // What an interrupted write has sent is left empty.
            self.chunks.retain(|chunk| !chunk.is_empty());
            if !self.chunks.is_empty() {
                self.send.write_all(&mut self.chunks).await.map_err(Cut::Stream)?;
                self.chunks.clear();
            }
            if self.ended {
                // No await since the last write: data and FIN share a packet.
                if self.finish && !self.done {
                    self.send.finish().map_err(Cut::Stream)?;
                }
                self.done = true;
                return Ok(());
            }
            self.ended = self.more().await? == Gathered::End;
        }
    }

    /// Waits for more of the body.
    async fn more(&mut self) -> Result<Gathered, Cut> {
        let Some(body) = &mut self.body else { return Ok(Gathered::End) };
        // Nothing is asked of the client that could not be sent on.
        self.send.room().await.map_err(Cut::Stream)?;
        let chunks = &mut self.chunks;
        poll_fn(|cx| match gather(body, cx, chunks, |_| {}) {
            Ok(Gathered::Pending) if chunks.is_empty() => Poll::Pending,
            gathered => Poll::Ready(gathered),
        })
        .await
    }
}
