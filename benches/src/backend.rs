//! The server at the end of both paths: raw TCP in three ways, chosen by the first byte, and HTTP/1.1 where there is no
//! nginx.
//!
//! | first byte | meaning |
//! |---|---|
//! | `p` | answer one byte and close: one connection of "new connections a second" |
//! | `i` | answer one byte and wait until the client leaves: an idle connection |
//! | `d` | send until the client leaves |
//! | `u` | read until the client leaves |
//! | other | HTTP/1.1 keep-alive: a small answer to each request |
//!
//! And UDP on the same port, for the checks of the relay:
//!
//! | first byte | meaning |
//! |---|---|
//! | `e` | send it back |
//! | `c` | count its bytes |
//! | `?` | answer the count, and begin anew |

use std::io::Write as _;
use std::net::Ipv4Addr;
use std::time::Duration;

use linkspan_runtime::task;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UdpSocket};

/// Chunk of bulk transfers: large enough that the backend's own calls do not show.
const CHUNK: usize = 256 * 1024;

/// Listening backlog: more than the connections that arrive while this process is not scheduled.
const BACKLOG: u32 = 4096;

/// The body of an HTTP answer. A small JSON reply, as most calls between services have.
pub(crate) const BODY: &str =
    "{\"service\":\"web\",\"cluster\":\"west\",\"status\":\"ok\",\"items\":[1,2,3,4,5,6,7,8]}\n";

/// Serves on a port of the kernel's choice, prints the port, and never ends.
pub(crate) fn serve(address: Ipv4Addr) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = listen(address)?;
        let local = listener.local_addr()?;
        let datagrams = UdpSocket::bind(local).await?;
        println!("{}", local.port());
        std::io::stdout().flush()?;
        drop(task::spawn("bench_datagrams", async move { echo(datagrams).await }));
        accept(listener).await;
        Ok(())
    })
}

/// A port of the kernel's choice.
pub(crate) fn listen(address: Ipv4Addr) -> std::io::Result<TcpListener> {
    let socket = TcpSocket::new_v4()?;
    socket.bind((address, 0).into())?;
    socket.listen(BACKLOG)
}

/// Answers and counts datagrams; never ends.
async fn echo(socket: UdpSocket) {
    let mut buffer = vec![0; 65_536];
    let mut counted: u64 = 0;
    loop {
        let Ok((length, from)) = socket.recv_from(&mut buffer).await else { continue };
        match buffer.first().filter(|_| length > 0) {
            // A full socket buffer loses the answer; the checks look for losses.
            Some(b'e') => drop(socket.send_to(&buffer[..length], from).await),
            Some(b'c') => counted += length as u64,
            Some(b'?') => {
                drop(socket.send_to(&counted.to_be_bytes(), from).await);
                counted = 0;
            }
            _ => {}
        }
    }
}

/// Serves every connection; never ends.
pub(crate) async fn accept(listener: TcpListener) {
    loop {
        match listener.accept().await {
            // A client that leaves is the end of its connection and nothing more.
            Ok((stream, _)) => drop(task::spawn("bench_backend", async move { connection(stream).await.ok() })),
            // Out of descriptors passes; a measurement that met it counts its failures itself.
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
}

async fn connection(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut first = [0; 1];
    if stream.read(&mut first).await? == 0 {
        return Ok(());
    }
    match first {
        [b'p'] => stream.write_all(b"p").await,
        [b'i'] => {
            stream.write_all(b"i").await?;
            stream.read(&mut first).await.map(drop)
        }
        [b'd'] => {
            let chunk = vec![0x5a; CHUNK];
            loop {
                stream.write_all(&chunk).await?;
            }
        }
        [b'u'] => {
            let mut chunk = vec![0; CHUNK];
            while stream.read(&mut chunk).await? > 0 {}
            Ok(())
        }
        [other] => http(stream, other).await,
    }
}

/// Answers every request head alike. Requests of the benchmark have no body.
async fn http(mut stream: TcpStream, first: u8) -> std::io::Result<()> {
    let answer =
        format!("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{BODY}", BODY.len());
    let mut pending = vec![first];
    let mut chunk = [0; 4096];
    loop {
        while let Some(end) = pending.windows(4).position(|window| window == b"\r\n\r\n") {
            pending.drain(..end + 4);
            stream.write_all(answer.as_bytes()).await?;
        }
        match stream.read(&mut chunk).await? {
            0 => return Ok(()),
            read => pending.extend_from_slice(&chunk[..read]),
        }
    }
}
