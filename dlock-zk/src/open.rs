//! Opening a session.

use std::sync::Arc;
use std::time::Duration;

use dlock_core::{BackendError, Lease, OpenOptions, Opened};

use crate::client::Client;
use crate::connect::{Connector, Failure};
use crate::lease::{least_ttl, patience};
use crate::link::Rhythm;
use crate::session::{Parts, ZkSession};
use crate::settings::{Settings, check_tick};
use crate::wire::{Access, Connect};

pub(crate) async fn open(settings: &Settings, options: OpenOptions) -> Result<Opened, BackendError> {
    settings.layout.check().map_err(BackendError::refused)?;
    let tick = settings.tick;
    check_tick(tick).map_err(BackendError::refused)?;
    let least = least_ttl(tick);
    if options.ttl < least {
        return Err(BackendError::refused(format!(
            "a TTL of {:?} is too short for servers with a tick of {tick:?}: take at least {least:?}, or give their tickTime \
             with the parameter tick if it is less",
            options.ttl
        )));
    }
    let request_timeout = options.request_timeout;
    let connector = Connector::new(settings, Arc::clone(&options.clock), request_timeout).await?;
    let asked = i32::try_from(options.ttl.as_nanos().div_ceil(1_000_000)).unwrap_or(i32::MAX);
    let request = Connect { last_zxid: 0, timeout: asked, session: 0, password: &[0; 16] };
    // Unanswered, it may leave a session behind that nobody knows of: it has no nodes, and runs out by itself.
    let opening = connector.connect(request).await.map_err(|failure| match failure {
        Failure::Error(error) => error,
        Failure::Expired => BackendError::unavailable("ZooKeeper ended the session as soon as it was opened"),
    })?;
    let since = opening.since;
    let granted = Duration::from_millis(u64::try_from(opening.session.timeout).unwrap_or(0));
    let rhythm = Rhythm {
        tick,
        rule: settings.rule,
        patience: patience(granted, tick).min(request_timeout),
        renewal: granted / 3,
    };
    let client = Client::new(connector, opening, rhythm, options.clock, request_timeout);
    let authentication = settings.authentication.as_ref();
    let session = ZkSession::new(Parts {
        client,
        layout: settings.layout.clone(),
        access: match authentication {
            Some(_) => Access::Own { world_readable: settings.world_readable },
            None => Access::Open,
        },
        user: authentication.map(|authentication| authentication.user().to_owned()),
        owner: options.owner,
        rule: settings.rule,
        limit: request_timeout,
    });
    let checked = if granted < least {
        Err(BackendError::refused(format!(
            "ZooKeeper grants a TTL of {granted:?} where {:?} was asked for, which is too short for a tick of {tick:?}: raise \
             maxSessionTimeout of the servers to {least:?} or more",
            options.ttl
        )))
    } else {
        session.settle_in().await
    };
    if let Err(error) = checked {
        // P6: nobody will use it, and it need not wait for its end.
        session.abandon().await;
        return Err(error);
    }
    if granted.as_millis() != u128::from(asked.unsigned_abs()) {
        tracing::info!(asked = ?options.ttl, ?granted, "ZooKeeper grants another TTL than was asked for: see minSessionTimeout and maxSessionTimeout of the servers");
    }
    Ok(Opened::with_session_lease(Arc::new(session), Lease::new(since, granted)))
}
