//! The list of cases is whole: it has every case that is written, and every case that the backend trait names.

use std::collections::BTreeSet;
use std::path::Path;

use conformance_tests::{cases, process_cases};

fn listed() -> BTreeSet<String> {
    let all: Vec<_> = cases().into_iter().chain(process_cases()).collect();
    let names: BTreeSet<_> = all.iter().map(|case| case.name.to_owned()).collect();
    assert_eq!(names.len(), all.len(), "no case is listed twice");
    names
}

#[test]
fn the_cases_that_the_backend_trait_names_exist() {
    let source = include_str!("../../dlock-core/src/backend.rs");
    let mut named = BTreeSet::new();
    // In its documentation they stand in escaped brackets, and each in backticks; a line may break between two.
    for bracket in source.split(r"\[").skip(1) {
        let Some((inside, _)) = bracket.split_once(r"\]") else { continue };
        named.extend(inside.split('`').skip(1).step_by(2).map(str::to_owned));
    }
    assert!(named.len() > 15, "the documentation of the trait names its cases: {named:?}");
    let unknown: Vec<_> = named.difference(&listed()).cloned().collect();
    assert!(unknown.is_empty(), "dlock-core/src/backend.rs names cases that do not exist: {unknown:?}");
}

#[test]
fn every_case_is_listed_and_says_what_it_checks() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/cases");
    let mut written = BTreeSet::new();
    for file in std::fs::read_dir(folder).unwrap() {
        let text = std::fs::read_to_string(file.unwrap().path()).unwrap();
        let lines: Vec<_> = text.lines().collect();
        for (number, line) in lines.iter().enumerate() {
            let Some(rest) = line.strip_prefix("pub async fn ") else { continue };
            let name = rest.split(['(', '<']).next().unwrap();
            assert!(lines[number - 1].starts_with("/// "), "case {name} says what it checks");
            assert!(written.insert(name.to_owned()), "case {name} is there twice");
        }
    }
    assert_eq!(written, listed(), "cases that are written, and cases that are listed");
}
