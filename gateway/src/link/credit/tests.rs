use std::task::Waker;

use futures::FutureExt;

use super::*;

const RTT: Duration = Duration::from_millis(50);

fn pair() -> (Arc<Flow>, Allowance, Arc<Flow>, Window) {
    let (near, far) = (Flow::new(|| RTT), Flow::new(|| RTT));
    let (allowance, window) = (Allowance::new(Arc::clone(&near), 4), Window::new(Arc::clone(&far), 4));
    (near, allowance, far, window)
}

/// Takes what the receiver owes to the sender; says how far that goes.
fn tell(from: &Flow, to: &Flow) -> Option<u64> {
    let (stream, limit) = from.next().now_or_never()?;
    to.granted(stream, limit);
    Some(limit)
}

/// Sends as much of this as may be sent.
fn take(allowance: &mut Allowance, wanted: usize) -> usize {
    let room = allowance.room(wanted);
    allowance.sent(room);
    room
}

fn may_go_on(allowance: &Allowance) -> bool {
    allowance.poll_more(&Context::from_waker(Waker::noop())).is_ready()
}

#[tokio::test(start_paused = true)]
async fn a_reader_who_does_not_read_costs_no_more_than_the_first_window() {
    let (near, mut allowance, ..) = pair();
    let mut sent = 0;
    loop {
        match take(&mut allowance, 64 * 1024) {
            0 => break,
            taken => sent += taken as u64,
        }
    }
    assert_eq!(sent, FIRST);
    assert!(!may_go_on(&allowance));
    near.granted(4, FIRST + 10);
    assert!(may_go_on(&allowance));
    assert_eq!((take(&mut allowance, 64), take(&mut allowance, 64)), (10, 0));
    near.granted(4, FIRST);
    assert!(!may_go_on(&allowance), "what was granted is not taken back, and no more than that");
}

#[tokio::test(start_paused = true)]
async fn a_short_stream_neither_registers_nor_grants() {
    let (near, mut allowance, far, mut window) = pair();
    let less_than_half = usize::try_from(FIRST / 2).unwrap() - 1;
    assert_eq!(take(&mut allowance, less_than_half), less_than_half);
    window.read(less_than_half);
    assert_eq!((near.registered(), tell(&far, &near)), (0, None));
}

#[tokio::test(start_paused = true)]
async fn the_window_of_a_reader_who_keeps_up_grows_to_its_bound() {
    let (near, mut allowance, far, mut window) = pair();
    let mut most = 0;
    for _ in 0..10_000 {
        let taken = take(&mut allowance, 64 * 1024);
        assert!(taken > 0, "never held up");
        window.read(taken);
        if let Some(limit) = tell(&far, &near) {
            most = most.max(limit - window.read);
        }
    }
    assert_eq!(most, MOST);
}

/// Whatever the pieces are: the first credit must find somebody who listens.
#[tokio::test(start_paused = true)]
async fn pieces_of_any_size_go_on_beyond_the_first_window() {
    for piece in [1, 1000, 1 << 15, 1 << 16, 1 << 17, (1 << 17) + 1, 1 << 18, 1 << 20] {
        let (near, mut allowance, far, mut window) = pair();
        let mut moved = 0;
        while moved < 4 * FIRST {
            let taken = take(&mut allowance, piece);
            assert!(taken > 0, "pieces of {piece}: held up after {moved}");
            window.read(taken);
            tell(&far, &near);
            moved += taken as u64;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn the_window_of_a_slow_reader_stays_small() {
    let (near, mut allowance, far, mut window) = pair();
    for _ in 0..1000 {
        let taken = take(&mut allowance, 16 * 1024);
        window.read(taken);
        if let Some(limit) = tell(&far, &near) {
            assert!(limit - window.read <= 2 * FIRST);
        }
        tokio::time::advance(RTT).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_is_over_is_forgotten_and_late_credits_are_nothing() {
    let (near, mut allowance, ..) = pair();
    take(&mut allowance, 1 << 20);
    assert_eq!(near.registered(), 1);
    drop(allowance);
    assert_eq!(near.registered(), 0);
    near.granted(4, 1 << 40);
    assert_eq!(near.registered(), 0);
}

#[tokio::test(start_paused = true)]
async fn credits_of_one_stream_are_told_once_and_the_newest_counts() {
    let (_, _, far, mut window) = pair();
    for _ in 0..4 {
        window.read(usize::try_from(FIRST).unwrap());
    }
    let newest = far.next().now_or_never();
    assert_eq!(newest, Some((4, window.granted)));
    assert_eq!(far.next().now_or_never(), None);
}

#[tokio::test(start_paused = true)]
async fn whoever_waits_for_credit_is_woken() {
    let (near, mut allowance, ..) = pair();
    take(&mut allowance, 1 << 20);
    let waiting = tokio::spawn(async move { std::future::poll_fn(|cx| allowance.poll_more(cx)).await });
    tokio::task::yield_now().await;
    near.granted(4, FIRST + 1);
    waiting.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn s_29_nothing_more_is_read_while_much_waits_for_the_window() {
    let (near, mut allowance, ..) = pair();
    let other = Allowance::new(Arc::clone(&near), 8);
    let held = allowance.hold(HELD - 1);
    assert!(other.is_eased());
    let last = allowance.hold(1);
    assert!(!other.is_eased());
    let waiting = tokio::spawn(async move { other.eased().await });
    tokio::task::yield_now().await;
    assert!(!waiting.is_finished());
    drop(last);
    waiting.await.unwrap();
    drop(held);
    assert_eq!(near.held.load(Ordering::Acquire), 0);
    assert_eq!(take(&mut allowance, 1), 1);
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_is_over_is_owed_nothing() {
    let (near, _, far, mut window) = pair();
    window.read(usize::try_from(FIRST).unwrap());
    drop(window);
    assert_eq!(tell(&far, &near), None);
}
