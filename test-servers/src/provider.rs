//! The two ways to run a server, behind one interface.

mod docker;
mod process;

use std::env;
use std::fmt;
use std::path::Path;
use std::process::{Output, Stdio};
use std::time::Duration;

use async_trait::async_trait;
use tokio::process::Command;
use tokio::sync::OnceCell;
use tokio::time::timeout;

use crate::error::{Context, Error, Result};
use crate::hub;
use crate::kind::{Launch, Software};
use crate::run::Run;
use crate::site::Site;

/// The way in which this test program runs servers.
#[derive(Debug)]
pub(crate) enum Provider {
    Docker(docker::Docker, &'static Run),
    Process(&'static Run),
}

impl Provider {
    /// The provider of this process: the one in `DLOCK_TEST_PROVIDER`, else Docker if its daemon answers, else processes.
    pub(crate) async fn this() -> Result<&'static Self> {
        static PROVIDER: OnceCell<Result<Provider>> = OnceCell::const_new();
        hub::run(async { PROVIDER.get_or_init(Self::choose).await.as_ref().map_err(Error::clone) }).await
    }

    async fn choose() -> Result<Self> {
        match env::var("DLOCK_TEST_PROVIDER").as_deref() {
            Ok("docker") => {
                let docker = docker::Docker::connect().await?;
                Ok(Self::Docker(docker, Run::this("docker")?))
            }
            Ok("process") => Ok(Self::Process(Run::this("process")?)),
            Ok(other) => {
                Err(Error::new(format!("DLOCK_TEST_PROVIDER is '{other}', and can be 'docker' or 'process'")))
            }
            Err(_) => match docker::Docker::connect().await {
                Ok(docker) => Ok(Self::Docker(docker, Run::this("docker")?)),
                Err(_) => Ok(Self::Process(Run::this("process")?)),
            },
        }
    }

    pub(crate) fn run(&self) -> &'static Run {
        match self {
            Self::Docker(_, run) | Self::Process(run) => run,
        }
    }

    /// Finds or makes the software, and returns a server that is not started yet.
    pub(crate) async fn instance(
        &self,
        software: &'static Software,
        site: &Site,
    ) -> Result<Box<dyn Instance>> {
        Ok(match self {
            Self::Docker(docker, run) => {
                let image = docker.image(software).await?;
                Box::new(docker::Container::new(image, run.label(), site))
            }
            Self::Process(_) => {
                let programs = process::Programs::of(software).await?;
                Box::new(process::Processes::new(programs, site))
            }
        })
    }
}

/// One server, running or not. Called on the background runtime, one call at a time except for `log`, `pid` and `output`.
#[async_trait]
pub(crate) trait Instance: fmt::Debug + Send + Sync {
    /// Runs a command of the software to its end, in the folder of the server, which need not run.
    async fn setup(&self, launch: &Launch, command: &[String]) -> Result<Output>;
    /// Starts the server; does not wait until it serves.
    async fn start(&self, launch: &Launch) -> Result<()>;
    /// Asks the server to end; returns when it has, if need be by force.
    async fn stop(&self) -> Result<()>;
    /// Ends all processes of the server by SIGKILL, frozen or not; returns when they are gone.
    async fn kill(&self) -> Result<()>;
    /// Stops the clock for all processes of the server; returns when they are stopped.
    async fn freeze(&self) -> Result<()>;
    /// Lets the processes go on.
    async fn thaw(&self) -> Result<()>;
    /// The number of the main process, if it runs.
    async fn pid(&self) -> Result<Option<u32>>;
    /// Runs a program beside the running server.
    async fn output(&self, launch: &Launch, command: &[String]) -> Result<Output>;
    /// What the server has written to its standard output and error.
    async fn log(&self) -> String;
    /// Leaves nothing behind, except for the folder.
    async fn remove(&self);
}

/// Runs a command with no input and returns its output; its working folder is that of the run, so that the reaper finds it.
async fn run_command(command: &mut Command, folder: &Path, limit: Duration) -> Result<Output> {
    command.current_dir(folder).stdin(Stdio::null()).kill_on_drop(true);
    let name = format!("{command:?}", command = command.as_std());
    timeout(limit, command.output())
        .await
        .map_err(|_| Error::new(format!("{name} did not end within {limit:?}")))?
        .context(|| name)
}

/// A command with the folder of the packages in its place.
fn rooted(command: &[String], root: &Path) -> Vec<String> {
    command.iter().map(|part| part.replace("{root}", &root.display().to_string())).collect()
}

/// The output of a command for people, without the last line's end.
pub(crate) fn text(output: &[u8]) -> String {
    String::from_utf8_lossy(output).trim_end().to_owned()
}
