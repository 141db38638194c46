//! Interim responses (1xx) on their way from a backend's connection to the link.
//!
//! hyper calls back from the task that drives the connection; the exchange's own task writes them to the link.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;

use futures::task::AtomicWaker;
use http::{HeaderMap, Request, StatusCode};

use super::body::RequestBody;

/// Interim responses that wait. A backend that sends more before the first is on the link is talking to itself.
const QUEUE: usize = 8;

/// The interim responses of one exchange.
#[derive(Debug, Default)]
pub(crate) struct Interims {
    queue: Mutex<VecDeque<(StatusCode, HeaderMap)>>,
    waker: AtomicWaker,
}

impl Interims {
    /// Asks hyper for the interim responses to `request`. HTTP/1 only: hyper's HTTP/2 client does not show them.
    pub(crate) fn of(request: &mut Request<RequestBody>) -> Arc<Self> {
        let interims = Arc::new(Self::default());
        let into = Arc::clone(&interims);
        hyper::ext::on_informational(request, move |interim| {
            let mut headers = interim.headers().clone();
            super::request::clean_interim(&mut headers);
            let mut queue = into.queue.lock().unwrap_or_else(PoisonError::into_inner);
            if queue.len() < QUEUE {
                queue.push_back((interim.status(), headers));
                into.waker.wake();
            }
        });
        interims
    }

    /// The next one. Cancel-safe.
    pub(crate) async fn next(&self) -> (StatusCode, HeaderMap) {
        std::future::poll_fn(|cx| {
            self.waker.register(cx.waker());
            self.take().map_or(Poll::Pending, Poll::Ready)
        })
        .await
    }

    /// [`Self::next`] where there are any; never, where hyper shows none.
    pub(crate) async fn next_of(interims: Option<&Self>) -> (StatusCode, HeaderMap) {
        match interims {
            Some(interims) => interims.next().await,
            None => std::future::pending().await,
        }
    }

    /// One that is there already.
    pub(crate) fn take(&self) -> Option<(StatusCode, HeaderMap)> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
    }
}
