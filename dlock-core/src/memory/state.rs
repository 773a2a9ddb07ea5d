//! The server: what it knows, and what each request does to it. Pure but for the wake-ups: time comes in as arguments.

mod ends;

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::sync::futures::OwnedNotified;

use super::profile::{Expiry, LeaseScope, Profile, Waiting};
use super::session::Mailbox;
use crate::backend::{
    Busy, ClaimId, ClaimReply, ClaimRequest, Cookie, Debt, DebtId, Grant, Mode, Observed, Patience, Released,
    Renewal, Renewed, Resolution, Version,
};
use crate::clock::Timestamp;
use crate::error::BackendError;
use crate::holder::Holder;
use crate::lease::{Lease, margin};
use crate::token::FencingToken;

/// How many requests of each kind reached a store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Requests {
    /// Sessions opened.
    pub open: u64,
    /// Claims, the looks of waiting ones included.
    pub claim: u64,
    /// Waits for a change.
    pub wait: u64,
    /// Renewals, each for any number of claims.
    pub renew: u64,
    /// Settles told as served.
    pub settled: u64,
    /// Questions after what became of a claim.
    pub resolve: u64,
    /// Releases.
    pub release: u64,
    /// Looks at a holder.
    pub observe: u64,
    /// Sessions closed.
    pub close: u64,
}

impl Requests {
    /// All of them.
    pub fn total(&self) -> u64 {
        self.open
            + self.claim
            + self.wait
            + self.renew
            + self.settled
            + self.resolve
            + self.release
            + self.observe
            + self.close
    }
}

pub(super) struct State {
    profile: Profile,
    pub(super) requests: Requests,
    /// The last token: one count for all names, so that nothing grows with names.
    token: u64,
    last_session: u64,
    /// Under claim leases, and where nothing expires, these are only the clients that are connected.
    sessions: BTreeMap<u64, SessionRow>,
    /// A name is here only while there is a claim or a debt of it.
    names: HashMap<Box<str>, NameRow>,
    now: Timestamp,
    /// Nothing runs out before this.
    next_due: Timestamp,
}

struct SessionRow {
    owner: String,
    ttl: Duration,
    expires: Timestamp,
    renewals: u64,
    /// Claims that the store has answered not to be there. It keeps to that answer for as long as the session lives, so
    /// that a request executed late makes nothing that the session would keep alive (P6). One for each unanswered
    /// request, at most.
    spent: HashSet<ClaimId>,
    mailbox: Arc<Mailbox>,
}

#[derive(Default)]
struct NameRow {
    holder: Option<Claim>,
    queue: VecDeque<Claim>,
    /// Only while nobody holds.
    debt: Option<OldDebt>,
    /// Wakes those who were told `Busy`.
    changed: Option<Arc<Notify>>,
}

struct Claim {
    id: ClaimId,
    session: u64,
    by: Holder,
    ttl: Duration,
    /// Zero while it waits.
    token: u64,
    /// What it has inherited and not settled.
    inherited: Duration,
    /// The client's reading and the store's, where claims carry their own lease.
    since: Timestamp,
    expires: Timestamp,
    renewals: u64,
    /// Its owner was answered that it holds. First in line without having been told so, it owes what it inherited.
    told: bool,
    /// Somebody asked what became of it: a request of its own may still be on the way.
    doubtful: bool,
    /// Wakes the waiter.
    woken: Option<Arc<Notify>>,
}

struct OldDebt {
    /// The token of the claim that left it.
    of: u64,
    owed: Duration,
    /// Twice its time later: proved by the store's clock.
    over: Timestamp,
}

/// What `wait` does next.
pub(super) enum Look {
    /// It is worth asking.
    Worth,
    /// Nothing will ever be told.
    Never,
    Sleep {
        changed: OwnedNotified,
        /// When a lease runs out that stands in the way.
        until: Option<Timestamp>,
    },
}

/// The token of the holder that was met.
struct Met(u64);

