use linkspan_proto::identity::TrustDomain;
use linkspan_runtime::drain::Drain;
use tokio::io::AsyncReadExt;

use super::*;

/// Whoever can reach the port could keep places for ever else.
#[tokio::test(start_paused = true)]
async fn a_caller_without_a_certificate_has_ten_seconds() {
    let dir = tempfile::tempdir().unwrap();
    let domain = TrustDomain::parse("east.linkspan.internal").unwrap();
    let (_drain, signal) = Drain::new();
    let context = Context {
        store: Store::default(),
        reports: Arc::default(),
        ca: Arc::new(crate::ca::create(&dir.path().join("ca"), &domain).unwrap()),
        attestor: None,
        mirrors: watch::channel(MirrorSet::default()).1,
        signal,
    };
    let ended = |caller| {
        let context = context.clone();
        async move {
            let (mut client, server) = tokio::io::duplex(4096);
            let served = task::spawn("test", connection(context, Box::new(server), caller));
            let started = tokio::time::Instant::now();
            // Says nothing, and hears the settings and then the end.
            let mut heard = Vec::new();
            let silence = client.read_to_end(&mut heard);
            let closed = tokio::time::timeout(Duration::from_secs(60), silence).await.is_ok();
            served.abort();
            closed.then(|| started.elapsed().as_secs())
        }
    };
    assert_eq!(ended(Caller::Unknown).await, Some(10));
    assert_ne!(ended(Caller::Gateway).await, Some(10));
}

#[test]
fn only_names_below_mirrored_namespaces_are_signed() {
    let namespaces = BTreeSet::from([Namespace::parse("shop").unwrap()]);
    for good in [
        "web-west.shop.svc.cluster.local",
        "*.shop.svc.cluster.local",
        "web.shop.svc.clusterset.local",
        "*.shop.svc.clusterset.local",
        "db-0.db-west.shop.svc.cluster.local",
        "db-0.west.db.shop.svc.clusterset.local",
        "*.west.db.shop.svc.clusterset.local",
    ] {
        assert!(is_mirrored(good, &namespaces), "{good}");
    }
    for bad in [
        "",
        "shop.svc.cluster.local",
        ".shop.svc.cluster.local",
        "web.bank.svc.cluster.local",
        "web.shop.svc.cluster.local.",
        "web.shop.svc.cluster.local.evil.com",
        "webshop.svc.cluster.local",
        "*.svc.cluster.local",
        "*.*.shop.svc.cluster.local",
        "web.*.shop.svc.cluster.local",
        "a.b.c.d.shop.svc.clusterset.local",
        "WEB.shop.svc.clusterset.local",
        "w eb.shop.svc.clusterset.local",
        "example.com",
    ] {
        assert!(!is_mirrored(bad, &namespaces), "{bad}");
    }
}
