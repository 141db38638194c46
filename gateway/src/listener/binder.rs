//! Binds what mirrors want, once for the whole process and within the budget, and hands the sockets to the workers.

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{Hash, Hasher};
use std::io;
use std::sync::Arc;

use linkspan_proto::configuration::{Rejection, ResourceKey, ResourceKind};
use linkspan_proto::names::ClusterName;
use linkspan_runtime::backoff::Backoff;
use linkspan_runtime::drain::Signal;
use tokio::sync::{mpsc, watch};

use super::accept::{Command, Worker};
use super::board::{Board, Counts, MirrorState};
use super::budget::{Budget, Grant, Ledger};
use super::sockets;
use super::{BIND_PAUSE, Bindings, Place};
use crate::discovery::Rejections;

/// Commands that wait for a worker. A worker that is this far behind is busy; the binder then waits for it.
const INLET: usize = 64;

/// Addresses bound in one go before other tasks of the control thread have their turn; some 10 microseconds each.
const BATCH: usize = 64;

/// Refused addresses of one owner that are shown one by one, and mirrors of it that are complained about. What comes above
/// is counted: a catalogue of 640,000 ports must not make the status and the admin page of everybody else unreadable, and the
/// controller takes no report above 4 MiB.
const REFUSALS_SHOWN: usize = 2_000;

/// Keeps the listening sockets equal to the wanted addresses.
#[derive(Debug)]
pub struct Binder {
    inlets: Vec<mpsc::Sender<Command>>,
    board: Arc<Board>,
    rejections: Rejections,
    ledger: Ledger,
    bound: BTreeMap<Place, Bound>,
    /// Owners whose refusals were logged, with their number.
    told: BTreeMap<Option<ClusterName>, usize>,
}

/// An address that is bound.
#[derive(Debug)]
struct Bound {
    /// The workers that listen on it.
    workers: Vec<usize>,
    grant: Grant,
}

/// Why an address is not bound.
#[derive(Debug)]
enum Failure {
    /// The system refuses.
    Bind(io::Error),
    /// The budget does, for this owner.
    Share(Option<ClusterName>),
}

