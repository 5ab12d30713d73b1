use crate::error::{Error, Result};
use crate::store::{LABEL_LEN_MAX, REFERENCE_LEN_MAX};
use crate::{Commit, Digest, Ingest, Labels};

/// Refuses ingests no store accepts.
pub(crate) fn ingest(ingest: &Ingest) -> Result<()> {
    let reference = &ingest.reference;
    if let Some(total) = ingest.total.filter(|total| i64::try_from(*total).is_err()) {
        let reason = format!("{total} bytes are more than a file can have");
        return Err(Error::InvalidArgument { what: "total", reason });
    }
    let reason = if reference.is_empty() {
        "is empty".to_owned()
    } else if reference.len() > REFERENCE_LEN_MAX {
        format!("has {} bytes, more than {REFERENCE_LEN_MAX}", reference.len())
    } else if reference.contains('\0') {
        "contains a NUL".to_owned()
    } else {
        return Ok(());
    };
    Err(Error::InvalidArgument { what: "reference", reason })
}

/// Refuses labels that are too long or have no name.
pub(crate) fn labels(labels: &Labels) -> Result<()> {
    for (key, value) in labels {
        let reason = if key.is_empty() {
            "empty key".to_owned()
        } else if key.len() + value.len() > LABEL_LEN_MAX {
            let shown: String = key.chars().take(64).collect();
            let size = key.len() + value.len();
            format!("{shown:?} with its value has {size} bytes, more than {LABEL_LEN_MAX}")
        } else {
            continue;
        };
        return Err(Error::InvalidArgument { what: "label", reason });
    }
    Ok(())
}

/// Compares the size received with the one demanded; `rehash` yields the digest under the
/// algorithm asked for. Returns the digest under which the blob is to be stored.
pub(crate) fn commit(
    commit: &Commit,
    size_bytes: u64,
    actual: Digest,
    rehash: impl FnOnce() -> Result<Digest>,
) -> Result<Digest> {
    if let Some(expected) = commit.size_bytes.filter(|expected| *expected != size_bytes) {
        return Err(Error::SizeMismatch { expected, actual: size_bytes });
    }
    let Some(expected) = &commit.digest else {
        return Ok(actual);
    };
    let actual = if expected.algorithm() == actual.algorithm() { actual } else { rehash()? };
    if actual != *expected {
        return Err(Error::DigestMismatch { expected: expected.clone(), actual });
    }
    Ok(actual)
}