impl State {
    pub(super) fn new(profile: Profile) -> Self {
        Self {
            profile,
            requests: Requests::default(),
            token: 0,
            last_session: 0,
            sessions: BTreeMap::new(),
            names: HashMap::new(),
            now: Timestamp::from_nanos(0),
            next_due: NEVER,
        }
    }

    // Requests

    pub(super) fn open(&mut self, owner: &str, ttl: Duration, mailbox: Arc<Mailbox>) -> u64 {
        self.requests.open += 1;
        self.last_session += 1;
        let expires = self.now.plus(ttl);
        if self.session_leases() && self.expires() {
            self.next_due = self.next_due.min(expires);
        }
        let owner = owner.to_owned();
        let row = SessionRow { owner, ttl, expires, renewals: 0, spent: HashSet::new(), mailbox };
        self.sessions.insert(self.last_session, row);
        self.last_session
    }

    /// `since` is the client's reading from before the request.
    pub(super) fn claim(
        &mut self,
        session: u64,
        ttl: Duration,
        since: Timestamp,
        key: &str,
        request: ClaimRequest,
    ) -> Result<ClaimReply, BackendError> {
        self.requests.claim += 1;
        let ClaimRequest { claim, mode: Mode::Exclusive, patience, holder: by, paid, take_if_unchanged } =
            request;
        if self.session_leases() && self.session(session)?.spent.contains(&claim.id) {
            return Err(BackendError::refused("the claim was answered to be absent: its id is spent"));
        }
        let (now, profile, next_token) = (self.now, self.profile, self.token + 1);
        let mut claim = Claim {
            id: claim.id,
            session,
            by,
            ttl,
            token: 0,
            inherited: Duration::ZERO,
            since,
            expires: now.plus(ttl),
            renewals: 0,
            told: false,
            doubtful: false,
            woken: None,
        };

        if let Some(row) = self.names.get(key) {
            if let Some(held) = &row.holder {
                if held.id == claim.id {
                    let held = self.held(key, claim.id).expect("it was there a moment ago");
                    return Ok(ClaimReply::Granted(grant(&profile, held)));
                }
                if row.queue.iter().any(|waiting| waiting.id == claim.id) {
                    return Ok(ClaimReply::Waiting(Cookie::none()));
                }
                let observed = (profile.expiry == Expiry::Observed).then(|| self.observed(held));
                let unchanged =
                    observed.as_ref().is_some_and(|o| Some(&o.version) == take_if_unchanged.as_ref());
                if !unchanged && (patience == Patience::Try || profile.waiting == Waiting::Poll) {
                    let mut busy =
                        Busy::retry_after(self.retry_after(held)).cookie(Cookie::new(Met(held.token)));
                    busy.observed = observed;
                    return Ok(ClaimReply::Busy(busy));
                }
            } else if let Some(debt) = &row.debt
                && paid != Some(DebtId(debt.of))
            {
                if patience == Patience::Try {
                    let debt = Debt { id: DebtId(debt.of), owed: debt.owed };
                    return Ok(ClaimReply::Busy(Busy::retry_after(debt.owed).debt(debt)));
                }
                claim.inherited = debt.owed;
            }
        }

        let row = self.names.entry(Box::from(key)).or_default();
        if row.holder.is_some() && profile.expiry != Expiry::Observed {
            row.queue.push_back(claim);
            return Ok(ClaimReply::Waiting(Cookie::none()));
        }
        self.token = next_token;
        claim.token = next_token;
        let granted = grant(&profile, &mut claim);
        if profile.leases == LeaseScope::Claim && profile.expiry != Expiry::Observed {
            self.next_due = self.next_due.min(claim.expires);
        }
        row.debt = None;
        row.holder = Some(claim);
        row.tell();
        Ok(ClaimReply::Granted(granted))
    }

