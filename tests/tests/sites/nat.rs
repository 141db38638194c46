//! A site that nobody can dial exports a service all the same.

use linkspan_tests::manifests::Service;
use linkspan_tests::servers::Nginx;
use linkspan_tests::site::{Options, Site, link_all};
use linkspan_tests::world::World;

use super::kit::needs_namespaces;

#[test]
fn a_site_behind_nat_exports_a_service() {
    needs_namespaces!();
    let world = World::new(&["east", "west"]);
    let mut east = Site::init(world.host("east"), &Options::default());
    let mut west = Site::init(world.host("west"), &Options { hidden: true, ..Options::default() });
    // Nothing new comes in from outside; answers to what west sent itself do.
    west.host.nft(
        "chain i { type filter hook input priority 0; policy drop; iif lo accept; ct state established,related accept; }",
    );
    east.start();
    west.start();
    assert!(!west.linkspan(&["link", "export"]).contains("10.77.0.2"), "west must not advertise an address");
    link_all(&[&east, &west]);
    let _nginx = Nginx::start(&west.host, 8080);
    west.apply("web.yaml", &Service::new("shop", "web").port("http", 8080, Some("http")).yaml());
    let name = "web-west.shop.svc.cluster.local";
    east.wait_resolves(name);
    assert_eq!(east.host.sh(&format!("curl -fsS http://{name}:8080/")), "west\n");
}
