use std::{
    ffi::OsStr,
    fs,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
    time::Duration,
};

use rustix::pipe::{PipeFlags, pipe_with};

use super::{RuncConfig, log};
use crate::{
    Error, Exit, Result,
    io::ChildStdio,
    io::watch_read,
    proto::runc::CheckpointOptions,
    reaper::{Claim, Reaper},
};

/// The commands of one runtime binary.
///
/// Every command has a deadline, after which it is killed; what it writes is
/// read up to a limit; its errors arrive in the runtime's own words.
#[derive(Clone, Debug)]
pub struct Runc {
    config: RuncConfig,
    reaper: Arc<Reaper>,
}

/// Arguments of `create` and `restore`.
#[derive(Clone, Copy, Debug)]
pub struct CreateArgs<'a> {
    /// Id of the container.
    pub id: &'a str,
    /// Its folder.
    pub bundle: &'a Path,
    /// Written by the runtime.
    pub pid_file: &'a Path,
    /// With a terminal.
    pub console_socket: Option<&'a Path>,
    /// Restore from here instead.
    pub checkpoint: Option<&'a Path>,
}

/// Arguments of `exec`.
#[derive(Clone, Copy, Debug)]
pub struct ExecArgs<'a> {
    /// Id of the container.
    pub id: &'a str,
    /// File with the process's JSON.
    pub process: &'a Path,
    /// Written by the runtime.
    pub pid_file: &'a Path,
    /// With a terminal.
    pub console_socket: Option<&'a Path>,
    /// Folder to run in, for relative paths and logs.
    pub bundle: &'a Path,
}

/// What a command that ended left.
struct Output {
    exit: Exit,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
}

impl Runc {
    /// Commands of the binary in `config`; its children are reaped by `reaper`.
    pub fn new(config: RuncConfig, reaper: Arc<Reaper>) -> Self {
        Runc { config, reaper }
    }

    /// The configuration given.
    pub fn config(&self) -> &RuncConfig {
        &self.config
    }

    /// Makes a container up to just before its program runs.
    ///
    /// # Errors
    ///
    /// [`Error::Unknown`] "OCI runtime create failed: …".
    pub async fn create(&self, args: CreateArgs<'_>, stdio: ChildStdio) -> Result<()> {
        let log = args.bundle.join("log.json");
        // An old log would explain a new failure.
        let _ = fs::remove_file(&log);
        let mut command = self.logged(&log);
        command.arg(if args.checkpoint.is_some() { "restore" } else { "create" });
        command.arg("--bundle").arg(args.bundle);
        if let Some(image) = args.checkpoint {
            command.arg("--detach").arg("--image-path").arg(image);
            command.arg("--work-path").arg(self.criu_work(args.bundle));
        }
        command.arg("--pid-file").arg(args.pid_file);
        if let Some(socket) = args.console_socket {
            command.arg("--console-socket").arg(socket);
        }
        for (flag, set) in [
            ("--no-pivot", self.config.no_pivot_root),
            ("--no-new-keyring", self.config.no_new_keyring),
        ] {
            if set {
                command.arg(flag);
            }
        }
        command.arg(args.id).current_dir(args.bundle);
        let step = if args.checkpoint.is_some() { "restore" } else { "create" };
        self.detached(command, stdio, &log, &format!("OCI runtime {step} failed")).await
    }

    /// Runs another process in a running container.
    ///
    /// # Errors
    ///
    /// [`Error::Unknown`] "OCI runtime exec failed: …".
    pub async fn exec(&self, args: ExecArgs<'_>, stdio: ChildStdio) -> Result<()> {
        let log = args.pid_file.with_extension("log.json");
        let mut command = self.logged(&log);
        command.arg("exec").arg("--detach").arg("--process").arg(args.process);
        command.arg("--pid-file").arg(args.pid_file);
        if let Some(socket) = args.console_socket {
            command.arg("--console-socket").arg(socket);
        }
        command.arg(args.id).current_dir(args.bundle);
        let result = self.detached(command, stdio, &log, "OCI runtime exec failed").await;
        // Kept it would only fill the bundle.
        let _ = fs::remove_file(&log);
        result
    }

    /// Runs the program of a created container.
    ///
    /// # Errors
    ///
    /// [`Error::Unknown`] "OCI runtime start failed: …".
    pub async fn start(&self, id: &str) -> Result<()> {
        self.simple("start", [id]).await
    }

    /// Signals the first process, or all.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`] once the container has ended.
    pub async fn kill(&self, id: &str, signal: u32, all: bool) -> Result<()> {
        let signal = signal.to_string();
        let mut args = vec![id, &signal];
        if all {
            args.insert(0, "--all");
        }
        self.simple("kill", args).await.map_err(|error| {
            let text = error.to_string().to_lowercase();
            let gone = [
                "process already finished",
                "container not running",
                "is not running",
                "no such process",
            ];
            if gone.iter().any(|sign| text.contains(sign)) || is_missing(&text) {
                crate::reaper::finished()
            } else {
                error
            }
        })
    }

