//! Opening a session: a lease, the session key, and a look at the members' versions.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use dlock_core::{BackendError, Lease, OpenOptions, Opened, Timestamp, check_prefix};
use futures_util::future::join_all;

use crate::EtcdBackend;
use crate::client::Client;
use crate::connect::Member;
use crate::layout::SessionKeys;
use crate::session::EtcdSession;
use crate::version::Version;
use crate::wire::{LeaseGrantRequest, LeaseGrantResponse, LeaseRevokeRequest, StatusRequest};

/// The longest that a look at the versions holds up an opening.
const LOOK: Duration = Duration::from_millis(500);

pub(crate) async fn open(backend: &EtcdBackend, options: OpenOptions) -> Result<Opened, BackendError> {
    check_prefix(&backend.prefix).map_err(|error| BackendError::refused(error.to_string()))?;
    if backend.endpoints.is_empty() {
        return Err(BackendError::refused("no address of etcd was given: give at least one, as HOST:PORT"));
    }
    let limit = options.request_timeout;
    let members = Member::all(&backend.endpoints, backend.tls.as_ref(), limit).await?;
    let client = Client::new(members.clone(), backend.user.clone());
    let rest = options.ttl / 10;
    let mut look = pin!(tokio::time::timeout(LOOK.min(limit), look_at_versions(backend, &members)));
    let mut lease = pin!(lease(backend, client, options));
    tokio::select! {
        biased;
        opened = &mut lease => {
            // The lease runs: a member that is slow to tell its version must not use it up.
            drop(tokio::time::timeout(rest, look).await);
            opened
        }
        _ = &mut look => lease.await,
    }
}

async fn lease(backend: &EtcdBackend, client: Client, options: OpenOptions) -> Result<Opened, BackendError> {
    let (since, granted) = grant(&client, &options).await?;
    let ttl = Duration::from_secs(u64::try_from(granted.ttl).unwrap_or(0));
    let keys = SessionKeys { layout: backend.layout.clone(), lease: granted.id, owner: options.owner };
    let put = match client.call(keys.put_session()).await {
        Ok(put) => put,
        Err(error) => {
            // P6: nobody will renew it, and it need not wait for its end.
            drop(client.call(LeaseRevokeRequest { id: granted.id }).await);
            return Err(error);
        }
    };
    if ttl > options.ttl {
        tracing::debug!(asked = ?options.ttl, granted = ?ttl, "etcd grants a longer lease than was asked for");
    }
    let session = EtcdSession::new(
        client,
        keys,
        put.revision(),
        ttl,
        options.request_timeout,
        Arc::clone(&options.clock),
    );
    Ok(Opened::with_session_lease(Arc::new(session), Lease::new(since, ttl)))
}

/// A lease, and the time from which it counts. A member that is frozen takes connections and answers nothing, so each gets a
/// part of the time, and the last one all of it: a store that is slow is not one that is frozen.
async fn grant(
    client: &Client,
    options: &OpenOptions,
) -> Result<(Timestamp, LeaseGrantResponse), BackendError> {
    let seconds = options.ttl.as_secs() + u64::from(options.ttl.subsec_nanos() > 0);
    let request = LeaseGrantRequest { ttl: i64::try_from(seconds).unwrap_or(i64::MAX) };
    let limit = options.request_timeout;
    let members = client.members();
    for left in (0..members).rev() {
        let since = options.now();
        let limit = if left == 0 { limit } else { limit / u32::try_from(members).unwrap_or(u32::MAX) };
        // Unanswered, it may leave a lease behind that nobody knows of: it has no keys, and runs out by itself.
        if let Ok(answer) = tokio::time::timeout(limit, client.first_call(request.clone())).await {
            return Ok((since, answer?));
        }
    }
    Err(BackendError::unavailable(format!(
        "no member of etcd answers, of {members} that can be reached: the last one did not within {limit:?}"
    )))
}

/// Asks every member for its version. One that does not answer is left out: it is asked again with the next session.
async fn look_at_versions(backend: &EtcdBackend, members: &[Member]) {
    let looks = members.iter().map(|member| look_at_version(backend, member.clone()));
    join_all(looks.collect::<Vec<_>>()).await;
}

async fn look_at_version(backend: &EtcdBackend, member: Member) {
    let address = member.address.clone();
    let client = Client::new(vec![member], backend.user.clone());
    if let Ok(status) = client.call(StatusRequest {}).await
        && let Some(version) = Version::parse(&status.version)
    {
        backend.versions().note(&address, version);
    }
}
