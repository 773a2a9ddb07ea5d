#![doc = include_str!("../README.md")]

mod etcd;
mod figures;
mod handoff;
mod heap;
mod null;
mod postgres;
mod redis;
mod renewal;
mod servers;
mod setting;
mod sqlite;
mod table;
mod uncontended;
mod zookeeper;

use std::process::ExitCode;

/// The sections of the table, in the order in which they are printed.
const SECTIONS: [(&str, fn()); 9] = [
    ("uncontended", uncontended::run),
    ("handoff", handoff::run),
    ("heap", heap::run),
    ("renewal", renewal::run),
    ("sqlite", sqlite::run),
    ("redis", redis::run),
    ("etcd", etcd::run),
    ("postgres", postgres::run),
    ("zookeeper", zookeeper::run),
];

fn main() -> ExitCode {
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    let names = SECTIONS.map(|(name, _)| name);
    if let Some(unknown) = wanted.iter().find(|name| !names.contains(&name.as_str())) {
        eprintln!("no section {unknown:?}: name any of {}, or none for all", names.join(", "));
        return ExitCode::from(64);
    }
    if cfg!(debug_assertions) {
        eprintln!("this is a debug build: for figures that mean something run it with --release");
    }
    table::heading();
    for (name, run) in SECTIONS {
        if wanted.is_empty() || wanted.iter().any(|wanted| wanted == name) {
            run();
        }
    }
    ExitCode::SUCCESS
}
