//! HTTP/2 clients that break rules or send too much, byte by byte: no client library would do it.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::timeout;

use super::kit::{World, backend, canned};
use super::patiently;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// `:method: GET`, `:path: /`, `:scheme: http`, `:authority: web` (RFC 7541 appendix A).
const GET: &[u8] = b"\x82\x84\x86\x41\x03web";

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut bytes = vec![length[1], length[2], length[3], kind, flags];
    bytes.extend_from_slice(&stream.to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

/// A field without indexing and without Huffman.
fn literal(name: &[u8], value: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0x00];
    for text in [name, value] {
        integer(text.len(), &mut bytes);
        bytes.extend_from_slice(text);
    }
    bytes
}

/// With a prefix of seven bits (RFC 7541 section 5.1).
fn integer(mut value: usize, into: &mut Vec<u8>) {
    if value < 127 {
        into.push(value as u8);
        return;
    }
    into.push(127);
    value -= 127;
    while value >= 128 {
        into.push((value % 128) as u8 | 0x80);
        value /= 128;
    }
    into.push(value as u8);
}

async fn connect(world: &World) -> (OwnedReadHalf, OwnedWriteHalf) {
    let stream = TcpStream::connect(world.address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let (read, mut write) = stream.into_split();
    write.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
    write.write_all(&frame(SETTINGS, 0, 0, b"")).await.unwrap();
    (read, write)
}

/// Writes `pieces` again and again until the gateway has had enough; how many it took, at most a million.
async fn flood(world: &World, piece: impl Fn(u32) -> Vec<u8>) -> usize {
    let (mut read, mut write) = connect(world).await;
    let mut closed = tokio::spawn(async move {
        let mut buffer = vec![0; 64 * 1024];
        while read.read(&mut buffer).await.is_ok_and(|bytes| bytes > 0) {}
    });
    for number in 0..1_000_000 {
        if closed.is_finished() || write.write_all(&piece(number)).await.is_err() {
            return number as usize;
        }
        if number % 50 == 0 {
            tokio::task::yield_now().await;
        }
    }
    assert!(timeout(Duration::from_secs(1), &mut closed).await.is_ok(), "a million frames, and it still listens");
    1_000_000
}

/// What the gateway says to a request: the type of the first frame for its stream or the end of the connection.
async fn verdict(read: &mut OwnedReadHalf) -> Option<(u8, Vec<u8>)> {
    loop {
        let mut head = [0; 9];
        read.read_exact(&mut head).await.ok()?;
        let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
        let mut payload = vec![0; length];
        read.read_exact(&mut payload).await.ok()?;
        if matches!(head[3], HEADERS | RST_STREAM | GOAWAY) {
            return Some((head[3], payload));
        }
    }
}

#[tokio::test]
async fn s_20_what_http_1_could_misread_is_refused_and_reaches_no_backend() {
    patiently(async {
        let address = backend(|mut wire, _| async move {
            let head = wire.head().await;
            panic!("a backend saw {head}");
        })
        .await;
        let world = World::of(&[address]).await;
        let with = |name: &[u8], value: &[u8]| [GET, &literal(name, value)].concat();
        let path = |path: &[u8]| [&b"\x82\x86\x41\x03web"[..], &literal(b":path", path)].concat();
        let method = |method: &[u8]| [&b"\x84\x86\x41\x03web"[..], &literal(b":method", method)].concat();
        let blocks: Vec<(&str, Vec<u8>)> = vec![
            ("CR LF in a value", with(b"x", b"a\r\nhost: evil")),
            ("LF in a value", with(b"x", b"a\nb")),
            ("NUL in a value", with(b"x", b"a\0b")),
            ("CR LF in a name", with(b"x\r\nhost", b"evil")),
            ("a space in a name", with(b"x y", b"1")),
            ("a colon in a name", with(b"x:y", b"1")),
            ("an empty name", with(b"", b"1")),
            ("capitals in a name", with(b"X-Y", b"1")),
            ("CR LF in the path", path(b"/ HTTP/1.1\r\nhost: evil\r\n\r\n")),
            ("a space in the path", path(b"/a b")),
            ("an empty path", path(b"")),
            ("no path", b"\x82\x86\x41\x03web".to_vec()),
            ("a path that is none", path(b"a")),
            ("CR LF in the method", method(b"GET / HTTP/1.1\r\nx: ")),
            ("a space in the method", method(b"GET /evil")),
            ("two methods", [GET, b"\x83"].concat()),
            ("two paths", [GET, &literal(b":path", b"/b")].concat()),
            ("another scheme", [&b"\x82\x84\x41\x03web"[..], &literal(b":scheme", b"ftp")].concat()),
            ("an unknown pseudo field", with(b":evil", b"1")),
            ("a pseudo field behind others", [&b"\x82\x84\x86"[..], &literal(b"x", b"1"), b"\x41\x03web"].concat()),
            ("Connection", with(b"connection", b"keep-alive")),
            ("Transfer-Encoding", with(b"transfer-encoding", b"chunked")),
            ("TE other than trailers", with(b"te", b"gzip")),
            ("a length and no body", with(b"content-length", b"5")),
            ("two lengths", [GET, &literal(b"content-length", b"0"), &literal(b"content-length", b"1")].concat()),
            ("a length that is no number", with(b"content-length", b"+0")),
            ("another host", with(b"host", b"evil")),
            ("CONNECT", [&b"\x41\x03web"[..], &literal(b":method", b"CONNECT")].concat()),
            ("no block at all", b"\xff\xff\xff\xff\xff\xff".to_vec()),
        ];
        for (what, block) in blocks {
            let (mut read, mut write) = connect(&world).await;
            write.write_all(&frame(HEADERS, END_STREAM | END_HEADERS, 1, &block)).await.unwrap();
            let verdict = timeout(Duration::from_secs(5), verdict(&mut read)).await.expect(what);
            // 0x88 is `:status: 200`.
            assert!(!matches!(&verdict, Some((HEADERS, block)) if block.first() == Some(&0x88)), "{what}: {verdict:?}");
        }
        assert_eq!(*world.west.late.streams.lock().unwrap(), 0);
    })
    .await;
}

#[tokio::test]
async fn s_23_a_client_that_resets_what_it_asks_for_is_cut_off() {
    patiently(async {
        let world = World::of(&[canned("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await]).await;
        let taken = flood(&world, |number| {
            let stream = 2 * number + 1;
            let mut pair = frame(HEADERS, END_STREAM | END_HEADERS, stream, GET);
            pair.extend_from_slice(&frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes()));
            pair
        })
        .await;
        assert!(*world.west.late.streams.lock().unwrap() <= 2000);
        assert!(taken < 1_000_000);
    })
    .await;
}

#[tokio::test]
async fn s_23_a_client_that_makes_the_gateway_reset_is_cut_off() {
    patiently(async {
        let world = World::of(&[canned("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await]).await;
        // An increment of nothing is an error of its stream (RFC 9113 section 6.9).
        let taken = flood(&world, |number| {
            let stream = 2 * number + 1;
            let mut pair = frame(HEADERS, END_HEADERS, stream, GET);
            pair.extend_from_slice(&frame(WINDOW_UPDATE, 0, stream, &[0; 4]));
            pair
        })
        .await;
        assert!(*world.west.late.streams.lock().unwrap() <= 2000);
        assert!(taken < 1_000_000);
    })
    .await;
}

#[tokio::test]
async fn s_24_fields_without_end_are_cut_off() {
    patiently(async {
        let world = World::of(&[]).await;
        let field = literal(b"x", &[b'a'; 1000]);
        let taken = flood(&world, |number| match number {
            0 => frame(HEADERS, END_STREAM, 1, GET),
            _ => frame(CONTINUATION, 0, 1, &field),
        })
        .await;
        // What the kernels' buffers hold is taken from the client all the same.
        assert!(taken < 50_000, "{taken}");
        assert_eq!(world.east.seen.count(), 0);
    })
    .await;
}

/// One entry of the dynamic table of 3 KiB, named in a byte each: 64 KiB come from a block of 3.1.
#[tokio::test]
async fn s_25_fields_that_unfold_count_unfolded() {
    patiently(async {
        let address = backend(|_, _| async { panic!("a connection was made") }).await;
        let world = World::of(&[address]).await;
        for name in [&b"x"[..], b"cookie"] {
            let (mut read, mut write) = connect(&world).await;
            let mut entry = vec![0x40];
            for text in [name, &[b'a'; 3000]] {
                integer(text.len(), &mut entry);
                entry.extend_from_slice(text);
            }
            let block = [GET, &entry, &[0xbe; 4000]].concat();
            write.write_all(&frame(HEADERS, END_STREAM | END_HEADERS, 1, &block)).await.unwrap();
            let (kind, block) = timeout(Duration::from_secs(5), verdict(&mut read)).await.unwrap().unwrap();
            // `:status` with a literal value: 431.
            assert!(kind != HEADERS || block.windows(3).any(|part| part == b"431") || block[0] == 0x48, "{block:?}");
        }
        assert_eq!(*world.west.late.streams.lock().unwrap(), 0);
    })
    .await;
}

#[tokio::test]
async fn s_26_frames_that_carry_nothing_are_cut_off() {
    patiently(async {
        let world = World::of(&[canned("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await]).await;
        let kinds: Vec<(&str, Vec<u8>)> = vec![
            ("PING", frame(PING, 0, 0, &[0; 8])),
            ("SETTINGS", frame(SETTINGS, 0, 0, b"")),
            ("WINDOW_UPDATE", frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1])),
            ("PRIORITY", frame(2, 0, 3, &[0, 0, 0, 0, 1])),
            ("of no known type", frame(0x42, 0, 0, b"")),
            ("empty DATA", frame(DATA, 0, 1, b"")),
        ];
        for (what, bytes) in kinds {
            // A request whose body does not end, for those that need a stream.
            let taken = flood(&world, |number| match number {
                0 => frame(HEADERS, END_HEADERS, 1, GET),
                _ => bytes.repeat(10),
            })
            .await;
            assert!(taken < 100_000, "{what}: {taken} times ten");
        }
    })
    .await;
}
