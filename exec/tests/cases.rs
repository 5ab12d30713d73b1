//! Hostile and unlucky containers, one case after the other. Needs root, runc and busybox.
//!
//! What is not here, and why:
//!
//! - users and account files (85): whoever makes specs resolves them; see the tests of `ctr`.
//! - processes in state D (92): the kernel makes none on demand. Stopped and frozen ones are here,
//!   what is said of a process that stays is tested where it is said.
//! - races for masked paths (96): between the runtime and the kernel, nothing of this crate is
//!   part of them.
//! - AppArmor that is missing (97): this kernel has none at all.
//! - dead and mute shims, daemons that are away (102 to 105, 107, 109): see the tests of the shim.
//! - frames (106): see `ttrpc.rs`. Long runs (108): see the endurance tests of the shim.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use crated_exec::{
    Bundle, CreateTask, Error, ExecProcess, Process, Runtime, Status, Stdio, Task,
    reaper::Reaper,
    runc::{RuncConfig, RuncRuntime},
    testsuite::{self, Fixture, fill_rootfs, fresh_id, shell_spec},
};
use serde_json::{Value, json};

async fn runc(root: PathBuf) -> Arc<dyn Runtime> {
    let config = RuncConfig { root, ..RuncConfig::default() };
    Arc::new(RuncRuntime::new(config, Reaper::new().unwrap()))
}

/// Fails when the kernel or the runtime hang, and not when the machine is slow.
async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), future).await.expect("took too long")
}

/// A bundle whose spec `edit` has changed.
fn bundle(f: &Fixture, script: &str, edit: impl FnOnce(&mut Value)) -> (String, Bundle) {
    let id = fresh_id();
    let mut spec: Value = serde_json::from_slice(&shell_spec(&id, script)).unwrap();
    edit(&mut spec);
    let bundle = Bundle::create(f.dir.join(&id), spec.to_string().as_bytes()).unwrap();
    fill_rootfs(&bundle.rootfs());
    (id, bundle)
}

fn request(id: &str, bundle: &Bundle, stdio: Stdio) -> CreateTask {
    let (id, bundle) = (id.to_owned(), bundle.clone());
    CreateTask { id, bundle, rootfs: Vec::new(), stdio, checkpoint: None }
}

fn output(f: &Fixture) -> (PathBuf, Stdio) {
    let path = f.dir.join(format!("out-{}", fresh_id()));
    let stdio = Stdio { stdout: format!("file://{}", path.display()), ..Stdio::default() };
    (path, stdio)
}

/// Runs a container to its end; its exit code and output, or why it could not be run.
async fn run_to_end(
    f: &Fixture,
    script: &str,
    edit: impl FnOnce(&mut Value),
) -> Result<(u32, String), Error> {
    let (id, bundle) = bundle(f, script, edit);
    let (path, stdio) = output(f);
    let task = within(f.runtime.create(request(&id, &bundle, stdio))).await?;
    if let Err(error) = within(task.start()).await {
        within(task.delete()).await.unwrap();
        return Err(error);
    }
    let exit = within(task.wait()).await.unwrap();
    within(task.delete()).await.unwrap();
    bundle.remove().unwrap();
    Ok((exit.status, fs::read_to_string(path).unwrap_or_default()))
}

async fn end(task: &Arc<dyn Task>) {
    match task.kill(9, true).await {
        Ok(()) | Err(Error::NotFound(_)) => {}
        Err(error) => panic!("{error}"),
    }
    within(task.wait()).await.unwrap();
    within(task.delete()).await.unwrap();
}

