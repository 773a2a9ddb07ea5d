//! The worker process for every backend that a URL names: `lock-worker URL NUMBER`.

use std::process::ExitCode;

fn main() -> ExitCode {
    let url = std::env::args().nth(1).unwrap_or_default();
    conformance_tests::worker::serve(|| async move {
        dlock::connect(&url).await.map_err(|error| format!("{url}: {error}"))
    })
}
