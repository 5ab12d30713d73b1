//! `crated.services.network.v1.Network`.

use std::collections::BTreeSet;
use std::sync::Arc;

use crated_api::network as api;
use crated_api::network::network_server::Network as Service;
use crated_api::network::operation::Change;
use crated_api::network::result::Outcome;
use futures_util::{StreamExt, stream};
use tokio::sync::broadcast::error::RecvError;
use tonic::{Request, Response, Status};

use super::{Answers, scope, status};
use crate::filters::Filters;
use crate::metadata::Scope;
use crate::metadata::network::HOST;
use crate::network::{self, Network, Source, Watched};
use crate::wiring::Daemon;

/// Network namespaces and links.
#[derive(Clone)]
pub struct NetworkService {
    daemon: Arc<Daemon>,
}

impl NetworkService {
    /// Serves the networks of `daemon`.
    pub fn new(daemon: Arc<Daemon>) -> Self {
        Self { daemon }
    }

    /// Runs work that may wait for the kernel.
    async fn run<T, F>(&self, work: F) -> Result<T, Status>
    where
        T: Send + 'static,
        F: FnOnce(&Arc<Network>) -> network::Result<T> + Send + 'static,
    {
        let network = Arc::clone(&self.daemon.network);
        self.daemon.blocking.quick(move || work(&network)).await?.map_err(Status::from)
    }

    async fn one(&self, scope: Scope, change: Change) -> Result<Outcome, Status> {
        let operation = api::Operation { netns: String::new(), change: Some(change) };
        self.run(move |network| network.one(&scope, operation)).await
    }

    async fn netns(&self, scope: Scope, change: Change) -> Result<Response<api::Netns>, Status> {
        match self.one(scope, change).await? {
            Outcome::Netns(netns) => Ok(Response::new(netns)),
            _ => Err(Status::internal("an operation answered with something else")),
        }
    }

    async fn link(&self, scope: Scope, change: Change) -> Result<Response<api::Link>, Status> {
        match self.one(scope, change).await? {
            Outcome::Link(link) => Ok(Response::new(link)),
            _ => Err(Status::internal("an operation answered with something else")),
        }
    }

    async fn matching(
        &self,
        request: Request<api::ListNetnsRequest>,
    ) -> Result<Vec<api::Netns>, Status> {
        let scope = scope(&request)?;
        let filters = Filters::parse(&request.into_inner().filters)?;
        self.run(move |network| network.all_netns(&scope, &filters)).await
    }
}

#[tonic::async_trait]
impl Service for NetworkService {
    async fn create_netns(
        &self,
        request: Request<api::CreateNetnsRequest>,
    ) -> Result<Response<api::Netns>, Status> {
        let scope = scope(&request)?;
        self.netns(scope, Change::CreateNetns(request.into_inner())).await
    }

    async fn get_netns(
        &self,
        request: Request<api::GetNetnsRequest>,
    ) -> Result<Response<api::Netns>, Status> {
        let scope = scope(&request)?;
        let id = request.into_inner().id;
        Ok(Response::new(self.run(move |network| network.netns(&scope, &id)).await?))
    }

    async fn list_netns(
        &self,
        request: Request<api::ListNetnsRequest>,
    ) -> Result<Response<api::ListNetnsResponse>, Status> {
        let netns = self.matching(request).await?;
        Ok(Response::new(api::ListNetnsResponse { netns }))
    }

    type ListNetnsStreamStream = Answers<api::Netns>;

    async fn list_netns_stream(
        &self,
        request: Request<api::ListNetnsRequest>,
    ) -> Result<Response<Self::ListNetnsStreamStream>, Status> {
        let netns = self.matching(request).await?;
        Ok(Response::new(Box::pin(stream::iter(netns.into_iter().map(Ok)))))
    }

    async fn update_netns(
        &self,
        request: Request<api::UpdateNetnsRequest>,
    ) -> Result<Response<api::Netns>, Status> {
        let scope = scope(&request)?;
        let api::UpdateNetnsRequest { netns, update_mask } = request.into_inner();
        let netns = netns.ok_or_else(|| status::invalid("network namespace: missing"))?;
        let updated =
            self.run(move |network| network.update_netns(&scope, &netns, update_mask)).await?;
        Ok(Response::new(updated))
    }

    async fn delete_netns(
        &self,
        request: Request<api::DeleteNetnsRequest>,
    ) -> Result<Response<api::DeleteNetnsResponse>, Status> {
        let scope = scope(&request)?;
        let request = request.into_inner();
        Ok(Response::new(self.run(move |network| network.delete_netns(&scope, &request)).await?))
    }

    async fn create_link(
        &self,
        request: Request<api::CreateLinkRequest>,
    ) -> Result<Response<api::Link>, Status> {
        let scope = scope(&request)?;
        self.link(scope, Change::CreateLink(request.into_inner())).await
    }

    async fn get_link(
        &self,
        request: Request<api::GetLinkRequest>,
    ) -> Result<Response<api::Link>, Status> {
        let scope = scope(&request)?;
        let api::GetLinkRequest { netns, id } = request.into_inner();
        Ok(Response::new(self.run(move |network| network.link(&scope, &netns, &id)).await?))
    }

    async fn list_links(
        &self,
        request: Request<api::ListLinksRequest>,
    ) -> Result<Response<api::ListLinksResponse>, Status> {
        let scope = scope(&request)?;
        let api::ListLinksRequest { netns, filters } = request.into_inner();
        let filters = Filters::parse(&filters)?;
        let links = self.run(move |network| network.links(&scope, &netns, &filters)).await?;
        Ok(Response::new(api::ListLinksResponse { links }))
    }

