//! Where a server lives: its addresses and its folder.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use crate::error::Result;
use crate::provider::Provider;

/// The addresses and the folder of one server; they stay the same as long as the server exists, running or not.
///
/// Reserve sites before the servers where members of a cluster must know each other's addresses.
#[derive(Clone, Debug)]
pub struct Site {
    name: String,
    ip: IpAddr,
    ports: Vec<u16>,
    folder: PathBuf,
}

impl Site {
    /// Reserves a name that begins with `kind`, and that many ports. Starts nothing.
    ///
    /// # Errors
    ///
    /// When no provider is available, or no port is free.
    pub async fn reserve(kind: &str, ports: usize) -> Result<Self> {
        let run = Provider::this().await?.run();
        let name = run.name(kind);
        let ports = (0..ports).map(|_| run.port()).collect::<Result<_>>()?;
        Ok(Self { folder: run.folder().join(&name), name, ip: run.ip().into(), ports })
    }

    /// The name of the server, unique in this test program: `redis-8-0`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The loopback address, used by this test program only.
    pub fn ip(&self) -> IpAddr {
        self.ip
    }

    /// The n-th address. What each is for is the server kind's to say; the first is for clients.
    ///
    /// # Panics
    ///
    /// When that many ports were not reserved.
    pub fn addr(&self, n: usize) -> SocketAddr {
        SocketAddr::new(self.ip, self.port(n))
    }

    /// The n-th port.
    ///
    /// # Panics
    ///
    /// When that many ports were not reserved.
    pub fn port(&self, n: usize) -> u16 {
        self.ports[n]
    }

    /// The server's working folder, with the same path inside and outside of a container. It holds all of its data.
    pub fn folder(&self) -> &Path {
        &self.folder
    }
}
