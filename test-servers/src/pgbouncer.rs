//! PgBouncer, a pooler before PostgreSQL.

use std::net::SocketAddr;

use crate::kind::{Kind, Launch, Probe, Software, argv};
use crate::site::Site;

static PGBOUNCER: Software = Software {
    name: "pgbouncer-1",
    image: Some("edoburu/pgbouncer:v1.24.1-p1"),
    suite: "trixie",
    packages: &["pgbouncer"],
    runtime: &[],
    programs: &["pgbouncer"],
    folders: &["/usr/sbin"],
    version: (&["pgbouncer", "--version"], "PgBouncer 1."),
};

/// How a pooler shares connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PoolMode {
    /// A client has one for as long as it stays.
    Session,
    /// A client has one for as long as a transaction lasts.
    Transaction,
    /// A client has one for as long as a statement lasts.
    Statement,
}

/// PgBouncer before a PostgreSQL server; it asks nobody for a password.
#[derive(Clone, Debug)]
pub struct PgBouncer {
    server: SocketAddr,
    mode: PoolMode,
    config: Vec<String>,
}

impl PgBouncer {
    /// Before this server.
    pub fn before(server: SocketAddr, mode: PoolMode) -> Self {
        Self { server, mode, config: Vec::new() }
    }

    /// Adds a line of configuration, as in the section `[pgbouncer]`.
    pub fn config(mut self, line: impl Into<String>) -> Self {
        self.config.push(line.into());
        self
    }
}

impl Kind for PgBouncer {
    fn software(&self) -> &'static Software {
        &PGBOUNCER
    }

    fn launch(&self, site: &Site) -> Launch {
        let mode = match self.mode {
            PoolMode::Session => "session",
            PoolMode::Transaction => "transaction",
            PoolMode::Statement => "statement",
        };
        let config = format!(
            "[databases]\n* = host={} port={}\n[pgbouncer]\nlisten_addr = {}\nlisten_port = {}\nunix_socket_dir =\n\
             auth_type = trust\nauth_file = users.txt\npool_mode = {mode}\nlogfile =\npidfile =\n{}\n",
            self.server.ip(),
            self.server.port(),
            site.ip(),
            site.port(0),
            self.config.join("\n"),
        );
        Launch {
            command: argv([&"pgbouncer", &"pgbouncer.ini"]),
            files: vec![
                ("pgbouncer.ini".to_owned(), config),
                ("users.txt".to_owned(), "\"postgres\" \"\"\n".to_owned()),
            ],
            // It lets us in, whether or not the server behind it serves.
            probe: Probe::new(0, crate::postgres::start_up(), &["R\0\0\0"]),
            never_root: true,
            ..Launch::default()
        }
    }
}