impl Binder {
    /// A binder and one [`Worker`] for each worker thread. Complaints go to `rejections`.
    #[must_use]
    pub fn new(workers: usize, budget: Budget, rejections: Rejections) -> (Self, Vec<Worker>) {
        let board = Arc::new(Board::new(budget));
        let (inlets, outlets): (Vec<_>, Vec<_>) = (0..workers.max(1)).map(|_| mpsc::channel(INLET)).unzip();
        let workers = outlets
            .into_iter()
            .enumerate()
            .map(|(index, commands)| Worker { index, commands, board: Arc::clone(&board) })
            .collect();
        let ledger = Ledger::new(budget);
        (Self { inlets, board, rejections, ledger, bound: BTreeMap::new(), told: BTreeMap::new() }, workers)
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
            // What the budget refuses is not tried again by time: only another configuration changes that.
            let wait = failures.values().any(|failure| matches!(failure, Failure::Bind(_)));
            if !wait {
                backoff.reset();
            }
            let retry = async {
                match wait {
                    false => std::future::pending().await,
                    true => tokio::time::sleep(backoff.next()).await,
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

    async fn reconcile(&mut self, wanted: &Bindings) -> BTreeMap<Place, Failure> {
        let gone: Vec<_> = self.bound.keys().filter(|at| !wanted.places.contains_key(at)).copied().collect();
        for place in gone {
            let Some(bound) = self.bound.remove(&place) else { continue };
            self.ledger.release(&bound.grant);
            for worker in bound.workers {
                self.tell(worker, Command::Close(place)).await;
            }
        }
        for (place, bound) in &mut self.bound {
            self.ledger.follow(&mut bound.grant, owners(wanted, place));
        }
        let copies = self.copies(wanted);
        let mut failures = BTreeMap::new();
        let new: Vec<_> = wanted.places.keys().filter(|at| !self.bound.contains_key(at)).copied().collect();
        for (turn, place) in new.into_iter().enumerate() {
            if turn % BATCH == BATCH - 1 {
                tokio::task::yield_now().await;
            }
            if let Err(failure) = self.bind(place, owners(wanted, &place), &copies).await {
                failures.insert(place, failure);
            }
        }
        failures
    }

    /// On how many workers each owner's addresses are bound: on all of them, as far as half of its share reaches.
    fn copies(&self, wanted: &Bindings) -> BTreeMap<Option<ClusterName>, usize> {
        let mut places: BTreeMap<Option<ClusterName>, usize> = BTreeMap::new();
        for place in wanted.places.keys() {
            let owners = owners(wanted, place);
            for owner in owners.iter().map(|owner| Some(owner.clone())).chain(owners.is_empty().then_some(None)) {
                *places.entry(owner).or_default() += 1;
            }
        }
        let share = self.ledger.budget().share();
        places.values_mut().for_each(|count| *count = (share / 2 / *count).clamp(1, self.inlets.len()));
        places
    }

    /// Binds one place, if the budget allows it.
    async fn bind(
        &mut self,
        place: Place,
        owners: &[ClusterName],
        copies: &BTreeMap<Option<ClusterName>, usize>,
    ) -> Result<(), Failure> {
        let first = owners.first().cloned();
        let wished = copies.get(&first).copied().unwrap_or(1);
        let grant = self.ledger.book(owners, wished).ok_or(Failure::Share(first))?;
        let workers = workers_for(place, self.inlets.len(), grant.sockets);
        let sockets = sockets::open(place, workers.len()).map_err(|error| {
            self.ledger.release(&grant);
            Failure::Bind(error)
        })?;
        for (worker, socket) in workers.iter().zip(sockets) {
            self.tell(*worker, Command::Listen(place, socket)).await;
        }
        self.bound.insert(place, Bound { workers, grant });
        Ok(())
    }

    async fn tell(&self, worker: usize, command: Command) {
        if self.inlets[worker].send(command).await.is_err() {
            // Only while the process ends: then the sockets close by themselves.
            tracing::debug!(worker, "worker is gone");
        }
    }

    fn report(&mut self, wanted: &Bindings, failures: &BTreeMap<Place, Failure>) {
        let mut complaints: BTreeMap<&str, Vec<(Place, &'static str, String)>> = BTreeMap::new();
        let mut states = BTreeMap::new();
        let mut refused: BTreeMap<Option<ClusterName>, usize> = BTreeMap::new();
        let budget = self.ledger.budget();
        for (place, mirror) in &wanted.places {
            let (reason, message) = match failures.get(place) {
                None => ("", String::new()),
                Some(Failure::Bind(error)) => explain(*place, error),
                Some(Failure::Share(owner)) => {
                    let count = refused.entry(owner.clone()).or_default();
                    *count += 1;
                    if *count > REFUSALS_SHOWN {
                        // Not shown, and still told: DNS must not give out an address at which nobody of ours listens.
                        let told = (*place, "SocketShareUsedUp", String::new());
                        complaints.entry(mirror).or_default().push(told);
                        continue;
                    }
                    ("SocketShareUsedUp", explain_share(owner.as_ref(), budget))
                }
            };
            let workers = self.bound.get(place).map_or(0, |bound| bound.workers.len());
            let state = MirrorState {
                mirror: mirror.to_string(),
                listen: place.address,
                transport: place.transport,
                bound: workers > 0,
                workers,
                reason: reason.to_owned(),
                message: message.clone(),
            };
            states.insert(*place, state);
            if !reason.is_empty() {
                complaints.entry(mirror).or_default().push((*place, reason, message));
            }
        }
        for (place, mirror) in &wanted.conflicts {
            let holder = wanted.places.get(place).map_or("another mirror", AsRef::as_ref);
            let message = format!("{place} is taken by {holder}; give one of the two another address");
            complaints.entry(mirror).or_default().push((*place, "AddressInUse", message));
        }
        let refusals: usize = refused.values().sum();
        self.board.replace(
            states,
            Counts {
                bound: self.bound.len(),
                failed: failures.len() - refusals,
                refused: refusals,
                sockets: self.ledger.by_owner().clone(),
            },
        );
        let rejections: Vec<_> = complaints.into_iter().map(|(mirror, ports)| rejection(mirror, &ports)).collect();
        self.complain(&rejections, refused);
        self.rejections.set("listener", rejections);
    }

    /// Logs what is new: each mirror that cannot be bound, but one line for all that one owner has too many.
    fn complain(&mut self, rejections: &[Rejection], refused: BTreeMap<Option<ClusterName>, usize>) {
        let known: BTreeSet<_> = self.rejections.all().into_iter().map(|known| known.message).collect();
        let each = rejections.iter().filter(|rejection| rejection.reason != "SocketShareUsedUp");
        for rejection in each.filter(|rejection| !known.contains(&rejection.message)) {
            tracing::warn!(mirror = rejection.resource.name, reason = rejection.reason, "{}", rejection.message);
        }
        for (owner, ports) in &refused {
            if self.told.get(owner) != Some(ports) {
                let message = explain_share(owner.as_ref(), self.ledger.budget());
                let cluster = owner.as_ref().map(ClusterName::as_str);
                tracing::warn!(cluster, ports, reason = "SocketShareUsedUp", "{message}");
            }
        }
        self.told = refused;
    }
}

fn owners<'a>(wanted: &'a Bindings, place: &Place) -> &'a [ClusterName] {
    wanted.owners.get(place).map_or(&[], |owners| owners)
}

/// One complaint for a mirror, about its first bad port.
fn rejection(mirror: &str, ports: &[(Place, &'static str, String)]) -> Rejection {
    let (reason, mut message) =
        ports.first().map(|(_, reason, message)| (*reason, message.clone())).unwrap_or_default();
    if ports.len() > 1 {
        message.push_str(&format!(" ({} more of its ports are not bound)", ports.len() - 1));
    }
    Rejection {
        resource: ResourceKey { kind: ResourceKind::Mirror, name: mirror.to_owned() },
        reason: reason.to_owned(),
        message,
        ports: ports.iter().map(|(place, ..)| place.address.port()).collect(),
    }
}

/// The workers that listen at `place`, `copies` of them. The choice depends on the place alone, so that places spread over
/// the workers.
pub(super) fn workers_for(place: Place, workers: usize, copies: usize) -> Vec<usize> {
    let copies = copies.clamp(1, workers);
    let mut hasher = DefaultHasher::new();
    place.hash(&mut hasher);
    let first = usize::try_from(hasher.finish() % workers as u64).unwrap_or(0);
    (0..copies).map(|copy| (first + copy) % workers).collect()
}

/// A bind error as reason and sentence with remedy. Must not vary between attempts, or the status would flap.
fn explain(place: Place, error: &io::Error) -> (&'static str, String) {
    let ip = place.address.ip();
    match error.kind() {
        io::ErrorKind::AddrInUse => (
            "AddressInUse",
            format!(
                "another process listens on {place}; stop it, or choose another range for mirrorAddresses in site.yaml"
            ),
        ),
        io::ErrorKind::PermissionDenied => (
            "PermissionDenied",
            format!(
                "this user may not listen on {place}; give the gateway CAP_NET_BIND_SERVICE, or lower the sysctl \
                 net.ipv4.ip_unprivileged_port_start to {}",
                place.address.port()
            ),
        ),
        io::ErrorKind::AddrNotAvailable => (
            "AddressNotAvailable",
            // AnyIP: a whole network becomes local by one route. For IPv6 the kernel wants to be told that binding is meant, too.
            match ip.is_ipv4() {
                true => format!(
                    "{ip} is no address of this machine; give it the whole range (ip route add local RANGE dev lo), or choose \
                     mirrorAddresses inside 127.0.0.0/8"
                ),
                false => format!(
                    "{ip} is no address of this machine; give it the whole range (ip -6 route add local RANGE dev lo; \
                     sysctl -w net.ipv6.ip_nonlocal_bind=1), or choose mirrorAddresses inside 127.0.0.0/8"
                ),
            },
        ),
        _ if is_starved(error) => {
            ("TooManyFiles", format!("no file descriptors left for {place}; raise the limit (ulimit -n, LimitNOFILE=)"))
        }
        _ => ("BindFailed", format!("cannot listen on {place}: {error}")),
    }
}

/// The budget's refusal as a sentence with remedy. Like the others it must not vary between attempts.
fn explain_share(owner: Option<&ClusterName>, budget: Budget) -> String {
    let whose = owner.map_or_else(|| "mirrors".to_owned(), |owner| format!("services of {owner}"));
    format!(
        "{whose} need more listening sockets than their share ({} of {}, which follow the limit of open files); export \
         fewer ports there, or raise the gateway's limit (ulimit -Hn, LimitNOFILE=)",
        budget.share(),
        budget.total()
    )
}

/// Whether the process or the machine is out of descriptors or socket memory.
pub(super) fn is_starved(error: &io::Error) -> bool {
    // EMFILE, ENFILE, ENOBUFS, ENOMEM: numbers of Linux; other systems fall into the general case.
    matches!(error.raw_os_error(), Some(24 | 23 | 105 | 12))
}
