//! What Linkspan must reach, on this class of machine: ratios to the best of the other pairs in the same run.

use crate::Transport;
use crate::cases::{Kind, Plan, Wan};
use crate::network::Congestion;
use crate::report::rows::{Against, Aspect, Target};

/// MTU from which the bound of jumbo packets holds.
const JUMBO: u16 = 8_900;

/// The targets of a case.
pub(crate) fn of(plan: Plan, transport: Transport, mtu: u16, congestion: Congestion) -> Vec<Target> {
    if transport == Transport::Tcp {
        // The other bounds are the default transport's.
        return match plan {
            Plan { kind: Kind::Bulk(..), wan: None } => vec![Target::at_least(Aspect::Value, Against::BestPair, 1.6)],
            _ => Vec::new(),
        };
    }
    match plan.wan {
        Some(Wan::Clean) => clean_wan(plan.kind),
        Some(Wan::Lossy) => lossy_wan(plan.kind, congestion),
        None => lan(plan.kind, mtu),
    }
}

fn lan(kind: Kind, mtu: u16) -> Vec<Target> {
    let least = |bound| Target::at_least(Aspect::Value, Against::BestPair, bound);
    match kind {
        Kind::Requests => vec![least(1.5), Target::at_most(Aspect::Cpu, Against::BestPair, 0.65)],
        Kind::Latency(2000) => {
            [Aspect::Value, Aspect::P99].map(|aspect| Target::at_most(aspect, Against::BestPair, 0.85)).to_vec()
        }
        Kind::Connections => vec![least(1.2)],
        Kind::Bulk(..) => vec![least(if mtu >= JUMBO { 2.0 } else { 1.0 })],
        Kind::IdleMemory => vec![Target::at_most(Aspect::Value, Against::Bound, 12.0)],
        Kind::ConnectionMemory(_) => vec![Target::at_most(Aspect::Value, Against::Bound, 8.0)],
        _ => Vec::new(),
    }
}

fn clean_wan(kind: Kind) -> Vec<Target> {
    match kind {
        Kind::FirstByte { cold: false, .. } => vec![Target::at_most(Aspect::Value, Against::Bound, 1.05)],
        Kind::Fairness => vec![Target::at_least(Aspect::Value, Against::Bound, 0.5)],
        _ => Vec::new(),
    }
}

fn lossy_wan(kind: Kind, congestion: Congestion) -> Vec<Target> {
    match kind {
        Kind::Latency(_) => vec![Target::at_most(Aspect::P99, Against::BestTcpPair, 0.35)],
        Kind::Bulk(..) => {
            let mut targets = Vec::new();
            // The other pairs are the kernel's congestion control: with Cubic they stand still, with BBR they do not.
            if congestion == Congestion::Cubic {
                targets.push(Target::at_least(Aspect::Value, Against::BestPair, 100.0));
            }
            targets.push(Target::at_least(Aspect::Value, Against::Bound, 0.7));
            targets
        }
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tcp::Way;

    #[test]
    fn the_bound_for_bulk_depends_on_the_packets_and_on_the_kernel() {
        let lan = Plan { kind: Kind::Bulk(1, Way::Down), wan: None };
        let of = |plan, mtu, congestion| of(plan, Transport::Auto, mtu, congestion);
        assert_eq!(of(lan, 1500, Congestion::Cubic)[0].bound, 1.0);
        assert_eq!(of(lan, 8900, Congestion::Cubic)[0].bound, 2.0);
        let wan = Plan { wan: Some(Wan::Lossy), ..lan };
        assert_eq!(of(wan, 1500, Congestion::Cubic).len(), 2);
        assert_eq!(of(wan, 1500, Congestion::Bbr)[0].against, Against::Bound);
        assert!(of(Plan { wan: Some(Wan::Clean), ..lan }, 1500, Congestion::Cubic).is_empty());
    }

    #[test]
    fn over_tcp_only_bulk_has_a_bound() {
        let of = |kind, wan| of(Plan { kind, wan }, Transport::Tcp, 1500, Congestion::Cubic);
        assert_eq!(of(Kind::Bulk(8, Way::Up), None)[0].bound, 1.6);
        assert!(of(Kind::Bulk(8, Way::Up), Some(Wan::Lossy)).is_empty());
        assert!(of(Kind::Requests, None).is_empty());
    }
}
