use std::os::unix::fs::PermissionsExt;

use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;

use super::*;

fn domain(name: &str) -> TrustDomain {
    TrustDomain::parse(name).unwrap()
}

fn east() -> (tempfile::TempDir, Ca) {
    let dir = tempfile::tempdir().unwrap();
    let ca = create(&dir.path().join("ca"), &domain("east.linkspan.internal")).unwrap();
    (dir, ca)
}

fn request(names: Vec<SanType>) -> Vec<u8> {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.subject_alt_names = names;
    params.serialize_request(&key).unwrap().der().to_vec()
}

fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().unwrap())
}

#[test]
fn a_root_is_made_once_and_loaded_again() {
    let (dir, ca) = east();
    let path = dir.path().join("ca");
    assert_eq!(fs::metadata(path.join("root.key")).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
    let again = Ca::load(&path, &domain("east.linkspan.internal")).unwrap();
    assert_eq!(again.root(), ca.root());
    assert!(matches!(create(&path, &domain("east.linkspan.internal")), Err(CaError::Exists(_))));

    let (_, root) = x509_parser::parse_x509_certificate(ca.root()).unwrap();
    assert!(root.is_ca());
    let names = &root.subject_alternative_name().unwrap().unwrap().value.general_names;
    assert_eq!(names.as_slice(), [GeneralName::URI("spiffe://east.linkspan.internal")]);
    assert!(root.name_constraints().unwrap().is_none());
    let usage = root.key_usage().unwrap().unwrap();
    assert!(usage.critical && usage.value.key_cert_sign() && !usage.value.digital_signature());
    let years = (root.validity().not_after.timestamp() - root.validity().not_before.timestamp()) / (365 * 24 * 3600);
    assert_eq!(years, 10);
}

/// In a pod with `fsGroup`, Secrets are mounted 0440 for root and that group.
#[test]
fn a_key_that_its_group_may_read_is_taken() {
    let (dir, _) = east();
    let path = dir.path().join("ca");
    for mode in [0o400, 0o440, 0o600, 0o640] {
        fs::set_permissions(path.join("root.key"), fs::Permissions::from_mode(mode)).unwrap();
        assert!(Ca::load(&path, &domain("east.linkspan.internal")).is_ok(), "{mode:o}");
    }
}

#[test]
fn a_root_that_cannot_be_trusted_stops_the_start() {
    let load = |dir: &Path| Ca::load(dir, &domain("east.linkspan.internal")).err().unwrap();
    let (dir, _) = east();
    let path = dir.path().join("ca");
    let other = Ca::load(&path, &domain("west.linkspan.internal")).err().unwrap();
    assert!(matches!(other, CaError::OtherTrustDomain { .. }), "{other}");
    for too_open in [0o604, 0o444, 0o644, 0o660, 0o650, 0o602] {
        fs::set_permissions(path.join("root.key"), fs::Permissions::from_mode(too_open)).unwrap();
        let open = load(&path);
        assert!(matches!(open, CaError::KeyIsNotPrivate { mode, .. } if mode == too_open), "{open}");
        assert!(open.to_string().contains("at most 0640"), "{open}");
    }
    let foreign = KeyPair::generate().unwrap();
    files::write_atomically(&path.join("root.key"), foreign.serialize_pem().as_bytes(), 0o600).unwrap();
    assert!(load(&path).to_string().contains("belongs to another certificate"));
    files::write_atomically(&path.join("root.key"), b"nonsense", 0o600).unwrap();
    assert!(matches!(load(&path), CaError::Damaged { .. }));
    fs::remove_file(path.join("root.key")).unwrap();
    assert!(matches!(load(&path), CaError::File { .. }));
}

#[test]
fn a_link_certificate_is_exactly_the_gateways_identity() {
    let (_dir, ca) = east();
    let own = "spiffe://east.linkspan.internal/ns/linkspan/sa/gateway";
    for names in [vec![], vec![uri(own)]] {
        let issued = ca.sign_gateway(&request(names), &Purpose::Link, |_| false).unwrap();
        let [leaf] = issued.chain.as_slice() else { panic!("one certificate") };
        let (_, leaf) = x509_parser::parse_x509_certificate(leaf).unwrap();
        let names = &leaf.subject_alternative_name().unwrap().unwrap().value.general_names;
        assert_eq!(names.as_slice(), [GeneralName::URI(own)]);
        assert!(!leaf.is_ca());
        let usage = leaf.key_usage().unwrap().unwrap();
        assert!(usage.critical && usage.value.digital_signature() && !usage.value.key_cert_sign());
        let extended = leaf.extended_key_usage().unwrap().unwrap();
        assert!(extended.value.server_auth && extended.value.client_auth);
        let life = leaf.validity().not_after.timestamp() - leaf.validity().not_before.timestamp();
        assert_eq!(life, 24 * 3600 + 15 * 60, "a peer whose clock is ten minutes behind believes it (F-22)");
        let (_, root) = x509_parser::parse_x509_certificate(ca.root()).unwrap();
        assert_eq!(leaf.issuer(), root.subject());
    }
}

#[test]
fn a_request_for_any_other_name_is_refused() {
    let (_dir, ca) = east();
    let own = "spiffe://east.linkspan.internal/ns/linkspan/sa/gateway";
    let dns = |name: &str| SanType::DnsName(name.try_into().unwrap());
    for names in [
        vec![uri("spiffe://west.linkspan.internal/ns/linkspan/sa/gateway")],
        vec![uri("spiffe://east.linkspan.internal/ns/shop/sa/web")],
        vec![uri(own), uri("spiffe://east.linkspan.internal/ns/shop/sa/web")],
        vec![uri(own), dns("web.shop.svc.clusterset.local")],
        vec![SanType::IpAddress("127.0.0.1".parse().unwrap())],
    ] {
        let refused = ca.sign_gateway(&request(names.clone()), &Purpose::Link, |_| true);
        assert!(matches!(refused, Err(CaError::Refused(_))), "{names:?}");
    }
}

#[test]
fn a_server_certificate_has_only_allowed_dns_names() {
    let (_dir, ca) = east();
    let purpose =
        |names: &[&str]| Purpose::LocalServer { dns_names: names.iter().map(|&name| name.to_owned()).collect() };
    let allowed = |name: &str| name.ends_with(".shop.svc.clusterset.local");
    let csr = request(vec![]);
    let issued = ca.sign_gateway(&csr, &purpose(&["*.shop.svc.clusterset.local"]), allowed).unwrap();
    let (_, leaf) = x509_parser::parse_x509_certificate(&issued.chain[0]).unwrap();
    let names = &leaf.subject_alternative_name().unwrap().unwrap().value.general_names;
    assert_eq!(
        names.as_slice(),
        [
            GeneralName::URI("spiffe://east.linkspan.internal/ns/linkspan/sa/gateway"),
            GeneralName::DNSName("*.shop.svc.clusterset.local"),
        ]
    );
    let refused = ca.sign_gateway(&csr, &purpose(&["bank.example.com"]), allowed);
    assert!(matches!(refused, Err(CaError::Refused(_))));
    let many = Purpose::LocalServer { dns_names: vec!["a.shop.svc.clusterset.local".to_owned(); 201] };
    assert!(matches!(ca.sign_gateway(&csr, &many, allowed), Err(CaError::Refused(_))));
}

#[test]
fn malformed_requests_are_refused_and_never_panic() {
    let (_dir, ca) = east();
    let good = request(vec![]);
    for cut in 0..good.len() {
        assert!(ca.sign_gateway(&good[..cut], &Purpose::Link, |_| true).is_err());
    }
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 0x41;
        // A few bytes outside the signed part mean nothing to the parser. Then the certificate is the one of the request.
        if let Ok(issued) = ca.sign_gateway(&bad, &Purpose::Link, |_| true) {
            let (_, leaf) = x509_parser::parse_x509_certificate(&issued.chain[0]).unwrap();
            let (_, request) = X509CertificationRequest::from_der(&good).unwrap();
            assert_eq!(leaf.public_key().raw, request.certification_request_info.subject_pki.raw, "byte {at}");
        }
    }
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = params.serialize_request(&key).unwrap().der().to_vec();
    assert!(ca.sign_gateway(&authority, &Purpose::Link, |_| true).is_err());
    assert!(ca.sign_gateway(&vec![0; 100_000], &Purpose::Link, |_| true).is_err());
}

#[test]
fn a_workload_gets_its_own_identity() {
    let (_dir, ca) = east();
    let namespace = Namespace::parse("shop").unwrap();
    let account = ServiceAccountName::parse("web").unwrap();
    let identity = ca.issue_workload(&namespace, &account, Duration::from_secs(3600)).unwrap();
    assert_eq!(identity.identity.as_str(), "spiffe://east.linkspan.internal/ns/shop/sa/web");
    let der = CertificateDer::from_pem_slice(identity.certificate_pem.as_bytes()).unwrap();
    let (_, leaf) = x509_parser::parse_x509_certificate(&der).unwrap();
    let key = KeyPair::from_pem(&identity.key_pem).unwrap();
    assert_eq!(leaf.public_key().raw, key.subject_public_key_info().as_slice());
    assert_eq!(identity.trust_bundle_pem, ca.trust_bundle_pem());
    assert!(ca.issue_workload(&namespace, &account, Duration::ZERO).is_err());
    assert!(ca.issue_workload(&namespace, &account, WORKLOAD_LIFE_MAX * 2).is_err());
}
