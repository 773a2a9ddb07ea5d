//! A server: what tests start, break and look at.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::{PermissionsExt, chown};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Mutex as AsyncMutex;
use tokio::time::{Instant, sleep, timeout};

use crate::error::{Context, Error, Result};
use crate::hub;
use crate::kind::{Kind, Launch, Probe};
use crate::provider::{Instance, Provider, text};
use crate::site::Site;

/// What a server has until it must serve. Making its image, which may come before, is not counted.
const START: Duration = Duration::from_secs(30);

/// How long a failed test waits for the log of a server.
const LOG: Duration = Duration::from_secs(5);

/// A real server in a container or as processes of this machine.
///
/// Its address and data stay while it is ended and started again. When it is dropped it is removed in the background; by a test
/// that fails, after the end of its log was printed.
///
/// All methods work on any runtime. Those that change the server's state are done one after the other, each to its end
/// even if its future is dropped.
#[derive(Debug)]
pub struct Server(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    site: Site,
    kind: Mutex<Arc<dyn Kind>>,
    instance: Box<dyn Instance>,
    /// Held by whoever changes the state of the server.
    state: AsyncMutex<State>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// There is no data; the folder does not exist.
    New,
    Running,
    Frozen,
    Ended,
}

impl Server {
    /// Starts a server and waits until it answers its protocol.
    ///
    /// # Errors
    ///
    /// When there is no provider, when the software can neither be found nor made, and, with the server's log, when it
    /// does not serve within 30 s. Each says what to do.
    pub async fn start(kind: impl Kind) -> Result<Self> {
        let site = Site::reserve(kind.software().name, kind.ports()).await?;
        let server = Self::at(site, kind).await?;
        server.start_again().await?;
        Ok(server)
    }

    /// Starts several servers side by side.
    ///
    /// # Errors
    ///
    /// That of the first server that could not be started; the others are removed.
    pub async fn start_all<K: Kind>(kinds: impl IntoIterator<Item = K>) -> Result<Vec<Self>> {
        let starts: Vec<_> = kinds.into_iter().map(|kind| hub::spawn(Self::start(kind))).collect();
        let mut servers = Vec::with_capacity(starts.len());
        for start in starts {
            servers.push(start.await.context(|| "starting a server".into())?);
        }
        servers.into_iter().collect()
    }

    /// A server at a reserved site, not started: [`start_again`](Self::start_again) does that.
    ///
    /// # Errors
    ///
    /// When the software can neither be found nor made.
    pub async fn at(site: Site, kind: impl Kind) -> Result<Self> {
        let provider = Provider::this().await?;
        let software = kind.software();
        hub::run(async move {
            let instance = provider.instance(software, &site).await?;
            let kind = Mutex::new(Arc::new(kind) as Arc<dyn Kind>);
            Ok(Self(Arc::new(Inner { site, kind, instance, state: AsyncMutex::new(State::New) })))
        })
        .await
    }

    /// The address for clients.
    pub fn addr(&self) -> SocketAddr {
        self.0.site.addr(0)
    }

    /// All addresses, and the folder.
    pub fn site(&self) -> &Site {
        &self.0.site
    }

    /// Ends the server in its own orderly way (SIGTERM), or by force after 10 s. A frozen one is thawed first. No error
    /// if it does not run.
    ///
    /// # Errors
    ///
    /// When the provider fails.
    pub async fn stop(&self) -> Result<()> {
        let inner = self.0.clone();
        hub::run(async move {
            let mut state = inner.state.lock().await;
            inner.stop(&mut state).await.map_err(|error| inner.named(&error))
        })
        .await
    }

    /// Ends the server by SIGKILL, as a crash does. No error if it does not run.
    ///
    /// # Errors
    ///
    /// When the provider fails.
    pub async fn kill(&self) -> Result<()> {
        self.change(|inner, state| async move {
            if state != State::New {
                inner.instance.kill().await?;
            }
            Ok(state.or_ended())
        })
        .await
    }

    /// Stops all processes of the server where they are. Its connections stay, and nothing is answered.
    ///
    /// # Errors
    ///
    /// When it does not run or the provider fails.
    pub async fn freeze(&self) -> Result<()> {
        self.change(|inner, state| async move {
            match state {
                State::Running => inner.instance.freeze().await?,
                State::Frozen => {}
                State::New | State::Ended => return Err(Error::new("only a running server can be frozen")),
            }
            Ok(State::Frozen)
        })
        .await
    }

    /// Lets a frozen server go on. No error if it is not frozen.
    ///
    /// # Errors
    ///
    /// When the provider fails.
    pub async fn thaw(&self) -> Result<()> {
        self.change(|inner, state| async move {
            if state != State::Frozen {
                return Ok(state);
            }
            inner.instance.thaw().await?;
            Ok(State::Running)
        })
        .await
    }

    /// Starts the server with its data, and waits until it answers its protocol. No error if it runs.
    ///
    /// # Errors
    ///
    /// As for [`start`](Self::start).
    pub async fn start_again(&self) -> Result<()> {
        self.change(|inner, state| async move {
            inner.begin(state).await?;
            inner.until_it_serves().await?;
            Ok(State::Running)
        })
        .await
    }

