use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crated_mount::{DetachFlags, LoopDevice, Mount, detach};
use tempfile::{NamedTempFile, TempDir};

use crate::direct;

/// A journalled ext4 of its own, on a loop device with direct I/O over an image all of whose
/// blocks have been written before.
///
/// Nothing is deleted on it: it is emptied by making it anew. Dropping it detaches everything and
/// removes the image; after a kill the mount has to be detached by hand, the rest follows.
#[derive(Debug)]
pub struct Volume {
    mounted: bool,
    next_directory: u64,
    device: LoopDevice,
    mount_point: TempDir,
    _image: NamedTempFile,
}

impl Volume {
    /// Makes one of `size_bytes` with its image in `directory`, and mounts it.
    ///
    /// # Errors
    ///
    /// What the disk, the loop device or the tools say.
    pub fn create(directory: &Path, size_bytes: u64) -> io::Result<Self> {
        let image = tempfile::Builder::new().prefix("crated-bench-").tempfile_in(directory)?;
        direct::write_zeroes(image.path(), size_bytes)?;
        let device = LoopDevice::attach(image.path(), false).map_err(io::Error::other)?;
        run(Command::new("losetup").arg("--direct-io=on").arg(device.path()))?;
        let mount_point = tempfile::Builder::new().prefix("crated-bench-").tempdir()?;
        let mut volume =
            Self { mounted: false, next_directory: 0, device, mount_point, _image: image };
        volume.format()?;
        Ok(volume)
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        self.mount_point.path()
    }

    /// A new empty directory of mode 0700.
    ///
    /// # Errors
    ///
    /// What the filesystem says.
    pub fn directory(&mut self) -> io::Result<PathBuf> {
        let path = self.path().join(self.next_directory.to_string());
        self.next_directory += 1;
        fs::DirBuilder::new().mode(0o700).create(&path)?;
        Ok(path)
    }

    /// Detaches and attaches it: everything is on the disk, nothing in the cache, and the memory
    /// the cache had is there to be taken again.
    ///
    /// # Errors
    ///
    /// `ResourceBusy` while something on it is open.
    pub fn remount(&mut self) -> io::Result<()> {
        self.unmount()?;
        self.mount()
    }

    /// [`remount`](Self::remount), and empties it first when half of its space or inodes are used.
    ///
    /// # Errors
    ///
    /// As [`remount`](Self::remount), and what mkfs says.
    pub fn refresh(&mut self) -> io::Result<()> {
        let stat = rustix::fs::statvfs(self.path())?;
        if stat.f_bavail * 2 < stat.f_blocks || stat.f_favail * 2 < stat.f_files {
            return self.format();
        }
        self.remount()
    }

    /// Makes the filesystem anew.
    ///
    /// # Errors
    ///
    /// As [`remount`](Self::remount), and what mkfs says.
    pub fn format(&mut self) -> io::Result<()> {
        self.unmount()?;
        let mut mkfs = Command::new("mkfs.ext4");
        // Nothing may be left for the kernel to do in the background, and blocks once written
        // stay allocated in the image.
        mkfs.args(["-q", "-F", "-O", "has_journal", "-i", "8192", "-m", "0"]);
        mkfs.args(["-E", "lazy_itable_init=0,lazy_journal_init=0,nodiscard"]);
        run(mkfs.arg(self.device.path()))?;
        self.next_directory = 0;
        self.mount()
    }

    /// Filesystem, journal and device in a line.
    pub(crate) fn describe(&self) -> String {
        let device = self.device.path().trim_start_matches("/dev/");
        let journal = if self.has_journal() { "with journal" } else { "WITHOUT journal" };
        let direct_io = match fs::read_to_string(format!("/sys/block/{device}/loop/dio")) {
            Ok(on) if on.trim() == "1" => "direct I/O",
            _ => "NO direct I/O",
        };
        format!("ext4 {journal} on a loop device, {direct_io}")
    }

    /// Whether the filesystem that is mounted now keeps a journal.
    fn has_journal(&self) -> bool {
        let prefix = format!("{}-", self.device.path().trim_start_matches("/dev/"));
        let Ok(journals) = fs::read_dir("/proc/fs/jbd2") else { return false };
        journals.flatten().any(|entry| entry.file_name().to_string_lossy().starts_with(&prefix))
    }

    fn mount(&mut self) -> io::Result<()> {
        let mount = Mount {
            kind: "ext4".to_owned(),
            source: self.device.path().to_owned(),
            ..Mount::default()
        };
        mount.attach(self.path()).map_err(io::Error::other)?;
        self.mounted = true;
        Ok(())
    }

    fn unmount(&mut self) -> io::Result<()> {
        if self.mounted {
            detach(self.path(), DetachFlags::NONE).map_err(io::Error::other)?;
            self.mounted = false;
        }
        Ok(())
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        if self.mounted {
            // Something may still be open after a panic; then it goes with its last user.
            let _ = detach(self.path(), DetachFlags::LAZY);
        }
    }
}

fn run(command: &mut Command) -> io::Result<()> {
    let output = command.stdin(Stdio::null()).output()?;
    if output.status.success() {
        return Ok(());
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    let program = command.get_program().to_string_lossy();
    Err(io::Error::other(format!("{program}: {}: {}", output.status, stderr.trim())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_has_a_journal_and_keeps_its_files_until_made_anew() {
        if !crate::can_run() {
            return;
        }
        let mut volume = Volume::create(&std::env::temp_dir(), 64 << 20).unwrap();
        let file = volume.directory().unwrap().join("file");
        fs::write(&file, "kept").unwrap();

        volume.remount().unwrap();
        assert_eq!(volume.describe(), "ext4 with journal on a loop device, direct I/O");
        assert_eq!(fs::read_to_string(&file).unwrap(), "kept");
        volume.format().unwrap();
        assert!(!file.exists());
    }

    #[test]
    fn a_volume_leaves_nothing_behind() {
        if !crate::can_run() {
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let volume = Volume::create(directory.path(), 64 << 20).unwrap();
        let mount_point = volume.path().to_owned();

        drop(volume);
        assert!(!mount_point.exists());
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }
}
