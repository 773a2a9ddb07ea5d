//! The scripts on real servers against a small reference in Rust: random sequences of every verb, with good arguments and
//! bad ones, must be answered alike and leave the same data.

#![allow(clippy::unwrap_used, reason = "a failure here fails the test")]

mod support;

use std::collections::HashMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Script, Value};
use support::{Flavour, SOON, servers};
use test_servers::Server;

const LIMIT: u64 = (1 << 53) - 2;
const BUCKET: u64 = 1_000_000;
const LOCKS: usize = 3;
const PAR: &str = "1:0:1:1000:500:1024:fnv1a-fmix64";

/// What one node should hold. Leases are long, so nothing expires; the quarantine has a test of its own.
#[derive(Default)]
struct Reference {
    marked: bool,
    counter: u64,
    locks: HashMap<usize, String>,
}

/// What is expected of a GRANT: the token depends on the node's clock where the floor decides.
#[derive(Debug, PartialEq)]
enum Expected {
    Reply(Vec<String>),
    /// Within these bounds, and on the bucket's edge; or this one, if a bucket ended only after it was granted.
    Floor {
        least: u64,
        most: u64,
        without: u64,
    },
}

impl Reference {
    fn grant(&mut self, lock: usize, nonce: &str, proposal: &str, par: &str, now: (u64, u64)) -> Expected {
        let reply = |parts: &[&str]| Expected::Reply(parts.iter().map(ToString::to_string).collect());
        if self.marked && par != PAR {
            return reply(&["MISMATCH", PAR]);
        }
        self.marked = true;
        if let Some(held) = self.locks.get(&lock) {
            return reply(&["DENIED", &self.counter.to_string(), held]);
        }
        let least = self.counter + 1;
        // What is no number, negative, or too far ahead is nothing.
        let proposed = proposal.parse::<f64>().ok().filter(|p| p.is_finite() && *p >= 0.0);
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "it is within bounds"
        )]
        let proposed = proposed.map_or(0, |p| if p > (now.0 + BUCKET / 2) as f64 { 0 } else { p as u64 });
        let without_floor = least.max(proposed);
        let floor = |now: u64| now - now % BUCKET - BUCKET;
        if without_floor > LIMIT {
            return reply(&["RANGE"]);
        }
        self.locks.insert(lock, nonce.to_owned());
        if without_floor >= floor(now.1) {
            self.counter = without_floor;
            reply(&["GRANTED", &without_floor.to_string()])
        } else {
            Expected::Floor { least: floor(now.0), most: floor(now.1), without: without_floor }
        }
    }

    fn commit(&mut self, lock: usize, nonce: &str, token: u64) -> Vec<String> {
        if self.locks.get(&lock).is_none_or(|held| held != nonce) {
            return vec!["LOST".to_owned()];
        }
        if token > LIMIT || self.counter > token {
            return vec!["STALE".to_owned(), self.counter.to_string()];
        }
        self.counter = self.counter.max(token);
        vec!["OK".to_owned()]
    }

    fn release(&mut self, lock: usize, nonce: &str) -> bool {
        let own = self.locks.get(&lock).is_some_and(|held| held == nonce);
        if own {
            self.locks.remove(&lock);
        }
        own
    }
}

/// The scripts on a server.
struct Real {
    connection: MultiplexedConnection,
    grant: Script,
    commit: Script,
    renew: Script,
    release: Script,
}

fn key(lock: usize) -> String {
    format!("dlock:lock:{lock}")
}

fn texts(value: &Value) -> Vec<String> {
    let Value::Array(parts) = value else { panic!("{value:?}") };
    parts
        .iter()
        .map(|part| match part {
            Value::BulkString(bytes) => String::from_utf8(bytes.clone()).unwrap(),
            Value::Int(number) => number.to_string(),
            Value::SimpleString(text) => text.clone(),
            Value::Okay => "OK".to_owned(),
            other => panic!("{other:?}"),
        })
        .collect()
}

