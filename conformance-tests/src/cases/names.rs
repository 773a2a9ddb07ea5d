//! Names: every legal one works, no two are one lock, and none leaves anything behind.

use std::collections::HashSet;

use dlock_core::{LockName, NameError};

use crate::case::nothing_is_left;
use crate::fixture::{Fixture, Setup};
use crate::patience::soon;

/// Names that stores, paths, URLs, scripts and globs treat in a way of their own, and pairs that look alike.
const NASTY: &[&str] = &[
    "a",
    "A",
    "a/b",
    "a/",
    "/a",
    "/",
    "//",
    "a//b",
    "a/b/c",
    ".",
    "..",
    "...",
    "../..",
    "./a",
    "a/../b",
    ".a",
    "a.",
    "a.b",
    ".session",
    "{x}",
    "{x}y",
    "{}",
    "{",
    "}",
    "%",
    "%%",
    "%2F",
    "%2f",
    "a%2Fb",
    "%252F",
    "%00",
    "%s%n",
    " ",
    "  ",
    " a",
    "a ",
    "a b",
    "a+b",
    "+",
    "*",
    "?",
    "a?b=c",
    "#",
    "a#b",
    "&",
    "=",
    ":",
    "a:b",
    ";",
    "'",
    "''",
    "\"",
    "`",
    "$x",
    "$(x)",
    "\\",
    "\\0",
    "\\n",
    "a\\b",
    "|",
    "~",
    "!",
    "@",
    "^",
    "<x>",
    "(x)",
    "[x]",
    ",",
    "-",
    "--",
    "-a",
    "_",
    "__lock__",
    "a__lock__b",
    "-lock-",
    "_c_0-lock-0000000000",
    "lock:a",
    "fence:1",
    "mark",
    "NULL",
    "null",
    "0",
    "00",
    "1e3",
    "-1",
    "18446744073709551616",
    "é",
    "e\u{301}",
    "É",
    "ß",
    "ss",
    "İ",
    "ı",
    "日本語",
    "🔒",
    "🔒🔑",
    "👩‍👩‍👧",
    "\u{feff}a",
    "\u{200b}",
    "\u{a0}",
    "\u{2028}",
    "\u{202e}a",
    "\u{fffd}",
    "\u{10ffff}",
    "con",
    "nul.txt",
    "drop table claim; --",
    "'; DROP TABLE claim; --",
];

/// Every legal name works: it can be held, is found held by another manager, and is free after its release.
pub async fn nasty_names_work(fx: &dyn Fixture) {
    let profile = fx.profile();
    let (one, other) = (fx.client(Setup::new()).await, fx.client(Setup::new()).await);
    for name in NASTY {
        let guard = soon(profile, "a free lock", one.lock(name).acquire()).await;
        let guard = guard.unwrap_or_else(|error| panic!("name {name:?} cannot be acquired: {error}"));
        assert_eq!(guard.name().as_str(), *name);
        let tried = soon(profile, "a try is answered", other.lock(name).try_acquire()).await;
        let tried = tried.unwrap_or_else(|error| panic!("name {name:?} cannot be tried: {error}"));
        assert!(tried.is_none(), "P1 broken: name {name:?} is held twice");
        guard.release().await.unwrap_or_else(|error| panic!("name {name:?} cannot be released: {error}"));
    }
}

/// No two names are one lock: all are held at once, and each lives in a place of its own.
pub async fn names_do_not_alias(fx: &dyn Fixture) {
    let profile = fx.profile();
    let (one, other) = (fx.client(Setup::new()).await, fx.client(Setup::new()).await);
    let mut names: Vec<String> = NASTY.iter().map(|name| (*name).to_owned()).collect();
    names.extend(long_names());
    let mut guards = Vec::new();
    let mut places = HashSet::new();
    for (number, name) in names.iter().enumerate() {
        // Names of one manager and of another, so that neither a queue in the process nor one at the store hides an alias.
        let client = if number % 2 == 0 { &one } else { &other };
        let guard = soon(profile, "a try is answered", client.lock(name).try_acquire()).await;
        let guard = guard.expect("the store answers");
        guards.push(guard.unwrap_or_else(|| panic!("name {name:?} is one lock with another name")));
        let place = one.locks.locate(&LockName::new(name).expect("a legal name"));
        assert!(
            places.insert(place.location.clone()),
            "name {name:?} lives where another one does: {place:?}"
        );
    }
    assert!(guards.iter().all(dlock_core::LockGuard::is_held));
    for guard in guards {
        guard.release().await.expect("the store answers");
    }
}

