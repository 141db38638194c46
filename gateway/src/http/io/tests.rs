//! Time is paused: it jumps to the next timer whenever no task can run, even if the kernel has bytes for one. A test that
//! talks before it waits holds it still meanwhile.

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioTimer;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use super::*;

const KEEP_ALIVE: Duration = Duration::from_secs(100);

fn control() -> Control {
    let signal = Signal::never();
    let unfinished = signal.guard();
    Control::new(signal, unfinished)
}

/// A client's socket and hyper behind the other end, as the egress side serves it.
async fn served(answer: impl Fn(Request<Incoming>) -> Bytes + Clone + Send + 'static) -> (TcpStream, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let client = TcpStream::connect(listener.local_addr().expect("an address")).await.expect("a connection");
    let (stream, _) = listener.accept().await.expect("a connection");
    let control = Arc::new(control());
    let socket = Socket::new(ClientIo::tcp(stream), Arc::clone(&control), false);
    let service = service_fn(move |request| {
        control.request_begun();
        let body = Full::new(answer(request));
        // The response is handed over at once.
        control.request_over();
        async move { Ok::<_, std::convert::Infallible>(Response::new(body)) }
    });
    let serving = tokio::spawn(async move {
        let mut builder = http1::Builder::new();
        builder.timer(TokioTimer::new()).header_read_timeout(KEEP_ALIVE);
        // How it ends is what the tests look at.
        drop(builder.serve_connection(socket, service).await);
    });
    (client, serving)
}

fn small(_: Request<Incoming>) -> Bytes {
    Bytes::from_static(b"ok")
}

#[tokio::test(start_paused = true)]
async fn s_27_a_head_that_trickles_in_is_cut_off() {
    let (mut client, serving) = served(small).await;
    client.write_all(b"GET / HTTP/1.1\r\n").await.expect("a write");
    let begun = Instant::now();
    serving.await.expect("no panic");
    let elapsed = begun.elapsed();
    assert!((HEAD..HEAD + Duration::from_secs(1)).contains(&elapsed), "{elapsed:?}");
}

#[tokio::test(start_paused = true)]
async fn an_idle_connection_lives_longer_than_a_slow_head() {
    let (mut client, serving) = served(small).await;
    // Time does not jump while a blocking task runs.
    let (still, until) = std::sync::mpsc::channel::<()>();
    tokio::task::spawn_blocking(move || until.recv().ok());
    for _ in 0..3 {
        // Pipelined: the second head is read while the first request is served.
        client.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\nGET / HTTP/1.1\r\nhost: a\r\n\r\n").await.expect("a write");
        let mut answers = Vec::new();
        while answers.windows(6).filter(|window| window == b"\r\n\r\nok").count() < 2 {
            assert_ne!(client.read_buf(&mut answers).await.expect("a read"), 0, "closed after {answers:?}");
        }
        tokio::time::advance(KEEP_ALIVE - Duration::from_secs(1)).await;
    }
    drop(still);
    let begun = Instant::now();
    serving.await.expect("no panic");
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn s_27_a_client_that_takes_nothing_is_cut_off() {
    let (mut client, serving) = served(|_| Bytes::from(vec![0; 64 * 1024 * 1024])).await;
    client.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.expect("a write");
    let begun = Instant::now();
    serving.await.expect("no panic");
    let elapsed = begun.elapsed();
    assert!((STALL..STALL + Duration::from_secs(2)).contains(&elapsed), "{elapsed:?}");
    // What it did not take is lost, and it is told so.
    let mut rest = Vec::new();
    assert!(client.read_to_end(&mut rest).await.is_err());
}

#[test]
fn interim_bytes_that_cannot_go_in_front_are_dropped() {
    let control = control();
    let headers = HeaderMap::from_iter([("link".parse().expect("a name"), "</a>".parse().expect("a value"))]);
    // hyper has bytes under way.
    control.interim(StatusCode::EARLY_HINTS, &headers);
    control.final_response();
    assert!(control.take_interim().is_empty());
    // It has none.
    control.between.store(true, Ordering::Release);
    control.interim(StatusCode::EARLY_HINTS, &headers);
    control.final_response();
    assert_eq!(control.take_interim(), "HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n");
    assert!(control.take_interim().is_empty());
    // Only so much waits.
    for _ in 0..1000 {
        control.interim(StatusCode::EARLY_HINTS, &headers);
    }
    assert!(control.take_interim().len() <= MAX_INTERIM);
}

#[test]
fn a_drop_counts_by_its_cause() {
    let control = control();
    assert_eq!(control.dropped(), Outcome::ClientGone);
    control.drained();
    assert_eq!(control.dropped(), Outcome::Drained);
}

#[test]
fn the_drain_waits_for_a_request_and_for_no_idle_connection() {
    let (drain, signal) = linkspan_runtime::drain::Drain::new();
    let unfinished = signal.guard();
    let control = Control::new(signal, unfinished);
    control.between.store(true, Ordering::Release);
    control.request_begun();
    control.request_over();
    assert_eq!(drain.unfinished(), 1, "nothing drains yet");
    control.draining();
    assert_eq!(drain.unfinished(), 0, "idle");
    control.request_begun();
    control.between.store(false, Ordering::Release);
    assert_eq!(drain.unfinished(), 1);
    control.request_over();
    control.rest();
    assert_eq!(drain.unfinished(), 1, "the answer is on its way to the kernel");
    control.between.store(true, Ordering::Release);
    control.rest();
    assert_eq!(drain.unfinished(), 0);
    control.request_begun();
    control.upgraded();
    control.request_over();
    control.rest();
    assert_eq!(drain.unfinished(), 1, "what the connection turned into is waited for");
}
