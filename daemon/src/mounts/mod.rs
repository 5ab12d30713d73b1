//! Mounts that the kernel cannot do as they are described: the daemon prepares or performs them.
//!
//! A type is a base type behind any of the words `format/`, `mkfs/` and `mkdir/`:
//!
//! ```text
//! erofs                 /layers/2.erofs                          mounted by the daemon
//! erofs                 /layers/1.erofs                          mounted by the daemon
//! format/mkdir/overlay  lowerdir={{ overlay 0 1 }}               filled in, left to the caller
//!                       X-containerd.mkdir.path=/root/upper
//! ```
//!
//! # On disk
//!
//! ```text
//! <state>/io.containerd.mount-manager.v1.bolt/t/<number>/
//!     <n>       where mount n of the list is mounted, or a link to its device
//!     <n>-type  its type
//!     info      what was activated, written last: without it the rest is taken apart at start
//! ```
//!
//! The directory is as short-lived as mounts are. A mount point is only ever removed with rmdir:
//! what could not be detached is not deleted either.

mod plan;
mod prepare;
mod template;

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use crated_api::types::{ActivationInfo, ActiveMount};
use crated_mount::{LoopDevice, Mount};
use prost::Message;

use self::plan::{EROFS, LOOP, Plan, Step};
use self::template::Earlier;
use crate::services::convert;

/// The result of working on mounts.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why mounts were not activated or deactivated.
#[allow(missing_docs, reason = "each variant's doc covers its fields")]
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Nothing in the list needs the daemon: mount it yourself.
    #[error("mounts {name:?}: nothing to activate")]
    Plain { name: String },
    /// An activation of this name is there.
    #[error("mounts {name:?}")]
    AlreadyExists { name: String },
    /// No activation of this name.
    #[error("mounts {name:?}")]
    NotFound { name: String },
    /// The list can never be activated.
    #[error("mounts: {reason}")]
    InvalidArgument { reason: String },
    /// A program failed at what.
    #[error("{what}: {complaint}")]
    Failed { what: String, complaint: String },
    /// The kernel refused a mount.
    #[error("mount {index} of {name:?}")]
    Mount { index: usize, name: String, source: crated_mount::Error },
    /// The operating system refused `op` on `path`.
    #[error("{op} {}", path.display())]
    Io { op: &'static str, path: PathBuf, source: io::Error },
}

impl Error {
    fn invalid(reason: impl Into<String>) -> Self {
        Self::InvalidArgument { reason: reason.into() }
    }

    fn io(op: &'static str, path: &Path) -> impl Fn(io::Error) -> Self + use<> {
        let path = path.to_path_buf();
        move |source| Self::Io { op, path: path.clone(), source }
    }
}

/// What to activate.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Activate {
    /// Under which name, of the caller's choice.
    pub name: String,
    /// The mounts, in order.
    pub mounts: Vec<Mount>,
    /// Labels to remember.
    pub labels: BTreeMap<String, String>,
    /// Mount all of them, and leave one bind mount to the caller.
    pub temporary: bool,
}

/// Keeps activations.
pub struct MountManager {
    directory: PathBuf,
    /// Where directories and images may be made.
    roots: Vec<PathBuf>,
    activations: Mutex<Activations>,
}

#[derive(Default)]
struct Activations {
    last: u64,
    /// By namespace and name; `None` while it is being made.
    known: BTreeMap<(String, String), Option<Activation>>,
}

struct Activation {
    info: ActivationInfo,
    directory: PathBuf,
    /// Freed by the kernel once nothing uses them.
    _devices: Vec<LoopDevice>,
}

impl MountManager {
    /// Opens `directory`, and takes apart what an earlier daemon did not finish or a reboot left.
    ///
    /// # Errors
    ///
    /// [`Error::Io`].
    pub fn open(directory: &Path, roots: Vec<PathBuf>) -> Result<Self> {
        let directory = directory.join("t");
        fs::create_dir_all(&directory).map_err(Error::io("create", &directory))?;
        let mut activations = Activations::default();
        let entries = fs::read_dir(&directory).map_err(Error::io("read", &directory))?;
        for entry in entries {
            let path = entry.map_err(Error::io("read", &directory))?.path();
            let number = path.file_name().and_then(|name| name.to_str()?.parse::<u64>().ok());
            let Some(number) = number else { continue };
            activations.last = activations.last.max(number);
            match recorded(&path) {
                Some((namespace, info)) => {
                    let key = (namespace, info.name.clone());
                    let activation = Activation { info, directory: path, _devices: Vec::new() };
                    activations.known.insert(key, Some(activation));
                }
                None => {
                    if let Err(error) = take_apart(&path) {
                        tracing::warn!(%error, "an unfinished activation stays");
                    }
                }
            }
        }
        Ok(Self { directory, roots, activations: Mutex::new(activations) })
    }

