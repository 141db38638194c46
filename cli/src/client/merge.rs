//! What several gateways of one cluster say, as one. Pure.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use linkspan_proto::configuration::{LinkPhase, LinkReport, PortTransport, Resource};
use linkspan_proto::names::ClusterName;

use super::facts::{Facts, Listener};

/// What one gateway says.
#[derive(Debug, Clone)]
pub(crate) struct Said {
    /// The gateway: its pod.
    pub(crate) gateway: String,
    /// Its cluster.
    pub(crate) own: ClusterName,
    /// Which configuration it has.
    pub(crate) generation: u64,
    /// `/links`.
    pub(crate) links: Vec<LinkReport>,
    /// `/mirrors`.
    pub(crate) listeners: Vec<Listener>,
    /// Every resource in force.
    pub(crate) resources: Vec<Resource>,
}

/// One view of all of them. The configuration is that of the gateway which has the newest.
pub(crate) fn merge(all: Vec<Said>) -> Facts {
    let mut links: BTreeMap<ClusterName, Vec<LinkReport>> = BTreeMap::new();
    let mut listeners: BTreeMap<(SocketAddr, PortTransport), Listener> = BTreeMap::new();
    let mut newest: Option<(u64, ClusterName, Vec<Resource>)> = None;
    for said in all {
        for link in said.links {
            links.entry(link.cluster.clone()).or_default().push(link);
        }
        for mut listener in said.listeners {
            if !listener.bound {
                // Its clients are spread over all gateways: one that does not listen is enough to fail some of them.
                let told = if listener.message.is_empty() { &listener.reason } else { &listener.message };
                listener.message = format!("{}: {told}", said.gateway);
                listeners.insert(listener.place(), listener);
            } else {
                listeners.entry(listener.place()).or_insert(listener);
            }
        }
        if newest.as_ref().is_none_or(|(generation, ..)| said.generation > *generation) {
            newest = Some((said.generation, said.own, said.resources));
        }
    }
    let (own, resources) = match newest {
        Some((_, own, resources)) => (Some(own), resources),
        None => (None, Vec::new()),
    };
    let links = links.into_values().filter_map(link).collect();
    Facts::of(own, links, listeners.into_values().collect(), resources)
}

