use std::sync::Arc;

use http::HeaderMap;
use linkspan_proto::frames::{Event, FrameReader, Side};

use super::*;

/// A body that plays back what it was given.
struct Script(std::collections::VecDeque<Poll<Result<Frame<Bytes>, Cut>>>);

impl Script {
    fn new(steps: impl IntoIterator<Item = Poll<Result<Frame<Bytes>, Cut>>>) -> Self {
        Self(steps.into_iter().collect())
    }
}

fn data(bytes: &'static [u8]) -> Poll<Result<Frame<Bytes>, Cut>> {
    Poll::Ready(Ok(Frame::data(Bytes::from_static(bytes))))
}

impl Frames for Script {
    fn poll_next(&mut self, _cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        match self.0.pop_front() {
            None => Poll::Ready(None),
            Some(step) => step.map(Some),
        }
    }

    fn at_end(&self) -> bool {
        false
    }
}

fn gathered(body: &mut Script) -> (Result<Gathered, Cut>, Vec<Bytes>, usize) {
    let (mut chunks, mut moved) = (Vec::new(), 0);
    let mut cx = Context::from_waker(std::task::Waker::noop());
    let gathered = gather(body, &mut cx, &mut chunks, |bytes| moved += bytes);
    (gathered, chunks, moved)
}

/// What the other side makes of the chunks.
fn read(chunks: Vec<Bytes>) -> Vec<Event> {
    let mut reader = FrameReader::new(Side::Response);
    let head = frames::ResponseHead { status: http::StatusCode::OK, headers: HeaderMap::new() };
    reader.push(frames::encode_response_head(&head).expect("a head"));
    chunks.into_iter().for_each(|chunk| reader.push(chunk));
    std::iter::from_fn(|| reader.next().expect("well formed")).skip(1).collect()
}

#[test]
fn what_is_there_is_gathered_uncopied() {
    let first: &'static [u8] = b"one";
    let mut body = Script::new([data(first), data(b""), data(b"two"), Poll::Pending, data(b"three")]);
    let (result, chunks, moved) = gathered(&mut body);
    assert_eq!((result, moved), (Ok(Gathered::Pending), 6));
    assert_eq!(chunks[1].as_ptr(), first.as_ptr());
    assert_eq!(read(chunks), [Event::Data(Bytes::from("one")), Event::Data(Bytes::from("two"))]);
    let (result, chunks, moved) = gathered(&mut body);
    assert_eq!((result, moved), (Ok(Gathered::End), 5));
    assert_eq!(read(chunks), [Event::Data(Bytes::from("three"))]);
}

#[test]
fn trailers_end_the_body() {
    let trailers = HeaderMap::from_iter([("x-sum".parse().expect("a name"), "1".parse().expect("a value"))]);
    let mut body = Script::new([data(b"one"), Poll::Ready(Ok(Frame::trailers(trailers.clone()))), data(b"never")]);
    let (result, chunks, _) = gathered(&mut body);
    assert_eq!(result, Ok(Gathered::End));
    assert_eq!(read(chunks), [Event::Data(Bytes::from("one")), Event::Trailers(trailers)]);
}

#[test]
fn a_cut_is_an_error() {
    let mut body = Script::new([data(b"one"), Poll::Ready(Err(Cut::Backend))]);
    assert_eq!(gathered(&mut body).0, Err(Cut::Backend));
}

#[test]
fn one_write_has_a_bound() {
    let mut large = Script::new((0..10).map(|_| Poll::Ready(Ok(Frame::data(Bytes::from(vec![0; 100 * 1024]))))));
    let (result, _, moved) = gathered(&mut large);
    assert_eq!((result, moved), (Ok(Gathered::Enough), 300 * 1024));
    let mut tiny = Script::new((0..1000).map(|_| data(b"x")));
    let (result, chunks, _) = gathered(&mut tiny);
    assert_eq!((result, chunks.len()), (Ok(Gathered::Enough), 2 * BURST_FRAMES));
}

#[test]
fn every_cut_has_a_refusal_and_resets_as_it_should() {
    for (cut, refusal, reset) in [
        (Cut::Client, Refusal::Cancelled, h2::Reason::CANCEL),
        (Cut::Unwanted, Refusal::Cancelled, h2::Reason::CANCEL),
        (Cut::Backend, Refusal::BackendReset, h2::Reason::INTERNAL_ERROR),
        (Cut::Length, Refusal::BackendReset, h2::Reason::INTERNAL_ERROR),
        (Cut::Idle, Refusal::Idle, h2::Reason::INTERNAL_ERROR),
        (Cut::Deadline, Refusal::Deadline, h2::Reason::INTERNAL_ERROR),
        (Cut::Frames(FrameError::Truncated), Refusal::Protocol, h2::Reason::INTERNAL_ERROR),
        (Cut::Stream(StreamError::Reset(Refusal::Overloaded)), Refusal::Overloaded, h2::Reason::INTERNAL_ERROR),
        (Cut::Stream(StreamError::LinkLost), Refusal::BackendReset, h2::Reason::INTERNAL_ERROR),
    ] {
        assert_eq!(cut.refusal(), refusal, "{cut:?}");
        let error = Arc::new(BodyError::from(cut));
        let source = error.source().and_then(|source| source.downcast_ref::<h2::Error>()).expect("a reason for h2");
        assert_eq!(source.reason(), Some(reset), "{cut:?}");
    }
    assert_eq!(Cut::Stream(StreamError::LinkLost).outcome(), Outcome::LinkLost);
    assert_eq!(Cut::Client.outcome(), Outcome::ClientGone);
}
