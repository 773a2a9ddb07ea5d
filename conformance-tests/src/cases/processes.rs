//! Clients in processes of their own: they exclude each other, and are frozen and killed.

use crate::fixture::{Fixture, Setup};
use crate::history::Register;
use crate::patience::{soon, within};
use crate::worker::{Answer, Order, Shop, Worker};

fn release() -> Order {
    Order::Release { name: Shop::LOCK.to_owned() }
}

/// P1, P2: of several processes one holds the lock at a time, no update is lost, and tokens rise.
pub async fn processes_exclude_each_other(fx: &dyn Fixture) {
    const ROUNDS: u64 = 20;
    let shop = Shop::new();
    let mut workers = shop.workers(fx, 4).await;
    for worker in &mut workers {
        worker.order(shop.contend(1, ROUNDS)).await;
    }
    for worker in &mut workers {
        assert_eq!(worker.answer().await, Some(Answer::Done), "nothing is broken");
    }
    let content = Register::in_file(&shop.register).read();
    assert_eq!(content.value, 4 * ROUNDS, "P1 broken: updates were lost");
    shop.check(fx.profile());
    for worker in workers {
        worker.finish().await;
    }
}

/// P1, P3, P4: a process that is frozen past its lease is replaced in time; when it goes on, its guard says at once that it
/// is lost, and its late write is refused by its token.
pub async fn frozen_processes_lose_their_locks(fx: &dyn Fixture) {
    let profile = fx.profile();
    let shop = Shop::new();
    let mut workers = shop.workers(fx, 2).await;
    let [frozen, other] = &mut workers[..] else { unreachable!("there are two") };
    let token = frozen.acquire(Shop::LOCK).await;
    assert!(frozen.is_held(Shop::LOCK).await);
    assert_eq!(frozen.ask(shop.write(1)).await, Answer::Wrote(true));
    frozen.freeze();
    let what = "P4: a frozen holder is replaced";
    let next = within(profile, profile.takeover(), what, other.acquire(Shop::LOCK)).await;
    assert!(next > token, "P2 broken: the token did not rise");
    assert!(other.is_held(Shop::LOCK).await);
    assert_eq!(
        other.ask(shop.write(2)).await,
        Answer::Wrote(true),
        "P2 broken: the holder's write was refused"
    );
    // Its next orders are there when it wakes.
    frozen.order(Order::IsHeld { name: Shop::LOCK.to_owned() }).await;
    frozen.order(shop.write(3)).await;
    frozen.thaw();
    assert_eq!(frozen.answer().await, Some(Answer::Held(false)), "P3 broken: held at its first look");
    assert_eq!(frozen.answer().await, Some(Answer::Wrote(false)), "P2 broken: its late write was taken");
    assert_eq!(Register::in_file(&shop.register).read().value, 2);
    assert_eq!(frozen.ask(release()).await, Answer::AlreadyLost);
    assert!(other.is_held(Shop::LOCK).await, "P7 broken: the successor lost its lock to the one that woke");
    assert_eq!(other.ask(release()).await, Answer::Done);
    // The one that woke goes on as before.
    let again = frozen.acquire(Shop::LOCK).await;
    assert!(again > next, "P2 broken: the token did not rise");
    assert_eq!(frozen.ask(release()).await, Answer::Done);
    shop.check(profile);
    for worker in workers {
        worker.finish().await;
    }
}

