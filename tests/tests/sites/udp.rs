//! UDP services across a link: a real DNS server asked by real clients, a stream of datagrams at speed, and one that is too
//! large.

use linkspan_tests::manifests::Service;
use linkspan_tests::process::eventually;
use linkspan_tests::servers;
use linkspan_tests::site::{PATIENCE, Site};
use linkspan_tests::world::long;
use serde_json::Value;

use super::kit::{linked, needs_namespaces};

/// Port of the name server; 53 belongs to the site's own DNS server on the host.
const DNS: u16 = 5300;

/// The sum of a family of counters on a site's admin port, of the lines that hold all of `labels`.
fn counted(site: &Site, family: &str, labels: &[&str]) -> f64 {
    let page = site.host.sh("curl -fsS http://127.0.0.1:4191/metrics");
    let lines = page.lines().filter(|line| line.starts_with(&format!("{family}{{")));
    let lines = lines.filter(|line| labels.iter().all(|label| line.contains(label)));
    lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

/// West has a name server that knows ten thousand hosts, exported for both transports on one number.
fn name_server(west: &Site) -> linkspan_tests::process::Process {
    let server = servers::unbound(&west.host, DNS, 10_000);
    let service = Service::new("shop", "names").udp_port("dns", DNS).port("dns-tcp", DNS, Some("tcp"));
    west.apply("names.yaml", &service.yaml());
    server
}

#[test]
fn ten_thousand_questions_to_a_name_server_are_all_answered() {
    needs_namespaces!();
    let (_world, sites) = linked(&["east", "west"]);
    let (east, west) = (&sites[0], &sites[1]);
    let _server = name_server(west);
    let address = east.wait_resolves("names-west.shop.svc.cluster.local");
    eventually("the name server answers", PATIENCE, || {
        let (_, text) = east.host.try_sh(&format!("dig +short +time=1 +tries=1 @{address} -p {DNS} h1.example. A"));
        text.trim() == "10.9.0.1"
    });
    // Each question once, from a port of its own, without a second try.
    let before = counted(east, "udp_open_total", &["direction=\"outbound\"", "dst_service=\"names\""]);
    let answers = east.host.sh(&format!(
        "for i in $(seq 10000); do echo h$i.example. A; done > questions
         dig +short +time=2 +tries=1 @{address} -p {DNS} -f questions > answers; grep -c '^10[.]9[.]' answers"
    ));
    assert_eq!(answers.trim(), "10000", "{}", east.host.sh("grep -v '^10[.]9[.]' answers | head -5"));
    let flows = counted(east, "udp_open_total", &["direction=\"outbound\"", "dst_service=\"names\""]) - before;
    assert!(flows >= 5_000.0, "{flows} flows: dig asks from a new port each time");
    // As many as a client may have, and streams enough for everything else.
    assert_eq!(counted(east, "udp_lost_total", &["dst_service=\"names\""]), 0.0);

    // The same at speed, from a few ports; and the large answer, for which a client turns to TCP.
    let speed = east.host.sh(&format!("dnsperf -s {address} -p {DNS} -d questions -c 8 -q 200 -n 2 -t 3"));
    assert!(speed.contains("Queries lost:         0 (0.00%)"), "{speed}");
    let large = east.host.sh(&format!("dig +short +time=2 +tries=1 @{address} -p {DNS} large.example. TXT | wc -c"));
    assert!(large.trim().parse::<usize>().is_ok_and(|length| length > 2_000), "{large}");

    // Who is seen to serve them, by the command that people use.
    let rows = east.json(&["stat"]);
    let row = rows["rows"].as_array().and_then(|rows| rows.iter().find(|row| row["service"] == "shop/names").cloned());
    let row = row.unwrap_or_else(|| panic!("no row for shop/names: {rows:#}"));
    assert!(row["udpOpens"].as_u64() > Some(0) && row["udpFailures"] == 0, "{row}");
    let services = east.linkspan(&["services"]);
    assert!(services.contains(&format!("{DNS}/udp")), "{services}");
    let (code, check) = east.try_linkspan(&["check"]);
    assert_eq!(code, 0, "{check}");
}

#[test]
fn a_stream_of_datagrams_keeps_its_pace() {
    needs_namespaces!();
    let (_world, sites) = linked(&["east", "west"]);
    let (east, west) = (&sites[0], &sites[1]);
    let _server = west.host.start("iperf3", "iperf3", &["--server", "--bind", "127.0.0.1", "--port", "5201"]);
    servers::wait_listening(&west.host, 5201);
    let service = Service::new("shop", "pace").port("control", 5201, Some("tcp")).udp_port("data", 5201);
    west.apply("pace.yaml", &service.yaml());
    let name = "pace-west.shop.svc.cluster.local";
    east.wait_resolves(name);
    // The daily form shares two cores with other tests and is not a release build: it shows the way, not what the way carries.
    let (megabits, seconds, most_lost) = if long() { (500, 10, 0.1) } else { (20, 2, 2.0) };
    for reverse in ["", "--reverse"] {
        let report = east.host.sh(&format!(
            "iperf3 --client {name} --port 5201 --udp --bitrate {megabits}M --length 1400 --time {seconds} {reverse} --json"
        ));
        let report: Value = serde_json::from_str(&report).expect("JSON of iperf3");
        let sum = &report["end"]["sum"];
        let (rate, lost) = (sum["bits_per_second"].as_f64(), sum["lost_percent"].as_f64());
        println!("iperf3 {reverse}: {} Mbit/s, {} % lost", rate.unwrap_or(0.0) / 1e6, lost.unwrap_or(100.0));
        assert!(rate > Some(f64::from(megabits) * 0.99e6), "{sum:#}");
        assert!(lost < Some(most_lost), "{sum:#}\n{}", losses(east, west));
    }
    // Meanwhile and afterwards the link is well.
    assert_eq!(east.alive("west"), Some(true));
}

/// Where datagrams were lost, for whoever looks into a failure.
fn losses(east: &Site, west: &Site) -> String {
    let of = |site: &Site| site.host.sh("curl -fsS http://127.0.0.1:4191/metrics | grep '^udp_' || true");
    format!("east:\n{}west:\n{}", of(east), of(west))
}

#[test]
fn a_datagram_that_does_not_fit_is_dropped_and_counted() {
    needs_namespaces!();
    let (_world, sites) = linked(&["east", "west"]);
    let (east, west) = (&sites[0], &sites[1]);
    // Sends back what it gets, with its length in front; and on request more than fits.
    let server = "import socket\ns=socket.socket(socket.AF_INET,socket.SOCK_DGRAM)\ns.bind(('127.0.0.1',7000))\n\
                  while True:\n d,a=s.recvfrom(65535)\n s.sendto(b'x'*2000 if d==b'large' else b'%d:'%len(d)+d[:100],a)";
    let _echo = west.host.start("echo", "python3", &["-c", server]);
    west.apply("echo.yaml", &Service::new("shop", "echo").udp_port("echo", 7000).yaml());
    let name = "echo-west.shop.svc.cluster.local";
    east.wait_resolves(name);
    let ask = |payload: &str| {
        let client = format!(
            "import socket; s=socket.socket(socket.AF_INET,socket.SOCK_DGRAM); s.settimeout(1); s.connect(('{name}',7000)); \
             s.send({payload})\ntry: print(s.recv(65535)[:20].decode())\nexcept socket.timeout: print('nothing')"
        );
        east.host.sh(&format!("python3 -c \"{client}\"")).trim().to_owned()
    };
    eventually("the echo answers", PATIENCE, || ask("b'hello'") == "5:hello");
    // Up to what a packet of the path carries.
    assert!(ask("b'y'*1400").starts_with("1400:yyy"));
    assert_eq!(ask("b''"), "0:", "a datagram may be empty");
    let lost = |site: &Site| counted(site, "udp_lost_total", &["reason=\"oversize\"", "dst_service=\"echo\""]);
    assert_eq!((lost(east), lost(west)), (0.0, 0.0));
    assert_eq!(ask("b'z'*2000"), "nothing");
    eventually("the datagram is counted", PATIENCE, || lost(east) == 1.0);
    // And on the way back.
    assert_eq!(ask("b'large'"), "nothing");
    eventually("the answer is counted", PATIENCE, || lost(west) == 1.0);
    assert_eq!(ask("b'again'"), "5:again", "nothing else is the worse for it");
}

#[test]
fn flows_follow_weights_policy_and_the_backends_word() {
    needs_namespaces!();
    let (_world, sites) = linked(&["east", "west", "north"]);
    let (east, west, north) = (&sites[0], &sites[1], &sites[2]);
    let server = "import socket,sys\ns=socket.socket(socket.AF_INET,socket.SOCK_DGRAM)\ns.bind(('127.0.0.1',7000))\n\
                  while True:\n d,a=s.recvfrom(65535)\n s.sendto(sys.argv[1].encode(),a)";
    let _names: Vec<_> = [west, north]
        .map(|site| {
            site.apply("who.yaml", &Service::new("shop", "who").udp_port("who", 7000).yaml());
            site.host.start("who", "python3", &["-c", server, site.name()])
        })
        .into();
    let policy = linkspan_tests::manifests::traffic_policy("shop", "who", &[(&[("west", 3), ("north", 1)], 1)]);
    east.apply("policy.yaml", &policy);
    let name = "who.shop.svc.clusterset.local";
    east.wait_resolves(name);
    let ask = |count: usize| {
        let client = format!(
            "import socket,collections\nc=collections.Counter()\nfor _ in range({count}):\n s=socket.socket(socket.AF_INET,\
             socket.SOCK_DGRAM); s.settimeout(1); s.connect(('{name}',7000)); s.send(b'?')\n try: c[s.recv(99).decode()]+=1\n \
             except OSError: c['nothing']+=1\nprint(c['west'],c['north'],c['nothing'])"
        );
        let text = east.host.sh(&format!("python3 -c \"{client}\""));
        text.split_whitespace().map(|count| count.parse::<usize>().expect("a number")).collect::<Vec<_>>()
    };
    eventually("both answer", PATIENCE, || {
        let found = ask(8);
        found[0] > 0 && found[1] > 0 && found[2] == 0
    });
    let found = ask(40);
    // Each worker counts its own.
    assert!((28..=32).contains(&found[0]) && found[2] == 0, "weights hold for each flow: {found:?}");
    // Nobody may call west's any more: its share of the flows is refused there, and not given to another.
    west.apply(
        "nobody.yaml",
        "apiVersion: linkspan.io/v1alpha1\nkind: ExportPolicy\nmetadata: {name: nobody, namespace: shop}\n\
         spec: {services: [who], allow: []}\n",
    );
    eventually("west refuses", PATIENCE, || {
        let found = ask(4);
        found[0] == 0 && found[1] > 0 && found[2] > 0
    });
    assert!(counted(west, "udp_close_total", &["direction=\"inbound\"", "outcome=\"denied\""]) > 0.0);
    assert!(counted(east, "udp_close_total", &["direction=\"outbound\"", "outcome=\"denied\""]) > 0.0);
}
