//! One connection to a node: how it is made, what is looked at first, and what is known of it later.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use dlock_core::BackendError;
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, ProtocolVersion, PushInfo, PushKind, RedisConnectionInfo, Value};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::AbortHandle;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{self, ClientConfig};

use crate::error;
use crate::identities::Identities;
use crate::replies::text;
use crate::scripts;
use crate::settings::{Credentials, Endpoint};
use crate::wakes::Wakes;

/// What all connections of a session have in common.
#[derive(Debug)]
pub(crate) struct Connector {
    pub(crate) database: i64,
    pub(crate) tls: Option<Arc<ClientConfig>>,
    pub(crate) client_name: Option<String>,
    /// What the keys and channels look like, for messages.
    pub(crate) pattern: String,
    pub(crate) identities: Arc<Identities>,
}

/// A connection on which requests go to a node and its messages come back.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) id: u64,
    node: usize,
    connection: MultiplexedConnection,
    /// A request on it was not answered in time, or given up: later ones take a new connection.
    doubtful: AtomicBool,
    closed: Arc<AtomicBool>,
    driver: AbortHandle,
    wakes: Arc<Wakes>,
    identities: Arc<Identities>,
}

/// Carries the requests and answers of a connection until that ends.
pub(crate) type Driver = Pin<Box<dyn Future<Output = ()> + Send>>;

/// What a node says of itself.
#[derive(Debug)]
pub(crate) struct Greeting {
    pub(crate) run_id: String,
    /// The master, if the node is a replica.
    pub(crate) master: Option<String>,
}

impl Link {
    /// The way to send; each request takes one.
    pub(crate) fn connection(&self) -> MultiplexedConnection {
        self.connection.clone()
    }

    pub(crate) fn doubt(&self) {
        self.doubtful.store(true, Ordering::SeqCst);
    }

    pub(crate) fn is_good(&self) -> bool {
        !self.doubtful.load(Ordering::SeqCst) && !self.is_closed()
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        // redis-rs keeps a connection open until everything sent on it is answered, which may be never.
        self.driver.abort();
        self.wakes.lost(self.node, self.id);
        self.identities.forget(self.node, self.id);
    }
}

impl Connector {
    /// Makes a connection, and looks at what is at its other end.
    ///
    /// # Errors
    ///
    /// Nothing of ours was executed in any case.
    pub(crate) async fn connect(
        &self,
        endpoint: &Endpoint,
        credentials: Option<&Credentials>,
        node: usize,
        wakes: &Arc<Wakes>,
    ) -> Result<(Link, Greeting), BackendError> {
        static LINKS: AtomicU64 = AtomicU64::new(1);
        let id = LINKS.fetch_add(1, Ordering::Relaxed);
        let messages = Arc::clone(wakes);
        let config = unlimited().set_push_sender(move |push: PushInfo| {
            if let (PushKind::Message, Some(channel)) = (&push.kind, push.data.first().and_then(text)) {
                messages.message(node, &channel);
            }
            Ok::<(), ()>(())
        });
        let (connection, driver) = self.talk(endpoint, credentials, self.database, config).await?;
        let closed = Arc::new(AtomicBool::new(false));
        let (end, ears, identities) = (Arc::clone(&closed), Arc::clone(wakes), Arc::clone(&self.identities));
        let driver = tokio::spawn(async move {
            driver.await;
            end.store(true, Ordering::SeqCst);
            ears.lost(node, id);
            identities.forget(node, id);
        });
        let link = Link {
            id,
            node,
            connection,
            doubtful: AtomicBool::new(false),
            closed,
            driver: driver.abort_handle(),
            wakes: Arc::clone(wakes),
            identities: Arc::clone(&self.identities),
        };
        let greeting = self.greet(endpoint, &link).await?;
        Ok((link, greeting))
    }

    /// A connection that requests can be sent on, and the future that carries them.
    pub(crate) async fn talk(
        &self,
        endpoint: &Endpoint,
        credentials: Option<&Credentials>,
        database: i64,
        config: AsyncConnectionConfig,
    ) -> Result<(MultiplexedConnection, Driver), BackendError> {
        let stream = self.stream(endpoint).await?;
        let mut info = RedisConnectionInfo::default()
            .set_protocol(ProtocolVersion::RESP3)
            .set_db(database)
            .set_skip_set_lib_name();
        if let Some(credentials) = credentials {
            info = info.set_password(&credentials.password);
            if let Some(user) = &credentials.user {
                info = info.set_username(user);
            }
        }
        let (connection, driver) = MultiplexedConnection::new_with_config(&info, stream, config)
            .await
            .map_err(|failure| error::of_setup(endpoint, database, false, &failure))?;
        Ok((connection, Box::pin(driver)))
    }

