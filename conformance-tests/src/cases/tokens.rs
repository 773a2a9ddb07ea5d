//! P2: tokens rise, whatever happens, and belong to their guards.

use dlock_core::FencingToken;
use dlock_core::faults::Op;

use super::loss::take_over;
use crate::contest::Contest;
use crate::fixture::{Client, Fixture, Profile, Setup};
use crate::history::Register;
use crate::patience::soon;

/// A lock's tokens as one test sees them: each greater than the one before.
struct Rising<'a> {
    profile: &'a Profile,
    last: Option<FencingToken>,
}

impl Rising<'_> {
    async fn next(&mut self, client: &Client, after: &str) {
        let guard = soon(self.profile, "the lock is free", client.lock("numbered").acquire()).await;
        let guard = guard.expect("the store answers");
        self.note(guard.token(), after);
        soon(self.profile, "a release is answered", guard.release()).await.expect("the store answers");
    }

    fn note(&mut self, token: FencingToken, after: &str) {
        let last = self.last.replace(token);
        assert!(last < Some(token), "P2 broken: after {after} the token is {token}, after {last:?}");
    }
}

fn rising(fx: &dyn Fixture) -> Rising<'_> {
    Rising { profile: fx.profile(), last: None }
}

/// P2: tokens rise with every acquisition, of one manager and of several, released or dropped, also after a time in which
/// nobody held the lock.
pub async fn tokens_rise(fx: &dyn Fixture) {
    let profile = fx.profile();
    let mut tokens = rising(fx);
    let clients = [fx.client(Setup::new()).await, fx.client(Setup::new()).await];
    for round in 0..profile.rounds(20) {
        tokens.next(&clients[round % 2], "a release").await;
        let guard = soon(profile, "the lock is free", clients[0].lock("numbered").acquire()).await;
        let guard = guard.expect("the store answers");
        tokens.note(guard.token(), "a release");
        drop(guard);
        let limit = profile.patience();
        let tried =
            soon(profile, "the lock is free", clients[0].lock("numbered").acquire_timeout(limit)).await;
        let guard = tried.expect("the store answers");
        tokens.note(guard.token(), "a drop");
        guard.release().await.expect("the store answers");
        // Other names in between make no difference.
        let other = clients[1].lock(&format!("other-{round}")).acquire().await.expect("the lock is free");
        other.release().await.expect("the store answers");
    }
    tokio::time::sleep(profile.ttl * 2).await;
    tokens.next(&clients[1], "a time without a holder").await;
}

/// P2: tokens rise over crashes of holders.
pub async fn tokens_survive_crashes(fx: &dyn Fixture) {
    let mut tokens = rising(fx);
    for _ in 0..2 {
        let holder = fx.client(Setup::new()).await;
        let guard = soon(fx.profile(), "the lock passes on", holder.lock("numbered").acquire()).await;
        tokens.note(guard.as_ref().expect("the store answers").token(), "a crash");
        fx.crash(&holder).await;
    }
    tokens.next(&fx.client(Setup::new()).await, "a crash").await;
}

/// P2: tokens rise over sessions that end and are opened again, and over times in which nobody is connected.
pub async fn tokens_survive_reopening(fx: &dyn Fixture) {
    let profile = fx.profile();
    let mut tokens = rising(fx);
    for _ in 0..2 {
        let client = fx.client(Setup::new().owner("numbered")).await;
        tokens.next(&client, "opening").await;
        fx.end_session(&client).await;
        tokens.next(&client, "the end of a session").await;
        soon(profile, "a close ends", client.locks.close()).await.expect("the store answers");
        // Longer than any lease, with nobody connected.
        tokio::time::sleep(profile.ttl * 2).await;
    }
    tokens.next(&fx.client(Setup::new()).await, "a time with nobody connected").await;
}

/// P2: tokens rise over a restart of the store.
pub async fn tokens_survive_a_restart(fx: &dyn Fixture) {
    let mut tokens = rising(fx);
    let client = fx.client(Setup::new()).await;
    for _ in 0..3 {
        tokens.next(&client, "a restart").await;
        tokens.next(&fx.client(Setup::new()).await, "a release").await;
        fx.restart().await;
    }
    tokens.next(&client, "a restart").await;
}

