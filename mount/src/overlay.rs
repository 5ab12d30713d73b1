//! Overlays: layers out of option strings, and how they reach the kernel.
//!
//! In the option strings a `:` separates layers, `::` starts data-only ones, and
//! a backslash takes the meaning from the character after it, as for mount(2).
//! Here layers are paths; each interface escapes them again as it needs.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use rustix::io::Errno;
use rustix::mount::{FsOpenFlags, fsconfig_set_flag, fsconfig_set_string, fsopen};

use crate::attach::{self, Context, STEP_CREATE, VALUE_MAX_BYTES};
use crate::options::{Datum, Options};
use crate::request::{Attached, Request};
use crate::staging::Staging;
use crate::target::{magic_path, open_reference};
use crate::{Backend, Error, Result, classic};

/// An overlay's directories, unescaped, and its other options.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Overlay {
    /// Nearest first.
    pub(crate) lowers: Vec<PathBuf>,
    /// Layers that only lend file contents.
    pub(crate) data_only: Vec<PathBuf>,
    pub(crate) upper: Option<PathBuf>,
    pub(crate) work: Option<PathBuf>,
    pub(crate) rest: Vec<Datum>,
}

impl Overlay {
    pub(crate) fn from_options(options: &Options) -> Result<Self> {
        let mut overlay = Self::default();
        for datum in &options.data {
            let value = datum.value.as_deref().unwrap_or_default();
            match datum.key.as_str() {
                "lowerdir" => (overlay.lowers, overlay.data_only) = split_lowers(value),
                "lowerdir+" => overlay.lowers.push(value.into()),
                "datadir+" => overlay.data_only.push(value.into()),
                "upperdir" => overlay.upper = Some(unescape(value)),
                "workdir" => overlay.work = Some(unescape(value)),
                _ => overlay.rest.push(datum.clone()),
            }
        }
        overlay.check()?;
        Ok(overlay)
    }

    fn check(&self) -> Result<()> {
        let count = self.lowers.len() + self.data_only.len();
        if self.lowers.is_empty() || count > LAYERS_MAX {
            let reason = format!("names {count} layers, not 1 to {LAYERS_MAX}");
            return Err(Error::invalid("option", "lowerdir", reason));
        }
        if self.upper.is_some() != self.work.is_some() {
            return Err(Error::invalid("option", "upperdir", "goes together with workdir"));
        }
        // A relative layer would depend on whoever calls.
        match self.paths().find(|path| !path.is_absolute()) {
            Some(path) => {
                let reason = "is not an absolute path";
                Err(Error::invalid("layer", path.to_string_lossy(), reason))
            }
            None => Ok(()),
        }
    }

    fn paths(&self) -> impl Iterator<Item = &PathBuf> {
        self.lowers.iter().chain(&self.data_only).chain(&self.upper).chain(&self.work)
    }
}

pub(crate) fn attach(
    request: &Request<'_>,
    overlay: &Overlay,
    backend: Backend,
) -> Result<Attached> {
    let one_by_one = backend == Backend::NewApi && takes_layers_one_by_one();
    let Some(map) = &request.options.id_map else {
        return if one_by_one {
            through_context(request, overlay, &[])
        } else {
            classic::overlay(request, overlay)
        };
    };
    if !map.maps_root() {
        let reason = "leaves out id 0, which owns the root of every image";
        return Err(Error::invalid("option", "uidmap", reason));
    }
    let clones = mapped_clones(request, overlay)?;
    if one_by_one {
        match through_context(request, overlay, &clones) {
            // Layers that are attached nowhere are welcome since Linux 6.15.
            Err(error) if refuses_detached_layers(&error) => {}
            answer => return answer,
        }
    }
    attach_staged(request, overlay, clones, one_by_one)
}

/// The lower layers, each as a detached id-mapped mount.
fn mapped_clones(request: &Request<'_>, overlay: &Overlay) -> Result<Vec<OwnedFd>> {
    let Some(map) = &request.options.id_map else {
        return Ok(Vec::new());
    };
    let namespace = map.user_namespace()?;
    let clone = |path: &PathBuf| {
        let tree = attach::open_clone(path.as_os_str(), false).map_err(|errno| {
            request.explained("clone layer", Some(shown("lowerdir", path)), Vec::new(), errno)
        })?;
        attach::map_ids(request, tree.as_fd(), false, namespace.as_fd())?;
        Ok(tree)
    };
    overlay.lowers.iter().chain(&overlay.data_only).map(clone).collect()
}

