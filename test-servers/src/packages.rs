//! Programs of Debian packages, unpacked into a cache folder. Nothing is installed on the machine.

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use rustix::fs::{FlockOperation, flock};
use rustix::process::geteuid;
use tokio::process::Command;

use crate::error::{Context, Error, Result};
use crate::hub;
use crate::kind::Software;

const UNPACK: &str = include_str!("../packages/unpack.sh");

/// The folder in which unpacked packages stay between test runs: `DLOCK_TEST_CACHE`, else in the user's cache folder, or
/// for root in `/var/cache`, since servers that refuse to be root cannot get into root's home.
#[derive(Debug)]
pub(crate) struct Cache(PathBuf);

impl Cache {
    pub(crate) async fn open() -> Result<Self> {
        let folder = env::var_os("DLOCK_TEST_CACHE").map(PathBuf::from);
        let of_user = || {
            if geteuid().is_root() {
                return Some(PathBuf::from("/var/cache"));
            }
            env::var_os("XDG_CACHE_HOME").map(PathBuf::from).or_else(|| Some(env::home_dir()?.join(".cache")))
        };
        let folder =
            folder.unwrap_or_else(|| of_user().unwrap_or_else(env::temp_dir).join("dlock-test-servers"));
        hub::blocking(move || {
            fs::create_dir_all(&folder).context(|| folder.display().to_string()).map(|()| Self(folder))
        })
        .await
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.0
    }

    /// Waits until no other process has this lock. It is given up when the file is dropped, or by the end of the process.
    pub(crate) async fn lock(&self, name: &str) -> Result<File> {
        let path = self.0.join(format!("{name}.lock"));
        hub::blocking(move || {
            let file = File::create(&path).context(|| path.display().to_string())?;
            flock(&file, FlockOperation::LockExclusive).context(|| path.display().to_string())?;
            Ok(file)
        })
        .await
    }
}

/// What to unpack.
#[derive(Debug)]
pub(crate) struct Recipe {
    name: &'static str,
    suite: &'static str,
    packages: Vec<&'static str>,
}

impl Recipe {
    /// The programs alone, for this machine.
    pub(crate) fn programs(software: &Software) -> Self {
        Self { name: software.name, suite: software.suite, packages: software.packages.into() }
    }

    /// All that an image needs.
    pub(crate) fn image(software: &Software) -> Self {
        Self { packages: [software.packages, software.runtime].concat(), ..Self::programs(software) }
    }

    /// Tells recipes apart: another script or other packages make another image and another folder.
    pub(crate) fn id(&self) -> String {
        // FNV-1a; the hash of std may change with the compiler.
        let parts = [UNPACK, self.suite].into_iter().chain(self.packages.iter().copied());
        let hash =
            parts.flat_map(|part| part.bytes().chain([0])).fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
                (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
            });
        format!("{hash:016x}")
    }

    /// The folder with the unpacked packages; unpacks them if that was not done before.
    ///
    /// It can be imported as an image. `host/` in it has wrappers, under the programs' own paths, that run on this machine.
    pub(crate) async fn unpacked(&self, cache: &Cache) -> Result<PathBuf> {
        let (packages, suite) = (self.packages.join(" "), self.suite);
        let folder = cache.folder().join(format!("{}-{}", self.name, self.id()));
        let _lock = cache.lock(&format!("packages-{}", self.name)).await?;
        if folder.is_dir() {
            return Ok(folder);
        }
        eprintln!("test-servers: unpacking {packages} of Debian {suite} into {}", folder.display());
        let status = Command::new("sh")
            .args(["-c", UNPACK, "unpack.sh", suite])
            .arg(&folder)
            .args(&self.packages)
            .current_dir(cache.folder())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .status()
            .await
            .context(|| "sh".into())?;
        if status.success() {
            return Ok(folder);
        }
        Err(Error::new(format!(
            "unpacking the packages {packages} of Debian {suite} failed ({status}); the reason is above, on standard error"
        )))
    }
}
