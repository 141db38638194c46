//! Binds what mirrors want, once for the whole process, and hands the sockets to the workers.

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{Hash, Hasher};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;

use linkspan_proto::configuration::{Rejection, ResourceKey, ResourceKind};
use linkspan_runtime::backoff::Backoff;
use linkspan_runtime::drain::Signal;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::sync::{mpsc, watch};

use super::accept::{Command, Worker};
use super::board::{Board, MirrorState};
use super::{BACKLOG, BIND_PAUSE, Bindings, SOCKETS};
use crate::discovery::Rejections;

/// Commands that wait for a worker. A worker that is this far behind is busy; the binder then waits for it.
const INLET: usize = 64;

/// Addresses bound in one go before other tasks of the control thread have their turn; some 10 microseconds each.
const BATCH: usize = 64;

/// Keeps the listening sockets equal to the wanted addresses.
#[derive(Debug)]
pub struct Binder {
    inlets: Vec<mpsc::Sender<Command>>,
    board: Arc<Board>,
    rejections: Rejections,
    /// By bound address: the workers that listen on it.
    bound: BTreeMap<SocketAddr, Vec<usize>>,
}

impl Binder {
    /// A binder and one [`Worker`] for each worker thread. Complaints go to `rejections`.
    #[must_use]
    pub fn new(workers: usize, rejections: Rejections) -> (Self, Vec<Worker>) {
        let board = Arc::new(Board::default());
        let (inlets, outlets): (Vec<_>, Vec<_>) = (0..workers.max(1)).map(|_| mpsc::channel(INLET)).unzip();
        let workers = outlets
            .into_iter()
            .enumerate()
            .map(|(index, commands)| Worker { index, commands, board: Arc::clone(&board) })
            .collect();
        (Self { inlets, board, rejections, bound: BTreeMap::new() }, workers)
    }

    /// What listens where.
    #[must_use]
    pub fn board(&self) -> Arc<Board> {
        Arc::clone(&self.board)
    }

    /// Follows `bindings` until the drain begins. Addresses that cannot be bound are tried again.
    pub async fn run(mut self, mut bindings: watch::Receiver<Arc<Bindings>>, drain: Signal) {
        let mut backoff = Backoff::new(BIND_PAUSE.0, BIND_PAUSE.1);
        loop {
            let wanted = Arc::clone(&bindings.borrow_and_update());
            let failures = self.reconcile(&wanted).await;
            self.report(&wanted, &failures);
            if failures.is_empty() {
                backoff.reset();
            }
            let retry = async {
                match failures.is_empty() {
                    true => std::future::pending().await,
                    false => tokio::time::sleep(backoff.next()).await,
                }
            };
            tokio::select! {
                () = drain.draining() => return,
                changed = bindings.changed() => if changed.is_err() {
                    // The table's owner is gone: the process ends.
                    return;
                },
                () = retry => {}
            }
        }
    }

    async fn reconcile(&mut self, wanted: &Bindings) -> BTreeMap<SocketAddr, io::Error> {
        let gone: Vec<_> = self.bound.keys().filter(|at| !wanted.addresses.contains_key(at)).copied().collect();
        for address in gone {
            for worker in self.bound.remove(&address).into_iter().flatten() {
                self.tell(worker, Command::Close(address)).await;
            }
        }
        let mut failures = BTreeMap::new();
        let new: Vec<_> = wanted.addresses.keys().filter(|at| !self.bound.contains_key(at)).copied().collect();
        for (turn, address) in new.into_iter().enumerate() {
            if turn % BATCH == BATCH - 1 {
                tokio::task::yield_now().await;
            }
            let chosen = workers_for(address, self.inlets.len(), wanted.addresses.len());
            match bind(address, chosen.len()) {
                Ok(sockets) => {
                    for (worker, socket) in chosen.iter().zip(sockets) {
                        self.tell(*worker, Command::Listen(address, socket)).await;
                    }
                    self.bound.insert(address, chosen);
                }
                Err(error) => {
                    failures.insert(address, error);
                }
            }
        }
        failures
    }

    async fn tell(&self, worker: usize, command: Command) {
        if self.inlets[worker].send(command).await.is_err() {
            // Only while the process ends: then the sockets close by themselves.
            tracing::debug!(worker, "worker is gone");
        }
    }

