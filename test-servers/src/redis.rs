//! Redis and Valkey.

use std::net::SocketAddr;

use crate::certs::Certs;
use crate::kind::{Kind, Launch, Probe, Software, argv};
use crate::site::Site;

static REDIS_8: Software = Software {
    name: "redis-8",
    image: Some("redis:8.2.1"),
    suite: "trixie",
    packages: &["redis-server", "redis-tools"],
    runtime: &[],
    programs: &["redis-server", "redis-cli"],
    folders: &[],
    version: (&["redis-server", "--version"], "Redis server v=8."),
};

static REDIS_7: Software = Software {
    name: "redis-7",
    image: Some("redis:7.4.5"),
    suite: "bookworm",
    version: (&["redis-server", "--version"], "Redis server v=7."),
    ..REDIS_8
};

static VALKEY_8: Software = Software {
    name: "valkey-8",
    image: Some("valkey/valkey:8.1.3"),
    packages: &["valkey-server", "valkey-tools"],
    programs: &["valkey-server", "valkey-cli"],
    version: (&["valkey-server", "--version"], "server v=8."),
    ..REDIS_8
};

/// One Redis or Valkey server.
///
/// Nothing is persisted unless [`config`](Self::config) says so. Ports: 0 is for clients, with TLS if that is on; 1 is the
/// plain one beside TLS; 2 is the cluster bus.
#[derive(Clone, Debug)]
pub struct Redis {
    flavour: Flavour,
    config: Vec<String>,
    files: Vec<(String, String)>,
    password: Option<String>,
    tls: bool,
}

#[derive(Clone, Copy, Debug)]
struct Flavour {
    software: &'static Software,
    server: &'static str,
    client: &'static str,
}

const REDIS: (&str, &str) = ("redis-server", "redis-cli");
const VALKEY: (&str, &str) = ("valkey-server", "valkey-cli");

impl Redis {
    /// Redis 8.
    pub fn v8() -> Self {
        Self::of(&REDIS_8, REDIS)
    }

    /// Redis 7.
    pub fn v7() -> Self {
        Self::of(&REDIS_7, REDIS)
    }

    /// Valkey 8.
    pub fn valkey() -> Self {
        Self::of(&VALKEY_8, VALKEY)
    }

    fn of(software: &'static Software, (server, client): (&'static str, &'static str)) -> Self {
        let flavour = Flavour { software, server, client };
        Self { flavour, config: Vec::new(), files: Vec::new(), password: None, tls: false }
    }

    /// Adds a line of configuration, as in `redis.conf`. Relative paths start at the server's folder.
    pub fn config(mut self, line: impl Into<String>) -> Self {
        self.config.push(line.into());
        self
    }

    /// Puts a file into the server's folder.
    pub fn file(mut self, name: impl Into<String>, content: impl Into<String>) -> Self {
        self.files.push((name.into(), content.into()));
        self
    }

    /// Asks clients for this password.
    pub fn password(mut self, password: impl Into<String>) -> Self {
        self.password = Some(password.into());
        self
    }

    /// Makes it a replica of the server at this address.
    pub fn replica_of(self, primary: SocketAddr) -> Self {
        self.config(format!("replicaof {} {}", primary.ip(), primary.port()))
    }

    /// Writes every change to disk before it is answered, so that data survives a kill.
    pub fn durable(self) -> Self {
        self.config("appendonly yes").config("appendfsync always")
    }

    /// Speaks TLS on port 0 and asks clients for a certificate; port 1 is the plain one.
    ///
    /// `tls-auth-clients no` as [`config`](Self::config) makes the clients' certificates unnecessary.
    pub fn tls(mut self, certs: &Certs) -> Self {
        self.tls = true;
        for (directive, file) in [
            ("tls-ca-cert-file", "ca.pem"),
            ("tls-cert-file", "server.pem"),
            ("tls-key-file", "server-key.pem"),
        ] {
            self.config.push(format!("{directive} {file}"));
            self.files.push((file.to_owned(), certs.pem(file)));
        }
        self
    }

