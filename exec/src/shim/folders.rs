//! The files around a shim.

use std::{
    fs,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, symlink},
    path::{Path, PathBuf},
};

use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};

use super::{Address, ShimConfig};
use crate::{Bundle, Error, Result, remove::remove_tree};

/// The folders of one container.
#[derive(Clone, Debug)]
pub(super) struct Folders {
    pub(super) bundle: PathBuf,
    pub(super) work: PathBuf,
}

/// A shim's log that is being copied, until this is dropped: it keeps a descriptor.
#[derive(Debug)]
#[must_use]
pub(super) struct Following(tokio::task::AbortHandle);

impl Drop for Following {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Folders {
    pub(super) fn new(config: &ShimConfig, namespace: &str, id: &str) -> Self {
        Folders {
            bundle: config.state_dir.join(namespace).join(id),
            work: config.root_dir.join(namespace).join(id),
        }
    }

    /// Makes both; on failure neither is left.
    pub(super) fn create(&self, spec: &[u8], binary: &Path) -> Result<Bundle> {
        for folder in [&self.bundle, &self.work] {
            if let Some(parent) = folder.parent() {
                make_dir(parent)?;
            }
        }
        let bundle = Bundle::create(&self.bundle, spec)?;
        self.fill(binary).inspect_err(|_| {
            // The first failure is the one to tell.
            let _ = self.remove();
        })?;
        Ok(bundle)
    }

    fn fill(&self, binary: &Path) -> Result<()> {
        // What an earlier container of this id left is of no use to this one.
        remove_tree(&self.work)?;
        make_dir(&self.work)?;
        let link = self.bundle.join("work");
        symlink(&self.work, &link).map_err(|e| Error::io("link", link, e))?;
        let log = self.bundle.join("log");
        let mode = rustix::fs::Mode::from_raw_mode(0o700);
        rustix::fs::mknodat(rustix::fs::CWD, &log, rustix::fs::FileType::Fifo, mode, 0)
            .map_err(|e| Error::io("make fifo", &log, e))?;
        self.write("shim-binary-path", binary.as_os_str().as_encoded_bytes())
    }

    /// Keeps where the shim listens, for the next daemon of any version.
    pub(super) fn write_address(&self, address: &Address) -> Result<()> {
        let json = serde_json::to_vec(address).map_err(|e| Error::Internal(e.to_string()))?;
        self.write("bootstrap.json", &json)?;
        self.write("address", address.address.as_bytes())
    }

    pub(super) fn read_address(&self) -> Result<Address> {
        let bytes = match self.read("bootstrap.json") {
            Ok(bytes) => bytes,
            Err(_) => self.read("address")?,
        };
        Address::parse(&bytes)
    }

    /// Leaves word for whoever looks at the bundle; memory and log have it too.
    pub(super) fn note_leftover(&self, leftover: &super::Leftover) {
        let json = serde_json::json!({
            "version": 1,
            "step": leftover.step.as_str(),
            "blocker": leftover.blocker,
            "attempts": leftover.attempts,
        });
        if self.bundle.is_dir() {
            // A disk that takes no note is told of by the removal itself.
            let _ = self.write("leftover.json", json.to_string().as_bytes());
        }
    }

    pub(super) fn read_binary(&self) -> Result<PathBuf> {
        let bytes = self.read("shim-binary-path")?;
        let text = String::from_utf8(bytes).map_err(|e| Error::Unknown(e.to_string()))?;
        Ok(text.trim().into())
    }

    /// Unmounts and removes both.
    pub(super) fn remove(&self) -> Result<()> {
        // Also when it is gone: its hidden half may be left of an earlier removal.
        let bundle = Bundle::named(&self.bundle).remove();
        bundle.and(remove_tree(&self.work))
    }

    /// Copies the shim's log lines to ours until the answer is dropped. Both ends of the
    /// FIFO are held, so that a shim never blocks on it or loses it.
    pub(super) fn follow_log(&self, namespace: &str, id: &str) -> Following {
        let path = self.bundle.join("log");
        let log = tokio::net::unix::pipe::OpenOptions::new().read_write(true).open_receiver(path);
        let (namespace, task) = (namespace.to_owned(), id.to_owned());
        let following = tokio::spawn(async move {
            let Ok(log) = log else { return };
            let mut log = BufReader::new(log);
            let mut line = Vec::new();
            loop {
                line.clear();
                match (&mut log).take(LINE_MAX_BYTES).read_until(b'\n', &mut line).await {
                    Ok(0) | Err(_) => return,
                    Ok(_) => {
                        let line = String::from_utf8_lossy(&line);
                        tracing::info!(namespace, task, shim = line.trim_end(), "shim");
                    }
                }
            }
        });
        Following(following.abort_handle())
    }

    fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        use std::io::Write;
        let path = self.bundle.join(name);
        let mut options = fs::OpenOptions::new();
        let file = options.write(true).create(true).truncate(true).mode(0o644).open(&path);
        file.and_then(|mut file| file.write_all(bytes)).map_err(|e| Error::io("write", path, e))
    }

    fn read(&self, name: &str) -> Result<Vec<u8>> {
        use std::io::Read;
        let path = self.bundle.join(name);
        let mut bytes = Vec::new();
        let file = fs::File::open(&path).map_err(|e| Error::io("open", &path, e))?;
        file.take(FILE_MAX_BYTES)
            .read_to_end(&mut bytes)
            .map_err(|e| Error::io("read", &path, e))?;
        Ok(bytes)
    }
}

pub(super) fn make_dir(path: &Path) -> Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o711)
        .create(path)
        .map_err(|e| Error::io("create", path, e))
}

/// Addresses and paths are shorter.
const FILE_MAX_BYTES: u64 = 64 << 10;

/// A longer line of a log is split.
const LINE_MAX_BYTES: u64 = 16 << 10;