    /// Prepares and mounts what the daemon has to. On failure nothing stays mounted.
    ///
    /// # Errors
    ///
    /// [`Error::Plain`] when the caller can mount the list alone, which is the usual case;
    /// [`Error::AlreadyExists`]; others when a step fails.
    pub fn activate(&self, namespace: &str, wish: Activate) -> Result<ActivationInfo> {
        let Activate { name, mounts, labels, temporary } = wish;
        if name.is_empty() || name.len() > NAME_LEN_MAX {
            return Err(Error::invalid(format!("name is not 1 to {NAME_LEN_MAX} bytes long")));
        }
        let key = (namespace.to_owned(), name.clone());
        if self.lock().known.contains_key(&key) {
            return Err(Error::AlreadyExists { name });
        }
        let Some(plan) = Plan::new(mounts, temporary)? else { return Err(Error::Plain { name }) };
        let number = {
            let mut activations = self.lock();
            if activations.known.contains_key(&key) {
                return Err(Error::AlreadyExists { name });
            }
            activations.known.insert(key.clone(), None);
            activations.last += 1;
            activations.last
        };
        let directory = self.directory.join(number.to_string());
        let made = self.make(namespace, &directory, &name, labels, plan, temporary);
        let mut activations = self.lock();
        match made {
            Ok(activation) => {
                let info = activation.info.clone();
                activations.known.insert(key, Some(activation));
                Ok(info)
            }
            Err(error) => {
                if let Err(left) = take_apart(&directory) {
                    tracing::warn!(error = %left, "a failed activation stays");
                }
                activations.known.remove(&key);
                Err(error)
            }
        }
    }

    /// Detaches what was mounted under this name, last first.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`]; what cannot be detached stays activated.
    pub fn deactivate(&self, namespace: &str, name: &str) -> Result<()> {
        let key = (namespace.to_owned(), name.to_owned());
        let missing = || Error::NotFound { name: name.to_owned() };
        // Nobody else finds it meanwhile.
        let activation = match self.lock().known.get_mut(&key) {
            Some(slot) => slot.take().ok_or_else(missing)?,
            None => return Err(missing()),
        };
        let detached = take_apart(&activation.directory);
        let mut activations = self.lock();
        match detached {
            Ok(()) => drop(activations.known.remove(&key)),
            Err(_) => drop(activations.known.insert(key, Some(activation))),
        }
        detached
    }

    /// The activation of this name.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`].
    pub fn info(&self, namespace: &str, name: &str) -> Result<ActivationInfo> {
        let key = (namespace.to_owned(), name.to_owned());
        let activations = self.lock();
        let known = activations.known.get(&key).and_then(Option::as_ref);
        known
            .map(|activation| activation.info.clone())
            .ok_or_else(|| Error::NotFound { name: name.to_owned() })
    }

    /// The activations of a namespace, in name order.
    pub fn list(&self, namespace: &str) -> Vec<ActivationInfo> {
        let activations = self.lock();
        let known = activations.known.iter().filter(|((within, _), _)| within == namespace);
        known.filter_map(|(_, known)| known.as_ref().map(|known| known.info.clone())).collect()
    }

    fn make(
        &self,
        namespace: &str,
        directory: &Path,
        name: &str,
        labels: BTreeMap<String, String>,
        plan: Plan,
        temporary: bool,
    ) -> Result<Activation> {
        fs::create_dir(directory).map_err(Error::io("create", directory))?;
        let mut done = Done { steps: &plan.steps, active: Vec::new(), devices: Vec::new() };
        let mut system = Vec::new();
        for (index, step) in plan.steps.iter().enumerate() {
            let mount = self.prepared(step, &done)?;
            if index < plan.active {
                let place = directory.join(index.to_string());
                done.perform(name, index, mount, &place)?;
            } else {
                system.push(convert::mount(mount));
            }
        }
        if let (true, Some(last)) = (temporary, done.active.last()) {
            system = vec![convert::mount(Mount {
                kind: "bind".into(),
                source: last.mount_point.clone(),
                target: String::new(),
                options: vec!["rbind".into()],
            })];
        }
        let info = ActivationInfo { name: name.to_owned(), active: done.active, system, labels };
        record(directory, namespace, &info)?;
        let directory = directory.to_path_buf();
        Ok(Activation { info, directory, _devices: done.devices })
    }

    /// The mount with templates filled in, and what it needs made.
    fn prepared(&self, step: &Step, done: &Done<'_>) -> Result<Mount> {
        let mut mount = step.mount.clone();
        if step.format {
            mount.source = template::fill(&mount.source, done)?;
            mount.target = template::fill(&mount.target, done)?;
            for option in &mut mount.options {
                *option = template::fill(option, done)?;
            }
        }
        if step.mkdir {
            prepare::directories(&mount, &self.roots)?;
        }
        if step.mkfs {
            prepare::filesystem(&mount, &self.roots)?;
        }
        mount.options.retain(|option| !option.starts_with("X-containerd."));
        Ok(mount)
    }

