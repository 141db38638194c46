use super::*;

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
