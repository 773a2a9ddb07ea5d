//! What is wrong is told with the way out, the documented code, and no secret.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "these are tests")]

mod sandbox;

use std::fs;

use sandbox::Sandbox;

#[test]
fn usage_errors_are_64() {
    let sandbox = Sandbox::new();
    let long_name = "n".repeat(513);
    let cases: &[(&[&str], &str)] = &[
        (&[], "Usage"),
        (&["frobnicate"], "unrecognized subcommand"),
        (&["run"], "NAME"),
        (&["run", "lock"], "COMMAND"),
        (&["run", "lock", "true"], "-- "),
        (&["run", "--ttl", "10", "lock", "--", "true"], "10s"),
        (&["run", "--ttl", "1ms", "lock", "--", "true"], "minimum"),
        (&["run", "--ttl", "3s", "--grace", "1s", "lock", "--", "true"], "below a third"),
        (&["run", "--max-hold", "1s", "lock", "--", "true"], "max-hold"),
        (&["run", "--wait", "1s", "--no-wait", "lock", "--", "true"], "cannot be used with"),
        (&["run", "--owner", "", "lock", "--", "true"], "owner"),
        (&["run", "", "--", "true"], "at least one byte"),
        (&["run", "a\nb", "--", "true"], "control character"),
        (&["run", &long_name, "--", "true"], "at most 512 bytes"),
        (&["run", "--url", "locks.db", "lock", "--", "true"], "scheme"),
        (&["run", "--url", "sqlite:", "lock", "--", "true"], "names no file"),
        (&["run", "--url", "sqlite:x.db?tll=1s", "lock", "--", "true"], "known are"),
        (&["run", "--url", "gopher://host", "lock", "--", "true"], "gopher"),
        (&["run", "--url", "memory:", "lock", "--", "true"], "excludes nobody"),
        (&["locate", ""], "at least one byte"),
        (&["init", "--url", "gopher://host"], "gopher"),
        (&["check", "--url", "gopher://host"], "gopher"),
    ];
    for (arguments, message) in cases {
        let finished = sandbox.dlock_ends(arguments);
        assert_eq!(finished.code(), 64, "{arguments:?} {finished:?}");
        assert!(
            finished.stderr.contains(message),
            "{arguments:?}: {message:?} is not in {:?}",
            finished.stderr
        );
        assert_eq!(finished.stdout, "", "{arguments:?}");
    }
}

#[test]
fn help_and_version_are_no_errors() {
    let sandbox = Sandbox::new();
    for arguments in
        [&["--help"][..], &["--version"], &["help", "run"], &["run", "--help"], &["check", "-h"], &["man"]]
    {
        let finished = sandbox.dlock_ends(arguments);
        finished.expect(0, "");
        assert!(finished.stdout.contains("dlock"));
    }
    let help = sandbox.dlock_ends(&["run", "--help"]).stdout;
    for code in ["64", "69", "70", "71", "75", "77", "126", "127", "128+N"] {
        assert!(help.contains(code), "the help explains {code}");
    }
}

#[test]
fn no_password_is_shown() {
    let sandbox = Sandbox::new();
    let urls = [
        ("postgres://user:hunter2@db/app?tll=1s", 64),
        ("redis://:hunter2@h/0?tll=1s", 64),
        ("etcd://u:hunter2@h?tll=1s", 64),
        ("gopher://u:hunter2@h", 64),
        ("hunter2", 64),
        // Where nobody listens.
        ("redis://:hunter2@127.0.0.1:1/0?request_timeout=300ms&give_up_after=1s", 69),
        ("postgres://user:hunter2@127.0.0.1:1/app?request_timeout=300ms&give_up_after=1s", 69),
        ("etcd://u:hunter2@127.0.0.1:1?request_timeout=300ms&give_up_after=1s", 69),
    ];
    for (url, code) in urls {
        for verb in [&["run", "lock", "--", "true"][..], &["init"], &["check"], &["locate", "lock"]] {
            let mut command = sandbox.dlock(verb);
            let finished = sandbox.start(command.env("DLOCK_URL", url)).ends();
            let code = if verb[0] == "locate" && code == 69 { 0 } else { code };
            assert_eq!(finished.code(), code, "{url}: {finished:?}");
            let said = format!("{}{}", finished.stdout, finished.stderr);
            assert!(!said.contains("hunter2"), "{url}: {finished:?}");
        }
        let mut command = sandbox.dlock(&["run", "--help"]);
        assert!(!sandbox.start(command.env("DLOCK_URL", url)).ends().stdout.contains("hunter2"));
    }
}

