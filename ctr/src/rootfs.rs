//! Files of a root file system that is described by mounts but not mounted: names in an
//! image's configuration are looked up in its own `/etc/passwd` and `/etc/group`.
//!
//! The branches of an overlay are searched from the upper one down, each beneath its own
//! directory fd, so that no link in an image leads to a file of the host.

use std::fs::File;
use std::io::Read;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};

use oci_spec::runtime::{User, UserBuilder};
use rustix::fs::{Mode, OFlags, ResolveFlags};

use crate::error::{Error, Result};

/// The largest account file that is read; larger ones are refused rather than cut.
const ACCOUNT_FILE_BYTES_MAX: u64 = 10 << 20;

/// The branches of a root file system, topmost first.
#[derive(Debug, Default)]
pub(crate) struct Rootfs {
    branches: Vec<String>,
}

impl Rootfs {
    /// Reads the branches off one mount: its source for a bind, its directories for an overlay.
    pub(crate) fn of_mount(kind: &str, source: &str, options: &[String]) -> Self {
        if kind != "overlay" {
            return Self { branches: vec![source.to_owned()] };
        }
        let value = |key: &str| options.iter().find_map(|option| option.strip_prefix(key));
        let upper = value("upperdir=").map(str::to_owned);
        let lower = value("lowerdir=").into_iter().flat_map(|dirs| dirs.split(':'));
        Self { branches: upper.into_iter().chain(lower.map(str::to_owned)).collect() }
    }

    /// Resolves `user`, `uid`, `user:group` or any mixture, as an image's configuration has it.
    ///
    /// # Errors
    ///
    /// [`Error::Refused`] when a name is not in the account files or a number does not fit.
    pub(crate) fn user(&self, wish: &str) -> Result<User> {
        let (user, group) = match wish.split_once(':') {
            Some((user, group)) => (user, Some(group)),
            None => (wish, None),
        };
        let accounts = self.read("etc/passwd")?.unwrap_or_default();
        let account = accounts.lines().map(fields).find(|line| {
            line.first() == Some(&user) || (is_number(user) && line.get(2) == Some(&user))
        });
        let (uid, primary) = match (&account, is_number(user)) {
            (_, true) => (number("user", user)?, account.as_ref().and_then(|line| line.get(3))),
            (Some(line), false) => (number("user", line.get(2).unwrap_or(&""))?, line.get(3)),
            (None, false) => return Err(Error::Refused(format!("no user {user:?} in the image"))),
        };
        let groups = self.read("etc/group")?.unwrap_or_default();
        let gid = match group {
            Some(group) if is_number(group) => number("group", group)?,
            Some(group) => groups
                .lines()
                .map(fields)
                .find(|line| line.first() == Some(&group))
                .ok_or_else(|| Error::Refused(format!("no group {group:?} in the image")))
                .and_then(|line| number("group", line.get(2).unwrap_or(&"")))?,
            None => primary.map_or(Ok(0), |gid| number("group", gid))?,
        };
        let name = account.as_ref().and_then(|line| line.first()).copied().unwrap_or(user);
        let member = |line: &Vec<&str>| {
            line.get(3).is_some_and(|members| members.split(',').any(|member| member == name))
        };
        let additional: Vec<u32> = groups
            .lines()
            .map(fields)
            .filter(member)
            .filter_map(|line| line.get(2)?.parse().ok())
            .filter(|other| *other != gid)
            .collect();
        UserBuilder::default()
            .uid(uid)
            .gid(gid)
            .additional_gids(std::iter::once(gid).chain(additional).collect::<Vec<_>>())
            .build()
            .map_err(Error::malformed(format!("user {wish:?}")))
    }

    /// The text of a regular file, from the topmost branch that has it.
    fn read(&self, path: &str) -> Result<Option<String>> {
        for branch in &self.branches {
            let Some(file) = open_beneath(branch, path)? else {
                continue;
            };
            let about = file.metadata().map_err(Error::io("read", path))?;
            if about.file_type().is_char_device() && about.rdev() == 0 {
                return Ok(None); // removed by an upper layer
            }
            if !about.is_file() || about.len() > ACCOUNT_FILE_BYTES_MAX {
                return Err(Error::Refused(format!("/{path} of the image is no account file")));
            }
            let mut text = String::new();
            // Through the descriptor that was checked, not by name again.
            let checked = format!("/proc/self/fd/{}", file.as_raw_fd());
            File::open(checked)
                .map_err(Error::io("open", path))?
                .take(ACCOUNT_FILE_BYTES_MAX)
                .read_to_string(&mut text)
                .map_err(Error::io("read", path))?;
            return Ok(Some(text));
        }
        Ok(None)
    }
}

