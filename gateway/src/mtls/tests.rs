use std::collections::BTreeMap;
use std::net::SocketAddr;

use linkspan_proto::configuration::{Mirror, MirrorPort, Resource, Tier};
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::sign::CertifiedKey;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;

use super::*;
use crate::discovery::Snapshot;
use crate::link::tls::{OwnCertificate, provider};
use crate::listener::Permits;
use crate::route::Own;

const NAME: &str = "web-west.shop.svc.cluster.local";
const CART: &str = "spiffe://east.linkspan.internal/ns/shop/sa/cart";

struct Authority {
    params: CertificateParams,
    key: KeyPair,
    pem: String,
}

impl Authority {
    fn new() -> Self {
        let key = KeyPair::generate().expect("key");
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let pem = params.self_signed(&key).expect("root").pem();
        Self { params, key, pem }
    }

    /// A leaf with these SANs.
    fn issue(&self, uris: &[&str], dns: &[&str]) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        let key = KeyPair::generate().expect("key");
        let mut params = CertificateParams::default();
        let uri = |uri: &&str| SanType::URI((*uri).try_into().expect("ascii"));
        let name = |name: &&str| SanType::DnsName((*name).try_into().expect("ascii"));
        params.subject_alt_names = uris.iter().map(uri).chain(dns.iter().map(name)).collect();
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let issuer = Issuer::from_params(&self.params, &self.key);
        let leaf = params.signed_by(&key, &issuer).expect("leaf");
        (vec![leaf.der().clone()], PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der())))
    }
}

/// An mTLS port of cluster east that believes `authority`, and a table with one mirror of two ports.
struct World {
    server: Server,
    table: ArcSwap<RouteTable>,
    authority: Authority,
}

fn world(app_protocol: Option<&str>) -> World {
    let authority = Authority::new();
    let (chain, key) = authority.issue(&["spiffe://east.linkspan.internal/ns/linkspan/sa/gateway"], &[NAME]);
    let own = OwnCertificate::new();
    let key = provider().key_provider.load_private_key(key).expect("key");
    own.replace(Arc::new(CertifiedKey::new(chain, key)), std::time::SystemTime::now() + Duration::from_secs(3600));
    let trust_domain: TrustDomain = "east.linkspan.internal".parse().expect("domain");
    let server = Server::new(trust_domain.clone(), own, provider()).expect("server");
    server.trust(&authority.pem).expect("bundle");
    let port = |port: u16| MirrorPort {
        listen: SocketAddr::from(([127, 80, 0, 1], port)),
        port,
        transport: Default::default(),
        name: None,
        app_protocol: app_protocol.map(str::to_owned),
    };
    let mirror = Resource::Mirror(Mirror {
        name: NAME.to_owned(),
        service: "shop/web".parse().expect("service"),
        endpoint: None,
        ports: vec![port(80), port(9090)],
        tiers: vec![Tier { clusters: BTreeMap::from([("west".parse().expect("cluster"), 1)]), min_healthy_percent: 1 }],
    });
    let snapshot = Snapshot { generation: 1, resources: BTreeMap::from([(mirror.key(), Arc::new(mirror))]) };
    let own = Own { cluster: "east".parse().expect("cluster"), trust_domain };
    World { server, table: ArcSwap::from_pointee(RouteTable::build(&Arc::new(snapshot), &own)), authority }
}

type Identity = Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>;

/// A client that trusts `root`, shows `identity` and offers `protocols`.
fn client(root: &str, identity: Identity, protocols: &[&[u8]]) -> TlsConnector {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(root.as_bytes()).expect("pem")).expect("root");
    let builder = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .with_root_certificates(roots);
    let mut config = match identity {
        Some((chain, key)) => builder.with_client_auth_cert(chain, key).expect("client certificate"),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    TlsConnector::from(Arc::new(config))
}

async fn connection() -> (TcpStream, ClientConnection) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let listen = listener.local_addr().expect("address");
    let socket = TcpStream::connect(listen).await.expect("connect");
    let (accepted, client) = listener.accept().await.expect("accept");
    let permit = Permits::new(1).acquire().expect("place");
    (socket, ClientConnection { io: ClientIo::tcp(accepted), client, listen, worker: 0, probe: false, permit })
}

