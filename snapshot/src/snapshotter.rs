//! The [`Snapshotter`] trait and the plain data it speaks.

use std::borrow::Borrow;
use std::collections::BTreeMap;
use std::fmt;
use std::ops::ControlFlow;
use std::str::FromStr;
use std::time::SystemTime;

use crated_mount::Mount;

use crate::error::{Error, Result};

/// Keeps filesystems as chains of committed layers with writable tips.
///
/// ```text
///            prepare(key, parent)                    commit(name, key)
///   (none) ───────────────────────► ACTIVE key ─────────────────────────► COMMITTED name
///      │                               │ remove(key)                          │ remove(name), once
///      │     view(key, parent)         ▼                                      ▼ it has no children
///      └───────────────────────► VIEW key ── remove(key) ──► (none)         (none)
/// ```
///
/// Keys of active snapshots and views and names of committed ones share one
/// space. Parents are always committed. Only labels of a committed snapshot
/// ever change.
///
/// Every method blocks and may be called from many threads at once. Each is
/// one transaction: after a failure or a crash it has happened or it has not.
/// A power cut may take back a commit that is not [settled](Self::settle).
pub trait Snapshotter: Send + Sync {
    /// What is known about the snapshot of this key or name.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`].
    fn stat(&self, key: &str) -> Result<Info>;

    /// Changes labels, and returns the result.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`].
    fn update(&self, key: &str, labels: &LabelUpdate) -> Result<Info>;

    /// What this layer alone occupies, without its parents.
    ///
    /// Computed by walking for an active snapshot, remembered for a committed
    /// one, zero for a view.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`].
    fn usage(&self, key: &str) -> Result<Usage>;

    /// The mounts of an active snapshot or a view.
    ///
    /// Equal to what [`prepare`](Self::prepare) or [`view`](Self::view)
    /// answered, also after a restart.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`]; [`Error::FailedPrecondition`] for a committed one.
    fn mounts(&self, key: &Key) -> Result<Vec<Mount>>;

    /// Makes a writable snapshot on top of `parent`, or an empty one.
    ///
    /// The caller owns the result and ends it with [`commit`](Self::commit)
    /// or [`remove`](Self::remove).
    ///
    /// # Errors
    ///
    /// [`Error::AlreadyExists`] when the key is taken, [`Error::NotFound`]
    /// when the parent is missing, [`Error::InvalidArgument`] when the parent
    /// is not committed.
    fn prepare(&self, key: &Key, parent: Option<&Name>, labels: &Labels) -> Result<Vec<Mount>>;

    /// Makes a read-only snapshot of `parent`, or an empty one.
    ///
    /// # Errors
    ///
    /// Those of [`prepare`](Self::prepare).
    fn view(&self, key: &Key, parent: Option<&Name>, labels: &Labels) -> Result<Vec<Mount>>;

    /// Turns an active snapshot into a committed one; the key disappears.
    ///
    /// The labels are those of the options alone. Unmount first: what is
    /// written later would change a layer which others may build on.
    ///
    /// # Errors
    ///
    /// [`Error::AlreadyExists`] when the name is taken, [`Error::NotFound`]
    /// when the key is missing, [`Error::FailedPrecondition`] when it is not
    /// active, [`Error::InvalidArgument`] when the options name a parent other
    /// than the one it has.
    fn commit(&self, name: &Name, key: &Key, options: &CommitOptions) -> Result<()>;

