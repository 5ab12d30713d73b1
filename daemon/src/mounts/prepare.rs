//! What has to be there before a mount: directories and filesystems in files.

use std::fs::{self, OpenOptions};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Component, Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crated_mount::Mount;
use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::process::{Gid, Uid};

use super::{Error, Result};
use crate::programs::{self, Limits};

/// The value of option `name`, and whether it is there.
fn option<'m>(mount: &'m Mount, name: &str) -> Option<&'m str> {
    let matching = |option: &'m String| option.strip_prefix(name)?.strip_prefix('=');
    mount.options.iter().find_map(matching)
}

/// Makes the image at the source of `mount` unless it is there.
pub(super) fn filesystem(mount: &Mount, roots: &[PathBuf]) -> Result<()> {
    let path = Path::new(&mount.source);
    allowed(path, roots)?;
    if path.exists() {
        return Ok(());
    }
    let size = option(mount, "X-containerd.mkfs.size")
        .and_then(bytes)
        .ok_or_else(|| Error::invalid("mkfs: X-containerd.mkfs.size is missing or no size"))?;
    let kind = option(mount, "X-containerd.mkfs.fs").unwrap_or("ext4");
    if !["ext4", "ext3", "ext2", "xfs"].contains(&kind) {
        return Err(Error::invalid(format!("mkfs: unknown filesystem {kind:?}")));
    }
    let mut draft = path.as_os_str().to_owned();
    draft.push(".new");
    let draft = PathBuf::from(draft);
    let failed = |op| Error::io(op, &draft);
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .custom_flags(rustix::fs::OFlags::NOFOLLOW.bits().cast_signed())
        .open(&draft)
        .map_err(failed("create"))?;
    file.set_len(size).map_err(failed("size"))?;
    let mut command = Command::new(format!("mkfs.{kind}"));
    command.arg("-q");
    if kind != "xfs" {
        command.arg("-F");
    }
    if let Some(uuid) = option(mount, "X-containerd.mkfs.uuid") {
        if !uuid.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-') {
            return Err(Error::invalid(format!("mkfs: {uuid:?} is no uuid")));
        }
        match kind {
            "xfs" => command.args(["-m", &format!("uuid={uuid}")]),
            _ => command.args(["-U", uuid]),
        };
    }
    command.arg(&draft);
    let made = programs::run(&mut command, b"", MKFS_LIMITS);
    let outcome = match made {
        Ok(output) if output.code == 0 => {
            file.sync_all().map_err(failed("sync"))?;
            fs::rename(&draft, path).map_err(failed("rename"))
        }
        Ok(output) => {
            let complaint = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            Err(Error::Failed { what: format!("mkfs.{kind} {}", path.display()), complaint })
        }
        Err(failure) => {
            let complaint = crate::error::chain(&failure);
            Err(Error::Failed { what: format!("mkfs.{kind} {}", path.display()), complaint })
        }
    };
    if outcome.is_err() {
        // The first failure is the one to tell.
        let _ = fs::remove_file(&draft);
    }
    outcome
}

/// Makes the directories that the options of `mount` name.
pub(super) fn directories(mount: &Mount, roots: &[PathBuf]) -> Result<()> {
    let named = mount.options.iter();
    let named = named.filter_map(|option| option.strip_prefix("X-containerd.mkdir.path="));
    named.into_iter().try_for_each(|wish| directory(wish, roots))
}

