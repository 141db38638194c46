//! Patterns over plain TCP: FIN is the end of what was said, RST is a cut.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::script::{Asked, Heard, Ledger, Said, Seat, Shape};

/// Receive buffer of a client that reads slowly: what it has not read is in the gateways, and the backend has to wait.
const SMALL: u32 = 8 * 1024;

/// Connects as a client of the pattern does.
pub(super) async fn connect(seat: &Seat, address: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    if seat.slowly().is_some() {
        socket.set_recv_buffer_size(SMALL)?;
    }
    let stream = socket.connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Plays the client.
pub(super) async fn client(seat: &Seat, address: SocketAddr) {
    let mut stream = match connect(seat, address).await {
        Ok(stream) => stream,
        Err(error) => return seat.heard(Heard::Cut(error.to_string())),
    };
    let shape = seat.pattern().shape;
    let (read, mut write) = stream.split();
    let talk = async {
        if write.write_all(&seat.pattern().id.to_le_bytes()).await.is_err() {
            return;
        }
        let whole = say(seat, &mut write, seat.pattern().says()).await;
        if shape.client_goes() {
            sleep(seat.pattern().pause).await;
        } else if whole && write.shutdown().await.is_ok() {
            seat.said(Said::Whole);
        }
    };
    let listen = listen(seat, read);
    if !shape.client_goes() {
        tokio::join!(talk, listen);
        return;
    }
    talk_to_the_end(talk, listen).await;
    if shape == Shape::ClientReset {
        stream.set_zero_linger().expect("an open socket");
    } else {
        seat.said(Said::Left);
    }
}

/// Both, until all is said, whatever is heard meanwhile.
pub(super) async fn talk_to_the_end(talk: impl Future<Output = ()>, listen: impl Future<Output = ()>) {
    tokio::pin!(talk, listen);
    let mut is_heard = false;
    loop {
        tokio::select! {
            biased;
            () = &mut talk => return,
            () = &mut listen, if !is_heard => is_heard = true,
        }
    }
}

/// Both, until the other end has ended, however far this one is.
pub(super) async fn listen_to_the_end(talk: impl Future<Output = ()>, listen: impl Future<Output = ()>) {
    talk_to_the_end(listen, talk).await;
}

/// Says the first `end` bytes; whether they were all taken.
async fn say(seat: &Seat, write: &mut WriteHalf<'_>, end: u64) -> bool {
    let mut said = 0;
    while let Some(piece) = seat.piece(said, end) {
        match write.write(&piece).await {
            Ok(written) => {
                seat.wrote(written);
                said += written as u64;
            }
            Err(error) => {
                // The kernel tells of a reset once: a read would see an end in order. A FIN before it makes it EPIPE.
                if error.kind() == std::io::ErrorKind::ConnectionReset {
                    seat.was_reset();
                }
                return false;
            }
        }
    }
    true
}

/// Reads until the other end has ended, one way or the other.
async fn listen(seat: &Seat, mut read: ReadHalf<'_>) {
    while hear(seat, &mut read, usize::MAX).await {}
}

/// Reads once, `most` bytes; `false` at the end.
async fn hear(seat: &Seat, read: &mut ReadHalf<'_>, most: usize) -> bool {
    let slowly = seat.slowly();
    let mut buffer = vec![0; slowly.map_or(65_536, |(bytes, _)| bytes).min(most)];
    if let Some((_, wait)) = slowly {
        sleep(wait).await;
    }
    match read.read(&mut buffer).await {
        Ok(0) if seat.is_reset() => seat.heard(Heard::Cut("a write met a reset".to_owned())),
        Ok(0) => seat.heard(Heard::Whole),
        Ok(count) => {
            seat.read(&buffer[..count]);
            return true;
        }
        Err(error) => seat.heard(Heard::Cut(error.to_string())),
    }
    false
}

/// Plays all backends.
pub(super) async fn backend(ledger: Arc<Ledger>, listener: TcpListener) {
    let mut serving = JoinSet::new();
    loop {
        tokio::select! {
            Ok((stream, _)) = listener.accept() => {
                serving.spawn(serve(Arc::clone(&ledger), stream));
            }
            Some(served) = serving.join_next() => served.expect("a backend"),
        }
    }
}

async fn serve(ledger: Arc<Ledger>, mut stream: TcpStream) {
    stream.set_nodelay(true).expect("an open socket");
    let mut id = [0; 8];
    let mut length = 0;
    while length < id.len() {
        match stream.read(&mut id[length..]).await {
            // Nobody ends so: a pattern that is cut this early has to look cut.
            Ok(0) => return ledger.came_nameless(),
            Ok(count) => length += count,
            Err(_) => return,
        }
    }
    let asked = ledger.asked(u64::from_le_bytes(id)).expect("the first bytes are those of a pattern");
    if act(&asked, &mut stream).await {
        stream.set_zero_linger().expect("an open socket");
    }
}

/// Plays one; whether it ends with a reset.
async fn act(Asked(seat): &Asked, stream: &mut TcpStream) -> bool {
    let pattern = seat.pattern();
    let (mut read, mut write) = stream.split();
    if pattern.shape.backend_breaks() || pattern.shape.is_early() {
        while seat.has_read() < pattern.backend_reads {
            let left = usize::try_from(pattern.backend_reads - seat.has_read()).expect("small");
            if !hear(seat, &mut read, left).await {
                return true;
            }
        }
    } else if !pattern.shape.is_duplex() {
        listen(seat, read).await;
        answer(seat, &mut write).await;
        return false;
    }
    match pattern.shape {
        Shape::BackendReset | Shape::BackendCuts => {
            say(seat, &mut write, pattern.answers()).await;
            sleep(pattern.pause).await;
            true
        }
        Shape::EarlyClose => {
            answer(seat, &mut write).await;
            false
        }
        Shape::Early => {
            answer(seat, &mut write).await;
            listen(seat, read).await;
            false
        }
        _ => {
            tokio::join!(answer(seat, &mut write), listen(seat, read));
            false
        }
    }
}

/// The whole answer, and its end.
async fn answer(seat: &Seat, write: &mut WriteHalf<'_>) {
    if say(seat, write, seat.pattern().answers()).await && write.shutdown().await.is_ok() {
        seat.said(Said::Whole);
    }
}
