//! What several rounds of one measurement came to.

use std::future::Future;
use std::time::Duration;

use dlock_core::{Clock, SystemClock};

/// Rounds of a fraction of a millisecond: most of them are not interrupted, however busy the machine is.
pub(crate) const SHORT_ROUNDS: usize = 501;
/// Rounds of many milliseconds.
pub(crate) const LONG_ROUNDS: usize = 25;
/// Rounds of what hardly varies.
pub(crate) const FEW_ROUNDS: usize = 5;

/// The median of the rounds, the smallest and the greatest.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Figures {
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
}

impl Figures {
    pub(crate) fn of(mut rounds: Vec<f64>) -> Self {
        rounds.sort_by(f64::total_cmp);
        let last = rounds.len() - 1;
        Self { median: rounds[last / 2], min: rounds[0], max: rounds[last] }
    }

    /// What each round tells, after one that does not count.
    pub(crate) async fn each<F: Future<Output = f64>>(rounds: usize, mut round: impl FnMut() -> F) -> Self {
        round().await;
        let mut told = Vec::with_capacity(rounds);
        for _ in 0..rounds {
            told.push(round().await);
        }
        Self::of(told)
    }

    /// Nanoseconds for one operation. Each round tells how many it made.
    pub(crate) async fn timed<F: Future<Output = u32>>(rounds: usize, mut round: impl FnMut() -> F) -> Self {
        Self::each(rounds, || {
            let round = round();
            async move {
                let start = SystemClock.now();
                let operations = round.await;
                nanos(SystemClock.now().since(start)) / f64::from(operations)
            }
        })
        .await
    }

    /// As [`each`](Self::each), for rounds that wait for nothing.
    pub(crate) fn each_blocking(rounds: usize, mut round: impl FnMut() -> f64) -> Self {
        round();
        Self::of((0..rounds).map(|_| round()).collect())
    }
}

pub(crate) fn nanos(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e9
}