/// Writes a program. Another process does that: a descriptor of ours, open for writing, could be
/// inherited by what another test starts, and a file somebody can write to cannot be run.
fn write_program(path: &Path, text: &str) {
    use std::io::Write;
    let mut writer = std::process::Command::new("sh")
        .args(["-c", "cat > \"$0\" && chmod 755 \"$0\""])
        .arg(path)
        .stdin(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    writer.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    assert!(writer.wait().unwrap().success());
}

fn cgroup_folders(id: &str) -> Vec<PathBuf> {
    let hierarchies = fs::read_dir("/sys/fs/cgroup").unwrap().flatten().map(|entry| entry.path());
    let folders = hierarchies.map(|path| path.join("crated-exec-test").join(id));
    folders.filter(|path| path.exists()).collect()
}

/// 86: no working directory leads out of the container.
#[test]
fn case_086_a_working_directory_stays_inside() {
    testsuite::run(runc, async |f| {
        let host = f.dir.join("host");
        fs::create_dir(&host).unwrap();
        for cwd in ["/proc/self/fd/3", "/proc/self/fd/7", "/link", "relative", "/bin/busybox"] {
            let ran = run_to_end(f, "pwd > /out; exit 0", |spec| {
                spec["process"]["cwd"] = json!(cwd);
            });
            let target = host.clone();
            // The link is made by the image, so it is there before the container is.
            let ran = match cwd {
                "/link" => {
                    let (id, bundle) = bundle(f, "pwd", |spec| spec["process"]["cwd"] = json!(cwd));
                    symlink(&target, bundle.rootfs().join("link")).unwrap();
                    let (path, stdio) = output(f);
                    match within(f.runtime.create(request(&id, &bundle, stdio))).await {
                        Err(error) => Err(error),
                        Ok(task) => {
                            let started = within(task.start()).await;
                            if started.is_ok() {
                                within(task.wait()).await.unwrap();
                            }
                            within(task.delete()).await.unwrap();
                            started.map(|_| (0, fs::read_to_string(path).unwrap_or_default()))
                        }
                    }
                }
                _ => ran.await,
            };
            if let Ok((status, text)) = ran {
                assert!(status != 0 || !text.contains("host"), "{cwd}: {status} {text}");
            }
        }
        assert_eq!(fs::read_dir(&host).unwrap().count(), 0, "something was made on the host");
    });
}

/// 87: links in a root file system lead nowhere on the host.
#[test]
fn case_087_links_in_the_root_change_nothing_on_the_host() {
    testsuite::run(runc, async |f| {
        for name in ["proc", "dev", "sys"] {
            let host = f.dir.join(format!("host-{name}"));
            fs::create_dir(&host).unwrap();
            let (id, bundle) = bundle(f, "true", |_| {});
            let mountpoint = bundle.rootfs().join(name);
            let _ = fs::remove_dir(&mountpoint);
            symlink(&host, &mountpoint).unwrap();
            let created = within(f.runtime.create(request(&id, &bundle, Stdio::default()))).await;
            assert!(matches!(created, Err(Error::InvalidArgument(_))), "{name}");
            assert_eq!(fs::read_dir(&host).unwrap().count(), 0, "{name}");
            assert!(!mounts().contains(&host.display().to_string()), "{name}");
        }
    });
}

fn mounts() -> String {
    fs::read_to_string("/proc/self/mountinfo").unwrap()
}

/// 88: specs that cannot be run are refused, odd ones that can be run are.
#[test]
fn case_088_impossible_specs_are_refused_and_odd_ones_run() {
    testsuite::run(runc, async |f| {
        type Edit = fn(&mut Value);
        let refused: [(&str, Edit); 5] = [
            ("no arguments", |spec| spec["process"]["args"] = json!([])),
            ("a zero byte", |spec| spec["process"]["args"] = json!(["/bin/sh\0x"])),
            ("a namespace twice", |spec| {
                let twice = json!([{ "type": "pid" }, { "type": "pid" }, { "type": "mount" }]);
                spec["linux"]["namespaces"] = twice;
            }),
            ("a namespace that is a file", |spec| {
                spec["linux"]["namespaces"][0]["path"] = json!("/etc/hostname");
            }),
            ("a limit nobody knows", |spec| {
                let limit = json!([{ "type": "RLIMIT_X", "hard": 1, "soft": 1 }]);
                spec["process"]["rlimits"] = limit;
            }),
        ];
        for (what, edit) in refused {
            let refused = run_to_end(f, "true", edit).await;
            assert!(refused.is_err(), "{what}: {refused:?}");
        }
        let (status, text) = run_to_end(f, "echo $A; exit 3", |spec| {
            spec["future"] = json!({ "x": [1] });
            spec["process"]["env"] = json!(["PATH=/bin", "A=\u{fc}\u{20ac}"]);
        })
        .await
        .unwrap();
        assert_eq!((status, text.as_str()), (3, "\u{fc}\u{20ac}\n"));
        let (id, large) = bundle(f, "true", |_| {});
        let file = fs::OpenOptions::new().write(true).open(large.config()).unwrap();
        file.set_len(crated_exec::bundle::SPEC_SIZE_MAX_BYTES + 1).unwrap();
        let Err(error) = f.runtime.create(request(&id, &large, Stdio::default())).await else {
            panic!("a huge spec was taken");
        };
        assert!(matches!(error, Error::InvalidArgument(_)), "{error}");
    });
}

/// 89: ids that are paths, flags or too long never reach the runtime.
#[test]
fn case_089_dangerous_ids_are_refused() {
    testsuite::run(runc, async |f| {
        let (id, bundle) = bundle(f, "sleep 60", |_| {});
        let task = f.runtime.create(request(&id, &bundle, Stdio::default())).await.unwrap();
        task.start().await.unwrap();
        let long = "a".repeat(5000);
        for id in ["..", "a/b", "-rf", "", "\u{fc}", "a b", &long, &long[..77]] {
            let created = f.runtime.create(request(id, &bundle, Stdio::default())).await;
            assert!(matches!(created, Err(Error::InvalidArgument(_))), "{id:?}");
            let spec = testsuite::process("true").to_string().into_bytes();
            let exec = ExecProcess { id: id.into(), spec, stdio: Stdio::default() };
            assert!(matches!(task.exec(exec).await, Err(Error::InvalidArgument(_))), "{id:?}");
        }
        end(&task).await;
    });
}

/// 90: whatever the runtime does, the caller gets an error in time and nothing stays.
#[test]
fn case_090_a_broken_runtime_costs_an_error() {
    let scripts = [
        ("missing", None),
        ("of another machine", Some("\u{7f}ELF nonsense")),
        ("hanging", Some("#!/bin/sh\nexec sleep 600\n")),
        ("killed", Some("#!/bin/sh\nkill -9 $$\n")),
        ("chatty", Some("#!/bin/sh\nhead -c 50000000 /dev/zero >&2\nexit 1\n")),
        ("silent about the pid", Some("#!/bin/sh\nexit 0\n")),
        ("with a pid that is none", Some(PID_FILE_NONSENSE)),
        ("with a pid of nobody", Some(PID_FILE_NOBODY)),
    ];
    for (what, script) in scripts {
        testsuite::run(runc, async |f| {
            let binary = f.dir.join("runtime");
            if let Some(script) = script {
                write_program(&binary, script);
            }
            let deadline = Duration::from_secs(if what == "hanging" { 1 } else { 30 });
            let root = f.dir.join("state");
            let config = RuncConfig { binary, deadline, root, ..RuncConfig::default() };
            let runtime = RuncRuntime::new(config, Reaper::new().unwrap());
            let (id, bundle) = bundle(f, "true", |_| {});
            let created = within(runtime.create(request(&id, &bundle, Stdio::default()))).await;
            let Err(error) = created else { panic!("{what}: created") };
            assert!(error.report().len() < 16 << 10, "{what}: {} bytes", error.report().len());
            assert!(matches!(runtime.task(&id).await, Err(Error::NotFound(_))), "{what}");
            if what == "hanging" {
                assert!(matches!(error, Error::DeadlineExceeded(_)), "{error}");
            }
            bundle.remove().unwrap();
        });
    }
}

const PID_FILE_NONSENSE: &str = "#!/bin/sh\nwhile [ $# -gt 0 ]; do
if [ \"$1\" = --pid-file ]; then echo many > \"$2\"; fi; shift; done\n";
const PID_FILE_NOBODY: &str = "#!/bin/sh\nwhile [ $# -gt 0 ]; do
if [ \"$1\" = --pid-file ]; then echo 4194303 > \"$2\"; fi; shift; done\n";

/// 91: who else is in the cgroup of a creation that fails survives it; one of its own is removed.
#[test]
fn case_091_processes_found_in_the_cgroup_survive_a_failed_creation() {
    testsuite::run(runc, async |f| {
        let shared = format!("shared{}", std::process::id());
        let hierarchies = ["/sys/fs/cgroup/pids", "/sys/fs/cgroup"];
        let hierarchy =
            hierarchies.iter().find(|path| Path::new(path).join("cgroup.procs").exists());
        let folder = Path::new(hierarchy.unwrap()).join("crated-exec-test").join(&shared);
        fs::create_dir_all(&folder).unwrap();
        let mut other = std::process::Command::new("sleep").arg("600").spawn().unwrap();
        fs::write(folder.join("cgroup.procs"), other.id().to_string()).unwrap();
        let (id, broken) = bundle(f, "true", |spec| {
            spec["process"]["args"] = json!(["/no/such"]);
            spec["linux"]["cgroupsPath"] = json!(format!("/crated-exec-test/{shared}"));
        });
        let created = within(f.runtime.create(request(&id, &broken, Stdio::default()))).await;
        assert!(created.is_err());
        assert!(other.try_wait().unwrap().is_none(), "the other process was killed");
        other.kill().unwrap();
        other.wait().unwrap();
        for folder in cgroup_folders(&shared) {
            // Whoever shares it removes it.
            let _ = fs::remove_dir(folder);
        }

        let (id, own) = bundle(f, "true", |spec| spec["process"]["args"] = json!(["/no/such"]));
        let created = within(f.runtime.create(request(&id, &own, Stdio::default()))).await;
        assert!(created.is_err());
        assert!(cgroup_folders(&id).is_empty(), "{:?}", cgroup_folders(&id));
    });
}

/// 92: a container that is stopped or frozen by others can be killed and deleted.
#[test]
fn case_092_stopped_and_frozen_containers_are_deleted() {
    testsuite::run(runc, async |f| {
        for freeze in [false, true] {
            let task = f.create("sleep 60", Stdio::default()).await.unwrap();
            let pid = task.start().await.unwrap();
            let cgroup = crated_exec::cgroup::Cgroup::of(pid).unwrap();
            if freeze {
                cgroup.freeze(true).unwrap();
            } else {
                task.kill(19, false).await.unwrap();
            }
            assert!(matches!(task.delete().await, Err(Error::Unknown(_))), "it has not ended");
            task.kill(9, true).await.unwrap();
            if freeze {
                // Version 1 keeps even the killed until they are thawed.
                let _ = cgroup.freeze(false);
            }
            assert_eq!(within(task.wait()).await.unwrap().status, 137);
            within(task.delete()).await.unwrap();
            assert!(cgroup_folders(task.id()).is_empty());
        }
    });
}

/// 94: neither a fork bomb nor a crowd of orphans costs an exit code or leaves a process.
#[test]
fn case_094_crowds_of_processes_cost_no_exit_code() {
    testsuite::run(runc, async |f| {
        let (status, _) = run_to_end(
            f,
            "i=0; while [ $i -lt 200 ]; do (true &); i=$((i+1)); done; exit 7",
            |_| {},
        )
        .await
        .unwrap();
        assert_eq!(status, 7);
        let (id, bomb) =
            bundle(f, "while true; do sleep 60 & done 2>/dev/null; sleep 60", |spec| {
                spec["linux"]["resources"] = json!({ "pids": { "limit": 20 } });
            });
        let task = f.runtime.create(request(&id, &bomb, Stdio::default())).await.unwrap();
        task.start().await.unwrap();
        let until = Instant::now() + Duration::from_secs(60);
        while task.state().await.unwrap().status == Status::Running
            && task.pids().await.unwrap().len() < 18
        {
            assert!(Instant::now() < until, "the bomb does not go off");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        end(&task).await;
        assert!(cgroup_folders(&id).is_empty());
    });
}

/// 95: descriptors somebody forgot to protect do not reach a container.
#[test]
fn case_095_descriptors_of_the_host_stay_outside() {
    testsuite::run(runc, async |f| {
        let leaky: Vec<_> = (0..50)
            .map(|_| {
                let file = fs::File::open("/etc/hostname").unwrap();
                rustix::io::fcntl_setfd(&file, rustix::io::FdFlags::empty()).unwrap();
                file
            })
            .collect();
        let list = "for fd in /proc/self/fd/*; do echo ${fd##*/}; done";
        let (status, text) = run_to_end(f, list, |_| {}).await.unwrap();
        drop(leaky);
        assert_eq!(status, 0);
        let open: Vec<u32> = text.lines().map(|line| line.parse().unwrap()).collect();
        assert!(open.iter().all(|fd| *fd <= 3), "{open:?}");
    });
}

/// 97: processes that join a container which is ending end or are refused; none is lost.
#[test]
fn case_097_joining_while_the_container_ends() {
    testsuite::run(runc, async |f| {
        let task = f.create("sleep 60", Stdio::default()).await.unwrap();
        task.start().await.unwrap();
        let mut joining = Vec::new();
        for n in 0..8 {
            let spec = testsuite::process("sleep 60").to_string().into_bytes();
            let exec = ExecProcess { id: format!("e{n}"), spec, stdio: Stdio::default() };
            let process: Arc<dyn Process> = task.exec(exec).await.unwrap();
            joining.push(tokio::spawn(async move {
                match process.start().await {
                    Ok(_) => within(process.wait()).await.unwrap().status,
                    Err(_) => 0,
                }
            }));
        }
        tokio::time::sleep(Duration::from_millis(30)).await;
        task.kill(9, true).await.unwrap();
        within(task.wait()).await.unwrap();
        for joined in joining {
            let status = within(joined).await.unwrap();
            assert!([0, 137, 255].contains(&status), "{status}");
        }
        let spec = testsuite::process("true").to_string().into_bytes();
        let late = ExecProcess { id: "late".into(), spec, stdio: Stdio::default() };
        assert!(matches!(task.exec(late).await, Err(Error::FailedPrecondition(_))));
        within(task.delete()).await.unwrap();
        assert!(cgroup_folders(task.id()).is_empty());
    });
}

/// 98: numbers that are no signals are refused, and the dead are not signalled.
#[test]
fn case_098_signals_that_are_none_and_signals_to_the_dead() {
    testsuite::run(runc, async |f| {
        let task = f.create("sleep 60", Stdio::default()).await.unwrap();
        task.start().await.unwrap();
        task.kill(0, false).await.unwrap();
        for number in [65, 4096, u32::MAX] {
            let refused = task.kill(number, false).await;
            assert!(matches!(refused, Err(Error::InvalidArgument(_))), "{number}: {refused:?}");
        }
        assert_eq!(task.state().await.unwrap().status, Status::Running);
        task.kill(9, false).await.unwrap();
        within(task.wait()).await.unwrap();
        for all in [false, true] {
            assert!(matches!(task.kill(9, all).await, Err(Error::NotFound(_))), "all: {all}");
        }
        task.release().await.unwrap();
        assert!(matches!(task.kill(9, true).await, Err(Error::NotFound(_))), "released");
        assert!(cgroup_folders(task.id()).is_empty(), "released before it is deleted");
        assert_eq!(within(task.delete()).await.unwrap().status, 137);
    });
}

/// 99: pipes nobody opens, and what is no pipe, delay a creation at most for seconds.
#[test]
fn case_099_streams_nobody_opens_do_not_hang() {
    testsuite::run(runc, async |f| {
        let fifo = |name: &str| {
            let path = f.dir.join(name);
            let mode = rustix::fs::Mode::from_raw_mode(0o600);
            let kind = rustix::fs::FileType::Fifo;
            rustix::fs::mknodat(rustix::fs::CWD, &path, kind, mode, 0).unwrap();
            path.display().to_string()
        };
        let stdio =
            Stdio { stdin: fifo("in"), stdout: fifo("out"), stderr: fifo("err"), terminal: false };
        let task = within(f.create("echo lost; cat", stdio)).await.unwrap();
        task.start().await.unwrap();
        end(&task).await;
        for missing in ["gone", "gone/deeper"] {
            let stdout = f.dir.join(missing).display().to_string();
            let created = within(f.create("true", Stdio { stdout, ..Stdio::default() })).await;
            assert!(created.is_err(), "{missing}");
        }
        let file = f.dir.join("file");
        fs::write(&file, "").unwrap();
        let stdout = file.display().to_string();
        let task = within(f.create("echo kept", Stdio { stdout, ..Stdio::default() })).await;
        let task = task.unwrap();
        task.start().await.unwrap();
        within(task.wait()).await.unwrap();
        within(task.delete()).await.unwrap();
        assert_eq!(fs::read_to_string(file).unwrap(), "kept\n");
    });
}

/// 100: a reader that stops reading stops the writer and nothing else.
#[test]
fn case_100_a_full_pipe_does_not_hold_up_the_deletion() {
    testsuite::run(runc, async |f| {
        let path = f.dir.join("full");
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        let idle = fs::OpenOptions::new().read(true).write(true).open(&path).unwrap();
        let stdio = Stdio { stdout: path.display().to_string(), ..Stdio::default() };
        let task = f.create("while true; do echo much; done", stdio).await.unwrap();
        task.start().await.unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
        end(&task).await;
        drop(idle);
    });
}

/// 101: every byte arrives, whatever bytes they are.
#[test]
fn case_101_bytes_arrive_exactly() {
    testsuite::run(runc, async |f| {
        let script = "head -c 3000000 /dev/zero; printf '\\377\\376no newline'";
        let (id, bundle) = bundle(f, script, |_| {});
        symlink("busybox", bundle.rootfs().join("bin/printf")).unwrap();
        // The device is not in the image.
        fs::create_dir_all(bundle.rootfs().join("dev")).unwrap();
        let (path, stdio) = output(f);
        let task = f.runtime.create(request(&id, &bundle, stdio)).await.unwrap();
        task.start().await.unwrap();
        assert_eq!(within(task.wait()).await.unwrap().status, 0);
        within(task.delete()).await.unwrap();
        let bytes = fs::read(path).unwrap();
        assert_eq!(bytes.len(), 3_000_000 + 12);
        assert!(bytes.ends_with(b"\xff\xfeno newline"));
    });
}

/// A logger gets the output, its arguments and its surroundings, and is ready before the start.
#[test]
fn a_logger_program_reads_the_output() {
    testsuite::run(runc, async |f| {
        let logger = f.dir.join("logger");
        let log = f.dir.join("logged");
        let script = "#!/bin/sh\necho \"$1=$2 $CONTAINER_NAMESPACE\" > \"$2\"\n\
                      exec 5>&-\ncat <&3 >> \"$2\"\n";
        write_program(&logger, script);
        let address = format!("binary://{}?to={}", logger.display(), log.display());
        let stdio = Stdio { stdout: address.clone(), stderr: address, ..Stdio::default() };
        let task = f.create("echo to the logger", stdio).await.unwrap();
        task.start().await.unwrap();
        within(task.wait()).await.unwrap();
        within(task.delete()).await.unwrap();
        let text = fs::read_to_string(&log).unwrap();
        assert_eq!(text, format!("to={} \nto the logger\n", log.display()));
    });
}

/// Hooks that run at the deletion are not run when the container ends.
#[test]
fn hooks_of_the_deletion_wait_for_it() {
    testsuite::run(runc, async |f| {
        let told = f.dir.join("told");
        let (id, bundle) = bundle(f, "exit 4", |spec| {
            let script = format!("cat > {}", told.display());
            spec["hooks"] =
                json!({ "poststop": [{ "path": "/bin/sh", "args": ["sh", "-c", script] }] });
        });
        let task = f.runtime.create(request(&id, &bundle, Stdio::default())).await.unwrap();
        task.start().await.unwrap();
        within(task.wait()).await.unwrap();
        task.release().await.unwrap();
        assert!(!Path::new(&told).exists());
        within(task.delete()).await.unwrap();
        assert!(fs::read_to_string(&told).unwrap().contains(&id));
    });
}

/// Hooks of the start are run by the time the container runs, and what the runtime keeps of it is
/// removed whole, whether it was started with the runtime's help or not.
#[test]
fn a_start_with_hooks_and_one_without_leave_the_same() {
    testsuite::run(runc, async |f| {
        let root = f.dir.join("runc");
        let runtime: Arc<dyn Runtime> = runc(root.clone()).await;
        for (name, more) in [("plain", false), ("hooks", true), ("more", false)] {
            let told = f.dir.join(format!("told-{name}"));
            let (id, bundle) = bundle(f, "sleep 60", |spec| {
                let script = format!("cat > {}", told.display());
                let hooks =
                    json!({ "poststart": [{ "path": "/bin/sh", "args": ["sh", "-c", script] }] });
                spec["hooks"] = if more { hooks } else { json!({}) };
            });
            let task = runtime.create(request(&id, &bundle, Stdio::default())).await.unwrap();
            within(task.start()).await.unwrap();
            assert_eq!(task.state().await.unwrap().status, Status::Running, "{name}");
            assert_eq!(told.exists(), more, "{name}");
            assert!(!root.join(&id).join("exec.fifo").exists(), "{name}");
            if name == "more" {
                // Of a runtime this crate does not know.
                fs::write(root.join(&id).join("news"), "").unwrap();
            }
            end(&task).await;
            assert!(!root.join(&id).exists(), "{name}");
            assert!(cgroup_folders(&id).is_empty(), "{name}");
            bundle.remove().unwrap();
        }
    });
}

/// A container whose first process was killed before its start says so, and is deleted.
#[test]
fn a_container_killed_before_its_start_is_not_started() {
    testsuite::run(runc, async |f| {
        let (id, bundle) = bundle(f, "true", |_| {});
        let task = f.runtime.create(request(&id, &bundle, Stdio::default())).await.unwrap();
        task.kill(9, false).await.unwrap();
        let error = within(task.start()).await.unwrap_err();
        assert!(matches!(error, Error::FailedPrecondition(_)), "{error}");
        assert_eq!(within(task.wait()).await.unwrap().status, 137);
        within(task.delete()).await.unwrap();
        bundle.remove().unwrap();
    });
}

/// All processes of a container that ends just then are signalled, or are said to have ended.
#[test]
fn a_container_that_ends_while_all_of_it_is_signalled_has_ended() {
    testsuite::run(runc, async |f| {
        for round in 0..20 {
            let task = f.create("true", Stdio::default()).await.unwrap();
            within(task.start()).await.unwrap();
            tokio::time::sleep(Duration::from_millis(round)).await;
            if let Err(error) = within(task.kill(9, true)).await {
                assert!(matches!(error, Error::NotFound(_)), "{error}");
            }
            within(task.wait()).await.unwrap();
            within(task.delete()).await.unwrap();
        }
    });
}

/// Groups, limits and a user namespace reach the container as the spec has them.
#[test]
fn groups_limits_and_user_namespaces_are_passed_on() {
    testsuite::run(runc, async |f| {
        let script = "busybox id; ulimit -n; head -n 1 /proc/self/uid_map";
        let (status, text) = run_to_end(f, script, |spec| {
            spec["process"]["user"]["additionalGids"] = json!([5, 4711]);
            spec["process"]["rlimits"] =
                json!([{ "type": "RLIMIT_NOFILE", "hard": 321, "soft": 123 }]);
        })
        .await
        .unwrap();
        assert_eq!(status, 0, "{text}");
        assert!(text.contains("4711"), "{text}");
        assert!(text.contains("\n123\n"), "{text}");

        let (id, mapped) = bundle(f, "head -n 1 /proc/self/uid_map", |spec| {
            let map = json!([{ "containerID": 0, "hostID": 100_000, "size": 65_536 }]);
            spec["linux"]["uidMappings"] = map.clone();
            spec["linux"]["gidMappings"] = map;
            let namespaces = spec["linux"]["namespaces"].as_array_mut().unwrap();
            namespaces.push(json!({ "type": "user" }));
        });
        // Its root has to reach its file system.
        for folder in [f.dir.as_path(), mapped.path(), &mapped.rootfs()] {
            fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).unwrap();
        }
        let (path, stdio) = output(f);
        let task = f.runtime.create(request(&id, &mapped, stdio)).await.unwrap();
        task.start().await.unwrap();
        assert_eq!(within(task.wait()).await.unwrap().status, 0);
        within(task.delete()).await.unwrap();
        let text = fs::read_to_string(path).unwrap();
        let map: Vec<&str> = text.split_whitespace().collect();
        assert_eq!(map, ["0", "100000", "65536"]);
    });
}

/// Without CRIU a checkpoint is refused in words, and the container goes on.
#[test]
fn a_checkpoint_is_made_or_refused() {
    testsuite::run(runc, async |f| {
        let task = f.create("sleep 60", Stdio::default()).await.unwrap();
        task.start().await.unwrap();
        let image = f.dir.join("image");
        fs::create_dir(&image).unwrap();
        let made = within(task.checkpoint(image, Default::default())).await;
        if let Err(error) = made {
            assert!(error.to_string().contains("checkpoint failed"), "{error}");
            assert_eq!(task.state().await.unwrap().status, Status::Running);
        }
        end(&task).await;
    });
}
