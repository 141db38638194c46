//! What became of Links, exports and mirrors: objects with conditions below `state/status/`; on Kubernetes the status of the
//! objects themselves, and events ([`cluster`]).
//!
//! - **In**: findings of all stages, reports of the gateways, problems of the manifests.
//! - **Out**: `links/<cluster>.yaml`, `exports/<namespace>.<name>.yaml`, `mirrors/<namespace>.<name>.yaml` (imports end in
//!   `.clusterset.yaml`), and `manifests.yaml`.
//! - **Refuses when**: never; a file that cannot be written is tried again with the next pass.
//! - **Never does**: write what did not change, or hold up anybody: it works from the newest state, at its own pace.
//! - **Numbers**: [`PACE`], [`SHARE`].

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use std::{fs, io};

use jiff::Timestamp;
use linkspan_proto::manifest;
use linkspan_proto::resources::{Condition, ConditionStatus, NewCondition, set_condition};
use linkspan_runtime::drain::Signal;
use linkspan_runtime::text::clean;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio::sync::watch;

use crate::catalog::Snapshot;
use crate::configuration::Reports;
use crate::exchange::Peers;
use crate::files;
use crate::mirror::MirrorSet;
use crate::mirror::kubernetes::Held;
use crate::saving::Saving;
use crate::verdict::Verdict;
use crate::watch::Problem;

// In an API server.
pub mod cluster;

mod events;
mod findings;
mod objects;

use findings::{Finding, Inputs};

/// Between two passes: status is for people and for tools that poll.
pub const PACE: Duration = Duration::from_millis(250);
/// Passes take at most one part in this many of the time, however much there is to say.
pub const SHARE: u32 = 10;

/// Where the inputs come from.
#[derive(Debug)]
pub struct Sources {
    /// The catalog.
    pub snapshots: watch::Receiver<Snapshot>,
    /// The peers' catalogues.
    pub peers: watch::Receiver<Arc<Peers>>,
    /// The mirrors.
    pub mirrors: watch::Receiver<MirrorSet>,
    /// What of the mirrors is not written, and why.
    pub held: watch::Receiver<Held>,
    /// The gateways.
    pub reports: watch::Receiver<Reports>,
    /// The manifests.
    pub problems: watch::Receiver<Arc<Vec<Problem>>>,
}

/// Keeps the files up to date until the drain. Start it when the first mirrors are known: before that it would delete what
/// an earlier run found out.
pub async fn run(
    folder: PathBuf,
    own: linkspan_proto::names::ClusterName,
    mut sources: Sources,
    saving: Saving,
    signal: Signal,
) {
    let mut writer = Writer::new(folder);
    loop {
        let inputs = Inputs {
            own: own.clone(),
            snapshot: sources.snapshots.borrow_and_update().clone(),
            peers: Arc::clone(&sources.peers.borrow_and_update()),
            mirrors: sources.mirrors.borrow_and_update().clone(),
            held: Arc::clone(&sources.held.borrow_and_update()),
            reports: sources.reports.borrow_and_update().clone(),
        };
        let problems = Arc::clone(&sources.problems.borrow_and_update());
        let started = Instant::now();
        let pass = tokio::task::spawn_blocking(move || {
            let passed = writer.pass(&findings::all(&inputs), &problems);
            (writer, passed)
        });
        let Ok((kept, passed)) = pass.await else {
            tracing::error!("writing the status panicked; there is no more status until the next start");
            return;
        };
        writer = kept;
        let failed = passed.is_err();
        saving.note("status", passed);
        let pause = PACE.max(started.elapsed() * (SHARE - 1));
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = signal.closed() => return,
        }
        let again = async {
            // What could not be written is due again even if nothing changes.
            if failed { tokio::time::sleep(PACE * 20).await } else { std::future::pending().await }
        };
        let ended = tokio::select! {
            changed = sources.snapshots.changed() => changed.is_err(),
            changed = sources.peers.changed() => changed.is_err(),
            changed = sources.mirrors.changed() => changed.is_err(),
            changed = sources.held.changed() => changed.is_err(),
            changed = sources.reports.changed() => changed.is_err(),
            changed = sources.problems.changed() => changed.is_err(),
            () = again => false,
            () = signal.draining() => true,
        };
        if ended {
            return;
        }
    }
}

/// What was written so far.
#[derive(Debug)]
struct Writer {
    folder: PathBuf,
    written: BTreeMap<String, Written>,
    /// Whether the files of earlier runs were looked at.
    swept: bool,
}

