use std::sync::Mutex;

use tokio::io::DuplexStream;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::*;
use crate::outcome::{Direction, Entry, Protocol, Recorder};

/// What one half says to the other.
enum Frame {
    Data(Bytes),
    Fin,
    Reset(Refusal),
}

/// A sending half in memory, with a window of a few chunks.
struct Sender {
    frames: mpsc::Sender<Frame>,
    stopped: watch::Receiver<Option<Refusal>>,
    ended: bool,
}

/// A receiving half in memory.
struct Receiver {
    frames: mpsc::Receiver<Frame>,
    stop: watch::Sender<Option<Refusal>>,
}

fn stream() -> (Sender, Receiver) {
    let (frames, received) = mpsc::channel(4);
    let (stop, stopped) = watch::channel(None);
    (Sender { frames, stopped, ended: false }, Receiver { frames: received, stop })
}

impl SendSide for Sender {
    async fn write(&mut self, chunk: Bytes) -> Result<(), StreamError> {
        let stopped = *self.stopped.borrow();
        if let Some(why) = stopped {
            return Err(StreamError::Stopped(why));
        }
        self.frames.send(Frame::Data(chunk)).await.map_err(|_| StreamError::LinkLost)
    }

    fn finish(&mut self) -> Result<(), StreamError> {
        assert!(!self.ended, "ended twice");
        self.ended = true;
        self.frames.try_send(Frame::Fin).map_err(|_| StreamError::LinkLost)
    }

    fn reset(&mut self, why: Refusal) {
        self.ended = true;
        // Nobody may be left to hear it.
        drop(self.frames.try_send(Frame::Reset(why)));
    }

    async fn stopped(&mut self) -> Option<Refusal> {
        match self.stopped.wait_for(Option::is_some).await {
            Ok(why) => *why,
            Err(_) => None,
        }
    }
}

impl RecvSide for Receiver {
    async fn read(&mut self, _max: usize) -> Result<Option<Bytes>, StreamError> {
        match self.frames.recv().await {
            Some(Frame::Data(chunk)) => Ok(Some(chunk)),
            Some(Frame::Fin) => Ok(None),
            Some(Frame::Reset(why)) => Err(StreamError::Reset(why)),
            None => Err(StreamError::LinkLost),
        }
    }

    fn stop(&mut self, why: Refusal) {
        self.stop.send_replace(Some(why));
    }
}

#[derive(Default)]
struct Totals(Mutex<(u64, u64, usize)>);

impl Recorder for Totals {
    fn begin(&self, _entry: &Entry) {}

    fn progress(&self, _entry: &Entry, received: u64, sent: u64) {
        let mut totals = self.0.lock().expect("lock");
        totals.0 += received;
        totals.1 += sent;
        totals.2 += 1;
    }

    fn end(&self, _entry: &Entry, _outcome: Outcome, _elapsed: Duration) {}
}

/// A relay under test: the socket's other end, and the stream's other ends.
struct Rig {
    socket: DuplexStream,
    /// Gets what the relay sends on the stream.
    from_relay: Receiver,
    /// Feeds what the relay reads from the stream.
    to_relay: Sender,
    totals: std::sync::Arc<Totals>,
    outcome: tokio::task::JoinHandle<Outcome>,
}

const IDLE: Duration = Duration::from_secs(60);

fn bounds(drain: &Signal) -> Bounds<'_> {
    Bounds { idle: IDLE, drain, review: None }
}

fn rig(side: Socket, drain: Signal) -> Rig {
    let (socket, mut io) = tokio::io::duplex(16 * 1024);
    let (mut send, from_relay) = stream();
    let (to_relay, mut recv) = stream();
    let totals = std::sync::Arc::new(Totals::default());
    let recorder = std::sync::Arc::clone(&totals);
    let outcome = tokio::spawn(async move {
        let mut record = Record::open(recorder, Entry::new(Direction::Outbound, Protocol::Tcp));
        let outcome = relay(&mut io, side, &mut send, &mut recv, bounds(&drain), &mut record).await;
        record.finish(outcome);
        outcome
    });
    Rig { socket, from_relay, to_relay, totals, outcome }
}

