//! One connection of a session: requests, answers, events, and the proof that the session lives.
//!
//! Requests are carried out in the order in which they were sent, so several can be under way. A connection on which an answer
//! is overdue is given up, since its server may be frozen; what was sent on it is unknown then.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use dlock_core::{BackendError, Clock, Timestamp, sleep_until};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::sync::{Notify, oneshot};

use crate::connect::{Opening, Stream, read_frame};
use crate::lease::{History, LeaseRule, ping_interval};
use crate::own::Own;
use crate::wire::{Answer, EVENT_XID, Event, Header, Malformed, PING_XID, Request, code};

/// One connection.
#[derive(Debug)]
pub(crate) struct Link {
    /// The server, for messages.
    address: String,
    /// Read before the connection asked for the session.
    opened: Timestamp,
    clock: Arc<dyn Clock>,
    rhythm: Rhythm,
    numbers: Arc<Numbers>,
    own: Arc<Own>,
    state: Mutex<State>,
    to_write: Notify,
}

/// When a connection sends pings, and when it is given up.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rhythm {
    pub(crate) tick: Duration,
    pub(crate) rule: LeaseRule,
    /// How long a server that owes an answer may say nothing.
    pub(crate) patience: Duration,
    /// How long there are pings after a renewal: until the next one is due.
    pub(crate) renewal: Duration,
}

/// The numbers of a session's requests.
///
/// A server tells by number which of a session's requests a change belongs to, also one that an earlier connection has sent
/// and that is carried out late. So they go on over all connections.
#[derive(Debug, Default)]
pub(crate) struct Numbers(AtomicI32);

impl Numbers {
    fn next(&self) -> i32 {
        let next = |last: i32| last.checked_add(1).unwrap_or(1);
        next(
            self.0
                .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |last| Some(next(last)))
                .unwrap_or_default(),
        )
    }
}

#[derive(Debug)]
struct State {
    out: Vec<u8>,
    pending: VecDeque<Pending>,
    /// When the ping was sent that is not answered yet.
    ping: Option<Timestamp>,
    last_sent: Timestamp,
    /// When the server answered last: one that works its way through many requests is not frozen.
    last_answer: Timestamp,
    /// Until when there are pings.
    kept_until: Timestamp,
    history: History,
    watches: HashMap<String, Vec<(u64, oneshot::Sender<()>)>>,
    last_watch: u64,
    is_over: bool,
}

#[derive(Debug)]
struct Pending {
    xid: i32,
    sent: Timestamp,
    to: To,
}

/// Who wants an answer.
#[derive(Debug)]
enum To {
    Asker(oneshot::Sender<Answer>),
    /// The watch on the node of a claim that is held.
    Own(String),
}

/// Why a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// The session may go on by another one.
    Broken,
    /// The session is over.
    Expired,
}

/// A request that was sent.
#[derive(Debug)]
pub(crate) struct Sent {
    /// Read before it was sent.
    pub(crate) since: Timestamp,
    answer: oneshot::Receiver<Answer>,
    address: String,
}

/// A watch, forgotten when dropped.
#[derive(Debug)]
pub(crate) struct Watch {
    link: Arc<Link>,
    path: String,
    number: u64,
    fired: oneshot::Receiver<()>,
}

impl Link {
    pub(crate) fn new(
        opening: &Opening,
        clock: Arc<dyn Clock>,
        rhythm: Rhythm,
        numbers: Arc<Numbers>,
        own: Arc<Own>,
    ) -> Self {
        let state = State {
            out: Vec::new(),
            pending: VecDeque::new(),
            ping: None,
            last_sent: opening.since,
            last_answer: opening.since,
            kept_until: opening.since.plus(rhythm.renewal),
            history: History::new(rhythm.tick, rhythm.rule),
            watches: HashMap::new(),
            last_watch: 0,
            is_over: false,
        };
        Self {
            address: opening.address.clone(),
            opened: opening.since,
            clock,
            rhythm,
            numbers,
            own,
            state: Mutex::new(state),
            to_write: Notify::new(),
        }
    }

    /// Sends a request, behind those that were sent before.
    ///
    /// # Errors
    ///
    /// If the connection is over: it was certainly not sent.
    pub(crate) fn send(&self, request: &Request) -> Result<Sent, BackendError> {
        let (asker, answer) = oneshot::channel();
        let since = self.push(request, To::Asker(asker))?;
        Ok(Sent { since, answer, address: self.address.clone() })
    }

