//! `containerd.services.transfer.v1.Transfer`: the daemon does what clients otherwise do in many
//! calls. Which pairs of source and destination are served is listed in [`TransferService`].

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use crated_api::services::transfer::v1::TransferRequest;
use crated_api::services::transfer::v1::transfer_server::Transfer;
use crated_api::types::transfer::{
    AuthRequest, AuthResponse, AuthType, ImageStore, OciRegistry, RegistryResolver,
};
use crated_api::{Any, any, types};
use crated_distribution::{
    All, Any as AnyPlatform, Credential, Credentials, Descriptor, DocumentLimits, Hosts, Lookup,
    Matcher, Only, Ordered, Platform, Progress, Reference, RegistryOptions,
    RegistryResolver as Registry, Resolver, Secret,
};
use prost::Name as _;
use tonic::{Request, Response, Status};

use super::progress::Report;
use super::streaming::{AnyStream, Streams};
use super::{convert, quick, scope, status};
use crate::metadata::gc::LABEL_EXPIRE;
use crate::metadata::{Image, ImageUpdate, Labels, Scope, Target};
use crate::pipeline::fetch::Fetch;
use crate::pipeline::pull::{self, Choice, Pull};
use crate::pipeline::unpack::Unpack;
use crate::wiring::Daemon;

/// How long the lease of a pull lasts if the daemon dies in the middle: as long as clients give
/// theirs, so that an interrupted pull can go on the next day.
const LEASE: Duration = Duration::from_secs(24 * 3600);

/// Moves images between registries and the daemon.
#[derive(Clone)]
pub struct TransferService {
    daemon: Arc<Daemon>,
    streams: Streams,
}

impl TransferService {
    /// Serves `daemon`; streams that requests name are taken from `streams`.
    pub fn new(daemon: Arc<Daemon>, streams: Streams) -> Self {
        Self { daemon, streams }
    }
}

#[tonic::async_trait]
impl Transfer for TransferService {
    async fn transfer(&self, request: Request<TransferRequest>) -> Result<Response<()>, Status> {
        let scope = scope(&request)?;
        let TransferRequest { source, destination, options } = request.into_inner();
        let source = source.ok_or_else(|| status::invalid("source: missing"))?;
        let destination = destination.ok_or_else(|| status::invalid("destination: missing"))?;
        let stream = match options.unwrap_or_default().progress_stream {
            id if id.is_empty() => None,
            id => Some(self.streams.take(scope.namespace.as_str(), &id)?),
        };
        let report = Report::new(stream);
        let pair = (any::name(&source.type_url).to_owned(), any::name(&destination.type_url));
        if pair == (OciRegistry::full_name(), ImageStore::full_name().as_str()) {
            let work = Leased { service: self.clone(), scope: scope.clone() };
            work.pull(unpacked(&source)?, unpacked(&destination)?, &report).await?;
        } else if pair == (ImageStore::full_name(), ImageStore::full_name().as_str()) {
            self.tag(scope, unpacked(&source)?, unpacked(&destination)?).await?;
        } else {
            let (from, to) = pair;
            return Err(status::unimplemented(format!("transfer from {from} to {to}")));
        }
        report.finish().await;
        Ok(Response::new(()))
    }
}

impl TransferService {
    /// Gives an image another name.
    async fn tag(&self, scope: Scope, from: ImageStore, to: ImageStore) -> Result<(), Status> {
        quick(&self.daemon, move |daemon| {
            let image = daemon.db.images().image(&scope, &from.name)?;
            publish(daemon, &scope, to.name, to.labels, image.target)
        })
        .await
    }

    /// A resolver of a registry as the client describes it.
    fn resolver(&self, scope: &Scope, wish: &RegistryResolver) -> Result<Registry, Status> {
        let mut hosts = Hosts::default();
        if !wish.host_dir.is_empty() {
            hosts = Hosts::directory(&wish.host_dir);
        }
        hosts.plain_http = wish.default_scheme == "http";
        let mut options = RegistryOptions::new().with_hosts(hosts);
        options.headers = wish.headers.clone().into_iter().collect();
        if !wish.auth_stream.is_empty() {
            let stream = self.streams.take(scope.namespace.as_str(), &wish.auth_stream)?;
            options = options.with_credentials(Asked { stream: tokio::sync::Mutex::new(stream) });
        }
        Registry::new(options).map_err(|error| status::from_distribution(&error))
    }
}

