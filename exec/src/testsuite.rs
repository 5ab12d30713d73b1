//! Promises of [`Runtime`], [`Task`] and [`Process`], for their implementors.
//!
//! Each function makes containers from Debian's static busybox, so it needs
//! root, `/bin/busybox`, and whatever the runtime needs.
//!
//! ```no_run
//! # use std::sync::Arc;
//! # use crated_exec::{Runtime, reaper::Reaper, runc::{RuncConfig, RuncRuntime}};
//! crated_exec::runtime_testsuite!(|root| async {
//!     let config = RuncConfig { root, ..RuncConfig::default() };
//!     Arc::new(RuncRuntime::new(config, Reaper::new().unwrap())) as Arc<dyn Runtime>
//! });
//! ```

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use crate::{Bundle, CreateTask, Error, ExecProcess, Runtime, Status, Stdio, Task};

/// A runtime to test and a folder to work in.
pub struct Fixture {
    /// What is tested.
    pub runtime: Arc<dyn Runtime>,
    /// Emptied by its owner afterwards.
    pub dir: PathBuf,
}

/// Whether this machine can run the suite; says why not, and fails in CI.
pub fn can_run() -> bool {
    let root = rustix::process::geteuid().is_root();
    let busybox = Path::new("/bin/busybox").exists();
    if root && busybox {
        return true;
    }
    let ci = std::env::var("CI").is_ok_and(|ci| ci == "true");
    assert!(!ci, "needs root and /bin/busybox");
    #[allow(clippy::print_stderr, reason = "tests talk to people")]
    {
        eprintln!("skipped: needs root and /bin/busybox");
    }
    false
}

/// An id no other test uses.
pub fn fresh_id() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("t{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// The JSON of a spec that runs a shell script in namespaces of its own.
pub fn shell_spec(id: &str, script: &str) -> Vec<u8> {
    let namespaces: Vec<_> = ["pid", "mount", "ipc", "uts", "network"]
        .iter()
        .map(|kind| serde_json::json!({ "type": kind }))
        .collect();
    let spec = serde_json::json!({
        "ociVersion": "1.0.2",
        "process": process(script),
        "root": { "path": "rootfs" },
        "hostname": "box",
        "mounts": [
            { "destination": "/proc", "type": "proc", "source": "proc" },
            { "destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["mode=755"] }
        ],
        "linux": { "namespaces": namespaces, "cgroupsPath": format!("/crated-exec-test/{id}") }
    });
    spec.to_string().into_bytes()
}

/// The JSON of a process that runs a shell script.
pub fn process(script: &str) -> serde_json::Value {
    serde_json::json!({
        "args": ["/bin/sh", "-c", script],
        "cwd": "/",
        "env": ["PATH=/bin"],
        "user": { "uid": 0, "gid": 0 }
    })
}

/// Puts a busybox with its usual names into a folder.
///
/// # Panics
///
/// When the folder cannot be filled.
pub fn fill_rootfs(rootfs: &Path) {
    for folder in ["bin", "proc", "dev", "tmp"] {
        fs::create_dir_all(rootfs.join(folder)).unwrap();
    }
    fs::copy("/bin/busybox", rootfs.join("bin/busybox")).unwrap();
    for name in ["sh", "sleep", "cat", "echo", "kill", "true", "head", "stty"] {
        std::os::unix::fs::symlink("busybox", rootfs.join("bin").join(name)).unwrap();
    }
}

impl Fixture {
    /// A named pipe.
    fn fifo(&self) -> PathBuf {
        let path = self.dir.join(format!("pipe-{}", fresh_id()));
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        path
    }

    /// Creates a task that runs a script.
    pub async fn create(&self, script: &str, stdio: Stdio) -> crate::Result<Arc<dyn Task>> {
        let id = fresh_id();
        let bundle = Bundle::create(self.dir.join(&id), &shell_spec(&id, script))?;
        fill_rootfs(&bundle.rootfs());
        self.runtime
            .create(CreateTask { id, bundle, rootfs: Vec::new(), stdio, checkpoint: None })
            .await
    }

    fn file(&self, name: &str) -> (PathBuf, Stdio) {
        let path = self.dir.join(format!("{name}-{}", fresh_id()));
        let stdio = Stdio { stdout: format!("file://{}", path.display()), ..Stdio::default() };
        (path, stdio)
    }
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), future).await.expect("took too long")
}

