use super::*;
use crate::metrics::tests::{cluster, entry, metrics, request, service};
use crate::outcome::{Outcome, Protocol, Recorder};

const SECOND: Duration = Duration::from_secs(1);
const MS: Duration = Duration::from_millis(1);

#[tokio::test(start_paused = true)]
async fn a_window_slides() {
    let (metrics, _registry) = metrics();
    let window = Window::new(metrics.clone());
    let web = entry(Direction::Outbound, Protocol::Http1, "west", "shop/web", 80);
    let start = Instant::now();
    assert_eq!(window.report(60 * SECOND, start), Stat::default());
    for second in 1..=100_u32 {
        // 100 requests a second; from the 51st second on all fail and take ten times as long.
        for n in 1..=100 {
            let slow = second > 50;
            let outcome = if slow { Outcome::LinkLost } else { Outcome::Ok };
            request(&metrics, &web, outcome, MS * n * if slow { 10 } else { 1 });
        }
        window.tick(start + SECOND * second);
    }
    let end = start + 100 * SECOND;
    let last10 = window.report(10 * SECOND, end);
    assert_eq!(last10.window_seconds, 10.0);
    let row = &last10.rows[0];
    assert_eq!((row.requests, row.failures, row.success_rate), (1000, 1000, Some(0.0)));
    assert_eq!(row.rps, 100.0);
    assert_eq!((row.read_bytes, row.write_bytes), (10_000, 20_000));
    assert_eq!((row.peer.as_ref(), row.service.as_ref()), (Some(&cluster("west")), Some(&service("shop/web"))));
    let near = |actual: Option<f64>, expected: f64| {
        let actual = actual.expect("requests");
        assert!((actual - expected).abs() <= expected * 0.05, "{actual} is not {expected} +-5 %");
    };
    near(row.p50_ms, 500.0);
    near(row.p95_ms, 950.0);
    near(row.p99_ms, 990.0);
    let whole = window.report(60 * SECOND, end);
    assert_eq!(whole.window_seconds, 60.0);
    assert_eq!((whole.rows[0].requests, whole.rows[0].failures), (6000, 5000));
}

#[tokio::test(start_paused = true)]
async fn what_is_idle_leaves_the_window() {
    let (metrics, _registry) = metrics();
    let window = Window::new(metrics.clone());
    let db = entry(Direction::Inbound, Protocol::Tcp, "west", "shop/db", 5432);
    let start = Instant::now();
    metrics.begin(&db);
    window.tick(start + SECOND);
    metrics.end(&db, Outcome::Drained, MS);
    window.tick(start + 2 * SECOND);
    let stat = window.report(60 * SECOND, start + 2 * SECOND);
    assert_eq!(stat.window_seconds, 2.0);
    assert_eq!((stat.rows[0].tcp_opens, stat.rows[0].tcp_closes, stat.rows[0].success_rate), (1, 1, None));
    assert_eq!(stat.rows[0].direction, StatDirection::Inbound);
    for second in 3..=62 {
        window.tick(start + SECOND * second);
    }
    assert!(window.report(60 * SECOND, start + 62 * SECOND).rows.is_empty());
}

#[tokio::test(start_paused = true)]
async fn what_was_counted_a_moment_ago_is_there_before_the_next_tick() {
    let (metrics, _registry) = metrics();
    let window = Window::new(metrics.clone());
    let web = entry(Direction::Outbound, Protocol::Http1, "west", "shop/web", 80);
    let start = Instant::now();
    window.tick(start + SECOND);
    request(&metrics, &web, Outcome::Ok, MS);
    let stat = window.report(10 * SECOND, start + SECOND + 250 * MS);
    assert_eq!((stat.window_seconds, stat.rows[0].requests), (1.25, 1));
    // Asking changes nothing: the slot is still open.
    window.tick(start + 2 * SECOND);
    assert_eq!(window.report(10 * SECOND, start + 2 * SECOND).rows[0].requests, 1);
}

#[tokio::test(start_paused = true)]
async fn late_ticks_keep_rates_right() {
    let (metrics, _registry) = metrics();
    let window = Window::new(metrics.clone());
    let web = entry(Direction::Outbound, Protocol::Http1, "west", "shop/web", 80);
    let start = Instant::now();
    for second in [2, 3, 7] {
        for _ in 0..100 {
            request(&metrics, &web, Outcome::Ok, MS);
        }
        window.tick(start + SECOND * second);
    }
    let stat = window.report(5 * SECOND, start + 7 * SECOND);
    assert_eq!((stat.window_seconds, stat.rows[0].requests, stat.rows[0].rps), (5.0, 200, 40.0));
}

#[tokio::test(start_paused = true)]
async fn runs_until_closed_and_answers() {
    let (metrics, registry) = metrics();
    let window = Window::new(metrics.clone());
    let admin = Admin::new(registry, Default::default());
    window.register(&admin);
    let (drain, signal) = linkspan_runtime::drain::Drain::new();
    let running = linkspan_runtime::task::spawn("stat_window", window.clone().run(signal));
    request(&metrics, &entry(Direction::Outbound, Protocol::Http1, "west", "shop/web", 80), Outcome::Ok, MS);
    // Time is paused: this moves the clock past the first tick, and waits for nothing.
    tokio::time::sleep(SECOND + MS).await;
    let now = Instant::now();
    let json = serde_json::to_value(window.report(SECOND, now)).expect("serialises");
    assert_eq!(json["rows"][0]["peer"], "west");
    assert_eq!(json["rows"][0]["service"], "shop/web");
    assert_eq!(json["rows"][0]["direction"], "outbound");
    assert_eq!(serde_json::from_value::<Stat>(json).expect("reads back"), window.report(SECOND, now));
    drop(drain);
    running.await.expect("no panic");
}

/// Percentiles of the sum are those of one gateway that had all requests, not a mean of percentiles.
#[tokio::test(start_paused = true)]
async fn the_figures_of_several_gateways_add_up() {
    let web = entry(Direction::Outbound, Protocol::Http1, "west", "shop/web", 80);
    let (all, _registry) = metrics();
    let (together, start) = (Window::new(all.clone()), Instant::now());
    let mut parts = Vec::new();
    for (gateway, requests) in [(1, 990), (100, 10)] {
        let (metrics, _registry) = metrics();
        let window = Window::new(metrics.clone());
        for _ in 0..requests {
            request(&metrics, &web, Outcome::Ok, MS * gateway);
            request(&all, &web, Outcome::Ok, MS * gateway);
        }
        window.tick(start + SECOND);
        parts.push(window.report(10 * SECOND, start + SECOND));
    }
    together.tick(start + SECOND);
    let whole = together.report(10 * SECOND, start + SECOND);
    assert_eq!(Stat::combined(parts.clone()), whole);
    assert!(whole.rows[0].p50_ms < Some(2.0), "{:?}", whole.rows[0]);
    assert_eq!(Stat::combined([]), Stat::default());
    // A gateway of an earlier version sends no buckets: no percentile is better than a wrong one.
    parts.iter_mut().for_each(|part| part.rows[0].latency_buckets.clear());
    let sum = Stat::combined(parts);
    assert_eq!((sum.rows[0].requests, sum.rows[0].p99_ms), (1000, None));
}
