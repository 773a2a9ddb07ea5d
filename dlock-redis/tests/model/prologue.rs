//! How a world begins, where the walks that are wanted begin rarely.

use crate::check::Broken;
use crate::client::Phase;
use crate::scenario::Prologue;
use crate::server::GRAIN;
use crate::world::World;

impl World<'_> {
    /// Lets happen what the scenario begins with.
    pub(crate) fn begin_with(&mut self, prologue: Prologue) -> Result<(), Broken> {
        match prologue {
            Prologue::None => Ok(()),
            Prologue::HeldAtTwo => self.held_at_two(),
            Prologue::AgreeingLate => self.agreeing_late(),
            Prologue::RenewedAtTwo => self.renewed_at_two(),
        }
    }

    /// Client 0 holds the lock at nodes 0 and 1, and client 1 has a vote of node 2.
    fn held_at_two(&mut self) -> Result<(), Broken> {
        self.make_ready();
        let bucket = self.scenario.figures.bucket;
        self.claim_with(0, 0, self.now * GRAIN);
        self.pass(0, 0)?;
        self.pass(0, 1)?;
        self.forget(0);
        self.now += 1;
        self.claim_with(1, 0, (self.now + bucket / 2) * GRAIN);
        self.pass(1, 2)?;
        self.cut_off(1, 1);
        Ok(())
    }

    /// Client 0 was granted the lock at nodes 0 and 1, with a greater token at node 0, which it puts to node 1. The clocks
    /// of replicas are behind, and that of node 1 is in step otherwise.
    fn agreeing_late(&mut self) -> Result<(), Broken> {
        for node in 0..self.scenario.nodes {
            self.servers[2 * node].ahead = self.scenario.figures.skew;
            self.servers[2 * node + 1].ahead = 0;
        }
        self.make_ready();
        self.claim_with(1, 0, 0);
        self.pass(1, 0)?;
        self.pass(1, 2)?;
        self.forget(1);
        self.release_of(1);
        self.pass(1, 0)?;
        self.pass(1, 2)?;
        self.forget(1);
        self.claim_with(0, 0, 0);
        self.pass(0, 0)?;
        self.pass(0, 1)?;
        self.forget(0);
        for node in 0..self.scenario.nodes {
            let master = 2 * node;
            self.feed(master, master + 1);
        }
        self.agree_of(0);
        self.cut_off(0, 1);
        Ok(())
    }

    /// Client 0 holds the lock at all nodes and has renewed it at 0 and 2. Its key at node 1 has expired there, and client 1
    /// has a vote of that node; it has not at the replica of node 1, which has a clock that is behind.
    fn renewed_at_two(&mut self) -> Result<(), Broken> {
        let (skew, bucket) = (self.scenario.figures.skew, self.scenario.figures.bucket);
        self.servers[2].ahead = skew;
        self.servers[3].ahead = 0;
        self.make_ready();
        self.claim_with(0, 0, (self.now + bucket / 2) * GRAIN);
        for node in 0..self.scenario.nodes {
            self.pass(0, node)?;
        }
        self.feed(2, 3);
        if !matches!(self.clients[0].phase, Phase::Holding(_)) {
            return Ok(());
        }
        self.now += self.scenario.figures.leases[0] - 1;
        self.renewal_of(0);
        self.pass(0, 0)?;
        self.pass(0, 2)?;
        self.forget(0);
        self.now += 1;
        self.claim_with(1, 0, (self.now + bucket / 2) * GRAIN);
        self.pass(1, 1)?;
        self.cut_off(0, 2);
        self.cut_off(1, 2);
        Ok(())
    }

    /// Ends every quarantine.
    pub(crate) fn make_ready(&mut self) {
        for node in 0..self.scenario.nodes {
            let master = &mut self.servers[2 * node];
            master.data.mark = Some(master.mark(1, 0));
        }
    }
}