/// Exit code and output of a program arrive exactly.
pub async fn output_and_exit_code_arrive(f: &Fixture) {
    let (path, stdio) = f.file("out");
    let task = f.create("echo to-file; exit 42", stdio).await.unwrap();
    assert_eq!(task.state().await.unwrap().status, Status::Created);
    assert!(task.start().await.unwrap() > 1);
    assert_eq!(within(task.wait()).await.unwrap().status, 42);
    assert_eq!(task.state().await.unwrap().status, Status::Stopped);
    assert_eq!(task.delete().await.unwrap().status, 42);
    assert_eq!(fs::read_to_string(path).unwrap(), "to-file\n");
    assert!(matches!(task.state().await, Err(Error::NotFound(_))));
    assert!(matches!(f.runtime.task(task.id()).await, Err(Error::NotFound(_))));
}

/// Waiting before the start and after the end gives the same answer.
pub async fn waiting_early_and_late_agree(f: &Fixture) {
    let task = f.create("kill -TERM $$; sleep 1; exit 3", Stdio::default()).await.unwrap();
    let early = tokio::spawn({
        let task = Arc::clone(&task);
        async move { task.wait().await }
    });
    tokio::task::yield_now().await;
    task.start().await.unwrap();
    let early = within(early).await.unwrap().unwrap();
    assert_eq!(within(task.wait()).await.unwrap(), early);
    assert_eq!(task.delete().await.unwrap(), early);
}

/// A second start, and one after the end, are refused.
pub async fn a_task_starts_once(f: &Fixture) {
    let task = f.create("sleep 60", Stdio::default()).await.unwrap();
    task.start().await.unwrap();
    assert!(matches!(task.start().await, Err(Error::FailedPrecondition(_))));
    assert!(matches!(task.delete().await, Err(Error::Unknown(_))));
    task.kill(9, false).await.unwrap();
    assert_eq!(within(task.wait()).await.unwrap().status, 137);
    assert!(matches!(task.start().await, Err(Error::FailedPrecondition(_))));
    let late = task.kill(9, false).await.unwrap_err();
    assert!(late.to_string().contains("process already finished"), "{late}");
    assert!(matches!(late, Error::NotFound(_)));
    task.delete().await.unwrap();
}

/// A task that never ran is deletable and counts as killed.
pub async fn a_created_task_can_be_deleted(f: &Fixture) {
    let task = f.create("true", Stdio::default()).await.unwrap();
    assert_eq!(within(task.delete()).await.unwrap().status, 137);
}

/// A program that does not exist fails to be created in the runtime's words,
/// and leaves nothing.
pub async fn a_failed_creation_leaves_nothing(f: &Fixture) {
    let id = fresh_id();
    let spec = String::from_utf8(shell_spec(&id, "")).unwrap().replace("/bin/sh", "/no/such");
    let bundle = Bundle::create(f.dir.join(&id), spec.as_bytes()).unwrap();
    fill_rootfs(&bundle.rootfs());
    let request = CreateTask {
        id: id.clone(),
        bundle: bundle.clone(),
        rootfs: Vec::new(),
        stdio: Stdio::default(),
        checkpoint: None,
    };
    let Err(error) = f.runtime.create(request).await else { panic!("created") };
    assert!(error.to_string().contains("OCI runtime create failed: "), "{error}");
    assert!(error.to_string().contains("/no/such"), "{error}");
    assert!(matches!(f.runtime.task(&id).await, Err(Error::NotFound(_))));
    bundle.remove().unwrap();
}

/// Ids are unique and well-formed.
pub async fn ids_are_checked(f: &Fixture) {
    let task = f.create("true", Stdio::default()).await.unwrap();
    let bundle = Bundle::open(f.dir.join(task.id())).unwrap();
    for (id, exists) in [(task.id(), true), ("../up", false), ("", false)] {
        let request = CreateTask {
            id: id.to_owned(),
            bundle: bundle.clone(),
            rootfs: Vec::new(),
            stdio: Stdio::default(),
            checkpoint: None,
        };
        match f.runtime.create(request).await {
            Err(Error::AlreadyExists(_)) if exists => {}
            Err(Error::InvalidArgument(_)) if !exists => {}
            Err(error) => panic!("{id}: {error}"),
            Ok(_) => panic!("{id} was created"),
        }
    }
    task.delete().await.unwrap();
}