    /// Sends requests that nothing comes in between, behind those that were sent before.
    ///
    /// # Errors
    ///
    /// If the connection is over: none was sent.
    pub(crate) fn send_all(&self, requests: &[Request]) -> Result<Vec<Sent>, BackendError> {
        let mut state = self.open_state()?;
        let since = self.clock.now();
        let sent = requests.iter().map(|request| {
            let (asker, answer) = oneshot::channel();
            self.queue(&mut state, request, since, To::Asker(asker));
            Sent { since, answer, address: self.address.clone() }
        });
        let sent = sent.collect();
        drop(state);
        self.to_write.notify_one();
        Ok(sent)
    }

    /// Has pings sent until the next renewal is due.
    ///
    /// P6: without renewals there are none, so nothing keeps a session alive that core has given up.
    pub(crate) fn keep(&self) {
        let until = self.clock.now().plus(self.rhythm.renewal);
        self.state().kept_until = until;
    }

    /// Sends a request and waits for its answer.
    pub(crate) async fn ask(&self, request: &Request) -> Result<Answer, BackendError> {
        self.send(request)?.answer().await
    }

    /// Has the fate of a node told of that goes with a claim of ours. Nobody waits for the answer.
    pub(crate) fn watch_own(&self, path: &str) {
        // On a connection that is over: the next one sets the watch.
        drop(self.push(&Request::get_data(path, true), To::Own(path.to_owned())));
    }

    /// Registers for the next event at a path. To be called before the request is sent that sets the watch.
    pub(crate) fn watch(self: &Arc<Self>, path: &str) -> Watch {
        let (sender, fired) = oneshot::channel();
        let mut state = self.state();
        state.last_watch += 1;
        let number = state.last_watch;
        if !state.is_over {
            state.watches.entry(path.to_owned()).or_default().push((number, sender));
        }
        Watch { link: Arc::clone(self), path: path.to_owned(), number, fired }
    }

    /// Read before this connection asked for the session.
    pub(crate) fn opened(&self) -> Timestamp {
        self.opened
    }

    /// Sends the write of a beat; with from when on the session's time-out counts if that, and a `sync` behind its answer,
    /// are answered on this connection.
    pub(crate) fn send_beat(&self, write: &Request) -> Result<(Sent, Timestamp), BackendError> {
        let (asker, answer) = oneshot::channel();
        let mut proved = self.opened;
        let since = self.push_and(write, To::Asker(asker), |state, sent| {
            let waiting = state.pending.iter().map(|pending| pending.sent).chain(state.ping);
            proved = state.history.proved(self.opened, sent, waiting);
        })?;
        Ok((Sent { since, answer, address: self.address.clone() }, proved))
    }

    /// Carries requests and answers until the connection ends.
    pub(crate) async fn serve(&self, stream: Box<dyn Stream>, saw: impl Fn(i64)) -> End {
        let _end = EndOnDrop(self);
        let (reader, writer) = tokio::io::split(stream);
        tokio::select! {
            biased;
            end = self.read(BufReader::new(reader), saw) => end.unwrap_or(End::Broken),
            _ = self.write(writer) => End::Broken,
            () = self.keep_going() => End::Broken,
        }
    }

    fn push(&self, request: &Request, to: To) -> Result<Timestamp, BackendError> {
        self.push_and(request, to, |_, _| {})
    }

    /// Sends a request, and looks at the state as it is just before that.
    fn push_and(
        &self,
        request: &Request,
        to: To,
        look: impl FnOnce(&State, Timestamp),
    ) -> Result<Timestamp, BackendError> {
        let mut state = self.open_state()?;
        let sent = self.clock.now();
        look(&state, sent);
        self.queue(&mut state, request, sent, to);
        drop(state);
        self.to_write.notify_one();
        Ok(sent)
    }

    fn queue(&self, state: &mut State, request: &Request, sent: Timestamp, to: To) {
        let xid = self.numbers.next();
        request.frame(xid, &mut state.out);
        state.pending.push_back(Pending { xid, sent, to });
        state.last_sent = sent;
    }