    fn lock(&self) -> MutexGuard<'_, Activations> {
        self.activations.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The part of a list that is mounted already.
struct Done<'p> {
    steps: &'p [Step],
    active: Vec<ActiveMount>,
    devices: Vec<LoopDevice>,
}

impl Done<'_> {
    fn perform(&mut self, name: &str, index: usize, mut mount: Mount, place: &Path) -> Result<()> {
        let kind = place.with_file_name(format!("{index}-type"));
        fs::write(&kind, &mount.kind).map_err(Error::io("write", &kind))?;
        let refused = |source| Error::Mount { index, name: name.to_owned(), source };
        if mount.kind == LOOP {
            let read_only = mount.options.iter().any(|option| option == "ro");
            let device =
                LoopDevice::attach(Path::new(&mount.source), read_only).map_err(refused)?;
            std::os::unix::fs::symlink(device.path(), place).map_err(Error::io("link", place))?;
            self.devices.push(device);
        } else {
            fs::create_dir(place).map_err(Error::io("create", place))?;
            let in_file = Path::new(&mount.source).is_file();
            if mount.kind == EROFS && in_file && !mount.options.iter().any(|o| o == "loop") {
                mount.options.push("loop".to_owned());
            }
            mount.attach(place).map_err(refused)?;
        }
        self.active.push(ActiveMount {
            mount: Some(convert::mount(mount)),
            mounted_at: Some(convert::timestamp(SystemTime::now())),
            mount_point: place.display().to_string(),
            data: BTreeMap::new(),
        });
        Ok(())
    }
}

impl Earlier for Done<'_> {
    fn mount(&self, index: usize) -> Option<String> {
        self.active.get(index).map(|active| active.mount_point.clone())
    }

    fn source(&self, index: usize) -> Option<String> {
        self.steps.get(index).map(|step| step.mount.source.clone())
    }

    fn target(&self, index: usize) -> Option<String> {
        self.steps.get(index).map(|step| step.mount.target.clone())
    }
}

/// What is kept of an activation.
#[derive(Clone, PartialEq, prost::Message)]
struct Recorded {
    #[prost(string, tag = "1")]
    namespace: String,
    #[prost(message, optional, tag = "2")]
    info: Option<ActivationInfo>,
}

fn record(directory: &Path, namespace: &str, info: &ActivationInfo) -> Result<()> {
    let recorded = Recorded { namespace: namespace.to_owned(), info: Some(info.clone()) };
    let (path, draft) = (directory.join("info"), directory.join("info.new"));
    let mut file = fs::File::create(&draft).map_err(Error::io("create", &draft))?;
    file.write_all(&recorded.encode_to_vec()).map_err(Error::io("write", &draft))?;
    fs::rename(&draft, &path).map_err(Error::io("rename", &path))
}

/// What `directory` records, if it is complete and everything is still mounted.
fn recorded(directory: &Path) -> Option<(String, ActivationInfo)> {
    let bytes = fs::read(directory.join("info")).ok()?;
    let Recorded { namespace, info } = Recorded::decode(bytes.as_slice()).ok()?;
    let info = info?;
    let text = fs::read("/proc/self/mountinfo").ok()?;
    let mounted = crated_mount::mountinfo::parse(&text).ok()?;
    let there = |active: &ActiveMount| {
        let place = Path::new(&active.mount_point);
        // A device that the last daemon held alone went with it.
        mounted.iter().any(|mount| mount.mount_point == place)
    };
    info.active.iter().all(there).then_some((namespace, info))
}

/// Detaches everything in `directory`, last first, and removes it.
fn take_apart(directory: &Path) -> Result<()> {
    // Before the mounts, so that a stop in between does not leave a record of what is gone.
    for name in ["info", "info.new"] {
        remove(&directory.join(name))?;
    }
    for index in (0..MOUNTS_MAX).rev() {
        let place = directory.join(index.to_string());
        let kind = directory.join(format!("{index}-type"));
        let Ok(found) = fs::symlink_metadata(&place) else {
            remove(&kind)?;
            continue;
        };
        if found.is_symlink() {
            remove(&place)?;
        } else {
            crated_mount::detach_all(&place).map_err(|source| Error::Mount {
                index,
                name: place.display().to_string(),
                source,
            })?;
            fs::remove_dir(&place).map_err(Error::io("remove", &place))?;
        }
        remove(&kind)?;
    }
    match fs::remove_dir(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::io("remove", directory)(error))
        }
        _ => Ok(()),
    }
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::io("remove", path)(error))
        }
        _ => Ok(()),
    }
}

/// Mounts in one list: layers of an image and a little more.
const MOUNTS_MAX: usize = 512;

/// Longest name in bytes; clients use ids and keys.
const NAME_LEN_MAX: usize = 4096;
