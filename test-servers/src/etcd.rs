//! etcd, one node or several.

use std::net::SocketAddr;
use std::ops::Deref;

use crate::certs::Certs;
use crate::error::Result;
use crate::kind::{Kind, Launch, Probe, Software, argv};
use crate::server::Server;
use crate::site::Site;

static ETCD_3_5: Software = Software {
    name: "etcd-3.5",
    image: Some("quay.io/coreos/etcd:v3.5.16"),
    suite: "trixie",
    packages: &["etcd-server", "etcd-client"],
    runtime: &[],
    programs: &["etcd", "etcdctl"],
    folders: &[],
    version: (&["etcd", "--version"], "etcd Version: 3.5."),
};

static ETCD_3_4: Software = Software {
    name: "etcd-3.4",
    image: Some("quay.io/coreos/etcd:v3.4.23"),
    suite: "bookworm",
    version: (&["etcd", "--version"], "etcd Version: 3.4."),
    ..ETCD_3_5
};

/// One etcd node. Data always survives a kill.
///
/// Ports: 0 is for clients, 1 for other nodes, 2 for health and metrics, always in plain text.
#[derive(Clone, Debug)]
pub struct Etcd {
    software: &'static Software,
    args: Vec<String>,
    env: Vec<(String, String)>,
    files: Vec<(String, String)>,
    tls: bool,
    /// Names and peer addresses of all nodes; empty for a node alone.
    members: Vec<(String, SocketAddr)>,
}

impl Etcd {
    /// etcd 3.5.
    pub fn v3_5() -> Self {
        Self::of(&ETCD_3_5)
    }

    /// etcd 3.4.23, in which a leader that was frozen can renew a lease that is over.
    pub fn v3_4() -> Self {
        Self::of(&ETCD_3_4)
    }

    fn of(software: &'static Software) -> Self {
        let (args, env, files, members) = Default::default();
        Self { software, args, env, files, tls: false, members }
    }

    /// Adds a flag, as `--quota-backend-bytes=16777216`. The last of several with one name counts.
    pub fn arg(mut self, flag: impl Into<String>) -> Self {
        self.args.push(flag.into());
        self
    }

    /// Sets an environment variable.
    pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    /// Speaks TLS to clients and asks them for a certificate.
    ///
    /// `--client-cert-auth=false` as [`arg`](Self::arg) makes the clients' certificates unnecessary.
    pub fn tls(mut self, certs: &Certs) -> Self {
        self.tls = true;
        self.files =
            ["ca.pem", "server.pem", "server-key.pem"].map(|file| (file.to_owned(), certs.pem(file))).into();
        self
    }

    /// Starts a cluster of that many nodes and waits until each serves.
    ///
    /// # Errors
    ///
    /// As for [`Server::start`].
    pub async fn cluster(self, nodes: usize) -> Result<EtcdCluster> {
        let mut sites = Vec::with_capacity(nodes);
        for _ in 0..nodes {
            sites.push(Site::reserve(self.software().name, self.ports()).await?);
        }
        let members = sites.iter().map(|site| (site.name().to_owned(), site.addr(1))).collect();
        let kind = Self { members, ..self };
        let mut servers = Vec::with_capacity(nodes);
        for site in sites {
            let server = Server::at(site, kind.clone()).await?;
            // None serves before a majority runs.
            server.start_unawaited().await?;
            servers.push(server);
        }
        for server in &servers {
            server.serves().await?;
        }
        Ok(EtcdCluster { nodes: servers })
    }
}

impl Kind for Etcd {
    fn software(&self) -> &'static Software {
        self.software
    }

    fn ports(&self) -> usize {
        3
    }

    fn launch(&self, site: &Site) -> Launch {
        let scheme = if self.tls { "https" } else { "http" };
        let clients = format!("{scheme}://{}", site.addr(0));
        let peers = format!("http://{}", site.addr(1));
        let alone = [(site.name().to_owned(), site.addr(1))];
        let members = if self.members.is_empty() { &alone[..] } else { &self.members };
        let members: Vec<_> = members.iter().map(|(name, addr)| format!("{name}=http://{addr}")).collect();
        let mut command = argv([
            &"etcd",
            &format!("--name={}", site.name()),
            &"--data-dir=data",
            &format!("--listen-client-urls={clients}"),
            &format!("--advertise-client-urls={clients}"),
            &format!("--listen-peer-urls={peers}"),
            &format!("--initial-advertise-peer-urls={peers}"),
            &format!("--initial-cluster={}", members.join(",")),
            &format!("--listen-metrics-urls=http://{}", site.addr(2)),
        ]);
        let mut client = argv([&"etcdctl", &format!("--endpoints={clients}")]);
        if self.tls {
            command.extend(argv([
                &"--client-cert-auth",
                &"--trusted-ca-file=ca.pem",
                &"--cert-file=server.pem",
                &"--key-file=server-key.pem",
            ]));
            client.extend(argv([&"--cacert=ca.pem", &"--cert=server.pem", &"--key=server-key.pem"]));
        }
        command.extend(self.args.iter().cloned());
        // A node is healthy when it can read what a majority agrees on.
        let health = format!("GET /health HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", site.addr(2));
        Launch {
            command,
            files: self.files.clone(),
            env: self.env.clone(),
            probe: Probe::new(2, health, &["\"health\":\"true\""]),
            client,
            ..Launch::default()
        }
    }
}

/// The nodes of one cluster, as a slice of servers.
#[derive(Debug)]
pub struct EtcdCluster {
    nodes: Vec<Server>,
}

impl EtcdCluster {
    /// The addresses for clients, in the order of the nodes.
    pub fn addrs(&self) -> Vec<SocketAddr> {
        self.nodes.iter().map(Server::addr).collect()
    }

    /// Which of the nodes is the leader, as the nodes themselves see it; none while they have not agreed.
    pub async fn leader(&self) -> Option<usize> {
        for (index, node) in self.nodes.iter().enumerate() {
            // Endpoint, ID, version, size, "is leader", ...
            if let Ok(status) = node.exec(&["endpoint", "status", "--command-timeout=2s"]).await
                && status.split(", ").nth(4) == Some("true")
            {
                return Some(index);
            }
        }
        None
    }
}

impl Deref for EtcdCluster {
    type Target = [Server];

    fn deref(&self) -> &[Server] {
        &self.nodes
    }
}