/// P2: a token belongs to its guard: whoever holds the lock later, it stays what it was; and a resource that checks tokens
/// refuses the write of a holder that lost its lock, once its successor has written.
pub async fn stale_writes_are_refused(fx: &dyn Fixture) {
    let profile = fx.profile();
    let contest = Contest::new(fx, "fenced");
    let register = Register::in_memory();
    let (stale, other) = (fx.client(Setup::new()).await, fx.client(Setup::new()).await);
    let guard = contest.history.acquire("stale", &contest.lock(&stale)).await.expect("the lock is free");
    let token = guard.token();
    assert!(guard.write(&register, 1), "the first write is taken");
    stale.faults.black_hole();
    let successor = take_over(profile, &contest, &other, &[&guard]).await;
    assert!(successor.write(&register, 2), "P2 broken: the resource refused the write of the holder");
    stale.faults.heal();
    assert_eq!(guard.token(), token, "P2 broken: the token changed under its guard");
    assert!(successor.token() > token, "P2 broken: the successor's token is not greater");
    assert!(
        !guard.write(&register, 3),
        "P2 broken: the resource took the write of a holder that had lost the lock"
    );
    successor.release().await.expect("the store answers");
    assert_eq!(register.read().value, 2);
    let again =
        soon(profile, "the lock is free", contest.history.acquire("again", &contest.lock(&stale))).await;
    let again = again.expect("the store answers");
    assert!(again.write(&register, 4), "P2 broken: the resource refused the write of the holder");
    again.release().await.expect("the store answers");
    contest.history.assert_sound();
}

/// P1, P2: a grant whose answer is slow has the token it was granted with, also if the store gave the lock to somebody else
/// before the answer arrived: no two guards ever have one token.
pub async fn tokens_of_slow_grants_are_their_own(fx: &dyn Fixture) {
    let profile = fx.profile();
    let contest = Contest::new(fx, "slow");
    for quarters in 1..4 {
        let (slow, other) =
            (fx.client(Setup::new().request_timeout(profile.ttl)).await, fx.client(Setup::new()).await);
        slow.locks.open().await.expect("the store answers");
        slow.faults.delay_reply(Op::Claim, profile.ttl / 8);
        let asking = |client: &Client, who: &'static str| {
            let (contest, lock, moment) = (contest.clone(), contest.lock(client), profile.moment());
            tokio::spawn(async move {
                let guard = contest.history.acquire(who, &lock).await.expect("the store answers");
                for _ in 0..5 {
                    tokio::time::sleep(moment).await;
                    guard.is_held();
                }
                drop(guard.release().await);
            })
        };
        let slowly = asking(&slow, "slow");
        tokio::time::sleep(profile.moment()).await;
        // To the store its process is dead; its answer is still on the way.
        fx.crash(&slow).await;
        let quickly = asking(&other, "other");
        tokio::time::sleep(profile.ttl * quarters / 4).await;
        slow.faults.heal();
        for task in [slowly, quickly] {
            soon(profile, "everybody gets the lock", task).await.expect("the task does not panic");
        }
    }
    contest.history.assert_sound();
}

/// P2: a waiter's token is greater than those of all who held the lock while it waited, and of all who had held it before.
pub async fn tokens_of_waiters_rise(fx: &dyn Fixture) {
    let profile = fx.profile();
    let contest = Contest::new(fx, "waited");
    let mut clients = Vec::new();
    for _ in 0..4 {
        clients.push(fx.client(Setup::new()).await);
    }
    let mut last = None;
    for _ in 0..profile.rounds(10) {
        let guard =
            contest.history.acquire("holder", &contest.lock(&clients[0])).await.expect("the store answers");
        assert!(last < Some(guard.token()), "P2 broken");
        let mut waiting = Vec::new();
        for client in &clients {
            let (contest, lock, who) = (contest.clone(), contest.lock(client), client.label().to_owned());
            waiting.push(tokio::spawn(async move {
                let guard = contest.history.acquire(&who, &lock).await.expect("the store answers");
                let token = guard.token();
                guard.write(&contest.register, 0);
                guard.release().await.expect("the store answers");
                token
            }));
        }
        tokio::time::sleep(profile.moment()).await;
        let holder = guard.token();
        guard.release().await.expect("the store answers");
        for waiter in waiting {
            let token =
                soon(profile, "every waiter gets its turn", waiter).await.expect("the task does not panic");
            assert!(
                token > holder,
                "P2 broken: a waiter's token {token} is not greater than its predecessor's {holder}"
            );
            last = last.max(Some(token));
        }
    }
    contest.history.assert_sound();
}
