//! A client of several etcd members: one connection at a time, to another member when that one fails.
//!
//! Each call says what is known of it when it fails: certainly not executed, or unknown. What was certainly not executed
//! is sent to the other members before it is given up; what is unknown never is, since that is for its caller to find out.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dlock_core::{BackendError, ErrorKind};
use http::uri::PathAndQuery;
use prost::Message;
use tokio::sync::{mpsc, watch};
use tonic::client::Grpc;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::Channel;
use tonic::{Request, Status, Streaming};
use tonic_prost::ProstCodec;

use crate::connect::{Credentials, Member};
use crate::error::{self, Verdict, verdict};
use crate::wire::{AuthenticateRequest, Call};

/// Cheap to clone; clones share the connection.
#[derive(Clone, Debug)]
pub(crate) struct Client(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    members: Vec<Member>,
    user: Option<Credentials>,
    state: Mutex<State>,
    /// The number of the connection, for those who wait for its end.
    number: watch::Sender<u64>,
    connecting: tokio::sync::Mutex<()>,
    authenticating: tokio::sync::Mutex<()>,
}

#[derive(Debug)]
struct State {
    /// The member to connect to next.
    next: usize,
    link: Option<Link>,
    last_number: u64,
    /// Attempts to connect that are over, and how the last one failed.
    attempts: u64,
    failure: Option<(u64, BackendError)>,
    token: Token,
}

/// What is known of the token of the user.
#[derive(Debug)]
enum Token {
    /// It is to be asked for.
    Unknown,
    /// The server asked for no user when it was asked last.
    NotNeeded,
    Known(MetadataValue<Ascii>),
}

/// A connection to one member.
#[derive(Clone, Debug)]
struct Link {
    channel: Channel,
    member: usize,
    number: u64,
}

/// Both directions of a call that stays open.
#[derive(Debug)]
pub(crate) struct Duplex<Q, A> {
    requests: mpsc::Sender<Q>,
    answers: Streaming<A>,
    client: Client,
    link: Link,
    dropped: Dropped,
}

type Failure = (Verdict, Status);

/// What it says of a member that a call to it was dropped before the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Dropped {
    /// It owes an answer, and may be frozen: later requests go to another member.
    IsSilent,
    /// Nothing: whoever asked no longer wants to know.
    SaysNothing,
}

impl Client {
    /// A client of these members, of which there is at least one. Connects at first use, to any of them.
    pub(crate) fn new(members: Vec<Member>, user: Option<Credentials>) -> Self {
        let state = State {
            // Clients with one list do not all go to its first member.
            next: rand::random_range(0..members.len()),
            link: None,
            last_number: 0,
            attempts: 0,
            failure: None,
            token: Token::Unknown,
        };
        Self(Arc::new(Inner {
            members,
            user,
            state: Mutex::new(state),
            number: watch::Sender::new(0),
            connecting: tokio::sync::Mutex::default(),
            authenticating: tokio::sync::Mutex::default(),
        }))
    }

    /// Sends a request and waits for the answer.
    ///
    /// # Cancel safety
    ///
    /// Dropped before the answer, the request may have been executed, or may still be; the next one goes to another
    /// member, since this one may be frozen.
    pub(crate) async fn call<Q: Call>(&self, request: Q) -> Result<Q::Answer, BackendError> {
        self.unary(Dropped::IsSilent, request).await
    }

    /// As [`call`](Self::call), for a question whose asker may lose interest.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: dropped, it says nothing of the member, and others go on with it.
    pub(crate) async fn look<Q: Call>(&self, request: Q) -> Result<Q::Answer, BackendError> {
        self.unary(Dropped::SaysNothing, request).await
    }

    async fn unary<Q: Call>(&self, dropped: Dropped, request: Q) -> Result<Q::Answer, BackendError> {
        self.on_some_member(dropped, |link| {
            let (client, request) = (self.clone(), request.clone());
            async move {
                let request = client.authorised(&link, request).await?;
                let path = PathAndQuery::from_static(Q::PATH);
                let answer = ready(&link).await?.unary(request, path, ProstCodec::default()).await;
                answer.map(tonic::Response::into_inner).map_err(judged)
            }
        })
        .await
    }