    /// Starts the server again at once, without waiting until it serves: a member of a cluster may not before the others do.
    ///
    /// # Errors
    ///
    /// As for [`start`](Self::start).
    pub async fn start_unawaited(&self) -> Result<()> {
        self.change(|inner, state| async move {
            inner.begin(state).await?;
            Ok(State::Running)
        })
        .await
    }

    /// Waits until a server that was started answers its protocol.
    ///
    /// # Errors
    ///
    /// As for [`start`](Self::start).
    pub async fn serves(&self) -> Result<()> {
        let inner = self.0.clone();
        hub::run(async move { inner.until_it_serves().await }).await
    }

    /// Gives an ended server another configuration of the same software, and starts it with its data.
    ///
    /// # Errors
    ///
    /// When it runs, and as for [`start`](Self::start).
    pub async fn start_again_as(&self, kind: impl Kind) -> Result<()> {
        self.change(|inner, state| async move {
            if matches!(state, State::Running | State::Frozen) {
                return Err(Error::new("only a server that has ended can be given another configuration"));
            }
            *inner.kind() = Arc::new(kind);
            if state == State::Ended {
                inner.write_files(&inner.launch())?;
            }
            inner.begin(state).await?;
            inner.until_it_serves().await?;
            Ok(State::Running)
        })
        .await
    }

    /// Removes all data and configuration of a server that has ended; it then starts as a new one.
    ///
    /// # Errors
    ///
    /// When it runs.
    pub async fn wipe(&self) -> Result<()> {
        self.change(|inner, state| async move {
            match state {
                State::New => {}
                State::Ended => {
                    let folder = inner.site.folder();
                    fs::remove_dir_all(folder).context(|| folder.display().to_string())?;
                }
                State::Running | State::Frozen => {
                    return Err(Error::new("only a server that has ended can be wiped"));
                }
            }
            Ok(State::New)
        })
        .await
    }

    /// The number of its main process, if it runs.
    ///
    /// # Errors
    ///
    /// When the provider fails.
    pub async fn pid(&self) -> Result<Option<u32>> {
        let inner = self.0.clone();
        hub::run(async move { inner.instance.pid().await }).await
    }

    /// Whether its main process exists, frozen or not.
    ///
    /// # Errors
    ///
    /// When the provider fails.
    pub async fn is_running(&self) -> Result<bool> {
        Ok(self.pid().await?.is_some())
    }

    /// Runs the server's own command-line client against it, and returns what it prints.
    ///
    /// # Errors
    ///
    /// When the client fails, or takes longer than a minute.
    pub async fn exec(&self, args: &[&str]) -> Result<String> {
        let mut command = self.0.launch().client;
        command.extend(args.iter().map(ToString::to_string));
        self.run(command).await
    }

    /// Runs a program of the server's software beside it, and returns what it prints.
    ///
    /// # Errors
    ///
    /// When it fails, or takes longer than a minute.
    pub async fn run(&self, command: Vec<String>) -> Result<String> {
        let inner = self.0.clone();
        hub::run(async move {
            let output = inner.instance.output(&inner.launch(), &command).await?;
            succeeded(&command, &output)
        })
        .await
    }

    /// Sends a text to the address for clients, and returns what comes until the server closes the connection, as
    /// ZooKeeper does after four-letter words.
    ///
    /// # Errors
    ///
    /// When the connection fails, or the server does not close it within 5 s.
    pub async fn ask(&self, question: &str) -> Result<String> {
        let addr = self.addr();
        let question = question.as_bytes().to_vec();
        hub::run(async move {
            // No answer is the last one: it reads to the end.
            let probe = Probe { port: 0, question, answers: Vec::new() };
            match timeout(Duration::from_secs(5), ask(addr, &probe)).await {
                Ok(answer) => Ok(text(&answer.context(|| addr.to_string())?)),
                Err(_) => Err(Error::new(format!("{addr} does not answer"))),
            }
        })
        .await
    }

    /// What the server wrote to its standard output and error.
    pub async fn log(&self) -> String {
        let inner = self.0.clone();
        hub::run(async move { inner.instance.log().await }).await
    }

