//! What an API server asks of its clients: to come again later.
//!
//! - **In**: the answers to all requests of this controller.
//! - **Out**: [`Pressure::until`], before which no write of a mirror begins ([`crate::mirror::kubernetes`]).
//! - **Never does**: hold a request up itself: the lease must be renewed, and watches have pauses of their own.
//! - **Numbers**: [`LEAST`], [`MOST`].

use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::future::BoxFuture;
use http::{HeaderMap, Response, StatusCode, header};
use tokio::time::Instant;
use tower::{Layer, Service};

/// Where an API server says that it has too much to do and not when that ends: what Kubernetes' own says nearly always.
pub const LEAST: Duration = Duration::from_secs(1);
/// Whoever asks for more is asked again after this time: it may be a mistake, and mirrors stand still meanwhile.
pub const MOST: Duration = Duration::from_secs(30);

/// Until when the API server wants to be left alone. Clones tell the same.
#[derive(Clone, Debug, Default)]
pub struct Pressure {
    until: Arc<Mutex<Option<Instant>>>,
}

impl Pressure {
    /// The moment, if it is still to come.
    #[must_use]
    pub fn until(&self) -> Option<Instant> {
        let until = *self.until.lock().unwrap_or_else(PoisonError::into_inner);
        until.filter(|until| *until > Instant::now())
    }

    /// What an answer says about it.
    fn note(&self, status: StatusCode, headers: &HeaderMap) {
        let said = headers.get(header::RETRY_AFTER).and_then(|value| value.to_str().ok()?.trim().parse().ok());
        let pause = match (status, said.map(Duration::from_secs)) {
            (StatusCode::TOO_MANY_REQUESTS, said) => said.unwrap_or(LEAST),
            (StatusCode::SERVICE_UNAVAILABLE, Some(said)) => said,
            _ => return,
        };
        let until = Instant::now() + pause.clamp(LEAST, MOST);
        let mut known = self.until.lock().unwrap_or_else(PoisonError::into_inner);
        *known = Some(known.map_or(until, |known| known.max(until)));
    }
}

impl<S> Layer<S> for Pressure {
    type Service = Listening<S>;

    fn layer(&self, inner: S) -> Listening<S> {
        Listening { inner, pressure: self.clone() }
    }
}

/// A client of which [`Pressure`] hears the answers.
#[derive(Clone, Debug)]
pub struct Listening<S> {
    inner: S,
    pressure: Pressure,
}

impl<S, Q, B> Service<Q> for Listening<S>
where
    S: Service<Q, Response = Response<B>>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<S::Response, S::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Q) -> Self::Future {
        let (answer, pressure) = (self.inner.call(request), self.pressure.clone());
        Box::pin(async move {
            let answer = answer.await?;
            pressure.note(answer.status(), answer.headers());
            Ok(answer)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn after(pressure: &Pressure, status: u16, said: Option<&'static str>) -> Option<Duration> {
        let mut client = pressure.layer(tower::service_fn(move |()| {
            let mut answer = Response::builder().status(status);
            if let Some(said) = said {
                answer = answer.header(header::RETRY_AFTER, said);
            }
            std::future::ready(answer.body(()))
        }));
        client.call(()).await.unwrap();
        pressure.until().map(|until| until - Instant::now())
    }

    #[tokio::test(start_paused = true)]
    async fn an_api_server_is_left_alone_for_as_long_as_it_says() {
        let seconds = |seconds| Some(Duration::from_secs(seconds));
        for (status, said, pause) in [
            (200, None, None),
            (200, Some("5"), None),
            (409, Some("5"), None),
            (503, None, None),
            (503, Some("5"), seconds(5)),
            (429, None, seconds(1)),
            (429, Some("7"), seconds(7)),
            (429, Some("0"), seconds(1)),
            (429, Some("99999999999"), seconds(30)),
            (429, Some("soon"), seconds(1)),
        ] {
            assert_eq!(after(&Pressure::default(), status, said).await, pause, "{status} {said:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_longest_word_counts_and_passes() {
        let pressure = Pressure::default();
        after(&pressure, 429, Some("5")).await;
        assert_eq!(after(&pressure, 429, Some("2")).await, Some(Duration::from_secs(5)));
        assert_eq!(after(&pressure, 200, None).await, Some(Duration::from_secs(5)));
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert_eq!(pressure.until(), None);
    }
}