    /// Removes a container; `force` kills it first and accepts a missing one.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`] unless forced, [`Error::Unknown`].
    pub async fn delete(&self, id: &str, force: bool) -> Result<()> {
        let args: &[&str] = if force { &["--force", id] } else { &[id] };
        self.simple("delete", args.iter().copied()).await.or_else(|error| {
            match is_missing(&error.to_string()) {
                true if force => Ok(()),
                true => Err(Error::NotFound(format!("container {id}: not found"))),
                false => Err(error),
            }
        })
    }

    /// Freezes a container.
    ///
    /// # Errors
    ///
    /// [`Error::Unknown`].
    pub async fn pause(&self, id: &str) -> Result<()> {
        self.simple("pause", [id]).await
    }

    /// Thaws a container.
    ///
    /// # Errors
    ///
    /// [`Error::Unknown`].
    pub async fn resume(&self, id: &str) -> Result<()> {
        self.simple("resume", [id]).await
    }

    /// Changes limits to those in the JSON file `resources`.
    ///
    /// # Errors
    ///
    /// [`Error::Unknown`].
    pub async fn update(&self, id: &str, resources: &Path) -> Result<()> {
        let args = [OsStr::new("--resources"), resources.as_os_str(), OsStr::new(id)];
        self.simple("update", args).await
    }

    /// Pids of the container's cgroup.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`], [`Error::Unknown`].
    pub async fn ps(&self, id: &str) -> Result<Vec<u32>> {
        let bytes = self.answer("ps", ["--format", "json", id]).await?;
        // Runtimes print `null` for none.
        let pids: Option<Vec<u32>> = parse("ps", &bytes)?;
        Ok(pids.unwrap_or_default())
    }

    /// What the runtime knows of a container, as the JSON object it prints.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`], [`Error::Unknown`].
    pub async fn state(&self, id: &str) -> Result<serde_json::Value> {
        parse("state", &self.answer("state", [id]).await?)
    }

    /// One sample of resource use, as the JSON object the runtime prints.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`], [`Error::Unknown`].
    pub async fn events(&self, id: &str) -> Result<serde_json::Value> {
        parse("events", &self.answer("events", ["--stats", id]).await?)
    }

    /// What the runtime can do: the JSON of OCI features.
    ///
    /// # Errors
    ///
    /// [`Error::Unknown`] for runtimes that do not tell.
    pub async fn features(&self) -> Result<Vec<u8>> {
        self.answer("features", None::<&str>).await
    }

    /// Name and version as the runtime prints them.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] if the binary is missing.
    pub async fn version(&self) -> Result<String> {
        let bytes = self.answer("--version", None::<&str>).await?;
        Ok(String::from_utf8_lossy(&bytes).trim().to_owned())
    }

    /// Writes a container's memory to `image`.
    ///
    /// # Errors
    ///
    /// [`Error::Unknown`].
    pub async fn checkpoint(
        &self,
        id: &str,
        image: &Path,
        bundle: &Path,
        options: &CheckpointOptions,
    ) -> Result<()> {
        let work = match options.work_path.as_str() {
            "" => self.criu_work(bundle),
            path => path.into(),
        };
        let mut args = vec![OsStr::new("--image-path"), image.as_os_str()];
        args.extend([OsStr::new("--work-path"), work.as_os_str()]);
        for (flag, set) in [
            ("--leave-running", !options.exit),
            ("--tcp-established", options.open_tcp),
            ("--ext-unix-sk", options.external_unix_sockets),
            ("--shell-job", options.terminal),
            ("--file-locks", options.file_locks),
        ] {
            if set {
                args.push(OsStr::new(flag));
            }
        }
        for namespace in &options.empty_namespaces {
            args.extend([OsStr::new("--empty-ns"), OsStr::new(namespace)]);
        }
        if !options.cgroups_mode.is_empty() {
            args.extend([OsStr::new("--manage-cgroups-mode"), OsStr::new(&options.cgroups_mode)]);
        }
        args.push(OsStr::new(id));
        self.simple("checkpoint", args).await
    }

    fn criu_work(&self, bundle: &Path) -> PathBuf {
        match self.config.criu_work_path.as_os_str().is_empty() {
            true => bundle.join("criu-work"),
            false => self.config.criu_work_path.clone(),
        }
    }

    /// A command whose log goes to a file, because its stderr is the container's.
    fn logged(&self, log: &Path) -> Command {
        let mut command = Command::new(&self.config.binary);
        command.arg("--root").arg(&self.config.root);
        command.arg("--log").arg(log).args(["--log-format", "json"]);
        if self.config.systemd_cgroup {
            command.arg("--systemd-cgroup");
        }
        command
    }

