//! Which parts of an image the client wants, and where they are unpacked.

use std::sync::Arc;

use crated_api::types;
use crated_api::types::transfer::ImageStore;
use crated_distribution::{All, Any as AnyPlatform, Matcher, Only, Ordered, Platform};
use tonic::Status;

use super::Work;
use crate::pipeline::pull::{Choice, Target};
use crate::pipeline::unpack::Unpack;

/// What images are unpacked into when the client names nothing.
const DEFAULT_SNAPSHOTTER: &str = "overlayfs";

impl Work {
    pub(super) fn choice(&self, store: &ImageStore) -> Result<Choice, Status> {
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
            let daemon = self.daemon();
            unpack.push(Target {
                platforms,
                snapshotter: snapshotter.to_owned(),
                unpack: Unpack {
                    store: Arc::new(daemon.content.scoped(self.scope.clone())),
                    snapshotter: Arc::new(daemon.snapshotter(self.scope.clone(), snapshotter)?),
                    applier: daemon.applier.clone(),
                    rebases: daemon.rebases(snapshotter),
                },
            });
        }
        let best_only = store.platforms.len() == 1;
        Ok(Choice {
            platforms: matcher(&store.platforms),
            manifests_max: match store.manifest_limit {
                0 => best_only.then_some(1),
                limit => Some(limit as usize),
            },
            all_metadata: store.all_metadata,
            unpack,
        })
    }
}

/// What matches a list of wishes, best first; everything when there is none.
pub(super) fn matcher(wishes: &[types::Platform]) -> Arc<dyn Matcher> {
    let platforms: Vec<Platform> = wishes.iter().map(platform).collect();
    match &platforms[..] {
        [] => Arc::new(All),
        [one] => Arc::new(Only::new(one)),
        several => Arc::new(Ordered::new(several)),
    }
}

fn platform(wish: &types::Platform) -> Platform {
    let mut platform = Platform::new(&wish.os, &wish.architecture);
    if !wish.variant.is_empty() {
        platform.variant = Some(wish.variant.clone());
    }
    platform.normalized()
}