/// `<path>[:mode[:uid:gid]]`.
fn directory(wish: &str, roots: &[PathBuf]) -> Result<()> {
    let invalid = || Error::invalid(format!("mkdir: {wish:?} is not path[:mode[:uid:gid]]"));
    let parts: Vec<&str> = wish.split(':').collect();
    let octal = |text: &str| u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o7777);
    let (path, mode, owner) = match parts[..] {
        [path] => (path, 0o700, None),
        [path, mode] => (path, octal(mode).ok_or_else(invalid)?, None),
        [path, mode, uid, gid] => {
            let id = |text: &str| text.parse::<u32>().ok().filter(|id| *id != u32::MAX);
            let owner = (id(uid).ok_or_else(invalid)?, id(gid).ok_or_else(invalid)?);
            (path, octal(mode).ok_or_else(invalid)?, Some(owner))
        }
        _ => return Err(invalid()),
    };
    let path = Path::new(path);
    let (root, below) = allowed(path, roots)?;
    let failed = |op| Error::io(op, path);
    let flags = OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::RDONLY;
    let mut at: OwnedFd = rustix::fs::open(root, flags, Mode::empty())
        .map_err(|error| failed("open")(error.into()))?;
    for name in below.components() {
        let name = Path::new(name.as_os_str());
        let made = match rustix::fs::mkdirat(&at, name, Mode::from_raw_mode(mode)) {
            Ok(()) => true,
            Err(rustix::io::Errno::EXIST) => false,
            Err(error) => return Err(failed("make")(error.into())),
        };
        // Neither a link nor a mount of somebody else's leads out of the root.
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        at = rustix::fs::openat2(&at, name, flags, Mode::empty(), resolve)
            .map_err(|error| failed("open")(error.into()))?;
        if made {
            rustix::fs::fchmod(&at, Mode::from_raw_mode(mode))
                .map_err(|error| failed("set mode of")(error.into()))?;
            if let Some((uid, gid)) = owner {
                rustix::fs::fchown(&at, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))
                    .map_err(|error| failed("set owner of")(error.into()))?;
            }
        }
    }
    Ok(())
}

/// The root that `path` lies in, and what of it lies below.
fn allowed<'p>(path: &'p Path, roots: &'p [PathBuf]) -> Result<(&'p Path, &'p Path)> {
    let plain = |component| matches!(component, Component::Normal(_) | Component::RootDir);
    let below = |root: &'p PathBuf| Some((root.as_path(), path.strip_prefix(root).ok()?));
    let found = roots.iter().find_map(below).filter(|_| path.components().all(plain));
    let outside =
        || Error::invalid(format!("{} is not within the daemon's directories", path.display()));
    found.ok_or_else(outside)
}

/// A size in bytes, or with a unit: `64MiB`, `1G`. Units are powers of 1024.
fn bytes(text: &str) -> Option<u64> {
    let text = text.trim();
    let end = text.bytes().position(|byte| !byte.is_ascii_digit()).unwrap_or(text.len());
    let number: u64 = text[..end].parse().ok()?;
    let unit = text[end..].trim().to_ascii_lowercase();
    let power = match unit.trim_end_matches('b').trim_end_matches('i') {
        "" => 0,
        "k" => 1,
        "m" => 2,
        "g" => 3,
        "t" => 4,
        _ => return None,
    };
    number.checked_mul(1024_u64.checked_pow(power)?).filter(|size| *size > 0)
}

/// Making an empty filesystem writes little, whatever its size.
const MKFS_LIMITS: Limits = Limits { time: Duration::from_secs(120), output_bytes: 4096 };

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    use super::*;

    #[test]
    fn sizes_have_units() {
        for (text, size) in [("512", 512), ("1K", 1024), ("16MiB", 16 << 20), ("2 gb", 2 << 30)] {
            assert_eq!(bytes(text), Some(size), "{text}");
        }
        for text in ["", "0", "-1", "1x", "99999999999T", "M"] {
            assert_eq!(bytes(text), None, "{text}");
        }
    }

    #[test]
    fn directories_are_made_within_the_roots_only() {
        let temp = tempfile::tempdir().unwrap();
        let roots = [temp.path().to_path_buf()];
        let wish = |path: &str, rest: &str| format!("{}/{path}{rest}", temp.path().display());
        directory(&wish("a/b", ":0750"), &roots).unwrap();
        let made = fs::metadata(temp.path().join("a/b")).unwrap();
        assert_eq!(made.permissions().mode() & 0o7777, 0o750);
        assert_eq!(made.uid(), rustix::process::geteuid().as_raw());
        directory(&wish("a/b", ""), &roots).expect("it is there already");

        symlink("/tmp", temp.path().join("link")).unwrap();
        for outside in [wish("link/x", ""), wish("../x", ""), "/etc/x".into(), "x".into()] {
            assert!(directory(&outside, &roots).is_err(), "{outside}");
        }
        for malformed in [wish("c", ":9"), wish("c", ":700:1"), wish("c", ":700:1:-2")] {
            assert!(directory(&malformed, &roots).is_err(), "{malformed}");
        }
        assert!(!temp.path().join("c").exists());
    }
}