/// Opens for inspection only, following nothing out of the branch.
fn open_beneath(branch: &str, path: &str) -> Result<Option<File>> {
    let root = match File::open(branch) {
        Ok(root) => root,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io("open", branch)(error)),
    };
    let how = OFlags::PATH | OFlags::CLOEXEC;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    match rustix::fs::openat2(&root, path, how, Mode::empty(), resolve) {
        Ok(fd) => Ok(Some(File::from(fd))),
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => Ok(None),
        Err(rustix::io::Errno::LOOP) => {
            Err(Error::Refused(format!("/{path} of the image is a loop of links")))
        }
        Err(error) => Err(Error::io("open", format!("{branch}/{path}"))(error.into())),
    }
}

fn fields(line: &str) -> Vec<&str> {
    line.split(':').collect()
}

/// Whether a word is meant as a number. A sign makes it a number that does not fit.
fn is_number(word: &str) -> bool {
    let digits = word.strip_prefix(['-', '+']).unwrap_or(word);
    !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit())
}

/// Numbers beyond what the kernel maps are refused: they must never wrap to root.
fn number(what: &str, word: &str) -> Result<u32> {
    match word.parse::<u32>() {
        Ok(id) if i32::try_from(id).is_ok() => Ok(id),
        _ => Err(Error::Refused(format!("{what} id {word:?} is out of range"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rootfs() -> (tempfile::TempDir, Rootfs) {
        let folder = tempfile::tempdir().unwrap();
        let etc = folder.path().join("lower/etc");
        std::fs::create_dir_all(&etc).unwrap();
        std::fs::create_dir_all(folder.path().join("upper")).unwrap();
        std::fs::write(etc.join("passwd"), "root:x:0:0::/:\nalice:x:1000:50:::\n").unwrap();
        std::fs::write(etc.join("group"), "root:x:0:\nstaff:x:50:\nwheel:x:10:alice\n").unwrap();
        let options = [
            format!("upperdir={}/upper", folder.path().display()),
            format!("lowerdir={}/lower", folder.path().display()),
        ];
        let rootfs = Rootfs::of_mount("overlay", "overlay", &options);
        (folder, rootfs)
    }

    #[test]
    fn names_are_looked_up_in_the_images_own_files() {
        let (_folder, rootfs) = rootfs();
        let user = rootfs.user("alice").unwrap();
        assert_eq!((user.uid(), user.gid()), (1000, 50));
        assert_eq!(user.additional_gids().clone().unwrap(), [50, 10]);
        assert_eq!(rootfs.user("alice:wheel").unwrap().gid(), 10);
        assert_eq!(rootfs.user("7:8").unwrap().uid(), 7);
    }

    #[test]
    fn numbers_that_would_wrap_are_refused() {
        let (_folder, rootfs) = rootfs();
        for wish in ["-1", "2147483648", "4294967296", "0x0", "nobody", "1:-1"] {
            assert!(rootfs.user(wish).is_err(), "{wish}");
        }
    }

    #[test]
    fn a_link_out_of_the_image_is_not_followed() {
        let (folder, rootfs) = rootfs();
        std::fs::create_dir_all(folder.path().join("upper/etc")).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", folder.path().join("upper/etc/passwd")).unwrap();
        // Within the image the link points at itself, so nothing is found there.
        assert!(rootfs.user("daemon").is_err());
    }

    #[test]
    fn account_files_that_are_no_files_or_too_large_are_refused() {
        let (folder, rootfs) = rootfs();
        let passwd = folder.path().join("upper/etc/passwd");
        std::fs::create_dir_all(passwd.parent().unwrap()).unwrap();
        let mode = Mode::from(0o600);
        rustix::fs::mkfifoat(rustix::fs::CWD, &passwd, mode).unwrap();
        assert!(rootfs.user("alice").is_err(), "a pipe");
        std::fs::remove_file(&passwd).unwrap();
        std::fs::create_dir(&passwd).unwrap();
        assert!(rootfs.user("alice").is_err(), "a directory");
        std::fs::remove_dir(&passwd).unwrap();
        File::create(&passwd).unwrap().set_len(4 << 30).unwrap();
        assert!(rootfs.user("alice").is_err(), "4 GiB of nothing");
    }

    #[test]
    fn broken_lines_hide_no_account() {
        let (folder, rootfs) = rootfs();
        let passwd = folder.path().join("upper/etc/passwd");
        std::fs::create_dir_all(passwd.parent().unwrap()).unwrap();
        let mut text = ":::::::::\n\nshort\n".repeat(50_000);
        text.push_str("12:x:5:5:::\nlast:x:77:78:::");
        std::fs::write(&passwd, text).unwrap();
        let last = rootfs.user("last").unwrap();
        assert_eq!((last.uid(), last.gid()), (77, 78));
        // Digits are a number, whatever an account is called.
        assert_eq!(rootfs.user("12").unwrap().uid(), 12);
        for digits in ["\u{ff11}", "36893488147419103232", "+0x1"] {
            assert!(rootfs.user(digits).is_err(), "{digits}");
        }
    }
}
