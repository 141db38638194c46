//! What happens when something runs short, or dies half-way: SECURITY-BAR's F-26, F-33, F-35, F-36, F-37 and F-50.

use std::fs;
use std::time::{Duration, Instant};

use linkspan_tests::cgroup::Cgroup;
use linkspan_tests::load::Load;
use linkspan_tests::manifests::Service;
use linkspan_tests::process::eventually;
use linkspan_tests::servers::{self, Nginx, interpreter};
use linkspan_tests::site::{Options, PATIENCE, Site, link_all};
use linkspan_tests::world::World;

use super::kit::{linked, needs_namespaces};

const WEB: &str = "web-west.shop.svc.cluster.local";

/// What a command of ours takes to run, on a busy machine.
const COMMANDS: Duration = Duration::from_millis(800);

/// East, and west with a service that nginx serves, once `sites` run and are linked.
fn serve(east: &Site, west: &Site) -> Nginx {
    let nginx = Nginx::start(&west.host, 8080);
    west.apply("web.yaml", &Service::new("shop", "web").port("http", 8080, Some("http")).yaml());
    east.wait_resolves(WEB);
    eventually("west answers", PATIENCE, || answers(east));
    nginx
}

fn answers(east: &Site) -> bool {
    east.host.try_sh(&format!("curl -fsS -m 5 http://{WEB}:8080/")).1 == "west\n"
}

/// The processor time that a process has used, in hundredths of a second (USER_HZ).
fn ticks(pid: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("it runs");
    // The name before may hold anything; behind it utime and stime are the 12th and 13th field.
    let (_, fields) = stat.rsplit_once(") ").expect("a name");
    fields.split(' ').skip(11).take(2).map(|field| field.parse::<u64>().expect("a number")).sum()
}

#[test]
fn f_26_a_backend_that_dies_in_the_middle_of_its_answer_is_no_end() {
    needs_namespaces!();
    let (_world, sites) = linked(&["east", "west"]);
    let (east, west) = (&sites[0], &sites[1]);
    // A body without a length: that it ended is known by its last chunk alone, or by the end of the connection.
    let server = "import socket,sys\nl=socket.create_server(('127.0.0.1',8080))\nkept=[]\nwhile True:\n c,_=l.accept();kept.append(c);\
                  r=c.recv(9999);\n v=b'HTTP/1.1 200 OK\\r\\n'+(b'transfer-encoding: chunked\\r\\n\\r\\n5\\r\\nhello\\r\\n' if b'/chunked' in r \
                  else b'content-length: 100\\r\\n\\r\\nhello');c.sendall(v)";
    west.apply("web.yaml", &Service::new("shop", "web").port("http", 8080, Some("http")).yaml());
    east.wait_resolves(WEB);
    for path in ["chunked", "length"] {
        let mut backend = west.host.start("dies", interpreter(), &["-u", "-c", server]);
        servers::wait_listening(&west.host, 8080);
        let out = east.host.dir().join("out");
        // None the first time.
        drop(fs::remove_file(&out));
        let (name, url) = (out.display().to_string(), format!("http://{WEB}:8080/{path}"));
        let mut client = east.host.start("curl", "curl", &["-sS", "-N", "-m", "20", "-o", &name, &url]);
        eventually("half of the answer is there", PATIENCE, || {
            fs::read_to_string(&out).is_ok_and(|text| text == "hello") || !client.running()
        });
        assert!(client.running(), "{path}: {}", client.output());
        backend.kill();
        assert!(!client.wait(PATIENCE).success(), "{path}: taken for whole");
    }
}

#[test]
fn f_26_a_request_of_which_nothing_was_sent_is_served_by_another_endpoint_in_100_ms() {
    needs_namespaces!();
    let (_world, sites) = linked(&["east", "west"]);
    let (east, west) = (&sites[0], &sites[1]);
    let _nginx = serve(east, west);
    // At the second endpoint nothing listens.
    let web = Service::new("shop", "web").port("http", 8080, Some("http"));
    west.apply("web.yaml", &web.endpoints(&[("127.0.0.1", true), ("127.0.0.9", true)]).yaml());
    eventually("both are known", PATIENCE, || {
        west.linkspan(&["exports"]).contains("2/2") || {
            west.linkspan(&["exports", "-o", "json"]).contains("127.0.0.9")
        }
    });
    let each = east.host.sh(&format!(
        "for i in $(seq 40); do curl -sS -m 5 -o /dev/null -w '%{{http_code}} %{{time_total}}\\n' http://{WEB}:8080/; done"
    ));
    let slow = |line: &&str| {
        let (code, took) = line.split_once(' ').expect("two figures");
        code != "200" || took.parse::<f64>().expect("seconds") > 0.1
    };
    let slow: Vec<&str> = each.lines().filter(slow).collect();
    // One in forty: the machine is not ours alone.
    assert!(slow.len() <= 1 && slow.iter().all(|line| line.starts_with("200")), "{slow:?}");
}

