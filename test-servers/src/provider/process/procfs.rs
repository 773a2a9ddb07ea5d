//! Which processes work in a folder.

use std::fs;
use std::path::Path;

use rustix::process::Pid;

/// One process, as it was when it was looked at.
#[derive(Debug)]
pub(super) struct Process {
    pub(super) pid: Pid,
    /// `T` is stopped, `R` and `S` run or sleep; see proc(5).
    pub(super) state: char,
}

/// The living processes whose working folder is this one or inside of it.
pub(super) fn in_folder(folder: &Path) -> Vec<Process> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
            let cwd = fs::read_link(entry.path().join("cwd")).ok()?;
            if !cwd.starts_with(folder) {
                return None;
            }
            let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
            let state = stat.rsplit(')').next()?.trim_start().chars().next()?;
            Some(Process { pid: Pid::from_raw(pid)?, state })
        })
        .collect()
}