    pub(super) fn look(&mut self, session: u64, key: &str, id: ClaimId, cookie: &Cookie) -> Look {
        if self.session_leases() && !self.sessions.contains_key(&session) {
            return Look::Worth;
        }
        let met = cookie.get::<Met>();
        if self.profile.waiting == Waiting::Poll && !(self.profile.notify && met.is_some()) {
            return Look::Never;
        }
        let held = self.names.get(key).and_then(|row| row.holder.as_ref());
        let until = held.filter(|_| self.expires()).map(|held| self.end_of(held));
        let Some(row) = self.names.get_mut(key) else { return Look::Worth };
        let changed = if let Some(Met(token)) = met {
            if row.holder.as_ref().is_none_or(|held| held.token != *token) {
                return Look::Worth;
            }
            row.changed.get_or_insert_default()
        } else {
            let Some(waiting) = row.queue.iter_mut().find(|c| c.id == id) else { return Look::Worth };
            waiting.woken.get_or_insert_default()
        };
        Look::Sleep { changed: Arc::clone(changed).notified_owned(), until }
    }

    pub(super) fn renew_session<'a>(
        &mut self,
        number: u64,
        since: Timestamp,
        claims: impl Iterator<Item = (Cow<'a, str>, ClaimId)>,
    ) -> Renewed {
        self.requests.renew += 1;
        let Some(session) = self.sessions.get_mut(&number) else { return Renewed::session(Renewal::Gone) };
        session.expires = self.now.plus(session.ttl);
        session.renewals += 1;
        let renewed = Renewed::session(Renewal::Extended(Lease::new(since, session.ttl)));
        claims
            .filter(|(key, id)| !self.names.get(&**key).is_some_and(|row| row.has(*id)))
            .fold(renewed, |renewed, (_, id)| renewed.gone(id))
    }

    pub(super) fn renew_claims<'a>(
        &mut self,
        since: Timestamp,
        claims: impl Iterator<Item = (Cow<'a, str>, ClaimId)>,
    ) -> Renewed {
        self.requests.renew += 1;
        let now = self.now;
        let renew = |(key, id): (Cow<'a, str>, ClaimId)| {
            let Some(claim) = self.held(&key, id) else { return (id, Renewal::Gone) };
            claim.since = since;
            claim.expires = now.plus(claim.ttl);
            claim.renewals += 1;
            (id, Renewal::Extended(Lease::new(since, claim.ttl)))
        };
        Renewed::claims(claims.map(renew).collect())
    }

    pub(super) fn settled(&mut self, session: u64, key: &str, id: ClaimId) -> Result<(), BackendError> {
        self.requests.settled += 1;
        if self.session_leases() {
            self.session(session)?;
        }
        if let Some(claim) = self.held(key, id) {
            claim.inherited = Duration::ZERO;
        }
        Ok(())
    }

    pub(super) fn resolve(
        &mut self,
        session: u64,
        key: &str,
        id: ClaimId,
    ) -> Result<Resolution, BackendError> {
        self.requests.resolve += 1;
        if self.session_leases() {
            self.session(session)?;
        }
        let profile = self.profile;
        if let Some(held) = self.held(key, id) {
            held.doubtful = true;
            return Ok(Resolution::Granted(grant(&profile, held)));
        }
        let waiting = self.names.get_mut(key).and_then(|row| row.queue.iter_mut().find(|c| c.id == id));
        if let Some(waiting) = waiting {
            waiting.doubtful = true;
            return Ok(Resolution::Waiting(Cookie::none()));
        }
        self.spend(session, id);
        Ok(Resolution::Absent)
    }

    pub(super) fn release(
        &mut self,
        session: u64,
        key: &str,
        id: ClaimId,
        unpaid: Duration,
    ) -> Result<Released, BackendError> {
        self.requests.release += 1;
        if self.session_leases() {
            self.session(session)?;
        }
        Ok(self.give_up(session, key, id, unpaid))
    }

    pub(super) fn close<'a>(
        &mut self,
        number: u64,
        leaving: impl Iterator<Item = (Cow<'a, str>, ClaimId, Duration)>,
    ) -> Result<(), BackendError> {
        self.requests.close += 1;
        if self.session_leases() {
            self.session(number)?;
        }
        for (key, id, unpaid) in leaving {
            self.give_up(number, &key, id, unpaid);
        }
        // What the client does not know of (an unanswered claim) goes as in a crash.
        self.end_session(number);
        self.sessions.remove(&number);
        Ok(())
    }

