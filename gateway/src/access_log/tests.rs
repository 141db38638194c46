use std::io::Write;
use std::sync::{Arc, Mutex};

use linkspan_proto::identity::{Assurance, Source, SpiffeId, TrustDomain};

use super::*;
use crate::metrics::tests::entry;
use crate::outcome::{Direction, Protocol};

#[derive(Clone, Default)]
struct Sink(Arc<Mutex<Vec<u8>>>);

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("no panic").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn logged(entry: &Entry, outcome: Outcome) -> serde_json::Value {
    let sink = Sink::default();
    let writer = sink.clone();
    let subscriber = tracing_subscriber::fmt().json().flatten_event(true).with_writer(move || writer.clone()).finish();
    tracing::subscriber::with_default(subscriber, || {
        AccessLog.end(entry, outcome, Duration::from_micros(1_500));
    });
    let text = String::from_utf8(sink.0.lock().expect("no panic").clone()).expect("UTF-8");
    assert_eq!(text.matches('\n').count(), 1, "one line: {text}");
    let line: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    // A parser keeps one of two fields of the same name in silence; not every reader of the log does.
    for name in line.as_object().expect("an object").keys() {
        assert_eq!(text.matches(&format!("\"{name}\":")).count(), 1, "{name} once in {text}");
    }
    line
}

#[test]
fn a_request_is_one_line() {
    let mut web = entry(Direction::Outbound, Protocol::Http1, "west", "shop/web", 80);
    let domain = TrustDomain::parse("east.linkspan.internal").expect("a domain");
    web.source = Some(Source::new(SpiffeId::gateway(&domain), Assurance::Network));
    web.mirror = Some("web-west.shop.svc.cluster.local".into());
    web.client = Some("10.0.0.7:4711".parse().expect("an address"));
    web.method = Some(http::Method::GET);
    web.status = Some(200);
    web.traceparent = Some("00-ab\u{1b}[2J\n\u{202e}".to_owned());
    let line = logged(&web, Outcome::Ok);
    assert_eq!(line["target"], "access");
    assert_eq!(line["message"], "request");
    assert_eq!(line["direction"], "outbound");
    assert_eq!(line["peer"], "west");
    assert_eq!(line["service"], "shop/web");
    assert_eq!(line["port"], 80);
    assert_eq!(line["source"], "spiffe://east.linkspan.internal/ns/linkspan/sa/gateway");
    assert_eq!(line["assurance"], "network");
    assert_eq!(line["client"], "10.0.0.7:4711");
    assert_eq!(line["method"], "GET");
    assert_eq!(line["status"], 200);
    assert_eq!(line["duration_ms"], 1.5);
    assert_eq!(line["outcome"], "ok");
    assert_eq!(line["traceparent"], "00-ab\\u001b[2J\\u000a\\u202e");
    assert!(line.get("backend").is_none() && line.get("origin").is_none(), "what is not known is left out: {line}");
}

#[test]
fn a_connection_says_who_ended_it() {
    let mut db = entry(Direction::Inbound, Protocol::Tcp, "west", "shop/db", 5432);
    db.note = Some("link: lost".to_owned());
    let line = logged(&db, Outcome::LinkLost);
    assert_eq!(line["note"], "link: lost");
    assert_eq!(line["message"], "connection");
    assert_eq!(line["outcome"], "link_lost");
    assert_eq!(line["origin"], "link");
}
