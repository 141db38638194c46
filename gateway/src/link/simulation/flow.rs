//! Streams of a run: what each side of one shall do, and the two sides doing it.
//!
//! Every byte of a stream follows from its number, its direction and its place, so a reader needs nothing but these to know
//! that a byte is the right one. The question begins with the number: that is how the serving side knows it.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::future::BoxFuture;
use linkspan_proto::identity::{Assurance, Source, SpiffeId, TrustDomain};
use linkspan_proto::names::ServiceKey;
use linkspan_proto::refusal::Refusal;
use linkspan_proto::stream_header::{StreamHeader, StreamKind};
use rand::Rng;
use rand::rngs::SmallRng;

use super::book::{Book, ReaderEnd, Way, WriterEnd};
use crate::link::{Incoming, Ingress, RecvHalf, SendHalf};

/// What a question begins with.
pub(super) const NUMBER: u64 = 8;

/// Written and read at once.
const CHUNK: u64 = 8 * 1024;

/// How one direction of a stream goes.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Course {
    pub(super) length: u64,
    pub(super) ending: Ending,
    /// Between two chunks.
    pub(super) pause: Duration,
    pub(super) reading: Reading,
}

/// What the writer does in the end, or before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    Finish,
    Reset(u64),
    Drop(u64),
}

/// What the reader does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reading {
    /// Everything, with a pause after each chunk.
    All(Duration),
    Stop(u64),
}

/// One stream.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Plan {
    pub(super) number: u64,
    pub(super) from: usize,
    pub(super) to: usize,
    pub(super) question: Course,
    pub(super) answer: Course,
    /// The answer begins when the question has ended.
    pub(super) in_turn: bool,
}

impl Course {
    /// Whole, and as fast as it goes.
    pub(super) const fn whole(length: u64) -> Self {
        Self { length, ending: Ending::Finish, pause: Duration::ZERO, reading: Reading::All(Duration::ZERO) }
    }

    /// Whole, a chunk every `pause`, for so long.
    pub(super) fn steady(pause: Duration, time: Duration) -> Self {
        let chunks = (time.as_millis() / pause.as_millis().max(1)) as u64;
        Self { pause, ..Self::whole(NUMBER.max(chunks * 1024)) }
    }

    /// As they come: most are short and end well.
    fn drawn(random: &mut SmallRng) -> Self {
        let magnitude = random.random_range(3..=16_u32);
        let length = NUMBER + random.random_range(0..1_u64 << magnitude);
        let place = random.random_range(0..=length);
        let ending = match random.random_range(0..100) {
            0..8 => Ending::Reset(place),
            8..16 => Ending::Drop(place),
            _ => Ending::Finish,
        };
        let place = random.random_range(0..=length);
        let millis = Duration::from_millis(random.random_range(1..40));
        let reading = match random.random_range(0..100) {
            0..8 => Reading::Stop(place),
            8..20 => Reading::All(millis),
            _ => Reading::All(Duration::ZERO),
        };
        let pause = if random.random_ratio(1, 10) { millis } else { Duration::ZERO };
        Self { length, ending, pause, reading }
    }

    /// Whether it ends cleanly if nothing is in the way.
    pub(super) fn is_whole(&self) -> bool {
        self.ending == Ending::Finish && matches!(self.reading, Reading::All(_))
    }

    /// The size of one write.
    fn chunk(&self) -> u64 {
        if self.pause.is_zero() { CHUNK } else { 1024 }
    }
}

impl Plan {
    pub(super) fn drawn(number: u64, from: usize, to: usize, random: &mut SmallRng) -> Self {
        let (question, answer) = (Course::drawn(random), Course::drawn(random));
        Self { number, from, to, question, answer, in_turn: random.random() }
    }

    pub(super) fn course(&self, way: Way) -> &Course {
        match way {
            Way::Question => &self.question,
            Way::Answer => &self.answer,
        }
    }
}

/// `length` bytes of a direction from `start` on.
fn content(number: u64, way: Way, start: u64, length: u64) -> Bytes {
    let mut bytes = BytesMut::with_capacity(length as usize + 16);
    let first = start / 8;
    for index in first..(start + length).div_ceil(8) {
        let word = match (way, index) {
            (Way::Question, 0) => number,
            _ => {
                (number * 2 + way as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)
                    ^ index.wrapping_mul(0xff51_afd7_ed55_8ccd)
            }
        };
        bytes.extend_from_slice(&word.to_be_bytes());
    }
    let skipped = (start - first * 8) as usize;
    bytes.freeze().slice(skipped..skipped + length as usize)
}

