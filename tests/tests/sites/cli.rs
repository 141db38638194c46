//! The commands tell the truth: compared with what the load generator saw, and with faults made on purpose.

use linkspan_tests::load::Load;
use linkspan_tests::manifests::Service;
use linkspan_tests::process::eventually;
use linkspan_tests::servers::Nginx;
use linkspan_tests::site::{Options, PATIENCE, Site, link_all};
use linkspan_tests::world::World;
use serde_json::Value;

use super::kit::{linked, needs_namespaces};

const WEB: &str = "web-west.shop.svc.cluster.local";

fn pair_with_web() -> (World, Vec<Site>, Nginx) {
    let (world, sites) = linked(&["east", "west"]);
    let nginx = Nginx::start(&sites[1].host, 8080);
    sites[1].apply("web.yaml", &Service::new("shop", "web").port("http", 8080, Some("http")).yaml());
    sites[0].wait_resolves(WEB);
    (world, sites, nginx)
}

#[test]
fn check_is_green_on_a_healthy_pair() {
    needs_namespaces!();
    let (_world, sites, _nginx) = pair_with_web();
    // From the first answer that crosses the link on, nothing may be red any more: no second try.
    eventually("a call crosses", PATIENCE, || sites[0].host.try_sh(&format!("curl -fsS -m 2 http://{WEB}:8080/")).0);
    for site in &sites {
        let (code, text) = site.try_linkspan(&["check", "-o", "json"]);
        let json: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
        assert_eq!(code, 0, "{}: {json:#}", site.name());
        assert_eq!((&json["ok"], &json["failures"]), (&Value::Bool(true), &Value::from(0)), "{json:#}");
        let checks = json["checks"].as_array().expect("a list");
        assert_eq!(json["passed"], checks.len(), "{}: not even a warning: {json:#}", site.name());
        for group in ["site", "trust", "links", "catalogue", "dns"] {
            assert!(checks.iter().any(|check| check["group"] == group), "nothing was checked of {group}: {json:#}");
        }
        let (code, text) = site.try_linkspan(&["check"]);
        assert_eq!(code, 0, "{}: {text}", site.name());
    }
}

#[test]
fn check_names_a_peer_that_is_down() {
    needs_namespaces!();
    let (_world, mut sites, _nginx) = pair_with_web();
    sites[1].kill();
    eventually("east sees west down", PATIENCE, || sites[0].alive("west") == Some(false));
    let (code, text) = sites[0].try_linkspan(&["check"]);
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("west") && text.contains("10.77.0.2:4143"), "{text}");
    assert!(text.to_lowercase().contains("remedy") || text.contains("->"), "{text}");
}

#[test]
fn check_names_a_wrong_trust_bundle() {
    needs_namespaces!();
    let world = World::new(&["east", "west", "other"]);
    let mut sites: Vec<Site> =
        ["east", "west"].iter().map(|name| Site::init(world.host(name), &Options::default())).collect();
    for site in &mut sites {
        site.start();
    }
    // East gets the Link of an impostor: the right name, trust domain and address, another root.
    let impostor = Site::init(world.host("other"), &Options { name: Some("west".to_owned()), ..Options::default() });
    let wrong = impostor.linkspan(&["link", "export"]).replace("10.77.0.3:4143", "10.77.0.2:4143");
    sites[0].apply("link-west.yaml", &wrong);
    sites[1].import(&sites[0]);
    let mut text = String::new();
    eventually("check says that the trust bundle is wrong", PATIENCE, || {
        let (code, output) = sites[0].try_linkspan(&["check"]);
        text = output;
        code == 1 && text.to_lowercase().contains("trust bundle")
    });
    assert!(text.contains("link export"), "the remedy names the command: {text}");
}

#[test]
fn check_names_an_unexported_service() {
    needs_namespaces!();
    let (_world, sites, _nginx) = pair_with_web();
    sites[1].apply("api.yaml", &Service::new("shop", "api").port("http", 8080, Some("http")).hidden().yaml());
    let (code, text) = sites[0].try_linkspan(&["check", "shop/api"]);
    assert_eq!(code, 1, "{text}");
    assert!(text.to_lowercase().contains("not exported") && text.contains("ServiceExport"), "{text}");
}

#[test]
fn gateways_services_and_exports_show_what_is_there() {
    needs_namespaces!();
    let (_world, sites, _nginx) = pair_with_web();
    let (east, west) = (&sites[0], &sites[1]);
    let table = east.linkspan(&["gateways"]);
    for column in ["CLUSTER", "ALIVE", "NUM_SVC", "LATENCY", "RTT", "LOSS", "VERSION", "SINCE"] {
        assert!(table.contains(column), "{table}");
    }
    let rows = east.json(&["gateways"]);
    let row =
        rows.as_array().or_else(|| rows["gateways"].as_array()).and_then(|r| r.first()).expect("one gateway").clone();
    assert_eq!(row["cluster"], "west", "{row}");
    let services = east.linkspan(&["services"]);
    assert!(services.contains(WEB) && services.contains("8080"), "{services}");
    assert!(west.linkspan(&["exports"]).contains("web"));
}