/// One connection: what the server made of it, and which protocol the client got.
async fn call(
    world: &World,
    connector: TlsConnector,
    name: &str,
) -> (Result<(ClientConnection, Routed), MtlsError>, Option<Vec<u8>>) {
    let (socket, conn) = connection().await;
    let name = ServerName::try_from(name.to_owned()).expect("name");
    let dial = async {
        let mut stream = connector.connect(name, socket).await.ok()?;
        let protocol = stream.get_ref().1.alpn_protocol().map(<[u8]>::to_vec);
        // A refused client certificate is only noticed by reading (TLS 1.3); a byte shows that the channel works.
        stream.write_all(b"hello").await.ok()?;
        protocol
    };
    tokio::join!(world.server.accept(&world.table, conn), dial)
}

async fn error(world: &World, identity: Identity, name: &str) -> MtlsError {
    let (accepted, _) = call(world, client(&world.authority.pem, identity, &[]), name).await;
    accepted.expect_err("not let in")
}

#[tokio::test]
async fn a_workload_is_known_by_its_certificate() {
    let world = world(None);
    let identity = world.authority.issue(&[CART], &[]);
    let (accepted, _) = call(&world, client(&world.authority.pem, Some(identity), &[]), NAME).await;
    let (mut conn, routed) = accepted.expect("let in");
    assert_eq!(routed.source.identity.as_str(), CART);
    assert_eq!(routed.source.assurance, Assurance::Mtls);
    assert_eq!((routed.route.name().as_ref(), routed.route.port()), (NAME, 80));
    let mut hello = [0; 5];
    conn.io.read_exact(&mut hello).await.expect("decrypted");
    assert_eq!(&hello, b"hello");
}

#[tokio::test]
async fn the_server_name_picks_the_port() {
    let world = world(None);
    let (chain, key) = world
        .authority
        .issue(&["spiffe://east.linkspan.internal/ns/linkspan/sa/gateway"], &["_9090.web-west.shop.svc.cluster.local"]);
    let own = OwnCertificate::new();
    let key = provider().key_provider.load_private_key(key).expect("key");
    own.replace(Arc::new(CertifiedKey::new(chain, key)), std::time::SystemTime::now() + Duration::from_secs(3600));
    let server = Server::new("east.linkspan.internal".parse().expect("domain"), own, provider()).expect("server");
    server.trust(&world.authority.pem).expect("bundle");
    let world = World { server, ..world };
    let identity = world.authority.issue(&[CART], &[]);
    let connector = client(&world.authority.pem, Some(identity), &[]);
    let (accepted, _) = call(&world, connector, "_9090.web-west.shop.svc.cluster.local").await;
    assert_eq!(accepted.expect("let in").1.route.port(), 9090);
}

#[tokio::test]
async fn strangers_are_kept_out() {
    let world = world(None);
    let other = Authority::new();
    let refused = [
        None,
        // Signed by somebody else, with the right name.
        Some(other.issue(&[CART], &[])),
        // Signed by us, for another domain.
        Some(world.authority.issue(&["spiffe://west.linkspan.internal/ns/shop/sa/cart"], &[])),
        // No identity, two identities.
        Some(world.authority.issue(&[], &["cart.example"])),
        Some(world.authority.issue(&[CART, "spiffe://east.linkspan.internal/ns/shop/sa/web"], &[])),
    ];
    for (index, identity) in refused.into_iter().enumerate() {
        let error = error(&world, identity, NAME).await;
        assert!(matches!(error, MtlsError::Untrusted(_)), "{index}: {error}");
        assert_eq!(error.outcome(), Outcome::ClientUntrusted);
    }
}

