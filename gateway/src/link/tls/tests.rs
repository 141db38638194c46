//! Handshakes between gateways with good and bad certificates: who is let in, and what either side is told.

use std::time::{Duration, SystemTime};

use linkspan_proto::configuration::{LinkPhase, Peer};
use linkspan_proto::identity::SpiffeId;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, GeneralSubtree, IsCa, KeyUsagePurpose,
    NameConstraints, SanType,
};
use rustls::pki_types::UnixTime;

use super::*;
use crate::link::testkit::{Authority, Leaf, Setup, Side};

fn id(authority: &Authority) -> String {
    SpiffeId::gateway(&authority.trust_domain).to_string()
}

fn trust(authority: &Authority) -> PeerTrust {
    let cluster = linkspan_proto::names::ClusterName::parse("west").unwrap();
    PeerTrust::new(cluster, authority.trust_domain.clone(), &authority.bundle(), &provider()).unwrap()
}

fn verify(trust: &PeerTrust, leaf: &Leaf, role: Role) -> Result<(), TrustFailure> {
    let (first, above) = leaf.chain.split_first().unwrap();
    trust.verify(role, first, above, UnixTime::now()).map(|_| ())
}

/// Both roles come to the same result.
fn verify_both(trust: &PeerTrust, leaf: &Leaf) -> Result<(), TrustFailure> {
    let (client, server) = (verify(trust, leaf, Role::Client), verify(trust, leaf, Role::Server));
    assert_eq!(client, server);
    client
}

#[test]
fn the_provider_puts_post_quantum_and_the_cheapest_cipher_first() {
    let provider = provider();
    assert_eq!(provider.kx_groups[0].name(), rustls::NamedGroup::X25519MLKEM768);
    assert_eq!(provider.cipher_suites[0].suite(), CipherSuite::TLS13_AES_128_GCM_SHA256);
    assert!(provider.cipher_suites.iter().all(|suite| suite.tls13().is_some()));
}

/// With an expired one in the handshake it could ask for no other, whatever token it has.
#[test]
fn the_controller_is_shown_no_certificate_that_has_expired() {
    let own = OwnCertificate::new();
    let shown = |own: &Arc<OwnCertificate>| WhileValid(Arc::clone(own)).resolve(&[], &[]).is_some();
    assert!(!shown(&own));
    let key = Authority::new("east.linkspan.internal").gateway().certified();
    own.replace(Arc::clone(&key), SystemTime::now() + Duration::from_secs(60));
    assert!(shown(&own));
    own.replace(key, SystemTime::now() - Duration::from_secs(1));
    assert!(!shown(&own));
    assert!(ResolvesClientCert::resolve(own.as_ref(), &[], &[]).is_some(), "peers say what is wrong with it");
}

#[test]
fn a_gateway_of_the_domain_is_believed_and_nobody_else() {
    let west = Authority::new("west.linkspan.internal");
    let trust = trust(&west);
    assert_eq!(verify_both(&trust, &west.gateway()), Ok(()));

    // The right name from the wrong authority (S-04), and the right authority with the wrong name (S-03).
    let other = Authority::new("other.example");
    assert_eq!(verify_both(&trust, &other.leaf(&id(&west), |_| {})), Err(TrustFailure::TrustBundleMismatch));
    assert_eq!(verify_both(&trust, &west.leaf(&id(&other), |_| {})), Err(TrustFailure::TrustDomainMismatch));
    // The same name of the root, another key: a site that was made anew.
    let again = Authority::new("west.linkspan.internal");
    assert_eq!(verify_both(&trust, &again.gateway()), Err(TrustFailure::TrustBundleMismatch));
    let workload = west.leaf("spiffe://west.linkspan.internal/ns/shop/sa/web", |_| {});
    assert_eq!(verify_both(&trust, &workload), Err(TrustFailure::NotAGateway));
}

