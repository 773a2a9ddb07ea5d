//! What a store must say and do: the traits that a backend implements.
//!
//! A backend is thin. It turns one call into one request to its store, and the answer into one of the replies below.
//! Core owns everything else, once for all backends: local queues, waiting, retries, time-outs, lease clocks, settling,
//! loss, release on drop. So a backend never spawns a retry loop, never compares a deadline, and never decides to wait.
//!
//! Every method lists what must hold *to be correct*. Each bullet names in brackets the conformance case that checks
//! it; run the whole suite (crate `conformance-tests`) over a new backend before you trust it.
//!
//! # How core calls a session
//!
//! - For one name at most one claim is at the store at a time, and calls for one name follow each other. Calls for
//!   different names run side by side.
//! - Every call but [`wait`](Session::wait) and [`event`](Session::event) is under a time-out; when it elapses the
//!   future is dropped and the outcome counts as [`ErrorKind::Unknown`](crate::ErrorKind::Unknown).
//! - A claim id is made fresh for each request. It is used again only while its claim waits or is granted. After
//!   [`Busy`] or a definite error it is spent; after an unknown it goes to [`resolve`](Session::resolve), never to
//!   [`claim`](Session::claim).
//! - One [`renew`](Session::renew) is in flight at a time.

use std::any::Any;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use crate::clock::{Clock, Timestamp};
use crate::error::BackendError;
use crate::guarantees::Guarantees;
use crate::holder::Holder;
use crate::lease::Lease;
use crate::name::LockName;
use crate::token::FencingToken;

/// One kind of store.
#[async_trait]
pub trait Backend: Send + Sync + fmt::Debug + 'static {
    /// What this backend promises as it is configured. No I/O.
    fn guarantees(&self) -> Guarantees;

    /// Where the lock lives in the store. No I/O.
    ///
    /// To be correct, no two names share a location \[`names_do_not_alias`\], and it is what the store's own tool takes.
    fn locate(&self, name: &LockName) -> Location;

    /// Opens a session: the liveness contract under which claims are made.
    ///
    /// To be correct:
    /// - a session never continues an earlier one, not even one of the same owner: claims of an ended session are
    ///   those of somebody else \[`session_end_is_told_before_takeover`, `two_managers_one_owner`\];
    /// - [`Opened::lease`] is set exactly when the session carries the lease of all its claims, and its `since` was
    ///   read before the request was sent that started it \[`stalled_grant_is_not_handed_out`\].
    async fn open(&self, options: OpenOptions) -> Result<Opened, BackendError>;

    /// Prepares a store for its first use, by somebody who knows that it is new: makes what locks need there. Returns
    /// what was done and what is left to do, one sentence each, for people.
    ///
    /// The default opens a session and closes it: enough for a store that needs nothing, or makes it at first use.
    ///
    /// To be correct, it changes nothing in a store that is in use already: calling it again does no harm
    /// \[`preparing_again_does_no_harm`\].
    async fn init(&self, options: OpenOptions) -> Result<Vec<String>, BackendError> {
        let opened = self.open(options).await?;
        opened.session.close(Vec::new()).await?;
        Ok(Vec::new())
    }
}

