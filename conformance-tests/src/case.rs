//! Cases, the one list of them, and how they are run.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use dlock_core::Clock;

use crate::fixture::{Client, Fixture, Profile, Setup, Time};
use crate::patience::{soon, until};

/// One case: what it checks, and how.
#[derive(Clone, Copy)]
pub struct Case {
    /// Its name, which backend.rs of dlock-core refers to.
    pub name: &'static str,
    /// The file of `cases/` that has it.
    pub theme: &'static str,
    /// Runs it. Panics if the promise is broken.
    pub run: RunCase,
}

/// The function of a case, with its future boxed.
pub type RunCase = for<'a> fn(&'a dyn Fixture) -> Pin<Box<dyn Future<Output = ()> + 'a>>;

impl fmt::Debug for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Case({}::{})", self.theme, self.name)
    }
}

/// Calls a macro with the list of all cases that run in one process, after whatever else is given.
///
/// The list is `theme { case case ... } ...`. It is the only one: [`cases`] and
/// [`conformance_suite!`](crate::conformance_suite) are made from it.
#[macro_export]
macro_rules! for_each_case {
    ($($callback:tt)::+ $(, $($extra:tt)*)?) => {
        $($callback)::+! {
            [$($($extra)*)?]
            exclusion {
                exclusion_between_tasks
                exclusion_between_managers
                exclusion_under_faults
                two_managers_one_owner
                a_second_acquire_waits
                names_are_independent
            }
            waiting {
                try_tells_free_from_held
                busy_try_leaves_nothing
                zero_timeout_is_one_try
                tiny_timeouts_leave_nothing
                huge_timeouts_wait
                timeouts_end_a_wait
                no_wake_up_is_lost
                local_waiters_are_served_in_order
                waiters_of_several_managers_are_all_served
                short_waiters_keep_the_place
                ten_thousand_local_waiters
                the_holder_is_shown
            }
            cancel {
                cancel_at_every_poll
                cancel_at_every_poll_of_a_wait
                cancel_at_every_moment
                cancelled_waiters_keep_the_places_behind
                a_grant_nobody_takes_goes_on
                cancelled_releases_release
                cancel_while_opening
            }
            loss {
                renewed_far_beyond_the_ttl
                loss_by_expiry_is_told_before_takeover
                unanswered_renewals_free_the_lock
                session_end_is_told_before_takeover
                an_ended_session_is_told
                removal_by_hand_is_told
                loss_is_final
                late_renewal_is_not_booked_to_a_later_one
                stalled_grant_is_not_handed_out
                frozen_process_knows_at_once
                max_hold_ends_a_hold
                short_outages_are_survived
            }
            unknown {
                lost_reply_of_a_claim
                claim_executed_late
                release_executed_late
                lost_reply_of_a_release
                unanswered_try_is_an_error
                a_store_that_is_down_is_asked_again
                a_refusal_is_told
                a_failed_claim_is_repeated
            }
            settle {
                crashed_holder_is_settled
                cancelled_settle_leaves_the_rest
                short_waiters_settle_together
                overlapping_waiters_settle_together
                tries_are_granted_in_the_end
                crashed_settle_leaves_the_rest
                close_while_settling_leaves_the_rest
            }
            tokens {
                tokens_rise
                tokens_survive_crashes
                tokens_survive_reopening
                tokens_survive_a_restart
                stale_writes_are_refused
                tokens_of_waiters_rise
                tokens_of_slow_grants_are_their_own
            }
            names {
                nasty_names_work
                names_do_not_alias
                long_names_work
                illegal_names_are_refused
                used_names_leave_nothing
            }
            lifecycle {
                release_says_what_happened
                release_spares_the_successor
                release_with_the_store_down
                drop_releases
                guards_outlive_their_manager
                drop_outside_a_runtime
                drop_during_runtime_shutdown
                a_gone_runtime_is_an_error
                close_leaves_nothing
                cancelled_close_goes_on
                close_with_the_store_down
                preparing_again_does_no_harm
            }
        }
    };
}

/// Calls a macro with the list of the cases that need clients in processes of their own.
#[macro_export]
macro_rules! for_each_process_case {
    ($($callback:tt)::+ $(, $($extra:tt)*)?) => {
        $($callback)::+! {
            [$($($extra)*)?]
            processes {
                processes_exclude_each_other
                frozen_processes_lose_their_locks
                killed_holders_are_replaced
                killed_waiters_are_in_nobodys_way
                kills_in_a_contest
                tokens_rise_over_processes
            }
        }
    };
}

/// Emits a module with one test for each case, over the fixture that an async expression makes anew for each.
///
/// ```
/// use conformance_tests::fixtures::SqliteFixture;
/// use conformance_tests::{Time, conformance_suite};
///
/// conformance_suite!(sqlite, Time::Real, SqliteFixture::new());
/// # fn main() {}
/// ```
#[macro_export]
macro_rules! conformance_suite {
    ($module:ident, $time:expr, $fixture:expr) => {
        mod $module {
            #[allow(unused_imports)]
            use super::*;
            $crate::for_each_case!($crate::emit_tests, $time, $fixture);
        }
    };
}