impl Real {
    async fn at(server: &Server) -> Self {
        let client = redis::Client::open(format!("redis://{}", server.addr())).unwrap();
        // The crate's own limits are shorter than a busy machine may take.
        let limits =
            AsyncConnectionConfig::new().set_connection_timeout(Some(SOON)).set_response_timeout(Some(SOON));
        Self {
            connection: client.get_multiplexed_async_connection_with_config(&limits).await.unwrap(),
            grant: Script::new(include_str!("../src/grant.lua")),
            commit: Script::new(include_str!("../src/commit.lua")),
            renew: Script::new(include_str!("../src/renew.lua")),
            release: Script::new(include_str!("../src/release.lua")),
        }
    }

    async fn grant(&mut self, lock: usize, nonce: &str, proposal: &str, par: &str, wait: u64) -> Vec<String> {
        let mut call = self.grant.key(key(lock));
        call.key("dlock:fence:0").key("dlock:mark");
        call.arg(nonce).arg(600_000).arg(proposal).arg(par).arg(wait).arg(4000).arg(1000).arg("{}");
        texts(&call.invoke_async(&mut self.connection).await.unwrap())
    }

    async fn commit(&mut self, lock: usize, nonce: &str, token: u64) -> Vec<String> {
        let mut call = self.commit.key(key(lock));
        call.key("dlock:fence:0").key("dlock:mark").arg(nonce).arg(token);
        texts(&call.invoke_async(&mut self.connection).await.unwrap())
    }

    async fn renew(&mut self, claims: &[(usize, String)]) -> Vec<String> {
        let mut call = self.renew.prepare_invoke();
        for (lock, _) in claims {
            call.key(key(*lock));
        }
        call.key("dlock:mark").arg(600_000).arg(0);
        for (_, nonce) in claims {
            call.arg(nonce);
        }
        texts(&call.invoke_async(&mut self.connection).await.unwrap())
    }

    async fn release(&mut self, lock: usize, nonce: &str) -> Vec<String> {
        let mut call = self.release.key(key(lock));
        call.arg(nonce).arg(format!("dlock:wake:{lock}"));
        texts(&call.invoke_async(&mut self.connection).await.unwrap())
    }
}

fn wall_clock() -> u64 {
    #[allow(clippy::disallowed_methods, reason = "the server's clock is this machine's")]
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    u64::try_from(now.as_micros()).unwrap()
}

fn proposal(random: &mut SmallRng, counter: u64) -> String {
    let now = wall_clock();
    match random.random_range(0..10) {
        0 => "nonsense".to_owned(),
        1 => "-5".to_owned(),
        2 => "nan".to_owned(),
        3 => "inf".to_owned(),
        4 => (now + 3_600_000_000).to_string(),
        5 => format!("{}.75", now + 1000),
        6 => "0".to_owned(),
        7 => (counter + 1).to_string(),
        8 => String::new(),
        _ => (now + random.random_range(0..BUCKET / 4)).to_string(),
    }
}

