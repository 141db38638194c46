//! Faults by their number in the fault matrix, each in a few worlds; then worlds in which anything happens.

use std::time::Duration;

use rand::Rng;
use rand::seq::SliceRandom;

use super::fault::Fault;
use super::flow::Course;
use super::*;
use crate::link::testkit::network::Conditions;

/// Worlds in which a fault of the matrix is tried.
const FEW: Range<u64> = 0..4;

/// Seeds of the ordinary run; `LINKSPAN_SEEDS` says how many else.
const SEEDS: u64 = 20;

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

/// Nothing but what is said on top of it.
const CALM: Conditions = Conditions::calm(Duration::ZERO);

fn rough(direction: (usize, usize), both: bool, rough: Conditions) -> Fault {
    Fault::Rough { direction, both, rough }
}

/// Some time before the fault, so that it comes at any moment between two probes.
async fn settle(world: &mut World) {
    let time = world.random.random_range(500..2500_u32) * MS;
    world.pass(time).await;
}

/// Long streams over a fault that must not hurt them.
async fn tunnels_over(world: &mut World, fault: Fault, lasts: Duration) {
    settle(world).await;
    let tunnels = world.tunnels(20, lasts + 3 * SECOND);
    world.pass(SECOND).await;
    world.suffer(&fault, lasts).await;
    world.as_planned(&tunnels, 10 * SECOND).await;
}

#[test]
fn f_01_a_killed_gateway_that_starts_again_carries_traffic_in_two_seconds() {
    play_all(FEW, Shape::pair, async |world| {
        for gateway in [0, 1] {
            settle(world).await;
            world.kill(gateway).await;
            world.pass(100 * MS).await;
            world.start(gateway).await;
            if world.back(2 * SECOND).await.is_none() {
                world.book.wrong("not back within 2 s (F-01)");
            }
        }
    });
}

#[test]
fn f_02_a_killed_gateway_is_withdrawn_in_four_seconds_and_hurts_nobody_else() {
    let three = |random: &mut SmallRng| Shape {
        gateways: 3,
        dials: vec![(0, 1, true, false), (1, 2, false, true), (0, 2, true, true)],
        ..Shape::drawn(random)
    };
    play_all(FEW, three, async |world| {
        world.load(true);
        settle(world).await;
        let began = world.book.now();
        world.suffer(&Fault::Kill(0), 6 * SECOND).await;
        let hurt = [(1, 2), (2, 1)].map(|direction| world.book.hurt(direction, began)).concat();
        if !hurt.is_empty() {
            world.book.wrong(&format!("streams of others were hurt: {hurt:?}"));
        }
    });
}

#[test]
fn f_03_a_gateway_that_ends_loses_no_stream_and_does_so_in_twelve_seconds() {
    play_all(FEW, Shape::pair, async |world| {
        world.shape.every = 50 * MS;
        world.load(true);
        for gateway in [0, 1] {
            settle(world).await;
            world.suffer(&Fault::End(gateway), SECOND).await;
        }
    });
}

#[test]
fn f_04_a_link_that_carries_nothing_is_withdrawn_in_four_seconds_and_used_three_after_it_heals() {
    play_all(FEW, Shape::drawn, async |world| {
        world.load(true);
        for lasts in [4 * SECOND, 9 * SECOND] {
            settle(world).await;
            world.suffer(&Fault::Blackout((0, 1)), lasts).await;
        }
    });
}

#[test]
fn f_05_a_blackout_of_two_seconds_withdraws_nothing_and_loses_nothing() {
    play_all(FEW, Shape::drawn, async |world| {
        tunnels_over(world, Fault::Blackout((0, 1)), 2 * SECOND).await;
    });
}

#[test]
fn f_06_both_ends_agree_in_five_seconds_that_one_direction_is_dead() {
    play_all(FEW, Shape::drawn, async |world| {
        world.load(true);
        for direction in [(0, 1), (1, 0)] {
            settle(world).await;
            world.suffer(&Fault::OneWay(direction), 8 * SECOND).await;
        }
    });
}

