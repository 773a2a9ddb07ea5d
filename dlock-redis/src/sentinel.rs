//! Where the master is, as the Sentinels say.

use std::cmp::Reverse;
use std::fmt;
use std::time::Duration;

use dlock_core::{BackendError, ErrorKind};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use redis::Value;

use crate::connect::{Connector, unlimited};
use crate::error;
use crate::replies::text;
use crate::settings::{Endpoint, Server};

/// The Sentinels that watch one master.
#[derive(Debug)]
pub(crate) struct Sentinels {
    pub(crate) servers: Vec<Server>,
    pub(crate) service: String,
    /// For how long one Sentinel is waited for.
    pub(crate) limit: Duration,
}

impl fmt::Display for Sentinels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the master {:?} of Sentinel", self.service)
    }
}

impl Sentinels {
    /// Asks all at once. Where they differ, those come first that more of them name: one that was cut off knows nothing
    /// of a failover.
    ///
    /// # Errors
    ///
    /// What each of them said, if none names any.
    pub(crate) async fn masters(&self, connector: &Connector) -> Result<Vec<Endpoint>, BackendError> {
        let ask = async |at: usize| {
            let sentinel = &self.servers[at];
            let asked = tokio::time::timeout(self.limit, self.ask(connector, sentinel)).await;
            (at, asked.unwrap_or_else(|_| Err(error::no_answer(&sentinel.endpoint, self.limit))))
        };
        let mut asking: FuturesUnordered<_> = (0..self.servers.len()).map(ask).collect();
        // Each with those who name it.
        let mut named: Vec<(Endpoint, Vec<usize>)> = Vec::new();
        let mut failures = Vec::new();
        while let Some((at, answer)) = asking.next().await {
            match answer {
                Ok(endpoint) => match named.iter_mut().find(|(other, _)| *other == endpoint) {
                    Some((_, by)) => by.push(at),
                    None => named.push((endpoint, vec![at])),
                },
                Err(failure) => failures.push((at, failure)),
            }
            if named.iter().any(|(_, by)| by.len() > self.servers.len() / 2) {
                break;
            }
        }
        if !named.is_empty() {
            named.sort_by_key(|(_, by)| (Reverse(by.len()), by.iter().min().copied()));
            return Ok(named.into_iter().map(|(endpoint, _)| endpoint).collect());
        }
        failures.sort_by_key(|(at, _)| *at);
        let said: Vec<_> = failures.iter().map(|(_, failure)| failure.to_string()).collect();
        let refused = failures.into_iter().find(|(_, failure)| matches!(failure.kind(), ErrorKind::Refused));
        // Nothing was asked of the store itself.
        Err(refused.map_or_else(
            || {
                let all = said.join("; ");
                BackendError::unavailable(format!("no Sentinel told where {:?} is: {all}", self.service))
            },
            |(_, failure)| failure,
        ))
    }

    async fn ask(&self, connector: &Connector, sentinel: &Server) -> Result<Endpoint, BackendError> {
        let at = &sentinel.endpoint;
        let (mut connection, driver) =
            connector.talk(at, sentinel.credentials.as_ref(), 0, unlimited()).await?;
        let mut command = redis::cmd("SENTINEL");
        command.arg("GET-MASTER-ADDR-BY-NAME").arg(&self.service);
        let answer = {
            let mut driver = std::pin::pin!(driver);
            let mut asked = std::pin::pin!(connection.send_packed_command(&command));
            tokio::select! {
                biased;
                answer = &mut asked => answer,
                () = &mut driver => asked.await,
            }
        };
        let answer = answer.map_err(|failure| error::of_connection(at, &failure))?;
        match &answer {
            Value::Array(parts) => {
                let at_index = |index: usize| parts.get(index).and_then(text);
                let port = at_index(1).and_then(|port| port.parse().ok());
                at_index(0)
                    .zip(port)
                    .map(|(host, port)| Endpoint { host, port })
                    .ok_or_else(|| error::strange_answer(at))
            }
            Value::Nil => Err(BackendError::refused(format!(
                "the Sentinel at {at} watches no master {:?}: write the name that `SENTINEL MASTERS` shows",
                self.service
            ))),
            Value::ServerError(failure)
                if failure.details().is_some_and(|text| text.contains("unknown command")) =>
            {
                Err(BackendError::refused(format!(
                    "{at} is no Sentinel: write redis://{at} to use it as a node"
                )))
            }
            Value::ServerError(failure) => Err(error::of_server(at, "*", failure)),
            _ => Err(error::strange_answer(at)),
        }
    }
}
