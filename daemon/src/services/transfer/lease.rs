//! The lease that everything a transfer touches is kept by, until an image keeps it.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tonic::Status;

use super::super::{convert, quick};
use super::Work;
use crate::metadata::gc::LABEL_EXPIRE;
use crate::metadata::{Labels, Scope};
use crate::wiring::Daemon;

/// How long the lease lasts if the daemon dies in the middle: as long as clients give theirs, so
/// that an interrupted pull can go on the next day.
const LIFETIME: Duration = Duration::from_secs(24 * 3600);

/// A lease of the daemon's own where the client brought none. It ends when this is dropped, also
/// when the client has gone.
pub(super) struct Own {
    daemon: Arc<Daemon>,
    scope: Option<Scope>,
}

impl Own {
    pub(super) async fn of(work: &Work) -> Result<Self, Status> {
        let daemon = Arc::clone(work.daemon());
        if work.scope.lease.is_some() {
            return Ok(Self { daemon, scope: None });
        }
        let expiry = convert::rfc3339(SystemTime::now() + LIFETIME);
        let labels = Labels::from([(LABEL_EXPIRE.to_owned(), expiry)]);
        let namespace = work.scope.namespace.clone();
        let create = move |daemon: &Daemon| daemon.db.leases().create(&namespace, None, &labels);
        let lease = quick(&daemon, create).await?;
        let scope = Some(work.scope.clone().with_lease(lease.id));
        Ok(Self { daemon, scope })
    }

    /// `scope` under this lease.
    pub(super) fn scope(&self, scope: Scope) -> Scope {
        self.scope.clone().unwrap_or(scope)
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        let Some(scope) = self.scope.take() else { return };
        let Some(lease) = scope.lease else { return };
        let daemon = Arc::clone(&self.daemon);
        tokio::spawn(async move {
            let delete = move |daemon: &Daemon| daemon.db.leases().delete(&scope.namespace, &lease);
            if let Err(error) = quick(&daemon, delete).await {
                tracing::warn!(
                    error = error.message(),
                    "the lease of a transfer is left to expire"
                );
            }
        });
    }
}
