//! Whose a ServiceAccount token is, as the API server says (TokenReview); how often it is asked has limits.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use futures::future::BoxFuture;
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use kube::Client;
use kube::api::{Api, PostParams};
use linkspan_runtime::text::Clean;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::Instant;

use crate::configuration::{AttestError, Attestor};

/// Whom a gateway's token must be meant for.
pub const AUDIENCE: &str = "linkspan-controller";
/// The gateways' ServiceAccount, in the controller's own namespace.
const GATEWAY_ACCOUNT: &str = "linkspan-gateway";
/// Tokens that are judged at once: whoever can reach the gateways' port can send some, and each is a call of the API server.
const REVIEWS_AT_ONCE: usize = 4;
/// Tokens in one burst: all gateways that an installation may have, when they start together.
const REVIEWS_BURST: u32 = 64;
/// One more after each such time.
const REVIEW_EVERY: Duration = Duration::from_millis(200);

/// How many tokens are judged. Whoever finds no place is told to come again: nothing waits here.
#[derive(Debug)]
struct Reviews {
    places: Semaphore,
    /// The moment at which the burst is whole again.
    whole: Mutex<Instant>,
}

impl Reviews {
    fn new() -> Self {
        Self { places: Semaphore::new(REVIEWS_AT_ONCE), whole: Mutex::new(Instant::now()) }
    }

    fn admit(&self) -> Option<SemaphorePermit<'_>> {
        let place = self.places.try_acquire().ok()?;
        let now = Instant::now();
        let mut whole = self.whole.lock().unwrap_or_else(PoisonError::into_inner);
        let next = (*whole).max(now) + REVIEW_EVERY;
        if next > now + REVIEW_EVERY * REVIEWS_BURST {
            return None;
        }
        *whole = next;
        Some(place)
    }
}

/// Judges tokens by asking the API server.
pub struct TokenAttestor {
    client: Client,
    user: String,
    reviews: Reviews,
}

impl TokenAttestor {
    /// For gateways in this namespace.
    #[must_use]
    pub fn new(client: Client, namespace: &str) -> Self {
        Self { client, user: format!("system:serviceaccount:{namespace}:{GATEWAY_ACCOUNT}"), reviews: Reviews::new() }
    }

    async fn review(&self, token: &str) -> Result<String, AttestError> {
        let _place = self.reviews.admit().ok_or(AttestError::Busy)?;
        let review = TokenReview {
            spec: TokenReviewSpec { token: Some(token.to_owned()), audiences: Some(vec![AUDIENCE.to_owned()]) },
            ..TokenReview::default()
        };
        let api: Api<TokenReview> = Api::all(self.client.clone());
        let asked = tokio::time::timeout(Duration::from_secs(5), api.create(&PostParams::default(), &review)).await;
        let status = match asked {
            Ok(Ok(review)) => review.status.unwrap_or_default(),
            Ok(Err(error)) => return Err(AttestError::Unavailable(Clean(&error.to_string()).to_string())),
            Err(_) => return Err(AttestError::Unavailable("no answer within 5 s".to_owned())),
        };
        let refuse = |why: &str| Err(AttestError::Refused(why.to_owned()));
        if status.authenticated != Some(true) {
            return refuse("the token is not valid");
        }
        // A server that knows no audiences names none: then the token may be meant for anybody.
        if !status.audiences.iter().flatten().any(|audience| audience == AUDIENCE) {
            return refuse("the token is not meant for this controller");
        }
        let user = status.user.unwrap_or_default();
        if user.username.as_deref() != Some(self.user.as_str()) {
            return refuse("the token is not that of the gateways' ServiceAccount");
        }
        let pod = user.extra.and_then(|extra| extra.get("authentication.kubernetes.io/pod-name")?.first().cloned());
        Ok(pod.unwrap_or_else(|| "a pod without a name".to_owned()))
    }
}

impl Attestor for TokenAttestor {
    fn gateway<'a>(&'a self, token: &'a str) -> BoxFuture<'a, Result<String, AttestError>> {
        Box::pin(self.review(token))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each is a call of the API server, and anybody in reach of the port can send some.
    #[tokio::test(start_paused = true)]
    async fn tokens_are_judged_at_a_bounded_pace() {
        let reviews = Reviews::new();
        let held: Vec<_> = (0..REVIEWS_AT_ONCE).map(|_| reviews.admit().unwrap()).collect();
        assert!(reviews.admit().is_none(), "too many at once");
        drop(held);
        let more = (0..1000).filter(|_| reviews.admit().is_some()).count();
        assert_eq!(more, REVIEWS_BURST as usize - REVIEWS_AT_ONCE);
        tokio::time::advance(REVIEW_EVERY).await;
        assert!(reviews.admit().is_some() && reviews.admit().is_none());
    }
}
