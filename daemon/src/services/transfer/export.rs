//! Images to an archive.

use std::sync::Arc;

use crated_api::types::transfer::{ImageExportStream, ImageStore};
use crated_distribution::archive::Export;
use crated_distribution::walk::WalkOptions;
use crated_distribution::{Only, Platform, Progress};
use tonic::Status;

use super::super::bytes::Outgoing;
use super::super::status;
use super::{Work, choice, failed};

impl Work {
    pub(super) async fn export(
        &self,
        store: ImageStore,
        archive: ImageExportStream,
    ) -> Result<(), Status> {
        let mut names = Vec::new();
        if !store.name.is_empty() {
            names.push(store.name.clone());
        }
        for reference in &store.extra_references {
            if reference.is_prefix {
                return Err(status::unimplemented("export of all images with a prefix"));
            }
            names.push(reference.name.clone());
        }
        let mut options = WalkOptions::all();
        if !archive.all_platforms {
            options.platforms = match &archive.platforms[..] {
                [] => Arc::new(Only::new(&Platform::host())),
                wishes => choice::matcher(wishes),
            };
        }
        let mut export = Export::new(options);
        export.docker_manifest = !archive.skip_compatibility_manifest;
        export.skip_non_distributable = archive.skip_non_distributable;
        for name in &names {
            let root = self.image(name).await?;
            export.image(Some(name), &root);
        }
        self.report.line("Exporting".to_owned()).await;
        let (mut near, outgoing) = Outgoing::new(self.stream(&archive.stream)?);
        let progress = Progress::new();
        export.write(&self.stored(), &mut near, &progress).await.map_err(failed)?;
        drop(near);
        outgoing.finish().await.map_err(|error| status::from_io(&error))?;
        self.report.line("Completed export".to_owned()).await;
        Ok(())
    }
}