    pub(super) fn observe(&self, key: &str) -> Option<Holder> {
        Some(self.names.get(key)?.holder.as_ref()?.by.clone())
    }

    // Parts

    fn session_leases(&self) -> bool {
        self.profile.leases == LeaseScope::Session
    }

    fn expires(&self) -> bool {
        self.profile.expiry != Expiry::Observed
    }

    fn session(&self, number: u64) -> Result<&SessionRow, BackendError> {
        self.sessions.get(&number).ok_or_else(|| {
            BackendError::session_gone("the session is over at the memory store: open another")
        })
    }

    fn held(&mut self, key: &str, id: ClaimId) -> Option<&mut Claim> {
        self.names.get_mut(key)?.holder.as_mut().filter(|held| held.id == id)
    }

    /// When the lease of a claim runs out if nobody renews it.
    fn end_of(&self, claim: &Claim) -> Timestamp {
        if self.session_leases() {
            self.sessions.get(&claim.session).map_or(self.now, |session| session.expires)
        } else {
            claim.expires
        }
    }

    fn observed(&self, held: &Claim) -> Observed {
        let session = self.sessions.get(&held.session).filter(|_| self.session_leases());
        let renewals = session.map_or(held.renewals, |session| session.renewals);
        Observed { version: Version::new(format!("{}/{renewals}", held.token)), lease: held.ttl }
    }

    fn retry_after(&self, held: &Claim) -> Duration {
        if !self.expires() {
            return self.profile.poll;
        }
        let left = self.end_of(held).since(self.now).max(Duration::from_millis(1));
        if self.profile.notify { left } else { left.min(self.profile.poll) }
    }

    fn spend(&mut self, session: u64, id: ClaimId) {
        // A claim that carries its own lease needs none of this: nobody renews it.
        if self.session_leases()
            && let Some(session) = self.sessions.get_mut(&session)
        {
            session.spent.insert(id);
        }
    }

    fn give_up(&mut self, session: u64, key: &str, id: ClaimId, unpaid: Duration) -> Released {
        let removed = self.names.get_mut(key).and_then(|row| {
            if row.holder.as_ref().is_some_and(|held| held.id == id) {
                let held = row.holder.take()?;
                let unpaid = if held.told { unpaid } else { held.inherited };
                row.debt = OldDebt::new(held.token, unpaid, self.now);
                return Some(held);
            }
            let at = row.queue.iter().position(|waiting| waiting.id == id)?;
            row.queue.remove(at)
        });
        let Some(removed) = removed else {
            self.spend(session, id);
            return Released::NotFound;
        };
        if removed.doubtful {
            self.spend(session, id);
        }
        removed.wake();
        self.promote(key);
        Released::Done
    }
}

const NEVER: Timestamp = Timestamp::from_nanos(u64::MAX);

impl NameRow {
    fn claims(&self) -> impl Iterator<Item = &Claim> {
        self.holder.iter().chain(&self.queue)
    }

    fn has(&self, id: ClaimId) -> bool {
        self.claims().any(|claim| claim.id == id)
    }

    /// Tells those who were told `Busy` that there is another holder or none.
    fn tell(&self) {
        if let Some(changed) = &self.changed {
            changed.notify_waiters();
        }
    }
}

impl Claim {
    fn wake(&self) {
        if let Some(woken) = &self.woken {
            woken.notify_waiters();
        }
    }
}

impl OldDebt {
    fn new(of: u64, owed: Duration, now: Timestamp) -> Option<Self> {
        let over = now.plus(owed).plus(owed).plus(margin(owed));
        (!owed.is_zero()).then_some(Self { of, owed, over })
    }
}

fn grant(profile: &Profile, held: &mut Claim) -> Grant {
    held.told = true;
    let grant = Grant::new(FencingToken::new(held.token)).owed(held.inherited);
    match profile.leases {
        LeaseScope::Session => grant,
        LeaseScope::Claim => grant.lease(Lease::new(held.since, held.ttl)),
    }
}
