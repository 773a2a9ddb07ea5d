//! Where the programs of a server kind are: installed on this machine, or unpacked from Debian packages.

use std::collections::HashMap;
use std::env;
use std::path::{Path, PathBuf};

use tokio::process::Command;
use tokio::sync::Mutex;

use crate::error::{Error, Result};
use crate::kind::Software;
use crate::packages::{Cache, Recipe};

/// The programs of one software.
#[derive(Debug)]
pub(crate) struct Programs {
    paths: HashMap<&'static str, PathBuf>,
    /// The folder in which the packages are unpacked; empty if they are installed.
    root: PathBuf,
}

impl Programs {
    /// Finds the programs, or unpacks their packages. Looks once per process.
    pub(crate) async fn of(software: &'static Software) -> Result<&'static Self> {
        static KNOWN: Mutex<Option<HashMap<&str, Result<&'static Programs>>>> = Mutex::const_new(None);
        let mut known = KNOWN.lock().await;
        let known = known.get_or_insert_default();
        if let Some(programs) = known.get(software.name) {
            return programs.clone();
        }
        // At most one per kind of software.
        let programs = Self::find(software).await.map(|programs| &*Box::leak(Box::new(programs)));
        known.insert(software.name, programs.clone());
        programs
    }

    /// The path of a program; the name itself if it is none of the software's, such as `sh`.
    pub(super) fn path(&self, program: &str) -> PathBuf {
        self.paths.get(program).cloned().unwrap_or_else(|| program.into())
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    async fn find(software: &Software) -> Result<Self> {
        if let Some(installed) = installed(software).await {
            return Ok(installed);
        }
        let unpacked = async {
            let root = Recipe::programs(software).unpacked(&Cache::open().await?).await?;
            let host = root.join("host");
            let inside = software.folders.iter().chain(&["/usr/bin", "/usr/sbin"]);
            let mut folders: Vec<_> =
                inside.map(|folder| host.join(folder.trim_start_matches('/'))).collect();
            folders.extend(on_path());
            let paths = find(software, &folders)
                .map_err(|name| Error::new(format!("'{name}' is neither in these packages nor on PATH")))?;
            Ok(Self { paths, root })
        };
        unpacked.await.map_err(|error: Error| {
            Error::new(format!(
                "{} is not installed in the version that tests need; install it ('apt-get install {}' on Debian {}), \
                 or use Docker: {error}",
                software.name,
                [software.packages, software.runtime].concat().join(" "),
                software.suite
            ))
        })
    }
}

/// The programs that are installed on this machine, if all are and the version fits.
async fn installed(software: &Software) -> Option<Programs> {
    let folders: Vec<_> = software.folders.iter().map(PathBuf::from).chain(on_path()).collect();
    let programs = Programs { paths: find(software, &folders).ok()?, root: PathBuf::new() };
    let (command, wanted) = software.version;
    let output = Command::new(programs.path(command[0])).args(&command[1..]).output().await.ok()?;
    let printed =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    printed.contains(wanted).then_some(programs)
}

fn on_path() -> Vec<PathBuf> {
    env::split_paths(&env::var_os("PATH").unwrap_or_default()).collect()
}

/// Finds each program in the first folder that has it, or names one that none has.
fn find(software: &Software, folders: &[PathBuf]) -> Result<HashMap<&'static str, PathBuf>, &'static str> {
    let find = |name: &&'static str| {
        let path = folders.iter().map(|folder| folder.join(name)).find(|path| path.is_file());
        path.map(|path| (*name, path)).ok_or(*name)
    };
    software.programs.iter().map(find).collect()
}
