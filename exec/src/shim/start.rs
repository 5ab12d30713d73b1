use std::{
    ffi::OsString,
    fs,
    io::Write,
    os::fd::OwnedFd,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use prost::Message;
use prost_types::Any;
use rustix::pipe::{PipeFlags, pipe_with};

use super::{Address, ShimConfig};
use crate::{
    Error, Result,
    io::watch_read,
    proto::{self, bootstrap::BootstrapParams, bootstrap::Extension, runc, types::RuntimeInfo},
};

/// What a run of a shim binary printed.
struct Printed {
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    success: bool,
}

/// Runs shim binaries; they must end soon, unlike the shims they start.
#[derive(Clone, Debug)]
pub(super) struct Binary<'a> {
    pub(super) config: &'a ShimConfig,
    pub(super) path: &'a Path,
    pub(super) namespace: &'a str,
    pub(super) id: &'a str,
}

impl Binary<'_> {
    /// Starts a shim for the bundle and tells where it listens.
    pub(super) async fn start(&self, bundle: &Path, options: Option<&Any>) -> Result<Address> {
        let mut command = self.command(bundle);
        if self.config.debug {
            command.arg("-debug");
        }
        command.arg("start");
        let input = self.start_input(options).await;
        let printed = run(command, input, self.config.timeouts.start).await?;
        if !printed.success {
            let text = String::from_utf8_lossy(&printed.stderr);
            let text = if text.trim().is_empty() {
                String::from_utf8_lossy(&printed.stdout).into_owned()
            } else {
                text.into_owned()
            };
            return Err(Error::Unknown(format!("start shim: {}", text.trim())));
        }
        Address::parse(&printed.stdout).map_err(|e| e.context("start shim"))
    }

    /// Cleans up after a shim that is gone.
    pub(super) async fn delete(&self, bundle: &Path) -> Result<proto::task::DeleteResponse> {
        let cwd = if bundle.is_dir() { bundle } else { Path::new("/") };
        let mut command = self.command(cwd);
        if self.config.debug {
            command.arg("-debug");
        }
        command.arg("-bundle").arg(bundle).arg("delete");
        let printed = run(command, Vec::new(), self.config.timeouts.cleanup).await?;
        if !printed.success {
            let text = String::from_utf8_lossy(&printed.stderr);
            return Err(Error::Unknown(format!("shim delete: {}", text.trim())));
        }
        proto::task::DeleteResponse::decode(&*printed.stdout)
            .map_err(|e| Error::Unknown(format!("shim delete printed no answer: {e}")))
    }

    /// What the runtime says about itself.
    pub(super) async fn info(&self, options: Option<&Any>) -> Result<RuntimeInfo> {
        let mut command = Command::new(self.path);
        command.arg("-info");
        let input = options.map(Message::encode_to_vec).unwrap_or_default();
        let printed = run(command, input, self.config.timeouts.cleanup).await?;
        if !printed.success {
            let text = format!("runtime {} tells nothing about itself", self.path.display());
            return Err(Error::Unimplemented(text));
        }
        RuntimeInfo::decode(&*printed.stdout)
            .map_err(|e| Error::Unknown(format!("runtime info: {e}")))
    }

    /// Nothing, unless the options matter at the start. Then the spelling
    /// depends on the shim's age, because each takes the other's for its own.
    async fn start_input(&self, options: Option<&Any>) -> Vec<u8> {
        let Some(options) = options.filter(|any| !any.type_url.is_empty()) else {
            return Vec::new();
        };
        match proto::unpack::<runc::Options>(options) {
            Ok(runc) if runc.shim_cgroup.is_empty() => return Vec::new(),
            _ => {}
        }
        if !self.takes_parameters().await {
            return options.encode_to_vec();
        }
        let params = BootstrapParams {
            instance_id: self.id.to_owned(),
            namespace: self.namespace.to_owned(),
            log_level: if self.config.debug { LEVEL_DEBUG } else { 0 },
            containerd_version: env!("CARGO_PKG_VERSION").to_owned(),
            containerd_ttrpc_address: self.config.ttrpc_address.clone(),
            containerd_grpc_address: self.config.grpc_address.clone(),
            containerd_binary: self.config.publish_binary.display().to_string(),
            extensions: vec![Extension { value: Some(options.clone()) }],
            socket_dir: None,
        };
        params.encode_to_vec()
    }

    /// Whether the binary is of the generation that reads parameters.
    async fn takes_parameters(&self) -> bool {
        let mut command = Command::new(self.path);
        command.arg("-v");
        match run(command, Vec::new(), self.config.timeouts.cleanup).await {
            Ok(printed) => is_at_least_2_3(&String::from_utf8_lossy(&printed.stdout)),
            Err(_) => false,
        }
    }

    fn command(&self, cwd: &Path) -> Command {
        let config = self.config;
        let mut command = Command::new(self.path);
        command
            .args(["-namespace", self.namespace, "-address", &config.grpc_address])
            .arg("-publish-binary")
            .arg(&config.publish_binary)
            .args(["-id", self.id])
            .current_dir(cwd)
            .env("GOMAXPROCS", "2")
            .env("TTRPC_ADDRESS", &config.ttrpc_address)
            .env("GRPC_ADDRESS", &config.grpc_address)
            .env("NAMESPACE", self.namespace)
            .env("MAX_SHIM_VERSION", "2");
        command
    }
}

