//! Records of blobs.

use std::collections::BTreeSet;

use crated_content::Digest;
use crated_distribution::{Document, DocumentLimits, ImageConfig, Index, Manifest};
use crated_snapshot::chain_id;

use super::{Check, LABEL_RECREATED, now};
use crate::metadata::record::BlobRow;
use crate::metadata::schema::Table;
use crate::metadata::txn::View;
use crate::metadata::{Labels, Namespace, Result, key, rows};

impl Check<'_> {
    /// Blobs that are recorded without being there, or with another size.
    pub(super) fn recorded_blobs(&mut self) -> Result<()> {
        for namespace in self.namespaces()? {
            let within = [namespace.as_str()];
            let blobs =
                rows::collect(&self.view, Table::Blobs, &within, |digest, row: BlobRow| {
                    Ok(Some((digest.parse::<Digest>()?, row.size_bytes)))
                })?;
            for (digest, size_bytes) in blobs {
                let problem = match self.below.blobs.get(&digest) {
                    Some(found) if *found == size_bytes => continue,
                    Some(found) => format!("{found} bytes are stored, {size_bytes} recorded"),
                    None => "its bytes are gone: remove the record and fetch it again".to_owned(),
                };
                self.plan.note(namespace.as_str(), format!("content {digest}"), problem, false);
            }
        }
        Ok(())
    }

    /// Makes sure that a blob which something refers to is recorded, with all below it; `false`
    /// when there is nothing to record.
    pub(super) fn want_blob(
        &mut self,
        namespace: &Namespace,
        digest: &Digest,
        depth: usize,
    ) -> Result<bool> {
        let at = key::join(&[namespace.as_str(), digest.as_str()]);
        if self.view.has(Table::Blobs, &at)?
            || self.plan.blobs.contains_key(&(namespace.clone(), digest.clone()))
        {
            return Ok(true);
        }
        let Some(size_bytes) = self.below.blobs.get(digest).copied() else { return Ok(false) };
        let limits = DocumentLimits::default();
        self.record(namespace, digest, size_bytes, Labels::new());
        let labels = match self.document(digest, size_bytes, &limits) {
            Some(Document::Manifest(manifest)) => self.manifest(namespace, &manifest, &limits)?,
            Some(Document::Index(index)) if depth < limits.index_depth_max => {
                self.index(namespace, &index, depth)?
            }
            _ => Labels::new(),
        };
        self.label(namespace, digest, labels);
        Ok(true)
    }

    /// After a loss: images whose unpacked layers prove that a namespace had them.
    pub(super) fn unrecorded_images(&mut self) -> Result<()> {
        let limits = DocumentLimits::default();
        let chains = self.chains()?;
        let (mut proved, mut indexes) = (BTreeSet::new(), Vec::new());
        let blobs: Vec<(Digest, u64)> =
            self.below.blobs.iter().map(|(digest, size)| (digest.clone(), *size)).collect();
        for (digest, size_bytes) in blobs {
            let manifest = match self.document(&digest, size_bytes, &limits) {
                Some(Document::Manifest(manifest)) => manifest,
                Some(Document::Index(index)) => {
                    indexes.push((digest, index));
                    continue;
                }
                None => continue,
            };
            let Some(chain) = self.chain(&manifest, &limits) else { continue };
            for (namespace, _, _) in chains.iter().filter(|(_, _, name)| *name == chain) {
                self.adopt(namespace, &digest)?;
                proved.insert((namespace.clone(), digest.clone()));
            }
        }
        for (digest, index) in indexes {
            let owners: BTreeSet<Namespace> = proved
                .iter()
                .filter(|(_, manifest)| index.manifests.iter().any(|m| same(&m.digest, manifest)))
                .map(|(namespace, _)| namespace.clone())
                .collect();
            for namespace in owners {
                self.adopt(&namespace, &digest)?;
            }
        }
        self.unclaimed()
    }

    /// Records a blob as a root.
    fn adopt(&mut self, namespace: &Namespace, digest: &Digest) -> Result<()> {
        if self.want_blob(namespace, digest, 0)? {
            let root = Labels::from([(LABEL_RECREATED.to_owned(), "unnamed image".to_owned())]);
            self.label(namespace, digest, root);
        }
        Ok(())
    }

    fn unclaimed(&mut self) -> Result<()> {
        let mut count = 0;
        let namespaces = self.namespaces()?;
        for digest in self.below.blobs.keys() {
            let planned = self.plan.blobs.keys().any(|(_, planned)| planned == digest);
            let mut recorded = planned;
            for namespace in &namespaces {
                let at = key::join(&[namespace.as_str(), digest.as_str()]);
                recorded = recorded || self.view.has(Table::Blobs, &at)?;
            }
            count += usize::from(!recorded);
        }
        if count > 0 {
            let problem = "no record can be proved, the next collection removes them: copy what \
                           you need, or pull again";
            self.plan.note("-", format!("{count} blobs"), problem.to_owned(), false);
        }
        Ok(())
    }

    /// Committed snapshots by namespace and snapshotter, recorded or about to be.
    fn chains(&self) -> Result<BTreeSet<(Namespace, String, String)>> {
        let mut chains: BTreeSet<_> = self.plan.snapshots.keys().cloned().collect();
        for namespace in self.namespaces()? {
            let within = [namespace.as_str()];
            rows::visit_pairs(
                &self.view,
                Table::Snapshots,
                &within,
                |snapshotter, key, _: crate::metadata::record::SnapshotRow| {
                    chains.insert((namespace.clone(), snapshotter, key));
                    Ok(())
                },
            )?;
        }
        Ok(chains)
    }

    fn manifest(
        &mut self,
        namespace: &Namespace,
        manifest: &Manifest,
        limits: &DocumentLimits,
    ) -> Result<Labels> {
        let mut labels = Labels::new();
        let config = content_digest(&manifest.config.digest);
        let parsed = config.as_ref().and_then(|config| self.config(config, limits));
        if let Some(config) = config
            && self.want_blob(namespace, &config, usize::MAX)?
        {
            labels.insert(format!("{LABEL_CHILD}.config"), config.to_string());
            if let Some(chain) = self.chain(manifest, limits) {
                let chains = self.chains()?;
                let unpacked =
                    chains.iter().filter(|(of, _, name)| of == namespace && *name == chain);
                let unpacked = unpacked
                    .map(|(_, name, _)| (format!("{LABEL_SNAPSHOT}.{name}"), chain.clone()))
                    .collect();
                self.label(namespace, &config, unpacked);
            }
        }
        for (number, layer) in manifest.layers.iter().enumerate() {
            let Some(digest) = content_digest(&layer.digest) else { continue };
            labels.insert(format!("{LABEL_CHILD}.l.{number}"), digest.to_string());
            // A layer that was never stored is normal: its snapshot was there already.
            if self.want_blob(namespace, &digest, usize::MAX)?
                && let Some(diff_id) = parsed.as_ref().and_then(|it| it.diff_ids.get(number))
                && diff_id.as_str() != digest.as_str()
            {
                let form = Labels::from([(LABEL_UNCOMPRESSED.to_owned(), diff_id.to_string())]);
                self.label(namespace, &digest, form);
            }
        }
        Ok(labels)
    }

    fn index(&mut self, namespace: &Namespace, index: &Index, depth: usize) -> Result<Labels> {
        let mut labels = Labels::new();
        for (number, child) in index.manifests.iter().enumerate() {
            let Some(digest) = content_digest(&child.digest) else { continue };
            labels.insert(format!("{LABEL_CHILD}.m.{number}"), digest.to_string());
            self.want_blob(namespace, &digest, depth + 1)?;
        }
        Ok(labels)
    }

    fn record(&mut self, namespace: &Namespace, digest: &Digest, size_bytes: u64, labels: Labels) {
        let row = BlobRow { labels, size_bytes, created_at: now(), updated_at: now() };
        self.plan.blobs.insert((namespace.clone(), digest.clone()), row);
        let problem = "is stored without a record".to_owned();
        self.plan.note(namespace.as_str(), format!("content {digest}"), problem, true);
    }

    /// Adds labels to a record about to be made; one that is there already is left as it is.
    fn label(&mut self, namespace: &Namespace, digest: &Digest, labels: Labels) {
        if let Some(row) = self.plan.blobs.get_mut(&(namespace.clone(), digest.clone())) {
            row.labels.extend(labels);
        }
    }

    /// A blob as a manifest or an index, when it is one and its bytes are what they are called.
    fn document(
        &self,
        digest: &Digest,
        size_bytes: u64,
        limits: &DocumentLimits,
    ) -> Option<Document> {
        let bytes = self.bytes(digest, size_bytes, limits.manifest_bytes_max)?;
        Document::parse(&bytes, "", limits).ok()
    }

    fn config(&self, digest: &Digest, limits: &DocumentLimits) -> Option<ImageConfig> {
        let size_bytes = *self.below.blobs.get(digest)?;
        let bytes = self.bytes(digest, size_bytes, limits.config_bytes_max)?;
        ImageConfig::parse(bytes.into(), limits).ok()
    }

    fn bytes(&self, digest: &Digest, size_bytes: u64, limit: u64) -> Option<Vec<u8>> {
        if size_bytes > limit {
            return None;
        }
        let blob = self.store.reader(digest).ok()?;
        let mut bytes = Vec::new();
        std::io::Read::read_to_end(
            &mut std::io::Read::take(crated_content::reader(blob), limit),
            &mut bytes,
        )
        .ok()?;
        (Digest::of_with(digest.algorithm(), &bytes) == *digest).then_some(bytes)
    }

    /// The name of the snapshot that the layers of an image make.
    fn chain(&self, manifest: &Manifest, limits: &DocumentLimits) -> Option<String> {
        let config = self.config(&content_digest(&manifest.config.digest)?, limits)?;
        config.check_layers(manifest).ok()?;
        config.diff_ids.iter().fold(None, |below: Option<String>, diff_id| {
            Some(chain_id(below.as_deref(), diff_id.as_str()))
        })
    }
}

fn content_digest(digest: &crated_distribution::Digest) -> Option<Digest> {
    digest.as_str().parse().ok()
}

fn same(named: &crated_distribution::Digest, digest: &Digest) -> bool {
    named.as_str() == digest.as_str()
}

const LABEL_CHILD: &str = "containerd.io/gc.ref.content";
const LABEL_SNAPSHOT: &str = "containerd.io/gc.ref.snapshot";
const LABEL_UNCOMPRESSED: &str = "containerd.io/uncompressed";