#[tokio::test]
async fn nobody_is_believed_before_the_first_bundle() {
    let mut world = world(None);
    let (chain, key) = world.authority.issue(&["spiffe://east.linkspan.internal/ns/linkspan/sa/gateway"], &[NAME]);
    let own = OwnCertificate::new();
    let key = provider().key_provider.load_private_key(key).expect("key");
    own.replace(Arc::new(CertifiedKey::new(chain, key)), std::time::SystemTime::now() + Duration::from_secs(3600));
    world.server = Server::new("east.linkspan.internal".parse().expect("domain"), own, provider()).expect("server");
    let identity = world.authority.issue(&[CART], &[]);
    assert!(matches!(
        error(&world, Some(identity.0.clone()).zip(Some(identity.1.clone_key())), NAME).await,
        MtlsError::Untrusted(_)
    ));
    assert!(world.server.trust("no pem").is_err());
    assert!(world.server.trust("").is_err());
    world.server.trust(&world.authority.pem).expect("bundle");
    let (accepted, _) = call(&world, client(&world.authority.pem, Some(identity), &[]), NAME).await;
    assert!(accepted.is_ok());
    // A bundle that cannot be read changes nothing.
    assert!(world.server.trust("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").is_err());
    let identity = world.authority.issue(&[CART], &[]);
    let (accepted, _) = call(&world, client(&world.authority.pem, Some(identity), &[]), NAME).await;
    assert!(accepted.is_ok());
}

#[tokio::test]
async fn http_versions_are_offered_as_the_backend_speaks_them() {
    let both: &[&[u8]] = &[b"h2", b"http/1.1"];
    let (http2, http1): (&[&[u8]], &[&[u8]]) = (&[b"h2"], &[b"http/1.1"]);
    for (declared, offered, expected) in [
        (None, both, Some(&b"http/1.1"[..])),
        (None, http2, Some(b"h2")),
        (Some("grpc"), both, Some(b"h2")),
        (Some("grpc"), http1, Some(b"http/1.1")),
        (None, &[b"postgresql"], None),
        (None, &[], None),
    ] {
        let world = world(declared);
        let identity = world.authority.issue(&[CART], &[]);
        let (accepted, protocol) = call(&world, client(&world.authority.pem, Some(identity), offered), NAME).await;
        assert!(accepted.is_ok());
        assert_eq!(protocol.as_deref(), expected, "{declared:?} {offered:?}");
    }
}

#[tokio::test]
async fn an_unknown_name_is_no_route() {
    let world = world(None);
    let (chain, key) = world.authority.issue(&[CART], &[]);
    // The server's certificate does not name it either, so the client must not mind.
    let (socket, conn) = connection().await;
    let connector = client(&world.authority.pem, Some((chain, key)), &[]);
    let name = ServerName::try_from("127.0.0.1").expect("address");
    let dial = async { connector.connect(name, socket).await.err() };
    let (accepted, refused) = tokio::join!(world.server.accept(&world.table, conn), dial);
    // The client gives up on the name of the certificate; either way nobody is let in.
    assert!(accepted.is_err());
    assert!(refused.is_some());
}

#[tokio::test(start_paused = true)]
async fn s_27_a_silent_client_is_dropped_in_time() {
    let world = world(None);
    let (_socket, conn) = connection().await;
    let began = tokio::time::Instant::now();
    let error = world.server.accept(&world.table, conn).await.expect_err("silent");
    assert!(matches!(error, MtlsError::Slow));
    assert_eq!(began.elapsed(), HANDSHAKE);
}

#[tokio::test]
async fn no_tls_is_invalid() {
    let world = world(None);
    let (mut socket, conn) = connection().await;
    socket.write_all(b"GET / HTTP/1.1\r\n\r\n").await.expect("write");
    let error = world.server.accept(&world.table, conn).await.expect_err("no TLS");
    assert_eq!(error.outcome(), Outcome::ClientInvalid);
}

#[tokio::test]
async fn a_handshake_is_judged_by_the_roots_at_its_end() {
    let world = world(None);
    let clients = &world.server.clients;
    let (chain, _key) = world.authority.issue(&[CART], &[]);
    let begun = clients.chain.load_full();
    let judged = || clients.judge_again(begun.as_ref(), Some(&chain));
    assert_eq!(judged(), Ok(()));
    // A rotation with overlap: other roots, the old one among them.
    let next = Authority::new();
    world.server.trust(&format!("{}{}", next.pem, world.authority.pem)).expect("bundle");
    assert_eq!(judged(), Ok(()));
    world.server.trust(&next.pem).expect("bundle");
    assert!(judged().is_err(), "its root was taken away during the handshake");
    assert!(clients.judge_again(begun.as_ref(), None).is_err());
}
