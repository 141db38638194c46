use std::sync::Arc;

use linkspan_proto::identity::TrustDomain;
use linkspan_runtime::drain::Drain;
use rcgen::{CertificateParams, KeyPair};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::*;
use crate::ca::{self, Ca, Purpose};

const NAME: &str = "linkspan-controller.linkspan.svc";

struct World {
    _dir: tempfile::TempDir,
    ca: Arc<Ca>,
    address: std::net::SocketAddr,
    configuration: Door,
    exchange: Door,
    _drain: Drain,
}

async fn world() -> World {
    let dir = tempfile::tempdir().unwrap();
    let ca =
        Arc::new(ca::create(&dir.path().join("ca"), &TrustDomain::parse("east.linkspan.internal").unwrap()).unwrap());
    let authority = Arc::new(tls::Authority::new(Arc::clone(&ca), vec![NAME.to_owned()]).unwrap());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (port, configuration, exchange) = Port::new(listener, authority).unwrap();
    let (drain, signal) = Drain::new();
    drop(task::spawn("door", port.serve(signal)));
    World { _dir: dir, ca, address, configuration, exchange, _drain: drain }
}

/// Key and certificate of a gateway, or of a workload.
fn certificate(ca: &Ca, gateway: bool) -> (Vec<rustls_pki_types::CertificateDer<'static>>, PrivateKeyDer<'static>) {
    if gateway {
        let key = KeyPair::generate().unwrap();
        let csr = CertificateParams::default().serialize_request(&key).unwrap();
        let issued = ca.sign_gateway(csr.der(), &Purpose::Link, |_| false).unwrap();
        return (issued.chain, PrivatePkcs8KeyDer::from(key.serialize_der()).into());
    }
    use rustls_pki_types::pem::PemObject;
    let identity =
        ca.issue_workload(&"shop".parse().unwrap(), &"web".parse().unwrap(), Duration::from_secs(60)).unwrap();
    let chain = rustls_pki_types::CertificateDer::from_pem_slice(identity.certificate_pem.as_bytes()).unwrap();
    (vec![chain], PrivateKeyDer::from_pem_slice(identity.key_pem.as_bytes()).unwrap())
}

/// A connection from a source address of its own, on which nothing is said.
async fn silent(world: &World, source: u8) -> TcpStream {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind(([127, 0, 0, source], 0).into()).unwrap();
    socket.connect(world.address).await.unwrap()
}

async fn connect(
    world: &World,
    protocol: &[u8],
    who: Option<bool>,
) -> io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    roots.add(world.ca.root().clone()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots);
    let mut config = match who {
        None => builder.with_no_client_auth(),
        Some(gateway) => {
            let (chain, key) = certificate(&world.ca, gateway);
            builder.with_client_auth_cert(chain, key).unwrap()
        }
    };
    config.alpn_protocols = vec![protocol.to_vec()];
    let stream = TcpStream::connect(world.address).await?;
    TlsConnector::from(Arc::new(config)).connect(ServerName::try_from(NAME).unwrap(), stream).await
}

/// Whether the other end closes instead of answering.
async fn is_closed(mut stream: tokio_rustls::client::TlsStream<TcpStream>) -> bool {
    let mut byte = [0];
    matches!(stream.read(&mut byte).await, Ok(0) | Err(_))
}

#[tokio::test]
async fn callers_come_in_by_what_they_can_show() {
    let mut world = world().await;
    let _anybody = connect(&world, &tls::CONFIGURATION, None).await.unwrap();
    assert_eq!(world.configuration.accept().await.unwrap().1, Caller::Unknown);
    let mut gateway = connect(&world, &tls::CONFIGURATION, Some(true)).await.unwrap();
    let (mut stream, caller) = world.configuration.accept().await.unwrap();
    assert_eq!(caller, Caller::Gateway);
    gateway.write_all(b"hello").await.unwrap();
    let mut text = [0; 5];
    stream.read_exact(&mut text).await.unwrap();
    assert_eq!(&text, b"hello");
    let _pipe = connect(&world, &tls::EXCHANGE, Some(true)).await.unwrap();
    assert_eq!(world.exchange.accept().await.unwrap().1, Caller::Gateway);
}

#[tokio::test]
async fn a_workload_is_no_gateway_and_pipes_need_a_certificate() {
    let world = world().await;
    assert!(is_closed(connect(&world, &tls::CONFIGURATION, Some(false)).await.unwrap()).await);
    assert!(is_closed(connect(&world, &tls::EXCHANGE, None).await.unwrap()).await);
}

/// Anybody in reach could hold all places else, and no gateway would get its configuration.
#[tokio::test]
async fn callers_without_a_certificate_take_no_place_of_the_gateways() {
    let mut world = world().await;
    let mut held = Vec::new();
    for _ in 0..STRANGERS_MAX {
        let stream = connect(&world, &tls::CONFIGURATION, None).await.unwrap();
        held.push((stream, world.configuration.accept().await.unwrap()));
    }
    assert!(is_closed(connect(&world, &tls::CONFIGURATION, None).await.unwrap()).await, "one too many");
    let _gateway = connect(&world, &tls::CONFIGURATION, Some(true)).await.unwrap();
    assert_eq!(world.configuration.accept().await.unwrap().1, Caller::Gateway);
    // A place that was given back serves the next one.
    held.pop();
    let _next = connect(&world, &tls::CONFIGURATION, None).await.unwrap();
    assert_eq!(world.configuration.accept().await.unwrap().1, Caller::Unknown);
}

/// Who says nothing is told from nobody, and holds its place for seconds: all places would be gone by one pod alone.
#[tokio::test]
async fn silent_connections_of_some_addresses_leave_places_for_the_gateways() {
    let mut world = world().await;
    let (mut held, started) = (Vec::new(), std::time::Instant::now());
    // All places but those of one address, and more tries than there are places.
    let sources = HANDSHAKES_MAX / HANDSHAKES_OF_SOURCE_MAX - 1;
    let tries = HANDSHAKES_MAX / sources + 1;
    for source in 0..sources {
        let source = u8::try_from(source + 2).unwrap();
        for number in 0..tries {
            let mut stream = silent(&world, source).await;
            if number < HANDSHAKES_OF_SOURCE_MAX {
                held.push(stream);
                continue;
            }
            let mut byte = [0];
            let closed = tokio::time::timeout(Duration::from_secs(2), stream.read(&mut byte)).await;
            assert!(matches!(closed, Ok(Ok(0) | Err(_))), "one too many of 127.0.0.{source}");
        }
    }
    let _gateway = connect(&world, &tls::CONFIGURATION, Some(true)).await.unwrap();
    assert_eq!(world.configuration.accept().await.unwrap().1, Caller::Gateway);
    let mut byte = [0];
    let closed = held.iter_mut().filter_map(|stream| futures::FutureExt::now_or_never(stream.read(&mut byte))).count();
    assert!(closed == 0 || started.elapsed() >= HANDSHAKE, "{closed} were closed for it");
}

#[tokio::test]
async fn another_clusters_gateway_is_not_let_in() {
    let (east, west) = (world().await, world().await);
    // Of the same trust domain by name, and of another root.
    let foreign = World { address: west.address, ..east };
    let refused = match connect(&foreign, &tls::CONFIGURATION, Some(true)).await {
        // The client does not believe the server's root either.
        Err(_) => true,
        Ok(stream) => is_closed(stream).await,
    };
    assert!(refused);
}
