//! Certificates, the roots of the peers, and the clock that decides about them.

use std::fs;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};
use linkspan_proto::identity::SpiffeId;
use rustls::ClientConfig;
use rustls::pki_types::{CertificateDer, ServerName, pem::PemObject};
use tokio::net::TcpStream;
use tokio::time::timeout;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use super::Checks;
use super::report::Group;

const GROUP: Group = Group::Trust;

/// How long before the end of a root one hears of it. Exchanging a root takes people on both sides.
const ROOT_NOTICE: Duration = Duration::from_secs(30 * 86_400);

/// A leaf lives 24 h and is renewed at half; one with less than this left was not renewed when it should have been.
const LEAF_NOTICE: Duration = Duration::from_secs(6 * 3600);

/// Files from the future by more than this mean that the clock went back. File systems round to two seconds at worst.
const CLOCK_SLACK: Duration = Duration::from_secs(60);

/// How long the handshake on the mTLS port may take.
const HANDSHAKE: Duration = Duration::from_secs(3);

/// Runs the checks of this group.
pub(super) async fn check(checks: &mut Checks<'_>) {
    checks.progress.say("reading certificates");
    let now = SystemTime::now();
    clock(checks, now);
    let root = own_root(checks, now);
    let mtls = checks.gateway.as_ref().and_then(|run| run.mtls);
    if let (Some(root), Some(mtls)) = (root, mtls) {
        gateway_certificate(checks, root, mtls, now).await;
    }
    bundles(checks, now);
}

/// A certificate's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Life {
    from: SystemTime,
    until: SystemTime,
}

impl Life {
    fn of(certificate: &CertificateDer<'_>) -> anyhow::Result<Self> {
        let (_, certificate) = X509Certificate::from_der(certificate).context("not a certificate")?;
        let moment = |seconds: i64| UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
        let validity = certificate.validity();
        Ok(Self { from: moment(validity.not_before.timestamp()), until: moment(validity.not_after.timestamp()) })
    }
}

/// How a certificate stands at a moment.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Standing {
    Good(String),
    EndsSoon(String),
    Expired(String),
    NotYet(String),
}

fn standing(life: Life, now: SystemTime, notice: Duration) -> Standing {
    if let Ok(ahead) = life.from.duration_since(now)
        && ahead > Duration::ZERO
    {
        return Standing::NotYet(format!("begins in {}", span(ahead)));
    }
    match life.until.duration_since(now) {
        Ok(left) if left > notice => Standing::Good(format!("ends in {}", span(left))),
        Ok(left) => Standing::EndsSoon(format!("ends in {}", span(left))),
        Err(past) => Standing::Expired(format!("ended {} ago", span(past.duration()))),
    }
}

/// A span in its largest unit.
fn span(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7_200 => format!("{} min", seconds / 60),
        7_200..172_800 => format!("{} h", seconds / 3_600),
        _ => format!("{} days", seconds / 86_400),
    }
}

fn clock(checks: &mut Checks<'_>, now: SystemTime) {
    let name = "the clock is sane";
    let state = checks.folder.state();
    let files = ["run/gateway.json", "run/controller.json", "addresses.json", "ca/root.pem"];
    let newest = files.iter().filter_map(|file| fs::metadata(state.join(file)).ok()?.modified().ok()).max();
    match newest.and_then(|newest| newest.duration_since(now).ok()) {
        Some(ahead) if ahead > CLOCK_SLACK => checks.fail(
            GROUP,
            name,
            format!("a file in {} is {} newer than now: the clock has gone back", state.display(), span(ahead)),
            "set the clock (chronyd, systemd-timesyncd); certificates are valid by the clock",
        ),
        _ => checks.ok(GROUP, name, ""),
    }
}

