//! The project's own commands. `cargo xtask test` verifies everything and changes nothing; `cargo xtask fix` mends what
//! a tool can mend.

use std::io::{BufRead, BufReader};
use std::process::{Command, ExitCode, Stdio};

const HELP: &str = "\
usage: cargo xtask COMMAND

  test     verify everything, rewrite nothing: format, lints, documentation, every feature by itself, all tests
  fix      apply the formatter and what clippy can mend
  help     show this text
";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["test"] => test(),
        ["fix"] => fix(),
        ["help" | "--help" | "-h"] => {
            print!("{HELP}");
            ExitCode::SUCCESS
        }
        _ => {
            eprint!("{HELP}");
            ExitCode::from(64)
        }
    }
}

/// The features of the facade, each of which must build by itself and together.
const FEATURES: [&str; 7] = ["", "etcd", "postgres", "redis", "sqlite", "zk", "full"];

fn test() -> ExitCode {
    let mut report = Report::default();
    report.step("format", cargo(["fmt", "--all", "--check"]));
    let lints = cargo([
        "clippy",
        "--workspace",
        "--all-targets",
        "--all-features",
        "--quiet",
        "--",
        "--deny",
        "warnings",
    ]);
    report.step("lints", lints);
    let mut documentation = cargo(["doc", "--workspace", "--no-deps", "--all-features", "--quiet"]);
    documentation.env("RUSTDOCFLAGS", "--deny warnings");
    report.step("documentation", documentation);
    for feature in FEATURES {
        let mut build = cargo(["check", "--package", "dlock-rs", "--no-default-features", "--quiet"]);
        build.args(["--features", feature]);
        report.step(&format!("builds with features [{feature}]"), build);
    }
    // `--no-fail-fast`: every failure is shown, not only those of the first program.
    let mut tests = cargo(["test", "--workspace", "--all-features", "--no-fail-fast"]);
    // Tests on real servers mostly wait for leases to end, so more of them run side by side than there are cores; but not so
    // many that servers are too slow for leases of a second or two.
    if std::env::var_os("RUST_TEST_THREADS").is_none() {
        tests.env("RUST_TEST_THREADS", "5");
    }
    report.tests("tests", tests);
    report.finish()
}

fn fix() -> ExitCode {
    let mut report = Report::default();
    report.step(
        "clippy --fix",
        cargo([
            "clippy",
            "--fix",
            "--allow-dirty",
            "--allow-staged",
            "--workspace",
            "--all-targets",
            "--all-features",
        ]),
    );
    report.step("fmt", cargo(["fmt", "--all"]));
    report.finish()
}

fn cargo<const N: usize>(arguments: [&str; N]) -> Command {
    let mut command = Command::new(std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned()));
    command.args(arguments);
    command
}

/// What passed and what failed.
#[derive(Default)]
struct Report {
    failed_steps: Vec<String>,
    steps: u32,
    passed: u64,
    failed: u64,
    failures: Failures,
}

impl Report {
    /// Runs one step, showing what it prints.
    fn step(&mut self, name: &str, mut command: Command) {
        println!("== {name}");
        let succeeded = command.status().is_ok_and(|status| status.success());
        self.book(name, succeeded);
    }

    /// Runs test programs, showing what they print and adding up their results.
    fn tests(&mut self, name: &str, mut command: Command) {
        println!("== {name}");
        let Ok(mut child) = command.stdout(Stdio::piped()).spawn() else { return self.book(name, false) };
        let output = child.stdout.take().expect("the output is piped");
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            if let Some((passed, failed)) = counts(&line) {
                self.passed += passed;
                self.failed += failed;
            }
            self.failures.read(&line);
            println!("{line}");
        }
        let succeeded = child.wait().is_ok_and(|status| status.success());
        self.book(name, succeeded);
    }

    fn book(&mut self, name: &str, succeeded: bool) {
        self.steps += 1;
        if !succeeded {
            self.failed_steps.push(name.to_owned());
        }
    }

    fn finish(self) -> ExitCode {
        println!();
        for line in &self.failures.told {
            println!("{line}");
        }
        if self.failed_steps.is_empty() {
            println!("all {} steps passed", self.steps);
        } else {
            println!(
                "{} of {} steps failed: {}",
                self.failed_steps.len(),
                self.steps,
                self.failed_steps.join(", ")
            );
        }
        if self.passed + self.failed > 0 {
            println!("{} passed, {} failed", self.passed, self.failed);
        }
        if self.failed_steps.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}

