//! `dlock check` tests a store and tells.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "these are tests")]

mod sandbox;

use sandbox::Sandbox;

#[test]
fn a_sound_store_passes() {
    let sandbox = Sandbox::new();
    let finished = sandbox.dlock_ends(&["check"]);
    finished.expect(0, "cases passed");
    assert!(finished.stderr.contains("mutual exclusion"));
    assert!(!finished.stderr.contains("FAIL"), "{}", finished.stderr);
    assert_eq!(finished.stdout, "", "the table is for people");
}

#[test]
fn the_table_comes_as_json() {
    let sandbox = Sandbox::new();
    let finished = sandbox.dlock_ends(&["check", "--json", "--url", "memory:"]);
    finished.expect(0, "");
    assert_eq!(finished.stderr, "");
    let report: serde_json::Value = serde_json::from_str(&finished.stdout).unwrap();
    assert_eq!(report["backend"], "memory");
    assert_eq!(report["passed"], true);
    let cases = report["cases"].as_array().unwrap();
    assert!(cases.len() >= 10 && cases.iter().all(|case| case["passed"] == true), "{report}");
}
