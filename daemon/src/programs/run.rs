use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::MemfdFlags;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};

/// What a program may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// From its start to its end.
    pub time: Duration,
    /// Bytes kept of what it prints, on each of its two outputs; the rest is read and dropped.
    pub output_bytes: usize,
}

/// What became of a program that ended by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// Exit code, 128 and the signal for one that was killed.
    pub code: i32,
    /// The beginning of what it printed.
    pub stdout: Vec<u8>,
    /// The beginning of what it complained about.
    pub stderr: Vec<u8>,
}

/// Why there is no [`Output`].
#[allow(missing_docs, reason = "each variant's doc covers its fields")]
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Failure {
    /// It did not end in time and was killed.
    #[error("{}: did not end in {limit:?}", program.display())]
    Late { program: PathBuf, limit: Duration },
    /// The operating system refused a step.
    #[error("{}: {step}", program.display())]
    Io { program: PathBuf, step: &'static str, source: io::Error },
}

/// Runs `command` with `input` on its standard input to its end.
///
/// Blocks. What the program leaves running behind it is not waited for.
///
/// # Errors
///
/// [`Failure`]; how the program ended is no error.
pub fn run(command: &mut Command, input: &[u8], limits: Limits) -> Result<Output, Failure> {
    let program = PathBuf::from(command.get_program());
    let failed = |step| {
        let program = program.clone();
        move |source| Failure::Io { program, step, source }
    };
    let stdin = sealed(input).map_err(failed("pass input"))?;
    command.process_group(0).stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut running = Running(command.spawn().map_err(failed("start"))?);
    match collect(&mut running.0, limits) {
        Ok(Some(output)) => Ok(output),
        Ok(None) => Err(Failure::Late { program, limit: limits.time }),
        Err(source) => Err(failed("watch")(source)),
    }
}

/// A file in memory that reads as `bytes` from its start: unlike a pipe it needs nobody to fill it.
pub(super) fn sealed(bytes: &[u8]) -> io::Result<OwnedFd> {
    let fd = rustix::fs::memfd_create("input", MemfdFlags::CLOEXEC)?;
    let mut file = std::fs::File::from(fd);
    file.write_all(bytes)?;
    file.rewind()?;
    Ok(file.into())
}

/// A child that does not outlive its handle.
#[derive(Debug)]
pub(super) struct Running(pub(super) Child);

impl Running {
    /// Waits for the end, which is near: its output has ended.
    pub(super) fn ended(mut self, limit: Duration) -> io::Result<Option<ExitStatus>> {
        let deadline = Instant::now() + limit;
        let pidfd = pidfd(&self.0)?;
        wait_for(&mut [PollFd::new(&pidfd, PollFlags::IN)], deadline)?;
        self.0.try_wait()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if matches!(self.0.try_wait(), Ok(Some(_))) {
            return;
        }
        if let Some(group) = Pid::from_raw(self.0.id().cast_signed()) {
            // Not reaped yet, so the group is nobody else's.
            let _ = kill_process_group(group, Signal::KILL);
        }
        let _ = self.0.wait();
    }
}

/// The exit code of a shell: that of the program, or 128 and the signal.
pub(super) fn code(status: ExitStatus) -> i32 {
    use std::os::unix::process::ExitStatusExt;
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default())
}

/// Reads both outputs until the program has ended; `None` when it does not.
fn collect(child: &mut Child, limits: Limits) -> io::Result<Option<Output>> {
    let deadline = Instant::now() + limits.time;
    let pidfd = pidfd(child)?;
    let (mut out, mut err) = (child.stdout.take(), child.stderr.take());
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    loop {
        let mut fds = vec![PollFd::new(&pidfd, PollFlags::IN)];
        fds.extend(out.iter().map(|out| PollFd::new(out, PollFlags::IN)));
        fds.extend(err.iter().map(|err| PollFd::new(err, PollFlags::IN)));
        if !wait_for(&mut fds, deadline)? {
            return Ok(None);
        }
        let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        drop(fds);
        let mut ready = ready.into_iter();
        let ended = ready.next().unwrap_or_default();
        // A program that ended may have left its outputs to something that has not.
        let idle = !ready.next().unwrap_or_default() & !ready.next().unwrap_or_default();
        drain(&mut out, &mut stdout, limits.output_bytes)?;
        drain(&mut err, &mut stderr, limits.output_bytes)?;
        if ended && (idle || (out.is_none() && err.is_none())) {
            let code = code(child.wait()?);
            return Ok(Some(Output { code, stdout, stderr }));
        }
    }
}

/// Reads once what is there, if anything; the pipe is gone at its end.
fn drain<P: Read + AsFd>(pipe: &mut Option<P>, kept: &mut Vec<u8>, max: usize) -> io::Result<()> {
    let Some(open) = pipe else { return Ok(()) };
    let mut fds = [PollFd::new(open, PollFlags::IN)];
    if !wait_for(&mut fds, Instant::now())? {
        return Ok(());
    }
    let mut buffer = [0; 4096];
    let read = open.read(&mut buffer)?;
    kept.extend_from_slice(&buffer[..read.min(max - kept.len().min(max))]);
    if read == 0 {
        *pipe = None;
    }
    Ok(())
}

/// Waits until something can be read, or `deadline`; `false` for the latter.
pub(super) fn wait_for(fds: &mut [PollFd<'_>], deadline: Instant) -> io::Result<bool> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).map_err(io::Error::other)?;
        match poll(fds, Some(&left)) {
            Ok(0) => return Ok(false),
            Ok(_) => return Ok(true),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn pidfd(child: &Child) -> io::Result<OwnedFd> {
    let pid = Pid::from_raw(child.id().cast_signed()).ok_or(io::ErrorKind::NotFound)?;
    Ok(pidfd_open(pid, PidfdFlags::empty())?)
}

/// The file name of a program, for messages.
pub(super) fn name(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { time: Duration::from_secs(60), output_bytes: 100 };

    fn shell(script: &str) -> Command {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn a_program_gets_its_input_and_both_outputs_are_kept() {
        let output = run(&mut shell("cat; echo no >&2; exit 3"), b"hello", LIMITS).unwrap();
        assert_eq!(output.code, 3);
        assert_eq!((&output.stdout[..], &output.stderr[..]), (&b"hello"[..], &b"no\n"[..]));
    }

    #[test]
    fn output_beyond_the_limit_is_dropped_and_the_program_still_ends() {
        let output = run(&mut shell("head -c 300000 /dev/zero"), b"", LIMITS).unwrap();
        assert_eq!((output.code, output.stdout.len()), (0, 100));
    }

    #[test]
    fn a_program_that_does_not_end_is_killed_with_what_it_started() {
        let limits = Limits { time: Duration::from_millis(200), ..LIMITS };
        let failure = run(&mut shell("sleep 1000 & sleep 1000"), b"", limits).unwrap_err();
        assert!(matches!(failure, Failure::Late { .. }), "{failure}");
    }

    #[test]
    fn what_a_program_leaves_behind_is_not_waited_for() {
        let output = run(&mut shell("sleep 300 & echo $!"), b"", LIMITS).unwrap();
        assert_eq!(output.code, 0);
        let left: i32 = String::from_utf8(output.stdout).unwrap().trim().parse().unwrap();
        rustix::process::kill_process(Pid::from_raw(left).unwrap(), Signal::KILL).unwrap();
    }

    #[test]
    fn a_missing_program_is_named() {
        let failure = run(&mut Command::new("/nowhere/tool"), b"", LIMITS).unwrap_err();
        assert_eq!(failure.to_string(), "/nowhere/tool: start");
    }
}
