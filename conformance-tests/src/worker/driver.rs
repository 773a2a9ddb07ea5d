//! The driver's side of a worker process.

use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout};

use super::{Answer, Line, Order};
use crate::fixture::{Fixture, Profile};
use crate::history::{AttemptId, History, Seen};

/// A worker process, as its driver sees it. It is killed when this is dropped.
#[derive(Debug)]
pub struct Worker {
    child: Child,
    orders: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
    history: History,
    profile: Profile,
    /// The last attempt of which an event came.
    last: Option<AttemptId>,
}

impl Worker {
    /// Starts a worker on the fixture's store. What it sees goes into `history`, under the number `process`.
    ///
    /// # Panics
    ///
    /// If the fixture has no worker, or the worker cannot connect.
    pub async fn start(fx: &dyn Fixture, history: &History, process: u32) -> Self {
        let command = fx.worker().expect("process cases are for fixtures with a worker");
        Self::run(command, fx.profile(), history, process).await
    }

    /// Starts a worker with this command, to which its number is added.
    ///
    /// # Panics
    ///
    /// If the worker cannot connect.
    pub async fn run(
        command: std::process::Command,
        profile: &Profile,
        history: &History,
        process: u32,
    ) -> Self {
        let mut command = tokio::process::Command::from(command);
        command.arg(process.to_string()).stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut child =
            command.spawn().unwrap_or_else(|error| panic!("{command:?} cannot be started: {error}"));
        let orders = child.stdin.take().expect("it is piped");
        let lines = BufReader::new(child.stdout.take().expect("it is piped")).lines();
        let mut worker =
            Self { child, orders, lines, history: history.clone(), profile: profile.clone(), last: None };
        assert_eq!(worker.answer().await, Some(Answer::Done), "the worker connects");
        worker
    }

    /// Gives an order and waits for the answer.
    ///
    /// # Panics
    ///
    /// If the worker ends, or does not answer.
    pub async fn ask(&mut self, order: Order) -> Answer {
        self.order(order).await;
        self.answer().await.expect("the worker answers before it ends")
    }

    /// Gives an order, and does not wait for the answer.
    ///
    /// # Panics
    ///
    /// If the worker has ended.
    pub async fn order(&mut self, order: Order) {
        let mut line = serde_json::to_string(&order).expect("plain data always serialises");
        line.push('\n');
        self.orders.write_all(line.as_bytes()).await.expect("the worker lives");
    }

    /// Waits for the next answer; none if the worker has ended. What it saw until then is in the history.
    ///
    /// # Panics
    ///
    /// If it does not answer in time.
    pub async fn answer(&mut self) -> Option<Answer> {
        let limit = self.profile.patience() * 2;
        let line = async {
            loop {
                let line = self.lines.next_line().await.ok().flatten()?;
                match serde_json::from_str(&line).expect("workers write lines of JSON") {
                    Line::Answer(answer) => return Some(answer),
                    Line::Event(event) => {
                        self.last = Some(event.attempt);
                        self.history.add([event]);
                    }
                }
            }
        };
        tokio::time::timeout(limit, line).await.expect("the worker answers in time")
    }

    /// Acquires a lock; the token.
    ///
    /// # Panics
    ///
    /// If it is not got.
    pub async fn acquire(&mut self, name: &str) -> u64 {
        let limit_ms = u64::try_from(self.profile.patience().as_millis()).unwrap_or(u64::MAX);
        match self.ask(Order::Acquire { name: name.to_owned(), limit_ms }).await {
            Answer::Got { token } => token,
            other => panic!("the worker did not get the lock: {other:?}"),
        }
    }

    /// Whether its guard holds, by its own clock.
    ///
    /// # Panics
    ///
    /// If it has no guard.
    pub async fn is_held(&mut self, name: &str) -> bool {
        match self.ask(Order::IsHeld { name: name.to_owned() }).await {
            Answer::Held(held) => held,
            other => panic!("the worker has no guard: {other:?}"),
        }
    }

    /// Stops the process where it is, as a debugger, a swap storm or a closed lid does.
    pub fn freeze(&self) {
        self.signal(Signal::STOP);
    }

    /// Lets it go on.
    pub fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    /// Kills the process and waits for its end. What it wrote before is in the history, and its last attempt as crashed.
    ///
    /// # Panics
    ///
    /// If it does not end.
    pub async fn kill(&mut self) {
        let crashed = self.history.now();
        self.signal(Signal::KILL);
        let ended = tokio::time::timeout(Duration::from_secs(60), self.child.wait()).await;
        drop(ended.expect("a killed process ends"));
        while self.answer().await.is_some() {}
        if let Some(attempt) = self.last {
            self.history.see_at(crashed, attempt, Seen::Crashed);
        }
    }

    /// Ends the process as one that has nothing more to do, and waits for its end.
    ///
    /// # Panics
    ///
    /// If it does not end.
    pub async fn finish(self) {
        let Self { mut child, orders, lines, .. } = self;
        drop(orders);
        drop(lines);
        let ended = tokio::time::timeout(Duration::from_secs(60), child.wait()).await;
        drop(ended.expect("a worker without orders ends"));
    }

    fn signal(&self, signal: Signal) {
        let pid = self.child.id().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
        // Only ever the child that was started here, and has not been waited for.
        kill_process(pid.expect("the worker has not ended"), signal).expect("a child can be signalled");
    }
}
