use std::sync::Arc;

use super::*;
use crate::outcome::{Direction, Entry, Protocol, Recorder};

struct Nobody;

impl Recorder for Nobody {
    fn begin(&self, _: &Entry) {}
    fn progress(&self, _: &Entry, _: u64, _: u64) {}
    fn end(&self, _: &Entry, _: Outcome, _: Duration) {}
}

fn exchange(held: bool) -> Exchange {
    let record = Record::open(Arc::new(Nobody), Entry::new(Direction::Outbound, Protocol::Http1));
    Exchange::new(record, Switch::new(held))
}

#[tokio::test(start_paused = true)]
async fn movement_puts_the_idle_limit_off() {
    let exchange = exchange(false);
    let begun = Instant::now();
    let mover = async {
        for _ in 0..3 {
            tokio::time::sleep(IDLE - Duration::from_secs(1)).await;
            exchange.received(1);
        }
        std::future::pending::<()>().await;
    };
    let mut timer = IdleTimer::default();
    tokio::select! {
        () = mover => {}
        () = timer.expired(&exchange) => {}
    }
    let elapsed = begun.elapsed();
    let due = IDLE * 4 - Duration::from_secs(3);
    assert!((due - Duration::from_secs(1)..due + Duration::from_secs(1)).contains(&elapsed), "{elapsed:?}");
}

#[test]
fn the_switch_moves_forward_only() {
    let switch = Switch::new(true);
    assert_eq!(switch.wanted(), Wanted::NotYet);
    switch.done();
    assert_eq!(switch.wanted(), Wanted::NotYet, "not read, not done");
    switch.open();
    assert_eq!(switch.wanted(), Wanted::Now);
    switch.done();
    switch.stop();
    assert_eq!(switch.wanted(), Wanted::Done, "what is read cannot be stopped");
    let switch = Switch::new(false);
    switch.stop();
    switch.open();
    switch.done();
    assert_eq!(switch.wanted(), Wanted::NoMore);
}

#[tokio::test]
async fn who_waits_for_the_switch_is_woken() {
    let exchange = Arc::new(exchange(true));
    let waiting = Arc::clone(&exchange);
    let waiter = tokio::spawn(async move {
        std::future::poll_fn(|cx| match waiting.request.poll_wanted(cx) {
            Wanted::NotYet => Poll::Pending,
            wanted => Poll::Ready(wanted),
        })
        .await
    });
    tokio::task::yield_now().await;
    exchange.request.open();
    assert_eq!(waiter.await.expect("no panic"), Wanted::Now);
}
