//! PostgreSQL.

use std::net::SocketAddr;

use crate::certs::Certs;
use crate::kind::{Kind, Launch, Probe, Software, argv};
use crate::site::Site;

static POSTGRES_17: Software = Software {
    name: "postgres-17",
    image: Some("postgres:17.5"),
    suite: "trixie",
    packages: &["postgresql-17"],
    // Its programs run each other by way of the shell.
    runtime: &["dash"],
    programs: &["postgres", "initdb", "psql", "pg_basebackup", "pg_dump", "pg_restore"],
    folders: &["/usr/lib/postgresql/17/bin"],
    version: (&["postgres", "--version"], "(PostgreSQL) 17"),
};

static POSTGRES_15: Software = Software {
    name: "postgres-15",
    image: Some("postgres:15.13"),
    suite: "bookworm",
    packages: &["postgresql-15"],
    folders: &["/usr/lib/postgresql/15/bin"],
    version: (&["postgres", "--version"], "(PostgreSQL) 15"),
    ..POSTGRES_17
};

/// One PostgreSQL server, with the superuser `postgres`. Data always survives a kill.
///
/// [`Server::exec`](crate::Server::exec) is `psql`, which prints bare values: `exec(&["-c", "SELECT 1"])`.
#[derive(Clone, Debug)]
pub struct Postgres {
    software: &'static Software,
    config: Vec<String>,
    hba: Vec<String>,
    files: Vec<(String, String)>,
    password: Option<String>,
    primary: Option<SocketAddr>,
}

impl Postgres {
    /// PostgreSQL 17.
    pub fn v17() -> Self {
        Self::of(&POSTGRES_17)
    }

    /// PostgreSQL 15.
    pub fn v15() -> Self {
        Self::of(&POSTGRES_15)
    }

    fn of(software: &'static Software) -> Self {
        let (config, hba, files) = (Vec::new(), Vec::new(), Vec::new());
        Self { software, config, hba, files, password: None, primary: None }
    }

    /// Adds a line of configuration, as in `postgresql.conf`. Relative paths of TLS files start at the folder `data`.
    pub fn config(mut self, line: impl Into<String>) -> Self {
        self.config.push(line.into());
        self
    }

    /// Adds a line to `pg_hba.conf`, before the one that lets everybody in from loopback addresses.
    pub fn hba(mut self, line: impl Into<String>) -> Self {
        self.hba.push(line.into());
        self
    }

    /// Asks for this password of `postgres`, and for those of other users.
    pub fn password(mut self, password: impl Into<String>) -> Self {
        self.password = Some(password.into());
        self
    }

    /// Also speaks TLS, with the same port.
    pub fn tls(mut self, certs: &Certs) -> Self {
        self.config.push("ssl = on".into());
        for (setting, file) in
            [("ssl_ca_file", "ca.pem"), ("ssl_cert_file", "server.pem"), ("ssl_key_file", "server-key.pem")]
        {
            self.config.push(format!("{setting} = '../{file}'"));
            self.files.push((file.to_owned(), certs.pem(file)));
        }
        self
    }

    /// Makes it a standby that follows the running server at this address; `SELECT pg_promote()` makes it a primary.
    pub fn standby_of(mut self, primary: SocketAddr) -> Self {
        self.primary = Some(primary);
        self
    }
}

impl Kind for Postgres {
    fn software(&self) -> &'static Software {
        self.software
    }

    fn launch(&self, site: &Site) -> Launch {
        let (ip, port, folder) = (site.ip(), site.port(0), site.folder().display());
        let mut config = vec![
            format!("listen_addresses = '{ip}'"),
            format!("port = {port}"),
            format!("hba_file = '{folder}/pg_hba.conf'"),
            format!("unix_socket_directories = '{folder}'"),
            // Many servers share a machine, and the compiler is not there.
            "shared_buffers = 16MB".into(),
            "jit = off".into(),
        ];
        config.extend(self.config.iter().cloned());
        let method = if self.password.is_some() { "scram-sha-256" } else { "trust" };
        let mut hba = self.hba.clone();
        hba.push(format!("host all all 127.0.0.0/8 {method}"));
        hba.push(format!("host replication all 127.0.0.0/8 {method}"));
        let mut files = self.files.clone();
        files.push(("postgresql.conf".into(), config.join("\n") + "\n"));
        files.push(("pg_hba.conf".into(), hba.join("\n") + "\n"));
        let mut env = vec![
            ("PGCONNECT_TIMEOUT".into(), "10".into()),
            // Where clients look for certificates; that of another user they may not read.
            ("HOME".into(), folder.to_string()),
        ];
        let mut init = argv([
            &"initdb",
            &"--pgdata=data",
            &"--username=postgres",
            &"--auth=trust",
            &"--encoding=UTF8",
            &"--locale=C",
            &"--no-sync",
        ]);
        if let Some(password) = &self.password {
            files.push(("password".into(), format!("{password}\n")));
            env.push(("PGPASSWORD".into(), password.clone()));
            init.push("--pwfile=password".into());
        }
        if let Some(primary) = self.primary {
            let conninfo = format!("host={} port={} user=postgres", primary.ip(), primary.port());
            init = argv([
                &"pg_basebackup",
                &"--pgdata=data",
                &"--write-recovery-conf",
                &"--checkpoint=fast",
                &"--no-sync",
                &"--dbname",
                &conninfo,
            ]);
        }
        Launch {
            command: argv([
                &"postgres",
                &"-D",
                &"data",
                &"-c",
                &format!("config_file={folder}/postgresql.conf"),
            ]),
            setup: vec![init],
            files,
            env,
            probe: Probe {
                port: 0,
                question: start_up(),
                answers: vec![b"R\0\0\0".into(), b"C28000".into()],
            },
            client: argv([
                &"psql",
                &"--no-psqlrc",
                &"--quiet",
                &"--tuples-only",
                &"--no-align",
                &"--set=ON_ERROR_STOP=1",
                &"--username=postgres",
                &"--dbname=postgres",
                &format!("--host={ip}"),
                &format!("--port={port}"),
            ]),
            never_root: true,
            // SIGTERM would wait for the clients to leave.
            ends_by_interrupt: true,
        }
    }
}

/// The first message of a connection. A server that starts says so (57P03); one that serves asks for a password, lets us
/// in, or does not (28000).
pub(crate) fn start_up() -> Vec<u8> {
    let parameters = b"user\0postgres\0database\0postgres\0\0";
    let length = u32::try_from(parameters.len() + 8).expect("it is short");
    [&length.to_be_bytes()[..], &196_608_u32.to_be_bytes(), parameters].concat()
}
