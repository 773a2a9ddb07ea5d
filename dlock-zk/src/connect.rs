//! How a connection is made: address, TLS, the session that is asked for, and who asks.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use dlock_core::{BackendError, Clock, Timestamp};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::pki_types::ServerName;

use crate::error;
use crate::sasl;
use crate::settings::{Authentication, Secret, Settings};
use crate::tls::Tls;
use crate::wire::{AUTH_XID, Answer, Connect, Connected, Header, Malformed, Request, code};

/// The longest frame that is taken: what claims more is no ZooKeeper.
const LONGEST_FRAME: usize = 64 << 20;

/// A connection, whatever it is made of.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// Makes connections to the servers of one ensemble.
#[derive(Debug)]
pub(crate) struct Connector {
    addresses: Vec<String>,
    tls: Option<(Tls, Mutex<Arc<ClientConfig>>)>,
    authentication: Option<Authentication>,
    clock: Arc<dyn Clock>,
    /// How long one attempt may take: all servers have their turn within a request's time-out.
    limit: Duration,
    /// Where the next attempt goes.
    next: AtomicUsize,
}

/// A connection on which a session is open.
pub(crate) struct Opening {
    pub(crate) stream: Box<dyn Stream>,
    pub(crate) address: String,
    /// Read before the session was asked for.
    pub(crate) since: Timestamp,
    pub(crate) session: Connected,
}

/// Why there is no such connection.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The session that was to go on is over.
    Expired,
    Error(BackendError),
}

impl From<BackendError> for Failure {
    fn from(error: BackendError) -> Self {
        Self::Error(error)
    }
}

impl Connector {
    /// Reads the files that TLS names.
    pub(crate) async fn new(
        settings: &Settings,
        clock: Arc<dyn Clock>,
        request_timeout: Duration,
    ) -> Result<Self, BackendError> {
        let tls = match &settings.tls {
            Some(tls) => Some((tls.clone(), Mutex::new(tls.config().await?))),
            None => None,
        };
        let addresses = settings.endpoints.clone();
        if addresses.is_empty() {
            return Err(error::merged(Vec::new()));
        }
        let turns = u32::try_from(addresses.len()).unwrap_or(u32::MAX);
        Ok(Self {
            // Clients with one list do not all go to its first server.
            next: AtomicUsize::new(rand::random_range(0..addresses.len())),
            addresses,
            tls,
            authentication: settings.authentication.clone(),
            clock,
            limit: (request_timeout / turns).max(Duration::from_millis(100)),
        })
    }

    /// Reads the files that TLS names anew: certificates are renewed while a session lives. Those read before stay if that
    /// fails or takes long, since a lease runs meanwhile.
    pub(crate) async fn read_tls_files_again(&self) {
        let Some((tls, known)) = &self.tls else { return };
        match tokio::time::timeout(self.limit, tls.config()).await {
            Ok(Ok(config)) => *known.lock().unwrap_or_else(PoisonError::into_inner) = config,
            Ok(Err(error)) => {
                tracing::warn!(%error, "the files of TLS cannot be read again; the old certificates stay");
            }
            Err(_) => tracing::warn!("the files of TLS are not read in time; the old certificates stay"),
        }
    }

    /// Connects to the first server that takes us, each tried once.
    pub(crate) async fn connect(&self, request: Connect<'_>) -> Result<Opening, Failure> {
        let mut failures = Vec::new();
        for _ in &self.addresses {
            // Counted before the attempt: where it hangs and is dropped, the next one goes to the next server.
            let at = self.next.fetch_add(1, Ordering::Relaxed) % self.addresses.len();
            let address = &self.addresses[at];
            let attempt = tokio::time::timeout(self.limit, self.connect_to(address, request));
            match attempt.await {
                Ok(Ok(opening)) => return Ok(opening),
                Ok(Err(Failure::Expired)) => return Err(Failure::Expired),
                Ok(Err(Failure::Error(failure))) => failures.push(failure),
                Err(_) => failures.push(BackendError::unavailable(format!(
                    "ZooKeeper at {address} did not answer within {:?}",
                    self.limit
                ))),
            }
        }
        Err(error::merged(failures).into())
    }

