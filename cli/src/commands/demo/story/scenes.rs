//! The scenes of the story, each a check with figures.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use serde_json::json;

use super::super::figures::{Counts, bound, change_point, fits, last_failure, percentile, reasons, show};
use super::super::load::{Load, Target};
use super::super::sites::{CLUSTERSET, MIRROR, Sites};
use super::super::voice::Voice;
use super::super::{manifests, service};
use super::{LOOK, Seen};
use crate::client::dns;

/// Calls in the second scene: enough for a median that does not jump.
const CALLS: usize = 50;

/// Requests a second while weights are counted, and how many are counted for each weighting.
const WEIGHTS_RATE: u32 = 500;
const WEIGHTS_COUNT: usize = 2_000;

/// Requests a second while the gateway is killed.
const KILL_RATE: u32 = 200;

/// DESIGN.md section 8: a dead peer is withdrawn in 4 s at most, and a change of weights is effective in under 1 s.
const WITHDRAWN: Duration = Duration::from_secs(4);
const EFFECTIVE: Duration = Duration::from_secs(1);

/// A gateway that returns has traffic again after this time at most.
const RETURNED: Duration = Duration::from_secs(5);

/// What the story goes on watching after something has happened.
const AFTERWARDS: Duration = Duration::from_secs(2);

/// A call to a mirrored name from a client address.
async fn target(sites: &Sites, name: &str, source: IpAddr) -> anyhow::Result<Target> {
    let address = SocketAddr::new(sites.resolve(&sites.addresses.east, name).await?, sites.addresses.port);
    Ok(Target { source, address, host: format!("{name}:{}", sites.addresses.port) })
}

/// 1. DNS.
pub(super) async fn resolves(sites: &Sites) -> anyhow::Result<Seen> {
    let east = &sites.addresses.east;
    let asked = Instant::now();
    let mirror = sites.resolve(east, MIRROR).await?;
    let took = asked.elapsed();
    let clusterset = sites.resolve(east, CLUSTERSET).await?;
    let range: ipnet::IpNet = east.mirrors.parse()?;
    for address in [mirror, clusterset] {
        ensure!(range.contains(&address), "{address} is not in mirrorAddresses {range}");
    }
    ensure!(mirror != clusterset, "both names have the address {mirror}");
    let foreign = dns::addresses(east.dns, "example.com", east.dns.ip(), dns::Transport::Udp).await?;
    ensure!(foreign.addresses.is_empty(), "the server answers for example.com, which is none of its business");
    Ok(Seen {
        said: vec![
            format!("{MIRROR} is {mirror} (asked {} over UDP, {})", east.dns, show(took)),
            format!("example.com, which is none of its business: {}", foreign.code),
        ],
        figures: json!({ MIRROR: mirror, CLUSTERSET: clusterset, "milliseconds": millis(took) }),
    })
}

/// 2. A call.
pub(super) async fn crosses(sites: &Sites) -> anyhow::Result<Seen> {
    let mirrored = target(sites, MIRROR, sites.addresses.web).await?;
    let backend = sites.addresses.west.service;
    let direct = Target { source: sites.addresses.web, address: backend, host: backend.to_string() };
    let (mut across, mut straight) = (Vec::new(), Vec::new());
    for call in 0..CALLS {
        let path = format!("/hello?call={call}");
        for (target, times) in [(&mirrored, &mut across), (&direct, &mut straight)] {
            let begun = Instant::now();
            let answer: service::Answer = target.json(&path, &[]).await?;
            times.push(begun.elapsed());
            ensure!(answer.cluster == "west", "{} answered in place of west", answer.cluster);
            ensure!(answer.path == path && answer.method == "GET", "the backend saw {} {}", answer.method, answer.path);
        }
    }
    let (across, straight) = (percentile(&mut across, 0.5), percentile(&mut straight, 0.5));
    Ok(Seen {
        said: vec![
            format!("west answered all {CALLS} calls, each on a new connection"),
            format!("median {}, straight to the backend {}", show(across), show(straight)),
        ],
        figures: json!({ "calls": CALLS, "medianMilliseconds": millis(across), "directMedianMilliseconds": millis(straight) }),
    })
}