    /// As [`call`](Self::call), for the first request of a client: where nothing answers, the other side may speak
    /// something else than it was taken for.
    pub(crate) async fn first_call<Q: Call>(&self, request: Q) -> Result<Q::Answer, BackendError> {
        let answer = self.call(request).await;
        answer.map_err(|error| error::of_first_request(self.0.members.iter().any(|member| member.tls), error))
    }

    /// Opens a call that stays open, with its first request. It is open when the first answer comes, which etcd gives to
    /// the first request.
    pub(crate) async fn duplex<Q, A>(
        &self,
        path: &'static str,
        first: Q,
    ) -> Result<Duplex<Q, A>, BackendError>
    where
        Q: Message + Clone + 'static,
        A: Message + Default + 'static,
    {
        self.open(Dropped::IsSilent, path, first).await
    }

    /// As [`duplex`](Self::duplex), for one who may lose interest: dropped, it says nothing of the member.
    pub(crate) async fn watch<Q, A>(&self, path: &'static str, first: Q) -> Result<Duplex<Q, A>, BackendError>
    where
        Q: Message + Clone + 'static,
        A: Message + Default + 'static,
    {
        self.open(Dropped::SaysNothing, path, first).await
    }

    async fn open<Q, A>(
        &self,
        dropped: Dropped,
        path: &'static str,
        first: Q,
    ) -> Result<Duplex<Q, A>, BackendError>
    where
        Q: Message + Clone + 'static,
        A: Message + Default + 'static,
    {
        self.on_some_member(dropped, |link| {
            let (client, first) = (self.clone(), first.clone());
            async move {
                let (requests, mut queue) = mpsc::channel(1);
                // There is room for one, and nobody else has sent any.
                drop(requests.try_send(first));
                let queue = futures_util::stream::poll_fn(move |context| queue.poll_recv(context));
                let request = client.authorised(&link, queue).await?;
                let path = PathAndQuery::from_static(path);
                let codec = ProstCodec::<Q, A>::default();
                let answers = ready(&link).await?.streaming(request, path, codec).await;
                Ok(Duplex { requests, answers: answers.map_err(judged)?.into_inner(), client, link, dropped })
            }
        })
        .await
    }

    /// How many members it knows.
    pub(crate) fn members(&self) -> usize {
        self.0.members.len()
    }

    /// The number of the present connection.
    pub(crate) fn number(&self) -> u64 {
        *self.0.number.borrow()
    }

    /// Gives the connection of this number up, for one who has waited long enough for an answer.
    pub(crate) fn leave(&self, number: u64) {
        let link = self.state().link.clone();
        if let Some(link) = link.filter(|link| link.number == number) {
            self.give_up(&link);
        }
    }

    /// Resolves when the connection of this number was given up.
    pub(crate) async fn given_up(&self, number: u64) {
        // It cannot fail: the sender lives as long as `self`.
        drop(self.0.number.subscribe().wait_for(|now| *now != number).await);
    }

    /// Makes a request with one member after another until one takes it; each once, and one more time with a new token.
    async fn on_some_member<T, F>(
        &self,
        dropped: Dropped,
        make: impl Fn(Link) -> F,
    ) -> Result<T, BackendError>
    where
        F: Future<Output = Result<T, Failure>>,
    {
        let mut left = self.0.members.len() + 1;
        loop {
            left -= 1;
            let link = self.link().await?;
            let unanswered = Unanswered::new(self, &link, dropped);
            let outcome = make(link.clone()).await;
            unanswered.close();
            let (verdict, status) = match outcome {
                Ok(answer) => return Ok(answer),
                Err((verdict, status)) => (self.with_user(verdict, &status), status),
            };
            self.after(verdict, &link);
            if left == 0 || matches!(verdict, Verdict::Answered | Verdict::Broken) {
                return Err(self.error(&link, verdict, &status));
            }
        }
    }

    /// The present connection, made if there is none.
    async fn link(&self) -> Result<Link, BackendError> {
        let before = {
            let state = self.state();
            if let Some(link) = &state.link {
                return Ok(link.clone());
            }
            state.attempts
        };
        let _one = self.0.connecting.lock().await;
        {
            let state = self.state();
            if let Some(link) = &state.link {
                return Ok(link.clone());
            }
            // Who came while an attempt was under way shares its outcome: members that are down cost one time-out, and
            // not one for each lock.
            if let Some((attempt, failure)) = &state.failure
                && *attempt > before
            {
                return Err(failure.clone());
            }
        }
        let connected = self.connect().await;
        let mut state = self.state();
        state.attempts += 1;
        match connected {
            Ok((member, channel)) => {
                let number = state.last_number + 1;
                state.last_number = number;
                state.failure = None;
                let link = Link { channel, member, number };
                state.link = Some(link.clone());
                self.0.number.send_replace(number);
                Ok(link)
            }
            Err(failure) => {
                state.failure = Some((state.attempts, failure.clone()));
                Err(failure)
            }
        }
    }

    /// Connects to the first member that can be reached.
    async fn connect(&self) -> Result<(usize, Channel), BackendError> {
        let mut failures = Vec::new();
        for _ in &self.0.members {
            let at = {
                let mut state = self.state();
                let at = state.next;
                // Before the attempt: where it hangs and is dropped, the next caller tries the next member.
                state.next = (at + 1) % self.0.members.len();
                at
            };
            match self.0.members[at].connect().await {
                Ok(channel) => return Ok((at, channel)),
                Err(failure) => failures.push(failure),
            }
        }
        Err(merged(failures))
    }

    /// A server that asked for no user before, and does now, says so to a request without a token.
    fn with_user(&self, verdict: Verdict, status: &Status) -> Verdict {
        let asks_now = self.0.user.is_some() && status.message().contains("user name is empty");
        if asks_now { Verdict::TokenIsOld } else { verdict }
    }

    /// Does what a failure asks for, so that the next request does better.
    fn after(&self, verdict: Verdict, link: &Link) {
        match verdict {
            Verdict::Answered => {}
            Verdict::TokenIsOld => self.state().token = Token::Unknown,
            Verdict::AskAnother | Verdict::NotSent | Verdict::Broken => self.give_up(link),
        }
    }

    fn error(&self, link: &Link, verdict: Verdict, status: &Status) -> BackendError {
        let user = self.0.user.as_ref().map(|user| &*user.name);
        error::of_status(&self.0.members[link.member].address, user, verdict, status)
    }

    /// Sends later requests to another member, unless they do already.
    fn give_up(&self, link: &Link) {
        let mut state = self.state();
        if state.link.as_ref().is_some_and(|present| present.number == link.number) {
            state.link = None;
            self.0.number.send_replace(0);
        }
    }

    /// Adds what every request carries: that it wants a member which knows of a leader, and who asks.
    async fn authorised<Q>(&self, link: &Link, request: Q) -> Result<Request<Q>, Failure> {
        let mut request = Request::new(request);
        request.metadata_mut().insert("hasleader", MetadataValue::from_static("true"));
        if let Some(user) = &self.0.user
            && let Some(token) = self.token(link, user).await?
        {
            request.metadata_mut().insert("token", token);
        }
        Ok(request)
    }

    /// The user's token, asked for if there is none; none where the server asks for no user.
    async fn token(&self, link: &Link, user: &Credentials) -> Result<Option<MetadataValue<Ascii>>, Failure> {
        let _one = self.0.authenticating.lock().await;
        match &self.state().token {
            Token::Known(token) => return Ok(Some(token.clone())),
            Token::NotNeeded => return Ok(None),
            Token::Unknown => {}
        }
        let mut grpc = ready(link).await?;
        let request = AuthenticateRequest { name: user.name.clone(), password: user.password.clone() };
        let path = PathAndQuery::from_static(AuthenticateRequest::PATH);
        let codec = ProstCodec::<_, <AuthenticateRequest as Call>::Answer>::default();
        let answer = tokio::select! {
            biased;
            answer = grpc.unary(Request::new(request), path, codec) => answer,
            // Those who go on with another member wait for this one to be through.
            () = self.given_up(link.number) => {
                return Err((Verdict::NotSent, Status::unavailable("another member is asked by now")));
            }
        };
        let answer = match answer {
            Ok(answer) => answer.into_inner(),
            Err(status) if status.message().contains("authentication is not enabled") => {
                self.state().token = Token::NotNeeded;
                return Ok(None);
            }
            Err(status) => {
                // It changes nothing, so what asks for it was not executed.
                let seen = verdict(&status);
                return Err((if seen == Verdict::Broken { Verdict::NotSent } else { seen }, status));
            }
        };
        let mut token: MetadataValue<Ascii> = answer
            .token
            .parse()
            .map_err(|_| (Verdict::Answered, Status::internal("the server's token is no legal header")))?;
        // So that `Debug` hides it.
        token.set_sensitive(true);
        self.state().token = Token::Known(token.clone());
        Ok(Some(token))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<Q, A> Duplex<Q, A> {
    /// Sends another request. False if the call has ended.
    pub(crate) async fn send(&self, request: Q) -> bool {
        self.requests.send(request).await.is_ok()
    }

    /// The answer to the last request.
    ///
    /// # Cancel safety
    ///
    /// Dropped before the answer, later requests go to another member, since this one may be frozen; those of a
    /// [`watch`](Client::watch) do not.
    pub(crate) async fn answer(&mut self) -> Result<A, BackendError> {
        let unanswered = Unanswered::new(&self.client, &self.link, self.dropped);
        let message = self.answers.message().await;
        unanswered.close();
        self.judge(message)
    }

    /// What the server says next, of whatever it likes and whenever it likes.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: no answer is lost.
    pub(crate) async fn next(&mut self) -> Result<A, BackendError> {
        let message = self.answers.message().await;
        self.judge(message)
    }

    fn judge(&self, message: Result<Option<A>, Status>) -> Result<A, BackendError> {
        let (verdict, status) = match message {
            Ok(Some(answer)) => return Ok(answer),
            Ok(None) => (Verdict::Broken, Status::unavailable("the server ended the call")),
            Err(status) => {
                let (verdict, status) = judged(status);
                (self.client.with_user(verdict, &status), status)
            }
        };
        self.client.after(verdict, &self.link);
        Err(self.client.error(&self.link, verdict, &status))
    }

    /// The number of the connection that it uses.
    pub(crate) fn number(&self) -> u64 {
        self.link.number
    }
}

/// A request under way. Dropped without an answer it leaves the member, which may be frozen, unless that says nothing.
struct Unanswered<'a> {
    client: &'a Client,
    link: &'a Link,
    is_open: bool,
}

impl<'a> Unanswered<'a> {
    fn new(client: &'a Client, link: &'a Link, dropped: Dropped) -> Self {
        Self { client, link, is_open: dropped == Dropped::IsSilent }
    }

    fn close(mut self) {
        self.is_open = false;
    }
}

impl Drop for Unanswered<'_> {
    fn drop(&mut self) {
        if self.is_open {
            self.client.give_up(self.link);
        }
    }
}

async fn ready(link: &Link) -> Result<Grpc<Channel>, Failure> {
    // A session of very many locks has a lease with as many keys.
    let mut grpc = Grpc::new(link.channel.clone()).max_decoding_message_size(usize::MAX);
    grpc.ready().await.map_err(|error| (Verdict::NotSent, Status::from_error(Box::new(error))))?;
    Ok(grpc)
}

fn judged(status: Status) -> Failure {
    (verdict(&status), status)
}

/// One error for all members. Refused only if each refused: another one may come back and not refuse.
fn merged(failures: Vec<BackendError>) -> BackendError {
    let all_refused = failures.iter().all(|failure| failure.kind() == ErrorKind::Refused);
    let kind = if all_refused { ErrorKind::Refused } else { ErrorKind::Unavailable };
    let mut failures = failures.into_iter();
    let Some(first) = failures.next() else { return BackendError::refused("no member of etcd was given") };
    let rest: Vec<_> = failures.map(|failure| failure.to_string()).collect();
    if rest.is_empty() {
        return first;
    }
    BackendError::new(kind, format!("{first}; {}", rest.join("; "))).with_source(error::Cause::of(&first))
}
