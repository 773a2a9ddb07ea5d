//! What befalls a world: time, losses of data, failovers, clocks.

use crate::check::Broken;
use crate::client::Phase;
use crate::event::Event;
use crate::scenario::Clocks;
use crate::server::{Data, Role, Server, Time};
use crate::variant::Variant;
use crate::world::World;

impl World<'_> {
    /// One step.
    pub(crate) fn step(&mut self, event: Event) -> Result<(), Broken> {
        match event {
            Event::Deliver => return self.deliver(false),
            Event::Repeat => return self.deliver(true),
            Event::Tick => self.now += 1,
            Event::Jump => self.jump(),
            Event::Claim => self.claim(),
            Event::Lose => self.lose(),
            Event::Cut => self.cut(),
            Event::Agree => self.agree(),
            Event::GiveUp => self.give_up(),
            Event::Renew => self.renew(),
            Event::Release => self.release(),
            Event::Wipe => self.restart(|_| Data::default()),
            Event::Restore => self.restart(|server| server.saved),
            Event::Restart => self.restart(|server| server.data),
            Event::Save => {
                let master = self.any_master();
                self.servers[master].saved = self.servers[master].data;
                self.tell(|| format!("server {master} saves"));
            }
            Event::Flush => {
                let master = self.any_master();
                self.servers[master].data = Data::default();
                self.lose_data(master, "is flushed");
            }
            Event::Replicate => self.replicate(),
            Event::Promote => self.promote(),
            Event::Follow => self.follow(),
            Event::Backlog => self.backlog(),
            Event::Step => self.step_clock(),
            Event::Repair => self.repair(),
        }
        Ok(())
    }

    fn any_master(&mut self) -> usize {
        self.masters[self.random.index(self.scenario.nodes)]
    }

    fn lose_data(&mut self, server: usize, what: &str) {
        self.lost = true;
        self.tour.losses += 1;
        let data = self.servers[server].data;
        self.tell(|| format!("server {server} {what}: {data:?}"));
    }

    /// Time passes until something is due, or a tick less.
    fn jump(&mut self) {
        let due = if self.random.one_in(3) {
            match self.clients[self.random.index(self.scenario.clients)].phase {
                Phase::Holding(until) => until,
                _ => self.now + 1,
            }
        } else {
            let at = self.any_master();
            let server =
                &self.servers[if self.scenario.replicas && self.random.one_in(4) { at ^ 1 } else { at }];
            let till = server.data.mark.map_or(0, |mark| mark.till);
            let key = server.data.locks[self.random.index(self.scenario.names)].expires;
            // By its own clock.
            (if self.random.one_in(2) { till } else { key }).saturating_sub(server.ahead)
        };
        let due = due - Time::from(self.random.one_in(2)).min(due);
        self.now = self.now.max(due);
    }

    fn restart(&mut self, data: impl FnOnce(&Server) -> Data) {
        let at = self.any_master();
        self.restart_of(at, data);
    }

    pub(crate) fn restart_of(&mut self, at: usize, data: impl FnOnce(&Server) -> Data) {
        let id = self.fresh_id();
        let now = self.now;
        let server = &mut self.servers[at];
        server.data = data(server);
        // The data file brings the id as the second one.
        server.replid2 = server.replid;
        server.replid = id;
        server.run = id;
        server.fed = 0;
        server.started = now;
        self.lose_data(at, "restarts");
    }

    /// A node with its master and the other server.
    fn any_pair(&mut self) -> (usize, usize, usize) {
        let node = self.random.index(self.scenario.nodes);
        let master = self.masters[node];
        (node, master, master ^ 1)
    }

    fn replicate(&mut self) {
        let (_, master, other) = self.any_pair();
        if self.servers[other].role == Role::Replica {
            self.feed(master, other);
            self.tell(|| format!("server {other} has all that server {master} has"));
        }
    }

    pub(crate) fn feed(&mut self, master: usize, replica: usize) {
        let from = self.servers[master];
        let to = &mut self.servers[replica];
        to.data = from.data;
        to.fed += 1;
        if to.replid != from.replid {
            // After a whole copy there is no second id; after a continuation it is the one before.
            to.replid2 = if self.random.one_in(2) { 0 } else { to.replid };
            to.replid = from.replid;
        }
    }

    fn promote(&mut self) {
        let (node, master, other) = self.any_pair();
        if self.servers[other].role != Role::Replica {
            return;
        }
        let id = self.fresh_id();
        self.servers[master].role = Role::Old(self.now + self.scenario.figures.lag);
        let server = &mut self.servers[other];
        server.role = Role::Master;
        server.replid2 = server.replid;
        server.replid = id;
        self.masters[node] = other;
        self.lose_data(other, "takes over");
    }

    fn follow(&mut self) {
        let (_, master, other) = self.any_pair();
        if matches!(self.servers[other].role, Role::Old(_)) {
            self.servers[other].role = Role::Replica;
            self.feed(master, other);
            self.tell(|| format!("server {other} becomes the replica of server {master}"));
        }
    }

    fn backlog(&mut self) {
        let master = self.any_master();
        let id = self.fresh_id();
        let server = &mut self.servers[master];
        server.replid = id;
        server.replid2 = 0;
        self.tell(|| format!("server {master} gives up its backlog: its id is {id}"));
    }

    fn step_clock(&mut self) {
        let at = self.any_master();
        let at = if self.scenario.replicas && self.random.one_in(2) { at ^ 1 } else { at };
        let (skew, bucket) = (self.scenario.figures.skew, self.scenario.figures.bucket);
        let first = self.servers[at].ahead_at_first;
        let ahead = match self.scenario.clocks {
            Clocks::Steady | Clocks::SteadyEach => return,
            Clocks::Wild => self.random.below(300),
            Clocks::SteppedForward => self.servers[at].ahead.max(self.random.below(skew + 1)),
            Clocks::SteppedInQuarantine => {
                if self.servers[at].is_ready(self.now, Variant::Sound) {
                    return;
                }
                first - bucket + self.random.below(2 * bucket + 1)
            }
        };
        self.servers[at].ahead = ahead;
        self.tell(|| format!("the clock of server {at} is {ahead} ahead"));
    }

    /// Reads from other nodes what this one has lost, once all claims of its past are over.
    fn repair(&mut self) {
        let node = self.random.index(self.scenario.nodes);
        let at = self.masters[node];
        let waits = self.servers[at].blank
            && self.servers[at].data.mark.is_some_and(|mark| self.servers[at].clock(self.now) >= mark.till);
        if !waits {
            return;
        }
        let quorum = self.scenario.nodes / 2 + 1;
        let wanted = if self.variant == Variant::RepairFromFewer { quorum - 1 } else { quorum };
        let start = self.random.index(self.scenario.nodes);
        let mut greatest = self.servers[at].data.counters;
        let mut read = 0;
        for other in (start..start + self.scenario.nodes).map(|other| other % self.scenario.nodes) {
            let server = &self.servers[self.masters[other]];
            let marked =
                server.is_ready(self.now, Variant::Sound) || self.variant == Variant::RepairFromUnmarked;
            if other == node || read == wanted || !marked {
                continue;
            }
            read += 1;
            for (mine, theirs) in greatest.iter_mut().zip(server.data.counters) {
                *mine = theirs.max(*mine);
            }
        }
        if read < wanted {
            return;
        }
        let server = &mut self.servers[at];
        server.data.counters = greatest;
        server.blank = false;
        self.tell(|| format!("server {at} is repaired: counters {greatest:?}"));
    }
}