/// Work that needs a lease, its own when the client brought none.
struct Leased {
    service: TransferService,
    scope: Scope,
}

impl Leased {
    async fn pull(
        mut self,
        registry: OciRegistry,
        store: ImageStore,
        report: &Report,
    ) -> Result<(), Status> {
        let own = self.scope.lease.is_none();
        if own {
            let labels = Labels::from([(
                LABEL_EXPIRE.to_owned(),
                convert::rfc3339(SystemTime::now() + LEASE),
            )]);
            let namespace = self.scope.namespace.clone();
            let lease = quick(&self.service.daemon, move |daemon| {
                daemon.db.leases().create(&namespace, None, &labels)
            })
            .await?;
            self.scope.lease = Some(lease.id);
        }
        let guard = own
            .then(|| EndLease { daemon: self.service.daemon.clone(), scope: self.scope.clone() });
        let outcome = self.pull_under_lease(registry, store, report).await;
        drop(guard);
        outcome
    }

    async fn pull_under_lease(
        &self,
        registry: OciRegistry,
        store: ImageStore,
        report: &Report,
    ) -> Result<(), Status> {
        let failed = |error: crated_distribution::Error| status::from_distribution(&error);
        let reference = Reference::parse(&registry.reference).map_err(failed)?;
        let wish = registry.resolver.unwrap_or_default();
        let resolver = self.service.resolver(&self.scope, &wish)?;
        let shown = reference.to_string();
        report.line(format!("Resolving from {shown}")).await;
        let resolved = resolver.resolve(&reference).await.map_err(failed)?;
        let fetcher = resolver.fetcher(&reference).await.map_err(failed)?;
        report.line(format!("Pulling from {shown}")).await;
        let root = resolved.descriptor;
        let name = if store.name.is_empty() { shown.clone() } else { store.name.clone() };
        let progress = Progress::new();
        let watching = report.watch(&progress, &name, convert::descriptor_of(&root));

        let daemon = &self.service.daemon;
        let choice = self.choice(&store)?;
        let pull = Pull {
            fetch: Fetch {
                fetcher: fetcher.into(),
                store: Arc::new(daemon.content.scoped(self.scope.clone())),
                blocking: daemon.blocking.clone(),
                progress,
            },
            reference,
            limits: DocumentLimits::default(),
        };
        let pulled = pull.run(&root, &choice).await.map_err(status::from_pipeline);
        watching.stop().await;
        pulled?;

        let (scope, labels) = (self.scope.clone(), store.labels);
        let (target, saved) = (target(&root)?, name.clone());
        quick(daemon, move |daemon| publish(daemon, &scope, saved, labels, target)).await?;
        report.object("saved", &name, convert::descriptor_of(&root)).await;
        report.line(format!("Completed pull from {shown}")).await;
        Ok(())
    }

    fn choice(&self, store: &ImageStore) -> Result<Choice, Status> {
        let platforms: Vec<Platform> = store.platforms.iter().map(platform).collect();
        let matcher: Arc<dyn Matcher> = match &platforms[..] {
            [] => Arc::new(All),
            [one] => Arc::new(Only::new(one)),
            several => Arc::new(Ordered::new(several)),
        };
        let daemon = &self.service.daemon;
        let mut unpack = Vec::new();
        for wish in &store.unpacks {
            let snapshotter = match wish.snapshotter.as_str() {
                "" => DEFAULT_SNAPSHOTTER,
                name => name,
            };
            let platforms: Arc<dyn Matcher> = match &wish.platform {
                Some(wanted) => Arc::new(Only::new(&platform(wanted))),
                None => Arc::new(AnyPlatform::new(&[Platform::host()])),
            };
            unpack.push(pull::Target {
                platforms,
                snapshotter: snapshotter.to_owned(),
                unpack: Unpack {
                    store: Arc::new(daemon.content.scoped(self.scope.clone())),
                    snapshotter: Arc::new(daemon.snapshotter(self.scope.clone(), snapshotter)?),
                    applier: daemon.applier.clone(),
                },
            });
        }
        let best_only = platforms.len() == 1;
        Ok(Choice {
            platforms: matcher,
            manifests_max: match store.manifest_limit {
                0 => best_only.then_some(1),
                limit => Some(limit as usize),
            },
            all_metadata: store.all_metadata,
            unpack,
        })
    }
}