    async fn connect_to(&self, address: &str, request: Connect<'_>) -> Result<Opening, Failure> {
        let mut stream = self.stream(address).await?;
        let broken = |error| broken(address, error);
        let since = self.clock.now();
        stream.write_all(&request.frame()).await.map_err(broken)?;
        let frame = match read_frame(&mut stream).await {
            Ok(frame) => frame,
            // A server may turn a certificate away when the handshake is over on this side.
            Err(error) if is_of_tls(&error) => return Err(broken(error).into()),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                return Err(foreign(address, error).into());
            }
            Err(_) => return Err(error::turned_away(address, self.tls.is_some()).into()),
        };
        let session =
            Connected::read(&frame).map_err(|malformed| foreign(address, malformed_frame(malformed)))?;
        if session.timeout <= 0 {
            return Err(Failure::Expired);
        }
        match &self.authentication {
            None => {}
            Some(Authentication::Digest(secret)) => {
                let request = Request::auth_digest(&secret.user, &secret.password);
                let answer = ask(&mut stream, &request, AUTH_XID).await.map_err(broken)?;
                taken(address, secret, &answer)?;
            }
            Some(Authentication::Sasl(secret)) => {
                authenticate(&mut stream, address, secret, request.session != 0).await?;
            }
        }
        Ok(Opening { stream, address: address.to_owned(), since, session })
    }

    /// Connects to any of the addresses of a host: one that says nothing leaves time for the others.
    async fn tcp(&self, host: &str, port: u16) -> io::Result<TcpStream> {
        let addresses: Vec<_> = tokio::net::lookup_host((host, port)).await?.collect();
        let mut failure = io::Error::new(io::ErrorKind::NotFound, "failed to lookup address: there is none");
        let count = u32::try_from(addresses.len()).unwrap_or(u32::MAX).max(1);
        let start = rand::random_range(0..addresses.len().max(1));
        for address in addresses.iter().cycle().skip(start).take(addresses.len()) {
            match tokio::time::timeout(self.limit / count, TcpStream::connect(address)).await {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(error)) => failure = error,
                Err(_) => {
                    failure = io::Error::new(io::ErrorKind::TimedOut, format!("{address} says nothing"));
                }
            }
        }
        Err(failure)
    }

    async fn stream(&self, address: &str) -> Result<Box<dyn Stream>, BackendError> {
        let failed = |error| error::of_connecting(address, error);
        let illegal =
            || BackendError::refused(format!("{address:?} is no address of ZooKeeper: write HOST:PORT"));
        let (host, port) = address.rsplit_once(':').ok_or_else(illegal)?;
        let port: u16 = port.parse().map_err(|_| illegal())?;
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        let tcp = self.tcp(host, port).await.map_err(failed)?;
        // A request is one small packet that somebody waits for.
        tcp.set_nodelay(true).map_err(failed)?;
        let Some((tls, config)) = &self.tls else { return Ok(Box::new(tcp)) };
        let config = Arc::clone(&config.lock().unwrap_or_else(PoisonError::into_inner));
        let name = tls.server_name.as_deref().unwrap_or(host).to_owned();
        let shown = name.clone();
        let name = ServerName::try_from(name).map_err(|_| {
            BackendError::refused(format!("{shown:?} is no name that a certificate could be for"))
        })?;
        Ok(Box::new(TlsConnector::from(config).connect(name, tcp).await.map_err(failed)?))
    }
}

/// SASL: the server asks, we answer, and it shows that it knows the password too. `was_known` if a session was opened with
/// that password before.
async fn authenticate(
    stream: &mut Box<dyn Stream>,
    address: &str,
    secret: &Secret,
    was_known: bool,
) -> Result<(), BackendError> {
    let broken = |error| broken(address, error);
    let challenge = ask(stream, &Request::sasl(&[]), 1).await.map_err(broken)?;
    taken(address, secret, &challenge)?;
    let exchange = sasl::answer(secret, &challenge.token()?).ok_or_else(|| {
        BackendError::refused(format!(
            "ZooKeeper at {address} does not offer SASL's DIGEST-MD5: see its section Server in jaas.conf, or leave out auth=sasl"
        ))
    })?;
    let proof = ask(stream, &Request::sasl(exchange.response.as_bytes()), 2).await.map_err(|error| {
        if was_known {
            return broken(error);
        }
        // Some versions end the connection instead of saying no.
        BackendError::refused(format!(
            "ZooKeeper at {address} did not take user {:?} with this password",
            secret.user
        ))
        .with_source(error)
    })?;
    taken(address, secret, &proof)?;
    if proof.token()? == exchange.expected.as_bytes() {
        Ok(())
    } else {
        Err(BackendError::refused(format!(
            "ZooKeeper at {address} does not know the password of user {:?}",
            secret.user
        )))
    }
}

fn taken(address: &str, secret: &Secret, answer: &Answer) -> Result<(), BackendError> {
    if answer.error == code::OK {
        return Ok(());
    }
    Err(BackendError::refused(format!(
        "ZooKeeper at {address} does not know user {:?} with this password, or not this way of authentication (error {}): \
         correct one of them",
        secret.user, answer.error
    )))
}

/// One request and its answer, on a connection that has no other under way.
async fn ask(stream: &mut Box<dyn Stream>, request: &Request, xid: i32) -> io::Result<Answer> {
    let mut frame = Vec::new();
    request.frame(xid, &mut frame);
    stream.write_all(&frame).await?;
    let frame = read_frame(stream).await?;
    let (header, body) = Header::read(&frame).map_err(malformed_frame)?;
    if header.xid != xid {
        return Err(malformed_frame(Malformed));
    }
    Ok(Answer { zxid: header.zxid, error: header.error, body: body.to_vec() })
}

/// Reads one frame.
pub(crate) async fn read_frame(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Vec<u8>> {
    let length = usize::try_from(stream.read_i32().await?).unwrap_or(usize::MAX);
    if length > LONGEST_FRAME {
        return Err(malformed_frame(Malformed));
    }
    let mut frame = vec![0; length];
    stream.read_exact(&mut frame).await?;
    Ok(frame)
}

fn malformed_frame(_: Malformed) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "the answer is not that of a ZooKeeper")
}

fn foreign(address: &str, error: io::Error) -> BackendError {
    BackendError::refused(format!(
        "what answers at {address} is no ZooKeeper: see that address and port are right"
    ))
    .with_source(error)
}

fn is_of_tls(error: &io::Error) -> bool {
    let cause = error.get_ref();
    cause.and_then(|cause| cause.downcast_ref::<tokio_rustls::rustls::Error>()).is_some()
}

fn broken(address: &str, error: io::Error) -> BackendError {
    if is_of_tls(&error) {
        return error::of_connecting(address, error);
    }
    BackendError::unavailable(format!(
        "the connection to ZooKeeper at {address} broke while a session was opened"
    ))
    .with_source(error)
}