    async fn stream(&self, endpoint: &Endpoint) -> Result<Box<dyn Stream>, BackendError> {
        let tcp = TcpStream::connect((endpoint.host.as_str(), endpoint.port))
            .await
            .map_err(|failure| error::of_network(endpoint, failure))?;
        // A request is one small packet that somebody waits for.
        tcp.set_nodelay(true).map_err(|failure| error::of_network(endpoint, failure))?;
        let Some(tls) = &self.tls else { return Ok(Box::new(tcp)) };
        let name = ServerName::try_from(endpoint.host.clone()).map_err(|_| {
            BackendError::refused(format!("{endpoint} is no name that a certificate could be for"))
        })?;
        match TlsConnector::from(Arc::clone(tls)).connect(name, tcp).await {
            Ok(stream) => Ok(Box::new(stream)),
            Err(failure) => Err(of_tls(endpoint, failure)),
        }
    }

    /// Looks at the server, and has it know the scripts, in one round trip.
    async fn greet(&self, endpoint: &Endpoint, link: &Link) -> Result<Greeting, BackendError> {
        let mut pipeline = redis::Pipeline::new();
        pipeline.cmd("INFO").arg(&["server", "replication", "cluster"]);
        for script in scripts::of_a_session() {
            pipeline.add_command(script.load());
        }
        if let Some(name) = &self.client_name {
            pipeline.cmd("CLIENT").arg("SETNAME").arg(name);
        }
        let answers = link
            .connection()
            .send_packed_commands(&pipeline, 0, pipeline.len())
            .await
            .map_err(|failure| error::of_setup(endpoint, self.database, false, &failure))?;
        for (at, answer) in answers.iter().enumerate() {
            if let Value::ServerError(failure) = answer {
                // Before Redis 7, INFO took one section.
                if at == 0 && failure.details().is_some_and(|details| details.contains("syntax error")) {
                    return Err(error::too_old(endpoint));
                }
                return Err(if at > scripts::of_a_session().len() {
                    error::of_setup(endpoint, self.database, true, &failure.clone().into())
                } else {
                    error::of_server(endpoint, &self.pattern, failure)
                });
            }
        }
        let info = answers.first().and_then(text).ok_or_else(|| error::strange_answer(endpoint))?;
        let field = |name: &str| {
            info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
        };
        let major = field("redis_version").and_then(|version| version.split('.').next()?.parse::<u32>().ok());
        let run_id = field("run_id").filter(|id| !id.is_empty());
        let (Some(major), Some(run_id)) = (major, run_id) else {
            return Err(error::strange_answer(endpoint));
        };
        if major < 7 {
            return Err(error::too_old(endpoint));
        }
        if field("cluster_enabled") == Some("1") {
            return Err(error::cluster(endpoint));
        }
        let master = (field("role") != Some("master")).then(|| {
            let part = |name| field(name).unwrap_or("?");
            format!("{}:{}", part("master_host"), part("master_port"))
        });
        Ok(Greeting { run_id: run_id.to_owned(), master })
    }
}

/// No time-outs of redis-rs' own: core decides how long an answer is waited for.
pub(crate) fn unlimited() -> AsyncConnectionConfig {
    AsyncConnectionConfig::new().set_response_timeout(None).set_connection_timeout(None)
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

fn of_tls(endpoint: &Endpoint, failure: std::io::Error) -> BackendError {
    let tls = failure.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match tls {
        Some(rustls::Error::InvalidMessage(_)) => BackendError::refused(format!(
            "{endpoint} does not speak TLS: write redis instead of rediss, or the server's tls-port"
        )),
        Some(rustls::Error::InvalidCertificate(_)) => BackendError::refused(format!(
            "the certificate of {endpoint} is not trusted: name its issuer's file with the parameter ca, and use a \
             host name that is in the certificate"
        ))
        .with_source(failure),
        Some(rustls::Error::AlertReceived(_)) => error::tls_refused(endpoint, failure),
        _ => BackendError::unavailable(format!("the TLS handshake with {endpoint} failed")).with_source(failure),
    }
}
