//! The choice of the carrier, in virtual time.

use std::net::SocketAddr;

use linkspan_proto::names::ClusterName;
use proptest::prelude::*;

use super::*;
use crate::link::state::{Action, Answer, AttemptId, Event, HelloFacts, Silent, Trouble};

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

/// A link that is told what happens, and what it did.
struct Link {
    state: LinkState,
    start: Instant,
    now: Instant,
    next: u64,
    dials: Vec<(Duration, AttemptId, Carrier)>,
    left: Vec<ConnectionId>,
}

impl Link {
    fn new(own: &str, transport: Transport, workers: usize) -> Self {
        let name = |text: &str| ClusterName::parse(text).unwrap();
        let state = LinkState::new(name(own), name("m"), workers, transport, 7);
        let start = Instant::now();
        let mut link = Self { state, start, now: start, next: 0, dials: Vec::new(), left: Vec::new() };
        link.tell(Event::Configured { dialable: true });
        let addresses: Vec<SocketAddr> = vec!["192.0.2.2:4143".parse().unwrap()];
        link.tell(Event::Resolved(Ok(Answer { addresses, is_complete: true, silent: Silent::default() })));
        link
    }

    /// The side whose dials are kept, with one worker.
    fn auto() -> Self {
        Self::new("a", Transport::Auto, 1)
    }

    fn tell(&mut self, event: Event) {
        self.state.handle(event, self.now);
        self.act();
    }

    fn act(&mut self) {
        while let Some(action) = self.state.next_action() {
            match action {
                Action::Dial { attempt, carrier, .. } => self.dials.push((self.now - self.start, attempt, carrier)),
                Action::Finish { connection } => self.left.push(connection),
                Action::Resolve => {
                    let addresses = vec!["192.0.2.2:4143".parse().unwrap()];
                    let answer = Answer { addresses, is_complete: true, silent: Silent::default() };
                    self.state.handle(Event::Resolved(Ok(answer)), self.now);
                }
                Action::Abandon { .. } | Action::GoAway { .. } | Action::Close { .. } => {}
            }
        }
    }

    /// Lets time pass; nobody answers.
    fn wait(&mut self, time: Duration) {
        let end = self.now + time;
        for _ in 0..10_000 {
            match self.state.deadline() {
                Some(at) if at <= end => {
                    self.now = self.now.max(at);
                    self.state.advance(self.now);
                    self.act();
                }
                _ => {
                    self.now = end;
                    self.state.advance(end);
                    return self.act();
                }
            }
        }
        panic!("the deadline does not move");
    }

    /// The times of dials over a carrier.
    fn dialled(&self, over: Carrier) -> Vec<Duration> {
        self.dials.iter().filter(|(_, _, carrier)| *carrier == over).map(|(at, ..)| *at).collect()
    }

    /// The last dial over this carrier gets through.
    fn stand(&mut self, over: Carrier) -> ConnectionId {
        let (_, attempt, _) = *self.dials.iter().rev().find(|(_, _, carrier)| *carrier == over).unwrap();
        self.next += 1;
        let connection = ConnectionId(self.next);
        self.tell(Event::Dialled { attempt, connection });
        self.greet(connection)
    }

    /// Waits for the next dial over this carrier.
    fn next_dial(&mut self, over: Carrier) {
        let before = self.dialled(over).len();
        for _ in 0..300 {
            self.wait(100 * MS);
            if self.dialled(over).len() > before {
                return;
            }
        }
        panic!("{over} is not dialled");
    }

    fn accept(&mut self, carrier: Carrier) -> ConnectionId {
        self.next += 1;
        let connection = ConnectionId(self.next);
        self.tell(Event::Accepted { connection, carrier });
        self.greet(connection)
    }

    fn greet(&mut self, connection: ConnectionId) -> ConnectionId {
        let facts = HelloFacts { gateway_id: "g".into(), boot_id: "b".into(), worker: 0, workers: 1 };
        self.tell(Event::Hello { connection, facts });
        connection
    }

    fn probes(&mut self, connection: ConnectionId, probes: Probes) {
        self.tell(Event::Probes { connection, probes });
    }

