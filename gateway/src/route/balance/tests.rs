use proptest::prelude::*;

use super::*;

/// How often each index comes up in `picks` picks.
fn counts(weights: &[u64], picks: usize, phase: u64) -> Vec<usize> {
    let sequence = Sequence::starting_at(phase);
    let total = weights.iter().sum();
    let mut counts = vec![0; weights.len()];
    for _ in 0..picks {
        let index = choose(sequence.advance(), total, weights.iter().copied()).expect("some weight");
        counts[index] += 1;
    }
    counts
}

/// The 99.9 % point of chi-square with `k` degrees of freedom (Wilson and Hilferty).
fn chi_square_limit(k: f64) -> f64 {
    let term = 1.0 - 2.0 / (9.0 * k) + 3.0902 * (2.0 / (9.0 * k)).sqrt();
    k * term.powi(3)
}

#[test]
fn usual_splits_are_within_the_binomial_bound() {
    const PICKS: usize = 10_000;
    for weights in [vec![90, 10], vec![99, 1], vec![50, 50], vec![33, 33, 34], vec![1, 1_000_000], vec![7]] {
        for phase in [0, 1, u64::MAX, 0x1234_5678_9abc_def0] {
            let total: u64 = weights.iter().sum();
            for (count, weight) in counts(&weights, PICKS, phase).into_iter().zip(&weights) {
                let share = *weight as f64 / total as f64;
                let expected = share * PICKS as f64;
                // 99.9 %, two-sided: 3.29 standard deviations; at least one for shares far below 1 in PICKS.
                let bound = (3.29 * (expected * (1.0 - share)).sqrt()).max(1.0);
                assert!((count as f64 - expected).abs() <= bound, "{weights:?} from {phase}: {count} of {expected}");
            }
        }
    }
}

#[test]
fn far_better_than_dice() {
    // Off by a handful whatever the number of picks, where dice would be off by its square root.
    for picks in [100, 1_000, 10_000, 100_000] {
        let counts = counts(&[99, 1], picks, 0xdead_beef);
        assert!((counts[1] as f64 - picks as f64 / 100.0).abs() <= 2.0, "{picks}: {counts:?}");
    }
}

#[test]
fn no_run_starves_anybody() {
    // Between two picks of a cluster with a share of one tenth lie never more than 17 others (three-gap theorem), where
    // dice leave gaps of 60 and more in as many picks.
    let sequence = Sequence::starting_at(42);
    let mut gap = 0;
    for _ in 0..100_000 {
        if choose(sequence.advance(), 100, [90, 10]) == Some(1) {
            gap = 0;
        } else {
            gap += 1;
            assert!(gap <= 17, "gap of {gap}");
        }
    }
}

#[test]
fn zero_is_exactly_zero() {
    let counts = counts(&[100, 0, 3, 0], 100_000, 7);
    assert_eq!((counts[1], counts[3]), (0, 0));
    assert_eq!(choose(u64::MAX, 0, [0, 0]), None);
    assert_eq!(choose(0, 0, []), None);
}

#[test]
fn weights_that_shrink_between_two_looks_still_give_a_usable_index() {
    // The caller summed 100, then the first cluster's link died.
    assert_eq!(choose(u64::MAX, 100, [0, 10]), Some(1));
    assert_eq!(choose(0, 100, [0, 10]), Some(1));
    assert_eq!(choose(u64::MAX, 100, [0, 0]), None);
}

#[test]
fn many_threads_share_one_exact_sequence() {
    let sequence = Sequence::starting_at(3);
    let hits: usize = std::thread::scope(|scope| {
        let worker = || (0..25_000).filter(|_| choose(sequence.advance(), 100, [10, 90]) == Some(0)).count();
        let handles: Vec<_> = (0..4).map(|_| scope.spawn(worker)).collect();
        handles.into_iter().map(|handle| handle.join().expect("no panic")).sum()
    });
    assert!((9_990..=10_010).contains(&hits), "{hits}");
}

proptest! {
    #[test]
    fn any_weights_pass_chi_square(weights in proptest::collection::vec(0_u64..=1_000, 2..8), phase: u64) {
        const PICKS: usize = 20_000;
        let total: u64 = weights.iter().sum();
        prop_assume!(total > 0);
        let counts = counts(&weights, PICKS, phase);
        let mut chi_square = 0.0;
        let mut freedom = -1.0;
        for (count, weight) in counts.into_iter().zip(&weights) {
            if *weight == 0 {
                prop_assert_eq!(count, 0);
                continue;
            }
            let expected = *weight as f64 / total as f64 * PICKS as f64;
            if expected >= 5.0 {
                chi_square += (count as f64 - expected).powi(2) / expected;
                freedom += 1.0;
            }
        }
        prop_assert!(freedom < 1.0 || chi_square <= chi_square_limit(freedom), "{} > limit", chi_square);
    }

    #[test]
    fn the_choice_is_in_range_and_usable(weights in proptest::collection::vec(0_u64..=u64::from(u32::MAX), 0..20), point: u64) {
        let total: u64 = weights.iter().sum();
        match choose(point, total, weights.iter().copied()) {
            Some(index) => prop_assert!(weights[index] > 0),
            None => prop_assert_eq!(total, 0),
        }
    }
}