    /// Does one change of state, to its end.
    async fn change<F>(&self, step: impl FnOnce(Arc<Inner>, State) -> F + Send + 'static) -> Result<()>
    where
        F: Future<Output = Result<State>> + Send,
    {
        let inner = self.0.clone();
        hub::run(async move {
            let mut state = inner.state.lock().await;
            let next = step(inner.clone(), *state).await;
            match next {
                Ok(next) => *state = next,
                // It was begun and does not serve; it can be ended and looked at.
                Err(_) if *state == State::New && inner.site.folder().exists() => *state = State::Ended,
                Err(_) => {}
            }
            next.map(drop).map_err(|error| inner.named(&error))
        })
        .await
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let inner = self.0.clone();
        let (tell, told) = mpsc::channel();
        // What a test left behind that failed may say why.
        let has_failed = thread::panicking();
        // If the process ends before this is done, the reaper does it.
        drop(hub::spawn(async move {
            let _state = inner.state.lock().await;
            if has_failed {
                drop(tell.send((inner.site.name().to_owned(), inner.instance.log().await)));
            }
            inner.instance.remove().await;
            drop(fs::remove_dir_all(inner.site.folder()));
        }));
        // Here, as the harness keeps what the thread of a test writes with the test.
        if has_failed && let Ok((name, log)) = told.recv_timeout(LOG) {
            eprintln!("the end of the log of {name}:\n{}", end_of(&log));
        }
    }
}

/// The last lines of a log.
fn end_of(log: &str) -> String {
    const LINES: usize = 25;
    let lines: Vec<_> = log.lines().collect();
    lines[lines.len().saturating_sub(LINES)..].join("\n")
}

impl State {
    fn or_ended(self) -> Self {
        if self == Self::New { self } else { Self::Ended }
    }
}

impl Inner {
    fn kind(&self) -> MutexGuard<'_, Arc<dyn Kind>> {
        self.kind.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn launch(&self) -> Launch {
        self.kind().launch(&self.site)
    }

    /// The error, with the name of the server that it is about.
    fn named(&self, error: &Error) -> Error {
        Error::new(format!("{}: {error}", self.site.name()))
    }

    /// Each step is noted at once: what was thawed and does not stop is not frozen any more.
    async fn stop(&self, state: &mut State) -> Result<()> {
        if *state == State::Frozen {
            self.instance.thaw().await?;
            *state = State::Running;
        }
        if *state != State::New {
            self.instance.stop().await?;
            *state = State::Ended;
        }
        Ok(())
    }

    /// Starts the processes, unless they run; makes the folder first if there is none.
    async fn begin(&self, state: State) -> Result<()> {
        let launch = self.launch();
        match state {
            State::Running if self.instance.pid().await?.is_some() => return Ok(()),
            State::Frozen => return self.instance.thaw().await,
            State::Running | State::Ended => {}
            State::New => self.prepare(&launch).await?,
        }
        self.instance.start(&launch).await
    }

    async fn prepare(&self, launch: &Launch) -> Result<()> {
        let folder = self.site.folder();
        let (user, group) = launch.user();
        fs::create_dir_all(folder)
            .and_then(|()| chown(folder, Some(user), Some(group)))
            .context(|| folder.display().to_string())?;
        self.write_files(launch)?;
        for command in &launch.setup {
            let output = self.instance.setup(launch, command).await?;
            succeeded(command, &output)?;
        }
        Ok(())
    }

    fn write_files(&self, launch: &Launch) -> Result<()> {
        let (user, group) = launch.user();
        for (name, content) in &launch.files {
            let path = self.site.folder().join(name);
            let parent = path.parent().expect("it is in the server's folder");
            fs::create_dir_all(parent)
                .and_then(|()| chown(parent, Some(user), Some(group)))
                .and_then(|()| fs::write(&path, content))
                // PostgreSQL refuses keys that others may read.
                .and_then(|()| fs::set_permissions(&path, fs::Permissions::from_mode(0o600)))
                .and_then(|()| chown(&path, Some(user), Some(group)))
                .context(|| path.display().to_string())?;
        }
        Ok(())
    }

    async fn until_it_serves(&self) -> Result<()> {
        let probe = self.launch().probe;
        let addr = self.site.addr(probe.port);
        let end = Instant::now() + START;
        let mut look = Instant::now();
        loop {
            let answer = match timeout(Duration::from_secs(2), ask(addr, &probe)).await {
                Ok(Ok(answer)) if probe.is_answered_by(&answer) => return Ok(()),
                Ok(Ok(answer)) => format!("it answers '{}'", text(&answer)),
                Ok(Err(error)) => error.to_string(),
                Err(_) => "it does not answer".to_owned(),
            };
            let now = Instant::now();
            // To ask the provider is much dearer than to ask the server.
            let ended = now >= look && self.instance.pid().await?.is_none();
            if ended || now >= end {
                let why = if ended { "it has ended" } else { &answer };
                let log = self.instance.log().await;
                return Err(Error::new(format!(
                    "does not serve at {addr}: {why}\n--- its log ---\n{log}\n---"
                )));
            }
            if now >= look {
                look = now + Duration::from_millis(500);
            }
            sleep(Duration::from_millis(20)).await;
        }
    }
}

/// Asks, and reads until one of the wanted answers is there or the server says no more.
async fn ask(addr: SocketAddr, probe: &Probe) -> std::io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(addr).await?;
    stream.write_all(&probe.question).await?;
    let mut answer = Vec::new();
    while stream.read_buf(&mut answer).await? > 0 && !probe.is_answered_by(&answer) {}
    Ok(answer)
}

fn succeeded(command: &[String], output: &std::process::Output) -> Result<String> {
    if output.status.success() {
        return Ok(text(&output.stdout));
    }
    let (status, out, err) = (output.status, text(&output.stdout), text(&output.stderr));
    Err(Error::new(format!("'{}' failed ({status}): {out} {err}", command.join(" "))))
}