#[test]
fn f_33_packets_that_the_kernel_refuses_to_send_are_losses_and_no_work() {
    needs_namespaces!();
    let (_world, mut sites) = linked(&["east", "west"]);
    let _nginx = serve(&sites[0], &sites[1]);
    let pid = sites[1].process(0).id();
    // To the sender a packet that is dropped on its own way out is EPERM.
    sites[1].host.nft("chain o { type filter hook output priority 0; udp sport 4143 drop; udp dport 4143 drop; }");
    let (east, start) = (&sites[0], Instant::now());
    eventually("it is taken for a loss", Duration::from_secs(6) + COMMANDS, || {
        east.gateway("west").is_some_and(|row| row["transport"] == "tcp")
    });
    assert!(answers(east), "{:?} later", start.elapsed());
    let (before, since) = (ticks(pid), Instant::now());
    eventually("ten seconds", PATIENCE, || since.elapsed() >= Duration::from_secs(10));
    let share = (ticks(pid) - before) as f64 / 100.0 / since.elapsed().as_secs_f64();
    assert!(share <= 0.05, "{:.1} % of a core for nothing", share * 100.0);
    sites[1].host.nft_clear();
    eventually("QUIC is back", Duration::from_secs(30), || {
        east.gateway("west").is_some_and(|row| row["transport"] == "quic")
    });
}

#[test]
fn f_35_without_descriptors_what_stands_goes_on_and_the_rest_comes_back_in_a_second() {
    needs_namespaces!();
    let world = World::new(&["east", "west"]);
    let mut sites: Vec<Site> =
        ["east", "west"].iter().map(|name| Site::init(world.host(name), &Options::default())).collect();
    sites[0].start_by(&["prlimit", "--nofile=256:256"]);
    sites[1].start();
    link_all(&[&sites[0], &sites[1]]);
    let _redis = servers::redis(&sites[1].host, 6379);
    sites[1].apply("cache.yaml", &Service::new("shop", "cache").port("tcp", 6379, Some("tcp")).yaml());
    let pid = sites[0].process(0).id();
    let east = &sites[0];
    let cache = "cache-west.shop.svc.cluster.local";
    east.wait_resolves(cache);
    let ping = || east.host.try_sh(&format!("timeout 1 redis-cli -h {cache} ping")).1.contains("PONG");
    eventually("west answers", PATIENCE, ping);
    // A connection that stands, with a question every tenth of a second; each answer is a line.
    let mut standing = east.host.start("standing", "redis-cli", &["-h", cache, "-i", "0.1", "-r", "100000", "ping"]);
    let lines = |process: &linkspan_tests::process::Process| process.output().lines().count();
    eventually("it is asked", PATIENCE, || lines(&standing) > 3);
    // No descriptor more: the limit is the first number that is free.
    let is_free = |number: &usize| !std::path::Path::new(&format!("/proc/{pid}/fd/{number}")).is_symlink();
    let open = (0..256).find(is_free).expect("one is free");
    east.host.sh(&format!("prlimit --pid {pid} --nofile={open}:256"));
    let (before, since) = (ticks(pid), Instant::now());
    for _ in 0..5 {
        assert!(!ping(), "there was a descriptor left");
    }
    let share = (ticks(pid) - before) as f64 / 100.0 / since.elapsed().as_secs_f64();
    let asked = lines(&standing);
    eventually("what stands goes on", PATIENCE, || lines(&standing) > asked + 3);
    assert!(standing.running() && share <= 0.5, "{:.1} % of a core for nothing", share * 100.0);
    east.host.sh(&format!("prlimit --pid {pid} --nofile=256:256"));
    eventually("the rest comes back", Duration::from_secs(1) + COMMANDS, ping);
}