#[test]
fn f_07_a_tenth_lost_one_way_withdraws_nothing_and_loses_nothing() {
    play_all(FEW, Shape::drawn, async |world| {
        for direction in [(0, 1), (1, 0)] {
            let fault = rough(direction, false, Conditions { loss: 0.1, ..CALM });
            tunnels_over(world, fault, 20 * SECOND).await;
        }
    });
}

#[test]
fn f_07_with_three_tenths_lost_both_ways_a_handshake_succeeds_in_ten_seconds() {
    play_all(0..20, Shape::pair, async |world| {
        world.kill(0).await;
        let fault = rough((0, 1), true, Conditions { loss: 0.3, ..CALM });
        world.strike(&fault).await;
        world.pass(6 * SECOND).await;
        world.start(0).await;
        let began = world.book.now();
        while world.connections(0, 1) == 0 {
            world.pass(world::TICK).await;
            if world.book.now() - began > 10 * SECOND {
                world.book.wrong("no handshake within 10 s (F-07)");
                break;
            }
        }
        world.heal(&fault).await;
    });
}

#[test]
fn f_08_bursts_of_losses_and_jitter_withdraw_nothing() {
    play_all(FEW, Shape::pair, async |world| {
        world.load(true);
        settle(world).await;
        let bursts = Conditions { burst: 0.01, calm: 0.2, jitter: 100 * MS, ..CALM };
        world.suffer(&rough((0, 1), true, bursts), 300 * SECOND).await;
    });
}

#[test]
fn f_09_packets_late_and_twice_withdraw_nothing_and_lose_nothing() {
    play_all(FEW, Shape::drawn, async |world| {
        let late = Conditions { reorder: 0.25, late: 50 * MS, duplicate: 0.1, ..CALM };
        tunnels_over(world, rough((0, 1), true, late), 20 * SECOND).await;
    });
}

#[test]
fn f_10_a_nat_that_forgets_costs_no_stream() {
    play_all(FEW, Shape::pair, async |world| {
        for moves in [false, true] {
            let fault = Fault::Rebind { gateway: 0, every: 5 * SECOND, moves };
            tunnels_over(world, fault, 20 * SECOND).await;
        }
    });
}

#[test]
fn f_11_a_path_that_gets_narrower_stalls_for_three_seconds_at_most() {
    play_all(FEW, Shape::pair, async |world| {
        world.shape.every = SECOND;
        let bulk = || (Course::whole(3_000_000), Course::whole(8));
        // The first finds what the path carries.
        let (question, answer) = bulk();
        let first = world.stream(0, 1, question, answer);
        let usual = world.as_planned(&[first], 60 * SECOND).await;
        let (question, answer) = bulk();
        let second = world.stream(0, 1, question, answer);
        world.pass(usual / 3).await;
        let fault = rough((0, 1), true, Conditions { largest: 1252, ..CALM });
        world.strike(&fault).await;
        let left = world.as_planned(&[second], 60 * SECOND).await;
        // The rest of it, in packets that hold less by a seventh, and from a congestion window that losses have made small.
        let most = usual * 2 + 3 * SECOND;
        if left > most {
            world.book.wrong(&format!("the rest took {left:?}, and all of it {usual:?} before (F-11)"));
        }
        world.heal(&fault).await;
    });
}

#[test]
fn f_22_clocks_that_are_wrong_cost_no_stream_and_ten_minutes_no_handshake() {
    play_all(FEW, Shape::pair, async |world| {
        for ahead in [600, -600, 3600, -3600] {
            tunnels_over(world, Fault::Clock { gateway: 0, ahead }, 5 * SECOND).await;
        }
        for ahead in [600, -600] {
            let fault = Fault::Clock { gateway: 1, ahead };
            world.strike(&fault).await;
            for gateway in [0, 1] {
                world.suffer(&Fault::Kill(gateway), SECOND).await;
            }
            world.heal(&fault).await;
        }
    });
}

