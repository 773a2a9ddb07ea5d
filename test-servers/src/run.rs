//! This test program's run: its label, its folder, its address, and the reaper that removes everything afterwards.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use tokio::net::TcpSocket;

use crate::error::{Context, Error, Result};

/// Below the range from which the kernel picks ports for clients.
const FIRST_PORT: u32 = 10_000;
const PORTS: u32 = 20_000;

/// What everything that this process starts has in common.
#[derive(Debug)]
pub(crate) struct Run {
    label: String,
    folder: PathBuf,
    ip: Ipv4Addr,
    ports_given: AtomicU32,
    servers_named: AtomicU32,
    // Never closed by us: it closes when this process is gone, and then the reaper acts.
    _reaper: ChildStdin,
}

impl Run {
    /// The run of this process. The first call makes the folder and starts the reaper; `provider` is for the latter.
    pub(crate) fn this(provider: &str) -> Result<&'static Self> {
        static RUN: OnceLock<Result<Run>> = OnceLock::new();
        RUN.get_or_init(|| Self::begin(provider)).as_ref().map_err(Error::clone)
    }

    fn begin(provider: &str) -> Result<Self> {
        let pid = std::process::id();
        // The start time tells this process from an earlier one of the same number.
        let label = format!("{pid}-{}", start_time().context(|| "/proc/self/stat".into())?);
        let folder = fast_folder().join(format!("dlock-test-{label}"));
        fs::create_dir(&folder)
            // Servers that refuse to be root run as another user and must get in.
            .and_then(|()| fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)))
            .context(|| folder.display().to_string())?;
        let reaper = start_reaper(&label, &folder, provider).context(|| "starting sh".into())?;
        Ok(Self {
            label,
            folder,
            ip: own_ip(pid),
            ports_given: AtomicU32::new(0),
            servers_named: AtomicU32::new(0),
            _reaper: reaper,
        })
    }

    /// The value of the label `dlock-test` on containers.
    pub(crate) fn label(&self) -> &str {
        &self.label
    }

    /// Everything of this run is in here, and everything that it starts works in here.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// A loopback address that only this process uses.
    pub(crate) fn ip(&self) -> Ipv4Addr {
        self.ip
    }

    /// A name for a server that no other of this process has.
    pub(crate) fn name(&self, kind: &str) -> String {
        format!("{kind}-{}", self.servers_named.fetch_add(1, Ordering::Relaxed))
    }

    /// A port on [`ip`](Self::ip) that was given to nobody before, and that nobody listens on.
    pub(crate) fn port(&self) -> Result<u16> {
        for _ in 0..PORTS {
            let given = self.ports_given.fetch_add(1, Ordering::Relaxed);
            let port = u16::try_from(FIRST_PORT + given % PORTS).expect("the range ends below 65,536");
            // Somebody may listen on this port of all addresses.
            if is_free((self.ip, port).into()) {
                return Ok(port);
            }
        }
        Err(Error::new(format!("no free port on {}", self.ip)))
    }
}

/// Binds without listening: a process that is being started just then has a copy of the socket for a moment, and while one
/// listens nobody else can.
fn is_free(addr: SocketAddr) -> bool {
    TcpSocket::new_v4().is_ok_and(|socket| socket.set_reuseaddr(true).is_ok() && socket.bind(addr).is_ok())
}

/// Process numbers have at most 22 bits, and there is room for 22 in 127.64.0.0/10: no two processes share an address.
fn own_ip(pid: u32) -> Ipv4Addr {
    let [_, high, middle, low] = pid.to_be_bytes();
    Ipv4Addr::new(127, 64 | high, middle, low)
}

/// Memory where there is some: stores that flush to a busy disk are slower than the leases in tests are short.
fn fast_folder() -> PathBuf {
    let memory = Path::new("/dev/shm");
    let writable = rustix::fs::access(memory, rustix::fs::Access::WRITE_OK).is_ok();
    if writable { memory.to_owned() } else { std::env::temp_dir() }
}

/// When this process was started, in clock ticks since boot.
fn start_time() -> io::Result<u64> {
    let line = fs::read_to_string("/proc/self/stat")?;
    // The second field is the program's name in brackets, which may hold spaces; the 22nd is the start.
    let after_name = line.rsplit(')').next().unwrap_or_default();
    let start = after_name.split_whitespace().nth(19).and_then(|field| field.parse().ok());
    start.ok_or_else(|| io::Error::other("it has no start time"))
}

/// Starts the reaper in a session of its own, so that neither Ctrl-C nor the end of the terminal reaches it.
fn start_reaper(label: &str, folder: &Path, provider: &str) -> io::Result<ChildStdin> {
    let sh = |command: &mut Command| {
        command
            .args(["-c", include_str!("reaper.sh"), "reaper.sh", label])
            .arg(folder)
            .arg(provider)
            .stdin(Stdio::piped())
            // It outlives this process, whose output somebody may read to the end.
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
    };
    let child = match sh(Command::new("setsid").arg("sh")) {
        // Without util-linux a process group of its own keeps at least Ctrl-C away.
        Err(error) if error.kind() == io::ErrorKind::NotFound => sh(Command::new("sh").process_group(0))?,
        other => other?,
    };
    Ok(child.stdin.expect("standard input was asked to be a pipe"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_process_number_has_an_address_of_its_own() {
        assert_eq!(own_ip(1), Ipv4Addr::new(127, 64, 0, 1));
        assert_eq!(own_ip(4_194_303), Ipv4Addr::new(127, 127, 255, 255));
    }
}
