//! Requests to an API server: bounded in time, with the clock of who answered, and errors that name the cause.
//!
//! - **In**: paths of its HTTP interface. **Out**: [`Answer`], or objects as JSON.
//! - **Refuses when**: the server cannot be reached, does not know us, or does not let us; each is an error of its own.
//! - **Never does**: wait without end; take a page of a list for the whole.
//! - **Numbers**: `PATIENCE`, `PAGE`, `TRIES`.

use std::time::{Duration, SystemTime};

use anyhow::Context;
use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Limited};
use kube::client::Body;
use serde_json::Value;
use tokio::time::timeout;

/// How long one answer may take. An API server under load takes a second; a proxied admin page is asked behind it.
const PATIENCE: Duration = Duration::from_secs(10);

/// The largest answer that is read; a page of [`PAGE`] Services is about 1 MiB.
const BODY_MAX: usize = 64 * 1024 * 1024;

/// Objects in one page of a list: what kubectl asks for.
const PAGE: usize = 500;

/// How often a request is sent that a busy API server puts off (429), and the pause between: it says one second by itself.
const TRIES: u32 = 5;
const PAUSE: Duration = Duration::from_secs(1);

/// What is asked for where the metadata of an object is enough. Every API server that is new enough for us has it.
const METADATA: &str = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1";

/// Whose fields a server-side apply claims.
pub(crate) const FIELD_MANAGER: &str = "linkspan-cli";

/// What came back, whatever its status.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    /// The status.
    pub(crate) status: StatusCode,
    /// The body.
    pub(crate) body: Bytes,
    /// By how many seconds the clock of who answered is ahead of ours; negative when it is behind. Good to a second or two.
    pub(crate) ahead: Option<f64>,
}

/// Why the API server gave no answer that can be used.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum ApiError {
    /// No answer at all.
    #[error("the API server {server} cannot be reached: {why}")]
    Unreachable {
        /// Its URL.
        server: String,
        /// Why.
        why: String,
    },
    /// It does not know who asks.
    #[error("the API server does not accept our credentials: {0}; log in again, or choose another user or --context")]
    Unauthorized(String),
    /// It knows, and does not allow it.
    #[error("the API server does not allow it: {0}")]
    Forbidden(String),
    /// There is no such object, or no such kind.
    #[error("there is no {0}")]
    NotFound(String),
    /// Anything else that it refuses.
    #[error("the API server refuses it ({code}): {message}")]
    Refused {
        /// The HTTP status.
        code: u16,
        /// Its words.
        message: String,
    },
    /// It is not what an API server says.
    #[error("{path} did not answer as an API server does: {why}")]
    Malformed {
        /// What was asked for.
        path: String,
        /// What is wrong.
        why: String,
    },
}

/// An API server and who we are to it.
#[derive(Clone)]
pub(crate) struct Api {
    client: kube::Client,
    server: String,
}

impl std::fmt::Debug for Api {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Api").field("server", &self.server).finish_non_exhaustive()
    }
}

impl Api {
    /// With the client that a kubeconfig gave; `server` is how errors name it.
    pub(crate) fn new(client: kube::Client, server: String) -> Self {
        Self { client, server }
    }

    /// The client, for what is no plain request.
    pub(crate) fn client(&self) -> &kube::Client {
        &self.client
    }

    /// Its URL.
    pub(crate) fn server(&self) -> &str {
        &self.server
    }

    /// `GET path`, whatever the status.
    pub(crate) async fn fetch(&self, path: &str) -> Result<Answer, ApiError> {
        self.send(Method::GET, path, None).await
    }

    /// `GET path`, an object.
    pub(crate) async fn get(&self, path: &str) -> Result<Value, ApiError> {
        read(path, &self.fetch(path).await?)
    }