    fn close(&mut self, connection: ConnectionId) {
        self.tell(Event::Closed { connection, trouble: None });
    }

    /// A QUIC connection that works.
    fn on_quic(&mut self) -> ConnectionId {
        let quic = self.stand(Carrier::Quic);
        self.probes(quic, Probes::Answered);
        assert_eq!(self.state.usable(), [quic]);
        quic
    }

    /// A TCP connection that works in place of this QUIC connection.
    fn fall_back(&mut self, quic: ConnectionId) -> ConnectionId {
        self.probes(quic, Probes::Silent);
        let tcp = self.stand(Carrier::Tcp);
        self.probes(tcp, Probes::Answered);
        assert_eq!(self.state.usable(), [tcp]);
        tcp
    }
}

#[test]
fn quic_alone_is_dialled_for_two_seconds_and_then_tcp_as_well() {
    let mut link = Link::auto();
    link.wait(FALLBACK_AFTER - MS);
    assert_eq!((link.dialled(Carrier::Quic).len(), link.dialled(Carrier::Tcp)), (1, vec![]));
    link.wait(MS);
    assert_eq!(link.dialled(Carrier::Tcp), [FALLBACK_AFTER]);
    let tcp = link.stand(Carrier::Tcp);
    assert_eq!(link.state.usable(), [tcp]);
    assert_eq!(link.state.why(Carrier::Tcp), TransportReason::UdpBlocked);
}

#[test]
fn tcp_is_not_touched_while_quic_works() {
    let mut link = Link::auto();
    link.wait(FALLBACK_AFTER - MS);
    link.on_quic();
    link.wait(3600 * SECOND);
    assert!(link.dialled(Carrier::Tcp).is_empty());
    assert_eq!(link.state.why(Carrier::Quic), TransportReason::Preferred);
}

#[test]
fn a_peer_that_restarts_is_found_over_quic() {
    let mut link = Link::auto();
    let quic = link.on_quic();
    link.wait(60 * SECOND);
    link.close(quic);
    link.wait(SECOND);
    link.on_quic();
    link.wait(60 * SECOND);
    assert!(link.dialled(Carrier::Tcp).is_empty());
}

#[test]
fn tcp_is_at_hand_as_soon_as_a_probe_goes_unanswered() {
    let mut link = Link::auto();
    let quic = link.on_quic();
    link.wait(60 * SECOND);
    link.probes(quic, Probes::Silent);
    assert_eq!(link.dialled(Carrier::Tcp), [60 * SECOND]);
    assert_eq!(link.state.usable(), [quic], "until TCP stands");
    let tcp = link.stand(Carrier::Tcp);
    assert_eq!(link.state.usable(), [tcp]);
    assert_eq!(link.state.why(Carrier::Tcp), TransportReason::UdpSilent);
    // It was a short blackout.
    link.probes(quic, Probes::Untold);
    assert_eq!(link.state.usable(), [tcp]);
    link.probes(quic, Probes::Answered);
    assert_eq!((link.state.usable(), link.left.clone()), (vec![quic], vec![tcp]));
    assert_eq!(link.state.why(Carrier::Quic), TransportReason::UdpRestored);
}

#[test]
fn a_blackout_that_tcp_does_not_pass_either_is_no_setback() {
    let mut link = Link::auto();
    let quic = link.on_quic();
    for _ in 0..5 {
        link.wait(10 * SECOND);
        link.probes(quic, Probes::Silent);
        link.wait(2 * SECOND);
        link.probes(quic, Probes::Answered);
        assert_eq!((link.state.usable(), link.state.why(Carrier::Quic)), (vec![quic], TransportReason::Preferred));
    }
    let before = link.dials.len();
    link.wait(100 * SECOND);
    assert_eq!(link.dials.len(), before, "TCP is dialled no more");
}

