//! Mirrors come, stay and go for the right reasons only.

use std::time::{Duration, Instant};

use linkspan_tests::manifests::Service;
use linkspan_tests::process::eventually;
use linkspan_tests::servers::{self, Nginx};
use linkspan_tests::site::{Options, PATIENCE, Site, link_all};
use linkspan_tests::world::World;
use serde_json::Value;

use super::kit::{linked, needs_namespaces};

fn service(name: &str, port: u16) -> String {
    Service::new("shop", name).port("http", port, Some("http")).yaml()
}

fn gone(site: &Site, name: &str) {
    eventually(&format!("{name} is gone on {}", site.name()), PATIENCE, || {
        site.host.try_sh(&format!("dig +time=1 +tries=1 {name} A")).1.contains("NXDOMAIN")
    });
}

#[test]
fn a_deletion_on_the_exporting_side_removes_the_mirror() {
    needs_namespaces!();
    let (_world, sites) = linked(&["east", "west"]);
    let (east, west) = (&sites[0], &sites[1]);
    west.apply("web.yaml", &service("web", 8080));
    west.apply("api.yaml", &service("api", 8081));
    let address = east.wait_resolves("web-west.shop.svc.cluster.local");
    east.wait_resolves("api-west.shop.svc.cluster.local");
    let mirror = east.dir().join("state/mirrors/shop.web-west.yaml");
    eventually("the mirror's file is there", PATIENCE, || mirror.exists());
    west.remove("web.yaml");
    gone(east, "web-west.shop.svc.cluster.local");
    eventually("the mirror's file is gone", PATIENCE, || !mirror.exists());
    assert!(!east.host.try_sh(&format!("curl -sS -m 2 http://{address}:8080/")).0, "nobody listens for it any more");
    east.wait_resolves("api-west.shop.svc.cluster.local");
    // Withdrawing the export alone does the same.
    west.apply("api.yaml", &Service::new("shop", "api").port("http", 8081, Some("http")).hidden().yaml());
    gone(east, "api-west.shop.svc.cluster.local");
}

#[test]
fn a_peer_that_disappears_removes_nothing() {
    needs_namespaces!();
    let (_world, mut sites) = linked(&["east", "west"]);
    sites[1].apply("web.yaml", &service("web", 8080));
    let name = "web-west.shop.svc.cluster.local";
    let address = sites[0].wait_resolves(name);
    sites[1].kill();
    eventually("east sees west down", PATIENCE, || sites[0].alive("west") == Some(false));
    assert_eq!(sites[0].wait_resolves(name), address);
    // East itself restarts while west is away: the mirror is still there, at the same address.
    sites[0].stop();
    sites[0].start();
    assert_eq!(sites[0].wait_resolves(name), address);
    let rows = sites[0].json(&["services"]);
    assert!(rows.to_string().contains("web-west"), "{rows}");
}

#[test]
fn a_broken_manifest_changes_nothing_else_and_is_named() {
    needs_namespaces!();
    let (_world, sites) = linked(&["east", "west"]);
    let (east, west) = (&sites[0], &sites[1]);
    let _nginx = Nginx::start(&west.host, 8080);
    west.apply("web.yaml", &service("web", 8080));
    let name = "web-west.shop.svc.cluster.local";
    let address = east.wait_resolves(name);
    west.apply(
        "web.yaml",
        "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: shop}\nspec:\n  ports: [{port: eighty}]\n",
    );
    eventually("the file, line and field are named", PATIENCE, || {
        let log = std::fs::read_to_string(west.host.dir().join("site.log")).unwrap_or_default();
        log.contains("web.yaml") && log.contains("port") && (log.contains("line 5") || log.contains(":5"))
    });
    assert_eq!(east.host.sh(&format!("curl -fsS http://{name}:8080/")), "west\n", "the last good state serves");
    // Other files still take effect.
    west.apply("api.yaml", &service("api", 8081));
    east.wait_resolves("api-west.shop.svc.cluster.local");
    assert_eq!(east.wait_resolves(name), address);
    west.apply("web.yaml", &service("web", 8080));
    assert_eq!(east.host.sh(&format!("curl -fsS http://{name}:8080/")), "west\n");
}