    fn report(&self, wanted: &Bindings, failures: &BTreeMap<SocketAddr, io::Error>) {
        let mut complaints: BTreeMap<&str, Vec<(SocketAddr, &'static str, String)>> = BTreeMap::new();
        let mut states = BTreeMap::new();
        for (address, mirror) in &wanted.addresses {
            let failure = failures.get(address).map(|error| explain(*address, error));
            let (reason, message) = failure.clone().unwrap_or_default();
            let workers = self.bound.get(address).map_or(0, Vec::len);
            let state = MirrorState {
                mirror: mirror.to_string(),
                listen: *address,
                bound: workers > 0,
                workers,
                reason: reason.to_owned(),
                message: message.clone(),
            };
            states.insert(*address, state);
            if failure.is_some() {
                complaints.entry(mirror).or_default().push((*address, reason, message));
            }
        }
        for (address, mirror) in &wanted.conflicts {
            let holder = wanted.addresses.get(address).map_or("another mirror", AsRef::as_ref);
            let message = format!("{address} is taken by {holder}; give one of the two another address");
            complaints.entry(mirror).or_default().push((*address, "AddressInUse", message));
        }
        self.board.replace(states);
        let rejections: Vec<_> = complaints.into_iter().map(|(mirror, ports)| rejection(mirror, &ports)).collect();
        let known: BTreeSet<_> = self.rejections.all().into_iter().map(|known| known.message).collect();
        for rejection in rejections.iter().filter(|rejection| !known.contains(&rejection.message)) {
            tracing::warn!(mirror = rejection.resource.name, reason = rejection.reason, "{}", rejection.message);
        }
        self.rejections.set("listener", rejections);
    }
}

/// One complaint for a mirror, about its first bad port.
fn rejection(mirror: &str, ports: &[(SocketAddr, &'static str, String)]) -> Rejection {
    let (reason, mut message) =
        ports.first().map(|(_, reason, message)| (*reason, message.clone())).unwrap_or_default();
    if ports.len() > 1 {
        message.push_str(&format!(" ({} more of its ports are not bound)", ports.len() - 1));
    }
    Rejection {
        resource: ResourceKey { kind: ResourceKind::Mirror, name: mirror.to_owned() },
        reason: reason.to_owned(),
        message,
    }
}

/// The workers that listen on `address`: all of them, or fewer when there are many addresses (see [`SOCKETS`]). The
/// choice depends on the address alone, so that addresses spread over the workers.
pub(super) fn workers_for(address: SocketAddr, workers: usize, addresses: usize) -> Vec<usize> {
    let copies = (SOCKETS / addresses.max(1)).clamp(1, workers);
    let mut hasher = DefaultHasher::new();
    address.hash(&mut hasher);
    let first = usize::try_from(hasher.finish() % workers as u64).unwrap_or(0);
    (0..copies).map(|copy| (first + copy) % workers).collect()
}

/// Binds `address` and listens, `copies` times with `SO_REUSEPORT`.
///
/// The first socket is bound *before* it gets `SO_REUSEPORT`: so the kernel refuses it when anybody else listens there,
/// another gateway of the same user included. The following ones share with the first.
///
/// # Errors
/// When the address is in use by others, not ours, or not permitted.
pub fn bind(address: SocketAddr, copies: usize) -> io::Result<Vec<TcpListener>> {
    let mut sockets = Vec::with_capacity(copies);
    let mut address = address;
    for copy in 0..copies {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
        // Only for connections of an earlier process in TIME_WAIT; a listening socket still conflicts.
        socket.set_reuse_address(true)?;
        if address.is_ipv6() {
            // A mirror's address is one family; the other may be another mirror's.
            socket.set_only_v6(true)?;
        }
        if copy > 0 {
            socket.set_reuse_port(true)?;
        }
        socket.bind(&address.into())?;
        if copy == 0 {
            if copies > 1 {
                socket.set_reuse_port(true)?;
            }
            // With port 0 the kernel has chosen one: the others must use the same.
            address = socket.local_addr()?.as_socket().unwrap_or(address);
        }
        sockets.push(socket);
    }
    // Only when all are bound: no client is accepted into a socket that is closed again.
    for socket in &sockets {
        socket.listen(BACKLOG)?;
    }
    Ok(sockets.into_iter().map(TcpListener::from).collect())
}

/// A bind error as reason and sentence with remedy. Must not vary between attempts, or the status would flap.
fn explain(address: SocketAddr, error: &io::Error) -> (&'static str, String) {
    let ip = address.ip();
    match error.kind() {
        io::ErrorKind::AddrInUse => (
            "AddressInUse",
            format!(
                "another process listens on {address}; stop it, or choose another range for mirrorAddresses in site.yaml"
            ),
        ),
        io::ErrorKind::PermissionDenied => (
            "PermissionDenied",
            format!(
                "this user may not listen on {address}; give the gateway CAP_NET_BIND_SERVICE, or lower the sysctl \
                 net.ipv4.ip_unprivileged_port_start to {}",
                address.port()
            ),
        ),
        io::ErrorKind::AddrNotAvailable => (
            "AddressNotAvailable",
            format!(
                "{ip} is no address of this machine; add it to an interface, or choose mirrorAddresses inside 127.0.0.0/8"
            ),
        ),
        _ if is_starved(error) => (
            "TooManyFiles",
            format!("no file descriptors left for {address}; raise the limit (ulimit -n, LimitNOFILE=)"),
        ),
        _ => ("BindFailed", format!("cannot listen on {address}: {error}")),
    }
}

/// Whether the process or the machine is out of descriptors or socket memory.
pub(super) fn is_starved(error: &io::Error) -> bool {
    // EMFILE, ENFILE, ENOBUFS, ENOMEM: numbers of Linux; other systems fall into the general case.
    matches!(error.raw_os_error(), Some(24 | 23 | 105 | 12))
}
