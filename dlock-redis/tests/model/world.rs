//! A world: servers, clients, the messages between them, and time.

use crate::check::{Broken, Tokens};
use crate::client::Client;
use crate::post::{Message, Post, Text};
use crate::random::Random;
use crate::scenario::{CLIENTS, Clocks, NODES, Scenario};
use crate::server::{Claim, Data, Granted, Role, Server, Time};
use crate::variant::Variant;

/// When a world begins: late enough that no clock is below zero.
const BEGINNING: Time = 1000;

/// What a world has seen, to know that walks get somewhere.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tour {
    pub(crate) acquired: u64,
    pub(crate) in_two_rounds: u64,
    pub(crate) renewed: u64,
    pub(crate) refused: u64,
    pub(crate) losses: u64,
    /// Acquired after data was lost.
    pub(crate) acquired_after_loss: u64,
}

/// Everything that there is.
#[derive(Clone, Debug)]
pub(crate) struct World<'a> {
    pub(crate) scenario: &'a Scenario,
    pub(crate) variant: Variant,
    pub(crate) random: Random,
    pub(crate) now: Time,
    /// Two for each node: the node's, and its replica's.
    pub(crate) servers: [Server; 2 * NODES],
    /// Which of the two the node's address leads to.
    pub(crate) masters: [usize; NODES],
    pub(crate) clients: [Client; CLIENTS],
    /// Of each client the nodes, as bits, that it is cut off from.
    cut: [u8; CLIENTS],
    pub(crate) post: Post,
    pub(crate) tokens: Tokens,
    pub(crate) nonces: u16,
    ids: u16,
    pub(crate) lost: bool,
    pub(crate) tour: Tour,
    /// What happened, if it is to be told.
    pub(crate) story: Option<Vec<String>>,
}

impl<'a> World<'a> {
    pub(crate) fn new(scenario: &'a Scenario, variant: Variant, random: Random) -> Self {
        let mut world = Self {
            scenario,
            variant,
            random,
            now: BEGINNING,
            servers: [Server::new(0, 0); 2 * NODES],
            masters: [0; NODES],
            clients: [Client::new(); CLIENTS],
            cut: [0; CLIENTS],
            post: Post::new(),
            tokens: Tokens::new(),
            nonces: 0,
            ids: 0,
            lost: false,
            tour: Tour::default(),
            story: None,
        };
        for node in 0..scenario.nodes {
            world.make(node);
        }
        world
    }

    fn make(&mut self, node: usize) {
        let (master, replica) = (2 * node, 2 * node + 1);
        self.masters[node] = master;
        let skew = self.scenario.figures.skew;
        // None is below zero when it is stepped back.
        let base = self.scenario.base();
        // The extremes are where figures turn out too small.
        let ahead = |random: &mut Random| {
            base + match random.below(3) {
                0 => 0,
                1 => skew,
                _ => random.below(skew + 1),
            }
        };
        let first = ahead(&mut self.random);
        self.servers[master] = Server::new(self.fresh_id(), first);
        self.servers[master].started = self.now;
        // Most have been marked long ago, some a moment ago, and some never were.
        let clock = self.servers[master].clock(self.now);
        let till = match self.random.below(8) {
            0 if self.scenario.odd == crate::scenario::Odd::Nothing => None,
            1 => Some(clock + self.scenario.figures.start_delay()),
            _ => Some(clock),
        };
        self.servers[master].data.mark = till.map(|till| self.servers[master].mark(1, till));
        self.servers[master].saved = self.servers[master].data;
        if self.scenario.replicas {
            let own = self.scenario.clocks != Clocks::Steady;
            let ahead = if own { ahead(&mut self.random) } else { first };
            self.servers[replica] = Server {
                role: Role::Replica,
                started: self.now,
                replid: self.servers[master].replid,
                data: if self.random.one_in(2) { self.servers[master].data } else { Data::default() },
                ..Server::new(self.fresh_id(), ahead)
            };
        }
    }

    pub(crate) fn fresh_id(&mut self) -> u16 {
        self.ids += 1;
        self.ids
    }

    /// Tells what happens, to those who want to know.
    pub(crate) fn tell(&mut self, what: impl FnOnce() -> String) {
        let now = self.now;
        if let Some(story) = &mut self.story {
            story.push(format!("{now:>5}  {}", what()));
        }
    }

    fn send(&mut self, message: Message) {
        let slow = self.random.one_in(4);
        self.post.send(Message { slow, ..message });
    }

