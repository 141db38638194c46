//! The client of the API server.

use hyper_util::client::legacy::Client as Http;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use kube::client::retry::RetryPolicy;
use kube::client::{Body, ConfigExt};
use kube::{Client, Config, Error};
use tower::retry::RetryLayer;
use tower::{BoxError, ServiceBuilder};

use crate::pressure::Pressure;

/// A client of this cluster's API server. What the server cannot do at the moment is asked again when it says so, within the
/// time that a call has, and `pressure` hears of that. The client's own stack has no place between the two.
///
/// # Errors
/// When it is not known where the API server is, or who we are there.
pub(super) async fn new(pressure: &Pressure) -> kube::Result<Client> {
    let config = Config::infer().await.map_err(Error::InferConfig)?;
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