/// What images are unpacked into when the client names nothing.
const DEFAULT_SNAPSHOTTER: &str = "overlayfs";

/// Ends a lease of the daemon's own, also when the client has gone.
struct EndLease {
    daemon: Arc<Daemon>,
    scope: Scope,
}

impl Drop for EndLease {
    fn drop(&mut self) {
        let (daemon, scope) = (self.daemon.clone(), self.scope.clone());
        let Some(lease) = scope.lease else { return };
        tokio::spawn(async move {
            let ended =
                quick(&daemon, move |daemon| daemon.db.leases().delete(&scope.namespace, &lease));
            if let Err(error) = ended.await {
                tracing::warn!(error = error.message(), "the lease of a pull was left to expire");
            }
        });
    }
}

/// Creates the image, or points the existing one elsewhere.
fn publish(
    daemon: &Daemon,
    scope: &Scope,
    name: String,
    labels: Labels,
    target: Target,
) -> Result<(), crate::metadata::Error> {
    use crate::metadata::Error;
    let images = daemon.db.images();
    let now = SystemTime::now();
    let image = Image { name, labels, target, created_at: now, updated_at: now };
    loop {
        match images.create(scope, image.clone(), None) {
            Err(Error::AlreadyExists { .. }) => {}
            other => return other.map(drop),
        }
        let update = ImageUpdate::replace(image.clone());
        match images.update(scope, &image.name, update, None) {
            // Removed in between: create it again.
            Err(Error::NotFound { .. }) => {}
            other => return other.map(drop),
        }
    }
}

fn target(descriptor: &Descriptor) -> Result<Target, Status> {
    convert::target(Some(convert::descriptor_of(descriptor)))
}

fn platform(wish: &types::Platform) -> Platform {
    let mut platform = Platform::new(&wish.os, &wish.architecture);
    if !wish.variant.is_empty() {
        platform.variant = Some(wish.variant.clone());
    }
    platform.normalized()
}

fn unpacked<M: prost::Message + prost::Name + Default>(packed: &Any) -> Result<M, Status> {
    any::unpack(packed).map_err(|error| status::invalid(format!("transfer: {error}")))
}

/// Credentials that the client is asked for, over a stream it opened.
struct Asked {
    stream: tokio::sync::Mutex<AnyStream>,
}

#[async_trait]
impl Credentials for Asked {
    async fn lookup(
        &self,
        lookup: Lookup<'_>,
    ) -> Result<Option<Credential>, crated_distribution::Error> {
        let failed = |reason: &str| crated_distribution::Error::Credentials {
            host: lookup.host.to_owned(),
            reason: reason.to_owned(),
        };
        let request = AuthRequest {
            host: lookup.host.to_owned(),
            reference: lookup.reference.to_owned(),
            wwwauthenticate: lookup.challenges.to_vec(),
        };
        // One question at a time: answers carry nothing that says what they answer.
        let mut stream = self.stream.lock().await;
        let gone = |_| failed("the client no longer answers");
        stream.outgoing.send(Ok(any::pack(&request))).await.map_err(gone)?;
        let answer = stream.incoming.message().await.map_err(|error| failed(error.message()))?;
        let answer = answer.ok_or_else(|| failed("the client ended the stream"))?;
        let answer: AuthResponse =
            any::unpack(&answer).map_err(|_| failed("the client answered something else"))?;
        Ok(match answer.auth_type() {
            AuthType::None => None,
            AuthType::Credentials => Some(Credential::new(answer.username, answer.secret)),
            AuthType::Refresh => Some(Credential::RefreshToken(Secret::new(answer.secret))),
            AuthType::Header => Some(Credential::Header(Secret::new(answer.secret))),
        })
    }
}