    pub(crate) fn send_to(&mut self, client: usize, nodes: u8, text: Text) {
        let Client { nonce, name, .. } = self.clients[client];
        for node in 0..self.scenario.nodes {
            if nodes & (1 << node) != 0 {
                self.send(Message { client, node, name, nonce, text, slow: false });
            }
        }
    }

    pub(crate) fn deliver(&mut self, keep: bool) -> Result<(), Broken> {
        // What does not arrive lets others pass.
        for _ in 0..3 {
            let Some(at) = self.post.any(&mut self.random) else { break };
            let Message { client, node, slow, .. } = self.post.get(at);
            let cut = self.cut[client] & (1 << node) != 0;
            if !cut && (!slow || self.random.one_in(12)) {
                return self.deliver_at(at, keep);
            }
        }
        Ok(())
    }

    pub(crate) fn deliver_at(&mut self, at: usize, keep: bool) -> Result<(), Broken> {
        let message = self.post.get(at);
        if !keep {
            self.post.remove(at);
        }
        match message.text {
            Text::Grant(_) | Text::Commit(_) | Text::Renew(_) | Text::Release => {
                self.serve(message);
                Ok(())
            }
            Text::Granted(granted) => self.hear_grant(message, granted),
            Text::Committed(agrees) => self.hear_commit(message, agrees),
            Text::Renewed(renewal, done) => {
                self.hear_renewal(message, renewal, done);
                Ok(())
            }
        }
    }

    /// The oldest message between a client and a node, and its answer.
    pub(crate) fn pass(&mut self, client: usize, node: usize) -> Result<(), Broken> {
        for _ in 0..2 {
            let of = |message: &Message| message.client == client && message.node == node;
            if let Some(at) = self.post.oldest(of) {
                self.deliver_at(at, false)?;
            }
        }
        Ok(())
    }

    /// Everything under way between a client and the nodes is lost.
    pub(crate) fn forget(&mut self, client: usize) {
        while let Some(at) = self.post.oldest(|message| message.client == client) {
            self.post.remove(at);
        }
    }

    pub(crate) fn lose(&mut self) {
        if let Some(at) = self.post.any(&mut self.random) {
            let Message { client, node, text, .. } = self.post.get(at);
            self.tell(|| format!("lost: {text:?} between client {client} and node {node}"));
            self.post.remove(at);
        }
    }

    pub(crate) fn cut(&mut self) {
        let client = self.random.index(self.scenario.clients);
        // Mended as often as cut.
        if self.random.one_in(2) {
            self.cut[client] = 0;
            self.tell(|| format!("client {client} reaches every node"));
        } else {
            let node = self.random.index(self.scenario.nodes);
            self.cut_off(client, node);
        }
    }

    pub(crate) fn cut_off(&mut self, client: usize, node: usize) {
        self.cut[client] |= 1 << node;
        self.tell(|| format!("client {client} is cut off from node {node}"));
    }

    /// The server that a message to a node reaches.
    fn server_of(&mut self, node: usize) -> usize {
        let master = self.masters[node];
        let other = master ^ 1;
        let old = self.scenario.replicas
            && matches!(self.servers[other].role, Role::Old(_))
            && self.servers[other].serves(self.now);
        if old && self.random.one_in(2) { other } else { master }
    }

    fn serve(&mut self, message: Message) {
        let Message { client, node, name, nonce, text, .. } = message;
        let (now, variant) = (self.now, self.variant);
        let at = self.server_of(node);
        let figures = self.scenario.figures(client);
        let mut claim = Claim {
            nonce,
            name,
            counter: self.scenario.counter(client),
            lease: figures.leases[client],
            par: self.scenario.par(client, variant),
        };
        let server = &mut self.servers[at];
        let answer = match text {
            Text::Grant(proposal) => Text::Granted(server.grant(now, &claim, proposal, &figures, variant)),
            Text::Commit(token) => Text::Committed(server.commit(now, &claim, token, variant)),
            Text::Renew(renewal) => {
                claim.lease = self.scenario.renewed_lease(client, variant);
                Text::Renewed(renewal, server.renew(now, &claim, &figures, variant))
            }
            _ => {
                server.release(&claim);
                self.tell(|| format!("server {at} releases what claim {nonce} of client {client} has there"));
                return;
            }
        };
        if answer == Text::Granted(Granted::Refused) {
            self.tour.refused += 1;
        }
        self.tell(|| format!("server {at}, claim {nonce} of client {client}: {text:?} -> {answer:?}"));
        self.send(Message { text: answer, ..message });
    }
}
