//! The demo tells its story and proves each step; it needs neither root nor free fixed ports. What it prints for the
//! user's own hands works as printed, and nothing is left when it ends.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use linkspan_tests::peer::{Authority, dial};
use linkspan_tests::process::{Process, eventually, program, run};
use serde_json::Value;

/// The story takes about 30 s.
const STORY: Duration = Duration::from_secs(90);

/// How long the demo's processes may take to end.
const END: Duration = Duration::from_secs(15);

#[test]
fn the_demo_proves_its_own_story() {
    let start = Instant::now();
    let output = run(Command::new(program("linkspan")).args(["demo", "--check"]));
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    assert!(start.elapsed() < Duration::from_secs(60), "took {:?}", start.elapsed());
}

#[test]
fn the_demo_prints_one_json_object() {
    let output = run(Command::new(program("linkspan")).args(["demo", "--check", "-o", "json"]));
    let json: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&output.stdout)));
    assert!(output.status.success(), "{json}");
    assert!(json.is_object());
}

/// A running demo whose output is read from a file, and everything it started.
struct Demo {
    process: Process,
    folder: PathBuf,
    pids: Vec<u64>,
}

/// Runs a printed command as a shell does; returns success and both outputs.
fn shell(line: &str) -> (bool, String) {
    let output = run(Command::new("bash").args(["-uo", "pipefail", "-c", line]).env("EDITOR", "cat"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    (output.status.success(), text)
}

/// The same, and it must succeed.
fn done(line: &str) -> String {
    let (ok, text) = shell(line);
    assert!(ok, "{line}: {text}");
    text
}

fn alive(pid: u64) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

/// All processes below `pid`, itself included.
fn tree(pid: u64) -> Vec<u64> {
    let mut found = vec![pid];
    let mut next = 0;
    while let Some(parent) = found.get(next).copied() {
        let threads = fs::read_dir(format!("/proc/{parent}/task")).into_iter().flatten().flatten();
        for thread in threads {
            let children = fs::read_to_string(thread.path().join("children")).unwrap_or_default();
            found.extend(children.split_whitespace().filter_map(|child| child.parse::<u64>().ok()));
        }
        next += 1;
    }
    found
}

impl Demo {
    /// Interrupts the demo as Ctrl-C does: exit code 0, no process and no file of it is left.
    fn interrupt(mut self) {
        self.pids.extend(tree(u64::from(self.process.id())));
        self.process.signal("INT");
        let status = self.process.wait(END);
        assert_eq!(status.code(), Some(0), "{}", self.process.output());
        let left: Vec<&u64> = self.pids.iter().filter(|pid| alive(**pid)).collect();
        assert!(left.is_empty(), "processes {left:?} of {:?} outlived the demo", self.pids);
        assert!(!self.folder.exists(), "{} is left", self.folder.display());
    }
}

fn text<'a>(json: &'a Value, path: &str) -> &'a str {
    json.pointer(path).and_then(Value::as_str).unwrap_or_else(|| panic!("no {path}: {json:#}"))
}

fn command<'a>(json: &'a Value, name: &str) -> &'a str {
    text(json, &format!("/commands/{name}"))
}

