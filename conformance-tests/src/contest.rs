//! Tasks that fight for one lock and write to one resource, all on the record.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use dlock_core::Lock;

use crate::fixture::{Client, Fixture, Profile};
use crate::history::{History, Register, Summary, WatchedGuard};
use crate::patience::soon;

/// A fight for one lock: every holder reads a number, lets the others run, and writes the number plus one.
///
/// If two ever hold at the same time, an update is lost or a write is refused, and the record shows who.
#[derive(Clone, Debug)]
pub struct Contest {
    /// The record.
    pub history: History,
    /// The resource.
    pub register: Register,
    profile: Profile,
    name: String,
    done: Arc<AtomicU64>,
}

impl Contest {
    /// A contest for the lock `name`.
    pub fn new(fx: &dyn Fixture, name: impl Into<String>) -> Self {
        Self {
            history: History::new(fx.clock()),
            register: Register::in_memory(),
            profile: fx.profile().clone(),
            name: name.into(),
            done: Arc::default(),
        }
    }

    /// The lock, as a client sees it.
    ///
    /// # Panics
    ///
    /// If the contest's name is not a legal one.
    pub fn lock(&self, client: &Client) -> Lock {
        client.locks.lock(&self.name).expect("the name is legal")
    }

    /// One update under a guard, counted if the guard held throughout.
    pub async fn update(&self, guard: &WatchedGuard) -> bool {
        let before = self.register.read();
        let held = guard.is_held();
        tokio::task::yield_now().await;
        let wrote = guard.write(&self.register, before.value + 1);
        tokio::task::yield_now().await;
        let held = guard.is_held() && held;
        assert!(
            !held || wrote,
            "the register refused a write of token {} while its guard held",
            guard.token()
        );
        if held {
            self.done.fetch_add(1, Ordering::SeqCst);
        }
        held
    }

    /// Has `tasks` tasks of each client acquire the lock `rounds` times each; every second guard is dropped instead of
    /// released. Nothing may go wrong.
    ///
    /// # Panics
    ///
    /// If an acquisition fails, an update is lost, or the record shows a broken promise.
    pub async fn fight(&self, clients: &[Client], tasks: usize, rounds: usize) -> Summary {
        let mut fighters = Vec::new();
        for client in clients {
            for task in 0..tasks {
                let (contest, lock) = (self.clone(), self.lock(client));
                let who = format!("{}/{task}", client.label());
                fighters.push(tokio::spawn(async move {
                    for round in 0..rounds {
                        let guard = contest.history.acquire(&who, &lock).await.expect("nothing is broken");
                        assert!(contest.update(&guard).await, "a guard was lost though nothing is broken");
                        if (task + round) % 2 == 0 {
                            guard.release().await.expect("nothing is broken");
                        }
                    }
                }));
            }
        }
        for fighter in fighters {
            soon(&self.profile, "every task gets its turn", fighter).await.expect("the task does not panic");
        }
        let expected = (clients.len() * tasks * rounds) as u64;
        self.assert_no_update_lost();
        assert_eq!(self.done.load(Ordering::SeqCst), expected, "every update was under a guard that held");
        self.history.assert_sound()
    }

    /// Checks that the number counts every update that was under a guard that held throughout.
    ///
    /// # Panics
    ///
    /// If an update was lost.
    pub fn assert_no_update_lost(&self) {
        let (content, done) = (self.register.read(), self.done.load(Ordering::SeqCst));
        assert!(
            content.value >= done,
            "an update was lost: the register says {}, but {done} updates were made under guards that held",
            content.value
        );
    }
}
