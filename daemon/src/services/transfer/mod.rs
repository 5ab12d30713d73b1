//! `containerd.services.transfer.v1.Transfer`: the daemon does what clients otherwise do in many
//! calls.
//!
//! ```text
//!  registry        ► images           pull, and unpack
//!  images          ► registry         push
//!  stream of bytes ► images           import, and unpack
//!  images          ► stream of bytes  export
//!  images          ► images           tag
//!  stream of bytes ► stream of bytes  echo, for tests of clients
//! ```

mod choice;
mod credentials;
mod export;
mod import;
mod lease;
mod names;
mod pull;
mod push;

use std::sync::Arc;
use std::time::SystemTime;

use crated_api::services::transfer::v1::TransferRequest;
use crated_api::services::transfer::v1::transfer_server::Transfer;
use crated_api::types::transfer::{
    ImageExportStream, ImageImportStream, ImageStore, OciRegistry, RegistryResolver,
};
use crated_api::{Any, any};
use crated_distribution::{
    Descriptor, Hosts, Progress, RegistryOptions, RegistryResolver as Registry,
};
use prost::Name as _;
use tonic::{Request, Response, Status};

use self::credentials::Asked;
use super::bytes::{Incoming, Outgoing};
use super::progress::Report;
use super::streaming::Streams;
use super::{convert, quick, scope, status};
use crate::metadata::{Image, ImageUpdate, Labels, Scope, Target};
use crate::pipeline::fetch::Fetch;
use crate::pipeline::stored::Stored;
use crate::wiring::Daemon;

/// Moves images between registries, archives and the daemon.
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
        let work = Work { service: self.clone(), scope, report: Report::new(stream) };
        let lease = lease::Own::of(&work).await?;
        let Work { service, scope, report } = work;
        let work = Work { service, scope: lease.scope(scope), report };
        let done = work.run(&source, &destination).await;
        // The last message comes before the answer, and the stream ends after it.
        work.report.finish().await;
        drop(lease);
        done.map(Response::new)
    }
}

/// One call: for whom, under which lease, and who is told.
struct Work {
    service: TransferService,
    scope: Scope,
    report: Report,
}

impl Work {
    async fn run(&self, source: &Any, destination: &Any) -> Result<(), Status> {
        const REGISTRY: &str = OciRegistry::NAME;
        const IMAGES: &str = ImageStore::NAME;
        const ARCHIVE: &str = ImageImportStream::NAME;
        const TO_ARCHIVE: &str = ImageExportStream::NAME;
        let (from, to) = (any::name(&source.type_url), any::name(&destination.type_url));
        let unserved = || status::unimplemented(format!("transfer from {from} to {to}"));
        let short = |name: &'_ str| name.strip_prefix(PACKAGE).map(str::to_owned);
        let pair = short(from).zip(short(to)).ok_or_else(unserved)?;
        match (pair.0.as_str(), pair.1.as_str()) {
            (REGISTRY, IMAGES) => self.pull(unpacked(source)?, unpacked(destination)?).await,
            (IMAGES, REGISTRY) => self.push(unpacked(source)?, unpacked(destination)?).await,
            (ARCHIVE, IMAGES) => self.import(unpacked(source)?, unpacked(destination)?).await,
            (IMAGES, TO_ARCHIVE) => self.export(unpacked(source)?, unpacked(destination)?).await,
            (IMAGES, IMAGES) => self.tag(unpacked(source)?, unpacked(destination)?).await,
            (ARCHIVE, TO_ARCHIVE) => self.echo(unpacked(source)?, unpacked(destination)?).await,
            _ => Err(unserved()),
        }
    }

    /// Gives an image another name.
    async fn tag(&self, from: ImageStore, to: ImageStore) -> Result<(), Status> {
        let scope = self.scope.clone();
        quick(&self.service.daemon, move |daemon| {
            let image = daemon.db.images().image(&scope, &from.name)?;
            publish(daemon, &scope, to.name, to.labels, image.target)
        })
        .await
    }

    /// Sends back what comes.
    async fn echo(&self, from: ImageImportStream, to: ImageExportStream) -> Result<(), Status> {
        let mut incoming = Incoming::new(self.stream(&from.stream)?);
        let (mut near, outgoing) = Outgoing::new(self.stream(&to.stream)?);
        tokio::io::copy(&mut incoming, &mut near).await.map_err(|error| status::from_io(&error))?;
        drop(near);
        outgoing.finish().await.map_err(|error| status::from_io(&error))
    }

    fn daemon(&self) -> &Arc<Daemon> {
        &self.service.daemon
    }

    fn stream(&self, id: &str) -> Result<super::streaming::AnyStream, Status> {
        self.service.streams.take(self.scope.namespace.as_str(), id)
    }

    /// What is stored, as a source.
    fn stored(&self) -> Stored {
        let store = Arc::new(self.daemon().content.scoped(self.scope.clone()));
        Stored { store, blocking: self.daemon().blocking.clone() }
    }

    /// Brings blobs from `fetcher` into the store.
    fn fetch(&self, fetcher: Arc<dyn crated_distribution::Fetcher>, progress: Progress) -> Fetch {
        Fetch {
            fetcher,
            store: Arc::new(self.daemon().content.scoped(self.scope.clone())),
            blocking: self.daemon().blocking.clone(),
            progress,
            shared: Arc::clone(&self.daemon().pipeline),
        }
    }

    /// A resolver of a registry as the client describes it.
    fn resolver(&self, wish: &RegistryResolver) -> Result<Registry, Status> {
        let mut hosts = Hosts::default();
        if !wish.host_dir.is_empty() {
            hosts = Hosts::directory(&wish.host_dir);
        }
        hosts.plain_http = wish.default_scheme == "http";
        let mut options = RegistryOptions::new().with_hosts(hosts);
        options.quota = Some(self.daemon().pipeline.quota());
        options.headers = wish.headers.clone().into_iter().collect();
        if !wish.auth_stream.is_empty() {
            let stream = self.stream(&wish.auth_stream)?;
            options = options.with_credentials(Asked { stream: tokio::sync::Mutex::new(stream) });
        }
        Registry::new(options).map_err(|error| status::from_distribution(&error))
    }

    /// Makes an image visible, and says so.
    async fn save(&self, name: &str, labels: Labels, root: &Descriptor) -> Result<(), Status> {
        let (scope, saved, target) = (self.scope.clone(), name.to_owned(), target(root)?);
        quick(self.daemon(), move |daemon| publish(daemon, &scope, saved, labels, target)).await?;
        self.report.object("saved", name, convert::descriptor_of(root)).await;
        Ok(())
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

fn unpacked<M: prost::Message + prost::Name + Default>(packed: &Any) -> Result<M, Status> {
    any::unpack(packed).map_err(|error| status::invalid(format!("transfer: {error}")))
}

fn failed(error: crated_distribution::Error) -> Status {
    status::from_distribution(&error)
}

/// Where the messages of sources and destinations are defined.
const PACKAGE: &str = "containerd.types.transfer.";