/// For kernels that take only attached layers: they are attached out of sight
/// until the overlay has its own copies.
fn attach_staged(
    request: &Request<'_>,
    overlay: &Overlay,
    clones: Vec<OwnedFd>,
    one_by_one: bool,
) -> Result<Attached> {
    let staging = Staging::attach(clones)?;
    let mut paths = staging.paths();
    let staged = Overlay {
        lowers: paths.by_ref().take(overlay.lowers.len()).collect(),
        data_only: paths.collect(),
        upper: overlay.upper.clone(),
        work: overlay.work.clone(),
        rest: overlay.rest.clone(),
    };
    let attached = if one_by_one {
        through_context(request, &staged, &[])?
    } else {
        classic::overlay(request, &staged)?
    };
    match staging.close() {
        Ok(()) => Ok(attached),
        Err(error) => Err(attached.take_back_after(error)),
    }
}

/// One `lowerdir+` per layer, so no layer count and no path meets a page limit.
/// With `mounts` given, these stand for the lower layers.
fn through_context(
    request: &Request<'_>,
    overlay: &Overlay,
    mounts: &[OwnedFd],
) -> Result<Attached> {
    let context = Context::open(request)?;
    if !request.mount.source.is_empty() && request.mount.source.len() <= VALUE_MAX_BYTES {
        context.string("source", &request.mount.source)?;
    }
    context.superblock_flags()?;
    let lowers = overlay.lowers.iter().map(|path| ("lowerdir+", path));
    let data_only = overlay.data_only.iter().map(|path| ("datadir+", path));
    let mut mounts = mounts.iter();
    // References must stay open until the filesystem is created.
    let mut references = Vec::new();
    for (key, path) in lowers.chain(data_only) {
        match mounts.next() {
            Some(mount) => context.descriptor(key, mount.as_fd()).map_err(|errno| {
                context.failed(STEP_DETACHED_LAYER, Some(shown(key, path)), errno)
            })?,
            None => references.extend(directory(&context, key, path)?),
        }
    }
    for (key, path) in [("upperdir", &overlay.upper), ("workdir", &overlay.work)] {
        if let Some(path) = path {
            references.extend(directory(&context, key, path)?);
        }
    }
    for datum in &overlay.rest {
        context.datum(datum)?;
    }
    context.finish()
}

/// Names a directory to the kernel: by path if it fits and no kernel could
/// take a character of it for an escape, else by descriptor.
fn directory(context: &Context<'_>, key: &str, path: &Path) -> Result<Option<OwnedFd>> {
    let failed = |errno| context.failed("set option", Some(shown(key, path)), errno);
    let plain = path.to_str().filter(|text| {
        let fits = text.len() <= VALUE_MAX_BYTES && !text.contains(['\\', ':', ',']);
        fits && !text.is_empty()
    });
    if let Some(text) = plain {
        context.string(key, text)?;
        return Ok(None);
    }
    let reference = open_reference(path).map_err(failed)?;
    match context.descriptor(key, reference.as_fd()) {
        Ok(()) => {}
        // Before Linux 6.13, and before 6.14 for descriptors that only refer.
        Err(Errno::INVAL | Errno::BADF) => {
            let text = magic_path(reference.as_fd());
            fsconfig_set_string(&context.fd, key, &text).map_err(failed)?;
        }
        Err(errno) => return Err(failed(errno)),
    }
    Ok(Some(reference))
}

fn refuses_detached_layers(error: &Error) -> bool {
    // Linux 6.13 takes the descriptor and refuses only when it clones the mount.
    let steps = [STEP_DETACHED_LAYER, STEP_CREATE];
    let Some(attempt) = error.attempt() else {
        return false;
    };
    steps.contains(&attempt.step) && matches!(error, Error::Refused(_))
}

/// Whether overlayfs knows `lowerdir+` (Linux 6.7). Before 6.5 it collected any
/// word unseen, which a word that cannot exist brings to light.
fn takes_layers_one_by_one() -> bool {
    static ANSWER: OnceLock<bool> = OnceLock::new();
    *ANSWER.get_or_init(|| {
        let Ok(context) = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC) else {
            // No overlayfs or no privilege: attaching will say which.
            return true;
        };
        let checks_words = fsconfig_set_flag(&context, "crated_probe").is_err();
        checks_words && fsconfig_set_string(&context, "lowerdir+", "/").is_ok()
    })
}

fn shown(key: &str, path: &Path) -> String {
    format!("{key}={}", path.display())
}

fn split_lowers(value: &str) -> (Vec<PathBuf>, Vec<PathBuf>) {
    let mut layers = (Vec::new(), Vec::new());
    let mut data_only = false;
    let mut rest = value;
    loop {
        let (layer, after) = match unescaped_colon(rest) {
            Some(at) => (&rest[..at], Some(&rest[at + 1..])),
            None => (rest, None),
        };
        let list = if data_only { &mut layers.1 } else { &mut layers.0 };
        list.push(unescape(layer));
        match after {
            None => return layers,
            Some(after) => {
                data_only |= after.starts_with(':');
                rest = after.strip_prefix(':').unwrap_or(after);
            }
        }
    }
}

