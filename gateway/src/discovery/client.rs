//! The call to the controller, kept up for the life of the gateway.

use std::sync::Arc;
use std::time::Duration;

use futures::Stream;
use linkspan_proto::configuration::{LinkReport, Rejection, Report, decode_update, encode_report};
use linkspan_proto::generated::configuration as wire;
use linkspan_proto::generated::configuration::configuration_client::ConfigurationClient;
use linkspan_runtime::backoff::Backoff;
use linkspan_runtime::{build_info, task};
use tokio::sync::{mpsc, watch};

use super::assembly::{Assembly, AssemblyError};
use super::controller::Controller;
use super::{Rejections, Snapshot};

/// Pauses between calls. Short to the end: the next leader of a cluster is found within them, and an attempt costs a connection.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

/// A call that lasted this long did not fail.
const STABLE: Duration = Duration::from_secs(10);

/// Reports that wait to be sent; more than there are kinds.
const REPORTS: usize = 8;

/// Links are reported at each change and at least this often: their figures move all the time.
const LINKS_EVERY: Duration = Duration::from_secs(5);

/// Text of all complaints in one report. The controller takes no report above 4 MiB and would end the call; what is left out
/// still stands on `/mirrors` and in the log.
const COMPLAINTS: usize = 2 * 1024 * 1024;

/// After a change, a moment for those that follow it: a link that comes up changes three times.
const SETTLE: Duration = Duration::from_millis(20);

/// Subscribes to the controller.
pub struct Client {
    /// Where the controller is.
    pub controller: Controller,
    /// Unique for each start of this process.
    pub boot_id: String,
    /// The newest whole configuration goes here.
    pub snapshots: watch::Sender<Arc<Snapshot>>,
    /// The generation that is in force, as `app` says.
    pub applied: watch::Receiver<u64>,
    /// What stages complain about.
    pub rejections: Rejections,
    /// How the links stand, when asked.
    pub links: Arc<dyn Fn() -> Vec<LinkReport> + Send + Sync>,
    /// Counts what an operator would notice of them.
    pub link_changes: watch::Receiver<u64>,
}

