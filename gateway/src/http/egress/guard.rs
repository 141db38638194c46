//! Watches over the streams of an HTTP/2 client that nobody else watches: a response whose client has closed its window
//! keeps hyper from asking for the next piece of the body, and with that the body's own idle timer from being looked at.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use linkspan_runtime::task;
use pin_project_lite::pin_project;
use tokio::time::{Instant, Sleep};

use crate::http::IDLE;

/// Spawns hyper's streams, each with a limit on how long it may go without being woken.
#[derive(Clone, Copy, Debug)]
pub(super) struct Executor;

impl<F> hyper::rt::Executor<F> for Executor
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, stream: F) {
        // Detached by hyper's contract: it ends with the connection.
        drop(task::spawn("http2_stream", Watched { stream, timer: None, woken: Instant::now() }));
    }
}

pin_project! {
    /// A stream. Dropping it resets it.
    struct Watched<F> {
        #[pin]
        stream: F,
        timer: Option<Pin<Box<Sleep>>>,
        woken: Instant,
    }
}

impl<F: Future<Output = ()>> Future for Watched<F> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.project();
        if let Some(timer) = this.timer
            && timer.as_mut().poll(cx).is_ready()
        {
            let due = *this.woken + IDLE;
            if due <= Instant::now() {
                tracing::debug!("a client takes nothing of its response; reset");
                return Poll::Ready(());
            }
            timer.as_mut().reset(due);
            // Arms it.
            _ = timer.as_mut().poll(cx);
        } else {
            // Woken for another reason than the timer.
            *this.woken = Instant::now();
        }
        let polled = this.stream.poll(cx);
        if polled.is_pending() && this.timer.is_none() {
            let mut timer = Box::pin(tokio::time::sleep_until(*this.woken + IDLE));
            _ = timer.as_mut().poll(cx);
            *this.timer = Some(timer);
        }
        polled
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use tokio::sync::Notify;

    use super::*;

    fn watched<F: Future<Output = ()>>(stream: F) -> Watched<F> {
        Watched { stream, timer: None, woken: Instant::now() }
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_that_nothing_wakes_is_dropped() {
        let begun = Instant::now();
        watched(std::future::pending()).await;
        assert!(begun.elapsed() >= IDLE && begun.elapsed() < IDLE + Duration::from_secs(1), "{:?}", begun.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_that_is_woken_lives() {
        let wake = Arc::new(Notify::new());
        let waker = Arc::clone(&wake);
        tokio::spawn(async move {
            for _ in 0..5 {
                tokio::time::sleep(IDLE - Duration::from_secs(1)).await;
                waker.notify_one();
            }
        });
        let begun = Instant::now();
        watched(async {
            for _ in 0..5 {
                wake.notified().await;
            }
        })
        .await;
        assert!(begun.elapsed() >= (IDLE - Duration::from_secs(1)) * 5, "{:?}", begun.elapsed());
    }
}
