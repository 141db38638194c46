//! Accepts, on one worker.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener as StdListener};
use std::sync::Arc;

use futures::FutureExt;
use linkspan_proto::probe;
use linkspan_runtime::backoff::Backoff;
use linkspan_runtime::drain::Signal;
use linkspan_runtime::task;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::binder::is_starved;
use super::board::{Board, Starving};
use super::sockets::Opened;
use super::{ACCEPT_PAUSE, ClientConnection, ClientIo, DatagramSocket, Permits, Place};

/// What the binder tells a worker.
#[derive(Debug)]
pub(super) enum Command {
    Listen(Place, Opened),
    Close(Place),
}

/// A worker's share of the listening sockets. Give it to [`serve`] on that worker's runtime.
#[derive(Debug)]
pub struct Worker {
    pub(super) index: usize,
    pub(super) commands: mpsc::Receiver<Command>,
    pub(super) board: Arc<Board>,
}

/// Accepts on one socket that is no mirror's (the mTLS port) until the drain begins; `take` as in [`serve`].
pub async fn serve_one<T>(
    worker: usize,
    socket: StdListener,
    board: Arc<Board>,
    permits: Permits,
    drain: Signal,
    take: T,
) where
    T: Fn(ClientConnection) + Send + Sync + 'static,
{
    let listen = match socket.local_addr() {
        Ok(listen) => listen,
        Err(error) => {
            tracing::error!(%error, "cannot use a listening socket");
            return;
        }
    };
    let close = CancellationToken::new();
    let acceptor = Acceptor { listen, worker, permits, board, take, close: close.clone() };
    let stop = async {
        drain.draining().await;
        close.cancel();
    };
    tokio::join!(acceptor.run(socket), stop);
}

/// Accepts on all sockets of this worker until the drain begins; `take` gets each connection, `take_datagrams` each socket
/// of datagrams. Neither may block.
pub async fn serve<T, D>(mut worker: Worker, permits: Permits, drain: Signal, take: T, take_datagrams: D)
where
    T: Fn(ClientConnection) + Clone + Send + Sync + 'static,
    D: Fn(DatagramSocket) + Send + 'static,
{
    let all = CancellationToken::new();
    let mut sockets = HashMap::new();
    loop {
        let command = tokio::select! {
            () = drain.draining() => break,
            command = worker.commands.recv() => command,
        };
        match command {
            Some(Command::Listen(place, Opened::Datagrams(socket))) => {
                let close = CancellationToken::new();
                sockets.insert(place, close.clone());
                take_datagrams(DatagramSocket { socket, listen: place.address, worker: worker.index, close });
            }
            Some(Command::Listen(place, Opened::Connections(socket))) => {
                let acceptor = Acceptor {
                    listen: place.address,
                    worker: worker.index,
                    permits: permits.clone(),
                    board: Arc::clone(&worker.board),
                    take: take.clone(),
                    close: all.child_token(),
                };
                sockets.insert(place, acceptor.close.clone());
                // Detached: it ends by its token.
                drop(task::spawn("listener", acceptor.run(socket)));
            }
            Some(Command::Close(place)) => {
                if let Some(close) = sockets.remove(&place) {
                    close.cancel();
                }
            }
            // The binder has ended, which it does only when the process does.
            None => {
                drain.draining().await;
                break;
            }
        }
    }
    all.cancel();
}

struct Acceptor<T> {
    listen: SocketAddr,
    worker: usize,
    permits: Permits,
    board: Arc<Board>,
    take: T,
    close: CancellationToken,
}

impl<T: Fn(ClientConnection)> Acceptor<T> {
    async fn run(self, socket: StdListener) {
        let socket = match TcpListener::from_std(socket) {
            Ok(socket) => socket,
            Err(error) => {
                tracing::error!(listen = %self.listen, %error, "cannot use a listening socket");
                return;
            }
        };
        let mut backoff = Backoff::new(ACCEPT_PAUSE.0, ACCEPT_PAUSE.1);
        loop {
            let accepted = tokio::select! {
                () = self.close.cancelled() => break,
                accepted = socket.accept() => accepted,
            };
            match accepted {
                Ok((stream, client)) => {
                    backoff.reset();
                    self.accepted(stream, client);
                }
                Err(error) if is_clients_fault(&error) => {}
                Err(error) => {
                    let _starving = self.starved(&error);
                    tokio::select! {
                        () = self.close.cancelled() => break,
                        () = tokio::time::sleep(backoff.next()) => {}
                    }
                }
            }
        }
        // Clients that the kernel has accepted already would be reset by the close: take them first.
        while let Some(Ok((stream, client))) = socket.accept().now_or_never() {
            self.accepted(stream, client);
        }
    }

    fn accepted(&self, stream: TcpStream, client: SocketAddr) {
        let io = ClientIo::tcp(stream);
        let Some(permit) = self.permits.acquire() else {
            let refused = self.board.count_refused();
            // At 1, 2, 4, 8, ...: the operator hears of it, the log survives it.
            if refused.is_power_of_two() {
                tracing::warn!(
                    listen = %self.listen, refused, limit = self.permits.limit(),
                    "too many client connections; resetting new ones (raise the limit of open files)"
                );
            }
            io.reset();
            return;
        };
        self.board.count_accepted();
        io.set_nodelay();
        // A socket of both families shows clients of IPv4 as `::ffff:a.b.c.d`.
        let client = SocketAddr::new(client.ip().to_canonical(), client.port());
        let probe = client.ip() == IpAddr::V4(probe::SOURCE);
        let client = if probe { SocketAddr::from((probe::CALLER, client.port())) } else { client };
        (self.take)(ClientConnection { io, client, listen: self.listen, worker: self.worker, probe, permit });
    }

    fn starved(&self, error: &io::Error) -> Starving<'_> {
        let (times, starving) = self.board.starve();
        if times.is_power_of_two() {
            let remedy = if is_starved(error) { "raise the limit of open files" } else { "" };
            tracing::warn!(listen = %self.listen, %error, times, remedy, "accept failed; trying again");
        }
        starving
    }
}

/// Errors of the connection that was to be accepted, which Linux hands out through `accept`: nothing is wrong here.
fn is_clients_fault(error: &io::Error) -> bool {
    use io::ErrorKind::{
        ConnectionAborted, ConnectionRefused, ConnectionReset, HostUnreachable, Interrupted, NetworkDown,
        NetworkUnreachable,
    };
    matches!(
        error.kind(),
        ConnectionAborted
            | ConnectionRefused
            | ConnectionReset
            | HostUnreachable
            | Interrupted
            | NetworkDown
            | NetworkUnreachable
    )
}