/// P4: a process that is killed while it holds is replaced within the bound, by who waited in another process and by who
/// comes later; tokens rise.
pub async fn killed_holders_are_replaced(fx: &dyn Fixture) {
    let profile = fx.profile();
    let shop = Shop::new();
    let mut last = 0;
    for waits in [true, false] {
        let mut workers = shop.workers(fx, 2).await;
        let [killed, next] = &mut workers[..] else { unreachable!("there are two") };
        let token = killed.acquire(Shop::LOCK).await;
        assert!(token > last, "P2 broken: the token did not rise");
        assert!(killed.is_held(Shop::LOCK).await);
        let acquire = Order::Acquire { name: Shop::LOCK.to_owned(), limit_ms: 60_000 };
        if waits {
            next.order(acquire.clone()).await;
            tokio::time::sleep(profile.moment() * 10).await;
        }
        killed.kill().await;
        if !waits {
            next.order(acquire).await;
        }
        let answer =
            within(profile, profile.takeover(), "P4: a killed holder is replaced", next.answer()).await;
        let Some(Answer::Got { token: greater }) = answer else { panic!("not got: {answer:?}") };
        assert!(greater > token, "P2 broken: the token did not rise");
        last = greater;
        assert_eq!(next.ask(release()).await, Answer::Done);
        next.kill().await;
    }
    shop.check(profile);
}

/// P6: a process that is killed while it waits is in nobody's way for longer than a crashed holder would be.
pub async fn killed_waiters_are_in_nobodys_way(fx: &dyn Fixture) {
    let profile = fx.profile();
    let shop = Shop::new();
    let mut workers = shop.workers(fx, 2).await;
    let holder = fx.client(Setup::new()).await;
    let guard = holder.lock(Shop::LOCK).acquire().await.expect("the lock is free");
    for worker in &mut workers {
        worker.order(Order::Acquire { name: Shop::LOCK.to_owned(), limit_ms: 60_000 }).await;
        tokio::time::sleep(profile.moment() * 20).await;
    }
    let [killed, next] = &mut workers[..] else { unreachable!("there are two") };
    killed.kill().await;
    guard.release().await.expect("the store answers");
    let what = "P4: a killed waiter is passed over";
    let taken = within(profile, profile.takeover(), what, next.answer()).await;
    assert!(matches!(taken, Some(Answer::Got { .. })), "not got: {taken:?}");
    assert_eq!(next.ask(release()).await, Answer::Done);
}

/// P1, P2: processes are killed in the middle of a contest; of those that stay no update is lost.
pub async fn kills_in_a_contest(fx: &dyn Fixture) {
    let profile = fx.profile();
    let shop = Shop::new();
    let mut workers = shop.workers(fx, 4).await;
    for worker in &mut workers {
        worker.order(shop.contend(1, 1_000_000)).await;
    }
    for worker in &mut workers {
        // Whatever it is doing at that moment.
        tokio::time::sleep(profile.ttl / 3).await;
        worker.kill().await;
    }
    let client = fx.client(Setup::new()).await;
    let lock = client.lock(Shop::LOCK);
    let asked = shop.history.acquire("last", &lock);
    let guard = within(profile, profile.takeover(), "P4: a killed holder is replaced", asked).await;
    guard.expect("the store answers").release().await.expect("the store answers");
    let summary = shop.history.assert_sound();
    let content = Register::in_file(&shop.register).read();
    assert!(summary.acquisitions > 4, "there was a contest");
    assert_eq!(content.value, content.writes, "P1 broken: an update was lost");
}

/// P2: tokens rise over processes that come and go, with times in which there is none, and over a restart of the store.
pub async fn tokens_rise_over_processes(fx: &dyn Fixture) {
    let shop = Shop::new();
    let mut last = 0;
    for process in 1..=4 {
        let mut worker = Worker::start(fx, &shop.history, process).await;
        let token = worker.acquire(Shop::LOCK).await;
        assert!(token > last, "P2 broken: the token {token} of a new process is not greater than {last}");
        last = token;
        assert_eq!(worker.ask(release()).await, Answer::Done);
        if process % 2 == 0 {
            assert_eq!(worker.ask(Order::Close).await, Answer::Done);
            worker.finish().await;
        } else {
            worker.kill().await;
        }
        if process == 3 {
            fx.restart().await;
        }
    }
    soon(fx.profile(), "the record is checked", async { shop.history.assert_sound() }).await;
}
