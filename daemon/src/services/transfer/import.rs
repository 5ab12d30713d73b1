//! An archive to images.

use std::sync::Arc;

use crated_api::types::transfer::{ImageImportStream, ImageStore};
use crated_distribution::{Descriptor, DocumentLimits, Progress};
use tonic::Status;

use super::super::bytes::Incoming;
use super::super::status;
use super::{Work, names};
use crate::pipeline::import::import;
use crate::pipeline::pull::{Choice, Pull};

impl Work {
    pub(super) async fn import(
        &self,
        archive: ImageImportStream,
        store: ImageStore,
    ) -> Result<(), Status> {
        let choice = self.choice(&store)?;
        let incoming = Incoming::new(self.stream(&archive.stream)?);
        self.report.line("Importing".to_owned()).await;
        let fetch = self.fetch(Arc::new(self.stored()), Progress::new());
        let imported = import(&fetch, incoming).await.map_err(status::from_pipeline)?;
        let mut saved = Vec::new();
        if let Some(index) = &imported.index
            && !store.name.is_empty()
        {
            self.complete(index, &choice).await?;
            let named = names::pulled(&store.name, &store, index);
            saved.extend(named.into_iter().map(|name| (name, index)));
        }
        for image in &imported.images {
            let named = names::imported(&store, image);
            if !named.is_empty() {
                self.complete(image, &choice).await?;
            }
            saved.extend(named.into_iter().map(|name| (name, image)));
        }
        if saved.is_empty() {
            return Err(status::not_found("no image name found"));
        }
        for (name, root) in saved {
            self.save(&name.name, name.labels, root).await?;
        }
        self.report.line("Completed import".to_owned()).await;
        Ok(())
    }

    /// Checks that everything below `root` is there, labels it so that it stays, and unpacks it.
    async fn complete(&self, root: &Descriptor, choice: &Choice) -> Result<(), Status> {
        let progress = Progress::new();
        let described = super::convert::descriptor_of(root);
        let name = root.digest.to_string();
        let watching = self.report.watch(&progress, "importing", &name, described);
        let pull = Pull {
            fetch: self.fetch(Arc::new(self.stored()), progress),
            reference: None,
            limits: DocumentLimits::default(),
            namespace: self.scope.namespace.to_string(),
        };
        let done = pull.run(root, choice).await.map_err(status::from_pipeline);
        watching.stop().await;
        done
    }
}
