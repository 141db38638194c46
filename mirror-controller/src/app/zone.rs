//! The DNS zone, made anew from the mirrors whenever what DNS answers changes, and from what the gateways say of them.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use linkspan_proto::configuration::ResourceKind;
use linkspan_runtime::drain::Signal;
use tokio::sync::watch;

use crate::cluster::Imports;
use crate::configuration::{GatewayState, Reports};
use crate::dns::{self, Zone};
use crate::mirror::faces::{Silence, Silent};
use crate::mirror::kubernetes::ClusterIps;
use crate::mirror::{MirrorSet, faces};

/// Between two zones.
const PACE: Duration = Duration::from_millis(20);
/// Making zones takes at most one part in this many of the time of one core, however many names there are: while thousands of
/// imports get their addresses there is news all the time.
const SHARE: u32 = 10;

/// Keeps a zone up to date.
pub(super) struct Feed {
    zone: Arc<ArcSwap<Zone>>,
    serial: u32,
}

impl Feed {
    pub(super) fn new() -> Self {
        // Seconds since 1970 grow across restarts, as serial numbers should; they fit until 2106.
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let serial = u32::try_from(now).unwrap_or(u32::MAX / 2);
        Self { zone: Arc::new(ArcSwap::from_pointee(Zone::build(Vec::new(), serial))), serial }
    }

    pub(super) fn current(&self) -> Arc<ArcSwap<Zone>> {
        Arc::clone(&self.zone)
    }

    pub(super) async fn run(mut self, sources: Sources, signal: Signal) {
        let Sources { mut sets, mut reports, mut ips, mut generation, mut restored } = sources;
        let mut earlier = Imports::default();
        let mut served = 0;
        let mut withheld = Arc::new(Silent::new());
        let mut given = ClusterIps::default();
        loop {
            let set = sets.borrow_and_update().clone();
            let now_silent = silent(&reports.borrow_and_update());
            let started = Instant::now();
            let changed = now_silent.filter(|silent| *silent != *withheld);
            // On Kubernetes the API server gives imports their addresses; on a site this stays empty.
            let now_given = Arc::clone(&ips.borrow_and_update());
            if *generation.borrow_and_update() > 0 && set.unsettled.is_empty() && set.known.values().all(|known| *known)
            {
                // Everything is known now: what is not wanted is on its way out.
                restored = None;
            }
            let now_earlier = restored.as_mut().and_then(|restored| restored.borrow_and_update().clone());
            let same = match (&now_earlier, &earlier) {
                (Some(now), Some(before)) => Arc::ptr_eq(now, before),
                (now, before) => now.is_none() && before.is_none(),
            };
            let others = !Arc::ptr_eq(&now_given, &given) || !same;
            if set.dns_version != served || changed.is_some() || others {
                given = now_given;
                earlier = now_earlier;
                served = set.dns_version;
                if let Some(silent) = changed {
                    match silent.keys().next() {
                        Some(first) => tracing::warn!(
                            names = silent.len(),
                            first,
                            "the gateway does not listen at every port; DNS withholds addresses where that matters"
                        ),
                        None => tracing::info!("DNS withholds no address any more: the gateway listens at all"),
                    }
                    withheld = Arc::new(silent);
                }
                self.serial = self.serial.wrapping_add(1);
                let (serial, silent, given) = (self.serial, Arc::clone(&withheld), Arc::clone(&given));
                let earlier = earlier.clone();
                let built = tokio::task::spawn_blocking(move || {
                    let services = set.wanted.values().map(|wanted| faces::dns_with(wanted, &silent, &given));
                    Zone::build(with_earlier(services.collect(), earlier.as_deref().map_or(&[], Vec::as_slice)), serial)
                });
                let Ok(zone) = built.await else {
                    tracing::error!("making the DNS zone panicked");
                    return;
                };
                self.zone.store(Arc::new(zone));
            }
            tokio::time::sleep(PACE.max(started.elapsed() * (SHARE - 1))).await;
            tokio::select! {
                changed = sets.changed() => if changed.is_err() { return },
                changed = reports.changed() => if changed.is_err() { return },
                changed = ips.changed() => if changed.is_err() { return },
                changed = generation.changed(), if restored.is_some() => if changed.is_err() { return },
                changed = news(&mut restored) => if changed.is_err() { return },
                () = signal.draining() => return,
            }
        }
    }
}

/// What the zone is made of.
pub(super) struct Sources {
    pub(super) sets: watch::Receiver<MirrorSet>,
    pub(super) reports: watch::Receiver<Reports>,
    pub(super) ips: watch::Receiver<ClusterIps>,
    /// Of the gateways' configuration; 0 before the first mirrors are known.
    pub(super) generation: watch::Receiver<u64>,
    /// On Kubernetes, the imports in the API server: what is answered in standby, and after a start or a change of leaders
    /// until the catalogues of all peers are known. Nobody's name is withdrawn because another process leads.
    pub(super) restored: Option<watch::Receiver<Imports>>,
}

async fn news(restored: &mut Option<watch::Receiver<Imports>>) -> Result<(), watch::error::RecvError> {
    match restored {
        Some(restored) => restored.changed().await,
        None => std::future::pending().await,
    }
}