async fn compare(server: &Server, seed: u64, steps: usize) {
    let mut random = SmallRng::seed_from_u64(seed);
    server.exec(&["FLUSHALL"]).await.unwrap();
    let (mut real, mut reference) = (Real::at(server).await, Reference::default());
    let mut nonces: Vec<String> = (0..4).map(|nonce| format!("{nonce:032x}")).collect();
    for step in 0..steps {
        let lock = random.random_range(0..LOCKS);
        let nonce = nonces[random.random_range(0..nonces.len())].clone();
        let context = format!("seed {seed}, step {step}");
        match random.random_range(0..10) {
            0..4 => {
                // A fresh nonce for each attempt, as clients have.
                let fresh = format!("{:032x}", (u128::from(seed) << 64) + step as u128 + 100);
                let slot = random.random_range(0..nonces.len());
                nonces[slot].clone_from(&fresh);
                let par = if random.random_range(0..20) == 0 && reference.marked { "1:1:1:1" } else { PAR };
                let proposal = proposal(&mut random, reference.counter);
                let before = wall_clock();
                let mut reply = real.grant(lock, &fresh, &proposal, par, 0).await;
                let after = wall_clock();
                if reply[0] == "DENIED" {
                    // What is left of the lease is the clock's affair.
                    reply.remove(2);
                }
                match reference.grant(lock, &fresh, &proposal, par, (before, after)) {
                    Expected::Reply(expected) => assert_eq!(reply, expected, "{context}: {proposal:?}"),
                    Expected::Floor { least, most, without } => {
                        let token: u64 = reply[1].parse().unwrap();
                        assert!(
                            reply[0] == "GRANTED" && token >= least && token <= most,
                            "{context}: {reply:?}"
                        );
                        assert!(token.is_multiple_of(BUCKET) || token == without, "{context}: {reply:?}");
                        reference.counter = token;
                    }
                }
            }
            4..6 => {
                let token = match random.random_range(0..5) {
                    0 => LIMIT + 1,
                    1 => reference.counter,
                    2 => reference.counter.saturating_sub(1),
                    _ => reference.counter + random.random_range(1..50),
                };
                let reply = real.commit(lock, &nonce, token).await;
                assert_eq!(reply, reference.commit(lock, &nonce, token), "{context}: {token}");
            }
            6..8 => {
                let claims: Vec<_> = (0..random.random_range(1..4))
                    .map(|_| {
                        (random.random_range(0..LOCKS), nonces[random.random_range(0..nonces.len())].clone())
                    })
                    .collect();
                let own = |(lock, nonce): &(usize, String)| {
                    u8::from(reference.locks.get(lock) == Some(nonce)).to_string()
                };
                let expected: Vec<_> = claims.iter().map(own).collect();
                assert_eq!(real.renew(&claims).await, expected, "{context}");
            }
            _ => {
                let expected = u8::from(reference.release(lock, &nonce)).to_string();
                assert_eq!(real.release(lock, &nonce).await, [expected], "{context}");
            }
        }
    }
    // The same data in the end.
    if reference.counter > 0 {
        let counter = server.exec(&["GET", "dlock:fence:0"]).await.unwrap();
        assert_eq!(counter.trim(), reference.counter.to_string(), "seed {seed}");
    }
    for lock in 0..LOCKS {
        let held = server.exec(&["GET", &key(lock)]).await.unwrap();
        let expected = reference.locks.get(&lock).map(|nonce| format!("{nonce} {{}}"));
        assert_eq!(held.trim(), expected.unwrap_or_default(), "seed {seed}");
    }
}

#[tokio::test]
async fn the_scripts_do_what_the_reference_does() {
    for flavour in [Flavour::Redis8, Flavour::Redis7, Flavour::Valkey] {
        let servers = servers(flavour, 1).await;
        for seed in 0..10 {
            compare(&servers[0], seed, 400).await;
        }
    }
}

