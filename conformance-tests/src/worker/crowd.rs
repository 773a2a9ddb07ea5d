//! Many who wait for one lock, in several processes.

use std::process::Command;

use dlock_core::LockGuard;
use futures_util::future::join_all;

use super::{Answer, Shop, Worker};
use crate::fixture::Profile;
use crate::history::Register;

/// Worker processes in each of which a hundred tasks wait for the lock [`Crowd::LOCK`], to have it once each.
#[derive(Debug)]
pub struct Crowd {
    shop: Shop,
    workers: Vec<Worker>,
    profile: Profile,
}

impl Crowd {
    /// The lock.
    pub const LOCK: &str = Shop::LOCK;
    /// How many tasks each process has.
    pub const TASKS: u64 = 100;

    /// Starts the processes and has them wait, while somebody else holds the lock.
    ///
    /// # Panics
    ///
    /// If a worker cannot connect.
    pub async fn gather(profile: &Profile, commands: impl IntoIterator<Item = Command>) -> Self {
        let shop = Shop::new();
        let mut workers = Vec::new();
        for (process, command) in (1..).zip(commands) {
            let mut worker = Worker::run(command, profile, &shop.history, process).await;
            worker.order(shop.contend(Self::TASKS, 1)).await;
            workers.push(worker);
        }
        Self { shop, workers, profile: profile.clone() }
    }

    /// Lets them have the lock, one after the other, until all had it. How many they were.
    ///
    /// # Panics
    ///
    /// If one does not get it, or not as the only one, or with a token that did not rise.
    pub async fn pass(&mut self, guard: LockGuard) -> u64 {
        guard.release().await.expect("the store answers");
        for answer in join_all(self.workers.iter_mut().map(Worker::answer)).await {
            assert_eq!(answer, Some(Answer::Done), "everyone gets their turn");
        }
        let turns = Self::TASKS * self.workers.len() as u64;
        assert_eq!(
            Register::in_file(&self.shop.register).read().value,
            turns,
            "P1 broken: updates were lost"
        );
        self.shop.check(&self.profile);
        turns
    }

    /// Ends the processes.
    ///
    /// # Panics
    ///
    /// If one does not end.
    pub async fn finish(self) {
        for worker in self.workers {
            worker.finish().await;
        }
    }
}