/// 3. Identity.
pub(super) async fn identity(sites: &Sites) -> anyhow::Result<Seen> {
    const FORGED: &[(&str, &str)] = &[
        ("linkspan-source", "\"spiffe://bank.example/ns/vault/sa/root\";cluster=\"bank\";assurance=mtls"),
        ("x-forwarded-client-cert", "By=spiffe://bank.example/gateway;URI=spiffe://bank.example/ns/vault/sa/root"),
        ("forwarded", "for=bank.example"),
        ("l5d-client-id", "root.vault.bank.example"),
    ];
    let mut said = Vec::new();
    let mut seen = serde_json::Map::new();
    for (source, workload, sent) in
        [(sites.addresses.web, "ns/shop/sa/web", &[][..]), (sites.addresses.robot, "ns/ops/sa/robot", FORGED)]
    {
        let answer: service::Answer = target(sites, MIRROR, source).await?.json("/who", sent).await?;
        let header = |name: &str| answer.headers.get(name).map(String::as_str).unwrap_or_default();
        let (who, xfcc) = (header("linkspan-source"), header("x-forwarded-client-cert"));
        let identity = format!("spiffe://east.linkspan.internal/{workload}");
        ensure!(
            who.starts_with(&format!("\"{identity}\""))
                && who.contains("cluster=\"east\"")
                && who.contains("assurance=network"),
            "the backend saw linkspan-source: {who}, not {identity} of east with assurance network"
        );
        ensure!(
            xfcc.contains(&format!("URI={identity}")) || xfcc.contains(&format!("URI=\"{identity}\"")),
            "the backend saw x-forwarded-client-cert: {xfcc}"
        );
        if let Some((name, value)) = answer.headers.iter().find(|(_, value)| value.contains("bank.example")) {
            bail!("a forged header arrived: {name}: {value}");
        }
        said.push(format!("{source} is {identity}"));
        seen.insert(source.to_string(), json!({ "linkspan-source": who, "x-forwarded-client-cert": xfcc }));
    }
    said.push(format!("both with assurance network; of {} forged headers none arrived", FORGED.len()));
    Ok(Seen { said, figures: seen.into() })
}

/// 4. Weights.
pub(super) async fn weights(sites: &Sites, voice: &Voice) -> anyhow::Result<Seen> {
    let east_dir = sites.dir("east");
    let load = Load::start(target(sites, CLUSTERSET, sites.addresses.web).await?, WEIGHTS_RATE);
    manifests::write_weights(&east_dir, 90, 10)?;
    tokio::time::sleep(EFFECTIVE).await;
    let first = Instant::now();
    watch(voice, &load, first, "90/10", WEIGHTS_COUNT).await?;
    let changed = Instant::now();
    manifests::write_weights(&east_dir, 50, 50)?;
    watch(voice, &load, changed, "50/50", WEIGHTS_COUNT + per_second(WEIGHTS_RATE)).await?;
    let all = load.finish().await?;

    let failed = Counts::of(&all).failed;
    ensure!(failed == 0, "{failed} of {} requests failed: {:?}", all.len(), reasons(&all));
    let part = |from: Instant, to: Option<Instant>| {
        let answers = all.iter().filter(|answer| answer.due >= from && to.is_none_or(|to| answer.due < to));
        answers.cloned().collect::<Vec<_>>()
    };
    let mut counted = Vec::new();
    for (percent, answers) in [(10, part(first, Some(changed))), (50, part(changed + EFFECTIVE, None))] {
        let counts = Counts::of(&answers);
        let west = counts.of_cluster("west");
        ensure!(
            fits(west, counts.requests, percent),
            "weight {percent} % for west, but west answered {west} of {} requests (bound: {:.0})",
            counts.requests,
            bound(counts.requests, percent)
        );
        counted.push(counts);
    }
    let around = part(changed, None);
    let draws = around.iter().map(|answer| answer.from.as_deref() == Ok("west"));
    let effective = around
        .get(change_point(draws, 0.1, 0.5))
        .map(|answer| answer.due.saturating_duration_since(changed))
        .context("the change never took effect")?;
    ensure!(effective < EFFECTIVE, "the change took effect after {}", show(effective));
    let mut times: Vec<Duration> = all.iter().map(|answer| answer.took).collect();
    let (median, slow) = (percentile(&mut times, 0.5), percentile(&mut times, 0.99));
    Ok(Seen {
        said: vec![
            format!("90/10: {}", counted[0]),
            format!("50/50: {}", counted[1]),
            format!("the change took effect {} after the file was saved", show(effective)),
            format!("at {WEIGHTS_RATE} requests a second: median {}, 99 % below {}", show(median), show(slow)),
        ],
        figures: json!({ "90/10": counted[0], "50/50": counted[1], "effectiveMilliseconds": millis(effective), "medianMilliseconds": millis(median), "p99Milliseconds": millis(slow) }),
    })
}

