//! Which of several controllers leads, on Kubernetes: the only one that writes, and the only one that gateways listen to.
//!
//! ```text
//! Lease linkspan-controller <-- calls -- driver --> Leading --> mirrors, status, events: may this be written now?
//!                                         |  \--> the stages start when it is won
//!                                    candidate (pure)
//! ```
//!
//! What a controller does that does not lead, and why no more. Gateways must never be told another port for a name than the
//! EndpointSlices of that name say, or clients would reach the wrong service. Ports are given out by the leader alone and
//! live in the objects that it writes. A controller that stands by therefore gives none and tells no gateway anything: it
//! holds no state at all that could differ. It opens the port for gateways, reads what was given out, and starts its stages
//! only once it has won the lease; gateways find the one that has the port open (the Service is headless), and keep their last
//! configuration while leadership moves. What a controller can do in standby it does: it answers DNS, from the
//! ServiceImports in the API server and the EndpointSlices of headless ones, which are the leader's word.
//!
//! A leader that cannot renew writes nothing and gives out no new port, but goes on with everything else: when the API server
//! is away nobody can take over, and certificates, catalogues and names are needed all the same. When another one leads, the
//! process ends and comes back in standby: what it knows is not worth more than what it can read anew.
//!
//! - **In**: the Lease.
//! - **Out**: [`Leading`].
//! - **Refuses when**: a write begins that may end after another could lead ([`Leading::write`]).
//! - **Never does**: compare times of two machines; lead on after [`candidate::RENEW_DEADLINE`] without a renewal.
//! - **Numbers**: [`candidate::LEASE`], [`candidate::RENEW_DEADLINE`], [`candidate::RETRY`], [`lease::CALL`], [`LAST_WRITES`].

use std::future::Future;
use std::time::Duration;

use jiff::Timestamp;
use linkspan_runtime::drain::Signal;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use candidate::{Answer, Call, Candidate, Standing};

// When to ask for what.
pub mod candidate;
// The object.
pub mod lease;

/// On a drain: for writes that have begun. The process has 5 s in all, and the lease is still to be given back.
pub const LAST_WRITES: Duration = Duration::from_secs(3);

/// Where the lease is kept.
pub trait Store: Send + Sync {
    /// One call.
    fn call(&self, call: Call) -> impl Future<Output = Answer> + Send;
}

/// What is known about leadership.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct State {
    /// Until when this controller leads if nothing happens; `None` while it does not.
    until: Option<Instant>,
    /// Who was last seen to lead.
    holder: Option<String>,
}

/// Whether this controller leads. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Leading {
    /// `None` where nobody else could: on a site.
    state: Option<watch::Receiver<State>>,
    /// What [`Leading::changed`] said last.
    told: bool,
    writes: TaskTracker,
}

/// The other end of [`Leading`].
#[derive(Debug)]
pub struct Office {
    state: watch::Sender<State>,
    writes: TaskTracker,
}

/// A write that has begun. The lease is not given back while one is there.
#[derive(Debug)]
pub struct Write {
    _token: TaskTrackerToken,
}

impl Office {
    /// Nobody leads yet.
    #[must_use]
    pub fn new() -> (Self, Leading) {
        let (state, receiver) = watch::channel(State::default());
        let writes = TaskTracker::new();
        (Self { state, writes: writes.clone() }, Leading { state: Some(receiver), told: false, writes })
    }

    fn publish(&self, candidate: &Candidate, now: Instant) {
        let until = match candidate.standing(now.into_std()) {
            Standing::Leading(until) => Some(Instant::from_std(until)),
            Standing::Standby | Standing::Lapsed | Standing::Superseded => None,
        };
        let state = State { until, holder: candidate.holder().map(str::to_owned) };
        self.state.send_if_modified(|current| {
            let differs = *current != state;
            *current = state;
            differs
        });
    }
}

impl Leading {
    /// Always, for who has no rival: a site.
    #[must_use]
    pub fn always() -> Self {
        Self { state: None, told: true, writes: TaskTracker::new() }
    }

    /// Whether this controller leads at this moment.
    #[must_use]
    pub fn holds(&self) -> bool {
        let until = self.state.as_ref().map(|state| state.borrow().until);
        until.is_none_or(|until| until.is_some_and(|until| Instant::now() < until))
    }

