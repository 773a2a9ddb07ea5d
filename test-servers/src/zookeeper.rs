//! ZooKeeper, one node or several.

use std::net::SocketAddr;
use std::ops::Deref;

use crate::certs::Certs;
use crate::error::Result;
use crate::kind::{Kind, Launch, Probe, Software, argv};
use crate::proxy::{Direction, Proxy};
use crate::server::Server;
use crate::site::Site;

static ZOOKEEPER_3_9: Software = Software {
    name: "zookeeper-3.9",
    image: Some("zookeeper:3.9.3"),
    suite: "trixie",
    packages: &["libzookeeper-java"],
    runtime: &["openjdk-21-jre-headless"],
    programs: &["java"],
    folders: &["/usr/lib/jvm/java-21-openjdk-amd64/bin", "/usr/lib/jvm/java-21-openjdk-arm64/bin"],
    version: (
        &["java", "-cp", "/usr/share/java/zookeeper.jar", "org.apache.zookeeper.version.VersionInfoMain"],
        "Apache ZooKeeper, version 3.9.",
    ),
};

/// Those of Debian's packages that it needs, of which some exclude each other; and all of the official image.
const CLASSES: [&str; 14] = [
    "zookeeper",
    "zookeeper-jute",
    "commons-cli",
    "commons-io",
    "metrics-core",
    "netty-buffer",
    "netty-codec",
    "netty-common",
    "netty-handler",
    "netty-resolver",
    "netty-transport",
    "slf4j-api",
    "slf4j-simple",
    "snappy-java",
];

/// One ZooKeeper node. Data always survives a kill.
///
/// Ports: 0 is for clients, 1 for followers, 2 for elections, 3 for clients with TLS. [`Server::exec`] is its command line, `zkCli`:
/// `exec(&["create", "/colour", "green"])`. All four-letter words are answered.
#[derive(Clone, Debug)]
pub struct ZooKeeper {
    config: Vec<String>,
    properties: Vec<String>,
    files: Vec<(String, String)>,
    tls: bool,
    /// Its number and, as this node is to see them, the addresses of all nodes; none for a node alone.
    member: Option<(usize, Vec<[SocketAddr; 2]>)>,
}

impl ZooKeeper {
    /// ZooKeeper 3.9.
    pub fn v3_9() -> Self {
        Self { config: Vec::new(), properties: Vec::new(), files: Vec::new(), tls: false, member: None }
    }

    /// Adds a line of configuration, as in `zoo.cfg`: `tickTime=200`.
    pub fn config(mut self, line: impl Into<String>) -> Self {
        self.config.push(line.into());
        self
    }

    /// Sets a system property, as `zookeeper.extendedTypesEnabled=true`.
    pub fn property(mut self, property: impl Into<String>) -> Self {
        self.properties.push(format!("-D{}", property.into()));
        self
    }

    /// Knows users by SASL's DIGEST-MD5, each with its password.
    pub fn sasl(mut self, users: &[(&str, &str)]) -> Self {
        let users: Vec<_> =
            users.iter().map(|(user, password)| format!("user_{user}=\"{password}\"")).collect();
        let users = users.join(" ");
        let jaas =
            format!("Server {{ org.apache.zookeeper.server.auth.DigestLoginModule required {users}; }};\n");
        self.files.push(("jaas.conf".into(), jaas));
        self.properties.push("-Djava.security.auth.login.config=jaas.conf".into());
        self.config("authProvider.sasl=org.apache.zookeeper.server.auth.SASLAuthenticationProvider")
    }

    /// Serves TLS as well, on another port, for clients with a certificate that the authority signed.
    pub fn tls(mut self, certs: &Certs) -> Self {
        self.tls = true;
        self.files.push(("key.pem".into(), certs.pem("server-key.pem") + &certs.pem("server.pem")));
        self.files.push(("trust.pem".into(), certs.pem("ca.pem")));
        for line in [
            "serverCnxnFactory=org.apache.zookeeper.server.NettyServerCnxnFactory",
            "ssl.keyStore.location=key.pem",
            "ssl.keyStore.type=PEM",
            "ssl.trustStore.location=trust.pem",
            "ssl.trustStore.type=PEM",
            "ssl.clientHostnameVerification=false",
        ] {
            self.config.push(line.into());
        }
        self
    }

    /// Starts a cluster of that many nodes, whose links lead through proxies, and waits until each serves.
    ///
    /// # Errors
    ///
    /// As for [`Server::start`].
    pub async fn cluster(self, nodes: usize) -> Result<ZooKeeperCluster> {
        let mut sites = Vec::with_capacity(nodes);
        for _ in 0..nodes {
            sites.push(Site::reserve(self.software().name, self.ports()).await?);
        }
        let mut links = Vec::new();
        let mut servers = Vec::with_capacity(nodes);
        for (from, site) in sites.iter().enumerate() {
            let mut seen = Vec::with_capacity(nodes);
            for (to, target) in sites.iter().enumerate() {
                let mut addrs = [target.addr(1), target.addr(2)];
                if from != to {
                    for addr in &mut addrs {
                        let proxy = Proxy::start(*addr).await?;
                        *addr = proxy.addr();
                        links.push(Link { from, to, proxy });
                    }
                }
                seen.push(addrs);
            }
            let kind = Self { member: Some((from + 1, seen)), ..self.clone() };
            let server = Server::at(site.clone(), kind).await?;
            // None serves before a majority runs.
            server.start_unawaited().await?;
            servers.push(server);
        }
        for server in &servers {
            server.serves().await?;
        }
        Ok(ZooKeeperCluster { nodes: servers, links })
    }
}

