//! Preparing nodes that somebody knows to be new.

use std::sync::Arc;

use dlock_core::{BackendError, ErrorKind};

use crate::error;
use crate::group::Group;
use crate::quarantine::{self, seconds};
use crate::replies::InitReply;
use crate::scripts::{Call, INIT};

impl Group {
    /// Marks every node that has no mark yet, and says what was done at each.
    ///
    /// # Errors
    ///
    /// What is wrong with the nodes that could not be looked at. The others are marked; calling it again does no harm.
    pub(crate) async fn init(&self) -> Result<Vec<String>, BackendError> {
        let call = Arc::new(vec![Call {
            keys: vec![self.keys.mark()],
            args: vec![self.figures.par.clone(), self.figures.start_delay.clone()],
            claims: 0,
        }]);
        // Every node is to be marked, so one that is slow is waited for.
        let limit = self.patience;
        let par = self.figures.par.clone();
        let mut round = self.ask(&self.nodes, self.pass(), move |node, pass| {
            let (call, par) = (Arc::clone(&call), par.clone());
            async move {
                let answer = node.run(&INIT, &call, limit, &pass).await?.remove(0)?;
                match InitReply::read(&answer) {
                    Some(InitReply::Replica(master)) => Err(node.not_the_master(&master)),
                    Some(InitReply::Mismatch(theirs)) => Err(quarantine::mismatch(&*node, &theirs, &par)),
                    Some(InitReply::Blind(field)) => Err(error::blind(&node, &field)),
                    Some(reply) => Ok(reply),
                    None => Err(error::strange_answer(&node)),
                }
            }
        });
        let mut done = Vec::new();
        let mut failures = Vec::new();
        while let Some((node, reply)) = round.next().await {
            match reply {
                Ok(reply) => done.push((node, self.sentence(node, &reply))),
                Err(failure) => failures.push(failure),
            }
        }
        done.sort_unstable();
        if failures.is_empty() {
            return Ok(done.into_iter().map(|(_, sentence)| sentence).collect());
        }
        let nodes = self.nodes.len();
        let failures: Vec<_> = failures.iter().collect();
        if let ([only], 1) = (&*failures, nodes) {
            return Err((*only).clone());
        }
        let kind = failures.first().map_or(ErrorKind::Unavailable, |failure| failure.kind());
        let failure = error::of_nodes(kind, nodes, &failures);
        Err(BackendError::new(
            kind,
            format!("{failure}; the other nodes are marked: run `dlock init` again once all answer"),
        ))
    }

    fn sentence(&self, node: usize, reply: &InitReply) -> String {
        let node = &self.nodes[node];
        match reply {
            InitReply::New => {
                let delay: u64 = self.figures.start_delay.parse().unwrap_or_default();
                if delay == 0 {
                    format!("{node} is marked as new and grants locks at once")
                } else {
                    format!("{node} is marked as new and grants locks in {}", seconds(delay * 1000))
                }
            }
            InitReply::Marked(0) => format!("{node} had a mark already, which was left as it is"),
            InitReply::Marked(left) => format!(
                "{node} had a mark already, which was left as it is; it grants locks in {}",
                seconds(*left)
            ),
            InitReply::Mismatch(_) | InitReply::Replica(_) | InitReply::Blind(_) => {
                format!("{node} was left as it is")
            }
        }
    }
}
