//! Patterns over HTTP/1.1, byte by byte: what ends short of its length or its last chunk is cut.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::script::{Asked, Heard, Ledger, Said, Seat, Shape};
use super::tcp::{connect, listen_to_the_end, talk_to_the_end};

/// Heads of both ends are a few hundred bytes.
const HEAD: usize = 16 * 1024;

/// A connection.
pub(super) struct Connection {
    read: Reader,
    write: OwnedWriteHalf,
}

/// What is read from a connection.
struct Reader {
    io: OwnedReadHalf,
    buffer: Vec<u8>,
}

/// Where a body ends.
enum Body {
    Length(u64),
    Chunked,
    /// Behind the last byte of a chunk, or all, nothing more comes.
    Over,
}

/// The lines of a head, without the empty one.
struct Head(Vec<String>);

impl Connection {
    fn new(stream: TcpStream) -> Self {
        let (read, write) = stream.into_split();
        Self { read: Reader { io: read, buffer: Vec::new() }, write }
    }

    fn reset(self) {
        self.write.as_ref().set_zero_linger().expect("an open socket");
    }
}

impl Head {
    fn field(&self, name: &str) -> Option<&str> {
        self.0.iter().skip(1).find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }

    fn word(&self, number: usize) -> &str {
        self.0.first().and_then(|line| line.split(' ').nth(number)).unwrap_or_default()
    }

    fn body(&self) -> Result<Body, String> {
        let chunked = self.field("transfer-encoding").is_some_and(|value| value == "chunked");
        match (chunked, self.field("content-length")) {
            (true, None) => Ok(Body::Chunked),
            (false, Some(length)) => length.parse().map(Body::Length).map_err(|_| format!("length {length}")),
            (true, Some(_)) => Err(format!("two lengths: {:?}", self.0)),
            // Neither end of ours lets a body run to the end of its connection.
            (false, None) => Ok(Body::Length(0)),
        }
    }
}

impl Reader {
    /// Takes more off the socket; at most so many bytes.
    async fn more(&mut self, most: usize) -> io::Result<usize> {
        let mut piece = vec![0; most];
        let count = self.io.read(&mut piece).await?;
        self.buffer.extend_from_slice(&piece[..count]);
        Ok(count)
    }

    /// The next head; `None` where the connection has ended in order before its first byte.
    async fn head(&mut self) -> Result<Option<Head>, String> {
        loop {
            if let Some(end) = self.buffer.windows(4).position(|four| four == b"\r\n\r\n") {
                let text = String::from_utf8_lossy(&self.buffer[..end]).into_owned();
                self.buffer.drain(..end + 4);
                return Ok(Some(Head(text.split("\r\n").map(str::to_owned).collect())));
            }
            if self.buffer.len() > HEAD {
                return Err("a head without end".to_owned());
            }
            match self.more(4_096).await {
                Ok(0) if self.buffer.is_empty() => return Ok(None),
                Ok(0) => return Err("the end within a head".to_owned()),
                Ok(_) => {}
                Err(error) => return Err(error.to_string()),
            }
        }
    }

    /// A line of the chunked coding.
    async fn line(&mut self) -> Result<String, String> {
        loop {
            if let Some(end) = self.buffer.windows(2).position(|two| two == b"\r\n") {
                let line = String::from_utf8_lossy(&self.buffer[..end]).into_owned();
                self.buffer.drain(..end + 2);
                return Ok(line);
            }
            self.fill(4_096).await?;
        }
    }

