//! Patterns over HTTP/2 and gRPC, by the crate `h2`: what ends without END_STREAM is cut, and for gRPC what ends without a
//! status of 0.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use h2::client::SendRequest;
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderMap, HeaderValue, Request, Response};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::script::{Asked, Heard, Ledger, Protocol, Said, Seat, Shape};
use super::tcp::{listen_to_the_end, talk_to_the_end};

/// Of a stream: half of the largest bodies, so that their writers wait for windows.
const STREAM_WINDOW: u32 = 256 * 1024;

/// Of a connection: those who read slowly stop nobody else.
const CONNECTION_WINDOW: u32 = 16 * 1024 * 1024;

/// Bytes before each gRPC message: a flag and a length.
const PREFIX: usize = 5;

/// How many connections the patterns of each of the two share.
const SHARED: usize = 2;

/// Clients and the connections that they share.
pub(super) struct Clients {
    /// Of HTTP/2 and of gRPC.
    addresses: [SocketAddr; 2],
    shared: Mutex<Vec<SendRequest<Bytes>>>,
    driving: Mutex<JoinSet<()>>,
}

async fn connect(address: SocketAddr) -> Result<(SendRequest<Bytes>, h2::client::Connection<TcpStream>), String> {
    let stream = TcpStream::connect(address).await.map_err(|error| error.to_string())?;
    stream.set_nodelay(true).expect("an open socket");
    let mut builder = h2::client::Builder::new();
    builder.initial_window_size(STREAM_WINDOW).initial_connection_window_size(CONNECTION_WINDOW);
    builder.handshake(stream).await.map_err(|error| error.to_string())
}

impl Clients {
    pub(super) async fn new(addresses: [SocketAddr; 2]) -> Self {
        let mut driving = JoinSet::new();
        let mut shared = Vec::new();
        for address in addresses.into_iter().flat_map(|address| [address; SHARED]) {
            let (sender, connection) = connect(address).await.expect("the gateway listens");
            // It lasts for the whole test: what patterns do to their streams must not end it.
            driving.spawn(async move { connection.await.expect("a connection that all share lasts") });
            shared.push(sender);
        }
        Self { addresses, shared: Mutex::new(shared), driving: Mutex::new(driving) }
    }

    /// Why a shared connection has ended, if one has.
    pub(super) fn ended(&self) -> Option<String> {
        let ended = self.driving.lock().unwrap_or_else(PoisonError::into_inner).try_join_next();
        ended.map(|ended| format!("a shared connection has ended: {ended:?}"))
    }

    /// Plays the client.
    pub(super) async fn play(&self, seat: &Seat) {
        let number = usize::from(is_grpc(seat));
        if seat.pattern().shape != Shape::ClientLeaves {
            let sender = {
                let shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
                shared[number * SHARED + usize::try_from(seat.pattern().id).expect("small") % SHARED].clone()
            };
            return client(seat, sender).await;
        }
        // Its connection goes with it.
        match connect(self.addresses[number]).await {
            Ok((sender, connection)) => {
                tokio::select! {
                    () = client(seat, sender) => seat.said(Said::Left),
                    ended = connection => seat.heard(Heard::Cut(format!("{ended:?}"))),
                }
            }
            Err(error) => seat.heard(Heard::Cut(error)),
        }
    }
}

fn is_grpc(seat: &Seat) -> bool {
    seat.pattern().protocol == Protocol::Grpc
}

async fn client(seat: &Seat, sender: SendRequest<Bytes>) {
    let pattern = seat.pattern();
    let mut request = Request::post(format!("http://patterns/{}", pattern.id));
    if is_grpc(seat) {
        request = request.header("content-type", "application/grpc").header("te", "trailers");
    } else if pattern.announced {
        request = request.header("content-length", pattern.up);
    }
    let request = request.body(()).expect("a request");
    let sent = async { sender.ready().await?.send_request(request, false) };
    let (response, mut send) = match sent.await {
        Ok(sent) => sent,
        Err(error) => return seat.heard(Heard::Cut(error.to_string())),
    };
    let shape = pattern.shape;
    let talk = async {
        let whole = say(seat, &mut send, 0, pattern.says()).await;
        if shape.client_goes() {
            sleep(pattern.pause).await;
        } else if whole && send.send_data(Bytes::new(), true).is_ok() {
            seat.said(Said::Whole);
        }
        if shape == Shape::ClientReset {
            send.send_reset(Reason::CANCEL);
        }
    };
    let listen = async {
        match response.await {
            Ok(response) => take(seat, response).await,
            Err(error) => seat.heard(Heard::Cut(error.to_string())),
        }
    };
    if shape.client_goes() {
        talk_to_the_end(talk, listen).await;
    } else {
        // Behind the end of an answer nobody wants the rest of the request.
        listen_to_the_end(talk, listen).await;
    }
}