#[test]
fn f_23_a_link_whose_certificate_ends_is_closed_at_once_and_comes_back_with_a_good_one() {
    play_all(FEW, Shape::pair, async |world| {
        for gateway in [0, 1] {
            settle(world).await;
            let ahead = (world::LIFE + 60 * SECOND).as_secs().cast_signed();
            let fault = Fault::Clock { gateway, ahead };
            world.strike(&fault).await;
            world.pass(5 * SECOND).await;
            if world.is_alive(0, 1) || world.is_alive(1, 0) {
                world.book.wrong("a link lives on although a certificate has ended (F-23)");
            }
            world.heal(&fault).await;
            if world.back(world::BACK).await.is_none() {
                world.book.wrong("not back within 5 s of good certificates (F-23)");
            }
        }
    });
}

#[test]
fn f_24_a_new_certificate_costs_no_stream() {
    play_all(FEW, Shape::drawn, async |world| {
        for gateway in [0, 1] {
            tunnels_over(world, Fault::Certify(gateway), 5 * SECOND).await;
        }
    });
}

#[test]
fn f_40_of_simultaneous_dials_one_connection_is_left_in_two_seconds_and_no_stream_is_lost() {
    let both = |random: &mut SmallRng| Shape { dials: vec![(0, 1, true, true)], ..Shape::pair(random) };
    play_all(FEW, both, async |world| {
        // From the first moment on: `begin` returns when both ends are alive.
        let tunnels = world.tunnels(20, 4 * SECOND);
        world.pass(2 * SECOND).await;
        let connections = (world.connections(0, 1), world.connections(1, 0));
        if connections != (1, 1) {
            world.book.wrong(&format!("{connections:?} connections after 2 s (F-40)"));
        }
        world.as_planned(&tunnels, 10 * SECOND).await;
    });
}

#[test]
fn f_46_links_stopped_one_by_one_and_healed_in_any_order_are_all_back() {
    let three = |random: &mut SmallRng| Shape {
        gateways: 3,
        dials: vec![(0, 1, true, true), (0, 2, true, false), (1, 2, false, true)],
        ..Shape::drawn(random)
    };
    play_all(FEW, three, async |world| {
        world.load(true);
        for _ in 0..5 {
            let mut faults: Vec<_> = [(0, 1), (0, 2), (1, 2)].map(Fault::Blackout).into();
            faults.shuffle(&mut world.random);
            for fault in &faults {
                let time = world.random.random_range(0..3000_u32) * MS;
                world.pass(time).await;
                world.strike(fault).await;
            }
            faults.shuffle(&mut world.random);
            for fault in &faults {
                let time = world.random.random_range(0..3000_u32) * MS;
                world.pass(time).await;
                world.heal(fault).await;
            }
            if world.back(world::BACK).await.is_none() {
                world.book.wrong("not all links are back (F-46)");
            }
        }
    });
}

#[test]
fn machines_that_sleep_for_a_while_are_back_in_moments() {
    play_all(FEW, Shape::drawn, async |world| {
        world.load(true);
        for jump in [500 * MS, 1500 * MS, 4900 * MS, 30 * SECOND] {
            settle(world).await;
            world.book.note(&format!("all sleep for {jump:?}"));
            tokio::time::advance(jump).await;
            // An end of a connection that the other has given up is found out like any that carries nothing (F-04).
            world.pass(4 * SECOND).await;
            if world.back(world::BACK).await.is_none() {
                world.book.wrong(&format!("not back after {jump:?} asleep"));
            }
        }
    });
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    let scenario = async |world: &mut World| {
        world.load(true);
        world.endure(2).await;
    };
    for seed in 0..3 {
        let (first, second) = (play(seed, Shape::drawn, &scenario), play(seed, Shape::drawn, &scenario));
        for (one, other) in first.trace.iter().zip(&second.trace) {
            assert_eq!(one, other, "seed {seed}");
        }
        assert_eq!(first, second, "seed {seed}");
    }
    assert_ne!(play(0, Shape::drawn, &scenario).trace, play(1, Shape::drawn, &scenario).trace);
}

#[test]
fn worlds_hold_under_any_fault() {
    let seeds = number("LINKSPAN_SEEDS").unwrap_or(SEEDS);
    play_all(0..seeds, Shape::drawn, async |world| {
        world.load(true);
        settle(world).await;
        world.endure(6).await;
    });
}