    /// More bytes of a message that has not ended.
    async fn fill(&mut self, most: usize) -> Result<(), String> {
        match self.more(most).await {
            Ok(0) => Err("the end within a body".to_owned()),
            Ok(_) => Ok(()),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Hands `length` bytes to the seat, or until it has `until` in all; says how many.
    async fn pass(&mut self, seat: &Seat, length: u64, until: u64) -> Result<u64, String> {
        let mut left = length;
        while left > 0 && seat.has_read() < until {
            if self.buffer.is_empty() {
                let (most, wait) = seat.slowly().unwrap_or((65_536, std::time::Duration::ZERO));
                if !wait.is_zero() {
                    sleep(wait).await;
                }
                self.fill(most).await?;
            }
            let wanted = usize::try_from(left.min(until - seat.has_read())).expect("small");
            let count = self.buffer.len().min(wanted);
            seat.read(&self.buffer[..count]);
            self.buffer.drain(..count);
            left -= count as u64;
        }
        Ok(length - left)
    }

    /// Reads a body until its end or until the seat has read `until` bytes. `body` says what is left of it.
    async fn body(&mut self, seat: &Seat, body: &mut Body, until: u64) -> Result<(), String> {
        loop {
            match body {
                Body::Over => return Ok(()),
                Body::Length(0) => {
                    *body = Body::Over;
                    seat.heard(Heard::Whole);
                }
                _ if seat.has_read() >= until => return Ok(()),
                Body::Length(left) => *left -= self.pass(seat, *left, until).await?,
                Body::Chunked => {
                    let line = self.line().await?;
                    let size = u64::from_str_radix(&line, 16).map_err(|_| format!("chunk of size {line:?}"))?;
                    if size > 0 {
                        // Chunks are read whole: `until` is a place to stop at, and not a promise.
                        self.pass(seat, size, u64::MAX).await?;
                    }
                    if !self.line().await?.is_empty() {
                        return Err("no line's end behind a chunk".to_owned());
                    }
                    if size == 0 {
                        *body = Body::Length(0);
                    }
                }
            }
        }
    }
}

/// Says the bytes of a body between two places; whether they were all taken.
async fn say(seat: &Seat, write: &mut OwnedWriteHalf, begin: u64, end: u64, chunked: bool) -> bool {
    let mut said = begin;
    while let Some(piece) = seat.piece(said, end) {
        // Counted before: of a piece that is broken off some bytes may have gone.
        seat.wrote(piece.len());
        let mut bytes = Vec::with_capacity(piece.len() + 16);
        if chunked {
            bytes.extend_from_slice(format!("{:x}\r\n", piece.len()).as_bytes());
        }
        bytes.extend_from_slice(&piece);
        if chunked {
            bytes.extend_from_slice(b"\r\n");
        }
        if write.write_all(&bytes).await.is_err() {
            return false;
        }
        said += piece.len() as u64;
    }
    true
}

/// Ends a body that was said in full; whether that was taken.
async fn end(seat: &Seat, write: &mut OwnedWriteHalf, chunked: bool) -> bool {
    let ended = !chunked || write.write_all(b"0\r\n\r\n").await.is_ok();
    if ended {
        seat.said(Said::Whole);
    }
    ended
}

/// Clients, with the connections that may be used again.
#[derive(Default)]
pub(super) struct Clients {
    idle: Mutex<Vec<Connection>>,
}

impl Clients {
    /// Plays the client.
    pub(super) async fn play(&self, seat: &Seat, address: SocketAddr) {
        let shape = seat.pattern().shape;
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut connection = match idle.filter(|_| seat.slowly().is_none()) {
            Some(idle) => idle,
            None => match connect(seat, address).await {
                Ok(stream) => Connection::new(stream),
                Err(error) => return seat.heard(Heard::Cut(error.to_string())),
            },
        };
        let Connection { read, write } = &mut connection;
        let (asked, again) = (AtomicBool::new(false), AtomicBool::new(false));
        let talk = async { asked.store(ask(seat, write).await, Ordering::Relaxed) };
        let listen = async { again.store(take(seat, read).await, Ordering::Relaxed) };
        if shape.client_goes() {
            talk_to_the_end(talk, listen).await;
            if shape == Shape::ClientReset {
                connection.reset();
            } else {
                seat.said(Said::Left);
            }
            return;
        }
        // Behind the end of an answer nobody wants the rest of the request.
        listen_to_the_end(talk, listen).await;
        // Behind an early answer the gateway may close: it has not read the rest of the request, although all of that was sent.
        if again.into_inner() && asked.into_inner() && shape.is_whole() {
            self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(connection);
        }
    }
}

/// The request. Safe methods may be sent twice, over a connection that has gone stale (RFC 9110 section 9.2.2): these are
/// not. Whether it was taken in full.
async fn ask(seat: &Seat, write: &mut OwnedWriteHalf) -> bool {
    let pattern = seat.pattern();
    let chunked = !pattern.announced;
    let length =
        if chunked { "transfer-encoding: chunked".to_owned() } else { format!("content-length: {}", pattern.up) };
    let head = format!("POST /{} HTTP/1.1\r\nhost: patterns\r\n{length}\r\n\r\n", pattern.id);
    if write.write_all(head.as_bytes()).await.is_err() {
        return false;
    }
    let whole = say(seat, write, 0, pattern.says(), chunked).await;
    if pattern.shape.client_goes() {
        sleep(pattern.pause).await;
        return false;
    }
    whole && end(seat, write, chunked).await
}

/// The answer; whether the connection is good for another request.
async fn take(seat: &Seat, read: &mut Reader) -> bool {
    let head = match read.head().await {
        Ok(Some(head)) => head,
        Ok(None) => {
            seat.heard(Heard::Cut("the end instead of an answer".to_owned()));
            return false;
        }
        Err(error) => {
            seat.heard(Heard::Cut(error));
            return false;
        }
    };
    if let Some(why) = head.field("linkspan-error") {
        seat.heard(Heard::Refused(why.to_owned()));
        return false;
    }
    if head.word(1) != "200" {
        seat.wrong(format!("answer {:?}", head.0));
        return false;
    }
    let taken = async { read.body(seat, &mut head.body()?, u64::MAX).await };
    match taken.await {
        Ok(()) => head.field("connection").is_none_or(|value| value != "close"),
        Err(error) => {
            seat.heard(Heard::Cut(error));
            false
        }
    }
}

/// Plays all backends.
pub(super) async fn backend(ledger: Arc<Ledger>, listener: TcpListener) {
    let mut serving = JoinSet::new();
    loop {
        tokio::select! {
            Ok((stream, _)) = listener.accept() => {
                stream.set_nodelay(true).expect("an open socket");
                serving.spawn(serve(Arc::clone(&ledger), Connection::new(stream)));
            }
            Some(served) = serving.join_next() => served.expect("a backend"),
        }
    }
}

/// What becomes of a connection behind an answer.
enum Then {
    Again,
    Close,
    Reset,
}

async fn serve(ledger: Arc<Ledger>, mut connection: Connection) {
    loop {
        // A request that is cut in its head was not asked for.
        let Ok(Some(head)) = connection.read.head().await else { return };
        let id = head.word(1).trim_start_matches('/').parse().ok();
        let asked = id.and_then(|id| ledger.asked(id));
        let asked = asked.unwrap_or_else(|| panic!("asked for {:?}", head.0));
        let then = act(&asked, &mut connection, &head).await;
        match then {
            Then::Again => {}
            Then::Close => return,
            Then::Reset => return connection.reset(),
        }
    }
}

async fn act(Asked(seat): &Asked, connection: &mut Connection, head: &Head) -> Then {
    let pattern = seat.pattern();
    let Connection { read, write } = connection;
    let mut body = match head.body() {
        Ok(body) => body,
        Err(error) => {
            seat.wrong(error);
            return Then::Close;
        }
    };
    let hear = async |read: &mut Reader, body: &mut Body, until: u64| {
        let heard = read.body(seat, body, until).await;
        heard.map_err(|error| seat.heard(Heard::Cut(error))).is_ok()
    };
    if pattern.shape.is_duplex() {
        let half = pattern.first_half();
        let (whole, begun) = tokio::join!(hear(read, &mut body, u64::MAX), begin(seat, write, half));
        return if whole && begun && finish(seat, write, half).await { Then::Again } else { Then::Close };
    }
    let until = if pattern.shape.is_whole() { u64::MAX } else { pattern.backend_reads };
    if !hear(read, &mut body, until).await {
        return Then::Close;
    }
    if pattern.shape.backend_breaks() && pattern.headless {
        return broken_off(seat, read, write).await;
    }
    answer(seat, write).await;
    match pattern.shape {
        Shape::BackendReset | Shape::BackendCuts => broken_off(seat, read, write).await,
        Shape::EarlyClose => Then::Close,
        _ if hear(read, &mut body, u64::MAX).await => Then::Again,
        _ => Then::Close,
    }
}

/// Ends the connection in the middle of things.
async fn broken_off(seat: &Seat, read: &mut Reader, write: &mut OwnedWriteHalf) -> Then {
    sleep(seat.pattern().pause).await;
    if seat.pattern().shape == Shape::BackendReset {
        return Then::Reset;
    }
    // Whatever is said after that is read, or the kernel would make a reset of it.
    if write.shutdown().await.is_ok() {
        while read.more(65_536).await.is_ok_and(|count| count > 0) {}
    }
    Then::Close
}

/// The answer, as far as it goes.
async fn answer(seat: &Seat, write: &mut OwnedWriteHalf) {
    let answers = seat.pattern().answers();
    if begin(seat, write, answers).await && !seat.pattern().shape.backend_breaks() {
        finish(seat, write, answers).await;
    }
}

/// The head of an answer and the first bytes of its body.
async fn begin(seat: &Seat, write: &mut OwnedWriteHalf, until: u64) -> bool {
    let pattern = seat.pattern();
    let length = if pattern.announced {
        format!("content-length: {}", pattern.down)
    } else {
        "transfer-encoding: chunked".to_owned()
    };
    // Who closes says so, or the next request on the connection would meet that.
    let close = if pattern.shape == Shape::EarlyClose { "connection: close\r\n" } else { "" };
    let head = format!("HTTP/1.1 200 OK\r\n{close}{length}\r\n\r\n");
    write.write_all(head.as_bytes()).await.is_ok() && say(seat, write, 0, until, !pattern.announced).await
}

/// The rest of an answer.
async fn finish(seat: &Seat, write: &mut OwnedWriteHalf, from: u64) -> bool {
    let chunked = !seat.pattern().announced;
    say(seat, write, from, seat.pattern().down, chunked).await && end(seat, write, chunked).await
}
