//! What was made in this boot, and what was about to be: one small file for each pin, and for each
//! link of the host while it is being made.
//!
//! ```text
//! <state>/network/PIN           empty while a creation is under way; who it is when it is recorded
//! <state>/network/.links/NAME   empty; there while a link of that name is made and recorded
//! ```
//!
//! Only what an empty file names is ever removed by a start. They need no sync: what they tell of
//! does not survive a reboot either.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crated_netns::{IfName, NetnsId};
use serde::{Deserialize, Serialize};

use super::{Error, Result, names};
use crate::metadata::{Namespace, NetnsRecord};

/// The directory of notes.
pub(super) struct Notes {
    dir: PathBuf,
}

/// What a note says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Note {
    /// A creation began, and was not completed and recorded.
    Begun,
    /// It was.
    Made(Made),
}

/// A namespace that was made and recorded. With it, a record that was lost is proved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Made {
    #[serde(flatten)]
    pub(super) identity: NetnsId,
    /// Whose it is, and what it is called there. Older notes have the name of their pin alone.
    #[serde(default)]
    namespace: String,
    #[serde(default)]
    id: String,
}

impl Made {
    pub(super) fn new(namespace: &Namespace, record: &NetnsRecord, identity: NetnsId) -> Self {
        Self { identity, namespace: namespace.to_string(), id: record.id.clone() }
    }

    /// Where the record of the pin with this note belongs, when that can be told.
    pub(super) fn owner(&self, pin: &str) -> Option<(Namespace, String)> {
        let noted = || Some((self.namespace.parse().ok()?, self.id.clone()));
        names::owner(pin).or_else(noted)
    }
}

impl Notes {
    pub(super) fn new(dir: PathBuf) -> Self {
        Self { dir }
    }

    pub(super) fn open(&self) -> Result<()> {
        let links = self.links_dir();
        fs::create_dir_all(&links).map_err(|error| failed("create", &links, &error))
    }

    pub(super) fn begin(&self, pin: &str) -> Result<()> {
        self.write(pin, b"")
    }

    pub(super) fn made(&self, pin: &str, made: &Made) -> Result<()> {
        let text = serde_json::to_vec(made).unwrap_or_default();
        self.write(pin, &text)
    }

    pub(super) fn remove(&self, pin: &str) {
        remove(&self.dir.join(pin));
    }

    pub(super) fn begin_link(&self, name: &str) -> Result<()> {
        let path = self.links_dir().join(name);
        fs::write(&path, b"").map_err(|error| failed("write", &path, &error))
    }

    pub(super) fn end_link(&self, name: &str) {
        remove(&self.links_dir().join(name));
    }

    /// Links of the host that were being made.
    pub(super) fn begun_links(&self) -> Result<BTreeSet<IfName>> {
        let names = entries(&self.links_dir())?.into_iter();
        Ok(names.filter_map(|(name, _)| name.parse().ok()).collect())
    }

    fn links_dir(&self) -> PathBuf {
        // No pin has a name with a dot in front.
        self.dir.join(".links")
    }

    pub(super) fn is_begun(&self, pin: &str) -> bool {
        fs::metadata(self.dir.join(pin)).is_ok_and(|found| found.len() == 0)
    }

    /// All notes. One that was cut off while it was written tells of a creation that was, too.
    pub(super) fn all(&self) -> Result<BTreeMap<String, Note>> {
        let mut notes = BTreeMap::new();
        for (pin, path) in entries(&self.dir)? {
            if pin.starts_with('.') {
                continue;
            }
            let text = fs::read(path).unwrap_or_default();
            let note = serde_json::from_slice(&text).map_or(Note::Begun, Note::Made);
            notes.insert(pin, note);
        }
        Ok(notes)
    }

    fn write(&self, pin: &str, text: &[u8]) -> Result<()> {
        let path = self.dir.join(pin);
        fs::write(&path, text).map_err(|error| failed("write", &path, &error))
    }
}

/// Names and paths in a directory, which need not be there.
fn entries(dir: &Path) -> Result<Vec<(String, PathBuf)>> {
    let found = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        found => found.map_err(|error| failed("read", dir, &error))?,
    };
    let mut entries = Vec::new();
    for entry in found {
        let entry = entry.map_err(|error| failed("read", dir, &error))?;
        if let Ok(name) = entry.file_name().into_string() {
            entries.push((name, entry.path()));
        }
    }
    Ok(entries)
}

fn remove(path: &Path) {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(%error, path = %path.display(), "cannot remove a note");
        }
        _ => {}
    }
}

fn failed(step: &str, path: &Path, error: &io::Error) -> Error {
    Error::Precondition(format!("{step} {}: {error}", path.display()))
}