/// The quarantine, on the server's own clock.
#[tokio::test]
async fn a_mark_is_made_kept_and_made_anew() {
    const WAIT: u64 = 700_000;
    for flavour in [Flavour::Redis8, Flavour::Redis7, Flavour::Valkey] {
        let servers = servers(flavour, 1).await;
        let server = &servers[0];
        let mut real = Real::at(server).await;
        let till = |reply: &[String]| -> u64 {
            assert_eq!(reply[0], "QUARANTINED", "{reply:?}");
            reply[1].parse().unwrap()
        };
        let nonce = format!("{:032x}", 1);
        let before = wall_clock();
        let first = real.grant(0, &nonce, "0", PAR, WAIT).await;
        assert!(till(&first) >= before + WAIT * 1000 && till(&first) <= wall_clock() + WAIT * 1000);
        assert_eq!(first[3], "unmarked");
        assert_eq!(till(&real.grant(0, &nonce, "0", PAR, WAIT).await), till(&first), "it is not prolonged");
        // Too long a lease, and other figures, change nothing.
        assert_eq!(real.grant(0, &nonce, "0", PAR, 600_000).await, ["TTL"]);
        assert_eq!(real.grant(0, &nonce, "0", "other", WAIT).await, ["MISMATCH", PAR]);
        assert_eq!(till(&real.grant(0, &nonce, "0", PAR, WAIT).await), till(&first));
        // A clock that was stepped back does not make it longer.
        server.exec(&["HSET", "dlock:mark", "till", &(wall_clock() * 2).to_string()]).await.unwrap();
        assert!(till(&real.grant(0, &nonce, "0", PAR, WAIT).await) <= wall_clock() + WAIT * 1000);
        // Over, and of another life again.
        server.exec(&["HSET", "dlock:mark", "till", "1"]).await.unwrap();
        assert_eq!(real.grant(0, &nonce, "0", PAR, WAIT).await[0], "GRANTED");
        assert_eq!(real.commit(0, &nonce, LIMIT).await, ["OK"]);
        server.exec(&["HSET", "dlock:mark", "rid", "another", "run", "another"]).await.unwrap();
        assert_eq!(real.commit(0, &nonce, LIMIT).await, ["LOST"], "the node has begun another life");
        let again = real.grant(1, &nonce, "0", PAR, WAIT).await;
        assert!(till(&again) > till(&first) && again[3] == "changed", "{again:?}");
        // A counter at its end is refused, not wrapped.
        server.exec(&["HSET", "dlock:mark", "till", "1"]).await.unwrap();
        assert_eq!(real.grant(1, &nonce, "0", PAR, WAIT).await, ["RANGE"]);
        // Only the id of an idle backlog has changed: no quarantine. The same after it was fed by a master: one.
        server.exec(&["DEL", "dlock:fence:0"]).await.unwrap();
        server.exec(&["HSET", "dlock:mark", "rid", "another"]).await.unwrap();
        assert_eq!(real.grant(1, &nonce, "0", PAR, WAIT).await[0], "GRANTED");
        server.exec(&["HSET", "dlock:mark", "rid", "another", "fed", "17"]).await.unwrap();
        assert_eq!(real.grant(2, &nonce, "0", PAR, WAIT).await[0], "QUARANTINED");
        tokio::time::timeout(Duration::from_secs(5), server.exec(&["FLUSHALL"])).await.unwrap().unwrap();
    }
}

/// A script at a server whose INFO lacks a field.
fn blinded(code: &str, field: &str) -> Script {
    Script::new(&format!(
        "local real = redis
         local redis = {{pcall = real.pcall, call = function(name, ...)
             local reply = real.call(name, ...)
             if name == 'INFO' then reply = string.gsub(reply, '{field}:', 'other:') end
             return reply
         end}}
         {code}"
    ))
}

/// What cannot be told apart is not taken for the same.
#[tokio::test]
async fn a_server_that_does_not_tell_its_identity_grants_nothing() {
    let servers = servers(Flavour::Redis8, 1).await;
    let mut real = Real::at(&servers[0]).await;
    let (grant, init) = (include_str!("../src/grant.lua"), include_str!("../src/init.lua"));
    for field in ["master_replid", "run_id", "total_net_repl_input_bytes"] {
        servers[0].exec(&["FLUSHALL"]).await.unwrap();
        let script = blinded(init, field);
        let mut call = script.key("dlock:mark");
        call.arg(PAR).arg(4000);
        assert_eq!(texts(&call.invoke_async(&mut real.connection).await.unwrap()), ["BLIND", field]);
        for (wait, expected) in [(700_000, "BLIND"), (0, "GRANTED")] {
            let script = blinded(grant, field);
            let mut call = script.key(key(0));
            call.key("dlock:fence:0").key("dlock:mark");
            call.arg(format!("{wait:032x}"))
                .arg(600_000)
                .arg(0)
                .arg(PAR)
                .arg(wait)
                .arg(4000)
                .arg(1000)
                .arg("{}");
            let reply = texts(&call.invoke_async(&mut real.connection).await.unwrap());
            assert_eq!(reply[0], expected, "{field}: {reply:?}");
        }
    }
}
