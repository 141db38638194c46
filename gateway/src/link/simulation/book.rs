//! What happened in a run, and what must not have: its trace, its streams, its violations.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use linkspan_proto::names::ClusterName;
use tokio::time::Instant;

use super::flow::Plan;
use crate::link::{OpenError, StreamError};

/// A direction of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// From who opened it.
    Question,
    /// To who opened it.
    Answer,
}

/// How a direction ended for its writer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WriterEnd {
    Finished,
    /// Reset, or dropped unfinished.
    GaveUp,
    Failed(StreamError),
}

/// And for its reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ReaderEnd {
    Clean,
    Stopped,
    Failed(StreamError),
}

/// One stream, as far as it has come.
struct Flow {
    plan: Plan,
    /// When something went wrong that its plan does not explain.
    hurt: Option<Duration>,
    refused: bool,
    accepted: bool,
    /// By direction.
    writers: [Option<WriterEnd>; 2],
    readers: [Option<ReaderEnd>; 2],
}

impl Flow {
    fn is_open(&self) -> bool {
        let client = self.writers[0].is_none() || self.readers[1].is_none();
        let server = self.accepted && (self.writers[1].is_none() || self.readers[0].is_none());
        !self.refused && (client || server)
    }
}

/// The book of one run.
pub(super) struct Book {
    began: Instant,
    pages: Mutex<Pages>,
}

#[derive(Default)]
struct Pages {
    lines: Vec<String>,
    wrong: Vec<String>,
    flows: BTreeMap<u64, Flow>,
}

impl Book {
    pub(super) fn new() -> Self {
        Self { began: Instant::now(), pages: Mutex::default() }
    }

    /// Since the beginning of the run.
    pub(super) fn now(&self) -> Duration {
        self.began.elapsed()
    }

    pub(super) fn note(&self, what: &str) {
        self.pages().line(self.now(), what);
    }

    /// A violation.
    pub(super) fn wrong(&self, what: &str) {
        let now = self.now();
        self.pages().wrong(now, what);
    }

    pub(super) fn begin(&self, plan: Plan) {
        let number = plan.number;
        let flow = Flow { plan, hurt: None, refused: false, accepted: false, writers: [None; 2], readers: [None; 2] };
        self.pages().flows.insert(number, flow);
    }

    pub(super) fn opened(&self, number: u64, gateway: &ClusterName, peer: &ClusterName, error: Option<OpenError>) {
        let now = self.now();
        let mut pages = self.pages();
        match error {
            None => pages.line(now, &format!("stream {number} {gateway} to {peer} opened")),
            Some(error) => {
                pages.line(now, &format!("stream {number} {gateway} to {peer} not opened: {error:?}"));
                if let Some(flow) = pages.flows.get_mut(&number) {
                    (flow.refused, flow.hurt) = (true, Some(now));
                }
            }
        }
    }

    /// A stream has come to a gateway; gives its plan if it is right there.
    pub(super) fn accepted(&self, number: u64, gateway: usize, peer: &ClusterName) -> Option<Plan> {
        let now = self.now();
        let mut pages = self.pages();
        pages.line(now, &format!("stream {number} accepted from {peer}"));
        let Some(flow) = pages.flows.get_mut(&number) else {
            pages.wrong(now, &format!("stream {number} was accepted and never opened"));
            return None;
        };
        let twice = std::mem::replace(&mut flow.accepted, true);
        let plan = flow.plan.clone();
        if twice {
            pages.wrong(now, &format!("stream {number} was accepted twice (I2)"));
            return None;
        }
        if plan.to != gateway {
            pages.wrong(now, &format!("stream {number} came to gateway {gateway} and was for {}", plan.to));
        }
        Some(plan)
    }