    /// Turns cluster mode on; joining nodes and giving out slots is the test's to do.
    pub fn cluster(self) -> Self {
        self.config("cluster-enabled yes")
    }
}

impl Kind for Redis {
    fn software(&self) -> &'static Software {
        self.flavour.software
    }

    fn ports(&self) -> usize {
        3
    }

    fn launch(&self, site: &Site) -> Launch {
        let plain = usize::from(self.tls);
        let mut config = vec![
            format!("bind {}", site.ip()),
            format!("port {}", site.port(plain)),
            format!("dir {}", site.folder().display()),
            // Others would take the address that its connections come from, which is 127.0.0.1.
            format!("replica-announce-ip {}", site.ip()),
            format!("cluster-announce-ip {}", site.ip()),
            format!("cluster-port {}", site.port(2)),
            "save \"\"".into(),
            // Tests may make it sleep.
            "enable-debug-command yes".into(),
            "protected-mode no".into(),
        ];
        let mut client = argv([&self.flavour.client, &"-e", &"-h", &site.ip(), &"-p", &site.port(plain)]);
        if self.tls {
            config.push(format!("tls-port {}", site.port(0)));
        }
        if let Some(password) = &self.password {
            config.push(format!("requirepass \"{password}\"\nmasterauth \"{password}\""));
            client.extend(argv([&"--no-auth-warning", &"-a", password]));
        }
        config.extend(self.config.iter().cloned());
        let mut files = vec![(
            "redis.conf".to_owned(),
            config.join(
                "
",
            ) + "
",
        )];
        files.extend(self.files.iter().cloned());
        Launch {
            command: argv([&self.flavour.server, &"redis.conf"]),
            files,
            probe: serves(plain),
            client,
            ..Launch::default()
        }
    }
}

/// Redis Sentinel, which watches primaries and promotes a replica when one is down.
///
/// It is quick to act: down after 1 s, failover within 5 s; [`config`](Self::config) changes that.
#[derive(Clone, Debug)]
pub struct Sentinel {
    flavour: Flavour,
    config: Vec<String>,
}

impl Sentinel {
    /// Watches a primary under this name; that it is down takes as many sentinels as `quorum` says.
    pub fn watching(name: &str, primary: SocketAddr, quorum: usize) -> Self {
        let config = vec![
            format!("sentinel monitor {name} {} {} {quorum}", primary.ip(), primary.port()),
            format!("sentinel down-after-milliseconds {name} 1000"),
            format!("sentinel failover-timeout {name} 5000"),
        ];
        Self { flavour: Redis::v8().flavour, config }
    }

    /// The same with the software of this server.
    pub fn flavour(mut self, server: &Redis) -> Self {
        self.flavour = server.flavour;
        self
    }

    /// Adds a line of configuration, as in `sentinel.conf`.
    pub fn config(mut self, line: impl Into<String>) -> Self {
        self.config.push(line.into());
        self
    }
}

impl Kind for Sentinel {
    fn software(&self) -> &'static Software {
        self.flavour.software
    }

    fn launch(&self, site: &Site) -> Launch {
        let (ip, port, folder) = (site.ip(), site.port(0), site.folder().display());
        let lines = self.config.join("\n");
        let config = format!(
            "bind {ip}\nport {port}\ndir {folder}\nprotected-mode no\nsentinel announce-ip {ip}\n{lines}\n"
        );
        Launch {
            command: argv([&self.flavour.server, &"sentinel.conf", &"--sentinel"]),
            // The sentinel writes what it learns into this file.
            files: vec![("sentinel.conf".to_owned(), config)],
            probe: serves(0),
            client: argv([&self.flavour.client, &"-e", &"-h", &ip, &"-p", &port]),
            ..Launch::default()
        }
    }
}

/// Also one that wants a password first answers; one that reads its data does not yet.
fn serves(port: usize) -> Probe {
    Probe::new(port, "PING\r\n", &["+PONG", "-NOAUTH"])
}