/// Every address of the JSON object answers with its own protocol.
fn use_addresses(json: &Value, scratch: &Path) {
    let program = text(json, "/program");
    let mut admins = Vec::new();
    for (site, peer) in [("east", "west"), ("west", "east")] {
        let at = |what: &str| text(json, &format!("/sites/{site}/{what}")).to_owned();
        let dir = at("dir");
        // The link speaks QUIC and does not let a stranger in.
        let link: SocketAddr = at("link").parse().expect("address");
        let stranger = Authority::new("stranger.example");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
        let error = runtime.block_on(async {
            match dial(link, stranger.leaf(&["spiffe://stranger.example/ns/linkspan/sa/gateway"])).await {
                // TLS 1.3: the client's own handshake ends before it hears of the refusal.
                Ok(connection) => connection.closed().await,
                Err(error) => error,
            }
        });
        assert!(!matches!(error, quinn::ConnectionError::TimedOut), "{site}: nobody speaks QUIC at {link}");
        // DNS over both transports, admin, the backend itself.
        let dns: SocketAddr = at("dns").parse().expect("address");
        for transport in ["+notcp", "+tcp"] {
            let line =
                format!("dig {transport} @{} -p {} +short dns-version.clusterset.local TXT", dns.ip(), dns.port());
            assert!(done(&line).contains("1.0.0"), "{line}");
        }
        admins.push(at("admin"));
        assert!(done(&format!("curl -fsS http://{}/", at("service/address"))).contains(site));
        // The mTLS port, for a workload with a certificate of its own.
        let out = scratch.join(site).display().to_string();
        done(&format!("{program} identity issue --dir {dir} --namespace shop --service-account web --out {out}"));
        let mirror = format!("web-{peer}.shop.svc.cluster.local");
        let line = format!(
            "curl -fsS -m 5 --cert {out}/tls.crt --key {out}/tls.key --cacert {out}/ca.crt --connect-to ::{} https://{mirror}/",
            at("mtls")
        );
        // The names in the certificate of that port follow those in the catalogue, a moment later.
        let mut answer = String::new();
        eventually(&format!("{line} is answered"), Duration::from_secs(5), || {
            let (ok, text) = shell(&line);
            answer = text;
            ok
        });
        assert!(answer.contains("assurance=mtls"), "{line}: {answer}");
        let range = at("mirrorAddresses");
        let prefix = range.strip_suffix(".0/24").unwrap_or_else(|| panic!("{range}"));
        if site == "east" {
            for name in json["names"].as_object().expect("names").values() {
                assert!(text(name, "/address").starts_with(prefix), "{name} is outside of {range}");
                let call = format!("curl -fsS http://{}:{}/", text(name, "/address"), name["port"]);
                assert!(done(&call).contains("cluster"), "{call}");
            }
        }
        assert_eq!(text(json, &format!("/sites/{site}/trustDomain")), format!("{site}.linkspan.internal"));
    }
    admins.push(text(json, "/sites/west/controllerAdmin").to_owned());
    for admin in admins {
        assert!(done(&format!("curl -fsS http://{admin}/ready && curl -fsS http://{admin}/metrics")).contains("# EOF"));
    }
    // Each client address is the identity it is said to be.
    for (client, identity) in json["clients"].as_object().expect("clients") {
        let mirror = &json["names"]["web-west.shop.svc.cluster.local"];
        let line = format!("curl -fsS --interface {client} http://{}:{}/", text(mirror, "/address"), mirror["port"]);
        let answer = done(&line);
        assert!(answer.contains(identity.as_str().expect("text")), "{line}: {answer}");
    }
}

/// Every command of the JSON object, as printed, in an order that makes sense.
fn use_commands(json: &Value) -> Process {
    let mirror = text(json, "/names/web-west.shop.svc.cluster.local/address");
    assert_eq!(done(command(json, "resolve")).trim(), mirror);
    assert!(done(command(json, "call")).contains("\"cluster\": \"west\""), "{}", command(json, "call"));
    assert!(done(command(json, "callAsWorkload")).contains("/ns/ops/sa/robot"));
    let both = done(command(json, "callBoth"));
    assert_eq!(both.lines().count(), 10, "{both}");
    assert!(done(command(json, "links")).contains("west"));
    assert!(done(command(json, "services")).contains("web-west.shop.svc.cluster.local"));
    assert!(done(command(json, "stat")).contains("shop/web"));
    let check = done(command(json, "check"));
    assert!(!check.to_lowercase().contains("fail") || check.contains("0 fail"), "{check}");
    assert!(done(command(json, "weights")).contains("ClusterTrafficPolicy"), "the file that is named is the policy");
    // West's gateway dies by the printed command, and the printed command brings it back.
    let gateway = json["sites"]["west"]["pids"]["gateway"].as_u64().expect("pid");
    assert!(alive(gateway));
    done(command(json, "kill"));
    eventually("the gateway is dead", END, || !alive(gateway));
    let mut restart = Command::new("bash");
    restart.args(["-c", &format!("exec {}", command(json, "restart"))]);
    let log = Path::new(text(json, "/dir")).join("restart.log");
    let again = Process::start("restart", restart, &log);
    eventually("calls cross again", END, || shell(command(json, "call")).1.contains("\"cluster\": \"west\""));
    let known: Vec<&str> = json["commands"].as_object().expect("commands").keys().map(String::as_str).collect();
    let used = [
        "resolve",
        "call",
        "callAsWorkload",
        "callBoth",
        "links",
        "services",
        "stat",
        "check",
        "weights",
        "kill",
        "restart",
    ];
    assert!(known.iter().all(|name| used.contains(name)), "a command that no test runs: {known:?}");
    again
}

