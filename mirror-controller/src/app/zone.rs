//! The DNS zone, made anew from the mirrors whenever what DNS answers changes, and from what the gateways say of them.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use linkspan_proto::configuration::ResourceKind;
use linkspan_runtime::drain::Signal;
use tokio::sync::watch;

use crate::configuration::{GatewayState, Reports};
use crate::dns::Zone;
use crate::mirror::faces::{Silence, Silent};
use crate::mirror::kubernetes::ClusterIps;
use crate::mirror::{MirrorSet, faces};

/// Making zones takes at most half of one core, however many names there are.
const PACE: Duration = Duration::from_millis(20);

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

    pub(super) async fn run(
        mut self,
        mut sets: watch::Receiver<MirrorSet>,
        mut reports: watch::Receiver<Reports>,
        mut ips: watch::Receiver<ClusterIps>,
        signal: Signal,
    ) {
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
            let others = !Arc::ptr_eq(&now_given, &given);
            if set.dns_version != served || changed.is_some() || others {
                given = now_given;
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
                let built = tokio::task::spawn_blocking(move || {
                    let services = set.wanted.values().map(|wanted| faces::dns_with(wanted, &silent, &given));
                    Zone::build(services.collect(), serial)
                });
                let Ok(zone) = built.await else {
                    tracing::error!("making the DNS zone panicked");
                    return;
                };
                self.zone.store(Arc::new(zone));
            }
            tokio::time::sleep(PACE.max(started.elapsed())).await;
            tokio::select! {
                changed = sets.changed() => if changed.is_err() { return },
                changed = reports.changed() => if changed.is_err() { return },
                changed = ips.changed() => if changed.is_err() { return },
                () = signal.draining() => return,
            }
        }
    }
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