/// Processes join, have exits of their own, and end with the container.
pub async fn processes_join_a_task(f: &Fixture) {
    let task = f.create("sleep 60", Stdio::default()).await.unwrap();
    task.start().await.unwrap();
    let spec = |script: &str| process(script).to_string().into_bytes();
    let (path, stdio) = f.file("exec");
    let request = ExecProcess { id: "one".into(), spec: spec("echo joined; exit 7"), stdio };
    let one = task.exec(request.clone()).await.unwrap();
    assert!(matches!(task.exec(request).await, Err(Error::AlreadyExists(_))));
    assert!(matches!(one.kill(9, false).await, Err(Error::FailedPrecondition(_))));
    one.start().await.unwrap();
    assert_eq!(within(one.wait()).await.unwrap().status, 7);
    assert_eq!(task.process("one").await.unwrap().state().await.unwrap().status, Status::Stopped);
    assert_eq!(one.delete().await.unwrap().status, 7);
    assert_eq!(fs::read_to_string(path).unwrap(), "joined\n");
    assert!(matches!(task.process("one").await, Err(Error::NotFound(_))));

    let stdio = Stdio::default();
    let two = ExecProcess { id: "two".into(), spec: spec("sleep 60"), stdio: stdio.clone() };
    let two = task.exec(two).await.unwrap();
    let pid = two.start().await.unwrap();
    let pids = task.pids().await.unwrap();
    let joined = pids.iter().find(|p| p.pid == pid).expect("its pid is listed");
    assert_eq!(joined.exec_id.as_deref(), Some("two"));
    task.kill(9, true).await.unwrap();
    within(task.wait()).await.unwrap();
    assert_eq!(within(two.wait()).await.unwrap().status, 137);
    let late = ExecProcess { id: "three".into(), spec: spec("true"), stdio };
    assert!(matches!(task.exec(late).await, Err(Error::FailedPrecondition(_))));
    task.delete().await.unwrap();
}