#[test]
fn what_the_demo_prints_as_json_can_be_used_as_printed_and_ctrl_c_leaves_nothing() {
    let scratch = tempfile::tempdir().expect("folder");
    let mut start = Command::new(program("linkspan"));
    start.args(["demo", "-o", "json"]);
    let process = Process::start("demo", start, &scratch.path().join("demo.log"));
    let mut json = Value::Null;
    eventually("the demo prints one JSON object and stays up", STORY, || {
        json = serde_json::from_str(&process.output()).unwrap_or_default();
        json["ready"] == true
    });
    assert_eq!(json["pid"], process.id());
    assert_eq!(text(&json, "/version"), env!("CARGO_PKG_VERSION"));
    let mut pids: Vec<u64> = tree(u64::from(process.id()));
    assert!(pids.len() >= 6, "two sites in three processes and two services: {pids:?}");
    pids.extend(
        ["/sites/east/pids/site", "/sites/west/pids/controller", "/sites/east/service/pid", "/sites/west/service/pid"]
            .map(|path| json.pointer(path).and_then(Value::as_u64).unwrap_or_else(|| panic!("no {path}: {json:#}"))),
    );
    let folder = PathBuf::from(text(&json, "/dir"));
    assert!(folder.is_dir());
    use_addresses(&json, scratch.path());
    let again = use_commands(&json);
    drop(again);
    Demo { process, folder, pids }.interrupt();
}

/// The commands that the story ends with: the lines behind `# what it shows`.
fn invitation(story: &str) -> Vec<String> {
    let (_, text) = story.split_once("Both sites stay up").unwrap_or_default();
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    lines.windows(2).filter(|pair| pair[0].starts_with("# ")).map(|pair| pair[1].to_owned()).collect()
}

/// As root the story is told to a user without rights and without a home; anybody else is one already.
fn nobody(program: &Path) -> Command {
    let root = run(Command::new("id").arg("-u")).stdout.starts_with(b"0\n");
    let mut command = if root {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all", "--"]).arg(program);
        command
    } else {
        Command::new(program)
    };
    let path = std::env::var_os("PATH").unwrap_or_default();
    command.env_clear().env("PATH", path).current_dir("/");
    command
}

#[test]
fn a_user_without_rights_or_home_is_told_the_story_and_can_use_its_commands() {
    let scratch = tempfile::tempdir().expect("folder");
    fs::set_permissions(scratch.path(), fs::Permissions::from_mode(0o755)).expect("open to all");
    let linkspan = scratch.path().join("linkspan");
    fs::copy(program("linkspan"), &linkspan).expect("a copy that everybody may run");
    let mut start = nobody(&linkspan);
    start.arg("demo");
    let process = Process::start("demo", start, &scratch.path().join("demo.log"));
    eventually("the story ends with its invitation", STORY, || process.output().contains("site run --only gateway"));
    let story = process.output();
    for step in ["The mirrored name resolves", "A call crosses", "The backend sees who called", "It returns"] {
        assert!(story.contains(step), "{story}");
    }
    assert!(!story.contains("FAIL"), "{story}");
    let commands = invitation(&story);
    for start in ["dig @", "curl --resolve ", "curl --interface ", "for i in"] {
        let line =
            commands.iter().find(|line| line.starts_with(start)).unwrap_or_else(|| panic!("no {start}: {story}"));
        let answer = done(line);
        assert!(!answer.trim().is_empty(), "{line} says nothing");
    }
    for what in [" gateways --dir ", " services --dir ", " stat --dir ", " check --dir "] {
        let line = commands.iter().find(|line| line.contains(what)).unwrap_or_else(|| panic!("no {what}: {story}"));
        let output = run(nobody(Path::new("bash")).args(["-c", line]));
        assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stdout));
    }
    let folder = story.split_once("Both lie in ").and_then(|(_, rest)| rest.split_once(". east runs"));
    let folder = PathBuf::from(folder.unwrap_or_else(|| panic!("the folder is not named: {story}")).0);
    assert!(folder.is_dir(), "{}", folder.display());
    let pids = tree(u64::from(process.id()));
    assert!(pids.len() >= 6, "{pids:?}");
    Demo { process, folder, pids }.interrupt();
}
