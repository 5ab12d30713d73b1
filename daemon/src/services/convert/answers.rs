//! Answers of proxies to domain types: the other way round of what services send.

use std::time::SystemTime;

use crated_api::services::{content, snapshots};
use crated_api::types;
use crated_content::{Digest, LabelUpdate, Labels};
use crated_mount::Mount;
use crated_snapshot::Kind;
use prost_types::{FieldMask, Timestamp};
use tonic::Status;

use super::{digest, invalid, optional_size};

/// A time a proxy sent; 1970 when it sent none, or one that no clock reaches.
pub fn time_or_epoch(time: Option<Timestamp>) -> SystemTime {
    time.and_then(|time| SystemTime::try_from(time).ok()).unwrap_or(SystemTime::UNIX_EPOCH)
}

/// A size a proxy sent.
pub fn size_from(size: i64) -> u64 {
    u64::try_from(size).unwrap_or(0)
}

/// A snapshot a proxy described.
///
/// # Errors
///
/// InvalidArgument when it has no name or no known kind.
pub fn snapshot_from(info: snapshots::v1::Info) -> Result<crated_snapshot::Info, Status> {
    let kind = match snapshots::v1::Kind::try_from(info.kind) {
        Ok(snapshots::v1::Kind::View) => Kind::View,
        Ok(snapshots::v1::Kind::Active) => Kind::Active,
        Ok(snapshots::v1::Kind::Committed) => Kind::Committed,
        _ => return Err(invalid(format!("snapshot {:?}: kind {}", info.name, info.kind))),
    };
    let parent = super::optional(info.parent).map(crated_snapshot::Name::new).transpose();
    Ok(crated_snapshot::Info {
        parent: parent.map_err(super::super::status::from_snapshot)?,
        kind,
        labels: info.labels,
        created_at: time_or_epoch(info.created_at),
        updated_at: time_or_epoch(info.updated_at),
        name: info.name,
    })
}

/// A blob a proxy described.
///
/// # Errors
///
/// InvalidArgument when its digest is none.
pub fn content_from(info: content::v1::Info) -> Result<crated_content::Info, Status> {
    Ok(crated_content::Info {
        digest: digest(&info.digest)?,
        size_bytes: size_from(info.size),
        created_at: time_or_epoch(info.created_at),
        updated_at: time_or_epoch(info.updated_at),
        labels: super::labels(info.labels),
    })
}

/// An unfinished write a proxy described.
pub fn ingest_from(status: content::v1::Status) -> crated_content::Status {
    crated_content::Status {
        reference: status.r#ref,
        offset: size_from(status.offset),
        total: optional_size(status.total),
        expected: status.expected.parse::<Digest>().ok(),
        started_at: time_or_epoch(status.started_at),
        updated_at: time_or_epoch(status.updated_at),
    }
}

/// A mount for a proxy.
pub fn mounts_of(mounts: &[Mount]) -> Vec<types::Mount> {
    mounts.iter().cloned().map(super::mount).collect()
}

/// A change of labels as a mask, and the labels it takes values from.
pub fn label_mask(update: LabelUpdate) -> (Option<FieldMask>, Labels) {
    let mut labels = Labels::new();
    let paths = match update {
        LabelUpdate::Replace(all) => {
            labels = all;
            vec!["labels".to_owned()]
        }
        LabelUpdate::Merge(changes) => changes
            .into_iter()
            .map(|(key, value)| {
                let path = format!("labels.{key}");
                labels.extend(value.map(|value| (key, value)));
                path
            })
            .collect(),
    };
    (Some(FieldMask { paths }), labels)
}

/// The same change in the words of a content store.
pub fn content_labels(update: crated_snapshot::LabelUpdate) -> LabelUpdate {
    match update {
        crated_snapshot::LabelUpdate::Replace(labels) => LabelUpdate::Replace(labels),
        crated_snapshot::LabelUpdate::Merge(changes) => LabelUpdate::Merge(changes),
    }
}
