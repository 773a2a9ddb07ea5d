//! Servers as processes of this machine.

mod procfs;
mod programs;

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Output, Stdio};
use std::time::Duration;

use async_trait::async_trait;
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};
use tokio::sync::Mutex;
use tokio::time::timeout;

use crate::error::{Context, Result};
use crate::kind::Launch;
use crate::provider::{Instance, rooted, run_command};
use crate::site::Site;
pub(crate) use programs::Programs;

/// What the server has for an orderly end.
const GRACE: Duration = Duration::from_secs(10);
const COMMAND: Duration = Duration::from_secs(60);

/// The processes of one server.
///
/// They are known by their working folder, not by their parent or group: a server may fork, leave its group, and
/// overwrite its environment, but it stays in its folder.
#[derive(Debug)]
pub(crate) struct Processes {
    programs: &'static Programs,
    folder: PathBuf,
    log: PathBuf,
    main: Mutex<Option<Child>>,
    /// What asks the main process to end.
    ends_by: Mutex<Signal>,
}

impl Processes {
    pub(crate) fn new(programs: &'static Programs, site: &Site) -> Self {
        // Beside the folder: emptying that one must not lose it.
        let log = site.folder().with_extension("log");
        Self {
            programs,
            folder: site.folder().to_owned(),
            log,
            main: Mutex::new(None),
            ends_by: Mutex::new(Signal::TERM),
        }
    }

    fn command(&self, launch: &Launch, command: &[String]) -> Command {
        let command = rooted(command, self.programs.root());
        let mut process = Command::new(self.programs.path(&command[0]));
        process.args(&command[1..]).envs(launch.env.iter().cloned()).current_dir(&self.folder);
        // A terminal's signals are not for the servers.
        process.process_group(0);
        if launch.never_root && rustix::process::geteuid().is_root() {
            let (user, group) = launch.user();
            process.uid(user).gid(group);
        }
        process
    }

    /// Sends a signal to all processes of the server until none is left in which it has had no effect.
    async fn signal_all(&self, signal: Signal, missing: fn(&procfs::Process) -> bool) -> Result<()> {
        loop {
            let found: Vec<_> = procfs::in_folder(&self.folder).into_iter().filter(missing).collect();
            if found.is_empty() {
                return Ok(());
            }
            for process in found {
                // It may have gone meanwhile.
                kill_process(process.pid, signal).ok();
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    async fn reap(&self) -> Result<()> {
        match self.main.lock().await.take() {
            Some(mut main) => main.wait().await.map(drop).context(|| "waiting for the server's end".into()),
            None => Ok(()),
        }
    }
}

#[async_trait]
impl Instance for Processes {
    async fn setup(&self, launch: &Launch, command: &[String]) -> Result<Output> {
        run_command(&mut self.command(launch, command), &self.folder, COMMAND).await
    }

    async fn start(&self, launch: &Launch) -> Result<()> {
        let log = || File::options().create(true).append(true).open(&self.log);
        let out = log().context(|| self.log.display().to_string())?;
        let err = log().context(|| self.log.display().to_string())?;
        let child = self
            .command(launch, &launch.command)
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(err)
            .spawn()
            .context(|| self.programs.path(&launch.command[0]).display().to_string())?;
        *self.main.lock().await = Some(child);
        *self.ends_by.lock().await = if launch.ends_by_interrupt { Signal::INT } else { Signal::TERM };
        Ok(())
    }

    async fn stop(&self) -> Result<()> {
        if let Some(pid) = self.pid().await?.and_then(|pid| Pid::from_raw(pid.cast_signed())) {
            kill_process(pid, *self.ends_by.lock().await).ok();
            let ended = timeout(GRACE, async {
                if let Some(main) = self.main.lock().await.as_mut() {
                    drop(main.wait().await);
                }
            });
            drop(ended.await);
        }
        self.kill().await
    }

    async fn kill(&self) -> Result<()> {
        self.signal_all(Signal::KILL, |_| true).await?;
        self.reap().await
    }

    async fn freeze(&self) -> Result<()> {
        self.signal_all(Signal::STOP, |process| process.state != 'T').await
    }

    async fn thaw(&self) -> Result<()> {
        self.signal_all(Signal::CONT, |process| process.state == 'T').await
    }

    async fn pid(&self) -> Result<Option<u32>> {
        let mut main = self.main.lock().await;
        let Some(child) = main.as_mut() else { return Ok(None) };
        let ended = child.try_wait().context(|| "asking for the server's end".into())?;
        Ok(if ended.is_none() { child.id() } else { None })
    }

    async fn output(&self, launch: &Launch, command: &[String]) -> Result<Output> {
        run_command(&mut self.command(launch, command), &self.folder, COMMAND).await
    }

    async fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    async fn remove(&self) {
        // What is not removed now, the reaper removes.
        drop(self.kill().await);
        drop(fs::remove_file(&self.log));
    }
}
