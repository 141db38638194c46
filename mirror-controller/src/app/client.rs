//! The client of the API server.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::future::BoxFuture;
use http::{HeaderValue, Request, Response, header};
use hyper::body::{Frame, SizeHint};
use hyper_util::client::legacy::Client as Http;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use kube::client::retry::RetryPolicy;
use kube::client::{Body, ConfigExt};
use kube::{Client, Config, Error};
use tokio::time::Sleep;
use tower::retry::RetryLayer;
use tower::{BoxError, Service, ServiceBuilder};

use crate::pressure::Pressure;
use crate::watch::kubernetes::WATCH_SECONDS;

/// From a request to the end of its answer. A page of a list takes the longest; on a connection that is dead without saying so
/// there would be no end for minutes, while the lease is renewed over another.
const CALL: Duration = Duration::from_secs(15);
/// The same for a watch, which the API server ends by itself after [`WATCH_SECONDS`].
const WATCH: Duration = Duration::from_secs(WATCH_SECONDS as u64 + 10);

/// Who asks, in the API server's audit log and its figures.
const AGENT: &str = concat!("linkspan-mirror-controller/", env!("CARGO_PKG_VERSION"));

/// A client of this cluster's API server, which tells in its audit log who asks. What the server cannot do at the moment is asked again when it says so, within the
/// time that a call has, and `pressure` hears of that. The client's own stack has no place between the two.
///
/// # Errors
/// When it is not known where the API server is, or who we are there.
pub(super) async fn new(pressure: &Pressure) -> kube::Result<Client> {
    of(Config::infer().await.map_err(Error::InferConfig)?, pressure)
}

fn of(mut config: Config, pressure: &Pressure) -> kube::Result<Client> {
    config.headers.push((header::USER_AGENT, HeaderValue::from_static(AGENT)));
    if let Some(proxy_url) = config.proxy_url {
        return Err(Error::ProxyProtocolUnsupported { proxy_url });
    }
    // Whoever comes first installs the same one.
    drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
    let mut connector = HttpConnector::new();
    connector.enforce_http(false);
    connector.set_nodelay(true);
    connector.set_connect_timeout(config.connect_timeout);
    let http: Http<_, Body> =
        Http::builder(TokioExecutor::new()).build(config.rustls_https_connector_with_connector(connector)?);
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .layer(RetryLayer::new(RetryPolicy::server_retry()))
        .layer(pressure.clone())
        .layer_fn(|inner| Limited { inner })
        .option_layer(config.auth_layer()?)
        .layer(config.extra_headers_layer()?)
        .map_err(BoxError::from)
        .service(http);
    Ok(Client::new(service, config.default_namespace))
}

/// A client whose answers come within [`CALL`] or [`WATCH`], or end with an error.
#[derive(Clone, Debug)]
struct Limited<S> {
    inner: S,
}

/// The time is up.
#[derive(Debug, thiserror::Error)]
#[error("the API server did not answer in time")]
struct Late;

impl<S, B> Service<Request<Body>> for Limited<S>
where
    S: Service<Request<Body>, Response = Response<B>>,
    S::Error: Into<BoxError>,
    S::Future: Send + 'static,
{
    type Response = Response<LimitedBody<B>>;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Self::Response, BoxError>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let mut parameters = request.uri().query().unwrap_or_default().split('&');
        let limit =
            if parameters.any(|parameter| matches!(parameter, "watch=true" | "watch=1")) { WATCH } else { CALL };
        let answer = self.inner.call(request);
        Box::pin(async move {
            let mut end = Box::pin(tokio::time::sleep(limit));
            let answer = tokio::select! {
                answer = answer => answer.map_err(Into::<BoxError>::into)?,
                () = &mut end => return Err(BoxError::from(Late)),
            };
            Ok(answer.map(|body| LimitedBody { body: Box::pin(body), end }))
        })
    }
}

/// The body of an answer, until its time is up.
struct LimitedBody<B> {
    body: Pin<Box<B>>,
    end: Pin<Box<Sleep>>,
}

impl<B> hyper::body::Body for LimitedBody<B>
where
    B: hyper::body::Body,
    B::Error: Into<BoxError>,
{
    type Data = B::Data;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, BoxError>>> {
        if let Poll::Ready(frame) = self.body.as_mut().poll_frame(context) {
            return Poll::Ready(frame.map(|frame| frame.map_err(Into::into)));
        }
        self.end.as_mut().poll(context).map(|()| Some(Err(BoxError::from(Late))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use hyper::body::Body as _;

    use super::*;

    /// An answer that begins, or does not, and has no end.
    struct Endless;

    impl hyper::body::Body for Endless {
        type Data = bytes::Bytes;
        type Error = Infallible;

        fn poll_frame(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<bytes::Bytes>, Infallible>>> {
            Poll::Pending
        }
    }

    /// Seconds until an error comes.
    async fn patience(place: &str, begins: bool) -> u64 {
        let inner = tower::service_fn(move |_: Request<Body>| async move {
            if !begins {
                std::future::pending::<()>().await;
            }
            Ok::<_, Infallible>(Response::new(Endless))
        });
        let started = tokio::time::Instant::now();
        let request = Request::get(format!("http://api{place}")).body(Body::empty()).unwrap();
        match (Limited { inner }).call(request).await {
            Ok(answer) => {
                let mut body = Box::pin(answer.into_body());
                let frame = std::future::poll_fn(|context| body.as_mut().poll_frame(context)).await;
                assert!(matches!(frame, Some(Err(_))));
            }
            Err(error) => assert!(error.to_string().contains("in time"), "{error}"),
        }
        started.elapsed().as_secs()
    }

    /// A list on such a connection would hang for minutes, and the controller would go on to lead.
    #[tokio::test(start_paused = true)]
    async fn a_dead_connection_is_noticed_and_a_watch_has_its_time() {
        for (place, seconds) in [
            ("/api/v1/services?limit=500", 15),
            ("/api/v1/services", 15),
            ("/api/v1/services?resourceVersion=1&watch=true&timeoutSeconds=25", 35),
        ] {
            for begins in [false, true] {
                assert_eq!(patience(place, begins).await, seconds, "{place} {begins}");
            }
        }
    }

    #[tokio::test]
    async fn every_request_says_who_asks() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
        let client = of(Config::new(url), &Pressure::default()).unwrap();
        drop(linkspan_runtime::task::spawn("test", async move { client.apiserver_version().await }));
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut head = String::new();
        while !head.contains("\r\n\r\n") {
            let mut buffer = [0; 1024];
            let length = tokio::io::AsyncReadExt::read(&mut stream, &mut buffer).await.unwrap();
            head.push_str(std::str::from_utf8(&buffer[..length]).unwrap());
        }
        let agent = format!("user-agent: linkspan-mirror-controller/{}\r\n", linkspan_runtime::build_info::VERSION);
        assert!(head.to_lowercase().contains(&agent), "{head}");
    }
}