#[test]
fn a_change_of_manifests_takes_effect_in_under_a_second() {
    needs_namespaces!();
    let (_world, sites) = linked(&["east", "west"]);
    let (east, west) = (&sites[0], &sites[1]);
    west.apply("first.yaml", &service("first", 8080));
    east.wait_resolves("first-west.shop.svc.cluster.local");
    let start = Instant::now();
    west.apply("second.yaml", &service("second", 8081));
    east.wait_resolves("second-west.shop.svc.cluster.local");
    assert!(start.elapsed() < Duration::from_secs(1), "took {:?} across two sites", start.elapsed());
}

#[test]
fn a_restart_keeps_every_mirrored_address_and_port() {
    needs_namespaces!();
    let (_world, mut sites) = linked(&["east", "west"]);
    let names: Vec<String> = (0..20).map(|n| format!("svc{n}")).collect();
    for (index, name) in names.iter().enumerate() {
        sites[1].apply(&format!("{name}.yaml"), &service(name, 8000 + u16::try_from(index).expect("small")));
    }
    let all = |east: &Site| -> Vec<String> {
        names.iter().map(|name| east.wait_resolves(&format!("{name}-west.shop.svc.cluster.local"))).collect()
    };
    let _server = servers::python(&sites[1].host, "slow_server.py", 8000);
    // Every port is open and nothing else: 8000 leads to a server, the others to backends that do not run.
    let ports = |east: &Site| -> Vec<String> {
        east.host
            .sh("ss -Htln | awk '{print $4}' | grep -E '^127[.](8[0-9]|9[0-5])[.]' | sort -u")
            .lines()
            .map(str::to_owned)
            .collect()
    };
    let open = |east: &Site, addresses: &[String]| {
        for (index, address) in addresses.iter().enumerate() {
            let call = format!("curl -sS -m 5 -o /dev/null -w '%{{http_code}}' http://{address}:{}/", 8000 + index);
            let wanted = if index == 0 { "200" } else { "502" };
            assert_eq!(east.host.sh(&call), wanted, "{call}");
        }
    };
    let before = all(&sites[0]);
    open(&sites[0], &before);
    let ports_before = ports(&sites[0]);
    assert_eq!(
        ports_before.len(),
        2 * names.len(),
        "one for the mirror, one for the clusterset name: {ports_before:?}"
    );
    let mut distinct = before.clone();
    distinct.sort();
    distinct.dedup();
    assert_eq!(distinct.len(), names.len(), "each mirrored service has an address of its own");
    sites[0].stop();
    sites[0].start();
    assert_eq!(all(&sites[0]), before);
    open(&sites[0], &before);
    assert_eq!(ports(&sites[0]), ports_before);
}

#[test]
fn three_sites_that_all_export_the_same_name_make_no_loop() {
    needs_namespaces!();
    let (_world, sites) = linked(&["east", "west", "north"]);
    let _servers: Vec<Nginx> = sites.iter().map(|site| Nginx::start(&site.host, 8080)).collect();
    for site in &sites {
        site.apply("web.yaml", &service("web", 8080));
    }
    for site in &sites {
        let mut addresses = Vec::new();
        for peer in sites.iter().filter(|peer| peer.name() != site.name()) {
            let name = format!("web-{}.shop.svc.cluster.local", peer.name());
            addresses.push(site.wait_resolves(&name));
            assert_eq!(site.host.sh(&format!("curl -fsS http://{name}:8080/")), format!("{}\n", peer.name()));
        }
        addresses.push(site.wait_resolves("web.shop.svc.clusterset.local"));
        let count = addresses.len();
        addresses.sort();
        addresses.dedup();
        assert_eq!(addresses.len(), count, "names have addresses of their own");
        // Mirrors are never exported again: nobody offers web-west-north or the like.
        let rows = site.json(&["services"]);
        let text = rows.to_string();
        assert!(
            !text.contains("web-west-north") && !text.contains("web-north-west") && !text.contains("web-east-west"),
            "{text}"
        );
    }
}