/// One file. Small, because there are tens of thousands where peers export much.
#[derive(Debug)]
struct Written {
    /// Of the finding in the file; `None` when the last write failed.
    fingerprint: Option<u64>,
    /// Since when each condition has its status.
    since: Vec<(&'static str, ConditionStatus, Timestamp)>,
}

#[derive(Deserialize)]
struct OldFile {
    status: OldStatus,
}

#[derive(Deserialize)]
struct OldStatus {
    #[serde(default)]
    conditions: Vec<Condition>,
}

impl Writer {
    const FOLDERS: [&'static str; 3] = ["links", "exports", "mirrors"];

    const fn new(folder: PathBuf) -> Self {
        Self { folder, written: BTreeMap::new(), swept: false }
    }

    /// Writes what differs, as far as it can be written. The error is the last one.
    fn pass(&mut self, findings: &[Finding], problems: &[Problem]) -> io::Result<()> {
        let mut passed = Ok(());
        if !self.swept {
            match self.sweep(findings) {
                Ok(()) => self.swept = true,
                Err(error) => {
                    tracing::warn!(%error, "old status files cannot be removed");
                    passed = Err(error);
                }
            }
        }
        let now = Timestamp::now();
        for finding in findings {
            if let Err(error) = self.write(finding, now) {
                tracing::warn!(file = finding.file, %error, "status cannot be written");
                passed = Err(error);
            }
        }
        let present: BTreeSet<&str> = findings.iter().map(|finding| finding.file.as_str()).collect();
        let folder = &self.folder;
        self.written.retain(|file, _| {
            present.contains(file.as_str()) || {
                let Err(error) = files::remove(&folder.join(file)) else { return false };
                tracing::warn!(file, %error, "status cannot be removed");
                passed = Err(error);
                true
            }
        });
        if let Err(error) = write_problems(&self.folder.join("manifests.yaml"), problems) {
            tracing::warn!(%error, "the problems of the manifests cannot be written");
            passed = Err(error);
        }
        passed
    }

    fn write(&mut self, finding: &Finding, now: Timestamp) -> io::Result<()> {
        let fingerprint = finding.fingerprint();
        let known = self.written.get_mut(&finding.file);
        if known.as_ref().is_some_and(|written| written.fingerprint == Some(fingerprint)) {
            return Ok(());
        }
        let path = self.folder.join(&finding.file);
        // A restart must not make every condition look as if it had changed just now.
        let old = if known.is_none() { fs::read_to_string(&path).ok() } else { None };
        let written = match known {
            Some(written) => written,
            None => {
                let since = old.as_deref().map(|text| since(text, finding)).unwrap_or_default();
                self.written.entry(finding.file.clone()).or_insert(Written { fingerprint: None, since })
            }
        };
        written.since = finding
            .verdicts
            .iter()
            .map(|verdict| {
                let same = |(kind, status, _): &&(&str, ConditionStatus, Timestamp)| {
                    *kind == verdict.kind && *status == verdict.status
                };
                let since = written.since.iter().find(same).map_or(now, |(_, _, since)| *since);
                (verdict.kind, verdict.status, since)
            })
            .collect();
        let text = render(finding, &written.since)?;
        written.fingerprint = None;
        if old.as_deref() != Some(text.as_str()) {
            files::write_quickly(&path, text.as_bytes(), 0o644)?;
        }
        written.fingerprint = Some(fingerprint);
        Ok(())
    }

    /// Removes what earlier runs left and nothing stands for any more.
    fn sweep(&self, findings: &[Finding]) -> io::Result<()> {
        let wanted: BTreeSet<PathBuf> = findings.iter().map(|finding| self.folder.join(&finding.file)).collect();
        for folder in Self::FOLDERS {
            let folder = self.folder.join(folder);
            fs::create_dir_all(&folder)?;
            for entry in fs::read_dir(&folder)? {
                let path = entry?.path();
                if !wanted.contains(&path) {
                    files::remove(&path)?;
                }
            }
        }
        Ok(())
    }
}

/// The times in a file that an earlier run wrote, as far as the status is still the same.
fn since(text: &str, finding: &Finding) -> Vec<(&'static str, ConditionStatus, Timestamp)> {
    let old = serde_saphyr::from_str::<OldFile>(text).map(|old| old.status.conditions).unwrap_or_default();
    let of = |verdict: &Verdict| {
        let condition = old.iter().find(|condition| condition.type_ == verdict.kind)?;
        let same = condition.status == verdict.status.as_str();
        same.then_some((verdict.kind, verdict.status, condition.last_transition_time.0))
    };
    finding.verdicts.iter().filter_map(of).collect()
}

fn render(finding: &Finding, since: &[(&'static str, ConditionStatus, Timestamp)]) -> io::Result<String> {
    let mut metadata = Map::new();
    metadata.insert("name".to_owned(), json!(finding.name));
    if !finding.namespace.is_empty() {
        metadata.insert("namespace".to_owned(), json!(finding.namespace));
    }
    let mut conditions = Vec::new();
    for (verdict, (_, _, since)) in finding.verdicts.iter().zip(since) {
        let condition = NewCondition {
            kind: verdict.kind,
            status: verdict.status,
            reason: &clean(&verdict.reason),
            message: &clean(&verdict.message),
            generation: finding.generation,
        };
        set_condition(&mut conditions, condition, *since);
    }
    let mut status = finding.more.clone();
    status.insert("conditions".to_owned(), serde_json::to_value(conditions)?);
    let object = json!({
        "apiVersion": finding.api_version,
        "kind": finding.kind,
        "metadata": metadata,
        "status": status,
    });
    manifest::to_yaml(&object).map_err(io::Error::other)
}

fn write_problems(path: &Path, problems: &[Problem]) -> io::Result<()> {
    let problems: Vec<Value> = problems
        .iter()
        .map(|problem| {
            json!({
                "file": clean(&problem.file),
                "line": problem.line,
                "column": problem.column,
                "field": clean(&problem.field),
                "message": clean(&problem.message),
            })
        })
        .collect();
    let object =
        json!({ "apiVersion": linkspan_proto::resources::API_VERSION, "kind": "ManifestReport", "problems": problems });
    let text = manifest::to_yaml(&object).map_err(io::Error::other)?;
    if matches!(fs::read(path), Ok(old) if old == text.as_bytes()) {
        return Ok(());
    }
    files::write_quickly(path, text.as_bytes(), 0o644)
}

#[cfg(test)]
mod tests;