impl Rig {
    fn client() -> Self {
        rig(Socket::Client, Signal::never())
    }

    fn backend() -> Self {
        rig(Socket::Backend, Signal::never())
    }

    async fn outcome(self) -> Outcome {
        self.outcome.await.expect("no panic")
    }
}

async fn text(recv: &mut Receiver) -> String {
    match recv.read(usize::MAX).await {
        Ok(Some(chunk)) => String::from_utf8(chunk.to_vec()).expect("text"),
        Ok(None) => "FIN".to_owned(),
        Err(error) => error.to_string(),
    }
}

#[tokio::test(start_paused = true)]
async fn each_direction_ends_by_itself() {
    let mut rig = Rig::client();
    rig.socket.write_all(b"question").await.expect("write");
    assert_eq!(text(&mut rig.from_relay).await, "question");
    rig.socket.shutdown().await.expect("fin");
    assert_eq!(text(&mut rig.from_relay).await, "FIN");
    // The other direction lives on, for longer than any round trip.
    tokio::time::sleep(Duration::from_secs(30)).await;
    rig.to_relay.write("answer".into()).await.expect("write");
    let mut answer = [0; 6];
    rig.socket.read_exact(&mut answer).await.expect("answer");
    assert_eq!(&answer, b"answer");
    rig.to_relay.finish().expect("fin");
    let mut rest = Vec::new();
    rig.socket.read_to_end(&mut rest).await.expect("fin");
    assert!(rest.is_empty());
    let totals = std::sync::Arc::clone(&rig.totals);
    assert_eq!(rig.outcome().await, Outcome::Ok);
    let totals = totals.0.lock().expect("lock");
    assert_eq!((totals.0, totals.1), (8, 6));
}

#[tokio::test(start_paused = true)]
async fn counts_are_from_the_callers_view_at_both_ends() {
    let mut rig = Rig::backend();
    rig.to_relay.write("question".into()).await.expect("write");
    rig.to_relay.finish().expect("fin");
    rig.socket.write_all(b"answer!").await.expect("write");
    rig.socket.shutdown().await.expect("fin");
    assert_eq!(text(&mut rig.from_relay).await, "answer!");
    assert_eq!(text(&mut rig.from_relay).await, "FIN");
    let mut question = String::new();
    rig.socket.read_to_string(&mut question).await.expect("question");
    let totals = std::sync::Arc::clone(&rig.totals);
    assert_eq!(rig.outcome().await, Outcome::Ok);
    let totals = totals.0.lock().expect("lock");
    assert_eq!((totals.0, totals.1), (8, 7));
}