#[test]
fn identities_outside_the_grammar_are_refused() {
    let west = Authority::new("west.linkspan.internal");
    let trust = trust(&west);
    let bad = [
        "spiffe://west.linkspan.internal",
        "spiffe://west.linkspan.internal/",
        "spiffe://west.linkspan.internal/ns/linkspan/sa/gateway/",
        "spiffe://west.linkspan.internal//ns/linkspan/sa/gateway",
        "spiffe://west.linkspan.internal/ns/./linkspan/sa/gateway",
        "spiffe://west.linkspan.internal/ns/../ns/linkspan/sa/gateway",
        "spiffe://west.linkspan.internal:443/ns/linkspan/sa/gateway",
        "spiffe://user@west.linkspan.internal/ns/linkspan/sa/gateway",
        "spiffe://west.linkspan.internal/ns/linkspan/sa/gateway?x",
        "spiffe://west.linkspan.internal/ns/linkspan/sa/gateway#x",
        "spiffe://WEST.linkspan.internal/ns/linkspan/sa/gateway",
        "SPIFFE://west.linkspan.internal/ns/linkspan/sa/gateway",
        "spiffe://west.linkspan.internal/ns/linkspan/sa/g%61teway",
        "https://west.linkspan.internal/ns/linkspan/sa/gateway",
        "spiffe://[::1]/ns/linkspan/sa/gateway",
        "west.linkspan.internal",
    ];
    for uri in bad {
        assert_eq!(verify_both(&trust, &west.leaf(uri, |_| {})), Err(TrustFailure::InvalidIdentity), "{uri}");
    }
    let uri = || SanType::URI(id(&west).as_str().try_into().unwrap());
    let dns = || SanType::DnsName("west.linkspan.internal".try_into().unwrap());
    let sans: [(Vec<SanType>, Result<(), TrustFailure>); 5] = [
        (vec![], Err(TrustFailure::InvalidIdentity)),
        (vec![dns()], Err(TrustFailure::InvalidIdentity)),
        (vec![uri(), uri()], Err(TrustFailure::InvalidIdentity)),
        (vec![uri(), SanType::URI("https://x/y".try_into().unwrap())], Err(TrustFailure::InvalidIdentity)),
        // Other kinds of names beside the one URI are allowed (X509-SVID section 2).
        (vec![dns(), uri()], Ok(())),
    ];
    for (names, expected) in sans {
        let leaf = west.leaf(&id(&west), |params| {
            params.subject_alt_names = names.clone();
            params
                .distinguished_name
                .push(DnType::CommonName, "spiffe://west.linkspan.internal/ns/linkspan/sa/gateway");
        });
        assert_eq!(verify_both(&trust, &leaf), expected, "{names:?}");
    }
}

#[test]
fn certificates_for_another_use_are_refused() {
    let west = Authority::new("west.linkspan.internal");
    let trust = trust(&west);
    let usages: [fn(&mut CertificateParams); 6] = [
        |params| params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained),
        |params| params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyCertSign],
        |params| params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::CrlSign],
        |params| params.key_usages = vec![KeyUsagePurpose::KeyEncipherment],
        |params| params.key_usages = vec![],
        |params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::CodeSigning],
    ];
    for (index, change) in usages.into_iter().enumerate() {
        let leaf = west.leaf(&id(&west), change);
        assert_eq!(verify_both(&trust, &leaf), Err(TrustFailure::CertificateUsage), "case {index}");
    }
    // S-11: each side of the handshake needs its own extended usage.
    let server_only =
        west.leaf(&id(&west), |params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth]);
    assert_eq!(verify(&trust, &server_only, Role::Server), Ok(()));
    assert_eq!(verify(&trust, &server_only, Role::Client), Err(TrustFailure::CertificateUsage));
    let client_only =
        west.leaf(&id(&west), |params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth]);
    assert_eq!(verify(&trust, &client_only, Role::Client), Ok(()));
    assert_eq!(verify(&trust, &client_only, Role::Server), Err(TrustFailure::CertificateUsage));
    // The root itself as a leaf.
    let root = Leaf { chain: vec![west.root()], ..west.gateway() };
    assert!(verify_both(&trust, &root).is_err());
}

#[test]
fn times_are_checked() {
    let west = Authority::new("west.linkspan.internal");
    let trust = trust(&west);
    let now = SystemTime::now();
    let expired = west.leaf(&id(&west), |params| params.not_after = (now - Duration::from_secs(2)).into());
    assert_eq!(verify_both(&trust, &expired), Err(TrustFailure::CertificateExpired));
    let early = west.leaf(&id(&west), |params| params.not_before = (now + Duration::from_secs(60)).into());
    assert_eq!(verify_both(&trust, &early), Err(TrustFailure::CertificateNotYetValid));
}