    /// Permission for one write of a few seconds, if this controller leads. Keep it until the answer came.
    #[must_use]
    pub fn write(&self) -> Option<Write> {
        // In this order: who gives the lease back looks at the writes after it has said that it leads no more.
        let token = self.writes.token();
        self.holds().then_some(Write { _token: token })
    }

    /// Resolves when [`Leading::holds`] says something else than when this resolved last; at first, than no.
    pub async fn changed(&mut self) {
        let Some(state) = &mut self.state else { return std::future::pending().await };
        loop {
            let until = state.borrow_and_update().until.filter(|until| Instant::now() < *until);
            if until.is_some() != self.told {
                self.told = until.is_some();
                return;
            }
            let lapse = async {
                match until {
                    Some(until) => tokio::time::sleep_until(until).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                changed = state.changed() => if changed.is_err() {
                    return std::future::pending().await;
                },
                () = lapse => {}
            }
        }
    }

    /// Resolves when this controller leads.
    pub async fn won(&mut self) {
        while !self.holds() {
            self.changed().await;
        }
    }

    /// Who leads, as far as is known.
    #[must_use]
    pub fn holder(&self) -> Option<String> {
        self.state.as_ref().and_then(|state| state.borrow().holder.clone())
    }
}

/// Stands for the lease until the drain, and gives it back then. Ends earlier when another one leads after this one did.
pub async fn run(store: impl Store, identity: String, office: Office, signal: Signal) {
    let _guard = signal.guard();
    let mut candidate = Candidate::new(identity, rand::random(), Instant::now().into_std());
    let mut told = Standing::Standby;
    while !signal.is_draining() {
        if let Some(call) = candidate.poll(Instant::now().into_std(), Timestamp::now()) {
            let asking = store.call(call);
            tokio::pin!(asking);
            let answer = loop {
                tokio::select! {
                    answer = &mut asking => break answer,
                    // The answer may come late: the deadline is told in time.
                    () = lapse(&candidate) => report(&office, &candidate, &mut told),
                }
            };
            candidate.answer(Instant::now().into_std(), answer);
            report(&office, &candidate, &mut told);
            if told == Standing::Superseded {
                return;
            }
            continue;
        }
        tokio::select! {
            () = tokio::time::sleep_until(Instant::from_std(candidate.due())) => {}
            () = lapse(&candidate) => report(&office, &candidate, &mut told),
            () = signal.draining() => {}
        }
    }
    release(&store, &candidate, &office).await;
}

/// Resolves when the candidate's leadership runs out.
async fn lapse(candidate: &Candidate) {
    match candidate.standing(Instant::now().into_std()) {
        Standing::Leading(until) => tokio::time::sleep_until(Instant::from_std(until)).await,
        _ => std::future::pending().await,
    }
}

async fn release(store: &impl Store, candidate: &Candidate, office: &Office) {
    office.state.send_modify(|state| state.until = None);
    office.writes.close();
    if tokio::time::timeout(LAST_WRITES, office.writes.wait()).await.is_err() {
        tracing::warn!("a write is still under way; the lease is left to run out");
        return;
    }
    let Some(call) = candidate.release(Timestamp::now()) else { return };
    if let Answer::Written(_) = store.call(call).await {
        tracing::info!("the lease was given back");
    } else {
        tracing::warn!("the lease could not be given back; the next leader waits for it to run out");
    }
}

/// Tells everybody, and the log what changed.
fn report(office: &Office, candidate: &Candidate, told: &mut Standing) {
    let now = Instant::now();
    let standing = candidate.standing(now.into_std());
    office.publish(candidate, now);
    let kind = std::mem::discriminant(&standing);
    if kind != std::mem::discriminant(told) {
        let holder = candidate.holder().unwrap_or("nobody");
        match standing {
            Standing::Leading(_) => tracing::info!("this controller leads now"),
            Standing::Lapsed => {
                tracing::warn!("the lease cannot be renewed: nothing is written until it can, or another one leads");
            }
            Standing::Superseded => tracing::error!(holder, "another controller leads now; this one starts anew"),
            Standing::Standby => tracing::info!(holder, "this controller stands by"),
        }
    }
    *told = standing;
}

#[cfg(test)]
mod tests;