/// The services, and of the earlier ones those that are not among them.
fn with_earlier(mut services: Vec<dns::Service>, earlier: &[dns::Service]) -> Vec<dns::Service> {
    let name = |service: &dns::Service| (service.zone, service.namespace.clone(), service.name.clone());
    let known: BTreeSet<_> = services.iter().map(name).collect();
    services.extend(earlier.iter().filter(|service| !known.contains(&name(service))).cloned());
    services
}

/// The names with ports at which no gateway listens, or `None` while no gateway can say. What that means for a name is
/// decided in [`faces::dns_with`].
///
/// While gateways are replaced, the new one complains about what the old one still holds: so one that listens is enough.
/// Without a gateway the last word stands, since what was in the way may still be there.
fn silent(reports: &Reports) -> Option<Silent> {
    let settled = reports.values().filter(|gateway| gateway.acknowledged > 0 || !gateway.rejections.is_empty());
    settled.map(|gateway| complaints(gateway)).reduce(|mut all, one| {
        all.retain(|name, silence| one.get(name).is_some_and(|other| silence.both(other)));
        all
    })
}

fn complaints(gateway: &GatewayState) -> Silent {
    let mirrors = gateway.rejections.iter().filter(|rejection| rejection.resource.kind == ResourceKind::Mirror);
    mirrors
        .map(|rejection| {
            let silence = Silence {
                ports: rejection.ports.iter().copied().collect(),
                is_share: rejection.reason == "SocketShareUsedUp",
            };
            (rejection.resource.name.clone(), silence)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use linkspan_proto::configuration::{Rejection, ResourceKey};

    use super::*;

    fn gateway(acknowledged: u64, complaints: &[&str]) -> Arc<GatewayState> {
        let rejection = |name: &&str| Rejection {
            resource: ResourceKey { kind: ResourceKind::Mirror, name: (*name).to_owned() },
            reason: "AddressInUse".to_owned(),
            message: "another process listens there".to_owned(),
            ports: vec![80],
        };
        let rejections = complaints.iter().map(rejection).collect();
        Arc::new(GatewayState { acknowledged, rejections, ..GatewayState::default() })
    }

    fn of(gateways: &[Arc<GatewayState>]) -> Option<Vec<String>> {
        let reports = gateways.iter().enumerate().map(|(id, gateway)| (id.to_string(), Arc::clone(gateway))).collect();
        silent(&reports).map(|names| names.into_keys().collect())
    }

    #[tokio::test(start_paused = true)]
    async fn in_standby_names_are_those_of_the_leader_and_later_our_own() {
        use linkspan_proto::names::{Namespace, ServiceName};
        let service = |name: &str, address: &str| dns::Service {
            name: ServiceName::parse(name).unwrap(),
            namespace: Namespace::parse("shop").unwrap(),
            zone: dns::ZoneName::Clusterset,
            addresses: vec![address.parse().unwrap()],
            ports: Vec::new(),
            headless: None,
        };
        let both =
            with_earlier(vec![service("web", "10.96.0.7")], &[service("web", "10.96.0.8"), service("db", "10.96.0.9")]);
        assert_eq!(both, [service("web", "10.96.0.7"), service("db", "10.96.0.9")]);

        let (sets, reports, ips, generation, imports) = (
            watch::Sender::new(MirrorSet::default()),
            watch::Sender::new(Reports::new()),
            watch::Sender::new(ClusterIps::default()),
            watch::Sender::new(0_u64),
            watch::Sender::new(Imports::default()),
        );
        let sources = Sources {
            sets: sets.subscribe(),
            reports: reports.subscribe(),
            ips: ips.subscribe(),
            generation: generation.subscribe(),
            restored: Some(imports.subscribe()),
        };
        let feed = Feed::new();
        let zone = feed.current();
        let running = linkspan_runtime::task::spawn("zone", feed.run(sources, Signal::never()));
        let first = zone.load_full();
        imports.send_replace(Some(Arc::new(vec![service("web", "10.96.0.7")])));
        while Arc::ptr_eq(&first, &zone.load_full()) {
            tokio::time::sleep(PACE).await;
        }
        // The first mirrors of a leader that knows all its peers: their imports are its own business now.
        generation.send_replace(1);
        imports.closed().await;
        running.abort();
    }

    #[test]
    fn a_name_is_silent_when_no_gateway_listens_for_it() {
        assert_eq!(of(&[gateway(1, &["a", "b"])]), Some(vec!["a".to_owned(), "b".to_owned()]));
        assert_eq!(of(&[gateway(1, &["a", "b"]), gateway(1, &["b"])]), Some(vec!["b".to_owned()]));
        assert_eq!(of(&[gateway(1, &["a"]), gateway(7, &[])]), Some(Vec::new()), "the old one still listens");
    }

    #[test]
    fn who_has_not_bound_anything_yet_has_no_say() {
        assert_eq!(of(&[]), None);
        assert_eq!(of(&[gateway(0, &[])]), None);
        assert_eq!(of(&[gateway(0, &[]), gateway(3, &["a"])]), Some(vec!["a".to_owned()]));
    }

    #[test]
    fn complaints_about_links_are_no_business_of_dns() {
        let mut state = GatewayState { acknowledged: 1, ..GatewayState::default() };
        state.rejections = gateway(1, &["west"]).rejections.clone();
        state.rejections.iter_mut().for_each(|rejection| rejection.resource.kind = ResourceKind::Peer);
        assert_eq!(of(&[Arc::new(state)]), Some(Vec::new()));
    }
}