    async fn update_link(
        &self,
        request: Request<api::UpdateLinkRequest>,
    ) -> Result<Response<api::Link>, Status> {
        let scope = scope(&request)?;
        self.link(scope, Change::UpdateLink(request.into_inner())).await
    }

    async fn delete_link(
        &self,
        request: Request<api::DeleteLinkRequest>,
    ) -> Result<Response<()>, Status> {
        let scope = scope(&request)?;
        self.one(scope, Change::DeleteLink(request.into_inner())).await?;
        Ok(Response::new(()))
    }

    async fn apply(
        &self,
        request: Request<api::ApplyRequest>,
    ) -> Result<Response<api::ApplyResponse>, Status> {
        let scope = scope(&request)?;
        let api::ApplyRequest { operations, atomic } = request.into_inner();
        let outcomes = self.run(move |network| network.apply(&scope, operations, atomic)).await?;
        let results = outcomes
            .into_iter()
            .map(|outcome| {
                let outcome = outcome.unwrap_or_else(|error| {
                    let error = Status::from(error);
                    Outcome::Error(crated_api::rpc::Status {
                        code: error.code().into(),
                        message: error.message().to_owned(),
                        details: Vec::new(),
                    })
                });
                api::Result { outcome: Some(outcome) }
            })
            .collect();
        Ok(Response::new(api::ApplyResponse { results }))
    }

    async fn list_routes(
        &self,
        request: Request<api::ListRoutesRequest>,
    ) -> Result<Response<api::ListRoutesResponse>, Status> {
        let scope = scope(&request)?;
        let netns = request.into_inner().netns;
        let routes = self.run(move |network| network.routes(&scope, &netns)).await?;
        Ok(Response::new(api::ListRoutesResponse { routes }))
    }

    async fn list_rules(
        &self,
        request: Request<api::ListRulesRequest>,
    ) -> Result<Response<api::ListRulesResponse>, Status> {
        let scope = scope(&request)?;
        let netns = request.into_inner().netns;
        let rules = self.run(move |network| network.rules(&scope, &netns)).await?;
        Ok(Response::new(api::ListRulesResponse { rules }))
    }

    async fn list_neighbours(
        &self,
        request: Request<api::ListNeighboursRequest>,
    ) -> Result<Response<api::ListNeighboursResponse>, Status> {
        let scope = scope(&request)?;
        let netns = request.into_inner().netns;
        Ok(Response::new(self.run(move |network| network.neighbours(&scope, &netns)).await?))
    }

    async fn stats(
        &self,
        request: Request<api::StatsRequest>,
    ) -> Result<Response<api::StatsResponse>, Status> {
        let scope = scope(&request)?;
        let api::StatsRequest { netns, links } = request.into_inner();
        Ok(Response::new(self.run(move |network| network.stats(&scope, &netns, &links)).await?))
    }

    type WatchStream = Answers<api::Event>;

    /// The stream ends with the daemon.
    async fn watch(
        &self,
        request: Request<api::WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let scope = scope(&request)?;
        let wanted: BTreeSet<String> = request.into_inner().netns.into_iter().collect();
        let watching = Watching { scope, wanted };
        let watch = self.run(move |network| {
            watching.wanted.iter().try_for_each(|id| network.check_watched(&watching.scope, id))?;
            Ok((network.watch()?, watching))
        });
        let (events, watching) = watch.await?;
        let first = api::Event { r#type: api::event::Type::Snapshot.into(), ..Default::default() };
        let events = stream::unfold((events, watching), |(mut events, watching)| async move {
            loop {
                match events.recv().await {
                    Ok(watched) => {
                        if let Some(event) = watching.pick(&watched) {
                            return Some((Ok(event), (events, watching)));
                        }
                    }
                    Err(RecvError::Lagged(_)) => {
                        let kind = api::event::Type::Overrun.into();
                        let event = api::Event { r#type: kind, ..Default::default() };
                        return Some((Ok(event), (events, watching)));
                    }
                    Err(RecvError::Closed) => return None,
                }
            }
        });
        let mut stopping = self.daemon.stopping();
        let events = stream::once(async move { Ok(first) })
            .chain(events)
            .take_until(async move { drop(stopping.wait_for(|stopping| *stopping).await) });
        Ok(Response::new(Box::pin(events)))
    }

    async fn capabilities(
        &self,
        _: Request<()>,
    ) -> Result<Response<api::CapabilitiesResponse>, Status> {
        Ok(Response::new(self.run(|network| network.capabilities()).await?))
    }
}

/// What one client watches.
struct Watching {
    scope: Scope,
    /// None for all of the client's namespaces.
    wanted: BTreeSet<String>,
}

impl Watching {
    /// The event as the client sees it, when it is one of its.
    fn pick(&self, watched: &Watched) -> Option<api::Event> {
        let is_wanted = |id: &str| self.wanted.is_empty() || self.wanted.contains(id);
        let netns = match &watched.source {
            // Of the daemon's socket, whose events may have been anybody's.
            _ if watched.event.r#type() == api::event::Type::Overrun => "",
            Source::Host if is_wanted(HOST) => HOST,
            Source::Netns(namespace, id) if *namespace == self.scope.namespace && is_wanted(id) => {
                id
            }
            _ => return None,
        };
        Some(api::Event { netns: netns.to_owned(), ..(*watched.event).clone() })
    }
}
