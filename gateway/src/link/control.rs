//! The control stream of a connection: our hello, goaways and credits out, the peer's in.
//!
//! - In: the peer's only unidirectional stream.
//! - Out: [`ControlMessage`]s of the peer.
//! - Refuses when: the stream breaks its protocol, ends, or a second one is opened: the connection is then closed.

use std::convert::Infallible;

use linkspan_proto::control::{self, ControlMessage, ControlReader, Credit};
use quinn::{Connection, SendStream};
use tokio::sync::mpsc;

use super::credit::Flow;
use super::trouble::{self, CloseCode};

/// Control data goes before everything else on the connection: it is small, and a goaway that waits behind bulk data is
/// late.
const PRIORITY: i32 = 200;

/// Bytes read at once; messages are far smaller.
const CHUNK: usize = 4096;

/// Sends `hello`, then what comes. Ends with the connection.
pub(super) async fn send(
    connection: &Connection,
    hello: ControlMessage,
    more: mpsc::Receiver<ControlMessage>,
    flow: &Flow,
) {
    tokio::select! {
        biased;
        _ = connection.closed() => {}
        // The stream failed: the connection is about to.
        None = send_all(connection, hello, more, flow) => {
            connection.closed().await;
        }
    }
}

/// Ends when the stream fails. Never otherwise: that would end the stream cleanly, which the peer takes for a breach.
async fn send_all(
    connection: &Connection,
    hello: ControlMessage,
    mut more: mpsc::Receiver<ControlMessage>,
    flow: &Flow,
) -> Option<Infallible> {
    let mut stream = open(connection, hello).await?;
    loop {
        let message = tokio::select! {
            biased;
            Some(message) = more.recv() => message,
            (stream, limit) = flow.next() => ControlMessage::Credit(Credit { stream, limit }),
        };
        stream.write_chunk(control::encode(&message)).await.ok()?;
    }
}

async fn open(connection: &Connection, hello: ControlMessage) -> Option<SendStream> {
    let mut stream = connection.open_uni().await.ok()?;
    stream.set_priority(PRIORITY).ok()?;
    stream.write_all_chunks(&mut [control::open(), control::encode(&hello)]).await.ok()?;
    Some(stream)
}

/// Passes the peer's messages to `deliver`; ends when the connection does or when the peer broke the protocol, which
/// closes it.
pub(super) async fn receive<F, D>(connection: &Connection, deliver: D)
where
    D: Fn(ControlMessage) -> F,
    F: Future<Output = ()>,
{
    let Ok(mut stream) = connection.accept_uni().await else { return };
    let mut reader = ControlReader::new();
    loop {
        let chunk = match stream.read_chunk(CHUNK, true).await {
            Ok(Some(chunk)) => chunk,
            Err(quinn::ReadError::ConnectionLost(_)) => return,
            // A control stream lives as long as its connection.
            Ok(None) | Err(_) => break,
        };
        reader.push(&chunk.bytes);
        loop {
            match reader.next() {
                Ok(Some(message)) => deliver(message).await,
                Ok(None) => break,
                Err(error) => {
                    tracing::warn!(remote = %connection.remote_address(), %error, "control stream broke the protocol");
                    trouble::close(connection, CloseCode::Protocol);
                    return;
                }
            }
        }
        // A peer that has no end of messages must leave time to the others of this worker.
        tokio::task::yield_now().await;
    }
    trouble::close(connection, CloseCode::Protocol);
}
