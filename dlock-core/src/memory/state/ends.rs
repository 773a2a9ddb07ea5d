//! What happens to a store by itself, or by an operator's hand.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::{Claim, NEVER, OldDebt, State};
use crate::backend::SessionEvent;
use crate::clock::Timestamp;
use crate::memory::profile::Expiry;

impl State {
    /// Ends what has run out by `now`.
    pub(in crate::memory) fn advance(&mut self, now: Timestamp) {
        self.now = self.now.max(now);
        if self.now >= self.next_due {
            self.sweep();
        }
    }

    /// A connection broke, and the store ends the session with it.
    pub(in crate::memory) fn disconnect(&mut self, number: u64) {
        if self.sessions.contains_key(&number) {
            self.end_session(number);
        }
    }

    /// A client is gone of which the store knows only claims; they stay as they are.
    pub(in crate::memory) fn forget_client(&mut self, number: u64) {
        let Some(gone) = self.sessions.remove(&number) else { return };
        if self.session_leases() {
            let held = self.names.values_mut().filter_map(|row| row.holder.as_mut());
            held.filter(|claim| claim.session == number).for_each(|claim| claim.renewals = gone.renewals);
        }
    }

    pub(in crate::memory) fn expire_sessions_where(
        &mut self,
        mut which: impl FnMut(u64, &str) -> bool,
    ) -> usize {
        let mut known: BTreeMap<u64, String> = BTreeMap::new();
        for claim in self.names.values().filter_map(|row| row.holder.as_ref()) {
            known.entry(claim.session).or_insert_with(|| claim.by.owner.clone());
        }
        if self.session_leases() {
            known.extend(self.sessions.iter().map(|(number, row)| (*number, row.owner.clone())));
        }
        known.retain(|number, owner| which(*number, owner));
        for number in known.keys() {
            let row = self.sessions.get(number);
            let mailbox = row.filter(|_| self.session_leases()).map(|row| Arc::clone(&row.mailbox));
            self.end_session(*number);
            if let Some(mailbox) = mailbox.filter(|_| self.profile.events) {
                mailbox.put(SessionEvent::Gone);
            }
        }
        known.len()
    }

    pub(in crate::memory) fn remove_holder(&mut self, key: &str) -> bool {
        let Some(row) = self.names.get_mut(key) else { return false };
        let Some(removed) = row.holder.take() else { return false };
        self.promote(key);
        if self.profile.events
            && let Some(session) = self.sessions.get(&removed.session)
        {
            session.mailbox.put(SessionEvent::Removed(removed.id));
        }
        true
    }

    pub(in crate::memory) fn forget(&mut self) {
        self.sessions.clear();
        self.next_due = NEVER;
        for (_, row) in self.names.drain() {
            row.tell();
            row.queue.iter().for_each(Claim::wake);
        }
    }

    pub(in crate::memory) fn restart_tokens(&mut self) {
        self.token = 0;
    }

    pub(in crate::memory) fn residue(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for (key, row) in &self.names {
            lines.extend(
                row.holder.iter().map(|c| format!("{key}: held by {} with token {}", c.by.owner, c.token)),
            );
            lines.extend(row.queue.iter().map(|c| format!("{key}: waited for by {}", c.by.owner)));
            lines.extend(
                row.debt.iter().map(|d| format!("{key}: a debt of {:?} left by token {}", d.owed, d.of)),
            );
        }
        lines.sort();
        lines
    }

    pub(in crate::memory) fn len(&self) -> usize {
        self.names.len()
    }

    pub(in crate::memory) fn sessions(&self) -> Vec<(u64, String)> {
        self.sessions.iter().map(|(number, row)| (*number, row.owner.clone())).collect()
    }

    /// Ends a session or, under claim leases, all claims of a client.
    pub(super) fn end_session(&mut self, number: u64) {
        if self.session_leases() {
            self.sessions.remove(&number);
        }
        let with_claims = self.names.iter().filter(|(_, row)| row.claims().any(|c| c.session == number));
        let mut keys: Vec<Box<str>> = with_claims.map(|(key, _)| key.clone()).collect();
        keys.sort_unstable();
        for key in keys {
            self.end_claims(&key, |claim| claim.session == number);
        }
    }

    /// Ends some claims of a name as a crash of their owner does.
    fn end_claims(&mut self, key: &str, ended: impl Fn(&Claim) -> bool) {
        let Some(row) = self.names.get_mut(key) else { return };
        row.queue.iter().filter(|waiting| ended(waiting)).for_each(Claim::wake);
        row.queue.retain(|waiting| !ended(waiting));
        if let Some(held) = row.holder.take_if(|held| ended(held))
            && self.profile.expiry == Expiry::Settled
        {
            // A debt never shrinks by accident: the dead holder may not have settled what it inherited.
            let own = if held.told { held.ttl } else { Duration::ZERO };
            row.debt = OldDebt::new(held.token, held.inherited.max(own), self.now);
        }
        self.promote(key);
    }

    /// After the holder of a name may have gone: the next in the queue holds, or the row is dropped.
    pub(super) fn promote(&mut self, key: &str) {
        let Some(row) = self.names.get_mut(key) else { return };
        if row.holder.is_some() {
            return;
        }
        row.tell();
        row.changed = None;
        if let Some(mut next) = row.queue.pop_front() {
            self.token += 1;
            next.token = self.token;
            next.inherited = row.debt.take().map_or(Duration::ZERO, |debt| debt.owed);
            next.wake();
            row.holder = Some(next);
        } else if let Some(debt) = &row.debt {
            self.next_due = self.next_due.min(debt.over);
        } else {
            self.names.remove(key);
        }
    }

    /// Looks at every lease and debt: once in a while, when the earliest end that was known has come.
    fn sweep(&mut self) {
        let now = self.now;
        if self.session_leases() && self.expires() {
            let due = self.sessions.iter().filter(|(_, row)| row.expires <= now);
            let mut due: Vec<(Timestamp, u64)> = due.map(|(number, row)| (row.expires, *number)).collect();
            due.sort_unstable();
            for (_, number) in due {
                let mailbox = self.sessions.get(&number).map(|row| Arc::clone(&row.mailbox));
                self.end_session(number);
                if let Some(mailbox) = mailbox.filter(|_| self.profile.events) {
                    mailbox.put(SessionEvent::Gone);
                }
            }
        }
        if !self.session_leases() && self.expires() {
            let due = self.names.iter().filter(|(_, row)| row.claims().any(|claim| claim.expires <= now));
            let mut due: Vec<Box<str>> = due.map(|(key, _)| key.clone()).collect();
            due.sort_unstable();
            for key in due {
                self.end_claims(&key, |claim| claim.expires <= now);
            }
        }
        self.names.retain(|_, row| {
            row.debt.take_if(|debt| debt.over <= now);
            row.holder.is_some() || row.debt.is_some()
        });
        let sessions = self.sessions.values().map(|row| row.expires).filter(|_| self.session_leases());
        let claims = self.names.values().filter_map(|row| row.holder.as_ref()).map(|claim| claim.expires);
        let leases = sessions.chain(claims.filter(|_| !self.session_leases())).filter(|_| self.expires());
        let debts = self.names.values().filter_map(|row| row.debt.as_ref()).map(|debt| debt.over);
        self.next_due = leases.chain(debts).min().unwrap_or(NEVER);
    }
}
