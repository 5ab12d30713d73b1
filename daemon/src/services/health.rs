//! `grpc.health.v1.Health`: the whole daemon serves, or it does not.

use std::collections::BTreeMap;

use crated_api::health::health_check_response::ServingStatus;
use crated_api::health::health_server::Health;
use crated_api::health::{
    HealthCheckRequest, HealthCheckResponse, HealthListRequest, HealthListResponse,
};
use futures_util::StreamExt;
use tokio::sync::watch;
use tokio_stream::wrappers::WatchStream;
use tonic::{Request, Response, Status};

use super::{Answers, status};

/// Tells whether calls are taken.
#[derive(Clone, Debug)]
pub struct HealthService {
    serving: watch::Receiver<bool>,
}

impl HealthService {
    /// Follows `serving`, which turns false when the daemon begins to stop.
    pub fn new(serving: watch::Receiver<bool>) -> Self {
        Self { serving }
    }
}

#[tonic::async_trait]
impl Health for HealthService {
    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        known(&request)?;
        Ok(Response::new(answer(*self.serving.borrow())))
    }

    type WatchStream = Answers<HealthCheckResponse>;

    async fn watch(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        known(&request)?;
        let changes = WatchStream::new(self.serving.clone()).map(|serving| Ok(answer(serving)));
        Ok(Response::new(Box::pin(changes)))
    }

    async fn list(
        &self,
        _: Request<HealthListRequest>,
    ) -> Result<Response<HealthListResponse>, Status> {
        let whole = (String::new(), answer(*self.serving.borrow()));
        Ok(Response::new(HealthListResponse { statuses: BTreeMap::from([whole]) }))
    }
}

/// Only the daemon as a whole is known, under the empty name.
fn known(request: &Request<HealthCheckRequest>) -> Result<(), Status> {
    match request.get_ref().service.as_str() {
        "" => Ok(()),
        name => Err(status::not_found(format!("service {name:?}"))),
    }
}

fn answer(serving: bool) -> HealthCheckResponse {
    let status = if serving { ServingStatus::Serving } else { ServingStatus::NotServing };
    HealthCheckResponse { status: status.into() }
}