#[test]
fn chains_through_an_intermediate_hold_and_name_constraints_are_named() {
    let west = Authority::new("west.linkspan.internal");
    let trust = trust(&west);
    let (below, der) = west.intermediate(|_| {});
    let mut leaf = below.gateway();
    assert_eq!(verify_both(&trust, &leaf), Err(TrustFailure::TrustBundleMismatch));
    leaf.chain.push(der);
    assert_eq!(verify_both(&trust, &leaf), Ok(()));

    let (below, der) = west.intermediate(|params| {
        // rcgen has no URI subtrees; what counts is the tag, which is that of an e-mail's plus five.
        let subtree = GeneralSubtree::Rfc822Name("west.linkspan.internal".to_owned());
        params.name_constraints =
            Some(NameConstraints { permitted_subtrees: vec![subtree], excluded_subtrees: vec![] });
    });
    let mut leaf = below.gateway();
    leaf.chain.push(der.clone());
    assert!(!svid::has_uri_constraints(&der));
    let at = der.windows(2).position(|pair| pair == [0x81, 22]).expect("the subtree's tag and length");
    let mut altered = der.to_vec();
    altered[at] = 0x86;
    let altered = rustls::pki_types::CertificateDer::from(altered);
    assert!(svid::has_uri_constraints(&altered));
    leaf.chain[1] = altered;
    assert_eq!(verify_both(&trust, &leaf), Err(TrustFailure::NameConstraints));
}

#[test]
fn bundles_are_taken_whole_or_not_at_all() {
    let west = Authority::new("west.linkspan.internal");
    let new = |bundle: &str| {
        let cluster = linkspan_proto::names::ClusterName::parse("west").unwrap();
        PeerTrust::new(cluster, west.trust_domain.clone(), bundle, &provider()).map(|_| ())
    };
    let leaf_pem = |leaf: &Leaf| {
        let body = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, &leaf.chain[0]);
        format!("-----BEGIN CERTIFICATE-----\n{body}\n-----END CERTIFICATE-----\n")
    };
    assert_eq!(new(""), Err(BundleError::Empty));
    assert_eq!(new("nonsense"), Err(BundleError::Empty));
    assert_eq!(new(&leaf_pem(&west.gateway())), Err(BundleError::NotACa(1)));
    let two = format!("{}{}", west.bundle(), Authority::new("west.linkspan.internal").bundle());
    assert_eq!(new(&two), Ok(()));
    assert_eq!(new(&format!("{}{}", west.bundle(), leaf_pem(&west.gateway()))), Err(BundleError::NotACa(2)));
    let broken = west.bundle().replace("\nM", "\n!");
    assert!(new(&format!("{}{broken}", west.bundle())).is_err());
    assert_eq!(new(&west.bundle().repeat(17)), Err(BundleError::TooMany));
}

/// East dials west; what each says in the end.
async fn words(east: &Side, west: &Side) -> (String, String) {
    let (east_says, west_says) = tokio::join!(
        east.until(west, |report| report.reason != "Connecting"),
        west.until(east, |report| report.reason != "Connecting"),
    );
    for report in [&east_says, &west_says] {
        assert!(!report.alive && report.connections == 0, "{report:?}");
        assert!(!report.message.is_empty(), "{report:?}");
    }
    (east_says.reason, west_says.reason)
}

#[tokio::test]
async fn both_sides_say_what_is_wrong_with_a_bundle() {
    let (east, west) = (Side::start("east"), Side::start("west"));
    // West holds an old bundle of east: west refuses, and east is told.
    let old = Authority::new("east.linkspan.internal").bundle();
    west.links.configure(&[Peer { trust_bundle: old, ..east.as_hidden_peer() }]).await;
    east.links.configure(&[west.as_peer()]).await;
    let (east_says, west_says) = words(&east, &west).await;
    assert_eq!((east_says.as_str(), west_says.as_str()), ("TrustBundleMismatch", "WaitingForPeer"));
    let east_says = east.report(&west);
    assert!(east_says.message.contains("link export` here"), "{}", east_says.message);
    let west_says = west.until(&east, |report| report.reason == "TrustBundleMismatch").await;
    assert_eq!(west_says.state, LinkPhase::Waiting);
    assert!(west_says.message.contains("claims to be this peer"), "{}", west_says.message);

    // The right bundle heals it without another step.
    west.links.configure(&[east.as_hidden_peer()]).await;
    east.until_alive(&west).await;
    west.until_alive(&east).await;
}