#[test]
fn a_file_that_is_no_lock_store_is_refused_and_left_alone() {
    let sandbox = Sandbox::new();
    let path = sandbox.path("precious.txt");
    fs::write(&path, "this is no database, and longer than a header would be".repeat(40)).unwrap();
    let before = fs::read(&path).unwrap();
    let url = format!("sqlite:{}", path.display());
    for verb in [&["run", "lock", "--", "true"][..], &["init"], &["check"]] {
        let mut command = sandbox.dlock(verb);
        let finished = sandbox.start(command.env("DLOCK_URL", &url)).ends();
        finished.expect(77, "precious.txt");
    }
    assert_eq!(fs::read(&path).unwrap(), before);
}

#[test]
fn a_damaged_lock_file_is_refused() {
    let sandbox = Sandbox::new();
    sandbox.run(&[], "true").ends().expect(0, "");
    let path = sandbox.path("damaged.db");
    fs::copy(sandbox.path("locks.db"), &path).unwrap();
    let mut bytes = fs::read(&path).unwrap();
    for byte in &mut bytes[100..] {
        *byte = 0x5a;
    }
    fs::write(&path, bytes).unwrap();
    let url = format!("sqlite:{}", path.display());
    sandbox.dlock_ends(&["run", "--url", &url, "lock", "--", "true"]).expect(77, "damaged.db");
}

#[test]
fn a_place_that_cannot_be_written_is_refused() {
    let sandbox = Sandbox::new();
    fs::create_dir(sandbox.path("folder")).unwrap();
    let places = [
        sandbox.path("missing/locks.db").display().to_string(),
        sandbox.path("folder").display().to_string(),
        "/proc/self/locks.db".to_owned(),
    ];
    for place in places {
        let finished =
            sandbox.dlock_ends(&["run", "--url", &format!("sqlite:{place}"), "lock", "--", "true"]);
        finished.expect(77, &place);
    }
}

#[test]
fn a_store_that_stays_locked_is_unavailable() {
    let sandbox = Sandbox::new();
    sandbox.run(&[], "true").ends().expect(0, "");
    let database = sandbox.database();
    database.execute_batch("BEGIN EXCLUSIVE").unwrap();
    let finished = sandbox.run(&["--wait", "1s", "--ttl", "2s"], "echo never").ends();
    finished.expect(69, "locks.db");
    assert_eq!(finished.stdout, "");
    database.execute_batch("COMMIT").unwrap();
}

#[test]
fn locate_says_where() {
    let sandbox = Sandbox::new();
    let finished = sandbox.dlock_ends(&["locate", "orders/42"]);
    finished.expect(0, "sqlite3");
    assert_eq!(finished.stdout, format!("{}#orders/42\n", sandbox.path("locks.db").display()));
    let finished = sandbox.dlock_ends(&["locate", "--json", "orders/42"]);
    finished.expect(0, "");
    let json: serde_json::Value = serde_json::from_str(&finished.stdout).unwrap();
    assert_eq!(json["backend"], "sqlite");
    assert_eq!(json["name"], "orders/42");
    assert_eq!(json["location"], format!("{}#orders/42", sandbox.path("locks.db").display()));
    assert!(!sandbox.path("locks.db").exists(), "nothing is made by asking where");
}

#[test]
fn init_makes_the_file() {
    let sandbox = Sandbox::new();
    for _ in 0..2 {
        sandbox.dlock_ends(&["init"]).expect(0, "is ready");
    }
    assert_eq!(sandbox.rows(), 0);
}

#[test]
fn the_default_store_is_in_the_passwd_home() {
    let sandbox = Sandbox::new();
    let mut command = sandbox.dlock(&["locate", "lock"]);
    // Not in $HOME: cron, sudo and shells set it as they please.
    let finished = sandbox.start(command.env_remove("DLOCK_URL").env("HOME", sandbox.path("home"))).ends();
    finished.expect(0, "");
    assert!(finished.stdout.ends_with("/.local/state/dlock/locks.db#lock\n"), "{finished:?}");
    assert!(!finished.stdout.contains(sandbox.path("home").to_str().unwrap()), "{finished:?}");
}
