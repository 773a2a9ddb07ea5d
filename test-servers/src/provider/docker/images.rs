//! Which image to use: the official one, or one made of Debian packages where no registry can be reached.

use std::collections::HashMap;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;
use tokio::sync::Mutex;

use super::{docker, docker_output};
use crate::error::{Context, Error, Result};
use crate::kind::Software;
use crate::packages::{Cache, Recipe};
use crate::provider::{run_command, text};
use crate::run::Run;

/// A pull that takes longer is given up for this start of the machine.
const PULL: Duration = Duration::from_secs(90);

/// The image for this software. Looks once per process, and pulls or makes one at most once per machine.
pub(super) async fn find_or_make(daemon: &str, software: &'static Software) -> Result<String> {
    static KNOWN: Mutex<Option<HashMap<&str, Result<String>>>> = Mutex::const_new(None);
    let mut known = KNOWN.lock().await;
    let known = known.get_or_insert_default();
    if let Some(image) = known.get(software.name) {
        return image.clone();
    }
    let image = look(daemon, software).await;
    known.insert(software.name, image.clone());
    image
}

async fn look(daemon: &str, software: &'static Software) -> Result<String> {
    if let Some(official) = software.image
        && exists(official).await?
    {
        return Ok(official.to_owned());
    }
    // Test programs that start together wait here for the first of them, and then find what it made.
    let cache = Cache::open().await?;
    let _lock = cache.lock(&format!("image-{}", software.name)).await?;
    if let Some(official) = software.image
        && (exists(official).await? || pull(&cache, daemon, official).await?)
    {
        return Ok(official.to_owned());
    }
    let recipe = Recipe::image(software);
    let made = format!("dlock-test-{}:{}", software.name, recipe.id());
    if !exists(&made).await? {
        let root = recipe.unpacked(&cache).await.map_err(|error| {
            Error::new(match software.image {
                Some(image) => format!(
                    "no registry has given {image}, and it cannot be made here; run 'docker pull {image}': {error}"
                ),
                None => format!("an image of {} cannot be made here: {error}", software.name),
            })
        })?;
        eprintln!("test-servers: making the image {made}");
        import(&root, software, &made).await?;
    }
    Ok(made)
}

async fn exists(image: &str) -> Result<bool> {
    Ok(docker_output(&["image", "inspect", "--format", "{{.Id}}", image]).await?.status.success())
}

/// Asks the registry, unless it was asked in vain since the machine was started.
async fn pull(cache: &Cache, daemon: &str, image: &str) -> Result<bool> {
    let failures = failures(cache, daemon);
    if fs::read_to_string(&failures).unwrap_or_default().lines().any(|line| line == image) {
        return Ok(false);
    }
    eprintln!("test-servers: docker pull {image}");
    let mut command = Command::new("docker");
    command.args(["pull", "--quiet", image]);
    let problem = match run_command(&mut command, Run::this("docker")?.folder(), PULL).await {
        Ok(output) if output.status.success() => return Ok(true),
        Ok(output) => text(&output.stderr),
        Err(error) => error.to_string(),
    };
    eprintln!("test-servers: {problem}");
    fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(&failures)
        .and_then(|mut file| writeln!(file, "{image}"))
        .context(|| failures.display().to_string())?;
    Ok(false)
}

/// The file with the images that this daemon could not pull since the machine was started.
fn failures(cache: &Cache, daemon: &str) -> PathBuf {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let name = format!("not-pulled-{daemon}-{}", boot.trim());
    cache.folder().join(name.replace(|c: char| !c.is_ascii_alphanumeric() && c != '-', "_"))
}

/// Makes an image of a folder.
async fn import(root: &Path, software: &Software, image: &str) -> Result<()> {
    let mut tar = std::process::Command::new("tar")
        .arg("-C")
        .arg(root)
        .args(["--numeric-owner", "--owner=0", "--group=0", "--exclude=./host", "-c", "."])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context(|| "tar".into())?;
    let archive = tar.stdout.take().expect("standard output was asked to be a pipe");
    let output = Command::new("docker")
        .arg("import")
        .arg(format!(
            "--change=ENV PATH={}",
            [software.folders, &["/usr/sbin", "/usr/bin"]].concat().join(":")
        ))
        .args(["-", image])
        .stdin(archive)
        .output()
        .await
        .context(|| "docker import".into())?;
    let packed = tar.wait().context(|| "tar".into())?;
    if !packed.success() || !output.status.success() {
        // A half-packed image must not be taken for a whole one.
        drop(docker(&["image", "rm", image]).await);
        return Err(Error::new(format!("docker import: {}; tar: {packed}", text(&output.stderr))));
    }
    Ok(())
}