impl Kind for ZooKeeper {
    fn software(&self) -> &'static Software {
        &ZOOKEEPER_3_9
    }

    fn ports(&self) -> usize {
        4
    }

    fn launch(&self, site: &Site) -> Launch {
        let mut config = vec![
            "tickTime=2000".to_owned(),
            "initLimit=10".into(),
            "syncLimit=5".into(),
            format!("dataDir={}/data", site.folder().display()),
            format!("clientPortAddress={}", site.ip()),
            format!("clientPort={}", site.port(0)),
            "maxClientCnxns=0".into(),
            "4lw.commands.whitelist=*".into(),
            "admin.enableServer=false".into(),
        ];
        if self.tls {
            config.push(format!("secureClientPortAddress={}", site.ip()));
            config.push(format!("secureClientPort={}", site.port(3)));
        }
        let mut id = 1;
        if let Some((own, members)) = &self.member {
            id = *own;
            for (index, [quorum, election]) in members.iter().enumerate() {
                config.push(format!(
                    "server.{}={}:{}:{}",
                    index + 1,
                    quorum.ip(),
                    quorum.port(),
                    election.port()
                ));
            }
        }
        config.extend(self.config.iter().cloned());
        let mut classes = CLASSES.map(|class| format!("{{root}}/usr/share/java/{class}.jar")).join(":");
        classes += ":/apache-zookeeper-3.9.3-bin/lib/*";
        let java = |more: &[String], class: &str| {
            // Fast to start and small, since tests start many.
            let mut command = argv([&"java", &"-Xmx192m", &"-XX:+UseSerialGC", &"-XX:TieredStopAtLevel=1"]);
            command.extend_from_slice(more);
            command.extend(argv([&"-cp", &classes, &format!("org.apache.zookeeper.{class}")]));
            command
        };
        let mut command = java(&self.properties, "server.quorum.QuorumPeerMain");
        command.push("zoo.cfg".into());
        let mut client = java(&[], "ZooKeeperMain");
        // Without waiting, the news of the connection is printed at any moment, also behind an answer.
        client.extend(argv([&"-waitforconnection", &"-server", &site.addr(0)]));
        let mut files =
            vec![("zoo.cfg".into(), config.join("\n") + "\n"), ("data/myid".into(), format!("{id}\n"))];
        files.extend(self.files.iter().cloned());
        Launch {
            command,
            files,
            // A node without a majority answers too, but has no mode.
            probe: Probe::new(0, "srvr", &["Mode: "]),
            client,
            ..Launch::default()
        }
    }
}

/// The nodes of one ensemble, as a slice of servers, and the links between them.
#[derive(Debug)]
pub struct ZooKeeperCluster {
    nodes: Vec<Server>,
    links: Vec<Link>,
}

#[derive(Debug)]
struct Link {
    from: usize,
    to: usize,
    proxy: Proxy,
}

impl ZooKeeperCluster {
    /// The addresses for clients, in the order of the nodes.
    pub fn addrs(&self) -> Vec<SocketAddr> {
        self.nodes.iter().map(Server::addr).collect()
    }

    /// The proxies through which node `from` opens connections to node `to`: that to the leader, and that for elections.
    pub fn links(&self, from: usize, to: usize) -> impl Iterator<Item = &Proxy> {
        self.links.iter().filter(move |link| (link.from, link.to) == (from, to)).map(|link| &link.proxy)
    }

    /// Cuts a node off from all others; clients still reach it.
    ///
    /// # Errors
    ///
    /// As for [`Proxy::cut`].
    pub async fn isolate(&self, node: usize) -> Result<()> {
        for link in self.links.iter().filter(|link| link.from == node || link.to == node) {
            link.proxy.cut().await?;
        }
        Ok(())
    }

    /// Cuts a node off from all others by dropping what is sent: nobody is told.
    pub fn isolate_silently(&self, node: usize) {
        for link in self.links.iter().filter(|link| link.from == node || link.to == node) {
            link.proxy.black_hole(Direction::Both);
        }
    }

    /// Cuts a node off from all others, which are told at once, while it is not: for it they have gone silent.
    ///
    /// # Errors
    ///
    /// As for [`Proxy::abandon`].
    pub async fn isolate_unheard(&self, node: usize) -> Result<()> {
        // Its own connections first: over them the others would tell it.
        for link in self.links.iter().filter(|link| link.from == node) {
            link.proxy.black_hole(Direction::Both);
        }
        for link in self.links.iter().filter(|link| link.to == node) {
            link.proxy.abandon().await?;
        }
        Ok(())
    }

    /// Makes all links normal again.
    ///
    /// # Errors
    ///
    /// As for [`Proxy::pass`].
    pub async fn heal(&self) -> Result<()> {
        for link in &self.links {
            link.proxy.pass().await?;
        }
        Ok(())
    }

    /// Which of the nodes is the leader, as it sees itself; none while there is none.
    pub async fn leader(&self) -> Option<usize> {
        for (index, node) in self.nodes.iter().enumerate() {
            if node.ask("srvr").await.is_ok_and(|answer| answer.contains("Mode: leader")) {
                return Some(index);
            }
        }
        None
    }
}

impl Deref for ZooKeeperCluster {
    type Target = [Server];

    fn deref(&self) -> &[Server] {
        &self.nodes
    }
}