#[tokio::test]
async fn a_stranger_is_told_that_it_is_unknown() {
    let (east, west) = (Side::start("east"), Side::start("west"));
    east.links.configure(&[west.as_peer()]).await;
    let report = east.until(&west, |report| report.reason == "UnknownPeer").await;
    assert!(report.message.contains("no Link for this cluster"), "{}", report.message);
    assert!(west.links.reports().is_empty());
}

#[tokio::test]
async fn a_dialler_finds_another_cluster_at_the_address() {
    let (east, west, south) = (Side::start("east"), Side::start("west"), Side::start("south"));
    let peer = Peer { addresses: south.as_peer().addresses, ..west.as_peer() };
    south.links.configure(&[east.as_hidden_peer()]).await;
    east.links.configure(&[peer]).await;
    let report = east.until(&west, |report| report.reason == "TrustDomainMismatch").await;
    assert!(report.message.contains("addresses"), "{}", report.message);
}

#[tokio::test]
async fn expired_certificates_are_refused_and_named_on_both_sides() {
    let (east, west) = (Side::start("east"), Side::start("west"));
    let expired = east.authority.leaf(&id(&east.authority), |params| {
        params.not_after = (SystemTime::now() - Duration::from_secs(1)).into();
    });
    expired.install(&east.certificate);
    west.links.configure(&[east.as_hidden_peer()]).await;
    east.links.configure(&[west.as_peer()]).await;
    east.until(&west, |report| report.reason == "CertificateExpired").await;
    west.until(&east, |report| report.reason == "CertificateExpired").await;
}

#[tokio::test]
async fn a_connection_ends_with_its_certificate() {
    let (east, west) = (Side::start("east"), Side::start("west"));
    let short = east.authority.leaf(&id(&east.authority), |params| {
        params.not_after = (SystemTime::now() + Duration::from_secs(3)).into();
    });
    short.install(&east.certificate);
    west.links.configure(&[east.as_hidden_peer()]).await;
    east.links.configure(&[west.as_peer()]).await;
    east.until_alive(&west).await;
    let report = east.until(&west, |report| report.connections == 0).await;
    assert_eq!(report.reason, "CertificateExpired", "{report:?}");
    // With a new one the link is back.
    east.authority.gateway().install(&east.certificate);
    east.until_alive(&west).await;
}

