//! Other people's lock recipes for ZooKeeper, to be met in one queue: kazoo's, in Python, and Curator's, in Java.

use std::net::SocketAddr;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::sync::Mutex;

use crate::error::{Context, Error, Result};
use crate::hub;
use crate::kind::{Kind, Launch, Probe, Software, argv};
use crate::server::Server;
use crate::site::Site;

static RECIPES: Software = Software {
    name: "zookeeper-recipes",
    image: None,
    suite: "trixie",
    packages: &["python3-kazoo", "libcurator-recipes-java"],
    // With a compiler: Java runs the source.
    runtime: &["openjdk-21-jre-headless", "openjdk-21-jdk-headless"],
    programs: &["python3", "java"],
    folders: &["/usr/lib/jvm/java-21-openjdk-amd64/bin", "/usr/lib/jvm/java-21-openjdk-arm64/bin"],
    version: (
        &[
            "python3",
            "-c",
            "import kazoo, os; print('kazoo', os.path.exists('/usr/share/java/curator-recipes.jar'))",
        ],
        "kazoo True",
    ),
};

/// What Curator needs of Debian's packages, of which some exclude each other.
const CLASSES: [&str; 17] = [
    "curator-recipes",
    "curator-framework",
    "curator-client",
    "zookeeper",
    "zookeeper-jute",
    "guava",
    "failureaccess",
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
];

/// A program that takes locks in ZooKeeper by a recipe that is not ours.
///
/// As a server it lets [`Peer`]s have them.
#[derive(Clone, Debug)]
pub struct Recipe {
    language: Language,
    zookeeper: Vec<SocketAddr>,
}

#[derive(Clone, Copy, Debug)]
enum Language {
    Python,
    Java,
}

impl Recipe {
    /// kazoo's `Lock`, which also counts nodes named `-lock-`, as its documentation says that one should among others.
    pub fn kazoo(zookeeper: &[SocketAddr]) -> Self {
        Self { language: Language::Python, zookeeper: zookeeper.to_vec() }
    }

    /// Curator's `InterProcessMutex`.
    pub fn curator(zookeeper: &[SocketAddr]) -> Self {
        Self { language: Language::Java, zookeeper: zookeeper.to_vec() }
    }
}

impl Kind for Recipe {
    fn software(&self) -> &'static Software {
        &RECIPES
    }

    fn launch(&self, site: &Site) -> Launch {
        let hosts: Vec<_> = self.zookeeper.iter().map(ToString::to_string).collect();
        let hosts = hosts.join(",");
        let (file, source, mut command) = match self.language {
            Language::Python => {
                let source = include_str!("recipes/kazoo_peer.py");
                let packages = "{root}/usr/lib/python3/dist-packages";
                ("kazoo_peer.py", source, argv([&"python3", &"kazoo_peer.py", &packages]))
            }
            Language::Java => {
                let source = include_str!("recipes/CuratorPeer.java");
                let classes = CLASSES.map(|class| format!("{{root}}/usr/share/java/{class}.jar")).join(":");
                let command = argv([
                    &"java",
                    &"-Xmx128m",
                    &"-XX:+UseSerialGC",
                    &"-XX:TieredStopAtLevel=1",
                    &"-cp",
                    &classes,
                    &"CuratorPeer.java",
                ]);
                ("CuratorPeer.java", source, command)
            }
        };
        command.extend(argv([&site.ip(), &site.port(0), &hosts]));
        Launch {
            command,
            files: vec![(file.into(), source.into())],
            probe: Probe::new(0, "hello\n", &["ready"]),
            ..Launch::default()
        }
    }
}

/// A client of such a program, with a session of its own; it ends when this is dropped.
#[derive(Debug)]
pub struct Peer {
    stream: Mutex<BufReader<TcpStream>>,
}

impl Peer {
    /// Connects to the program.
    ///
    /// # Errors
    ///
    /// When it does not run.
    pub async fn of(program: &Server) -> Result<Self> {
        let addr = program.addr();
        let stream =
            hub::run(async move { TcpStream::connect(addr).await }).await.context(|| addr.to_string())?;
        Ok(Self { stream: Mutex::new(BufReader::new(stream)) })
    }

    /// Takes the lock at this path; waits as long as it takes.
    ///
    /// # Errors
    ///
    /// When the program fails.
    pub async fn lock(&self, path: &str) -> Result<()> {
        match self.ask(&format!("lock {path}")).await?.as_str() {
            "held" => Ok(()),
            other => Err(Error::new(format!("the recipe answers '{other}'"))),
        }
    }

    /// Takes the lock at this path if it is free.
    ///
    /// # Errors
    ///
    /// When the program fails.
    pub async fn try_lock(&self, path: &str) -> Result<bool> {
        match self.ask(&format!("try {path}")).await?.as_str() {
            "held" => Ok(true),
            "busy" => Ok(false),
            other => Err(Error::new(format!("the recipe answers '{other}'"))),
        }
    }

    /// Gives the lock at this path back.
    ///
    /// # Errors
    ///
    /// When the program fails.
    pub async fn unlock(&self, path: &str) -> Result<()> {
        match self.ask(&format!("unlock {path}")).await?.as_str() {
            "free" => Ok(()),
            other => Err(Error::new(format!("the recipe answers '{other}'"))),
        }
    }

    async fn ask(&self, line: &str) -> Result<String> {
        let mut stream = self.stream.lock().await;
        let exchange = async {
            stream.write_all(format!("{line}\n").as_bytes()).await?;
            let mut answer = String::new();
            stream.read_line(&mut answer).await?;
            std::io::Result::Ok(answer.trim().to_owned())
        };
        exchange.await.context(|| line.to_owned())
    }
}