/// The link of a cluster: alive when one gateway's is, and as good as those that are.
fn link(reports: Vec<LinkReport>) -> Option<LinkReport> {
    let (alive, dead): (Vec<_>, Vec<_>) = reports.into_iter().partition(|report| report.alive);
    if alive.is_empty() {
        // Of several gateways the one with a reason says more than the one without; they have been down since the last fell.
        let since = dead.iter().map(|report| report.since_unix).max()?;
        let connections = dead.iter().map(|report| report.connections).sum();
        let told = dead.iter().find(|report| !report.message.is_empty()).or_else(|| dead.first())?;
        return Some(LinkReport { since_unix: since, connections, ..told.clone() });
    }
    let mean = |value: fn(&LinkReport) -> Option<u64>| {
        let values: Vec<u64> = alive.iter().filter_map(value).collect();
        values.iter().sum::<u64>().checked_div(u64::try_from(values.len()).ok()?)
    };
    let connections: u32 = alive.iter().map(|report| report.connections).sum();
    let lost: f64 = alive.iter().map(|report| report.loss * f64::from(report.connections)).sum();
    let first = alive.first()?;
    // The worse of several: one gateway that has to do without UDP is worth a word, too.
    let carried = alive
        .iter()
        .filter_map(|report| report.transport.zip(report.transport_reason))
        .max_by_key(|(transport, _)| *transport);
    let of_carrier = alive.iter().find(|report| report.transport == carried.map(|(transport, _)| transport));
    // One that is down beside one that works is worth a word.
    let message = dead.iter().map(|report| report.message.as_str()).find(|message| !message.is_empty());
    Some(LinkReport {
        cluster: first.cluster.clone(),
        alive: true,
        state: if alive.iter().any(|report| report.state == LinkPhase::Connected) {
            LinkPhase::Connected
        } else {
            first.state
        },
        message: message.map_or_else(
            || of_carrier.unwrap_or(first).message.clone(),
            |message| format!("of one gateway it is down: {message}"),
        ),
        reason: first.reason.clone(),
        connections,
        version: alive.iter().find_map(|report| report.version.clone()),
        rtt_micros: mean(|report| report.rtt_micros),
        probe_micros: mean(|report| report.probe_micros),
        loss: if connections > 0 { lost / f64::from(connections) } else { 0.0 },
        since_unix: alive.iter().map(|report| report.since_unix).min()?,
        remote: alive.iter().find_map(|report| report.remote),
        transport: carried.map(|(transport, _)| transport),
        transport_reason: carried.map(|(_, reason)| reason),
        // Of several the one that is worth a word.
        clock_ahead_seconds: alive
            .iter()
            .filter_map(|report| report.clock_ahead_seconds)
            .max_by_key(|ahead| ahead.unsigned_abs()),
        mtu: alive.iter().filter_map(|report| report.mtu).min(),
        black_holes: alive.iter().map(|report| report.black_holes).sum(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::facts::tests::{bound, cluster, link as report, mirror, peer};

    fn said(gateway: &str, generation: u64, links: Vec<LinkReport>, listeners: Vec<Listener>) -> Said {
        let resources = vec![
            peer("west", &[]),
            mirror(
                "web-west.shop.svc.cluster.local",
                "shop/web",
                &format!("[::]:{}", 10_000 + generation),
                &[&[("west", 1)]],
            ),
        ];
        Said { gateway: gateway.to_owned(), own: cluster("east"), generation, links, listeners, resources }
    }

    #[test]
    fn a_link_lives_while_one_gateway_has_it() {
        let mut slow = report("west", true);
        slow.rtt_micros = Some(3_234);
        slow.connections = 6;
        slow.loss = 0.009;
        slow.since_unix = 1_600_000_000;
        let facts = merge(vec![
            said("gateway-1", 1, vec![report("west", true)], Vec::new()),
            said("gateway-2", 1, vec![slow], Vec::new()),
            said("gateway-3", 1, vec![report("west", false)], Vec::new()),
        ]);
        let west = &facts.links["west"];
        assert!(west.alive && west.message.starts_with("of one gateway it is down"), "{west:?}");
        assert_eq!((west.connections, west.rtt_micros, west.since_unix), (8, Some(2_234), 1_600_000_000));
        assert!((west.loss - 0.007).abs() < 1e-9, "by connections: {}", west.loss);

        let mut silent = report("west", false);
        silent.message.clear();
        silent.since_unix += 5;
        let down = merge(vec![
            said("gateway-1", 1, vec![silent], Vec::new()),
            said("gateway-2", 1, vec![report("west", false)], Vec::new()),
        ]);
        let west = &down.links["west"];
        assert!(!west.alive && west.message.contains("no answer"), "the gateway with a reason: {west:?}");
        assert_eq!(west.since_unix, 1_700_000_005);
    }

    #[test]
    fn the_newest_configuration_counts_and_a_port_listens_when_all_do() {
        let mut closed = bound("[::]:10002");
        closed.bound = false;
        closed.reason = "AddressInUse".to_owned();
        let facts = merge(vec![
            said("gateway-1", 1, Vec::new(), vec![bound("[::]:10002"), bound("[::]:10001")]),
            said("gateway-2", 2, Vec::new(), vec![closed, bound("[::]:10001")]),
        ]);
        assert_eq!(facts.mirrors[0].ports[0].listen.port(), 10_002);
        let health = facts.health(&facts.mirrors[0], &facts.mirrors[0].ports[0]);
        assert_eq!(health.message, "gateway-2: AddressInUse");
        assert!(facts.listeners.values().any(|listener| listener.listen.port() == 10_001 && listener.bound));
        assert!(merge(Vec::new()).own.is_none());
    }
}