#[test]
fn stat_agrees_with_the_load_generator() {
    needs_namespaces!();
    let (_world, sites, _nginx) = pair_with_web();
    let east = &sites[0];
    let report = Load::start(&east.host, &format!("http://{WEB}:8080/"), 200, 12).finish();
    assert_eq!(report.failures.len(), 0);
    let stat = east.json(&["stat", "--window", "10s"]);
    let rows = stat.as_array().or_else(|| stat["rows"].as_array()).expect("rows").clone();
    let row = rows
        .iter()
        .find(|row| row.to_string().contains("shop/web") && row["direction"] == "outbound")
        .unwrap_or_else(|| panic!("no row for shop/web: {stat}"));
    let number = |key: &str| row[key].as_f64().unwrap_or_else(|| panic!("no {key} in {row}"));
    assert!((number("successRate") - 1.0).abs() < 1e-9, "{row}");
    // The load has just ended: the last ten seconds hold between eight and ten of its seconds.
    assert!((150.0..=210.0).contains(&number("rps")), "{row}");
    let [p50, p95, p99] = report.percentiles;
    for (key, seen) in [("p50Millis", p50), ("p95Millis", p95), ("p99Millis", p99)] {
        let said = number(key);
        // What the gateway sees is part of what the client sees; buckets are coarse by up to a fifth.
        assert!(said > 0.0 && said <= seen * 1.25 + 2.0, "{key}: said {said}, seen {seen}");
    }
}

#[test]
fn golden_metrics_are_on_the_admin_port() {
    needs_namespaces!();
    let (_world, sites, _nginx) = pair_with_web();
    for _ in 0..10 {
        sites[0].host.sh(&format!("curl -fsS http://{WEB}:8080/"));
    }
    for (site, direction) in [(&sites[0], "outbound"), (&sites[1], "inbound")] {
        let text = site.host.sh("curl -fsS http://127.0.0.1:4191/metrics");
        for family in ["request_total", "response_latency_ms_bucket", "link_up", "link_rtt_seconds"] {
            assert!(text.contains(family), "no {family} on {}", site.name());
        }
        let line = text
            .lines()
            .find(|l| {
                l.starts_with("response_total") && l.contains(direction) && l.contains("web") && l.contains("success")
            })
            .unwrap_or_else(|| panic!("no successes counted on {}:\n{text}", site.name()));
        let count: f64 = line.rsplit(' ').next().and_then(|n| n.parse().ok()).expect("a number");
        assert!(count >= 10.0, "{line}");
        for path in ["live", "ready", "config"] {
            site.host.sh(&format!("curl -fsS http://127.0.0.1:4191/{path}"));
        }
        let config: Value =
            serde_json::from_str(&site.host.sh("curl -fsS http://127.0.0.1:4191/config")).expect("JSON");
        assert!(!config.to_string().contains("PRIVATE KEY"));
    }
}

#[test]
fn mistakes_get_an_error_that_helps() {
    needs_namespaces!();
    let world = World::new(&["east", "west"]);
    let site = Site::init(world.host("east"), &Options::default());
    let yaml = std::fs::read_to_string(site.dir().join("site.yaml")).expect("site.yaml");
    std::fs::write(site.dir().join("site.yaml"), yaml.replace("gateway:", "gatewy:")).expect("written");
    let (code, text) = site.try_linkspan(&["site", "run"]);
    assert_ne!(code, 0);
    assert!(text.contains("gatewy") && text.contains("site.yaml"), "{text}");
    let (code, text) = site.try_linkspan(&["gateways"]);
    assert_ne!(code, 0);
    assert!(text.contains("site run"), "the next step is named: {text}");
    std::fs::write(site.dir().join("site.yaml"), yaml).expect("written");
    let (code, text) = site.try_linkspan(&["link", "import", "/dev/null"]);
    assert_ne!(code, 0, "{text}");
    // A site cannot be linked with itself.
    let own = site.linkspan(&["link", "export"]);
    let file = site.host.dir().join("own.yaml");
    std::fs::write(&file, own).expect("written");
    let (code, text) = site.try_linkspan(&["link", "import", &file.display().to_string()]);
    assert!(code != 0 && text.contains("east"), "{text}");
    let _: fn(&[&Site]) = link_all;
}