    /// Forgets a snapshot. Its space may come back only with
    /// [`cleanup`](Self::cleanup).
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`]; [`Error::FailedPrecondition`] while others build
    /// on it.
    fn remove(&self, key: &str) -> Result<()>;

    /// Calls `visit` with every snapshot, in no order to rely on, until it
    /// breaks. Snapshots made or removed meanwhile may be missed.
    ///
    /// # Errors
    ///
    /// Only those of the storage underneath.
    fn walk(&self, visit: &mut dyn FnMut(Info) -> ControlFlow<()>) -> Result<()>;

    /// Gives back the space of removed snapshots and of interrupted work.
    ///
    /// # Errors
    ///
    /// Those of the storage underneath, after everything else was tried.
    fn cleanup(&self) -> Result<()>;

    /// Makes every snapshot committed so far survive a power cut.
    ///
    /// Call it once per image, before a record elsewhere says that the image
    /// is there. Nothing to do for implementors whose commits are durable.
    ///
    /// # Errors
    ///
    /// Those of the storage underneath; nothing is known then.
    fn settle(&self) -> Result<()> {
        Ok(())
    }

    /// Keys and names of snapshots that were there before a power cut and
    /// cannot be trusted after it. They are gone, with all that stood on them,
    /// and answer [`Error::NotFound`]; the list helps those who keep records
    /// of their own. Making one again takes it off the list.
    ///
    /// # Errors
    ///
    /// Only those of the storage underneath.
    fn lost(&self) -> Result<Vec<String>> {
        Ok(Vec::new())
    }

    /// Takes `keys` off the list of what was [lost](Self::lost).
    ///
    /// # Errors
    ///
    /// Only those of the storage underneath.
    fn forget_lost(&self, _keys: &[String]) -> Result<()> {
        Ok(())
    }
}

/// The key of an active snapshot or a view: an opaque, non-empty string.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(String);

/// The name of a committed snapshot: an opaque, non-empty string.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(String);

/// What a snapshot is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Read-only and temporary.
    View,
    /// Writable.
    Active,
    /// Finished; a parent for others.
    Committed,
}

/// Labels of a snapshot.
pub type Labels = BTreeMap<String, String>;

/// A change of labels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LabelUpdate {
    /// These and no others.
    Replace(Labels),
    /// Sets those with a value, removes those without, keeps the rest.
    Merge(BTreeMap<String, Option<String>>),
}

/// What is known about one snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Info {
    /// Its key or name.
    pub name: String,
    /// The committed snapshot it builds on.
    pub parent: Option<Name>,
    /// What it is.
    pub kind: Kind,
    /// Its labels.
    pub labels: Labels,
    /// When it was prepared, or committed.
    pub created_at: SystemTime,
    /// When its labels were last changed.
    pub updated_at: SystemTime,
}

/// What one layer occupies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Allocated bytes; holes do not count, hard links count once.
    pub size_bytes: u64,
    /// Files, directories and all else that has an inode.
    pub inodes: u64,
}

/// How to commit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CommitOptions {
    /// The labels of the committed snapshot.
    pub labels: Labels,
    /// Puts a snapshot prepared without a parent on top of this one.
    pub parent: Option<Name>,
}

/// Longest key or name in bytes. Callers prefix theirs with a namespace and a
/// number; four kilobytes leave room and still fit one database page.
pub const KEY_LENGTH_MAX: usize = 4096;

impl Key {
    /// Checks that `key` is not empty and no longer than [`KEY_LENGTH_MAX`].
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`].
    pub fn new(key: impl Into<String>) -> Result<Self> {
        checked("key", key.into()).map(Self)
    }

    /// The key as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Name {
    /// Checks that `name` is not empty and no longer than [`KEY_LENGTH_MAX`].
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`].
    pub fn new(name: impl Into<String>) -> Result<Self> {
        checked("name", name.into()).map(Self)
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Kind {
    /// The lower-case word used in filters.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::View => "view",
            Self::Active => "active",
            Self::Committed => "committed",
        }
    }
}

impl LabelUpdate {
    /// The labels that result from `current`.
    pub fn apply(&self, current: &Labels) -> Labels {
        match self {
            Self::Replace(labels) => labels.clone(),
            Self::Merge(changes) => {
                let mut labels = current.clone();
                for (key, value) in changes {
                    match value {
                        Some(value) => labels.insert(key.clone(), value.clone()),
                        None => labels.remove(key),
                    };
                }
                labels
            }
        }
    }
}

impl std::ops::AddAssign for Usage {
    fn add_assign(&mut self, other: Self) {
        self.size_bytes += other.size_bytes;
        self.inodes += other.inodes;
    }
}

fn checked(what: &'static str, text: String) -> Result<String> {
    if text.is_empty() {
        return Err(Error::invalid(what, "empty"));
    }
    if text.len() > KEY_LENGTH_MAX {
        let reason = format!("{} bytes long, at most {KEY_LENGTH_MAX} are allowed", text.len());
        return Err(Error::invalid(what, reason));
    }
    Ok(text)
}

macro_rules! opaque_string {
    ($type:ident) => {
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl FromStr for $type {
            type Err = Error;

            fn from_str(text: &str) -> Result<Self> {
                Self::new(text)
            }
        }

        impl TryFrom<&str> for $type {
            type Error = Error;

            fn try_from(text: &str) -> Result<Self> {
                Self::new(text)
            }
        }

        impl TryFrom<String> for $type {
            type Error = Error;

            fn try_from(text: String) -> Result<Self> {
                Self::new(text)
            }
        }

        impl From<$type> for String {
            fn from(value: $type) -> Self {
                value.0
            }
        }

        impl AsRef<str> for $type {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl Borrow<str> for $type {
            fn borrow(&self) -> &str {
                &self.0
            }
        }
    };
}

opaque_string!(Key);
opaque_string!(Name);

/// Implements [`Snapshotter`] by the field `inner`, with `$mounts` applied to
/// the mounts it answers.
macro_rules! forward_to_inner {
    ($type:ty, $mounts:path) => {
        impl $crate::Snapshotter for $type {
            fn stat(&self, key: &str) -> $crate::Result<$crate::Info> {
                self.inner.stat(key)
            }

            fn update(
                &self,
                key: &str,
                labels: &$crate::LabelUpdate,
            ) -> $crate::Result<$crate::Info> {
                self.inner.update(key, labels)
            }

            fn usage(&self, key: &str) -> $crate::Result<$crate::Usage> {
                self.inner.usage(key)
            }

            fn mounts(&self, key: &$crate::Key) -> $crate::Result<Vec<$crate::Mount>> {
                self.inner.mounts(key).map($mounts)
            }

            fn prepare(
                &self,
                key: &$crate::Key,
                parent: Option<&$crate::Name>,
                labels: &$crate::Labels,
            ) -> $crate::Result<Vec<$crate::Mount>> {
                self.inner.prepare(key, parent, labels).map($mounts)
            }

            fn view(
                &self,
                key: &$crate::Key,
                parent: Option<&$crate::Name>,
                labels: &$crate::Labels,
            ) -> $crate::Result<Vec<$crate::Mount>> {
                self.inner.view(key, parent, labels).map($mounts)
            }

            fn commit(
                &self,
                name: &$crate::Name,
                key: &$crate::Key,
                options: &$crate::CommitOptions,
            ) -> $crate::Result<()> {
                self.inner.commit(name, key, options)
            }

            fn remove(&self, key: &str) -> $crate::Result<()> {
                self.inner.remove(key)
            }

            fn walk(
                &self,
                visit: &mut dyn FnMut($crate::Info) -> std::ops::ControlFlow<()>,
            ) -> $crate::Result<()> {
                self.inner.walk(visit)
            }

            fn cleanup(&self) -> $crate::Result<()> {
                self.inner.cleanup()
            }

            fn settle(&self) -> $crate::Result<()> {
                self.inner.settle()
            }

            fn lost(&self) -> $crate::Result<Vec<String>> {
                self.inner.lost()
            }

            fn forget_lost(&self, keys: &[String]) -> $crate::Result<()> {
                self.inner.forget_lost(keys)
            }
        }
    };
}
pub(crate) use forward_to_inner;