/// Reads an answer to its end.
async fn take(seat: &Seat, response: Response<RecvStream>) {
    let (head, mut body) = response.into_parts();
    if let Some(why) = head.headers.get("linkspan-error") {
        return seat.heard(Heard::Refused(format!("{why:?}")));
    }
    if head.status != 200 {
        return seat.wrong(format!("answer {head:?}"));
    }
    let mut messages = Messages::default();
    if !hear(seat, &mut body, &mut messages, u64::MAX).await {
        return;
    }
    let trailers = match body.trailers().await {
        Ok(trailers) => trailers,
        Err(error) => return seat.heard(Heard::Cut(error.to_string())),
    };
    if !body.is_end_stream() {
        return seat.heard(Heard::Cut("reset without an error".to_owned()));
    }
    if is_grpc(seat) {
        let status = trailers.as_ref().and_then(|trailers| trailers.get("grpc-status"));
        match status {
            Some(status) if status == "0" => {}
            Some(_) => return seat.heard(Heard::Cut(format!("{trailers:?}"))),
            None => return seat.wrong("a gRPC answer without a status"),
        }
        if messages.is_within() {
            return seat.wrong("a gRPC answer that ends well within a message");
        }
    }
    seat.heard(Heard::Whole);
}

/// gRPC messages, taken apart.
#[derive(Default)]
struct Messages {
    prefix: Vec<u8>,
    left: usize,
}

impl Messages {
    fn is_within(&self) -> bool {
        self.left > 0 || !self.prefix.is_empty()
    }

    fn take(&mut self, seat: &Seat, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.left == 0 {
                let (prefix, rest) = bytes.split_at(bytes.len().min(PREFIX - self.prefix.len()));
                self.prefix.extend_from_slice(prefix);
                bytes = rest;
                if let Some([0, length @ ..]) = self.prefix.first_chunk::<PREFIX>() {
                    self.left = u32::from_be_bytes(*length) as usize;
                    self.prefix.clear();
                } else if self.prefix.len() == PREFIX {
                    return seat.wrong(format!("no gRPC message begins with {:?}", self.prefix));
                }
                continue;
            }
            let (payload, rest) = bytes.split_at(bytes.len().min(self.left));
            seat.read(payload);
            self.left -= payload.len();
            bytes = rest;
        }
    }
}

/// Reads until the body ends, or the seat has read `until` bytes. `false` where it was cut, which the seat has heard then.
async fn hear(seat: &Seat, body: &mut RecvStream, messages: &mut Messages, until: u64) -> bool {
    // Frames may be small: it is bytes that are waited for.
    let mut waits_at = 0;
    while seat.has_read() < until {
        if let Some((bytes, wait)) = seat.slowly()
            && seat.has_read() >= waits_at
        {
            waits_at = seat.has_read() + bytes as u64;
            sleep(wait).await;
        }
        match body.data().await {
            Some(Ok(data)) => {
                if is_grpc(seat) {
                    messages.take(seat, &data);
                } else {
                    seat.read(&data);
                }
                // Fails only on a stream that is no more.
                drop(body.flow_control().release_capacity(data.len()));
            }
            Some(Err(error)) => {
                seat.heard(Heard::Cut(error.to_string()));
                return false;
            }
            None => break,
        }
    }
    true
}

/// Says the bytes between two places; whether they were all taken.
async fn say(seat: &Seat, send: &mut SendStream<Bytes>, begin: u64, end: u64) -> bool {
    let mut said = begin;
    while let Some(piece) = seat.piece(said, end) {
        said += piece.len() as u64;
        seat.wrote(piece.len());
        let bytes = if is_grpc(seat) {
            let length = u32::try_from(piece.len()).expect("small");
            [&[0][..], &length.to_be_bytes(), &piece].concat()
        } else {
            piece
        };
        let mut bytes = Bytes::from(bytes);
        while !bytes.is_empty() {
            send.reserve_capacity(bytes.len());
            let Some(Ok(room)) = std::future::poll_fn(|cx| send.poll_capacity(cx)).await else { return false };
            let part = bytes.split_to(room.min(bytes.len()));
            if send.send_data(part, false).is_err() {
                return false;
            }
        }
    }
    true
}

