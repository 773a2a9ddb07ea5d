//! The beginning of a session: its node, and those above it.

use dlock_core::BackendError;

use super::{ATTEMPTS, ZkSession, in_the_way};
use crate::wire::{Kind, Request, code};

impl ZkSession {
    /// Makes the session's node, and those above it.
    pub(crate) async fn settle_in(&self) -> Result<(), BackendError> {
        let parents = self.layout.parents();
        let link = self.client.link().await?;
        for _ in 0..ATTEMPTS {
            let made = parents
                .iter()
                .map(|path| link.send(&Request::create(path, b"", Kind::Container, self.access)))
                .collect::<Result<Vec<_>, _>>()?;
            let own = Request::create(&self.node, self.owner.as_bytes(), Kind::Ephemeral, self.access);
            let own = link.send(&own)?;
            let mut failed = None;
            for (path, made) in parents.iter().zip(made) {
                match (made.answer().await, failed) {
                    (Ok(answer), None) if !matches!(answer.error, code::OK | code::NODE_EXISTS) => {
                        failed = Some((path, answer.error));
                    }
                    // A server that asks for an authentication says so once, and ends the connection.
                    (Err(_), Some((path, error))) => return Err(self.failed(error, path)),
                    (Err(error), None) => return Err(error),
                    (Ok(_), _) => {}
                }
            }
            let own = match (own.answer().await, failed) {
                (Ok(answer), _) => answer.error,
                (Err(_), Some((path, error))) => return Err(self.failed(error, path)),
                (Err(error), None) => return Err(error),
            };
            match (own, failed) {
                (code::OK | code::NODE_EXISTS, _) => return Ok(()),
                (code::NO_NODE, Some((path, code::NO_NODE))) => return Err(self.no_root(path)),
                // The node above it was removed meanwhile, as ZooKeeper does with those that are empty.
                (code::NO_NODE, None) => {}
                (code::NO_NODE, Some((path, error))) => return Err(self.failed(error, path)),
                (error, _) => return Err(self.failed(error, &self.node)),
            }
        }
        Err(in_the_way())
    }

    /// Ends a session that is of no use.
    pub(crate) async fn abandon(&self) {
        let _end = self.client.end_when_dropped();
        // Unanswered, it runs out by itself.
        drop(tokio::time::timeout(self.limit, self.client.close()).await);
    }

    fn no_root(&self, path: &str) -> BackendError {
        match self.layout.chroot() {
            Some(chroot) => BackendError::refused(format!(
                "the chroot {chroot} is not there: make it with zkCli.sh create {chroot}, or correct the URL"
            )),
            None => self.failed(code::NO_NODE, path),
        }
    }
}