/// Runs a command to its end with what it prints on separate pipes.
async fn run(mut command: Command, input: Vec<u8>, deadline: Duration) -> Result<Printed> {
    let program = PathBuf::from(command.get_program());
    let fail = |op: &'static str, e: std::io::Error| Error::io(op, &program, e);
    let pipe = || pipe_with(PipeFlags::CLOEXEC).map_err(|e| fail("make pipe for", e.into()));
    let ((out, out_write), (err, err_write)) = (pipe()?, pipe()?);
    command.process_group(0).stdin(Stdio::piped()).stdout(out_write).stderr(err_write);
    let mut child = command.spawn().map_err(|e| fail("run", e))?;
    drop(command);
    if let Some(mut stdin) = child.stdin.take() {
        // Options are smaller than a pipe; who does not read them closes it.
        let _ = stdin.write_all(&input);
    }
    let pid = child.id();
    // The daemon has many threads, one of which may wait.
    let ended = tokio::task::spawn_blocking(move || child.wait());
    // Both ends close when the command has ended, unless something it left
    // behind holds them.
    let read = async { tokio::join!(read_all(out), read_all(err)) };
    tokio::pin!(read);
    let work = async {
        let (stdout, stderr) = (&mut read).await;
        let status = ended.await.map_err(|e| Error::Internal(e.to_string()))?;
        let success = status.map_err(|e| fail("wait for", e))?.success();
        Ok(Printed { stdout, stderr, success })
    };
    match tokio::time::timeout(deadline, work).await {
        Ok(printed) => printed,
        Err(_) => {
            let group = rustix::process::Pid::from_raw(pid as i32);
            if let Some(group) = group {
                // It is not reaped yet or the group is empty: nobody else's.
                let kill = rustix::process::Signal::KILL;
                let _ = rustix::process::kill_process_group(group, kill);
            }
            let text = format!("{} does not end in {deadline:?}", program.display());
            Err(Error::DeadlineExceeded(text))
        }
    }
}

async fn read_all(fd: OwnedFd) -> Vec<u8> {
    let mut kept: Vec<u8> = Vec::new();
    let Ok(fd) = watch_read(fd) else { return kept };
    let mut buffer = [0; 4096];
    while let Ok(mut ready) = fd.readable().await {
        match rustix::io::read(fd.get_ref(), &mut buffer[..]) {
            Ok(0) => break,
            Ok(size) => {
                let room = OUTPUT_MAX_BYTES - kept.len();
                kept.extend_from_slice(&buffer[..size.min(room)]);
            }
            Err(rustix::io::Errno::AGAIN) => ready.clear_ready(),
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => break,
        }
    }
    kept
}

