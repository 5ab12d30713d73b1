//! Images to a registry.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use crated_api::types::transfer::{ImageStore, OciRegistry};
use crated_distribution::walk::{self, WalkOptions};
use crated_distribution::{
    Descriptor, Progress, Pushed, Pusher, Reference, Resolver, Result as Distributed, Source,
};
use tonic::Status;

use super::super::{convert, quick};
use super::{Work, choice, failed};
use crate::pipeline::pull::LABEL_SOURCE;
use crate::pipeline::stored::Stored;

impl Work {
    /// Pushes everything below the image, its root last. Only the root gets the tag.
    pub(super) async fn push(
        &self,
        store: ImageStore,
        registry: OciRegistry,
    ) -> Result<(), Status> {
        let root = self.image(&store.name).await?;
        let reference = Reference::parse(&registry.reference).map_err(failed)?;
        let shown = reference.to_string();
        let reference = match reference.digest() {
            Some(_) => reference,
            None => reference.with_digest(root.digest.clone()),
        };
        let resolver = self.resolver(&registry.resolver.unwrap_or_default())?;
        self.report.line(format!("Pushing to {shown}")).await;
        let pusher = resolver.pusher(&reference).await.map_err(failed)?;
        let progress = Progress::new();
        let described = convert::descriptor_of(&root);
        let watching =
            self.report.watch(&progress, "pushing content", &store.name, described.clone());
        let mut options = WalkOptions::all();
        options.platforms = choice::matcher(&store.platforms);
        let fetcher = Arc::new(self.stored());
        let pusher = Sourced { pusher, stored: self.stored() };
        let pushed = walk::copy(fetcher, &pusher, &root, &options, &progress).await;
        watching.stop().await;
        pushed.map_err(failed)?;
        self.report.object("pushed content", &store.name, described).await;
        self.report.line(format!("Completed push to {shown}")).await;
        Ok(())
    }

    /// The root of an image, with what its record says about where it came from.
    pub(super) async fn image(&self, name: &str) -> Result<Descriptor, Status> {
        let (scope, name) = (self.scope.clone(), name.to_owned());
        let image =
            quick(self.daemon(), move |daemon| daemon.db.images().image(&scope, &name)).await?;
        let target = convert::descriptor(image.target);
        let digest = crated_distribution::Digest::parse(&target.digest).map_err(failed)?;
        let size_bytes = u64::try_from(target.size).unwrap_or(0);
        let mut root = Descriptor::new(target.media_type, digest, size_bytes);
        root.annotations = target.annotations.into_iter().collect::<BTreeMap<_, _>>();
        Ok(root)
    }
}

/// Tells the pusher where each blob came from, so that the registry can link it from there.
struct Sourced {
    pusher: Box<dyn Pusher>,
    stored: Stored,
}

#[async_trait]
impl Pusher for Sourced {
    async fn push(&self, descriptor: &Descriptor, source: &dyn Source) -> Distributed<Pushed> {
        let store = self.stored.store.clone();
        let digest = descriptor.digest.as_str().parse::<crated_content::Digest>();
        let mut descriptor = descriptor.clone();
        let look = move || digest.and_then(|digest| store.info(&digest));
        // Without it the blob is sent, which is right too.
        if let Ok(Ok(info)) = self.stored.blocking.quick(look).await {
            let labels = info.labels.into_iter();
            descriptor.annotations.extend(labels.filter(|(key, _)| key.starts_with(LABEL_SOURCE)));
        }
        self.pusher.push(&descriptor, source).await
    }
}