#[test]
#[ignore = "not met yet: new streams are refused from 85 % on, and what stands grows by more than the rest"]
fn f_36_what_memory_does_not_hold_is_refused_and_nobody_is_killed() {
    needs_namespaces!();
    let Some(group) = Cgroup::memory(128 << 20) else { return };
    let world = World::new(&["east", "west"]);
    let mut sites: Vec<Site> =
        ["east", "west"].iter().map(|name| Site::init(world.host(name), &Options::default())).collect();
    sites[0].start();
    sites[1].start_by(&["sh", "-c", &group.enter(), "sh"]);
    link_all(&[&sites[0], &sites[1]]);
    let (east, west) = (&sites[0], &sites[1]);
    let _nginx = serve(east, west);
    let address = east.wait_resolves(WEB);
    // Answers that nobody reads: a gateway holds of each what its reader may have under way. Twice as many as there is room for.
    west.host.sh("truncate -s 64M nginx-8080/files/large");
    let readers = format!(
        "import socket,time\nkept=[]\nfor i in range(1500):\n try:\n  s=socket.create_connection(('{address}',8080),timeout=5)\n  \
         s.sendall(b'GET /files/large HTTP/1.1\\r\\nhost: {WEB}\\r\\n\\r\\n');kept.append(s)\n except OSError: pass\n \
         time.sleep(0.005)\ntime.sleep(60)"
    );
    let readers = east.host.start("readers", interpreter(), &["-c", &readers]);
    let report = Load::start(&east.host, &format!("http://{WEB}:8080/"), 50, 30).finish();
    drop(readers);
    eprintln!(
        "{} of {} served, {} refused; killed {}; most in use {} MiB",
        report.good,
        report.requests,
        report.failures.len(),
        group.killed(),
        group.most() >> 20
    );
    assert_eq!(group.killed(), 0, "killed for want of memory");
    let log = fs::read_to_string(west.host.dir().join("site.log")).expect("a log");
    assert!(log.contains("memory is short"), "memory did not run short: {} MiB", group.most() >> 20);
    // A refusal comes at once, and says why.
    let others = report.failures.iter().filter(|failure| !failure.what.contains("503")).collect::<Vec<_>>();
    assert!(others.is_empty(), "{} failures of another kind, the first {:?}", others.len(), others[0]);
    eventually("what was refused is served again", PATIENCE, || answers(east));
}

#[test]
fn f_37_with_a_fifth_of_a_core_the_link_stands_for_a_minute() {
    needs_namespaces!();
    let (_world, mut sites) = linked(&["east", "west"]);
    let _nginx = serve(&sites[0], &sites[1]);
    let Some(group) = Cgroup::cpu(200) else { return };
    group.add(sites[1].process(0).id());
    let east = &sites[0];
    let load = Load::start(&east.host, &format!("http://{WEB}:8080/"), 50, 60);
    let (start, mut looks) = (Instant::now(), 0);
    while start.elapsed() < Duration::from_secs(60) {
        let row = east.gateway("west").expect("a row");
        assert_eq!(row["alive"], true, "down after {:?}: {row}", start.elapsed());
        looks += 1;
        std::thread::sleep(Duration::from_millis(500));
    }
    let report = load.finish();
    eprintln!("{looks} looks; {} failures; p50, p95, p99: {:?} ms", report.failures.len(), report.percentiles);
    assert!(report.failures.is_empty(), "{} failures, the first {:?}", report.failures.len(), report.failures[0]);
    // Far below what a client waits for an answer.
    assert!(report.percentiles[2] < 5_000.0, "p99 of {:?} ms", report.percentiles[2]);
}

#[test]
fn f_50_a_hundred_megabits_over_one_leave_probes_their_room() {
    needs_namespaces!();
    let (_world, sites) = linked(&["east", "west"]);
    let (east, west) = (&sites[0], &sites[1]);
    let _nginx = serve(east, west);
    for site in &sites {
        site.host.sh("tc qdisc add dev eth0 root tbf rate 1mbit burst 16kb latency 400ms");
    }
    east.host.sh("truncate -s 40M offered");
    let url = format!("http://{WEB}:8080/files/offered");
    let client = |limit: &str| {
        east.host.start(
            &format!("put-{limit}"),
            "curl",
            &[
                "-sS",
                "-m",
                "40",
                "-T",
                "offered",
                "-o",
                "/dev/null",
                "-w",
                "%{size_upload}\\n",
                &format!("{url}-{limit}"),
            ],
        )
    };
    // Ten clients, each of which would send at ten megabits.
    let mut clients: Vec<_> = (0..10).map(|index| client(&index.to_string())).collect();
    let (start, mut worst) = (Instant::now(), 0.0_f64);
    while start.elapsed() < Duration::from_secs(30) {
        let row = east.gateway("west").expect("a row");
        assert_eq!(row["alive"], true, "down after {:?}: {row}", start.elapsed());
        worst = worst.max(row["probeMicros"].as_f64().unwrap_or(0.0) / 1e3);
        std::thread::sleep(Duration::from_millis(250));
    }
    let failed = clients.iter_mut().map(|client| usize::from(!client.running())).sum::<usize>();
    eprintln!("the slowest probe that was seen took {worst:.0} ms; {failed} of 10 clients ended early");
    assert!(worst > 0.0 && worst <= 1_000.0, "a queue of {worst} ms");
    assert_eq!(failed, 0, "clients wait, they are not cut");
}
