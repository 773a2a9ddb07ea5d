//! Each sabotaged backend fails the cases that are named for it, and without the mistake they pass.

use std::panic::{AssertUnwindSafe, catch_unwind};

use conformance_tests::sabotage::{Sabotage, SabotagedFixture};
use conformance_tests::{Case, Time, cases, test};

fn case(name: &str) -> Case {
    cases().into_iter().find(|case| case.name == name).unwrap_or_else(|| panic!("there is no case {name}"))
}

/// Runs a case; what it panicked with if it failed.
fn outcome(case: Case, fixture: impl Fn() -> SabotagedFixture + 'static) -> Result<(), String> {
    let run = || test(Time::Simulated, Box::pin(async move { Box::new(fixture()) as _ }), case);
    catch_unwind(AssertUnwindSafe(run)).map_err(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default()
    })
}

#[test]
fn each_mistake_is_found_by_the_cases_named_for_it() {
    let mut missed = Vec::new();
    for how in Sabotage::ALL {
        assert!(!how.cases().is_empty(), "{how:?} is found by no case");
        for name in how.cases() {
            match outcome(case(name), move || SabotagedFixture::new(how)) {
                Ok(()) => missed.push(format!("{how:?} passes {name}")),
                Err(panic) => println!("{how:?} fails {name}: {panic}"),
            }
        }
    }
    assert!(missed.is_empty(), "{missed:#?}");
}

#[test]
fn without_the_mistake_the_same_cases_pass() {
    for how in Sabotage::ALL {
        for name in how.cases() {
            let ended = outcome(case(name), move || SabotagedFixture::sound(how));
            assert_eq!(ended, Ok(()), "{name} fails without {how:?}");
        }
    }
}