/// Plays all backends.
pub(super) async fn backend(ledger: Arc<Ledger>, listener: TcpListener) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            Ok((stream, _)) = listener.accept() => {
                stream.set_nodelay(true).expect("an open socket");
                connections.spawn(serve(Arc::clone(&ledger), stream));
            }
            Some(served) = connections.join_next() => served.expect("a backend"),
        }
    }
}

async fn serve(ledger: Arc<Ledger>, stream: TcpStream) {
    let mut builder = h2::server::Builder::new();
    builder.initial_window_size(STREAM_WINDOW).initial_connection_window_size(CONNECTION_WINDOW);
    let Ok(mut connection) = builder.handshake::<_, Bytes>(stream).await else { return };
    let mut serving = JoinSet::new();
    loop {
        tokio::select! {
            request = connection.accept() => {
                let Some(Ok((request, respond))) = request else { break };
                let id = request.uri().path().trim_start_matches('/').parse().ok();
                let asked = id.and_then(|id| ledger.asked(id));
                let asked = asked.unwrap_or_else(|| panic!("asked for {}", request.uri()));
                serving.spawn(act(asked, request.into_body(), respond));
            }
            Some(served) = serving.join_next() => served.expect("a backend"),
        }
    }
    // Their streams have ended with the connection.
    while let Some(served) = serving.join_next().await {
        served.expect("a backend");
    }
}

async fn act(asked: Asked, mut body: RecvStream, mut respond: SendResponse<Bytes>) {
    let Asked(seat) = &asked;
    let pattern = seat.pattern();
    let mut messages = Messages::default();
    if pattern.shape.is_duplex() {
        let half = pattern.first_half();
        let beginning = begin(seat, &mut respond, half);
        let (whole, begun) = tokio::join!(hear_all(seat, &mut body, &mut messages), beginning);
        if let Some(mut send) = begun
            && whole
        {
            finish(seat, &mut send, half).await;
        }
        return;
    }
    if pattern.shape.is_whole() {
        if !hear_all(seat, &mut body, &mut messages).await {
            return;
        }
    } else if !hear(seat, &mut body, &mut messages, pattern.backend_reads).await {
        return;
    }
    let reason = if pattern.shape == Shape::BackendReset { Reason::INTERNAL_ERROR } else { Reason::NO_ERROR };
    if pattern.shape.backend_breaks() && pattern.headless {
        sleep(pattern.pause).await;
        respond.send_reset(reason);
        return;
    }
    let Some(mut send) = begin(seat, &mut respond, pattern.answers()).await else { return };
    if pattern.shape.backend_breaks() {
        sleep(pattern.pause).await;
        send.send_reset(reason);
        return;
    }
    finish(seat, &mut send, pattern.answers()).await;
    if pattern.shape == Shape::Early {
        hear_all(seat, &mut body, &mut messages).await;
    }
}

/// Reads a request to its end.
async fn hear_all(seat: &Seat, body: &mut RecvStream, messages: &mut Messages) -> bool {
    if !hear(seat, body, messages, u64::MAX).await {
        return false;
    }
    let whole = body.is_end_stream();
    seat.heard(if whole { Heard::Whole } else { Heard::Cut("reset without an error".to_owned()) });
    if whole && messages.is_within() {
        seat.wrong("a request that ends well within a gRPC message");
    }
    whole
}

/// The head of an answer and the first bytes of its body; `None` where they were not taken.
async fn begin(seat: &Seat, respond: &mut SendResponse<Bytes>, until: u64) -> Option<SendStream<Bytes>> {
    let pattern = seat.pattern();
    let mut response = Response::builder();
    if is_grpc(seat) {
        response = response.header("content-type", "application/grpc");
    } else if pattern.announced {
        response = response.header("content-length", pattern.down);
    }
    let mut send = respond.send_response(response.body(()).expect("a response"), false).ok()?;
    say(seat, &mut send, 0, until).await.then_some(send)
}

/// The rest of an answer, and its end.
async fn finish(seat: &Seat, send: &mut SendStream<Bytes>, from: u64) {
    if !say(seat, send, from, seat.pattern().down).await {
        return;
    }
    let ended = if is_grpc(seat) {
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", HeaderValue::from_static("0"));
        send.send_trailers(trailers)
    } else {
        send.send_data(Bytes::new(), true)
    };
    if ended.is_ok() {
        seat.said(Said::Whole);
    }
}
