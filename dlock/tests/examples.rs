//! Runs the examples, each over the backends that need nothing but this process and a file.

#![allow(clippy::unwrap_used, reason = "these are tests")]

use std::path::PathBuf;
use std::process::{Output, Stdio};
use std::time::Duration;

use tokio::process::Command;

/// Each takes some two seconds; this is for a machine that is very busy.
const LONG: Duration = Duration::from_secs(60);

/// Cargo builds the examples of a package for `cargo test`, beside the folder of this program.
fn program(example: &str) -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let profile = test.parent().and_then(|deps| deps.parent()).unwrap();
    let program = profile.join("examples").join(format!("{example}{}", std::env::consts::EXE_SUFFIX));
    assert!(
        program.exists(),
        "{} is missing: run `cargo test -p dlock-rs --all-features` without --test, or build it first with `cargo \
         build -p dlock-rs --all-features --examples`",
        program.display()
    );
    program
}

async fn run(example: &str, url: &str) -> Output {
    let child = Command::new(program(example))
        .arg(url)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let output = tokio::time::timeout(LONG, child.wait_with_output()).await;
    output.unwrap_or_else(|_| panic!("{example} {url} was not done within {LONG:?}")).unwrap()
}

/// The lines that an example printed; it must have succeeded.
async fn printed(example: &str, url: &str) -> String {
    let output = run(example, url).await;
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{example} {url}: {}\n{out}{err}", output.status);
    assert_eq!(err, "", "{example} {url} has nothing to complain of");
    out.into_owned()
}

async fn scheduled_job(url: &str) {
    let printed = printed("scheduled_job", url).await;
    assert_eq!(printed.matches(" works, with token ").count(), 6, "{printed}");
    let skipped = printed.matches(" skips it").count() + printed.matches(" came late").count();
    assert_eq!(skipped, 18, "{printed}");
    assert!(printed.ends_with("each slot was done once\n"), "{printed}");
}

async fn fenced_inventory(url: &str) {
    let printed = printed("fenced_inventory", url).await;
    assert!(printed.contains("A wakes up, and is_held() says false\n"), "{printed}");
    assert!(printed.contains(": refused, it is stale\n"), "{printed}");
    assert!(printed.ends_with("69 are left, nothing was lost\n"), "{printed}");
}

async fn stop_on_loss(url: &str) {
    let printed = printed("stop_on_loss", url).await;
    assert!(printed.contains(" stops: the longest allowed hold is over\n"), "{printed}");
    assert!(printed.ends_with("each item was imported once, and in order\n"), "{printed}");
}

mod memory {
    #[tokio::test]
    async fn scheduled_job() {
        super::scheduled_job("memory:").await;
    }

    #[tokio::test]
    async fn fenced_inventory() {
        super::fenced_inventory("memory:").await;
    }

    #[tokio::test]
    async fn stop_on_loss() {
        super::stop_on_loss("memory:").await;
    }
}

#[cfg(feature = "sqlite")]
mod sqlite {
    /// A lock file in a folder that goes with the test.
    fn file() -> (tempfile::TempDir, String) {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite:{}", folder.path().join("locks.db").display());
        (folder, url)
    }

    #[tokio::test]
    async fn scheduled_job() {
        let (_folder, url) = file();
        super::scheduled_job(&url).await;
    }

    #[tokio::test]
    async fn fenced_inventory() {
        let (_folder, url) = file();
        super::fenced_inventory(&url).await;
    }

    #[tokio::test]
    async fn stop_on_loss() {
        let (_folder, url) = file();
        super::stop_on_loss(&url).await;
    }
}

#[tokio::test]
async fn a_url_that_cannot_be_read_is_an_error_that_says_so() {
    for example in ["scheduled_job", "fenced_inventory", "stop_on_loss"] {
        let output = run(example, "sqllite:locks.db").await;
        assert_eq!(output.status.code(), Some(1), "{example}");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains("did you mean \"sqlite\"?"), "{example}: {said}");
    }
}
