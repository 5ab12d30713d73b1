//! What was made in this boot: one small file for each pin.
//!
//! They need no sync: what they tell of does not survive a reboot either.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crated_netns::NetnsId;

use super::{Error, Result};

/// The directory of notes.
pub(super) struct Notes {
    dir: PathBuf,
}

/// What a note says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Note {
    /// A creation began.
    Begun,
    /// It was completed.
    Made(NetnsId),
}

impl Notes {
    pub(super) fn new(dir: PathBuf) -> Self {
        Self { dir }
    }

    pub(super) fn open(&self) -> Result<()> {
        fs::create_dir_all(&self.dir).map_err(|error| failed("create", &self.dir, &error))
    }

    pub(super) fn begin(&self, pin: &str) -> Result<()> {
        self.write(pin, b"")
    }

    pub(super) fn made(&self, pin: &str, id: &NetnsId) -> Result<()> {
        let text = serde_json::to_vec(id).unwrap_or_default();
        self.write(pin, &text)
    }

    pub(super) fn remove(&self, pin: &str) {
        let path = self.dir.join(pin);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(%error, path = %path.display(), "cannot remove a note");
            }
            _ => {}
        }
    }

    pub(super) fn is_begun(&self, pin: &str) -> bool {
        fs::metadata(self.dir.join(pin)).is_ok_and(|found| found.len() == 0)
    }

    /// All notes. One that was cut off while it was written tells of a creation that was, too.
    pub(super) fn all(&self) -> Result<BTreeMap<String, Note>> {
        let entries = match fs::read_dir(&self.dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
            entries => entries.map_err(|error| failed("read", &self.dir, &error))?,
        };
        let mut notes = BTreeMap::new();
        for entry in entries {
            let entry = entry.map_err(|error| failed("read", &self.dir, &error))?;
            let Ok(pin) = entry.file_name().into_string() else { continue };
            let text = fs::read(entry.path()).unwrap_or_default();
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

fn failed(step: &str, path: &Path, error: &io::Error) -> Error {
    Error::Precondition(format!("{step} {}: {error}", path.display()))
}