    fn open_state(&self) -> Result<MutexGuard<'_, State>, BackendError> {
        let state = self.state();
        if state.is_over {
            return Err(BackendError::unavailable(format!(
                "the connection to ZooKeeper at {} has ended",
                self.address
            )));
        }
        Ok(state)
    }

    async fn write(&self, mut writer: impl AsyncWrite + Unpin) -> io::Result<()> {
        loop {
            let out = std::mem::take(&mut self.state().out);
            if out.is_empty() {
                self.to_write.notified().await;
            } else {
                writer.write_all(&out).await?;
                writer.flush().await?;
            }
        }
    }

    async fn read(&self, mut reader: impl AsyncRead + Unpin, saw: impl Fn(i64)) -> io::Result<End> {
        loop {
            let frame = read_frame(&mut reader).await?;
            let Ok((header, body)) = Header::read(&frame) else { return Ok(End::Broken) };
            if header.zxid > 0 {
                saw(header.zxid);
            }
            if self.dispatch(header, body).is_err() {
                tracing::warn!(server = %self.address, "an answer of ZooKeeper's makes no sense; the connection is given up");
                return Ok(End::Broken);
            }
            match header.error {
                code::SESSION_EXPIRED => return Ok(End::Expired),
                // The server takes no request of this session any more.
                code::SESSION_MOVED | code::NOT_READ_ONLY | code::AUTH_FAILED | code::SASL_REQUIRED => {
                    return Ok(End::Broken);
                }
                _ => {}
            }
        }
    }

    fn dispatch(&self, header: Header, body: &[u8]) -> Result<(), Malformed> {
        match header.xid {
            EVENT_XID => {
                let event = Event::read(body)?;
                self.fire(&event);
            }
            PING_XID => {
                let now = self.clock.now();
                let mut state = self.state();
                state.last_answer = now;
                if let Some(sent) = state.ping.take() {
                    state.history.answered(sent, now);
                }
            }
            xid => {
                let now = self.clock.now();
                let mut state = self.state();
                // Nearly always the first: a server may refuse a request before it has answered those ahead of it.
                let at = state.pending.iter().position(|pending| pending.xid == xid).ok_or(Malformed)?;
                let pending = state.pending.remove(at).ok_or(Malformed)?;
                state.last_answer = now;
                state.history.answered(pending.sent, now);
                drop(state);
                match pending.to {
                    // Who no longer waits needs no answer.
                    To::Asker(asker) => drop(asker.send(Answer {
                        zxid: header.zxid,
                        error: header.error,
                        body: body.to_vec(),
                    })),
                    To::Own(path) if header.error == code::NO_NODE => self.own.gone(&path),
                    To::Own(_) => {}
                }
            }
        }
        Ok(())
    }

    fn fire(&self, event: &Event) {
        let watches = self.state().watches.remove(&event.path).unwrap_or_default();
        for (_, watch) in watches {
            // Who no longer waits need not be told.
            watch.send(()).ok();
        }
        if self.own.has(&event.path) {
            if event.is_deletion {
                self.own.gone(&event.path);
            } else {
                // Somebody wrote to our node: it is there, and watched no longer.
                self.watch_own(&event.path);
            }
        }
    }

    /// Sends pings where nothing else is sent. Returns when an answer is overdue.
    async fn keep_going(&self) {
        let interval = ping_interval(self.rhythm.tick);
        loop {
            let now = self.clock.now();
            let next = {
                let mut state = self.state();
                let oldest =
                    state.pending.front().map(|pending| pending.sent).into_iter().chain(state.ping).min();
                let overdue = oldest.map(|oldest| oldest.max(state.last_answer).plus(self.rhythm.patience));
                if overdue.is_some_and(|overdue| overdue <= now) {
                    tracing::debug!(server = %self.address, "an answer is overdue; the connection is given up");
                    return;
                }
                let is_due = state.last_sent.plus(interval) <= now && now < state.kept_until;
                if state.ping.is_none() && is_due {
                    Request::ping().frame(PING_XID, &mut state.out);
                    state.ping = Some(now);
                    state.last_sent = now;
                    self.to_write.notify_one();
                }
                let ping = state.last_sent.plus(interval).max(now.plus(interval / 4));
                overdue.map_or(ping, |overdue| overdue.min(ping))
            };
            sleep_until(&*self.clock, next).await;
        }
    }

    fn end(&self) {
        let (pending, watches) = {
            let mut state = self.state();
            state.is_over = true;
            state.out.clear();
            (std::mem::take(&mut state.pending), std::mem::take(&mut state.watches))
        };
        // Outside the lock: whoever waits for one of them is woken.
        drop((pending, watches));
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Nothing waits for a connection that nobody serves.
struct EndOnDrop<'a>(&'a Link);

impl Drop for EndOnDrop<'_> {
    fn drop(&mut self) {
        self.0.end();
    }
}

impl Sent {
    /// The server's answer.
    ///
    /// # Errors
    ///
    /// Unknown, if the connection ended first.
    pub(crate) async fn answer(self) -> Result<Answer, BackendError> {
        let Self { answer, address, .. } = self;
        answer.await.map_err(|_| {
            BackendError::unknown(format!(
                "the connection to ZooKeeper at {address} ended before an answer came"
            ))
        })
    }
}