#[test]
fn a_mirror_as_an_endpoint_is_never_exported_again() {
    needs_namespaces!();
    let (_world, sites) = linked(&["east", "west"]);
    let (east, west) = (&sites[0], &sites[1]);
    east.apply("web.yaml", &service("web", 8080));
    let mirror_on_west = west.wait_resolves("web-east.shop.svc.cluster.local");
    west.apply(
        "again.yaml",
        &Service::new("shop", "again")
            .port("http", 8080, Some("http"))
            .endpoints(&[(mirror_on_west.as_str(), true)])
            .yaml(),
    );
    east.wait_resolves("again-west.shop.svc.cluster.local");
    let answer = east.host.sh("curl -sS -i http://again-west.shop.svc.cluster.local:8080/");
    assert!(answer.contains("503") && answer.contains("no ready endpoint"), "{answer}");
}

#[test]
fn s42_a_request_that_circles_through_proxies_is_refused_at_its_first_repeat() {
    needs_namespaces!();
    let (_world, sites) = linked(&["east", "west"]);
    // Each site's "web" is an haproxy that sends everything on to the other site's "web".
    let mut proxies = Vec::new();
    for site in &sites {
        site.apply("web.yaml", &service("web", 8080));
    }
    for (site, peer) in [(&sites[0], "west"), (&sites[1], "east")] {
        let mirror = site.wait_resolves(&format!("web-{peer}.shop.svc.cluster.local"));
        proxies.push(proxy_to(site, &mirror));
    }
    let answer = sites[0].host.sh("curl -sS -m 10 -i http://web-west.shop.svc.cluster.local:8080/");
    assert!(answer.contains(" 508 ") && answer.contains("came back"), "{answer}");
    let log = std::fs::read_to_string(sites[1].host.dir().join("site.log")).expect("log");
    let entered = log.lines().filter(|l| l.contains("direction=\"inbound\"") && l.contains("shop/web")).count();
    assert_eq!(entered, 2, "west was entered once, and once more to be refused");
}

#[test]
fn s42_a_request_that_circles_through_three_sites_is_refused_at_its_first_repeat() {
    needs_namespaces!();
    let (_world, sites) = linked(&["east", "west", "north"]);
    for site in &sites {
        site.apply("web.yaml", &service("web", 8080));
    }
    // East's "web" sends on to west's, west's to north's, north's to east's.
    let mut proxies = Vec::new();
    for (index, site) in sites.iter().enumerate() {
        let mirror = site.wait_resolves(&format!("web-{}.shop.svc.cluster.local", sites[(index + 1) % 3].name()));
        proxies.push(proxy_to(site, &mirror));
    }
    let answer = sites[0].host.sh("curl -sS -m 10 -i http://web-west.shop.svc.cluster.local:8080/");
    assert!(answer.contains(" 508 ") && answer.contains("came back"), "{answer}");
    let entered = |site: &Site| {
        let log = std::fs::read_to_string(site.host.dir().join("site.log")).expect("log");
        log.lines().filter(|l| l.contains("direction=\"inbound\"") && l.contains("shop/web")).count()
    };
    assert_eq!(sites.iter().map(entered).collect::<Vec<_>>(), [1, 2, 1], "once around, and once more to be refused");
}

/// An haproxy as `site`'s "web" that sends everything on to `mirror`.
fn proxy_to(site: &Site, mirror: &str) -> linkspan_tests::process::Process {
    let config = format!(
        "defaults\n mode http\n timeout connect 5s\n timeout client 10s\n timeout server 10s\n\
         frontend f\n bind 127.0.0.1:8080\n default_backend b\nbackend b\n server s {mirror}:8080\n"
    );
    let file = site.host.dir().join("haproxy.cfg");
    std::fs::write(&file, config).expect("haproxy.cfg");
    let proxy = site.host.start("haproxy", "haproxy", &["-db", "-f", &file.display().to_string()]);
    servers::wait_listening(&site.host, 8080);
    proxy
}