/// A session at the store. One task of core renews it; calls come from many tasks.
#[async_trait]
pub trait Session: Send + Sync + fmt::Debug + 'static {
    /// Asks for a lock, once.
    ///
    /// With [`Patience::Try`] the answer is `Granted` or `Busy`; with [`Patience::Queue`] a store that keeps a queue
    /// may answer `Waiting`. A claim that waits is asked for again with the same id, which then only looks.
    ///
    /// To be correct:
    /// - `Granted` is answered for at most one living claim of a name over all sessions, the same session included
    ///   \[`exclusion_between_managers`\];
    /// - the token is greater than that of every claim granted before the request was sent, and is the store's answer
    ///   to this request, not a later look \[`tokens_rise`, `tokens_survive_reopening`\];
    /// - a lease in the answer starts at a reading of the clock from before the request was sent
    ///   \[`stalled_grant_is_not_handed_out`\];
    /// - `Busy` and a definite error leave nothing behind in the store \[`busy_try_leaves_nothing`\];
    /// - what is not certain is [`ErrorKind::Unknown`](crate::ErrorKind::Unknown), never a definite error
    ///   \[`lost_reply_of_a_claim`, `claim_executed_late`\];
    /// - an earlier holder that did not leave cleanly, and whose lease the store cannot prove to be over, is reported
    ///   as `owed`, or to a try as `debt`, with the lock left as it was \[`crashed_holder_is_settled`\];
    /// - dropping the future leaves a claim that `resolve` can tell of \[`cancel_at_every_poll`\].
    async fn claim(&self, request: ClaimRequest) -> Result<ClaimReply, BackendError>;

    /// Waits until it is worth asking for `claim` again; a hint, so it may return early but must not miss a release.
    ///
    /// The default never returns: a store without notifications relies on [`Busy::retry_after`] alone.
    ///
    /// # Cancel safety
    ///
    /// To be correct, dropping the future loses no wake-up: the next `wait` with the same cookie returns if the lock
    /// was released since the answer that the cookie came with \[`no_wake_up_is_lost`\].
    async fn wait(&self, claim: &ClaimRef, cookie: &Cookie) -> Result<(), BackendError> {
        let (_, _) = (claim, cookie);
        std::future::pending().await
    }

    /// Renews the session, or each of `claims` where claims carry their own lease, in one batch.
    ///
    /// To be correct:
    /// - it extends only what is still ours and never makes anew what is gone \[`removal_by_hand_is_told`\];
    /// - an answer is booked to its own request: a dropped call's late answer is never taken for that of a later one
    ///   \[`late_renewal_is_not_booked_to_a_later_one`\];
    /// - each lease starts at a reading of the clock from before the request was sent that the store counts as the
    ///   renewal \[`loss_by_expiry_is_told_before_takeover`\];
    /// - a claim missing from the store is [`Renewal::Gone`] only if its grant was answered before this request was
    ///   sent, which core guarantees for all of `claims`.
    async fn renew(&self, claims: &[ClaimRef]) -> Result<Renewed, BackendError>;

    /// Tells that the time owed by `claim` has been waited out. The default does nothing.
    async fn settled(&self, claim: &ClaimRef) -> Result<(), BackendError> {
        let _ = claim;
        Ok(())
    }

    /// Finds out what became of a claim, or of the release of a claim, whose answer never came.
    ///
    /// To be correct:
    /// - [`Resolution::Absent`] is proof: the claim is not at the store, and no request sent before can still make one
    ///   that a renewed session would keep alive \[`claim_executed_late`, `release_executed_late`\];
    /// - a grant found this way carries the token it was granted with, and a lease from before the original request
    ///   \[`lost_reply_of_a_claim`\]. A backend may instead remove what it finds, and answer `Absent`.
    async fn resolve(&self, claim: &ClaimRef) -> Result<Resolution, BackendError>;

    /// Gives up a claim, waiting or granted.
    ///
    /// To be correct:
    /// - it acts only on this claim, never on a successor's of the same name \[`release_spares_the_successor`\];
    /// - [`ReleaseRequest::unpaid`] is left to the next holder in the same request, unless it is zero
    ///   \[`cancelled_settle_leaves_the_rest`\];
    /// - a claim that waited and became first in line, which core was not told when it gave it up, leaves all it has
    ///   inherited, whatever `unpaid` says;
    /// - [`Released::Done`] means that the claim was there and is gone \[`release_says_what_happened`\].
    async fn release(&self, request: ReleaseRequest) -> Result<Released, BackendError>;

    /// The next thing the store says by itself: the session is over, or a claim was removed. The default never returns.
    ///
    /// # Cancel safety
    ///
    /// To be correct, dropping the future loses no event.
    async fn event(&self) -> SessionEvent {
        std::future::pending().await
    }

    /// Who holds a lock, for people; none if it is free. The default knows of nobody.
    async fn observe(&self, name: &LockName) -> Result<Option<Holder>, BackendError> {
        let _ = name;
        Ok(None)
    }

    /// Gives up `leaving` and ends the session. Called once; no renewal follows, and what is still under way for a name
    /// is dropped. A claim of this session that is not in `leaving` goes as in a crash.
    ///
    /// To be correct:
    /// - nothing of this session is left in the store \[`close_leaves_nothing`\];
    /// - unpaid rests are left to the next holder, as by `release` \[`close_while_settling_leaves_the_rest`\].
    async fn close(&self, leaving: Vec<ReleaseRequest>) -> Result<(), BackendError>;
}

/// What a session is opened with.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct OpenOptions {
    /// The lease that is asked for.
    pub ttl: Duration,
    /// Who we are, for people who look into the store.
    pub owner: String,
    /// How long core waits for one answer.
    pub request_timeout: Duration,
    /// The only clock a backend reads.
    pub clock: Arc<dyn Clock>,
}

impl OpenOptions {
    /// Options for a session; core makes these, and so do a backend's own tests.
    pub fn new(
        ttl: Duration,
        owner: impl Into<String>,
        request_timeout: Duration,
        clock: Arc<dyn Clock>,
    ) -> Self {
        Self { ttl, owner: owner.into(), request_timeout, clock }
    }
}

/// A session that was opened.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Opened {
    /// The session.
    pub session: Arc<dyn Session>,
    /// The lease, where the session carries it for all claims (etcd, ZooKeeper, PostgreSQL); none where each claim has
    /// its own (Redis, SQLite).
    pub lease: Option<Lease>,
    /// The TTL that the store granted.
    pub ttl: Duration,
}

