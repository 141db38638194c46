//! What happens when things die: SECURITY-BAR's F-02, F-04, F-16 and the restart of either half.

use std::time::{Duration, Instant};

use linkspan_tests::load::{Load, Report};
use linkspan_tests::manifests::{Service, traffic_policy};
use linkspan_tests::process::eventually;
use linkspan_tests::servers::{self, Nginx};
use linkspan_tests::site::{Options, PATIENCE, Site, link_all};
use linkspan_tests::world::World;

use super::kit::{linked, needs_namespaces};

const WEB: &str = "web.shop.svc.clusterset.local";

/// East and west, both with nginx; west runs as two processes, so that its gateway can die alone.
fn split() -> (World, Vec<Site>, Vec<Nginx>) {
    let world = World::new(&["east", "west"]);
    let mut sites: Vec<Site> =
        ["east", "west"].iter().map(|name| Site::init(world.host(name), &Options::default())).collect();
    sites[0].start();
    sites[1].start_split();
    link_all(&sites.iter().collect::<Vec<_>>());
    let servers: Vec<Nginx> = sites.iter().map(|site| Nginx::start(&site.host, 8080)).collect();
    for site in &sites {
        site.apply("web.yaml", &Service::new("shop", "web").port("http", 8080, Some("http")).yaml());
    }
    sites[0].apply("policy.yaml", &traffic_policy("shop", "web", &[(&[("east", 50), ("west", 50)], 1)]));
    sites[0].wait_resolves(WEB);
    wait_both(&sites[0]);
    (world, sites, servers)
}

fn wait_both(east: &Site) {
    eventually("east and west both answer", PATIENCE, || {
        let (_, text) = east.host.try_sh(&format!(
            "curl -sS -m 5 http://{WEB}:8080/ http://{WEB}:8080/ http://{WEB}:8080/ http://{WEB}:8080/"
        ));
        text.contains("east") && text.contains("west")
    });
}

/// Runs a load of 200 requests/s, does `fault` after three seconds and `heal` after twelve.
fn under_load(east: &Site, seconds: u32, fault: impl FnOnce(), heal: impl FnOnce()) -> (Report, u64, u64) {
    let start = Instant::now();
    let load = Load::start(&east.host, &format!("http://{WEB}:8080/"), 200, seconds);
    let wait_until = |at: u64| eventually("the load runs", Duration::from_secs(60), || start.elapsed().as_secs() >= at);
    wait_until(3);
    fault();
    let broken = u64::try_from(start.elapsed().as_millis()).expect("small");
    wait_until(12);
    heal();
    let healed = u64::try_from(start.elapsed().as_millis()).expect("small");
    (load.finish(), broken, healed)
}

fn assert_withdrawn(report: &Report, broken: u64, healed: u64) {
    let late: Vec<_> = report.failures.iter().filter(|f| f.at_millis > broken + 4_000).collect();
    assert!(late.is_empty(), "{} failures later than 4 s after the fault at {broken} ms: {:?}", late.len(), late[0]);
    let early: Vec<_> = report.failures.iter().filter(|f| f.at_millis + 1_000 < broken).collect();
    assert!(early.is_empty(), "failures before the fault: {:?}", early[0]);
    let back = report.answers.iter().find(|(at, cluster)| *at > healed && cluster == "west").map(|(at, _)| at - healed);
    assert!(back.is_some_and(|ms| ms <= 5_000), "west is back after {back:?} ms");
}

#[test]
fn f02_a_killed_gateway_is_withdrawn_in_four_seconds_and_back_in_five() {
    needs_namespaces!();
    let (_world, mut sites, _servers) = split();
    let (east, west) = sites.split_at_mut(1);
    let (east, west) = (&east[0], std::cell::RefCell::new(&mut west[0]));
    let (report, broken, healed) =
        under_load(east, 20, || west.borrow_mut().process(1).kill(), || west.borrow_mut().restart_split(1));
    assert_withdrawn(&report, broken, healed);
}

#[test]
fn f04_a_black_hole_is_withdrawn_in_four_seconds_and_back_in_five() {
    needs_namespaces!();
    let (_world, sites, _servers) = split();
    let west = &sites[1].host;
    let (report, broken, healed) = under_load(
        &sites[0],
        20,
        || {
            west.nft("chain i { type filter hook input priority 0; meta l4proto { tcp, udp } th dport 4143 drop; meta l4proto { tcp, udp } th sport 4143 drop; }\n chain o { type filter hook output priority 0; meta l4proto { tcp, udp } th sport 4143 drop; meta l4proto { tcp, udp } th dport 4143 drop; }")
        },
        || west.nft_clear(),
    );
    assert_withdrawn(&report, broken, healed);
}

#[test]
fn f16_a_restarted_controller_withdraws_nothing_on_the_peer() {
    needs_namespaces!();
    let (_world, mut sites, _servers) = split();
    let (east, west) = sites.split_at_mut(1);
    let (east, west) = (&east[0], std::cell::RefCell::new(&mut west[0]));
    let (report, ..) =
        under_load(east, 18, || west.borrow_mut().process(0).kill(), || west.borrow_mut().restart_split(0));
    assert_eq!(report.failures.len(), 0, "{:?}", report.failures.first());
    // West kept its share all the time, without its controller too.
    for second in 0..17 {
        let share = report.answers.iter().filter(|(at, c)| at / 1000 == second && c == "west").count();
        assert!((80..=120).contains(&share), "west answered {share} of 200 in second {second}");
    }
}