    /// `GET path`, an object that need not be there.
    pub(crate) async fn find(&self, path: &str) -> Result<Option<Value>, ApiError> {
        match self.get(path).await {
            Ok(object) => Ok(Some(object)),
            Err(ApiError::NotFound(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// All objects below `path`, page by page. `query` is already encoded, and may be empty.
    pub(crate) async fn list(&self, path: &str, query: &str) -> Result<Vec<Value>, ApiError> {
        let mut all = Vec::new();
        let mut next = String::new();
        loop {
            let mut page = self.get(&format!("{path}?limit={PAGE}{query}{next}")).await?;
            let Some(Value::Array(items)) = page.get_mut("items").map(Value::take) else {
                let why = "there are no items in it".to_owned();
                return Err(ApiError::Malformed { path: path.to_owned(), why });
            };
            all.extend(items);
            match page["metadata"]["continue"].as_str() {
                Some(token) if !token.is_empty() => next = format!("&continue={}", encode(token)),
                _ => return Ok(all),
            }
        }
    }

    /// Whether there is an object. Asks for its metadata alone: of a Secret nothing else is anybody's business.
    pub(crate) async fn exists(&self, path: &str) -> Result<bool, ApiError> {
        match read(path, &self.send_as(METADATA, Method::GET, path, None).await?) {
            Ok(_) => Ok(true),
            Err(ApiError::NotFound(_)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// `POST path`: creates an object, and answers with what the server made of it.
    pub(crate) async fn create(&self, path: &str, object: &Value) -> Result<Value, ApiError> {
        let body = (Bytes::from(object.to_string()), "application/json");
        read(path, &self.send(Method::POST, path, Some(body)).await?)
    }

    /// Server-side apply. `force` takes fields over from whoever had them.
    pub(crate) async fn apply(&self, path: &str, object: &Value, force: bool) -> Result<Value, ApiError> {
        let path = format!("{path}?fieldManager={FIELD_MANAGER}&force={force}&fieldValidation=Strict");
        let body = (Bytes::from(object.to_string()), "application/apply-patch+yaml");
        read(&path, &self.send(Method::PATCH, &path, Some(body)).await?)
    }

    /// `DELETE path`.
    pub(crate) async fn delete(&self, path: &str) -> Result<(), ApiError> {
        read(path, &self.send(Method::DELETE, path, None).await?).map(drop)
    }

    async fn send(&self, method: Method, path: &str, body: Option<(Bytes, &str)>) -> Result<Answer, ApiError> {
        self.send_as("application/json", method, path, body).await
    }

    async fn send_as(
        &self,
        accept: &'static str,
        method: Method,
        path: &str,
        body: Option<(Bytes, &str)>,
    ) -> Result<Answer, ApiError> {
        let mut tries = 1;
        loop {
            let answer = self.send_once(accept, method.clone(), path, body.clone()).await?;
            if answer.status != StatusCode::TOO_MANY_REQUESTS || tries == TRIES {
                return Ok(answer);
            }
            tries += 1;
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn send_once(
        &self,
        accept: &'static str,
        method: Method,
        path: &str,
        body: Option<(Bytes, &str)>,
    ) -> Result<Answer, ApiError> {
        let malformed = |why: String| ApiError::Malformed { path: path.to_owned(), why };
        let mut request = Request::builder().method(method).uri(path).header(header::ACCEPT, accept);
        let bytes = match body {
            Some((bytes, kind)) => {
                request = request.header(header::CONTENT_TYPE, kind);
                bytes
            }
            None => Bytes::new(),
        };
        let request = request.body(Body::from(bytes)).map_err(|error| malformed(error.to_string()))?;
        let unreachable = |why: String| ApiError::Unreachable { server: self.server.clone(), why };
        let started = std::time::Instant::now();
        let exchange = async {
            let response = self.client.send(request).await.map_err(|error| match error {
                // The kubeconfig's own way to a token or certificate failed, before anything was sent.
                kube::Error::Auth(error) => ApiError::Unauthorized(causes(&error)),
                error => unreachable(causes(&error)),
            })?;
            let took = started.elapsed();
            let status = response.status();
            let ahead = ahead(response.headers(), took);
            let body = Limited::new(response.into_body(), BODY_MAX).collect().await;
            let body = body.map_err(|error| unreachable(format!("the answer broke off: {error}")))?.to_bytes();
            Ok(Answer { status, body, ahead })
        };
        timeout(PATIENCE, exchange)
            .await
            .unwrap_or_else(|_| Err(unreachable(format!("no answer within {} s", PATIENCE.as_secs()))))
    }
}

impl Answer {
    /// What the API server itself says in this answer, if it is its own: a proxied page is not.
    pub(crate) fn status_message(&self) -> Option<String> {
        let status: Value = serde_json::from_slice(&self.body).ok()?;
        let own = status["kind"] == "Status" && status["apiVersion"] == "v1";
        own.then(|| status["message"].as_str().unwrap_or("no reason given").to_owned())
    }
}

/// An object out of an answer; the API server's own words out of one that is none.
fn read(path: &str, answer: &Answer) -> Result<Value, ApiError> {
    if answer.status.is_success() {
        return serde_json::from_slice(&answer.body)
            .map_err(|error| ApiError::Malformed { path: path.to_owned(), why: error.to_string() });
    }
    let message = answer.status_message();
    let message = message.unwrap_or_else(|| String::from_utf8_lossy(&answer.body).trim().chars().take(300).collect());
    Err(match answer.status {
        StatusCode::UNAUTHORIZED => ApiError::Unauthorized(message),
        StatusCode::FORBIDDEN => ApiError::Forbidden(message),
        StatusCode::NOT_FOUND => ApiError::NotFound(path.split('?').next().unwrap_or_default().to_owned()),
        status => ApiError::Refused { code: status.as_u16(), message },
    })
}

/// An error with its causes, each once: a client's own text rarely names what failed below it.
pub(super) fn causes(error: &(dyn std::error::Error + 'static)) -> String {
    let mut said = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let text = error.to_string();
        if !said.contains(&text) {
            said = format!("{said}: {text}");
        }
        cause = error.source();
    }
    said
}

/// How far the clock that wrote the header `Date` (RFC 9110 section 5.6.7) is ahead of ours, when it came just now.
pub(super) fn ahead(headers: &HeaderMap, took: Duration) -> Option<f64> {
    let date = moment(headers.get(header::DATE)?.to_str().ok()?)?;
    let apart = match date.duration_since(SystemTime::now()) {
        Ok(ahead) => ahead.as_secs_f64(),
        Err(behind) => -behind.duration().as_secs_f64(),
    };
    // 12:00:07 was written somewhere in that second, and half the round trip ago.
    Some(apart + 0.5 + took.as_secs_f64() / 2.0)
}

fn moment(text: &str) -> Option<SystemTime> {
    Some(jiff::fmt::rfc2822::parse(text).ok()?.timestamp().into())
}

/// A value inside a query (RFC 3986 section 2.1).
pub(crate) fn encode(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    text.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

/// A label selector as a query.
pub(crate) fn labelled(labels: &[(&str, &str)]) -> String {
    let pairs: Vec<String> = labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    format!("&labelSelector={}", encode(&pairs.join(",")))
}

/// Where the kubeconfig says that the API server is.
pub(super) fn client(config: kube::Config) -> anyhow::Result<Api> {
    let server = config.cluster_url.to_string();
    let server = server.trim_end_matches('/').to_owned();
    let client = kube::Client::try_from(config)
        .with_context(|| format!("the credentials for the API server {server} cannot be used"))?;
    Ok(Api::new(client, server))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: u16, body: &str) -> Answer {
        Answer {
            status: StatusCode::from_u16(status).expect("status"),
            body: Bytes::from(body.to_owned()),
            ahead: None,
        }
    }

    #[test]
    fn the_servers_own_words_are_told_from_a_proxied_page() {
        let own = answer(403, r#"{"kind":"Status","apiVersion":"v1","message":"pods/proxy is forbidden"}"#);
        assert_eq!(own.status_message().as_deref(), Some("pods/proxy is forbidden"));
        assert!(answer(503, r#"{"ready":false}"#).status_message().is_none());
        assert!(matches!(read("/x", &own), Err(ApiError::Forbidden(message)) if message == "pods/proxy is forbidden"));
        let gone = answer(404, "404 page not found");
        assert!(
            matches!(read("/apis/linkspan.io/v1alpha1?x", &gone), Err(ApiError::NotFound(path)) if !path.contains('?'))
        );
    }

    #[test]
    fn dates_and_queries_are_read_and_written() {
        let date = moment("Thu, 26 Nov 2026 12:33:27 GMT").expect("a date");
        assert_eq!(date.duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_secs(), 1_795_696_407);
        assert!(moment("yesterday").is_none());
        assert_eq!(
            labelled(&[("app.kubernetes.io/name", "linkspan")]),
            "&labelSelector=app.kubernetes.io%2Fname%3Dlinkspan"
        );
    }
}