    async fn detached(
        &self,
        mut command: Command,
        stdio: ChildStdio,
        log: &Path,
        step: &str,
    ) -> Result<()> {
        command.stdin(stdio.stdin).stdout(stdio.stdout).stderr(stdio.stderr);
        let (_, claim) = self.reaper.spawn(&mut command).map_err(|e| e.context(step))?;
        // Closes our copies of the container's ends of its pipes.
        drop(command);
        let exit = self.finish(claim, step).await?;
        if exit.status == 0 {
            return Ok(());
        }
        let cause = log::last_error(log)
            .unwrap_or_else(|| format!("runtime ended with status {}", exit.status));
        Err(Error::Unknown(format!("{step}: {cause}")))
    }

    async fn simple<A: AsRef<OsStr>>(
        &self,
        verb: &str,
        args: impl IntoIterator<Item = A>,
    ) -> Result<()> {
        self.answer(verb, args).await.map(drop)
    }

    async fn answer<A: AsRef<OsStr>>(
        &self,
        verb: &str,
        args: impl IntoIterator<Item = A>,
    ) -> Result<Vec<u8>> {
        // With its log elsewhere the runtime writes the bare error to stderr.
        let mut command = self.logged(Path::new("/dev/null"));
        command.arg(verb).args(args);
        let step = format!("OCI runtime {verb} failed");
        let output = self.run(command, &step).await?;
        if output.exit.status == 0 {
            return Ok(output.stdout);
        }
        let text = String::from_utf8_lossy(&output.stderr);
        let cause = match text.trim() {
            "" => format!("runtime ended with status {}", output.exit.status),
            text => text.to_owned(),
        };
        Err(Error::Unknown(format!("{step}: {cause}")))
    }

    async fn run(&self, mut command: Command, step: &str) -> Result<Output> {
        let pipe =
            || pipe_with(PipeFlags::CLOEXEC).map_err(|e| Error::io("make pipe for", step, e));
        let ((out, out_write), (err, err_write)) = (pipe()?, pipe()?);
        command.stdin(Stdio::null()).stdout(out_write).stderr(err_write);
        let (_, claim) = self.reaper.spawn(&mut command).map_err(|e| e.context(step))?;
        drop(command);
        let (stdout, stderr) = (tokio::spawn(collect(out)), tokio::spawn(collect(err)));
        let exit = self.finish(claim, step).await?;
        Ok(Output { exit, stdout: collected(stdout).await, stderr: collected(stderr).await })
    }

    async fn finish(&self, mut claim: Claim, step: &str) -> Result<Exit> {
        let deadline = self.config.deadline;
        if let Ok(exit) = tokio::time::timeout(deadline, claim.wait()).await {
            return exit;
        }
        claim.signal(KILL).or_else(|e| match e {
            Error::NotFound(_) => Ok(()),
            e => Err(e),
        })?;
        // Reaps it; a process in uninterruptible sleep is left behind.
        let _ = tokio::time::timeout(KILL_PATIENCE, claim.wait()).await;
        let text = format!("{step}: runtime did not end in {deadline:?}");
        Err(Error::DeadlineExceeded(text))
    }
}

/// Reads to the end, keeps the first [`OUTPUT_MAX_BYTES`].
async fn collect(fd: OwnedFd) -> Vec<u8> {
    let mut kept = Vec::new();
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

/// What was read of a command that has ended. What it left behind may hold
/// the pipe open for days; its output is given up.
async fn collected(mut reading: tokio::task::JoinHandle<Vec<u8>>) -> Vec<u8> {
    match tokio::time::timeout(COLLECT_DEADLINE, &mut reading).await {
        Ok(read) => read.unwrap_or_default(),
        Err(_) => {
            reading.abort();
            Vec::new()
        }
    }
}

fn parse<T: serde::de::DeserializeOwned>(verb: &str, bytes: &[u8]) -> Result<T> {
    serde_json::from_slice(bytes)
        .map_err(|e| Error::Unknown(format!("OCI runtime {verb} printed no JSON: {e}")))
}

/// In the words of runc, or of crun, which names the file it did not find.
fn is_missing(text: &str) -> bool {
    text.contains("does not exist")
        || text.contains("no such container")
        || text.contains("/status`: No such file or directory")
        || text.contains("/status`: no such file or directory")
}

const KILL: u32 = 9;

/// How long the kernel may take to kill.
const KILL_PATIENCE: Duration = Duration::from_secs(2);

/// The last words of a command are in its pipes when it ends.
const COLLECT_DEADLINE: Duration = Duration::from_secs(1);

/// Enough for `ps` of the largest container.
const OUTPUT_MAX_BYTES: usize = 4 << 20;