#[test]
fn quic_is_tried_now_and_then_and_serves_again_once_its_probes_pass() {
    let mut link = Link::auto();
    let quic = link.on_quic();
    let tcp = link.fall_back(quic);
    link.close(quic);
    let before = link.dialled(Carrier::Quic).len();
    link.wait(100 * SECOND);
    let tries = link.dialled(Carrier::Quic).split_off(before);
    assert!((8..=13).contains(&tries.len()), "{tries:?}");
    let pauses = tries.windows(2).map(|pair| pair[1] - pair[0]);
    assert!(pauses.clone().all(|pause| pause >= AGAIN.0 && pause <= AGAIN.1), "{tries:?}");
    assert_eq!(link.dialled(Carrier::Tcp).len(), 1, "it stands");
    link.next_dial(Carrier::Quic);
    let again = link.stand(Carrier::Quic);
    assert_eq!(link.state.usable(), [tcp], "a connection alone proves nothing");
    link.probes(again, Probes::Answered);
    assert_eq!((link.state.usable(), link.left.clone()), (vec![again], vec![tcp]));
}

#[test]
fn without_tcp_quic_is_dialled_as_often_as_ever() {
    let mut link = Link::auto();
    let quic = link.on_quic();
    let tcp = link.fall_back(quic);
    link.close(quic);
    link.wait(10 * SECOND);
    link.close(tcp);
    let before = link.dialled(Carrier::Quic).len();
    link.wait(21 * SECOND);
    assert!(link.dialled(Carrier::Quic).len() - before >= 6, "{:?}", link.dials);
}

#[test]
fn a_quic_that_fails_again_and_again_waits_longer_and_longer() {
    let mut link = Link::auto();
    let quic = link.on_quic();
    link.wait(100 * SECOND);
    let mut tcp = link.fall_back(quic);
    let mut waited = Vec::new();
    for _ in 0..8 {
        link.probes(quic, Probes::Answered);
        let since = link.now;
        while link.state.usable() != [quic] {
            link.wait(SECOND);
            assert!(link.now - since <= 161 * SECOND, "bounded");
        }
        waited.push((link.now - since).as_secs());
        link.close(tcp);
        link.wait(5 * SECOND);
        tcp = link.fall_back(quic);
    }
    assert_eq!(waited, [0, 10, 20, 40, 80, 80, 80, 80]);
    // One that lasts wipes the slate.
    link.probes(quic, Probes::Answered);
    link.wait(160 * SECOND + STEADY);
    assert_eq!(link.state.usable(), [quic]);
    link.close(tcp);
    link.fall_back(quic);
    link.probes(quic, Probes::Answered);
    assert_eq!(link.state.usable(), [quic]);
}

#[test]
fn a_link_that_names_its_carrier_has_no_other() {
    let mut quic = Link::new("a", Transport::Quic, 1);
    quic.wait(60 * SECOND);
    assert!(quic.dialled(Carrier::Tcp).is_empty());
    let mut tcp = Link::new("a", Transport::Tcp, 1);
    assert_eq!(tcp.dialled(Carrier::Tcp), [Duration::ZERO], "at once");
    tcp.wait(60 * SECOND);
    assert!(tcp.dialled(Carrier::Quic).is_empty());
    let connection = tcp.stand(Carrier::Tcp);
    let accepted = tcp.accept(Carrier::Quic);
    tcp.probes(accepted, Probes::Answered);
    assert_eq!(tcp.state.usable(), [connection], "what the peer prefers is the peer's business");
    assert_eq!(tcp.state.why(Carrier::Tcp), TransportReason::Configured);
}

#[test]
fn another_carrier_in_the_link_is_made_before_the_old_one_is_left() {
    let mut link = Link::auto();
    let quic = link.on_quic();
    link.tell(Event::Transport(Transport::Tcp));
    assert_eq!((link.dialled(Carrier::Tcp).len(), link.state.usable()), (1, vec![quic]));
    let tcp = link.stand(Carrier::Tcp);
    assert_eq!((link.state.usable(), link.left.clone()), (vec![tcp], vec![]));
    link.probes(tcp, Probes::Answered);
    assert_eq!(link.left, [quic]);
    link.tell(Event::Transport(Transport::Quic));
    link.wait(SECOND);
    let again = link.stand(Carrier::Quic);
    assert_eq!(link.left, [quic]);
    link.probes(again, Probes::Answered);
    assert_eq!((link.state.usable(), link.left.clone()), (vec![again], vec![quic, tcp]));
}