#[tokio::test(start_paused = true)]
async fn a_reset_from_the_peer_is_never_a_clean_end() {
    for why in [Refusal::BackendReset, Refusal::Cancelled, Refusal::Draining] {
        let mut rig = Rig::client();
        rig.to_relay.write("tor".into()).await.expect("write");
        rig.to_relay.reset(why);
        // Our own direction is cut as well.
        assert_eq!(text(&mut rig.from_relay).await, "the peer reset the stream: cancelled");
        assert_eq!(rig.outcome().await, Outcome::Refused(why));
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_left_is_told_to_the_backends_side_as_that() {
    let mut rig = Rig::backend();
    rig.to_relay.reset(Refusal::Cancelled);
    assert_eq!(rig.outcome().await, Outcome::ClientGone);
}

#[tokio::test(start_paused = true)]
async fn a_lost_link_is_never_a_clean_end() {
    let rig = Rig::client();
    let Rig { to_relay, outcome, .. } = rig;
    drop(to_relay);
    assert_eq!(outcome.await.expect("no panic"), Outcome::LinkLost);
}

/// A socket whose reads fail once its data is out, as after a RST.
struct Broken(&'static [u8]);

impl AsyncRead for Broken {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
        buf: &mut tokio::io::ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.0.is_empty() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        buf.put_slice(self.0);
        self.0 = b"";
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Broken {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, _: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[tokio::test(start_paused = true)]
async fn a_socket_that_is_cut_resets_the_stream_behind_its_last_bytes() {
    for (side, why, expected) in [
        (Socket::Client, "cancelled", Outcome::ClientGone),
        (Socket::Backend, "backend_reset", Outcome::Refused(Refusal::BackendReset)),
    ] {
        let (mut send, mut from_relay) = stream();
        let (_to_relay, mut recv) = stream();
        let recorder = std::sync::Arc::new(Totals::default());
        let mut record = Record::open(recorder, Entry::new(Direction::Outbound, Protocol::Tcp));
        let drain = Signal::never();
        let outcome = relay(&mut Broken(b"last"), side, &mut send, &mut recv, bounds(&drain), &mut record).await;
        assert_eq!(outcome, expected);
        assert_eq!(text(&mut from_relay).await, "last");
        assert_eq!(text(&mut from_relay).await, format!("the peer reset the stream: {why}"));
    }
}

#[tokio::test(start_paused = true)]
async fn a_service_may_answer_in_full_without_reading_everything() {
    let mut rig = Rig::client();
    rig.from_relay.stop(Refusal::BackendReset);
    rig.to_relay.write("413, and that is all".into()).await.expect("write");
    rig.to_relay.finish().expect("fin");
    // The client still talks; its answer must not be torn by that.
    rig.socket.write_all(&[0; 4096]).await.expect("write");
    let mut answer = String::new();
    rig.socket.read_to_string(&mut answer).await.expect("whole");
    assert_eq!(answer, "413, and that is all");
    drop(rig.socket);
    assert_eq!(rig.outcome.await.expect("no panic"), Outcome::Ok);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_talks_on_is_not_listened_to_for_ever() {
    let mut rig = Rig::client();
    rig.from_relay.stop(Refusal::BackendReset);
    rig.to_relay.finish().expect("fin");
    let began = Instant::now();
    let Rig { mut socket, outcome, to_relay, from_relay, .. } = rig;
    let talk = tokio::spawn(async move {
        while socket.write_all(&[0; 1024]).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(10)).await
        }
    });
    assert_eq!(outcome.await.expect("no panic"), Outcome::Ok);
    assert_eq!(began.elapsed(), LINGER);
    talk.await.expect("no panic");
    drop((to_relay, from_relay));
}

#[tokio::test(start_paused = true)]
async fn silence_ends_it_with_a_reset() {
    let mut rig = Rig::client();
    let began = Instant::now();
    rig.socket.write_all(b"x").await.expect("write");
    assert_eq!(text(&mut rig.from_relay).await, "x");
    assert_eq!(text(&mut rig.from_relay).await, "the peer reset the stream: idle");
    assert_eq!(began.elapsed(), IDLE);
    assert_eq!(rig.outcome().await, Outcome::Idle);
}

#[tokio::test(start_paused = true)]
async fn a_byte_now_and_then_keeps_it_alive_and_is_told_soon() {
    let mut rig = Rig::client();
    for round in 1..=5_u64 {
        tokio::time::sleep(IDLE - Duration::from_secs(2)).await;
        rig.socket.write_all(b"x").await.expect("write");
        assert_eq!(text(&mut rig.from_relay).await, "x");
        tokio::time::sleep(Duration::from_millis(1_500)).await;
        assert_eq!(rig.totals.0.lock().expect("lock").0, round, "told within two seconds");
    }
    rig.outcome.abort();
}

#[tokio::test(start_paused = true)]
async fn a_silent_connection_has_one_timer() {
    let rig = Rig::client();
    tokio::time::sleep(IDLE - Duration::from_secs(1)).await;
    assert_eq!(rig.totals.0.lock().expect("lock").2, 0, "nothing was told");
    assert_eq!(rig.outcome().await, Outcome::Idle);
}

#[tokio::test(start_paused = true)]
async fn a_slow_reader_holds_the_sender_back() {
    let mut rig = Rig::client();
    // Nobody reads the stream: its window of 4 chunks, one chunk in the relay, and the socket's buffer of 16 KiB fill up.
    let flood = async { while rig.socket.write(&[7; 1024]).await.is_ok() {} };
    assert!(tokio::time::timeout(Duration::from_secs(5), flood).await.is_err(), "the writer is held back");
    // And all of it arrives when somebody reads.
    let mut total = 0;
    rig.socket.shutdown().await.expect("fin");
    while let Ok(Some(chunk)) = rig.from_relay.read(usize::MAX).await {
        assert!(chunk.iter().all(|byte| *byte == 7));
        total += chunk.len();
    }
    assert!((16 * 1024..=200 * 1024).contains(&total), "{total}");
    rig.to_relay.finish().expect("fin");
    assert_eq!(rig.outcome().await, Outcome::Ok);
}

#[tokio::test(start_paused = true)]
async fn the_end_of_the_drain_cuts() {
    let (drain, signal) = linkspan_runtime::drain::Drain::new();
    let mut rig = rig(Socket::Client, signal);
    tokio::time::sleep(Duration::from_secs(1)).await;
    drop(drain);
    assert_eq!(text(&mut rig.from_relay).await, "the peer reset the stream: cancelled");
    assert_eq!(rig.outcome().await, Outcome::Drained);
}

#[tokio::test]
async fn large_transfers_arrive_as_they_were_sent() {
    let Rig { socket, mut from_relay, mut to_relay, outcome, .. } = Rig::client();
    let pattern: Vec<u8> = (0..3_000_000_u32).map(|index| (index % 251) as u8).collect();
    let (mut read, mut write) = tokio::io::split(socket);
    let (up, down) = (pattern.clone(), pattern.clone());
    let upload = tokio::spawn(async move {
        write.write_all(&up).await.expect("write");
        write.shutdown().await.expect("fin");
    });
    let received = tokio::spawn(async move {
        let mut received = Vec::new();
        while let Ok(Some(chunk)) = from_relay.read(usize::MAX).await {
            received.extend_from_slice(&chunk);
        }
        received
    });
    let download = tokio::spawn(async move {
        for chunk in down.chunks(100_000) {
            to_relay.write(Bytes::copy_from_slice(chunk)).await.expect("write");
        }
        // The window may be full: the FIN waits like data.
        while to_relay.frames.capacity() == 0 {
            tokio::task::yield_now().await;
        }
        to_relay.finish().expect("fin");
    });
    let mut answer = Vec::new();
    read.read_to_end(&mut answer).await.expect("whole");
    assert!(answer == pattern);
    assert!(received.await.expect("no panic") == pattern);
    upload.await.expect("no panic");
    download.await.expect("no panic");
    assert_eq!(outcome.await.expect("no panic"), Outcome::Ok);
}

/// A policy that denies, or an export that goes, ends what runs: silent, at its next byte.
#[tokio::test(start_paused = true)]
async fn what_is_no_longer_allowed_is_cut_when_it_moves() {
    use arc_swap::ArcSwap;

    use crate::remote::tests::{admitted_to, denying, web_at};

    for after in [denying(), crate::route::RouteTable::empty(crate::remote::tests::own())] {
        let table = ArcSwap::from_pointee(web_at(&[]));
        let admitted = admitted_to(&table.load());
        let (mut socket, mut io) = tokio::io::duplex(1024);
        let (mut send, mut from_relay) = stream();
        let (_to_relay, mut recv) = stream();
        let (drain, refusal) = (Signal::never(), review_of(&after, &admitted));
        let review = Some(Review { table: &table, admitted: &admitted });
        let bounds = Bounds { idle: IDLE, drain: &drain, review };
        let mut record =
            Record::open(std::sync::Arc::new(Totals::default()), Entry::new(Direction::Inbound, Protocol::Tcp));
        let running = relay(&mut io, Socket::Backend, &mut send, &mut recv, bounds, &mut record);
        let (outcome, told) = tokio::join!(running, async {
            socket.write_all(b"allowed").await.expect("write");
            tokio::time::sleep(2 * TELL_EVERY).await;
            table.store(std::sync::Arc::new(after));
            tokio::time::sleep(10 * TELL_EVERY).await;
            // A denial at the first byte, an export that is gone when it stays so.
            for _ in 0..4 {
                if socket.write_all(b"late").await.is_err() {
                    break;
                }
                tokio::time::sleep(TELL_EVERY).await;
                while let Ok(frame) = from_relay.frames.try_recv() {
                    if let Frame::Reset(why) = frame {
                        return Some(why);
                    }
                }
            }
            None
        });
        assert_eq!(outcome, Outcome::Refused(refusal));
        assert_eq!(told, Some(refusal), "the peer is told why");
    }
}

fn review_of(table: &crate::route::RouteTable, admitted: &crate::remote::Admitted) -> Refusal {
    let table = arc_swap::ArcSwap::from_pointee(table.clone());
    let mut long_gone = Some(Instant::now() - crate::remote::EXPORT_GONE);
    Review { table: &table, admitted }.revoked(&mut long_gone).expect("no longer allowed")
}

/// Task memory is what an idle connection costs; see `benches/README.md`.
#[test]
fn the_future_is_small() {
    let (mut io, _other) = tokio::io::duplex(1);
    let (mut send, _from_relay) = stream();
    let (_to_relay, mut recv) = stream();
    let drain = Signal::never();
    let mut record =
        Record::open(std::sync::Arc::new(Totals::default()), Entry::new(Direction::Outbound, Protocol::Tcp));
    let future = relay(&mut io, Socket::Client, &mut send, &mut recv, bounds(&drain), &mut record);
    assert!(size_of_val(&future) <= 2048, "{}", size_of_val(&future));
}

/// A socket whose other end has reset it: the word of that is given once, to a write if that comes first.
struct ResetSocket {
    error: io::ErrorKind,
    said: &'static [u8],
    told: bool,
    reader: Option<std::task::Waker>,
}

impl AsyncRead for ResetSocket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut tokio::io::ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.told {
            self.reader = Some(cx.waker().clone());
            return Poll::Pending;
        }
        buffer.put_slice(std::mem::take(&mut self.said));
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for ResetSocket {
    fn poll_write(mut self: Pin<&mut Self>, _cx: &mut Context<'_>, _bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.told = true;
        self.reader.take().into_iter().for_each(std::task::Waker::wake);
        Poll::Ready(Err(self.error.into()))
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Err(io::ErrorKind::NotConnected.into()))
    }
}

/// I1: what is left in the socket is passed on, and what follows is no end in order, for all that a read says.
#[tokio::test(start_paused = true)]
async fn a_reset_that_a_write_has_met_is_no_clean_end_for_the_reader() {
    for (error, end, outcome) in [
        (
            io::ErrorKind::ConnectionReset,
            "the peer reset the stream: backend_reset",
            Outcome::Refused(Refusal::BackendReset),
        ),
        // The backend had said all before it closed.
        (io::ErrorKind::BrokenPipe, "FIN", Outcome::Ok),
    ] {
        let (mut send, mut from_relay) = stream();
        let (mut to_relay, mut recv) = stream();
        let relaying = tokio::spawn(async move {
            let mut io = ResetSocket { error, said: b"torso", told: false, reader: None };
            let drain = Signal::never();
            let recorder = std::sync::Arc::new(Totals::default());
            let mut record = Record::open(recorder, Entry::new(Direction::Inbound, Protocol::Tcp));
            relay(&mut io, Socket::Backend, &mut send, &mut recv, bounds(&drain), &mut record).await
        });
        to_relay.write("question".into()).await.expect("write");
        assert_eq!(text(&mut from_relay).await, "torso");
        assert_eq!(text(&mut from_relay).await, end);
        assert_eq!(relaying.await.expect("no panic"), outcome);
    }
}