impl Opened {
    /// A session that carries the lease of all its claims.
    pub fn with_session_lease(session: Arc<dyn Session>, lease: Lease) -> Self {
        Self { session, lease: Some(lease), ttl: lease.ttl }
    }

    /// A session whose claims each carry a lease of `ttl`.
    pub fn with_claim_leases(session: Arc<dyn Session>, ttl: Duration) -> Self {
        Self { session, lease: None, ttl }
    }
}

/// A claim's id: 128 random bits, made by core before the first request.
///
/// A store keeps it with the claim, so that release and renewal act on our own claim only.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClaimId(u128);

impl ClaimId {
    /// An id from its bits.
    pub const fn from_bits(bits: u128) -> Self {
        Self(bits)
    }

    /// The bits.
    pub const fn bits(self) -> u128 {
        self.0
    }

    /// The bits in the order in which they are written.
    pub const fn to_bytes(self) -> [u8; 16] {
        self.0.to_be_bytes()
    }
}

impl fmt::Display for ClaimId {
    /// 32 hexadecimal digits.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for ClaimId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ClaimId({self})")
    }
}

/// A claim and the name that it is for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ClaimRef {
    /// The claim.
    pub id: ClaimId,
    /// The lock.
    pub name: LockName,
}

/// A request for a lock.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ClaimRequest {
    /// The claim's id and the lock's name.
    pub claim: ClaimRef,
    /// What is asked for.
    pub mode: Mode,
    /// Whether to join the store's queue.
    pub patience: Patience,
    /// Who asks, for people.
    pub holder: Holder,
    /// A debt which this manager has watched for as long as it is owed: it need not be settled again.
    pub paid: Option<DebtId>,
    /// A version which this manager has seen unchanged for a whole lease of its holder: take the lock if it still is.
    pub take_if_unchanged: Option<Version>,
}

impl ClaimRequest {
    /// A request for an exclusive claim; core makes these, and so do a backend's own tests.
    pub fn new(claim: ClaimRef, patience: Patience, holder: Holder) -> Self {
        Self { claim, mode: Mode::Exclusive, patience, holder, paid: None, take_if_unchanged: None }
    }
}

/// What kind of claim is asked for. A backend answers a mode it does not know with a refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Mode {
    /// One holder.
    Exclusive,
}

/// Whether a claim joins the store's queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Patience {
    /// Join the queue where the store has one.
    Queue,
    /// Now or not at all.
    Try,
}

/// The store's answer to a claim.
#[derive(Clone, Debug)]
pub enum ClaimReply {
    /// The claim holds the lock.
    Granted(Grant),
    /// The claim is in the store's queue. Its id stays alive; claiming it again only looks.
    Waiting(Cookie),
    /// Somebody else holds the lock, and nothing of ours is in the store. The id is spent.
    Busy(Busy),
}

/// The store's answer that a claim holds the lock.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Grant {
    /// The fencing token.
    pub token: FencingToken,
    /// The claim's own lease; none where the session carries it.
    pub lease: Option<Lease>,
    /// How long core must wait, from receipt of the answer, before it hands out the guard.
    pub owed: Duration,
}

impl Grant {
    /// A grant under the session's lease, with nothing owed.
    pub fn new(token: FencingToken) -> Self {
        Self { token, lease: None, owed: Duration::ZERO }
    }

    /// Gives the claim its own lease.
    #[must_use]
    pub fn lease(mut self, lease: Lease) -> Self {
        self.lease = Some(lease);
        self
    }

    /// Sets what an earlier holder left to be settled.
    #[must_use]
    pub fn owed(mut self, owed: Duration) -> Self {
        self.owed = owed;
        self
    }
}

/// The store's answer that somebody else holds the lock.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Busy {
    /// When to ask again at the latest; core adds jitter.
    pub retry_after: Duration,
    /// The try got the lock itself, met this debt of an earlier holder and gave the lock back.
    pub debt: Option<Debt>,
    /// The store cannot tell whether the holder lives: this changes with every renewal of a living one.
    pub observed: Option<Observed>,
    /// What [`Session::wait`] is to wait for.
    pub cookie: Cookie,
}

impl Busy {
    /// The lock is held; ask again after `retry_after` at the latest.
    pub fn retry_after(retry_after: Duration) -> Self {
        Self { retry_after, debt: None, observed: None, cookie: Cookie::none() }
    }

    /// Sets the debt that the try met.
    #[must_use]
    pub fn debt(mut self, debt: Debt) -> Self {
        self.debt = Some(debt);
        self
    }

    /// Sets the version that was seen.
    #[must_use]
    pub fn observed(mut self, observed: Observed) -> Self {
        self.observed = Some(observed);
        self
    }

