//! Block devices backed by files.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::thread;
use std::time::Duration;

use rustix::io::Errno;

use crate::{Error, Result, sys};

/// A loop device that the kernel frees with its last user.
///
/// Keep the value until the filesystem on the device is mounted; from then on
/// the mount keeps the device, and it is gone when that is detached.
#[derive(Debug)]
pub struct LoopDevice {
    path: String,
    _open: File,
}

impl LoopDevice {
    /// Binds `file`, or a block device, to a free loop device.
    ///
    /// # Errors
    ///
    /// - [`Error::Io`] naming the file, the device or `/dev/loop-control`. With
    ///   ENODEV or ENOENT there, the kernel or the container has no loop devices.
    pub fn attach(file: &Path, read_only: bool) -> Result<Self> {
        let backing = open(file, !read_only)
            .map_err(|cause| Error::io("open loop backing file", file, cause))?;
        let control_path = Path::new("/dev/loop-control");
        let control = open(control_path, true)
            .map_err(|cause| Error::io("open loop control", control_path, cause))?;
        for _ in 0..RACES_MAX {
            let number = sys::loop_find_free(&control)
                .map_err(|errno| Error::io("find a free loop device for", file, errno))?;
            let path = format!("/dev/loop{number}");
            let device = open_new(Path::new(&path), !read_only)
                .map_err(|cause| Error::io("open loop device", Path::new(&path), cause))?;
            let name = file.as_os_str().as_bytes();
            match sys::loop_configure(&device, &backing, read_only, name) {
                Ok(()) => {
                    return Ok(Self { path, _open: device });
                }
                // Somebody else was faster, or is still letting go of it.
                Err(Errno::BUSY | Errno::AGAIN) => thread::sleep(RACE_PAUSE),
                Err(errno) => return Err(Error::io("configure loop device for", file, errno)),
            }
        }
        Err(Error::io("win a free loop device for", file, Errno::BUSY))
    }

    /// The device node.
    pub fn path(&self) -> &str {
        &self.path
    }
}

fn open(path: &Path, write: bool) -> io::Result<File> {
    OpenOptions::new().read(true).write(write).open(path)
}

/// A device number can be younger than its node.
fn open_new(path: &Path, write: bool) -> io::Result<File> {
    for _ in 0..NODE_WAITS_MAX {
        match open(path, write) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => thread::sleep(NODE_PAUSE),
            answer => return answer,
        }
    }
    open(path, write)
}

/// Everybody on the host takes from the same list, so losing is normal.
const RACES_MAX: usize = 100;
const RACE_PAUSE: Duration = Duration::from_millis(2);

/// devtmpfs needs microseconds, udev milliseconds; after 100 ms nobody will.
const NODE_WAITS_MAX: usize = 20;
const NODE_PAUSE: Duration = Duration::from_millis(5);