impl Watch {
    /// Resolves when something has happened at the path, or the connection has ended.
    pub(crate) async fn fired(mut self) {
        // An error is the end of the connection, after which nothing is told.
        drop((&mut self.fired).await);
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let mut state = self.link.state();
        if let Some(watches) = state.watches.get_mut(&self.path) {
            watches.retain(|(number, _)| *number != self.number);
            if watches.is_empty() {
                state.watches.remove(&self.path);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use dlock_core::{ErrorKind, SystemClock};
    use tokio::io::DuplexStream;
    use tokio::sync::mpsc;
    use tokio::time::Instant;

    use super::*;
    use crate::wire::Connected;

    fn link(numbers: &Arc<Numbers>) -> (Arc<Link>, Opening, DuplexStream) {
        link_by(Arc::new(SystemClock), numbers)
    }

    fn link_by(clock: Arc<dyn Clock>, numbers: &Arc<Numbers>) -> (Arc<Link>, Opening, DuplexStream) {
        let (near, far) = tokio::io::duplex(1 << 16);
        let session = Connected { timeout: 1_000, session: 1, password: Vec::new() };
        let since = clock.now();
        let opening = Opening { stream: Box::new(near), address: "zk:1".into(), since, session };
        let rhythm = Rhythm {
            tick: Duration::from_secs(1),
            rule: LeaseRule::Proved,
            patience: Duration::from_secs(60),
            renewal: Duration::ZERO,
        };
        let own = Arc::new(Own::new(mpsc::unbounded_channel().0));
        let link = Link::new(&opening, clock, rhythm, Arc::clone(numbers), own);
        (Arc::new(link), opening, far)
    }

    /// Follows tokio's clock.
    #[derive(Debug)]
    struct Paused(Instant);

    impl Clock for Paused {
        fn now(&self) -> Timestamp {
            let zero = Timestamp::from_nanos(3_600_000_000_000);
            zero.plus(self.0.elapsed())
        }
    }

    /// The number of a request, as the server sees it.
    async fn number(far: &mut DuplexStream) -> i32 {
        let frame = read_frame(far).await.unwrap();
        i32::from_be_bytes(frame[..4].try_into().unwrap())
    }

    fn reply(xid: i32, error: i32) -> Vec<u8> {
        [&16_i32.to_be_bytes()[..], &xid.to_be_bytes(), &7_i64.to_be_bytes(), &error.to_be_bytes()].concat()
    }

    #[tokio::test]
    async fn numbers_go_on_over_connections() {
        let numbers = Arc::new(Numbers::default());
        let mut last = 0;
        for _ in 0..2 {
            let (link, opening, mut far) = link(&numbers);
            let serving = {
                let link = Arc::clone(&link);
                tokio::spawn(async move { link.serve(opening.stream, |_| {}).await })
            };
            let (one, two) =
                (link.send(&Request::sync("/")).unwrap(), link.send(&Request::sync("/")).unwrap());
            let seen = (number(&mut far).await, number(&mut far).await);
            assert_eq!(seen, (last + 1, last + 2));
            // Out of order, as from a server that refuses one of them at once.
            let replies = [reply(last + 2, code::NO_AUTH), reply(last + 1, code::OK)].concat();
            far.write_all(&replies).await.unwrap();
            assert_eq!(one.answer().await.unwrap().error, code::OK);
            assert_eq!(two.answer().await.unwrap().error, code::NO_AUTH);
            let unanswered = link.send(&Request::sync("/")).unwrap();
            drop(far);
            assert_eq!(serving.await.unwrap(), End::Broken);
            assert_eq!(unanswered.answer().await.unwrap_err().kind(), ErrorKind::Unknown);
            assert_eq!(link.send(&Request::sync("/")).unwrap_err().kind(), ErrorKind::Unavailable);
            last += 3;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_goes_on_answering_is_not_given_up() {
        let (link, opening, mut far) = link_by(Arc::new(Paused(Instant::now())), &Arc::default());
        let serving = {
            let link = Arc::clone(&link);
            tokio::spawn(async move { link.serve(opening.stream, |_| {}).await })
        };
        let patience = Duration::from_secs(60);
        let sent: Vec<_> = (0..5).map(|_| link.send(&Request::sync("/")).unwrap()).collect();
        for (at, sent) in (1..).zip(sent) {
            assert_eq!(number(&mut far).await, at);
            tokio::time::sleep(patience * 3 / 4).await;
            far.write_all(&reply(at, code::OK)).await.unwrap();
            sent.answer().await.unwrap();
        }
        let unanswered = link.send(&Request::sync("/")).unwrap();
        let since = Instant::now();
        assert_eq!(unanswered.answer().await.unwrap_err().kind(), ErrorKind::Unknown);
        assert!(since.elapsed() >= patience, "given up after {:?}", since.elapsed());
        assert_eq!(serving.await.unwrap(), End::Broken);
    }

    #[tokio::test]
    async fn an_answer_to_nothing_ends_the_connection() {
        let (link, opening, mut far) = link(&Arc::default());
        far.write_all(&reply(9, code::OK)).await.unwrap();
        assert_eq!(link.serve(opening.stream, |_| {}).await, End::Broken);
    }
}