/// Looks for the version in what `-v` prints.
fn is_at_least_2_3(text: &str) -> bool {
    let line = text.lines().find_map(|line| line.trim().strip_prefix("Version:"));
    // The shim of this project has read them from its first version on.
    if text.contains("containerd-shim-crated") {
        return true;
    }
    let version = line.unwrap_or_default().trim().trim_start_matches('v');
    let mut parts = version.split(['.', '-', '~', '+']).map(|part| part.parse::<u32>().ok());
    match (parts.next().flatten(), parts.next().flatten()) {
        (Some(major), Some(minor)) => (major, minor) >= (2, 3),
        _ => false,
    }
}

/// The binary a runtime's name stands for; see the rules in [`super`].
pub(super) fn resolve(config: &ShimConfig, name: &str) -> Result<PathBuf> {
    if let Some(path) = config.runtimes.get(name) {
        return installed(name, path.clone());
    }
    if name.starts_with('/') {
        return installed(name, name.into());
    }
    let binary = binary_name(name)?;
    let mut folders = Vec::new();
    folders.extend(std::env::current_dir().ok());
    let path: OsString = std::env::var_os("PATH").unwrap_or_default();
    folders.extend(std::env::split_paths(&path).filter(|folder| folder.is_absolute()));
    let own = std::env::current_exe().ok();
    folders.extend(own.and_then(|exe| exe.parent().map(Path::to_path_buf)));
    let found = folders.into_iter().map(|folder| folder.join(&binary)).find(|p| is_program(p));
    found.ok_or_else(|| {
        Error::NotFound(format!(
            "runtime {name:?} binary not installed {binary:?}: file does not exist: not found"
        ))
    })
}

/// `io.containerd.runc.v2` is `containerd-shim-runc-v2`.
fn binary_name(name: &str) -> Result<String> {
    let invalid = || Error::InvalidArgument(format!("invalid runtime name {name:?}"));
    let parts: Vec<_> = name.split('.').collect();
    if name.contains('/') || parts.len() < 2 || parts[0].is_empty() {
        return Err(invalid());
    }
    if name == "io.containerd.runtime.v1.linux" {
        let text = format!("runtime {name:?} is no longer supported, use io.containerd.runc.v2");
        return Err(Error::InvalidArgument(text));
    }
    let [.., kind, version] = parts.as_slice() else { return Err(invalid()) };
    if kind.is_empty() || version.is_empty() {
        return Err(invalid());
    }
    Ok(format!("containerd-shim-{kind}-{version}"))
}

fn installed(name: &str, path: PathBuf) -> Result<PathBuf> {
    if is_program(&path) {
        return Ok(path);
    }
    let text = format!("runtime {name:?} binary not installed {}: not found", path.display());
    Err(Error::NotFound(text))
}

fn is_program(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

/// Addresses, messages and features are smaller.
const OUTPUT_MAX_BYTES: usize = 1 << 20;

/// DEBUG among the levels of the bootstrap message.
const LEVEL_DEBUG: i32 = proto::bootstrap::LogLevel::Debug as i32;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_binaries() {
        assert_eq!(binary_name("io.containerd.runc.v2").unwrap(), "containerd-shim-runc-v2");
        assert_eq!(binary_name("kata.v2").unwrap(), "containerd-shim-kata-v2");
        for name in [
            "",
            "runc",
            ".v2",
            "a/b.v2",
            "../x.v2",
            "a..v2",
            "a.",
            "io.containerd.runtime.v1.linux",
        ] {
            let error = binary_name(name).unwrap_err();
            assert!(matches!(error, Error::InvalidArgument(_)), "{name:?}: {error}");
        }
    }

    #[test]
    fn generations_are_told_apart_by_their_version() {
        let debian = "containerd-shim-runc-v2:\n  Version:  1.6.20~ds1\n  Revision: x\n";
        assert!(!is_at_least_2_3(debian));
        assert!(is_at_least_2_3("x:\n  Version:  v2.3.0-rc.1\n"));
        assert!(!is_at_least_2_3("x:\n  Version:  2.2.9\n"));
        assert!(!is_at_least_2_3("no version"));
    }
}
