//! A panic's backtrace as one field of a log line.
//!
//! The standard library prints two lines a frame and some fifty frames, most of them of the executor and of the panic
//! itself: more than a log line may hold, and what matters would be cut off. Here each frame is `number: function (file:line)`, our own
//! come first, and the numbers tell the order.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::fmt::Write;

use crate::text;

/// Most bytes of a backtrace. Four of them fit into a log line, so that the message and the location are never cut.
const MAX: usize = 4 * 1024;

/// Most bytes of one frame: names of generic functions may be kilobytes long.
const FRAME_MAX: usize = 256;

/// What our crates' names begin with.
const OWN: &str = "linkspan_";

/// Frames of the panic itself: they say nothing that the message does not.
const PANIC: [&str; 6] = [
    "std::backtrace",
    "std::panicking",
    "core::panicking",
    "__rustc::rust_begin_unwind",
    "rust_begin_unwind",
    "rust_panic",
];

/// The backtrace of this thread, if `RUST_BACKTRACE` asks for one.
pub(super) fn capture() -> Option<String> {
    let backtrace = Backtrace::capture();
    (backtrace.status() == BacktraceStatus::Captured).then(|| shorten(&backtrace.to_string()))
}

/// One frame, as far as it is printed.
struct Frame<'a> {
    number: &'a str,
    function: &'a str,
    /// The last two parts of the path, with line and column.
    place: Option<&'a str>,
}

fn shorten(backtrace: &str) -> String {
    let mut frames: Vec<Frame<'_>> = Vec::new();
    for line in backtrace.lines().map(str::trim) {
        if let Some(place) = line.strip_prefix("at ") {
            if let Some(frame) = frames.last_mut() {
                frame.place = Some(file(place));
            }
        } else if let Some(frame) = frame(line) {
            frames.push(frame);
        }
    }
    frames.retain(|frame| !is_panics(frame.function));
    // Stable: within each half the order stays.
    frames.sort_by_key(|frame| !is_own(frame.function));
    let mut shown = String::new();
    for (index, frame) in frames.iter().enumerate() {
        let text = frame.print();
        if shown.len() + text.len() > MAX {
            // Writing to a String cannot fail.
            write!(shown, " < {} more", frames.len() - index).ok();
            break;
        }
        if index > 0 {
            shown.push_str(" < ");
        }
        shown.push_str(&text);
    }
    shown
}

/// `12: function`, or with an address between the two (`RUST_BACKTRACE=full`).
fn frame(line: &str) -> Option<Frame<'_>> {
    let (number, rest) = line.split_once(": ")?;
    if number.is_empty() || !number.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let rest = rest.trim_start();
    let function = match rest.split_once(" - ") {
        Some((address, function)) if address.starts_with("0x") => function,
        _ => rest,
    };
    Some(Frame { number, function, place: None })
}

/// Without what only says where somebody has built this.
fn file(place: &str) -> &str {
    let parent = place.rmatch_indices('/').nth(1).map_or(0, |(at, _)| at + 1);
    place.get(parent..).unwrap_or(place)
}

/// `linkspan_x::f`, `<linkspan_x::T as Trait>::f`; not `tokio::spawn<linkspan_x::f>`.
fn is_own(function: &str) -> bool {
    function.trim_start_matches(['<', '&', '(']).starts_with(OWN)
}

fn is_panics(function: &str) -> bool {
    let function = function.trim_start_matches('<');
    PANIC.iter().any(|name| function.starts_with(name))
        || function.contains("telemetry::log_panic")
        || function.contains("telemetry::backtrace::")
}

impl Frame<'_> {
    fn print(&self) -> String {
        let mut printed = format!("{}: ", self.number);
        // Writing to a String cannot fail.
        text::escape_into(&mut printed, text::cut(self.function, FRAME_MAX)).ok();
        if let Some(place) = self.place {
            printed.push_str(" (");
            text::escape_into(&mut printed, text::cut(place, FRAME_MAX)).ok();
            printed.push(')');
        }
        printed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_frames_come_first_and_the_panics_own_not_at_all() {
        let printed = "   0: std::backtrace::Backtrace::create\n             at /rustc/abc/library/std/src/backtrace.rs:331:13\n   \
                       1: linkspan_runtime::telemetry::log_panic\n   2: core::panicking::panic_fmt\n   \
                       3: tokio::runtime::run<linkspan_gateway::path::f>\n             at /home/dev/.cargo/tokio/src/runtime.rs:1:2\n   \
                       4: <linkspan_gateway::path::Path as linkspan_gateway::link::Ingress>::stream\n             \
                       at /build/gateway/src/path.rs:7:9\n   5:     0x55d0a1 - linkspan_runtime::task::spawn\n";
        assert_eq!(
            shorten(printed),
            "4: <linkspan_gateway::path::Path as linkspan_gateway::link::Ingress>::stream (src/path.rs:7:9) < \
             5: linkspan_runtime::task::spawn < \
             3: tokio::runtime::run<linkspan_gateway::path::f> (src/runtime.rs:1:2)"
        );
    }

    #[test]
    fn it_is_bounded_and_has_no_control_characters() {
        let frames =
            (0..500).map(|number| format!("{number}: linkspan_x::{}\u{1b}[2J\u{202e}\n", "y".repeat(number * 10)));
        let shown = shorten(&frames.collect::<String>());
        assert!(shown.len() <= MAX + 32, "{}", shown.len());
        assert!(!shown.chars().any(text::is_unsafe));
        assert!(shown.ends_with(" more"), "{shown}");
        assert_eq!(shorten("disabled backtrace"), "");
    }
}
