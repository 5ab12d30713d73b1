//! Registry to images.

use crated_api::types::transfer::{ImageStore, OciRegistry};
use crated_distribution::{DocumentLimits, Progress, Reference, Resolver};
use tonic::Status;

use super::super::{bulk, convert, status};
use super::{Work, failed, names};
use crate::pipeline::pull::Pull;

impl Work {
    pub(super) async fn pull(
        &self,
        registry: OciRegistry,
        store: ImageStore,
    ) -> Result<(), Status> {
        let reference = Reference::parse(&registry.reference).map_err(failed)?;
        let choice = self.choice(&store)?;
        let resolver = self.resolver(&registry.resolver.unwrap_or_default())?;
        let shown = reference.to_string();
        self.report.line(format!("Resolving from {shown}")).await;
        let resolving = self.service.daemon.metrics.stage("resolve");
        let resolved = resolver.resolve(&reference).await.map_err(failed)?;
        drop(resolving);
        let fetcher = resolver.fetcher(&reference).await.map_err(failed)?;
        self.report.line(format!("Pulling from {shown}")).await;
        let root = resolved.descriptor;
        let (asked, candidate) = (shown.clone(), convert::descriptor_of(&root));
        bulk(&self.service.daemon, move |daemon| {
            daemon.verifiers.verify(&asked, &candidate).map_err(status::from_verifier)
        })
        .await?;
        let name = if store.name.is_empty() { shown.clone() } else { store.name.clone() };
        let progress = Progress::new();
        let watching = self.report.watch(
            &progress,
            "fetching image content",
            &name,
            convert::descriptor_of(&root),
        );
        let pull = Pull {
            fetch: self.fetch(fetcher.into(), progress),
            reference: Some(reference),
            limits: DocumentLimits::default(),
            namespace: self.scope.namespace.to_string(),
        };
        let pulled = pull.run(&root, &choice).await.map_err(status::from_pipeline);
        watching.stop().await;
        pulled?;
        for saved in names::pulled(&name, &store, &root) {
            self.save(&saved.name, saved.labels, &root).await?;
        }
        self.report.line(format!("Completed pull from {shown}")).await;
        Ok(())
    }
}