/// What the tests that failed said, to be repeated at the end: thousands of lines stand in between.
#[derive(Default)]
struct Failures {
    told: Vec<String>,
    /// How many more lines of this test are told.
    more: usize,
}

impl Failures {
    /// Most of what a test says after so many lines is a server's log.
    const LINES: usize = 12;

    fn read(&mut self, line: &str) {
        if line.starts_with("---- ") && line.ends_with(" stdout ----") {
            self.more = Self::LINES;
        } else if line == "failures:" || line == "stack backtrace:" || line.starts_with("test result: ") {
            self.more = 0;
        }
        if self.more > 0 {
            self.more -= 1;
            self.told.push(line.to_owned());
        }
    }
}

/// Reads `test result: ok. 8 passed; 0 failed; ...`.
fn counts(line: &str) -> Option<(u64, u64)> {
    let rest = line.strip_prefix("test result: ")?;
    let number = |what: &str| {
        let before = rest.split(what).next()?;
        before.trim_end().rsplit(' ').next()?.parse().ok()
    };
    Some((number("passed")?, number("failed")?))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{Failures, counts};

    /// ARCHITECTURE.md drifts unless something holds it against the tree.
    #[test]
    fn the_code_map_names_every_crate_and_every_file_of_core() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let map = std::fs::read_to_string(root.join("ARCHITECTURE.md")).unwrap();
        let entries_of = |folder: &Path| -> Vec<String> {
            let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
            entries.map(|path| path.file_name().unwrap().to_string_lossy().into_owned()).collect()
        };
        for crate_folder in entries_of(root).iter().filter(|name| root.join(name).join("Cargo.toml").exists())
        {
            assert!(
                map.contains(&format!("`{crate_folder}`")),
                "ARCHITECTURE.md leaves out the crate {crate_folder}"
            );
        }
        let core = root.join("dlock-core/src");
        for file in entries_of(&core).iter().filter(|name| *name != "lib.rs") {
            let file = file.strip_suffix(".rs").map_or_else(|| format!("`{file}/`"), |_| format!("`{file}`"));
            // A folder's own `name.rs` is described with the folder.
            let folder = core.join(file.trim_matches('`').trim_end_matches(".rs")).is_dir();
            assert!(folder || map.contains(&file), "ARCHITECTURE.md leaves out dlock-core/src/{file}");
        }
        let named =
            map.split('`').filter(|word| word.strip_suffix(".rs").is_some_and(|stem| !stem.contains(' ')));
        for word in named.filter(|word| !word.contains('/')) {
            assert!(core.join(word).exists(), "ARCHITECTURE.md names {word}, which is not in dlock-core/src");
        }
    }

    #[test]
    fn reads_the_summary_of_a_test_program() {
        let line = "test result: FAILED. 7 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.09s";
        assert_eq!(counts(line), Some((7, 1)));
        assert_eq!(counts("test a ... ok"), None);
    }
    #[test]
    fn failures_are_told_again_without_their_backtraces() {
        let mut failures = Failures::default();
        let output = "\
running 2 tests
test a::b ... FAILED

failures:

---- a::b stdout ----

thread 'a::b' panicked at src/a.rs:7:9:
two holders
stack backtrace:
   0: main

failures:
    a::b

test result: FAILED. 1 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.09s";
        for line in output.lines() {
            failures.read(line);
        }
        assert_eq!(
            failures.told,
            ["---- a::b stdout ----", "", "thread 'a::b' panicked at src/a.rs:7:9:", "two holders"]
        );
    }
}
