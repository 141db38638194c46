use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair, KeyUsagePurpose, SanType, date_time_ymd};

use super::{BundleError, check, fingerprint};
use linkspan_proto::identity::TrustDomain;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

fn domain(text: &str) -> TrustDomain {
    TrustDomain::parse(text).unwrap()
}

fn certificate(change: impl FnOnce(&mut CertificateParams)) -> String {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params.subject_alt_names = vec![SanType::URI("spiffe://west.example".try_into().unwrap())];
    change(&mut params);
    params.self_signed(&key).unwrap().pem()
}

#[test]
fn a_root_of_the_domain_is_taken() {
    let pem = certificate(|_| {});
    let roots = check(&pem, &domain("west.example")).unwrap();
    assert_eq!(roots.len(), 1);
    let der = CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
    assert_eq!(roots[0].fingerprint, fingerprint(&der));
    assert_eq!(roots[0].fingerprint.len(), 32 * 3 - 1);
    assert!(roots[0].not_after_unix > 0);

    let imported = certificate(|params| params.subject_alt_names = Vec::new());
    assert_eq!(check(&format!("{pem}{imported}"), &domain("west.example")).unwrap().len(), 2);
}

#[test]
fn anything_else_is_refused_with_the_reason() {
    let good = certificate(|_| {});
    let key = KeyPair::generate().unwrap().serialize_pem();
    let refused = |pem: &str| check(pem, &domain("west.example")).unwrap_err();
    assert!(matches!(refused(""), BundleError::Empty));
    assert!(matches!(refused("no PEM at all"), BundleError::Empty));
    assert!(matches!(refused("-----BEGIN CERTIFICATE-----\n!!!\n-----END CERTIFICATE-----\n"), BundleError::NotPem(_)));
    assert!(matches!(refused(&format!("{good}{key}")), BundleError::PrivateKey));
    assert!(matches!(refused(&good.repeat(17)), BundleError::TooMany));
    for (pem, why) in [
        (certificate(|params| params.is_ca = IsCa::NoCa), "not the certificate of an authority"),
        (certificate(|params| params.key_usages = vec![KeyUsagePurpose::CrlSign]), "may not sign"),
        (
            certificate(|params| {
                params.subject_alt_names = vec![SanType::URI("spiffe://east.example".try_into().unwrap())];
            }),
            "is a root of spiffe://east.example, not of spiffe://west.example",
        ),
        (certificate(|params| params.not_after = date_time_ymd(2001, 1, 1)), "which is not now"),
        ("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n".to_owned(), "not an X.509"),
    ] {
        let error = refused(&pem).to_string();
        assert!(error.contains(why), "{error}");
        assert!(error.contains("certificate 1"), "{error}");
    }
}