fn unescaped_colon(text: &str) -> Option<usize> {
    let mut escaped = false;
    text.bytes().position(|byte| {
        let found = byte == b':' && !escaped;
        escaped = byte == b'\\' && !escaped;
        found
    })
}

fn unescape(text: &str) -> PathBuf {
    let mut characters = text.chars();
    let mut path = String::with_capacity(text.len());
    while let Some(character) = characters.next() {
        match character {
            '\\' => path.extend(characters.next()),
            other => path.push(other),
        }
    }
    path.into()
}

/// A path as it must be written inside `lowerdir=`, `upperdir=` or `workdir=`.
///
/// ```
/// let option = format!("lowerdir={}", crated_mount::escape_layer("/odd:name"));
/// assert_eq!(option, r"lowerdir=/odd\:name");
/// ```
pub fn escape_layer(path: &str) -> String {
    let mut escaped = String::with_capacity(path.len());
    for character in path.chars() {
        if matches!(character, '\\' | ':') {
            escaped.push('\\');
        }
        escaped.push(character);
    }
    escaped
}

const STEP_DETACHED_LAYER: &str = "set id-mapped layer";

/// overlayfs stacks this many (`OVL_MAX_STACK`).
pub const LAYERS_MAX: usize = 500;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn overlay(options: &[&str]) -> Result<Overlay> {
        Overlay::from_options(&Options::parse(options)?)
    }

    #[test]
    fn layers_are_split_at_plain_colons_only() {
        let parsed = overlay(&[r"lowerdir=/a\:b:/c,d:/e\\::/data:/more", "index=off"]).unwrap();

        assert_eq!(parsed.lowers, [Path::new("/a:b"), Path::new("/c,d"), Path::new("/e\\")]);
        assert_eq!(parsed.data_only, [Path::new("/data"), Path::new("/more")]);
        assert_eq!(parsed.rest.len(), 1);
    }

    #[test]
    fn what_cannot_be_an_overlay_is_refused() {
        let many = format!("lowerdir={}", vec!["/x"; LAYERS_MAX + 1].join(":"));
        for options in [
            &["index=off"][..],
            &["lowerdir="],
            &["lowerdir=relative"],
            &["lowerdir=/a", "upperdir=/b"],
            &["lowerdir=/a", "workdir=/b"],
            &[&many],
        ] {
            let error = overlay(options).unwrap_err();
            assert!(matches!(error, Error::InvalidArgument { .. }), "{error}");
        }
    }

    /// What Linux 5.19 to 6.14 need, run on whatever is here.
    #[test]
    #[allow(clippy::print_stderr, reason = "a skipped test says so")]
    fn id_mapped_layers_can_be_staged_for_either_interface() {
        if !rustix::process::geteuid().is_root() {
            assert!(std::env::var("CI").as_deref() != Ok("true"), "needs root");
            eprintln!("skipped: needs root");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        for name in ["near", "far", "target"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        let maps = ["uidmap=0:100000:10", "gidmap=0:100000:10"].map(str::to_owned);
        let [near, far, target] = ["near", "far", "target"].map(|name| dir.path().join(name));
        let lowerdir = format!("lowerdir={}:{}", near.display(), far.display());
        let mount = crate::Mount {
            kind: "overlay".to_owned(),
            options: maps.into_iter().chain([lowerdir]).collect(),
            ..crate::Mount::default()
        };
        for one_by_one in [takes_layers_one_by_one(), false] {
            let request = Request::new(&mount, &target).unwrap();
            let overlay = Overlay::from_options(&request.options).unwrap();
            let clones = mapped_clones(&request, &overlay).unwrap();

            let attached = attach_staged(&request, &overlay, clones, one_by_one).unwrap();

            let stat = rustix::fs::stat(&target).unwrap();
            attached.take_back().unwrap();
            assert_eq!((stat.st_uid, stat.st_gid), (100_000, 100_000));
        }
    }

    proptest! {
        #[test]
        fn escaped_layers_come_back(
            lowers in proptest::collection::vec("/[a:\\\\, b]{0,8}", 1..6),
        ) {
            let escaped: Vec<_> = lowers.iter().map(|path| escape_layer(path)).collect();
            let option = format!("lowerdir={}", escaped.join(":"));
            let paths: Vec<_> = lowers.iter().map(PathBuf::from).collect();
            prop_assert_eq!(overlay(&[&option]).unwrap().lowers, paths);
        }
    }
}