/// Checks the site's root and returns it.
fn own_root(checks: &mut Checks<'_>, now: SystemTime) -> Option<CertificateDer<'static>> {
    let name = "the site's root certificate is valid";
    let file = checks.folder.state().join("ca/root.pem");
    let read = fs::read(&file)
        .with_context(|| format!("cannot read {}", file.display()))
        .and_then(|pem| CertificateDer::from_pem_slice(&pem).context("no certificate in it"))
        .and_then(|root| Ok((Life::of(&root)?, root)));
    let (life, root) = match read {
        Ok(read) => read,
        Err(error) => {
            let remedy = format!("start the site once: `linkspan site run --dir {}` makes it", checks.dir());
            checks.fail(GROUP, name, format!("{error:#}"), remedy);
            return None;
        }
    };
    let renew = "make a new root, export the Link anew (`linkspan link export`) and import it at every peer";
    match standing(life, now, ROOT_NOTICE) {
        Standing::Good(found) => checks.ok(GROUP, name, found),
        Standing::EndsSoon(reason) => checks.warn(GROUP, name, reason, renew),
        Standing::Expired(reason) => checks.fail(GROUP, name, reason, renew),
        Standing::NotYet(reason) => {
            checks.fail(GROUP, name, reason, "set the clock: it is behind the one that made the root");
        }
    }
    Some(root)
}

/// The certificate that the gateway shows to local clients; the one for the link is renewed by the same code.
async fn gateway_certificate(
    checks: &mut Checks<'_>,
    root: CertificateDer<'static>,
    mtls: SocketAddr,
    now: SystemTime,
) {
    checks.progress.say("asking the gateway for its certificate");
    let name = "the gateway's certificate is valid";
    let restart =
        format!("restart the gateway: it asks the controller for a new one; {}", "the log says why it did not");
    let leaf = match timeout(HANDSHAKE, shown_certificate(root, mtls)).await {
        Ok(Ok(leaf)) => leaf,
        Ok(Err(error)) => {
            return checks.fail(
                GROUP,
                name,
                format!("{mtls} shows no certificate of this site's root: {error:#}"),
                restart,
            );
        }
        Err(_) => return checks.fail(GROUP, name, format!("no TLS answer from {mtls}"), restart),
    };
    let life = Life::of(&leaf);
    match life.map(|life| standing(life, now, LEAF_NOTICE)) {
        Ok(Standing::Good(found)) => {
            let identity = spiffe_id(&leaf).map(|id| format!("{id}, ")).unwrap_or_default();
            checks.ok(GROUP, name, format!("{identity}{found}"));
        }
        Ok(Standing::EndsSoon(reason)) => {
            checks.warn(GROUP, name, format!("{reason}, and has not been renewed"), restart);
        }
        Ok(Standing::Expired(reason)) => checks.fail(GROUP, name, reason, restart),
        Ok(Standing::NotYet(reason)) => checks.fail(GROUP, name, reason, "set the clock"),
        Err(error) => checks.fail(GROUP, name, format!("{error:#}"), restart),
    }
}

/// Shakes hands with the mTLS port, trusting the site's root alone, and returns the leaf. The handshake need not end
/// well: this client has no certificate of its own to show.
async fn shown_certificate(root: CertificateDer<'static>, mtls: SocketAddr) -> anyhow::Result<CertificateDer<'static>> {
    let seen = Arc::new(verifier::Recorder::new(root)?);
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::clone(&seen) as _)
        .with_no_client_auth();
    let stream = TcpStream::connect(mtls).await.context("cannot connect")?;
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let name = ServerName::try_from("linkspan-check.invalid")?;
    let handshake = connector.connect(name, stream).await;
    match (seen.leaf(), handshake) {
        (Some(leaf), _) => Ok(leaf),
        (None, Err(error)) => Err(error.into()),
        (None, Ok(_)) => bail!("the handshake ended without a certificate"),
    }
}

fn spiffe_id(leaf: &CertificateDer<'_>) -> Option<SpiffeId> {
    let (_, certificate) = X509Certificate::from_der(leaf).ok()?;
    let names = certificate.subject_alternative_name().ok()??;
    names.value.general_names.iter().find_map(|name| match name {
        GeneralName::URI(uri) => SpiffeId::parse(uri).ok(),
        _ => None,
    })
}

fn bundles(checks: &mut Checks<'_>, now: SystemTime) {
    let peers: Vec<_> =
        checks.facts.peers.values().filter(|peer| checks.scope.covers_cluster(&peer.cluster)).cloned().collect();
    for peer in peers {
        let name = format!("{}: the trust bundle is valid", peer.cluster);
        let import = format!(
            "on {0} run `linkspan link export`, here `linkspan link import FILE --replace --dir {1}`",
            peer.cluster,
            checks.dir()
        );
        let mut lives = Vec::new();
        let mut broken = None;
        for certificate in CertificateDer::pem_slice_iter(peer.trust_bundle.as_bytes()) {
            match certificate.map_err(anyhow::Error::from).and_then(|certificate| Life::of(&certificate)) {
                Ok(life) => lives.push(life),
                Err(error) => broken = Some(error),
            }
        }
        // One root that is good is enough: during an exchange of roots the old one may already have ended.
        let best = lives.iter().max_by_key(|life| life.until);
        match (broken, best.map(|life| standing(*life, now, ROOT_NOTICE))) {
            (Some(error), _) => checks.fail(GROUP, name, format!("{error:#}"), import),
            (None, None) => checks.fail(GROUP, name, "it holds no certificate", import),
            (None, Some(Standing::Good(found))) => checks.ok(GROUP, name, format!("{}, {found}", peer.trust_domain)),
            (None, Some(Standing::EndsSoon(reason))) => checks.warn(GROUP, name, reason, import),
            (None, Some(Standing::Expired(reason))) => checks.fail(GROUP, name, reason, import),
            (None, Some(Standing::NotYet(reason))) => {
                checks.fail(GROUP, name, reason, "compare the clocks of both sides");
            }
        }
    }
}

/// Verifies the chain as a client of the site does, and remembers the leaf.
mod verifier {
    use std::sync::{Arc, Mutex, PoisonError};

    use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
    use rustls::client::{WebPkiServerVerifier, verify_server_cert_signed_by_trust_anchor};
    use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
    use rustls::server::ParsedCertificate;
    use rustls::{CertificateError, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};

    #[derive(Debug)]
    pub(super) struct Recorder {
        roots: RootCertStore,
        signatures: Arc<WebPkiServerVerifier>,
        leaf: Mutex<Option<CertificateDer<'static>>>,
    }

    impl Recorder {
        pub(super) fn new(root: CertificateDer<'static>) -> anyhow::Result<Self> {
            let mut roots = RootCertStore::empty();
            roots.add(root)?;
            let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
            let signatures = WebPkiServerVerifier::builder_with_provider(Arc::new(roots.clone()), provider).build()?;
            Ok(Self { roots, signatures, leaf: Mutex::new(None) })
        }

        pub(super) fn leaf(&self) -> Option<CertificateDer<'static>> {
            self.leaf.lock().unwrap_or_else(PoisonError::into_inner).clone()
        }
    }

    impl ServerCertVerifier for Recorder {
        fn verify_server_cert(
            &self,
            end_entity: &CertificateDer<'_>,
            intermediates: &[CertificateDer<'_>],
            _server_name: &ServerName<'_>,
            _ocsp_response: &[u8],
            now: UnixTime,
        ) -> Result<ServerCertVerified, Error> {
            // The name is of no interest: the gateway's certificate names an identity, and which names it serves is
            // another check. The end of its life is told by the caller, with a better sentence.
            let certificate = ParsedCertificate::try_from(end_entity)?;
            let algorithms = rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms.all;
            match verify_server_cert_signed_by_trust_anchor(&certificate, &self.roots, intermediates, now, algorithms) {
                Ok(())
                | Err(Error::InvalidCertificate(
                    CertificateError::Expired
                    | CertificateError::ExpiredContext { .. }
                    | CertificateError::NotValidYet
                    | CertificateError::NotValidYetContext { .. },
                )) => {}
                Err(error) => return Err(error),
            }
            *self.leaf.lock().unwrap_or_else(PoisonError::into_inner) = Some(end_entity.clone().into_owned());
            Ok(ServerCertVerified::assertion())
        }

        fn verify_tls12_signature(
            &self,
            message: &[u8],
            cert: &CertificateDer<'_>,
            dss: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            self.signatures.verify_tls12_signature(message, cert, dss)
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            cert: &CertificateDer<'_>,
            dss: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            self.signatures.verify_tls13_signature(message, cert, dss)
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            self.signatures.supported_verify_schemes()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn life(from: i64, until: i64, now: SystemTime) -> Life {
        let shift = |days: i64| {
            let span = Duration::from_secs(days.unsigned_abs() * 86_400);
            if days < 0 { now - span } else { now + span }
        };
        Life { from: shift(from), until: shift(until) }
    }

    #[test]
    fn the_end_of_a_certificate_is_announced() {
        let now = SystemTime::now();
        let at = |from, until| standing(life(from, until, now), now, ROOT_NOTICE);
        assert_eq!(at(-1, 100), Standing::Good("ends in 100 days".to_owned()));
        assert_eq!(at(-1, 29), Standing::EndsSoon("ends in 29 days".to_owned()));
        assert_eq!(at(-9, -3), Standing::Expired("ended 3 days ago".to_owned()));
        assert_eq!(at(3, 100), Standing::NotYet("begins in 3 days".to_owned()));
    }

    #[test]
    fn a_life_is_read_from_the_certificate() {
        let key = rcgen::KeyPair::generate().expect("key");
        let mut parameters = rcgen::CertificateParams::new(Vec::new()).expect("parameters");
        parameters.not_before = rcgen::date_time_ymd(2026, 1, 1);
        parameters.not_after = rcgen::date_time_ymd(2027, 1, 1);
        let id = "spiffe://east.linkspan.internal/ns/linkspan/sa/gateway";
        parameters.subject_alt_names = vec![rcgen::SanType::URI(id.try_into().expect("URI"))];
        let certificate = parameters.self_signed(&key).expect("certificate");
        let life = Life::of(certificate.der()).expect("a life");
        assert_eq!(life.until.duration_since(life.from).expect("forwards"), Duration::from_secs(365 * 86_400));
        assert_eq!(spiffe_id(certificate.der()).map(|id| id.to_string()).as_deref(), Some(id));
        assert!(Life::of(&CertificateDer::from(vec![1, 2, 3])).is_err());
    }

    #[test]
    fn spans_have_one_unit() {
        for (seconds, text) in [(5, "5 s"), (600, "10 min"), (90_000, "25 h"), (864_000, "10 days")] {
            assert_eq!(span(Duration::from_secs(seconds)), text);
        }
    }
}
