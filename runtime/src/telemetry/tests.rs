use std::sync::{Arc, Mutex};

use tracing_subscriber::layer::SubscriberExt;

use super::*;

const NASTY: &str = "evil\u{1b}[2J\r\nINFO forged line\u{202e}\u{2066}\u{85}";

/// What one event looks like after the writer, by a subscriber of this test only.
fn logged(format: Format, colours: bool, log: impl FnOnce()) -> String {
    let (sender, receiver) = mpsc::sync_channel(16);
    let lost: Arc<AtomicU64> = Arc::default();
    let writer = Writer { sender, lost: Arc::clone(&lost), format, colours };
    let layer = tracing_subscriber::fmt::layer().with_ansi(colours);
    match format {
        Format::Text => {
            tracing::subscriber::with_default(tracing_subscriber::registry().with(layer.with_writer(writer)), log);
        }
        Format::Json => {
            let layer = layer.json().flatten_event(true).with_writer(writer);
            tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), log);
        }
    }
    let sink = Sink::default();
    write_lines(&receiver, &lost, sink.clone(), format);
    let bytes = sink.0.lock().expect("no panic").clone();
    String::from_utf8(bytes).expect("UTF-8")
}

#[derive(Clone, Default)]
struct Sink(Arc<Mutex<Vec<u8>>>);

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().expect("no panic").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_value_cannot_forge_a_line() {
    for format in [Format::Text, Format::Json] {
        let out = logged(format, false, || {
            tracing::info!(name = %NASTY, quoted = NASTY, "{NASTY}");
        });
        assert_eq!(out.matches('\n').count(), 1, "{out:?}");
        assert!(!out.trim_end_matches('\n').chars().any(text::is_unsafe), "{out:?}");
        if format == Format::Json {
            let value: serde_json::Value = serde_json::from_str(&out).expect("JSON");
            assert!(value["message"].as_str().expect("text").starts_with("evil"));
        }
    }
}

#[test]
fn colours_are_ours_only() {
    let out = logged(Format::Text, true, || tracing::info!(name = %NASTY, "hello"));
    assert!(out.contains("\u{1b}["), "the level is coloured: {out:?}");
    let without_colours: String = {
        let mut kept = String::new();
        for piece in out.trim_end().split('\u{1b}') {
            kept.push_str(piece.split_once('m').filter(|(c, _)| c.starts_with('[')).map_or(piece, |(_, rest)| rest));
        }
        kept
    };
    assert!(!without_colours.chars().any(text::is_unsafe), "{without_colours:?}");
    assert!(!out.contains("\u{1b}[2J"));
}

#[test]
fn long_lines_are_cut_and_json_stays_json() {
    let long = "x".repeat(1 << 20);
    let out = logged(Format::Text, false, || tracing::info!(long, "hello"));
    assert!(out.len() < LINE_MAX + 64);
    let out = logged(Format::Json, false, || tracing::info!(long, "hello"));
    assert!(out.len() < LINE_MAX);
    let value: serde_json::Value = serde_json::from_str(&out).expect("JSON");
    assert_eq!(value["message"], "log line too long");
}

#[test]
fn a_full_queue_drops_and_says_so() {
    let (sender, receiver) = mpsc::sync_channel(1);
    let lost: Arc<AtomicU64> = Arc::default();
    let writer = Writer { sender, lost: Arc::clone(&lost), format: Format::Text, colours: false };
    let before = dropped_lines();
    for _ in 0..3 {
        (&writer).write_all(b"line\n").expect("never fails");
    }
    drop(writer);
    assert!(dropped_lines() >= before + 2);
    let sink = Sink::default();
    write_lines(&receiver, &lost, sink.clone(), Format::Text);
    let out = String::from_utf8(sink.0.lock().expect("no panic").clone()).expect("UTF-8");
    assert!(out.starts_with("line\n"));
    assert!(out.ends_with("lines=2\n"), "{out}");
}

#[test]
fn a_full_descriptor_is_tried_again() {
    struct Stubborn(u8, Vec<u8>);
    impl Write for Stubborn {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0 += 1;
            match self.0 {
                1 => Err(io::ErrorKind::WouldBlock.into()),
                2 => Err(io::ErrorKind::Interrupted.into()),
                _ => {
                    self.1.extend_from_slice(&bytes[..1]);
                    Ok(1)
                }
            }
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let mut out = Stubborn(0, Vec::new());
    write_all_patiently(&mut out, b"abc");
    assert_eq!(out.1, b"abc");
}

#[test]
fn formats_have_names() {
    assert_eq!("json".parse::<Format>().expect("known"), Format::Json);
    assert!("xml".parse::<Format>().is_err());
}