#[test]
fn f16_a_restarted_site_keeps_its_mirrors_on_the_peer() {
    needs_namespaces!();
    let (_world, mut sites) = linked(&["east", "west"]);
    let _nginx = Nginx::start(&sites[1].host, 8080);
    sites[1].apply("web.yaml", &Service::new("shop", "web").port("http", 8080, Some("http")).yaml());
    let name = "web-west.shop.svc.cluster.local";
    let address = sites[0].wait_resolves(name);
    sites[1].stop();
    assert_eq!(sites[0].wait_resolves(name), address, "a lost peer is not an empty peer");
    let down = sites[0].host.try_sh(&format!("curl -sS -i -m 10 http://{name}:8080/"));
    assert!(down.1.contains("503") && down.1.to_lowercase().contains("linkspan-error"), "{}", down.1);
    sites[1].start();
    eventually("traffic is back", PATIENCE, || {
        sites[0].host.try_sh(&format!("curl -fsS -m 5 http://{name}:8080/")).1 == "west\n"
    });
    assert_eq!(sites[0].wait_resolves(name), address);
}

#[test]
fn a_service_without_ready_endpoints_answers_503_with_a_reason_and_the_share_moves() {
    needs_namespaces!();
    let (_world, sites, _servers) = split();
    let (east, west) = (&sites[0], &sites[1]);
    west.apply(
        "web.yaml",
        &Service::new("shop", "web").port("http", 8080, Some("http")).endpoints(&[("127.0.0.1", false)]).yaml(),
    );
    let only_west = "http://web-west.shop.svc.cluster.local:8080/";
    eventually("the mirror of west alone answers 503", PATIENCE, || {
        east.host.try_sh(&format!("curl -sS -o /dev/null -w '%{{http_code}}' {only_west}")).1 == "503"
    });
    let reason = east.host.sh(&format!("curl -sS -i {only_west}"));
    assert!(reason.to_lowercase().contains("linkspan-error: no_"), "{reason}");
    let report = Load::start(&east.host, &format!("http://{WEB}:8080/"), 200, 3).finish();
    assert_eq!(report.failures.len(), 0, "{:?}", report.failures.first());
    assert_eq!(report.by_cluster.get("east"), Some(&600), "{:?}", report.by_cluster);
}

/// West's name as the DNS server of this test knows it.
const WEST_NAME: &str = "west.example.com";

/// West advertises a host name; it gets a second address and, by `rename`, the name moves there while both are linked.
fn follow_the_name(world: &World, rename: impl Fn(&str), dns: Option<&str>) {
    rename("10.77.0.2");
    let mut east = Site::init(world.host("east"), &Options { hidden: true, ..Options::default() });
    let advertise = Some(format!("{WEST_NAME}:4143"));
    let mut west = Site::init(world.host("west"), &Options { advertise, ..Options::default() });
    if let Some(server) = dns {
        world.resolve_by("east", server);
    }
    east.start();
    west.start();
    link_all(&[&east, &west]);
    let _nginx = Nginx::start(&west.host, 8080);
    west.apply("web.yaml", &Service::new("shop", "web").port("http", 8080, Some("http")).yaml());
    let mut address = String::new();
    eventually("the mirrored name resolves", PATIENCE, || {
        address = east.host.try_sh("dig +short @127.0.0.1 web-west.shop.svc.cluster.local A").1.trim().to_owned();
        address.parse::<std::net::IpAddr>().is_ok()
    });
    assert_eq!(east.gateway("west").expect("a row")["remote"], "10.77.0.2:4143");
    west.host.sh("ip addr add 10.77.0.102/24 dev eth0");
    let load = Load::start(&east.host, &format!("http://{address}:8080/"), 50, 33);
    let moved = Instant::now();
    rename("10.77.0.102");
    let mut remote = String::new();
    while remote != "10.77.0.102:4143" {
        assert!(moved.elapsed() < Duration::from_secs(30), "30 s after the change still linked with {remote}");
        remote = east.gateway("west").expect("a row")["remote"].as_str().unwrap_or_default().to_owned();
    }
    // The old address goes: nobody needs it any more. A new connection came first, so that nothing failed.
    // (By default the kernel removes the other addresses of that network with the first.)
    west.host.sh("echo 1 > /proc/sys/net/ipv4/conf/eth0/promote_secondaries && ip addr del 10.77.0.2/24 dev eth0");
    let report = load.finish();
    assert_eq!(report.failures.len(), 0, "{:?}", report.failures.first());
    assert_eq!(east.alive("west"), Some(true));
}

#[test]
fn f31_a_name_that_moves_in_dns_is_followed_in_thirty_seconds() {
    needs_namespaces!();
    let world = World::new(&["east", "west", "dns"]);
    let dns = world.host("dns");
    let records = dns.dir().join("records");
    std::fs::write(&records, "").expect("records");
    let server = dns.start(
        "dnsmasq",
        "dnsmasq",
        &[
            "--keep-in-foreground",
            "--no-resolv",
            "--no-hosts",
            "--local=/example.com/",
            "--user=root",
            "--pid-file=",
            "--local-ttl=2",
            &format!("--addn-hosts={}", records.display()),
        ],
    );
    servers::wait_listening(&dns, 53);
    let rename = |address: &str| {
        std::fs::write(&records, format!("{address} {WEST_NAME}\n")).expect("records");
        server.signal("HUP");
        eventually("DNS answers with it", PATIENCE, || {
            dns.try_sh(&format!("dig +short +time=1 +tries=1 @127.0.0.1 {WEST_NAME} A")).1.trim() == address
        });
    };
    follow_the_name(&world, rename, Some(dns.address()));
}

#[test]
fn f31_a_name_that_moves_in_the_hosts_file_is_followed_in_thirty_seconds() {
    needs_namespaces!();
    let world = World::new(&["east", "west"]);
    world.name_hosts(&[(WEST_NAME, "west")]);
    let rename = |address: &str| world.name_addresses(&[(WEST_NAME, address)]);
    follow_the_name(&world, rename, None);
}