async fn write(book: &Book, plan: &Plan, way: Way, mut send: SendHalf) {
    let course = plan.course(way);
    let end = match course.ending {
        Ending::Finish => course.length,
        Ending::Reset(at) | Ending::Drop(at) => at,
    };
    let mut written = 0;
    while written < end {
        let size = course.chunk().min(end - written);
        if let Err(error) = send.write(content(plan.number, way, written, size)).await {
            return book.wrote(plan.number, way, written, WriterEnd::Failed(error));
        }
        written += size;
        if !course.pause.is_zero() {
            tokio::time::sleep(course.pause).await;
        }
    }
    let ended = match course.ending {
        Ending::Finish => send.finish().map_or_else(WriterEnd::Failed, |()| WriterEnd::Finished),
        Ending::Reset(_) => {
            send.reset(Refusal::BackendReset);
            WriterEnd::GaveUp
        }
        // Said by the drop.
        Ending::Drop(_) => WriterEnd::GaveUp,
    };
    book.wrote(plan.number, way, written, ended);
}

async fn read(book: &Book, plan: &Plan, way: Way, mut recv: RecvHalf) -> ReaderEnd {
    let reading = plan.course(way).reading;
    let mut seen = 0;
    let end = loop {
        if matches!(reading, Reading::Stop(at) if seen >= at) {
            recv.stop(Refusal::Cancelled);
            break ReaderEnd::Stopped;
        }
        match recv.read(CHUNK as usize).await {
            Ok(Some(bytes)) => {
                if bytes != content(plan.number, way, seen, bytes.len() as u64) {
                    book.wrong(&format!("stream {} {way:?}: other bytes than were sent, after {seen}", plan.number));
                }
                seen += bytes.len() as u64;
            }
            Ok(None) => break ReaderEnd::Clean,
            Err(error) => break ReaderEnd::Failed(error),
        }
        if let Reading::All(pause) = reading
            && !pause.is_zero()
        {
            tokio::time::sleep(pause).await;
        }
    };
    book.read(plan.number, way, seen, end);
    end
}

/// The opening side, to the end of both directions.
pub(super) async fn ask(book: &Book, plan: &Plan, domain: &TrustDomain, (mut send, recv): (SendHalf, RecvHalf)) {
    let header = StreamHeader {
        service: Some(ServiceKey::parse("shop/web").unwrap()),
        port: 80,
        source: Some(Source::new(SpiffeId::node(domain), Assurance::Gateway)),
        ..StreamHeader::new(StreamKind::Tcp)
    };
    if let Err(error) = send.write(header.encode().unwrap()).await {
        book.wrote(plan.number, Way::Question, 0, WriterEnd::Failed(error));
        book.read(plan.number, Way::Answer, 0, ReaderEnd::Failed(error));
        return;
    }
    futures::join!(write(book, plan, Way::Question, send), read(book, plan, Way::Answer, recv));
}

/// The serving side of one gateway.
pub(super) struct Serving {
    pub(super) book: Arc<Book>,
    pub(super) gateway: usize,
}

impl Ingress for Serving {
    fn stream(&self, incoming: Incoming) -> BoxFuture<'static, ()> {
        let (book, gateway) = (Arc::clone(&self.book), self.gateway);
        Box::pin(async move { serve(&book, gateway, incoming).await })
    }
}

async fn serve(book: &Book, gateway: usize, incoming: Incoming) {
    let Incoming { peer, send, mut recv, .. } = incoming;
    // A question that ends within its number has nobody to answer.
    let Some(number) = number(&mut recv).await else { return };
    let Some(plan) = book.accepted(number, gateway, &peer.cluster) else { return };
    if !plan.in_turn {
        futures::join!(read(book, &plan, Way::Question, recv), write(book, &plan, Way::Answer, send));
        return;
    }
    match read(book, &plan, Way::Question, recv).await {
        // Dropped unfinished: a reset.
        ReaderEnd::Failed(_) => book.wrote(number, Way::Answer, 0, WriterEnd::GaveUp),
        ReaderEnd::Clean | ReaderEnd::Stopped => write(book, &plan, Way::Answer, send).await,
    }
}

/// What the question begins with; given back, so that it is read like everything else.
async fn number(recv: &mut RecvHalf) -> Option<u64> {
    let mut so_far = BytesMut::new();
    while so_far.len() < NUMBER as usize {
        so_far.extend_from_slice(&recv.read(CHUNK as usize).await.ok()??);
    }
    let number = u64::from_be_bytes(so_far[..NUMBER as usize].try_into().unwrap());
    recv.unread(so_far.freeze());
    Some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_follows_from_its_place_alone() {
        for way in [Way::Question, Way::Answer] {
            let all = content(7, way, 0, 100);
            for (start, length) in [(0, 100), (1, 3), (8, 8), (13, 40), (99, 1)] {
                assert_eq!(content(7, way, start, length), all[start as usize..(start + length) as usize]);
            }
        }
        assert_eq!(content(7, Way::Question, 0, NUMBER), 7_u64.to_be_bytes().as_slice());
        assert_ne!(content(7, Way::Answer, 0, 64), content(8, Way::Answer, 0, 64));
        assert_ne!(content(7, Way::Answer, 8, 64), content(7, Way::Question, 8, 64));
    }
}
