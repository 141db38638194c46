//! The demo tells its story and proves each step; it needs neither root nor free fixed ports.

use std::process::Command;
use std::time::{Duration, Instant};

use linkspan_tests::process::{program, run};
use serde_json::Value;

#[test]
fn the_demo_proves_its_own_story() {
    let start = Instant::now();
    let output = run(Command::new(program("linkspan")).args(["demo", "--check"]));
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    assert!(start.elapsed() < Duration::from_secs(60), "took {:?}", start.elapsed());
}

#[test]
fn the_demo_prints_one_json_object() {
    let output = run(Command::new(program("linkspan")).args(["demo", "--check", "-o", "json"]));
    let json: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&output.stdout)));
    assert!(output.status.success(), "{json}");
    assert!(json.is_object());
}
