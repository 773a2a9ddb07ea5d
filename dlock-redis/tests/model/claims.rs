//! What clients do in a world, and where promises are kept or broken.

use crate::check::Broken;
use crate::client::{Client, Outcome, Phase, Vote};
use crate::post::{Message, Text};
use crate::scenario::{Promise, Proposals};
use crate::server::{GRAIN, Granted, Token};
use crate::world::World;

impl World<'_> {
    pub(crate) fn hear_grant(&mut self, message: Message, granted: Granted) -> Result<(), Broken> {
        let client = &mut self.clients[message.client];
        let vote = match granted {
            Granted::Yes(token) => {
                client.seen = client.seen.max(token);
                Vote::Granted(token)
            }
            Granted::Denied(counter) => {
                client.seen = client.seen.max(counter);
                Vote::Refused
            }
            Granted::Refused => Vote::Refused,
        };
        if client.nonce != message.nonce {
            return Ok(());
        }
        let quorum = self.scenario.quorum(self.variant);
        match client.vote(message.node, vote, self.scenario.nodes, quorum, self.variant) {
            Outcome::Open => Ok(()),
            Outcome::Lost => {
                self.drop_claim(message.client, true);
                Ok(())
            }
            Outcome::Won(token) => self.acquire(message.client, token),
        }
    }

    pub(crate) fn hear_commit(&mut self, message: Message, agrees: bool) -> Result<(), Broken> {
        let client = &mut self.clients[message.client];
        if client.nonce != message.nonce || !agrees {
            return Ok(());
        }
        match client.agreed(message.node, self.scenario.quorum(self.variant)) {
            Outcome::Open | Outcome::Lost => Ok(()),
            Outcome::Won(token) => {
                self.tour.in_two_rounds += 1;
                self.acquire(message.client, token)
            }
        }
    }

    pub(crate) fn hear_renewal(&mut self, message: Message, renewal: u8, done: bool) {
        let (now, quorum) = (self.now, self.scenario.quorum(self.variant));
        let lease = self.scenario.renewed_lease(message.client, self.variant);
        let client = &mut self.clients[message.client];
        if done
            && client.nonce == message.nonce
            && client.renewal == renewal
            && client.renewed(message.node, now, quorum, lease)
        {
            let phase = client.phase;
            self.tour.renewed += 1;
            self.tell(|| format!("client {}: {phase:?} by renewal", message.client));
        }
    }

    pub(crate) fn agree(&mut self) {
        let at = self.random.index(self.scenario.clients);
        self.agree_of(at);
    }

    pub(crate) fn agree_of(&mut self, at: usize) {
        let quorum = self.scenario.quorum(self.variant);
        if let Some(lacking) = self.clients[at].agree(quorum, self.variant) {
            let token = self.clients[at].token;
            self.tell(|| format!("client {at} puts token {token} to the nodes"));
            self.send_to(at, lacking, Text::Commit(token));
        }
    }

    /// A claim is decided: here promises are kept or broken.
    fn acquire(&mut self, at: usize, token: Token) -> Result<(), Broken> {
        let now = self.now;
        let until = self.clients[at].began + self.scenario.figures.leases[at];
        if now >= until && self.scenario.clients_have_clocks() {
            self.tell(|| format!("client {at} has token {token} too late"));
            self.drop_claim(at, true);
            return Ok(());
        }
        let Client { name, before, nonce, .. } = self.clients[at];
        self.tell(|| {
            format!("client {at} has acquired lock {name} with claim {nonce}: token {token}, until {until}")
        });
        self.tour.acquired += 1;
        self.tour.acquired_after_loss += u64::from(self.lost);
        let tokens = self.tokens.book(name, token, before);
        if self.scenario.promise != Promise::Exclusion {
            tokens?;
        }
        let other = (0..self.scenario.clients).find(|other| {
            *other != at && self.clients[*other].name == name && self.clients[*other].holds(now)
        });
        if let Some(other) = other.filter(|_| self.scenario.promise != Promise::Tokens) {
            return Err(Broken::TwoHold { first: other, second: at });
        }
        self.clients[at].phase = Phase::Holding(until);
        Ok(())
    }

    pub(crate) fn claim(&mut self) {
        let at = self.random.index(self.scenario.clients);
        self.clients[at].notice(self.now);
        if self.clients[at].phase != Phase::Idle {
            return;
        }
        let name = self.random.index(self.scenario.names);
        let proposal = self.proposal(at);
        self.claim_with(at, name, proposal);
    }

    pub(crate) fn claim_with(&mut self, at: usize, name: usize, proposal: Token) {
        self.nonces += 1;
        let nonce = self.nonces;
        self.clients[at].claim(nonce, name, self.now, proposal, self.tokens.greatest(name));
        self.tell(|| format!("client {at} begins claim {nonce} of lock {name}, proposes {proposal}"));
        self.send_to(at, u8::MAX, Text::Grant(proposal));
    }

    /// What a client proposes: its clock may show anything.
    fn proposal(&mut self, client: usize) -> Token {
        let bucket = self.scenario.figures(client).bucket;
        let latest = (self.now + bucket) * GRAIN;
        let few = self.random.below(3);
        let kinds = if self.scenario.proposals == Proposals::Anything { 6 } else { 2 };
        match self.random.below(kinds) {
            0 => 0,
            1 => self.clients[client].seen + 1,
            2 => self.now * GRAIN + few,
            // What some node accepts at most.
            3 => latest + self.scenario.figures.skew * GRAIN - few,
            4 => {
                latest + self.servers[self.masters[self.random.index(self.scenario.nodes)]].ahead * GRAIN
                    - few
            }
            _ => Token::MAX / 2,
        }
    }

    pub(crate) fn give_up(&mut self) {
        let at = self.random.index(self.scenario.clients);
        if matches!(self.clients[at].phase, Phase::Asking | Phase::Agreeing) {
            let release = !self.random.one_in(4);
            self.tell(|| format!("client {at} gives up, with releases: {release}"));
            self.drop_claim(at, release);
        }
    }

    pub(crate) fn drop_claim(&mut self, at: usize, release: bool) {
        self.clients[at].phase = Phase::Idle;
        if release {
            self.send_to(at, u8::MAX, Text::Release);
        }
    }

    pub(crate) fn renew(&mut self) {
        let at = self.random.index(self.scenario.clients);
        self.clients[at].notice(self.now);
        // One at a time, unless answers are overdue.
        let overdue = self.clients[at].renewal == 0 || self.random.one_in(8);
        if overdue && matches!(self.clients[at].phase, Phase::Holding(_)) {
            self.renewal_of(at);
        }
    }

    pub(crate) fn renewal_of(&mut self, at: usize) {
        self.clients[at].renew(self.now);
        let renewal = self.clients[at].renewal;
        self.tell(|| format!("client {at} asks for renewal {renewal}"));
        self.send_to(at, u8::MAX, Text::Renew(renewal));
    }

    pub(crate) fn release(&mut self) {
        let at = self.random.index(self.scenario.clients);
        self.release_of(at);
    }

    pub(crate) fn release_of(&mut self, at: usize) {
        if matches!(self.clients[at].phase, Phase::Holding(_)) {
            self.tell(|| format!("client {at} releases"));
            self.drop_claim(at, true);
        }
    }
}
