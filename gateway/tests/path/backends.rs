//! Services behind the gateways.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// A service, and how many connections it has had.
pub(crate) struct Backend {
    pub(crate) address: SocketAddr,
    connections: Arc<AtomicUsize>,
}

impl Backend {
    /// Serves each connection with `serve`.
    pub(crate) async fn start<F>(serve: impl Fn(TcpStream) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let address = listener.local_addr().expect("address");
        let connections = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&connections);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                counter.fetch_add(1, Ordering::Relaxed);
                stream.set_nodelay(true).expect("nodelay");
                tokio::spawn(serve(stream));
            }
        });
        Self { address, connections }
    }

    /// Sends back what it gets, and its own name first.
    pub(crate) async fn echo(name: &'static str) -> Self {
        Self::start(move |mut stream| async move {
            let (mut read, mut write) = stream.split();
            let greeted = write.write_all(name.as_bytes()).await;
            if greeted.is_ok() && tokio::io::copy(&mut read, &mut write).await.is_ok() {
                drop(write.shutdown().await);
            }
        })
        .await
    }

    /// Sends back all that it got, once the client has finished.
    pub(crate) async fn collector() -> Self {
        Self::start(|mut stream| async move {
            let mut all = Vec::new();
            if stream.read_to_end(&mut all).await.is_ok() {
                drop(stream.write_all(&all).await);
            }
        })
        .await
    }

    /// A proxy that knows nothing of what it carries: each connection goes on to `target`, and a reset there is one here.
    pub(crate) async fn forwarder(target: SocketAddr) -> Self {
        Self::start(move |mut stream| async move {
            let Ok(mut onward) = TcpStream::connect(target).await else { return };
            if tokio::io::copy_bidirectional(&mut stream, &mut onward).await.is_err() {
                drop((stream.set_zero_linger(), onward.set_zero_linger()));
            }
        })
        .await
    }

    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }
}

/// An address where nobody listens.
pub(crate) async fn nobody() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.expect("bind").local_addr().expect("address")
}