#[tokio::test]
async fn only_the_diagonal_of_five_peers_and_five_domains_is_let_in() {
    let domains: Vec<Authority> = (0..5).map(|peer| Authority::new(&format!("peer{peer}.example"))).collect();
    let west = Side::start("west");
    let peers: Vec<Peer> = domains
        .iter()
        .enumerate()
        .map(|(index, authority)| Peer {
            cluster: linkspan_proto::names::ClusterName::parse(&format!("peer{index}")).unwrap(),
            trust_domain: authority.trust_domain.clone(),
            trust_bundle: authority.bundle(),
            ..west.as_hidden_peer()
        })
        .collect();
    assert_eq!(west.links.configure(&peers).await, []);
    for (signer, authority) in domains.iter().enumerate() {
        for (claimed, domain) in domains.iter().enumerate() {
            let side = Side::start_with(
                Arc::new(Authority::new("dialler.example")),
                &format!("peer{claimed}"),
                Setup::default(),
            );
            authority.leaf(&id(domain), |_| {}).install(&side.certificate);
            side.links.configure(&[west.as_peer()]).await;
            if signer == claimed {
                side.until_alive(&west).await;
            } else {
                side.until(&west, |report| report.reason == "TrustBundleMismatch").await;
                assert_eq!(west.links.reports()[claimed].connections, 0, "{signer} as {claimed}");
            }
            side.links.drain(Duration::ZERO).await;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

#[tokio::test]
async fn a_removed_root_ends_connections_and_an_overlap_keeps_them() {
    let (east, west) = (Side::start("east"), Side::start("west"));
    crate::link::testkit::link(&east, &west).await;
    let fresh = Authority::new("west.linkspan.internal");
    // Rotation of the root in three steps: add the new one, switch the leaf, drop the old one (S-08, F-24).
    let both = format!("{}{}", west.authority.bundle(), fresh.bundle());
    let peer = |bundle: &str| Peer { trust_bundle: bundle.to_owned(), ..west.as_peer() };
    assert_eq!(east.links.configure(&[peer(&both)]).await, []);
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(east.links.alive(&west.cluster()), "the overlap costs nothing");
    fresh.gateway().install(&west.certificate);
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(east.links.alive(&west.cluster()));
    assert_eq!(east.links.configure(&[peer(&fresh.bundle())]).await, []);
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(east.links.alive(&west.cluster()), "the new leaf is already in use");
    // Dropped without a replacement: the link falls.
    let stranger = Authority::new("west.linkspan.internal").bundle();
    assert_eq!(east.links.configure(&[peer(&stranger)]).await, []);
    east.until(&west, |report| report.connections == 0 && report.reason == "TrustBundleMismatch").await;
    // A broken bundle changes nothing that works, and is reported.
    assert_eq!(east.links.configure(&[peer(&fresh.bundle())]).await, []);
    east.until_alive(&west).await;
    let rejections = east.links.configure(&[peer("broken")]).await;
    assert_eq!(rejections[0].reason, "InvalidTrustBundle");
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(east.links.alive(&west.cluster()), "the last good bundle stays");
}

#[tokio::test]
async fn peers_that_would_share_a_name_or_a_domain_are_rejected() {
    let (east, west) = (Side::start("east"), Side::start("west"));
    let named =
        |name: &str, peer: Peer| Peer { cluster: linkspan_proto::names::ClusterName::parse(name).unwrap(), ..peer };
    let own_domain = Peer { trust_domain: east.authority.trust_domain.clone(), ..west.as_hidden_peer() };
    let rejections = east
        .links
        .configure(&[
            named("east", west.as_hidden_peer()),
            named("north", own_domain),
            named("west", west.as_hidden_peer()),
            named("west2", west.as_hidden_peer()),
        ])
        .await;
    let reasons: Vec<(&str, &str)> =
        rejections.iter().map(|one| (one.resource.name.as_str(), one.reason.as_str())).collect();
    let expected = [("east", "OwnClusterName"), ("north", "OwnTrustDomain"), ("west2", "TrustDomainConflict")];
    assert_eq!(reasons, expected);
    assert_eq!(east.links.reports().len(), 1);
}

#[tokio::test]
async fn a_peer_that_goes_by_another_name_is_refused_with_the_remedy() {
    let (east, west) = (Side::start("east"), Side::start("west"));
    let misnamed = Peer { cluster: linkspan_proto::names::ClusterName::parse("wset").unwrap(), ..west.as_peer() };
    east.links.configure(&[misnamed]).await;
    west.links.configure(&[east.as_hidden_peer()]).await;
    let waiting = async {
        loop {
            let report = east.links.reports().remove(0);
            if report.reason == "ClusterNameMismatch" {
                return report;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let report = tokio::time::timeout(Duration::from_secs(5), waiting).await.unwrap();
    assert!(report.message.contains("rename the Link to west"), "{}", report.message);
    west.until(&east, |report| report.reason == "ClusterNameMismatch").await;
}

/// A handshake that began with the old certificate and ends after the change is replaced as well.
#[tokio::test(start_paused = true)]
async fn a_new_certificate_is_told_again_when_handshakes_begun_before_it_are_over() {
    let west = Authority::new("west.linkspan.internal");
    let own = OwnCertificate::new();
    west.gateway().install(&own);
    let mut changes = own.changes();
    west.gateway().install(&own);
    changes.changed().await.unwrap();
    assert_eq!(*changes.borrow_and_update(), 2);
    let begun = tokio::time::Instant::now();
    own.remind().await;
    assert!(begun.elapsed() > Duration::from_secs(10), "a handshake and a hello, 5 s each, may take so long");
    assert!(changes.has_changed().unwrap());
}