    pub(super) fn wrote(&self, number: u64, way: Way, bytes: u64, end: WriterEnd) {
        let now = self.now();
        let mut pages = self.pages();
        pages.line(now, &format!("stream {number} {way:?} written {bytes}: {end:?}"));
        if let Some(flow) = pages.flows.get_mut(&number) {
            flow.writers[way as usize] = Some(end);
            if end == WriterEnd::Failed(StreamError::LinkLost) {
                flow.hurt = Some(now);
            }
        }
    }

    pub(super) fn read(&self, number: u64, way: Way, bytes: u64, end: ReaderEnd) {
        let now = self.now();
        let mut pages = self.pages();
        pages.line(now, &format!("stream {number} {way:?} read {bytes}: {end:?}"));
        let Some(flow) = pages.flows.get_mut(&number) else { return };
        flow.readers[way as usize] = Some(end);
        if end == ReaderEnd::Failed(StreamError::LinkLost) {
            flow.hurt = Some(now);
        }
        let (length, writer) = (flow.plan.course(way).length, flow.writers[way as usize]);
        if end == ReaderEnd::Clean && (bytes != length || writer != Some(WriterEnd::Finished)) {
            let what =
                format!("stream {number} {way:?} ended cleanly after {bytes} of {length}, writer {writer:?} (I1)");
            pages.wrong(now, &what);
        }
    }

    /// Streams that have not ended, of both sides.
    pub(super) fn open(&self) -> Vec<u64> {
        self.pages().flows.iter().filter(|(_, flow)| flow.is_open()).map(|(number, _)| *number).collect()
    }

    /// Streams from one gateway to another that were hurt by the link since then.
    pub(super) fn hurt(&self, direction: (usize, usize), since: Duration) -> Vec<u64> {
        let is_hurt = |flow: &Flow| flow.hurt.is_some_and(|at| at >= since);
        let pages = self.pages();
        let hurt = pages.flows.iter().filter(|(_, flow)| is_hurt(flow) && (flow.plan.from, flow.plan.to) == direction);
        hurt.map(|(number, _)| *number).collect()
    }

    /// Streams that were opened and hurt by the link since then.
    pub(super) fn lost(&self, since: Duration) -> Vec<u64> {
        let is_lost = |flow: &Flow| !flow.refused && flow.hurt.is_some_and(|at| at >= since);
        self.pages().flows.iter().filter(|(_, flow)| is_lost(flow)).map(|(number, _)| *number).collect()
    }

    /// What keeps this stream, which nothing was to disturb, from having ended as planned.
    pub(super) fn unlike_plan(&self, number: u64) -> Option<String> {
        let pages = self.pages();
        let flow = pages.flows.get(&number)?;
        let clean = |way: Way| flow.readers[way as usize] == Some(ReaderEnd::Clean);
        let question = !flow.plan.question.is_whole() || clean(Way::Question);
        let answer = !flow.plan.question.is_whole() || !flow.plan.answer.is_whole() || clean(Way::Answer);
        let ended = !flow.is_open() && flow.hurt.is_none();
        let ends = (flow.refused, flow.writers, flow.readers);
        (!question || !answer || !ended).then(|| format!("stream {number} did not end as planned: {ends:?}"))
    }

    /// All streams begun so far.
    pub(super) fn streams(&self) -> Vec<u64> {
        self.pages().flows.keys().copied().collect()
    }

    /// The trace and the violations.
    pub(super) fn close(&self) -> (Vec<String>, Vec<String>) {
        let mut pages = self.pages();
        (std::mem::take(&mut pages.lines), std::mem::take(&mut pages.wrong))
    }

    fn pages(&self) -> MutexGuard<'_, Pages> {
        self.pages.lock().unwrap()
    }
}

impl Pages {
    fn line(&mut self, now: Duration, what: &str) {
        let mut line = String::new();
        write!(line, "{:>10.4} {what}", now.as_secs_f64()).unwrap();
        self.lines.push(line);
    }

    fn wrong(&mut self, now: Duration, what: &str) {
        self.line(now, &format!("VIOLATION: {what}"));
        self.wrong.push(format!("at {:.4} s: {what}", now.as_secs_f64()));
    }
}