/// A task pauses, resumes, and tells what it uses.
pub async fn a_task_pauses_and_tells_what_it_uses(f: &Fixture) {
    let task = f.create("sleep 60", Stdio::default()).await.unwrap();
    task.start().await.unwrap();
    task.pause().await.unwrap();
    assert_eq!(task.state().await.unwrap().status, Status::Paused);
    task.resume().await.unwrap();
    assert_eq!(task.state().await.unwrap().status, Status::Running);
    let stats = task.stats().await.unwrap();
    assert!(stats.type_url.starts_with("io.containerd.cgroups.v"), "{}", stats.type_url);
    assert!(!stats.value.is_empty());
    task.update(br#"{"pids":{"limit":50}}"#).await.unwrap();
    assert!(matches!(task.update(b"[]").await, Err(Error::InvalidArgument(_))));
    task.pause().await.unwrap();
    task.kill(9, false).await.unwrap();
    assert_eq!(within(task.wait()).await.unwrap().status, 137, "a frozen task can be killed");
    task.delete().await.unwrap();
}

/// Input ends when the client closes it, and not before.
pub async fn input_ends_when_it_is_closed(f: &Fixture) {
    use std::io::Write;
    let fifo = f.fifo();
    let (path, mut stdio) = f.file("cat");
    stdio.stdin = fifo.display().to_string();
    let task = f.create("exec cat", stdio).await.unwrap();
    task.start().await.unwrap();
    for word in ["one\n", "two\n"] {
        let mut client = fs::OpenOptions::new().write(true).open(&fifo).unwrap();
        client.write_all(word.as_bytes()).unwrap();
    }
    assert_eq!(task.state().await.unwrap().status, Status::Running);
    task.close_stdin().await.unwrap();
    assert_eq!(within(task.wait()).await.unwrap().status, 0);
    task.delete().await.unwrap();
    assert_eq!(fs::read_to_string(path).unwrap(), "one\ntwo\n");
}

/// Input that is closed while a process is being started, or before, still arrives and ends.
pub async fn input_closed_before_the_start_ends_after_it(f: &Fixture) {
    let task = f.create("sleep 60", Stdio::default()).await.unwrap();
    task.start().await.unwrap();
    let (path, mut stdio) = f.file("early");
    let input = f.fifo();
    stdio.stdin = input.display().to_string();
    let spec = process("exec cat").to_string().into_bytes();
    let joined = ExecProcess { id: "early".into(), spec, stdio };
    let joined = task.exec(joined).await.unwrap();
    // Opening waits for the other side, which opens during the start.
    let client = std::thread::spawn(move || fs::write(input, "all of it\n").unwrap());
    joined.close_stdin().await.unwrap();
    joined.start().await.unwrap();
    assert_eq!(within(joined.wait()).await.unwrap().status, 0);
    client.join().unwrap();
    within(joined.delete()).await.unwrap();
    assert_eq!(fs::read_to_string(path).unwrap(), "all of it\n");
    task.kill(9, true).await.unwrap();
    within(task.wait()).await.unwrap();
    task.delete().await.unwrap();
}

/// A reader that waits for output sees all of it before it sees its end, however quick it is.
pub async fn a_waiting_reader_gets_all_output(f: &Fixture) {
    for round in 0..10 {
        let output = f.fifo();
        let stdio = Stdio { stdout: output.display().to_string(), ..Stdio::default() };
        let reader = std::thread::spawn(move || fs::read_to_string(output).unwrap());
        let task = f.create("echo whole", stdio).await.unwrap();
        task.start().await.unwrap();
        within(task.wait()).await.unwrap();
        within(task.delete()).await.unwrap();
        assert_eq!(reader.join().unwrap(), "whole\n", "round {round}");
    }
}

/// A program that ends at once never loses its exit code.
pub async fn no_exit_code_is_lost(f: &Fixture) {
    for code in 0..8 {
        let task = f.create(&format!("exit {code}"), Stdio::default()).await.unwrap();
        task.start().await.unwrap();
        assert_eq!(within(task.wait()).await.unwrap().status, code);
        task.delete().await.unwrap();
    }
}

/// A grandchild that holds the output open delays the deletion, not the exit.
pub async fn an_exit_is_told_at_once(f: &Fixture) {
    let (_, stdio) = f.file("held");
    let task = f.create("sleep 60 & exit 5", stdio).await.unwrap();
    task.start().await.unwrap();
    assert_eq!(within(task.wait()).await.unwrap().status, 5);
    within(task.delete()).await.unwrap();
}

/// Runs one promise in a runtime of its own, which is made with a folder to keep its state in.
///
/// # Panics
///
/// When the promise is broken.
pub fn run<R>(make: impl FnOnce(PathBuf) -> R, promise: impl AsyncFnOnce(&Fixture))
where
    R: Future<Output = Arc<dyn Runtime>>,
{
    if !can_run() {
        return;
    }
    let folder = Folder(std::env::temp_dir().join(format!("crated-exec-{}", fresh_id())));
    let (dir, state) = (folder.0.join("work"), folder.0.join("state"));
    fs::create_dir_all(&dir).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let fixture = Fixture { runtime: make(state).await, dir };
        promise(&fixture).await;
    });
    drop(runtime);
    crate::remove::remove_tree(&folder.0).unwrap();
}

/// Removed also when a promise is broken.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        // A mount in it keeps it; the failure has been told by then.
        let _ = crate::remove::remove_tree(&self.0);
    }
}

/// For runtimes that are tested where they are.
pub fn anywhere(_test: &str) -> bool {
    true
}

/// One test per promise; takes a closure that is given a folder for the runtime's state, removed
/// afterwards, and makes a runtime in a future.
///
/// With `within:` and a function, each test calls that with its name first and is done when it
/// answers false: for runtimes that have to be tested in surroundings of their own, where the
/// function runs the test again.
#[macro_export]
macro_rules! runtime_testsuite {
    ($make:expr) => {
        $crate::runtime_testsuite!($make, within: $crate::testsuite::anywhere);
    };
    ($make:expr, within: $within:expr) => {
        $crate::runtime_testsuite!(@ $make, $within,
            output_and_exit_code_arrive,
            waiting_early_and_late_agree,
            a_task_starts_once,
            a_created_task_can_be_deleted,
            a_failed_creation_leaves_nothing,
            ids_are_checked,
            processes_join_a_task,
            a_task_pauses_and_tells_what_it_uses,
            input_ends_when_it_is_closed,
            input_closed_before_the_start_ends_after_it,
            a_waiting_reader_gets_all_output,
            no_exit_code_is_lost,
            an_exit_is_told_at_once,
        );
    };
    (@ $make:expr, $within:expr, $($promise:ident,)*) => {
        $(
            #[test]
            fn $promise() {
                if $within(stringify!($promise)) {
                    $crate::testsuite::run($make, async |fixture| {
                        $crate::testsuite::$promise(fixture).await
                    });
                }
            }
        )*
    };
}