/// 5. The remote gateway dies.
pub(super) async fn kill(sites: &mut Sites, voice: &Voice) -> anyhow::Result<Seen> {
    let load = Load::start(target(sites, CLUSTERSET, sites.addresses.web).await?, KILL_RATE);
    watch(voice, &load, Instant::now(), "before", per_second(KILL_RATE)).await?;
    let killed = Instant::now();
    sites.kill_west_gateway().await?;
    let reported = seen_dead(sites, voice, &load, killed).await;
    let seconds = usize::try_from((WITHDRAWN + AFTERWARDS).as_secs())?;
    watch(voice, &load, killed, "killed", per_second(KILL_RATE) * seconds).await?;
    let all = load.finish().await?;
    let reported = reported?;

    let answers: Vec<_> = all.into_iter().filter(|answer| answer.due >= killed).collect();
    let withdrawn = last_failure(&answers, killed).unwrap_or_default();
    let late: Vec<_> = answers.iter().filter(|answer| answer.due >= killed + WITHDRAWN).cloned().collect();
    let (during, after) = (Counts::of(&answers), Counts::of(&late));
    ensure!(withdrawn <= WITHDRAWN, "requests still failed {} after the kill: {:?}", show(withdrawn), reasons(&late));
    ensure!(after.of_cluster("west") == 0, "west answered {} requests without a gateway", after.of_cluster("west"));
    Ok(Seen {
        said: vec![
            format!("west withdrawn {} after the kill", show(withdrawn)),
            format!("of {} requests since then {} failed, none of those due later", during.requests, during.failed),
            format!("east answered the other {}", during.of_cluster("east")),
        ],
        figures: json!({
            "withdrawnMilliseconds": millis(withdrawn),
            "linkReportedDownMilliseconds": millis(reported),
            "requests": during.requests,
            "failed": during.failed,
            "failures": reasons(&answers).into_iter().collect::<BTreeMap<_, _>>(),
            "afterFourSeconds": after,
        }),
    })
}

/// Waits until east's gateway reports the link dead; returns how long that took.
async fn seen_dead(sites: &Sites, voice: &Voice, load: &Load, killed: Instant) -> anyhow::Result<Duration> {
    loop {
        let dead = sites.links(&sites.addresses.east).await?.iter().all(|link| !link.alive);
        if dead {
            return Ok(killed.elapsed());
        }
        if killed.elapsed() > WITHDRAWN + AFTERWARDS {
            bail!("east still holds the link alive {} after the kill", show(killed.elapsed()));
        }
        voice.live(format!("killed {} ago: {}", show(killed.elapsed()), Counts::of(&load.answers(killed))));
        tokio::time::sleep(LOOK).await;
    }
}

/// 6. It returns.
pub(super) async fn returns(sites: &mut Sites, voice: &Voice) -> anyhow::Result<Seen> {
    let load = Load::start(target(sites, CLUSTERSET, sites.addresses.web).await?, KILL_RATE);
    watch(voice, &load, Instant::now(), "before", per_second(KILL_RATE) / 2).await?;
    let restarted = Instant::now();
    sites.restart_west_gateway()?;
    let back = loop {
        let answers = load.answers(restarted);
        if let Some(answer) = answers.iter().find(|answer| answer.from.as_deref() == Ok("west")) {
            break answer.due.saturating_duration_since(restarted);
        }
        if restarted.elapsed() > RETURNED + AFTERWARDS {
            drop(load.finish().await);
            bail!("west has no traffic {} after its gateway was started", show(restarted.elapsed()));
        }
        voice.live(format!("started {} ago: {}", show(restarted.elapsed()), Counts::of(&answers)));
        tokio::time::sleep(LOOK).await;
    };
    let since = Instant::now();
    watch(voice, &load, since, "back", per_second(KILL_RATE) * usize::try_from(AFTERWARDS.as_secs())?).await?;
    let all = load.finish().await?;

    let failed = Counts::of(&all).failed;
    ensure!(back <= RETURNED, "traffic came back only after {}", show(back));
    ensure!(failed == 0, "{failed} of {} requests failed: {:?}", all.len(), reasons(&all));
    let settled: Vec<_> = all.into_iter().filter(|answer| answer.due >= since).collect();
    let counts = Counts::of(&settled);
    ensure!(fits(counts.of_cluster("west"), counts.requests, 50), "not 50/50 again: {counts}");
    Ok(Seen {
        said: vec![
            format!("first answer from west {} after the start of its gateway", show(back)),
            format!("since then {counts}"),
        ],
        figures: json!({ "returnedMilliseconds": millis(back), "since": counts }),
    })
}

/// Shows the figures until `count` requests that were due at `from` or later are answered.
async fn watch(voice: &Voice, load: &Load, from: Instant, what: &str, count: usize) -> anyhow::Result<()> {
    // No load here is asked for more than 10 s; an answer may take another 10 s.
    let deadline = Instant::now() + Duration::from_secs(25);
    loop {
        let answers = load.answers(from);
        voice.live(format!("{what}: {}", Counts::of(&answers)));
        if answers.len() >= count {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!("only {} of {count} requests were answered: {}", answers.len(), Counts::of(&answers));
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Requests in one second.
fn per_second(rate: u32) -> usize {
    usize::try_from(rate).unwrap_or(usize::MAX)
}

/// Milliseconds with three decimals.
fn millis(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}