/// Names of up to 512 bytes work, and differ in their last byte.
pub async fn long_names_work(fx: &dyn Fixture) {
    let profile = fx.profile();
    let (one, other) = (fx.client(Setup::new()).await, fx.client(Setup::new()).await);
    for name in long_names() {
        let guard = soon(profile, "a free lock", one.lock(&name).acquire()).await;
        let guard = guard.unwrap_or_else(|error| panic!("a name of {} bytes: {error}", name.len()));
        assert!(other.lock(&name).try_acquire().await.expect("the store answers").is_none(), "P1 broken");
        guard.release().await.expect("the store answers");
    }
}

/// Names that are not legal are refused before any request, with what is wrong.
pub async fn illegal_names_are_refused(fx: &dyn Fixture) {
    let client = fx.client(Setup::new()).await;
    assert!(matches!(client.locks.lock(""), Err(NameError::Empty)));
    assert!(matches!(client.locks.lock("x".repeat(513)), Err(NameError::TooLong { bytes: 513 })));
    // Characters count as their bytes.
    assert!(matches!(client.locks.lock("🔒".repeat(129)), Err(NameError::TooLong { bytes: 516 })));
    for control in ['\0', '\t', '\n', '\r', '\u{7f}', '\u{85}', '\u{9f}'] {
        let error = client.locks.lock(format!("ab{control}c")).expect_err("a control character is not legal");
        assert!(matches!(error, NameError::ControlCharacter { at: 2, character } if character == control));
    }
}

/// A great many names, each used once, leave the store no larger than it was.
pub async fn used_names_leave_nothing(fx: &dyn Fixture) {
    // Enough that names are in use side by side, and so few that renewals are not held up.
    const TASKS: usize = 8;
    let profile = fx.profile();
    assert!(profile.bulk_names > profile.counters, "so few names prove nothing");
    let client = fx.client(Setup::new()).await;
    client
        .lock("first")
        .acquire()
        .await
        .expect("the lock is free")
        .release()
        .await
        .expect("the store answers");
    let before = fx.footprint().await;
    let mut tasks = Vec::new();
    for task in 0..TASKS {
        let (client, names) = (client.clone(), profile.bulk_names / TASKS);
        tasks.push(tokio::spawn(async move {
            for number in 0..names {
                let guard =
                    client.lock(&format!("order/{task}/{number}")).acquire().await.expect("the lock is free");
                assert!(guard.is_held());
                if number % 2 == 0 {
                    let released = guard.release().await;
                    let metrics = client.locks.metrics();
                    released.unwrap_or_else(|error| panic!("the store answers: {error:?}, {metrics:?}"));
                }
            }
        }));
    }
    let all = async {
        for task in tasks {
            task.await.expect("the task does not panic");
        }
    };
    tokio::time::timeout(profile.patience() * 3, all).await.expect("so many names are used in time");
    nothing_is_left(fx).await;
    let after = fx.footprint().await;
    assert!(
        after <= before.max(profile.counters),
        "{} names used once made the store grow from {before} to {after} records",
        profile.bulk_names
    );
    let metrics = client.locks.metrics();
    assert_eq!((metrics.held, metrics.waiting), (0, 0), "the manager keeps names that nobody uses");
}

/// Names as long as they may be, which differ only at their ends, in bytes and in characters of several bytes.
fn long_names() -> Vec<String> {
    let mut names = Vec::new();
    for (filling, ends) in
        [("x", ["1", "2"]), ("/", ["a", "b"]), ("%", ["2", "F"]), ("é", ["à", "á"]), ("🔒", ["🔑", "🗝"])]
    {
        for end in ends {
            let mut name = filling.repeat((512 - end.len()) / filling.len());
            name.push_str(end);
            assert!(name.len() <= 512 && name.len() > 505);
            names.push(name);
        }
    }
    names
}
