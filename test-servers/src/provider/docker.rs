//! Servers as containers, driven by the `docker` command.

mod images;

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::Duration;

use async_trait::async_trait;
use tokio::process::Command;
use tokio::sync::Mutex;

use crate::error::{Error, Result};
use crate::kind::{Launch, Software};
use crate::provider::{Instance, rooted, run_command, text};
use crate::run::Run;
use crate::site::Site;

/// What the daemon takes for a request, on a machine that is busy with other things.
const PATIENCE: Duration = Duration::from_secs(60);

/// The Docker daemon.
#[derive(Debug)]
pub(crate) struct Docker {
    /// Which daemon it is: where a registry could not be reached from.
    id: String,
}

impl Docker {
    /// Finds the daemon.
    pub(crate) async fn connect() -> Result<Self> {
        let mut info = Command::new("docker");
        info.args(["info", "--format", "{{.ID}}"]);
        match run_command(&mut info, &std::env::temp_dir(), Duration::from_secs(60)).await {
            Ok(output) if output.status.success() => Ok(Self { id: text(&output.stdout) }),
            Ok(output) => Err(Error::new(format!(
                "docker has no daemon: start it, or set DLOCK_TEST_PROVIDER=process: {}",
                text(&output.stderr)
            ))),
            Err(error) => {
                Err(Error::new(format!("install docker, or set DLOCK_TEST_PROVIDER=process: {error}")))
            }
        }
    }

    /// The image to use for this software; fetches or makes it if there is none.
    pub(crate) async fn image(&self, software: &'static Software) -> Result<String> {
        images::find_or_make(&self.id, software).await
    }
}

/// One container, which may be ended and started again.
#[derive(Debug)]
pub(crate) struct Container {
    image: String,
    label: String,
    /// Also the name of the container.
    name: String,
    folder: PathBuf,
    /// How the container was made, if there is one.
    made: Mutex<Option<Launch>>,
}

impl Container {
    pub(crate) fn new(image: String, label: &str, site: &Site) -> Self {
        Self {
            image,
            label: format!("dlock-test={label}"),
            name: format!("dlock-test-{label}-{}", site.name()),
            folder: site.folder().to_owned(),
            made: Mutex::new(None),
        }
    }

    /// `docker VERB OPTIONS IMAGE COMMAND`, with what all our containers have in common.
    fn with_image(&self, options: &[&str], launch: &Launch, command: &[String]) -> Vec<String> {
        let command = rooted(command, Path::new(""));
        let folder = self.folder.display();
        let (user, group) = launch.user();
        let mut args: Vec<String> = options.iter().map(ToString::to_string).collect();
        args.extend([
            // Loopback addresses of the machine, as processes have them.
            "--network=host".into(),
            format!("--label={}", self.label),
            // The files can then be removed from outside.
            format!("--user={user}:{group}"),
            // The same path inside and outside.
            format!("--volume={folder}:{folder}"),
            format!("--workdir={folder}"),
            format!("--entrypoint={}", command[0]),
        ]);
        args.extend(launch.env.iter().map(|(name, value)| format!("--env={name}={value}")));
        if launch.never_root && user != 65534 {
            // Such a server wants to know its user's name.
            args.push("--volume=/etc/passwd:/etc/passwd:ro".into());
        }
        if launch.ends_by_interrupt {
            args.push("--stop-signal=SIGINT".into());
        }
        args.push(self.image.clone());
        args.extend_from_slice(&command[1..]);
        args
    }

    /// Whether the container runs, and the number of its main process; none if there is no container.
    async fn state(&self) -> Result<Option<(bool, u32)>> {
        let format = "{{.State.Running}} {{.State.Pid}}";
        let output = docker_output(&["container", "inspect", "--format", format, &self.name]).await?;
        if !output.status.success() {
            return Ok(None);
        }
        let state = text(&output.stdout);
        let (running, pid) = state.split_once(' ').unwrap_or_default();
        Ok(Some((running == "true", pid.parse().unwrap_or(0))))
    }

    /// Does something with the running container; that it does not run any more is no error.
    async fn end(&self, args: &[&str]) -> Result<()> {
        if let Err(error) = docker(args).await
            && self.pid().await?.is_some()
        {
            return Err(error);
        }
        Ok(())
    }
}

#[async_trait]
impl Instance for Container {
    async fn setup(&self, launch: &Launch, command: &[String]) -> Result<Output> {
        docker_output(&self.with_image(&["run", "--rm"], launch, command)).await
    }

    async fn start(&self, launch: &Launch) -> Result<()> {
        let mut made = self.made.lock().await;
        if made.as_ref() != Some(launch) {
            if made.is_some() {
                docker(&["rm", "--force", "--volumes", &self.name]).await?;
                *made = None;
            }
            let name = format!("--name={}", self.name);
            let create = self.with_image(&["create", &name, "--stop-timeout=10"], launch, &launch.command);
            if docker(&create).await.is_err() {
                // An earlier attempt may have made it without our being told: then the name is taken.
                drop(docker(&["rm", "--force", "--volumes", &self.name]).await);
                docker(&create).await?;
            }
            *made = Some(launch.clone());
        }
        docker(&["start", &self.name]).await.map(drop)
    }

    async fn stop(&self) -> Result<()> {
        self.end(&["stop", &self.name]).await
    }

    async fn kill(&self) -> Result<()> {
        self.end(&["kill", "--signal=KILL", &self.name]).await?;
        docker(&["wait", &self.name]).await.map(drop)
    }

    async fn freeze(&self) -> Result<()> {
        let mut attempts = 0;
        loop {
            attempts += 1;
            match docker(&["pause", &self.name]).await {
                // On a busy machine the older kind of cgroups is sometimes not frozen in time, and runc takes it back.
                Err(error) if attempts < 10 && error.to_string().contains("unable to freeze") => {}
                outcome => return outcome.map(drop),
            }
        }
    }

    async fn thaw(&self) -> Result<()> {
        docker(&["unpause", &self.name]).await.map(drop)
    }

    async fn pid(&self) -> Result<Option<u32>> {
        Ok(self.state().await?.and_then(|(running, pid)| running.then_some(pid)))
    }

    async fn output(&self, launch: &Launch, command: &[String]) -> Result<Output> {
        let mut args = vec!["exec".to_owned()];
        args.extend(launch.env.iter().map(|(name, value)| format!("--env={name}={value}")));
        args.push(self.name.clone());
        args.extend(rooted(command, Path::new("")));
        docker_output(&args).await
    }

    async fn log(&self) -> String {
        match docker_output(&["logs", &self.name]).await {
            Ok(output) => text(&output.stdout) + &text(&output.stderr),
            Err(error) => error.to_string(),
        }
    }

    async fn remove(&self) {
        // What is not removed now, the reaper removes.
        drop(docker(&["rm", "--force", "--volumes", &self.name]).await);
    }
}

/// Runs `docker` to its end.
async fn docker_output<S: AsRef<OsStr>>(args: &[S]) -> Result<Output> {
    let folder = Run::this("docker")?.folder();
    run_command(Command::new("docker").args(args), folder, PATIENCE).await
}

/// Runs `docker`, and returns what it prints.
async fn docker<S: AsRef<OsStr>>(args: &[S]) -> Result<String> {
    let output = docker_output(args).await?;
    if output.status.success() {
        return Ok(text(&output.stdout));
    }
    let args: Vec<_> = args.iter().map(|arg| arg.as_ref().to_string_lossy()).collect();
    Err(Error::new(format!("docker {}: {}", args.join(" "), text(&output.stderr))))
}
