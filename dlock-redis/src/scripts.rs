//! The scripts that run at a node, one for each verb, and how they are called.

use std::sync::LazyLock;

use redis::{Cmd, Pipeline};

/// A script, called by its hash.
pub(crate) struct Script {
    code: &'static str,
    hash: String,
}

pub(crate) static GRANT: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("grant.lua")));
pub(crate) static COMMIT: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("commit.lua")));
pub(crate) static RENEW: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("renew.lua")));
pub(crate) static RELEASE: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("release.lua")));
pub(crate) static LOOK: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("look.lua")));
pub(crate) static INIT: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("init.lua")));

/// The scripts that a session uses.
pub(crate) fn of_a_session() -> [&'static Script; 5] {
    [&GRANT, &COMMIT, &RENEW, &RELEASE, &LOOK]
}

/// Keys and arguments of one call of a script.
#[derive(Clone, Debug, Default)]
pub(crate) struct Call {
    pub(crate) keys: Vec<String>,
    pub(crate) args: Vec<String>,
    /// How many claims it is about.
    pub(crate) claims: usize,
}

impl Script {
    fn new(code: &'static str) -> Self {
        Self { code, hash: redis::Script::new(code).get_hash().to_owned() }
    }

    /// Calls by hash, in one batch.
    pub(crate) fn pipeline<'a>(&self, calls: impl IntoIterator<Item = &'a Call>) -> Pipeline {
        let mut pipeline = Pipeline::new();
        for call in calls {
            pipeline.add_command(self.by_hash(call));
        }
        pipeline
    }

    /// The same for a node that does not know the script: it comes first, and its answer with it.
    pub(crate) fn loading_pipeline<'a>(&self, calls: impl IntoIterator<Item = &'a Call>) -> Pipeline {
        let mut pipeline = Pipeline::new();
        pipeline.add_command(self.load());
        for call in calls {
            pipeline.add_command(self.by_hash(call));
        }
        pipeline
    }

    /// Makes a node know the script. Called without keys, each of them does nothing; unlike `SCRIPT LOAD`, `EVAL` is
    /// a permission that the user has anyway.
    pub(crate) fn load(&self) -> Cmd {
        let mut command = redis::cmd("EVAL");
        command.arg(self.code).arg(0);
        command
    }

    fn by_hash(&self, call: &Call) -> Cmd {
        let mut command = redis::cmd("EVALSHA");
        command.arg(&self.hash).arg(call.keys.len());
        for part in call.keys.iter().chain(&call.args) {
            command.arg(part);
        }
        command
    }
}
