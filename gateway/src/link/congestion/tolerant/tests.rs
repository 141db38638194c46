use super::*;

const MTU: u64 = 1200;

/// A path of this round trip on which `packets` packets arrived in the round before.
fn path(rtt: u64, packets: u64) -> (Losses, Instant) {
    let start = Instant::now();
    let mut losses = Losses::new(start, 1200);
    let rtt = Duration::from_millis(rtt);
    for _ in 0..packets {
        losses.acknowledged(start + rtt, start, MTU, rtt);
    }
    (losses, start + rtt)
}

#[test]
fn a_loss_on_a_long_path_without_a_queue_is_stray() {
    let (mut losses, _) = path(50, 1000);
    assert!((0..20).all(|_| losses.is_stray(MTU, LONG)), "up to two of a hundred");
    assert!(!losses.is_stray(MTU, LONG));
}

#[test]
fn a_few_losses_in_a_small_window_say_nothing() {
    let (mut losses, _) = path(50, 10);
    assert!((0..FEW).all(|_| losses.is_stray(MTU, LONG)));
    assert!(!losses.is_stray(MTU, LONG));
}

#[test]
fn a_loss_behind_a_queue_is_congestion() {
    let (mut losses, now) = path(50, 1000);
    losses.acknowledged(now, now, MTU, Duration::from_millis(62));
    assert!(losses.is_stray(MTU, LONG));
    losses.acknowledged(now, now, MTU, Duration::from_millis(63));
    assert!(!losses.is_stray(MTU, LONG));
    losses.acknowledged(now, now, MTU, Duration::from_millis(55));
    assert!(losses.is_stray(MTU, LONG), "the queue is gone");
}

#[test]
fn on_a_short_path_every_loss_is_congestion() {
    let (mut losses, _) = path(4, 1000);
    assert!(!losses.is_stray(MTU, LONG));
    let (mut unknown, _) = path(50, 0);
    assert!(!unknown.is_stray(MTU, LONG), "nothing is known of the path yet");
}

#[test]
fn losses_are_forgotten_after_two_rounds() {
    let (mut losses, now) = path(50, 1000);
    assert!(!losses.is_stray(100 * MTU, LONG));
    let rtt = Duration::from_millis(50);
    let mut sent = now;
    for _ in 0..2 {
        let arrived = sent + rtt;
        for _ in 0..1000 {
            losses.acknowledged(arrived, sent + Duration::from_micros(1), MTU, rtt);
        }
        sent = arrived;
    }
    assert!(losses.is_stray(MTU, LONG));
}

#[test]
fn a_link_may_say_from_which_round_trip_on_losses_are_told_apart() {
    let tolerance = Tolerance::default();
    assert_eq!(tolerance.long(), LONG);
    for (congestion, short, long) in
        [(Congestion::Lan, false, false), (Congestion::Wan, true, true), (Congestion::Auto, false, true)]
    {
        tolerance.set(congestion);
        let is_stray = |rtt| path(rtt, 1000).0.is_stray(MTU, tolerance.long());
        assert_eq!((is_stray(1), is_stray(50)), (short, long), "{congestion:?}");
    }
}