#[test]
fn a_headless_service_has_a_name_for_each_endpoint() {
    needs_namespaces!();
    let (_world, sites) = linked(&["east", "west"]);
    let (east, west) = (&sites[0], &sites[1]);
    let mut pods = Vec::new();
    for (index, address) in ["127.0.5.1", "127.0.5.2"].iter().enumerate() {
        let code = format!(
            "import http.server\nclass H(http.server.BaseHTTPRequestHandler):\n def do_GET(s):\n  \
             b=b'pod-{index}'; s.send_response(200); s.send_header('Content-Length',str(len(b))); s.end_headers(); s.wfile.write(b)\n\
             http.server.HTTPServer(('{address}',8080),H).serve_forever()"
        );
        pods.push(west.host.start(&format!("pod{index}"), "python3", &["-c", &code]));
        eventually("the pod listens", PATIENCE, || west.host.try_sh(&format!("curl -fsS http://{address}:8080/")).0);
    }
    west.apply(
        "db.yaml",
        &Service::new("shop", "db")
            .port("http", 8080, Some("http"))
            .headless()
            .endpoints(&[("127.0.5.1", true), ("127.0.5.2", true)])
            .yaml(),
    );
    for index in 0..2 {
        let name = format!("db-{index}.db-west.shop.svc.cluster.local");
        east.wait_resolves(&name);
        for _ in 0..5 {
            // Not repeated: a name that is answered is also served.
            assert_eq!(east.host.sh(&format!("curl -fsS http://{name}:8080/")), format!("pod-{index}"));
        }
    }
    let dig = |args: &str| {
        let text = east.host.sh(&format!("dig +time=2 +tries=1 +short {args}"));
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    let both = dig("db-west.shop.svc.cluster.local A");
    assert_eq!(both.len(), 2, "{both:?}");
    // The clusterset has them too, with the cluster in the name of each endpoint.
    let set = "db.shop.svc.clusterset.local";
    assert_eq!(dig(&format!("{set} A")).len(), 2);
    for index in 0..2 {
        let name = format!("db-{index}.west.{set}");
        assert_eq!(dig(&format!("{name} A")).len(), 1, "{name}");
        assert_eq!(east.host.sh(&format!("curl -fsS http://{name}:8080/")), format!("pod-{index}"));
    }
    // SRV names a target for each ready endpoint, and every target resolves.
    for (name, target) in [
        ("db-west.shop.svc.cluster.local", "db-west.shop.svc.cluster.local"),
        (set, "west.db.shop.svc.clusterset.local"),
    ] {
        let records = dig(&format!("_http._tcp.{name} SRV"));
        let targets: Vec<&str> = records.iter().filter_map(|record| record.split_whitespace().nth(3)).collect();
        assert_eq!(targets, [format!("db-0.{target}."), format!("db-1.{target}.")], "{records:?}");
        assert!(records.iter().all(|record| record.split_whitespace().nth(2) == Some("8080")), "{records:?}");
        assert!(targets.iter().all(|target| dig(&format!("{target} A")).len() == 1), "{targets:?}");
    }
    // An endpoint that is not ready has no name, and the other keeps its own.
    west.apply(
        "db.yaml",
        &Service::new("shop", "db")
            .port("http", 8080, Some("http"))
            .headless()
            .endpoints(&[("127.0.5.1", true), ("127.0.5.2", false)])
            .yaml(),
    );
    gone(east, &format!("db-1.west.{set}"));
    eventually("SRV follows", PATIENCE, || dig(&format!("_http._tcp.{set} SRV")).len() == 1);
    assert_eq!(east.host.sh(&format!("curl -fsS http://db-0.west.{set}:8080/")), "pod-0");
}

#[test]
fn a_site_with_ipv6_addresses_answers_aaaa_and_serves_there() {
    needs_namespaces!();
    let world = World::new(&["east", "west"]);
    let mirrors = Some("fd00:80::/64".to_owned());
    let mut east = Site::init(world.host("east"), &Options { mirrors, ..Options::default() });
    let mut west = Site::init(world.host("west"), &Options::default());
    // All of the range is this host's own, as all of 127.0.0.0/8 is; for IPv6 a program may bind it by this setting only.
    east.host.sh("ip -6 route add local fd00:80::/64 dev lo && echo 1 > /proc/sys/net/ipv6/ip_nonlocal_bind");
    east.start();
    west.start();
    link_all(&[&east, &west]);
    let _nginx = Nginx::start(&west.host, 8080);
    west.apply("web.yaml", &service("web", 8080));
    for name in ["web-west.shop.svc.cluster.local", "web.shop.svc.clusterset.local"] {
        let mut address = String::new();
        eventually(&format!("{name} has an AAAA record"), PATIENCE, || {
            address = east.host.try_sh(&format!("dig +short +time=1 +tries=1 {name} AAAA")).1.trim().to_owned();
            address.parse::<std::net::Ipv6Addr>().is_ok()
        });
        assert!(address.starts_with("fd00:80::"), "{address}");
        let four = east.host.sh(&format!("dig +time=2 +tries=1 {name} A"));
        assert!(four.contains("NOERROR") && four.contains("ANSWER: 0"), "{four}");
        let answer = east.host.sh(&format!("curl -fsS -w '%{{remote_ip}}' http://{name}:8080/"));
        assert_eq!(answer, format!("west\n{address}"));
    }
    assert!(east.linkspan(&["services"]).contains("fd00:80::"));
    let (code, text) = east.try_linkspan(&["check"]);
    assert_eq!(code, 0, "{text}");
}

#[test]
fn dns_answers_by_the_rules_of_the_mcs_api() {
    needs_namespaces!();
    let (_world, sites) = linked(&["east", "west"]);
    let (east, west) = (&sites[0], &sites[1]);
    west.apply("web.yaml", &service("web", 8080));
    let name = "web.shop.svc.clusterset.local";
    let address = east.wait_resolves(name);
    let dig = |args: &str| east.host.sh(&format!("dig +time=2 +tries=1 {args}"));
    let answer = dig(&format!("+noall +answer {name} A"));
    assert_eq!(answer.split_whitespace().collect::<Vec<_>>()[1..], ["5", "IN", "A", &address], "{answer}");
    assert_eq!(dig(&format!("+tcp +short {name} A")).trim(), address);
    assert!(dig("+short dns-version.clusterset.local TXT").contains("1.0.0"));
    let srv = dig(&format!("+short _http._tcp.{name} SRV"));
    assert!(srv.contains("8080") && srv.contains(name), "{srv}");
    let aaaa = dig(&format!("{name} AAAA"));
    assert!(aaaa.contains("NOERROR") && aaaa.contains("ANSWER: 0"), "{aaaa}");
    assert!(dig("example.org A").contains("REFUSED"));
    assert!(dig("none.shop.svc.clusterset.local A").contains("NXDOMAIN"));
    assert!(dig("west.web.shop.svc.clusterset.local A").contains("NXDOMAIN"));
}

#[test]
fn unlinking_removes_all_mirrors_of_that_peer_and_no_other() {
    needs_namespaces!();
    let (_world, sites) = linked(&["east", "west", "north"]);
    for site in &sites[1..] {
        site.apply("web.yaml", &service("web", 8080));
    }
    sites[0].wait_resolves("web-west.shop.svc.cluster.local");
    let kept = sites[0].wait_resolves("web-north.shop.svc.cluster.local");
    sites[0].linkspan(&["link", "remove", "west"]);
    gone(&sites[0], "web-west.shop.svc.cluster.local");
    assert_eq!(sites[0].wait_resolves("web-north.shop.svc.cluster.local"), kept);
    let rows: Value = sites[0].json(&["gateways"]);
    assert!(!rows.to_string().contains("\"west\""), "{rows}");
}
