//! Logging of a whole process: this binary runs itself as a child and reads the child's stderr.

#![allow(clippy::disallowed_methods, reason = "test code: its tasks and settings are its own")]

use std::process::{Command, Stdio};

use linkspan_runtime::telemetry::{self, Format};
use linkspan_runtime::{signal, task};

const CHILD: &str = "LINKSPAN_TEST_CHILD";

/// What the child does; in the parent, nothing.
#[test]
fn child() {
    let Ok(what) = std::env::var(CHILD) else {
        return;
    };
    let format = if what == "json" { Format::Json } else { Format::Text };
    let guard = telemetry::init(format, "info,quiet=off").expect("first");
    assert!(telemetry::init(format, "info").is_err(), "a second one is refused");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        tracing::info!(peer = "we\u{1b}[31mst", "hello");
        tracing::info!(target: "quiet", "never seen");
        let bad = task::spawn("bad_stream", async { panic!("injected\nline") });
        assert!(bad.await.is_err());
        if what == "signals" {
            tracing::info!("armed");
            signal::shutdown().await.expect("handlers");
            std::future::pending::<()>().await;
        }
    });
    for _ in 0..1000 {
        tracing::info!("filler");
    }
    tracing::info!("last words");
    drop(guard);
}

fn run(what: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("known"));
    command.args(["--exact", "child", "--nocapture"]).env(CHILD, what).stderr(Stdio::piped()).stdout(Stdio::null());
    command.env_remove("RUST_BACKTRACE").env_remove("RUST_LIB_BACKTRACE");
    command
}

#[test]
fn one_line_an_event_and_nothing_lost_at_the_end() {
    let output = run("json").output().expect("runs");
    assert!(output.status.success());
    let text = String::from_utf8(output.stderr).expect("UTF-8");
    let events: Vec<serde_json::Value> =
        text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("not JSON: {line}"))).collect();
    assert_eq!(events[0]["message"], "hello");
    assert_eq!(events[0]["peer"], "we\u{1b}[31mst");
    assert!(!text.contains("never seen"));
    let panic = events.iter().find(|event| event["target"] == "panic").expect("the panic is logged");
    assert_eq!(panic["message"], "injected\\u000aline");
    assert!(events.iter().any(|event| event["task"] == "bad_stream"));
    assert_eq!(events.last().expect("some")["message"], "last words");
    assert_eq!(events.iter().filter(|event| event["message"] == "filler").count(), 1000);
}

#[test]
fn a_panic_with_its_backtrace_is_one_line_that_is_not_cut() {
    for level in ["1", "full"] {
        let output = run("json").env("RUST_BACKTRACE", level).output().expect("runs");
        let text = String::from_utf8(output.stderr).expect("UTF-8");
        let line = text.lines().find(|line| line.contains("\"target\":\"panic\"")).expect("the panic is logged");
        let panic: serde_json::Value = serde_json::from_str(line).expect("JSON");
        assert_eq!(panic["message"], "injected\\u000aline");
        let backtrace = panic["backtrace"].as_str().expect("a backtrace");
        assert!(backtrace.len() <= 5 * 1024, "{} bytes", backtrace.len());
        assert!(!backtrace.chars().any(char::is_control), "{backtrace:?}");
        assert!(backtrace.starts_with(|c: char| c.is_ascii_digit()), "{backtrace}");
        let own = backtrace.find("linkspan_runtime::task").expect("our own frames");
        assert!(backtrace.find("tokio::").is_none_or(|other| own < other), "ours come first: {backtrace}");
    }
}

#[test]
fn a_pipe_gets_no_colours() {
    let output = run("text").output().expect("runs");
    let text = String::from_utf8(output.stderr).expect("UTF-8");
    assert!(!text.contains('\u{1b}'), "{text}");
    assert!(text.contains("last words"));
}

#[test]
fn a_second_signal_ends_at_once() {
    use std::io::{BufRead, BufReader};

    let mut child = run("signals").spawn().expect("runs");
    let mut lines = BufReader::new(child.stderr.take().expect("piped")).lines();
    let interrupt = |id: u32| {
        let sent = Command::new("kill").args(["-INT", &id.to_string()]).status().expect("kill exists");
        assert!(sent.success());
    };
    let mut wait_for = |text: &str| {
        assert!(lines.any(|line| line.expect("UTF-8").contains(text)), "{text} was never logged");
    };
    wait_for("armed");
    // The handlers are installed right after this line; a signal before that would kill by default, which is a failure
    // of the exit code below and not of a sleep here.
    while !handles_interrupt(child.id()) {
        std::thread::yield_now();
    }
    interrupt(child.id());
    wait_for("shutting down");
    interrupt(child.id());
    assert_eq!(child.wait().expect("ended").code(), Some(130));
}

/// Whether the process catches SIGINT (bit 1 of `SigCgt`, proc_pid_status(5)).
fn handles_interrupt(id: u32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{id}/status")).expect("alive");
    let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).expect("Linux says so");
    u64::from_str_radix(caught.trim(), 16).expect("hex") & 0b10 != 0
}
