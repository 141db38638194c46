//! One GET at an admin listener: JSON or text, bounded in time and size.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, bail};
use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use linkspan_runtime::task;
use serde::de::DeserializeOwned;
use tokio::net::TcpStream;
use tokio::time::timeout;

/// How long an answer may take in all. An admin listener answers from memory, so only a stuck process takes longer.
pub(crate) const PATIENCE: Duration = Duration::from_secs(3);

/// The largest answer that is read: 10,000 mirrored services with eight ports each stay below.
const BODY_MAX: usize = 64 * 1024 * 1024;

/// `GET path`, read as JSON.
pub(crate) async fn json<T: DeserializeOwned>(admin: SocketAddr, path: &str) -> anyhow::Result<T> {
    let body = get(admin, path).await?;
    serde_json::from_slice(&body).with_context(|| {
        format!("http://{admin}{path} did not answer with the JSON expected; is it a Linkspan of another version?")
    })
}

/// `GET path`; anything but 200 is an error.
pub(crate) async fn get(admin: SocketAddr, path: &str) -> anyhow::Result<Bytes> {
    let (status, body) = fetch(admin, path).await?;
    if status != StatusCode::OK {
        bail!("http://{admin}{path} answered {status}: {}", String::from_utf8_lossy(&body).trim());
    }
    Ok(body)
}

/// `GET path` with its status.
pub(crate) async fn fetch(admin: SocketAddr, path: &str) -> anyhow::Result<(StatusCode, Bytes)> {
    timeout(PATIENCE, exchange(admin, path))
        .await
        .unwrap_or_else(|_| bail!("no answer within {} s", PATIENCE.as_secs()))
        .with_context(|| format!("asking http://{admin}{path}"))
}

async fn exchange(admin: SocketAddr, path: &str) -> anyhow::Result<(StatusCode, Bytes)> {
    let stream = TcpStream::connect(admin).await.context("cannot connect")?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    // Ends with the exchange: the request asks for it, and dropping the sender closes the connection.
    drop(task::spawn("admin_client", async move { drop(connection.await) }));
    let request = Request::get(path)
        .header(header::HOST, admin.to_string())
        .header(header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())?;
    let response = sender.send_request(request).await?;
    let status = response.status();
    let body = match Limited::new(response.into_body(), BODY_MAX).collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) => bail!("the answer broke off: {error}"),
    };
    Ok((status, body))
}
