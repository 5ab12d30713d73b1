//! `fuse.<program>` and `fuse3.<program>`: mounts made by a helper program.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::io::Errno;

use crate::request::{Attached, Request};
use crate::target::open_reference;
use crate::{Error, Result};

pub(crate) fn is_fuse(kind: &str) -> bool {
    kind.starts_with("fuse.") || kind.starts_with("fuse3.")
}

/// Runs `mount.fuse` or `mount.fuse3`, which starts the program and returns
/// once it serves.
pub(crate) fn attach(request: &Request<'_>) -> Result<Attached> {
    let kind = request.mount.kind.as_str();
    let name = if kind.starts_with("fuse3.") { "mount.fuse3" } else { "mount.fuse" };
    let Some(helper) = find(name) else {
        let why = format!("{name} is not installed");
        return Err(request.unsupported("find helper", &why, Errno::NOENT));
    };
    let target = request
        .target
        .real_path()
        .map_err(|cause| Error::io("read link of", &request.target.path, cause))?;
    let mut command = Command::new(helper);
    command.arg(&request.mount.source).arg(&target);
    let private = &request.options.private;
    for option in request.options.to_strings().iter().filter(|option| !private.contains(option)) {
        command.arg("-o").arg(option);
    }
    command.arg("-t").arg(kind);
    run(request, command)?;
    let root =
        open_reference(&target).map_err(|errno| request.failed("open what was mounted", errno))?;
    Ok(Attached::new(root, &request.target))
}

fn run(request: &Request<'_>, mut command: Command) -> Result<()> {
    // A file rather than a pipe: the filesystem's program inherits it and would
    // keep a pipe open for as long as it serves.
    let (read, write) = unlinked_file(request)?;
    command.env_clear().env("PATH", SEARCH_PATH);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(write);
    let failed = |cause| Error::io("run mount helper for", &request.target.path, cause);
    let mut child = command.spawn().map_err(failed)?;
    let status = wait(&mut child).map_err(failed)?;
    if status.is_some_and(|status| status.success()) {
        return Ok(());
    }
    let mut text = Vec::new();
    let _ = read.take(STDERR_MAX_BYTES).read_to_end(&mut text);
    let mut log = vec![match status {
        Some(status) => format!("helper ended with {status}"),
        None => format!("helper did not end within {} s", DEADLINE.as_secs()),
    }];
    log.extend(String::from_utf8_lossy(&text).lines().map(str::to_owned));
    Err(request.explained("run helper", None, log, Errno::IO))
}

/// The exit status, or `None` after the deadline, with the helper ended.
fn wait(child: &mut Child) -> io::Result<Option<std::process::ExitStatus>> {
    let deadline = Instant::now() + DEADLINE;
    let mut pause = Duration::from_millis(1);
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() >= deadline {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

fn unlinked_file(request: &Request<'_>) -> Result<(File, File)> {
    use rustix::fs::{MemfdFlags, memfd_create};
    use std::io::{Seek, SeekFrom};
    let failed = |cause: io::Error| Error::io("keep output for", &request.target.path, cause);
    let read = File::from(
        memfd_create("mount-helper", MemfdFlags::CLOEXEC).map_err(|errno| failed(errno.into()))?,
    );
    // Opened anew, so that reading has an offset of its own.
    let path = crate::target::magic_path(std::os::fd::AsFd::as_fd(&read));
    let write = File::options().append(true).open(path).map_err(failed)?;
    let mut read = read;
    read.seek(SeekFrom::Start(0)).map_err(failed)?;
    Ok((read, write))
}

fn find(name: &str) -> Option<PathBuf> {
    let dirs = SEARCH_PATH.split(':').map(|dir| Path::new(dir).join(name));
    dirs.into_iter().find(|path| path.is_file())
}

/// Never the caller's PATH: the helper runs with every privilege.
const SEARCH_PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";

/// A filesystem that needs longer to serve is stuck.
const DEADLINE: Duration = Duration::from_secs(30);

const STDERR_MAX_BYTES: u64 = 4096;
