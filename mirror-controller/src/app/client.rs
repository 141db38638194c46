//! The client of the API server.

use http::{HeaderValue, header};
use hyper_util::client::legacy::Client as Http;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use kube::client::retry::RetryPolicy;
use kube::client::{Body, ConfigExt};
use kube::{Client, Config, Error};
use tower::retry::RetryLayer;
use tower::{BoxError, ServiceBuilder};

use crate::pressure::Pressure;

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
        .option_layer(config.auth_layer()?)
        .layer(config.extra_headers_layer()?)
        .map_err(BoxError::from)
        .service(http);
    Ok(Client::new(service, config.default_namespace))
}

#[cfg(test)]
mod tests {
    use super::*;

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