/// Emits a module with one test for each case that needs clients in processes of their own.
#[macro_export]
macro_rules! process_suite {
    ($module:ident, $fixture:expr) => {
        mod $module {
            #[allow(unused_imports)]
            use super::*;
            $crate::for_each_process_case!($crate::emit_tests, $crate::Time::Real, $fixture);
        }
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! emit_tests {
    ([$time:expr, $fixture:expr] $($theme:ident { $($case:ident)* })*) => {
        $crate::emit_tests!(@each [$time, $fixture] $($([$theme $case])*)*);
    };
    (@each [$time:expr, $fixture:expr]) => {};
    (@each [$time:expr, $fixture:expr] [$theme:ident $case:ident] $($rest:tt)*) => {
        #[test]
        fn $case() {
            $crate::test(
                $time,
                ::std::boxed::Box::pin(async { ::std::boxed::Box::new($fixture) as _ }),
                $crate::Case {
                    name: stringify!($case),
                    theme: stringify!($theme),
                    run: |fixture| Box::pin($crate::cases::$theme::$case(fixture)),
                },
            );
        }
        $crate::emit_tests!(@each [$time, $fixture] $($rest)*);
    };
}

macro_rules! list_cases {
    ([] $($theme:ident { $($case:ident)* })*) => {
        vec![$($(Case {
            name: stringify!($case),
            theme: stringify!($theme),
            run: |fixture| Box::pin(crate::cases::$theme::$case(fixture)),
        },)*)*]
    };
}

/// All cases that run in one process.
pub fn cases() -> Vec<Case> {
    for_each_case!(list_cases)
}

/// The cases that need clients in processes of their own.
pub fn process_cases() -> Vec<Case> {
    for_each_process_case!(list_cases)
}

/// Runs a case on a runtime of its own, as a test. The suite's macros call this.
///
/// # Panics
///
/// If the case fails.
pub fn test(time: Time, fixture: Pin<Box<dyn Future<Output = Box<dyn Fixture>>>>, case: Case) {
    let mut runtime = match time {
        Time::Simulated => tokio::runtime::Builder::new_current_thread(),
        Time::Real => tokio::runtime::Builder::new_multi_thread(),
    };
    let runtime = runtime
        .worker_threads(2)
        .enable_all()
        .start_paused(time == Time::Simulated)
        .build()
        .expect("a runtime can be made");
    runtime.block_on(async {
        let fixture = fixture.await;
        assert_eq!(
            fixture.profile().time,
            time,
            "the fixture's profile and the suite agree on how time passes"
        );
        run(&*fixture, case).await;
    });
}

/// Runs a case, then checks that nothing is left at the store.
///
/// # Panics
///
/// If the case fails, takes too long, or leaves anything behind (P6).
pub async fn run(fixture: &dyn Fixture, case: Case) {
    // Long enough for a case that waits many times; it only ends cases that hang.
    let limit = fixture.profile().patience() * 4;
    let fixture = &Keeping { fixture, clients: Mutex::default() };
    let ended = tokio::time::timeout(limit, (case.run)(fixture)).await;
    assert!(ended.is_ok(), "case {} hangs on {}", case.name, fixture.profile().backend);
    nothing_is_left(fixture).await;
}

/// Keeps the clients of a case alive until it was checked that nothing is left.
struct Keeping<'a> {
    fixture: &'a dyn Fixture,
    clients: Mutex<Vec<Client>>,
}

#[async_trait]
impl Fixture for Keeping<'_> {
    fn profile(&self) -> &Profile {
        self.fixture.profile()
    }

    async fn client(&self, setup: Setup) -> Client {
        let is_dropped = setup.is_dropped;
        let client = self.fixture.client(setup).await;
        if !is_dropped {
            self.clients.lock().unwrap_or_else(PoisonError::into_inner).push(client.clone());
        }
        client
    }

    async fn residue(&self) -> Vec<String> {
        self.fixture.residue().await
    }

    async fn footprint(&self) -> usize {
        self.fixture.footprint().await
    }

    async fn remove(&self, name: &str) {
        self.fixture.remove(name).await;
    }

    async fn end_session(&self, client: &Client) {
        self.fixture.end_session(client).await;
    }

    async fn crash(&self, client: &Client) {
        self.fixture.crash(client).await;
    }

    async fn restart(&self) {
        self.fixture.restart().await;
    }

    fn worker(&self) -> Option<Command> {
        self.fixture.worker()
    }

    fn clock(&self) -> Arc<dyn Clock> {
        self.fixture.clock()
    }
}

/// Waits until nothing is left at the store, or panics with what is.
///
/// # Panics
///
/// If anything is left after the time in which a crashed client's claims end by themselves.
pub async fn nothing_is_left(fixture: &dyn Fixture) {
    let profile = fixture.profile();
    let limit = (profile.takeover() + profile.request_timeout) * 3;
    let empty = until(profile, async || fixture.residue().await.is_empty());
    if tokio::time::timeout(limit, empty).await.is_err() {
        let left = soon(profile, "a look at what is left", fixture.residue()).await;
        assert!(left.is_empty(), "P6 broken: this is left at the store after {limit:?}: {left:#?}");
    }
}