/// Why a call ended.
#[derive(Debug, thiserror::Error)]
enum CallError {
    #[error("{}", .0.message())]
    Controller(#[from] tonic::Status),
    #[error(transparent)]
    Assembly(#[from] AssemblyError),
    #[error("the controller ended the call")]
    Ended,
}

impl Client {
    /// Keeps the call up. Runs until dropped.
    pub async fn run(self) {
        let mut backoff = Backoff::new(BACKOFF.0, BACKOFF.1);
        let mut told = false;
        loop {
            let started = tokio::time::Instant::now();
            let generation = self.applied_here();
            let Err(error) = self.call().await;
            if started.elapsed() >= STABLE || self.applied_here() != generation {
                backoff.reset();
                told = false;
            }
            // Once for each time that it goes away: a controller may be absent for long, and that is no emergency.
            if std::mem::replace(&mut told, true) {
                tracing::debug!(%error, "no configuration stream");
            } else {
                tracing::warn!(%error, "no configuration stream; the last good configuration stays in force");
            }
            tokio::time::sleep(backoff.next()).await;
        }
    }

    fn applied_here(&self) -> u64 {
        *self.applied.borrow()
    }

    async fn call(&self) -> Result<std::convert::Infallible, CallError> {
        let mut client = ConfigurationClient::new(self.controller.channel());
        let (reports, outgoing) = mpsc::channel(REPORTS);
        let reporter = Reporter {
            boot_id: self.boot_id.clone(),
            applied: self.applied.clone(),
            rejections: self.rejections.clone(),
            links: Arc::clone(&self.links),
            link_changes: self.link_changes.clone(),
            reports,
        };
        let reporting = AbortOnDrop(task::spawn("discovery_report", reporter.run()));
        let mut updates = client.subscribe(stream(outgoing)).await?.into_inner();
        tracing::debug!("configuration stream open");
        let mut assembly = Assembly::new(Arc::clone(&self.snapshots.borrow()));
        while let Some(part) = updates.message().await? {
            let update = decode_update(&part);
            for message in &update.unreadable {
                tracing::warn!(message, "a resource cannot be read; are gateway and controller of one version?");
            }
            if let Some(snapshot) = assembly.take(update)? {
                tracing::debug!(
                    generation = snapshot.generation,
                    resources = snapshot.resources.len(),
                    "configuration"
                );
                self.snapshots.send_replace(snapshot);
            }
        }
        drop(reporting);
        Err(CallError::Ended)
    }
}

struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn stream(receiver: mpsc::Receiver<wire::GatewayReport>) -> impl Stream<Item = wire::GatewayReport> + Send + 'static {
    futures::stream::unfold(receiver, |mut receiver| async move {
        let report = receiver.recv().await?;
        Some((report, receiver))
    })
}

/// As many complaints as a report carries.
fn bounded(mut reasons: Vec<Rejection>) -> Vec<Rejection> {
    let mut length = 0;
    let fits = |rejection: &&Rejection| {
        // The fields' tags and lengths take less than that.
        length += rejection.resource.name.len() + rejection.reason.len() + rejection.message.len() + 32;
        length <= COMPLAINTS
    };
    let kept = reasons.iter().take_while(fits).count();
    if kept < reasons.len() {
        tracing::warn!(left_out = reasons.len() - kept, "more complaints than a report to the controller may hold");
        reasons.truncate(kept);
    }
    reasons
}

/// Sends the reports of one call.
struct Reporter {
    boot_id: String,
    applied: watch::Receiver<u64>,
    rejections: Rejections,
    links: Arc<dyn Fn() -> Vec<LinkReport> + Send + Sync>,
    link_changes: watch::Receiver<u64>,
    reports: mpsc::Sender<wire::GatewayReport>,
}

impl Reporter {
    /// Ends when the call does.
    async fn run(mut self) {
        let hello = Report::Hello { boot_id: self.boot_id.clone(), version: build_info::VERSION.to_owned() };
        let mut open = self.send(&hello).await;
        let mut rejections = self.rejections.changes();
        // A new controller knows nothing: everything is said once.
        rejections.mark_changed();
        self.link_changes.mark_changed();
        let mut every = tokio::time::interval(LINKS_EVERY);
        while open {
            open = tokio::select! {
                changed = self.applied.changed() => {
                    let generation = *self.applied.borrow_and_update();
                    changed.is_ok() && self.send(&Report::Acknowledged { generation }).await
                }
                changed = rejections.changed() => {
                    drop(rejections.borrow_and_update());
                    changed.is_ok() && self.send(&Report::Rejected { reasons: bounded(self.rejections.all()) }).await
                }
                changed = self.link_changes.changed() => {
                    tokio::time::sleep(SETTLE).await;
                    self.link_changes.mark_unchanged();
                    every.reset();
                    changed.is_ok() && self.send_links().await
                }
                _ = every.tick() => self.send_links().await,
            };
        }
    }

    async fn send_links(&self) -> bool {
        self.send(&Report::Links { links: (self.links)() }).await
    }

    /// Whether the call is still open.
    async fn send(&self, report: &Report) -> bool {
        match encode_report(report) {
            Ok(report) => self.reports.send(report).await.is_ok(),
            Err(error) => {
                tracing::error!(%error, "a report cannot be written");
                true
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use linkspan_proto::configuration::{ResourceKey, ResourceKind};

    use super::*;

    #[test]
    fn a_report_of_countless_complaints_stays_below_what_the_controller_takes() {
        let complaint = |number: usize| Rejection {
            resource: ResourceKey { kind: ResourceKind::Mirror, name: format!("{number:0253}") },
            reason: "SocketShareUsedUp".to_owned(),
            message: "x".repeat(250),
            ports: vec![80],
        };
        let few: Vec<_> = (0..100).map(complaint).collect();
        assert_eq!(bounded(few.clone()), few);
        let reasons = bounded((0..20_000).map(complaint).collect());
        assert!(reasons.len() > 3_000);
        let text = |rejection: &Rejection| rejection.resource.name.len() + rejection.message.len();
        assert!(reasons.iter().map(text).sum::<usize>() < COMPLAINTS, "half of what the controller takes");
    }
}