#[test]
fn the_side_whose_dials_are_not_kept_still_looks_for_a_better_way() {
    // Its UDP may get out where the other side's does not.
    let mut link = Link::new("z", Transport::Auto, 1);
    link.wait(3 * SECOND);
    let accepted = link.accept(Carrier::Tcp);
    let before = link.dialled(Carrier::Tcp).len();
    link.wait(30 * SECOND);
    assert_eq!(link.dialled(Carrier::Tcp).len(), before, "the peer's TCP connection is kept");
    assert!(link.dialled(Carrier::Quic).len() >= 3);
    assert_eq!(link.state.usable(), [accepted]);
    link.next_dial(Carrier::Quic);
    let quic = link.stand(Carrier::Quic);
    link.probes(quic, Probes::Answered);
    assert_eq!((link.state.usable(), link.left.clone()), (vec![quic], vec![]), "the peer leaves its own");
}

#[test]
fn what_was_accepted_serves_by_what_its_probes_say() {
    let mut link = Link::auto();
    link.tell(Event::Configured { dialable: false });
    let tcp = link.accept(Carrier::Tcp);
    assert_eq!((link.state.usable(), link.state.why(Carrier::Tcp)), (vec![tcp], TransportReason::PeerDialled));
    let quic = link.accept(Carrier::Quic);
    assert_eq!(link.state.usable(), [tcp]);
    link.probes(quic, Probes::Answered);
    assert_eq!(link.state.usable(), [quic]);
    link.probes(quic, Probes::Silent);
    assert_eq!(link.state.usable(), [tcp]);
    link.probes(tcp, Probes::Silent);
    assert_eq!(link.state.usable(), [tcp], "of two in doubt the one that is not UDP");
}

proptest! {
    #[test]
    fn whatever_happens_a_connection_that_stands_is_used_and_time_goes_on(
        steps in prop::collection::vec((0..8_u8, 0..6_usize, 0..4000_u64), 0..80),
        own in prop_oneof![Just("a"), Just("z")],
        workers in 1..3_usize,
    ) {
        let mut link = Link::new(own, Transport::Auto, workers);
        let mut stands: Vec<ConnectionId> = Vec::new();
        for (what, which, millis) in steps {
            let one = stands.get(which % stands.len().max(1)).copied();
            match (what, one) {
                (0 | 1, _) => {
                    let carrier = Carrier::ALL[usize::from(what)];
                    let open = |link: &Link| link.dials.iter().rev().any(|(_, _, over)| *over == carrier);
                    if open(&link) {
                        stands.push(link.stand(carrier));
                    }
                }
                (2 | 3, _) => stands.push(link.accept(Carrier::ALL[usize::from(what - 2)])),
                (4, Some(one)) => link.probes(one, Probes::Answered),
                (5, Some(one)) => link.probes(one, Probes::Silent),
                (6, Some(one)) => {
                    stands.retain(|other| *other != one);
                    link.close(one);
                }
                (7, _) => {
                    let transport = [Transport::Auto, Transport::Quic, Transport::Tcp][which % 3];
                    link.tell(Event::Transport(transport));
                }
                _ => {}
            }
            link.wait(Duration::from_millis(millis));
            let settled = link.state.known.values().any(|known| known.is_settled());
            prop_assert!(!settled || !link.state.usable().is_empty());
            for id in link.state.usable() {
                prop_assert!(link.state.known.contains_key(&id));
            }
        }
    }
}

#[test]
fn what_tcp_says_counts_where_quic_only_met_silence() {
    let mut link = Link::auto();
    link.wait(FALLBACK_AFTER);
    let (_, attempt, _) = *link.dials.last().unwrap();
    let trouble = Trouble { reason: "TrustBundleMismatch", message: "no".to_owned() };
    link.tell(Event::DialFailed { attempt, trouble: trouble.clone() });
    link.wait(2 * SECOND);
    assert_eq!(link.state.trouble(), Some(&trouble));
}