    /// Sets what to wait for.
    #[must_use]
    pub fn cookie(mut self, cookie: Cookie) -> Self {
        self.cookie = cookie;
        self
    }
}

/// What an earlier holder left that did not leave cleanly.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Debt {
    /// Names this debt; another debt of the same lock has another id.
    pub id: DebtId,
    /// How long it must be waited out.
    pub owed: Duration,
}

/// The identity of a debt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DebtId(pub u64);

/// A holder of whom the store cannot say whether it lives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observed {
    /// Changes with every renewal of a living holder.
    pub version: Version,
    /// The holder's lease: unchanged for so long, the version proves the holder's deadline to be past.
    pub lease: Duration,
}

/// An opaque version of a store's record.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Version(Arc<str>);

impl Version {
    /// A version from whatever text identifies it.
    pub fn new(text: impl AsRef<str>) -> Self {
        Self(Arc::from(text.as_ref()))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// What a backend wants to remember between the answer to a claim and the wait that follows.
#[derive(Clone, Default)]
pub struct Cookie(Option<Arc<dyn Any + Send + Sync>>);

impl Cookie {
    /// Nothing to remember.
    pub const fn none() -> Self {
        Self(None)
    }

    /// Remembers a value.
    pub fn new<T: Any + Send + Sync>(value: T) -> Self {
        Self(Some(Arc::new(value)))
    }

    /// The value, if there is one of this type.
    pub fn get<T: Any>(&self) -> Option<&T> {
        self.0.as_deref().and_then(|value| value.downcast_ref())
    }
}

impl fmt::Debug for Cookie {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Cookie(..)" } else { "Cookie" })
    }
}

/// The store's answer to a renewal.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Renewed {
    /// What became of the session's own lease, where it carries one.
    pub session: Option<Renewal>,
    /// What became of claims. Under claim leases a claim not listed counts as unknown; under a session lease as well.
    pub claims: Vec<(ClaimId, Renewal)>,
}

impl Renewed {
    /// The answer for a session that carries the lease.
    pub fn session(renewal: Renewal) -> Self {
        Self { session: Some(renewal), claims: Vec::new() }
    }

    /// The answer for claims that carry their own.
    pub fn claims(claims: Vec<(ClaimId, Renewal)>) -> Self {
        Self { session: None, claims }
    }

    /// Adds a claim that the store no longer has.
    #[must_use]
    pub fn gone(mut self, id: ClaimId) -> Self {
        self.claims.push((id, Renewal::Gone));
        self
    }
}

/// What became of one lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Renewal {
    /// Extended.
    Extended(Lease),
    /// Not there any more: final.
    Gone,
    /// Nobody knows; core tries again until the deadline.
    Unknown,
}

/// What became of a claim or a release whose answer never came.
#[derive(Clone, Debug)]
pub enum Resolution {
    /// Not at the store, and it never will be.
    Absent,
    /// In the store's queue.
    Waiting(Cookie),
    /// Granted.
    Granted(Grant),
}

/// A request to give up a claim.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ReleaseRequest {
    /// The claim.
    pub claim: ClaimRef,
    /// What is still owed to an earlier holder; zero only if nothing was owed or the settle was served.
    pub unpaid: Duration,
}

impl ReleaseRequest {
    /// A clean release.
    pub fn new(claim: ClaimRef) -> Self {
        Self { claim, unpaid: Duration::ZERO }
    }

    /// Leaves `unpaid` to the next holder.
    #[must_use]
    pub fn unpaid(mut self, unpaid: Duration) -> Self {
        self.unpaid = unpaid;
        self
    }
}

/// The store's answer to a release.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Released {
    /// The claim was there, and is gone.
    Done,
    /// The claim was not there: expired, removed, or released before.
    NotFound,
}

/// What a store says by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SessionEvent {
    /// The session is over at the store.
    Gone,
    /// A claim was removed from the store by somebody else.
    Removed(ClaimId),
}

/// Where a lock lives in a store.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Location {
    /// The backend's name.
    pub backend: &'static str,
    /// What the store's own tool takes: a key, a path, a number.
    pub location: String,
    /// A command of the store's own tool that shows the lock, ready to paste; none where there is no such tool.
    pub inspect: Option<String>,
}

impl Location {
    /// A place in a store.
    pub fn new(backend: &'static str, location: impl Into<String>) -> Self {
        Self { backend, location: location.into(), inspect: None }
    }

    /// Adds a command that shows it.
    #[must_use]
    pub fn inspect(mut self, command: impl Into<String>) -> Self {
        self.inspect = Some(command.into());
        self
    }
}

impl OpenOptions {
    /// The clock's reading, to be taken before a request is sent.
    pub fn now(&self) -> Timestamp {
        self.clock.now()
    }
}
