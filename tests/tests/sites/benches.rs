//! The benchmarks start what users run and measure it. How fast that is, no test says.

use std::process::Command;

use linkspan_tests::process::program;
use serde_json::Value;

/// An argument of `site run` had another name than the benchmark gave it, and nobody saw.
#[test]
fn a_case_is_measured_on_both_paths() {
    let output = Command::new(program("linkspan-bench"))
        .args(["--rounds", "1", "--seconds", "0.5", "--only", "latency at 200", "-o", "json"])
        .output()
        .expect("linkspan-bench runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let text = format!("{report:#}");
    let cases = report["cases"].as_array().unwrap_or_else(|| panic!("no cases: {text}"));
    assert!(!cases.is_empty(), "{text}");
    for case in cases {
        for path in ["direct", "linkspan"] {
            let value = case[path]["value"].as_f64();
            assert!(value.is_some_and(|value| value > 0.0) && case[path]["failed"] == 0, "{path}: {text}");
        }
    }
}
