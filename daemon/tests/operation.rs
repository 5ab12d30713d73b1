//! The daemon as those who run it meet it: what it tells them, how it starts and stops, and what it
//! makes of directories it finds.

mod common;
#[path = "common/images.rs"]
mod images;

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{Fixture, config, connect, in_namespace, labels};
use crated::config::Span;
use crated::error::{Error, chain};
use crated::metadata::{Db, NoEvents};
use crated_api::any;
use crated_api::services::containers::v1::container::Runtime;
use crated_api::services::containers::v1::containers_client::ContainersClient;
use crated_api::services::containers::v1::{
    Container, CreateContainerRequest, GetContainerRequest, ListContainersRequest,
};
use crated_api::services::content::v1::content_client::ContentClient;
use crated_api::services::content::v1::{
    InfoRequest, ListContentRequest, WriteAction, WriteContentRequest,
};
use crated_api::services::images::v1::images_client::ImagesClient;
use crated_api::services::images::v1::{
    CreateImageRequest, DeleteImageRequest, Image, ListImagesRequest,
};
use crated_api::services::leases::v1::leases_client::LeasesClient;
use crated_api::services::leases::v1::{CreateRequest, ListRequest};
use crated_api::services::snapshots::v1::snapshots_client::SnapshotsClient;
use crated_api::services::snapshots::v1::{
    CommitSnapshotRequest, PrepareSnapshotRequest, StatSnapshotRequest,
};
use crated_api::services::transfer::v1::TransferRequest;
use crated_api::services::transfer::v1::transfer_client::TransferClient;
use crated_api::services::version::v1::version_client::VersionClient;
use crated_api::types::transfer::{ImageStore, OciRegistry, RegistryResolver, UnpackConfiguration};
use crated_api::types::{Descriptor, Platform};
use crated_distribution::testsuite::MemoryRegistry;
use images::{Layer, host_architecture};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tonic::transport::Channel;

const NAMESPACE: &str = "operated";

/// Longest wait for something that must happen.
const DEADLINE: Duration = Duration::from_secs(60);

/// Waits until `found` answers.
fn eventually<T>(what: &str, mut found: impl FnMut() -> Option<T>) -> T {
    let begin = Instant::now();
    loop {
        if let Some(found) = found() {
            return found;
        }
        assert!(begin.elapsed() < DEADLINE, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The program, as a service manager starts it.
struct Process {
    child: Child,
    socket: PathBuf,
}

impl Process {
    fn start(directory: &Path, environment: &[(&str, &str)]) -> Self {
        Self::start_program(Path::new(env!("CARGO_BIN_EXE_crated")), directory, environment)
    }

    fn start_program(program: &Path, directory: &Path, environment: &[(&str, &str)]) -> Self {
        let config = config(directory);
        let (socket, file) = (config.grpc.address.clone(), directory.join("config.toml"));
        fs::write(&file, config.to_toml()).unwrap();
        let child = Command::new(program)
            .arg("--config")
            .arg(&file)
            .envs(environment.iter().copied())
            .stderr(fs::File::options().create(true).append(true).open(log(directory)).unwrap())
            .spawn()
            .unwrap();
        Self { child, socket }
    }

    /// A client, once the daemon answers.
    async fn client(&self) -> Channel {
        let begin = Instant::now();
        while tokio::net::UnixStream::connect(&self.socket).await.is_err() {
            assert!(begin.elapsed() < DEADLINE, "the daemon does not answer");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let channel = connect(self.socket.clone()).await;
        VersionClient::new(channel.clone()).version(()).await.unwrap();
        channel
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).unwrap()).unwrap();
        kill_process(pid, signal).unwrap();
    }

    fn wait(&mut self) -> std::process::ExitStatus {
        eventually("the end of the daemon", || self.child.try_wait().unwrap())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn log(directory: &Path) -> PathBuf {
    directory.join("log")
}

/// Runs `crated fsck` on the directories of a fixture.
fn fsck(directory: &Path, arguments: &[&str]) -> (Option<i32>, String) {
    let config = config(directory);
    let Output { status, stdout, stderr } = Command::new(env!("CARGO_BIN_EXE_crated"))
        .args(["--config", "/dev/null", "--root"])
        .arg(&config.root)
        .arg("fsck")
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&stdout) + String::from_utf8_lossy(&stderr);
    (status.code(), text.into_owned())
}

fn database(directory: &Path) -> PathBuf {
    directory.join("root/io.containerd.metadata.v1.bolt/meta.redb")
}

/// One scrape: the head and the body of the answer.
fn scrape(mut stream: impl Read + Write, path: &str) -> (String, String) {
    write!(stream, "GET {path} HTTP/1.1\r\nHost: metrics\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
    (head.to_owned(), body.to_owned())
}

async fn make_container(channel: &Channel, id: &str) {
    let container = Container {
        id: id.to_owned(),
        runtime: Some(Runtime { name: "io.containerd.runc.v2".to_owned(), options: None }),
        spec: Some(any::pack(&ListContainersRequest::default())),
        ..Container::default()
    };
    let request = CreateContainerRequest { container: Some(container) };
    ContainersClient::new(channel.clone()).create(in_namespace(NAMESPACE, request)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_are_counted_where_metrics_are_scraped() {
    let directory = Arc::new(TempDir::new().unwrap());
    let daemon = Fixture::start_configured(directory, |config| {
        config.metrics.address = "127.0.0.1:0".to_owned();
        config.metrics.grpc_histogram = true;
    })
    .await;
    VersionClient::new(daemon.channel.clone()).version(()).await.unwrap();
    let missing = GetContainerRequest { id: "missing".to_owned() };
    let mut containers = ContainersClient::new(daemon.channel.clone());
    containers.get(in_namespace(NAMESPACE, missing)).await.unwrap_err();
    daemon.store(NAMESPACE, b"twelve bytes").await;
    make_container(&daemon.channel, "c").await;

    let address = daemon.running.metrics_address().unwrap().to_owned();
    let scraped = tokio::task::spawn_blocking(move || {
        let connect = || TcpStream::connect(&address).unwrap();
        assert!(scrape(connect(), "/elsewhere").0.starts_with("HTTP/1.1 404"));
        // A call counts when its answer has been sent to the end, a little after it was read.
        eventually("the calls in the metrics", || {
            let (head, body) = scrape(connect(), "/v1/metrics");
            assert!(head.starts_with("HTTP/1.1 200") && head.contains("openmetrics"), "{head}");
            let wanted = [
                "grpc_service=\"containerd.services.version.v1.Version\",grpc_method=\"Version\",\
                 grpc_code=\"OK\"} 1",
                "grpc_method=\"Get\",grpc_code=\"NotFound\"} 1",
                "crated_call_seconds_count{service=\"containerd.services.version.v1.Version\"} 1",
                "crated_ingest_bytes_total 12",
                "crated_containers{namespace=\"operated\"} 1",
            ];
            wanted.iter().all(|line| body.contains(line)).then_some(body)
        })
    });
    let body = scraped.await.unwrap();
    assert!(body.contains("grpc_server_handling_seconds_bucket"), "{body}");
    assert!(body.contains("containerd_build_info_total"), "{body}");
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_on_a_unix_socket_are_for_its_owner_and_group() {
    let directory = Arc::new(TempDir::new().unwrap());
    let path = directory.path().join("metrics.sock");
    let address = format!("unix://{}", path.display());
    let daemon =
        Fixture::start_configured(directory, |config| config.metrics.address = address).await;
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
    let at = path.clone();
    let (_, body) =
        tokio::task::spawn_blocking(move || scrape(UnixStream::connect(at).unwrap(), "/metrics"))
            .await
            .unwrap();
    assert!(body.ends_with("# EOF\n"));
    let Fixture { running, channel, .. } = daemon;
    drop(channel);
    running.stop().await.unwrap();
    assert!(!path.exists(), "it goes with the daemon");
}

#[tokio::test(flavor = "multi_thread")]
async fn signals_dump_the_state_or_end_the_daemon_and_nothing_else() {
    let directory = TempDir::new().unwrap();
    let mut process = Process::start(directory.path(), &[]);
    let channel = process.client().await;
    process.signal(Signal::HUP);
    process.signal(Signal::USR1);
    let dump = directory.path().join("state/dump.txt");
    let text = eventually("the dump", || fs::read_to_string(&dump).ok());
    assert!(
        text.contains("# threads") && text.contains("# what running operations hold"),
        "{text}"
    );
    assert!(text.contains("crated_calls_open") && text.contains(" gc "), "{text}");
    assert_eq!(fs::metadata(&dump).unwrap().permissions().mode() & 0o777, 0o600);
    VersionClient::new(channel).version(()).await.unwrap();
    for _ in 0..3 {
        process.signal(Signal::TERM);
    }
    assert!(process.wait().success());
    assert!(!process.socket.exists());
    let log = fs::read_to_string(log(directory.path())).unwrap();
    assert!(log.contains("state dumped"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_service_manager_hears_that_the_daemon_is_ready_and_alive() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    manager.set_read_timeout(Some(DEADLINE)).unwrap();
    let environment = [("NOTIFY_SOCKET", path.to_str().unwrap()), ("WATCHDOG_USEC", "100000")];
    let mut process = Process::start(directory.path(), &environment);
    let heard = || {
        let mut buffer = [0; 4096];
        let length = manager.recv(&mut buffer).expect("the daemon says something");
        String::from_utf8_lossy(&buffer[..length]).trim().to_owned()
    };
    assert_eq!(heard(), "READY=1");
    assert_eq!(heard(), "WATCHDOG=1");
    assert_eq!(heard(), "WATCHDOG=1", "again and again");
    process.signal(Signal::TERM);
    eventually("STOPPING=1", || (heard() == "STOPPING=1").then_some(()));
    assert!(process.wait().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_answered_survives_being_killed_again_and_again() {
    let directory = TempDir::new().unwrap();
    for round in 0..5 {
        let mut process = Process::start(directory.path(), &[]);
        let channel = process.client().await;
        let listed = ContainersClient::new(channel.clone())
            .list(in_namespace(NAMESPACE, ListContainersRequest::default()))
            .await
            .unwrap()
            .into_inner()
            .containers;
        assert_eq!(listed.len(), round);
        make_container(&channel, &format!("c{round}")).await;
        let lease = CreateRequest { id: format!("l{round}"), labels: labels(&[]) };
        let mut leases = LeasesClient::new(channel);
        leases.create(in_namespace(NAMESPACE, lease)).await.unwrap();
        let held = leases.list(in_namespace(NAMESPACE, ListRequest::default())).await.unwrap();
        assert_eq!(held.into_inner().leases.len(), round + 1);
        process.signal(Signal::KILL);
        process.wait();
        assert!(process.socket.exists(), "nobody could take it away");
    }
    let left: Vec<String> = fs::read_dir(directory.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .filter(|name| name.starts_with(".crated"))
        .collect();
    assert!(left.is_empty(), "leftovers grow with every crash: {left:?}");
}

/// Shims that take connections and say nothing, as one that hangs does.
#[tokio::test(flavor = "multi_thread")]
async fn the_api_answers_while_mute_shims_are_waited_for() {
    const CONTAINERS: usize = 300;
    const MUTE: usize = 20;
    let directory = Arc::new(TempDir::new().unwrap());
    {
        let db = Db::open(&config(directory.path()).root, Arc::new(NoEvents)).unwrap();
        let scope = crated::metadata::Scope::new(NAMESPACE.parse().unwrap());
        let containers = db.containers();
        std::thread::scope(|threads| {
            for thread in 0..10 {
                let (containers, scope) = (&containers, &scope);
                threads.spawn(move || {
                    for number in (thread..CONTAINERS).step_by(10) {
                        containers.create(scope, record(&format!("c{number}"))).unwrap();
                    }
                });
            }
        });
    }
    let tasks = directory.path().join("state/io.containerd.runtime.v2.task").join(NAMESPACE);
    let mut shims = Vec::new();
    for number in 0..MUTE {
        let bundle = tasks.join(format!("c{number}"));
        fs::create_dir_all(&bundle).unwrap();
        let socket = directory.path().join(format!("shim{number}"));
        shims.push(UnixListener::bind(&socket).unwrap());
        let address = format!(
            r#"{{"version":2,"address":"unix://{}","protocol":"ttrpc"}}"#,
            socket.display()
        );
        fs::write(bundle.join("bootstrap.json"), address).unwrap();
    }
    let state = directory.path().join("state");
    fs::set_permissions(state, fs::Permissions::from_mode(0o711)).unwrap();
    let daemon = Fixture::start_configured(directory, |config| {
        // Far longer than the test waits for answers: whatever answers did not wait for this.
        let name = "io.containerd.timeout.shim.load".to_owned();
        config.timeouts.insert(name, Span(Duration::from_secs(3600)));
    })
    .await;
    let answers = async {
        VersionClient::new(daemon.channel.clone()).version(()).await.unwrap();
        let request = in_namespace(NAMESPACE, ListContainersRequest::default());
        let listed = ContainersClient::new(daemon.channel.clone()).list(request).await.unwrap();
        assert_eq!(listed.into_inner().containers.len(), CONTAINERS);
        make_container(&daemon.channel, "new").await;
    };
    tokio::time::timeout(DEADLINE, answers).await.expect("the API waits for mute shims");
    for number in 0..MUTE {
        assert!(tasks.join(format!("c{number}/bootstrap.json")).exists(), "unknown means in use");
    }
}

fn record(id: &str) -> crated::metadata::Container {
    crated::metadata::Container {
        id: id.to_owned(),
        labels: crated::metadata::Labels::new(),
        image: None,
        runtime: crated::metadata::Runtime {
            name: "io.containerd.runc.v2".to_owned(),
            options: None,
        },
        spec: crated::metadata::Any { type_url: "spec".to_owned(), value: b"{}".to_vec() },
        snapshotter: None,
        snapshot_key: None,
        extensions: std::collections::BTreeMap::new(),
        sandbox: None,
        created_at: std::time::SystemTime::UNIX_EPOCH,
        updated_at: std::time::SystemTime::UNIX_EPOCH,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn directories_that_cannot_be_trusted_are_refused() {
    let directory = TempDir::new().unwrap();
    let root = config(directory.path()).root;
    let elsewhere = directory.path().join("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    std::os::unix::fs::symlink(&elsewhere, &root).unwrap();
    let error = crated::start(config(directory.path())).await.err().expect("refused");
    assert!(matches!(error, Error::Directory { .. }), "{}", chain(&error));
    assert_eq!(fs::read_dir(&elsewhere).unwrap().count(), 0, "nothing was made behind the link");

    fs::remove_file(&root).unwrap();
    fs::create_dir(&root).unwrap();
    fs::write(root.join("planted"), "x").unwrap();
    fs::set_permissions(&root, fs::Permissions::from_mode(0o777)).unwrap();
    let error = crated::start(config(directory.path())).await.err().expect("refused");
    assert!(chain(&error).contains("others may write to it"), "{}", chain(&error));

    fs::set_permissions(&root, fs::Permissions::from_mode(0o700)).unwrap();
    let open = directory.path().join("open");
    fs::create_dir(&open).unwrap();
    fs::set_permissions(&open, fs::Permissions::from_mode(0o777)).unwrap();
    let mut exposed = config(directory.path());
    exposed.grpc.address = open.join("c.sock");
    let error = crated::start(exposed).await.err().expect("refused");
    assert!(chain(&error).contains("replace a socket"), "{}", chain(&error));
}

async fn pull(fixture: &Fixture, reference: &str) {
    let platform = Platform {
        os: "linux".to_owned(),
        architecture: host_architecture().to_owned(),
        ..Platform::default()
    };
    let resolver =
        RegistryResolver { default_scheme: "http".to_owned(), ..RegistryResolver::default() };
    let source = OciRegistry { reference: reference.to_owned(), resolver: Some(resolver) };
    let destination = ImageStore {
        name: reference.to_owned(),
        platforms: vec![platform.clone()],
        unpacks: vec![UnpackConfiguration {
            platform: Some(platform),
            snapshotter: "native".to_owned(),
        }],
        ..ImageStore::default()
    };
    let request = TransferRequest {
        source: Some(any::pack(&source)),
        destination: Some(any::pack(&destination)),
        options: None,
    };
    let mut client = TransferClient::new(fixture.channel.clone());
    client.transfer(in_namespace(NAMESPACE, request)).await.unwrap();
}

async fn blobs(fixture: &Fixture) -> usize {
    let request = in_namespace(NAMESPACE, ListContentRequest::default());
    let mut stream = fixture.content().list(request).await.unwrap().into_inner();
    let mut count = 0;
    while let Some(batch) = stream.message().await.unwrap() {
        count += batch.info.len();
    }
    count
}

/// Has a collection run that takes everything it may take.
async fn collect(fixture: &Fixture) {
    let leases = LeasesClient::new(fixture.channel.clone());
    let lease = CreateRequest { id: "passing".to_owned(), ..CreateRequest::default() };
    leases.clone().create(in_namespace(NAMESPACE, lease)).await.unwrap();
    let delete =
        crated_api::services::leases::v1::DeleteRequest { id: "passing".to_owned(), sync: true };
    leases.clone().delete(in_namespace(NAMESPACE, delete)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_records_are_never_a_reason_to_delete_and_fsck_rebuilds_them() {
    let registry = MemoryRegistry::start().await.unwrap();
    let lower = Layer::of(&[("etc/a", 0o644, b"lower")]);
    let upper = Layer::of(&[("etc/b", 0o644, b"upper")]);
    let root = images::put(&registry, "a/b", Some("1"), host_architecture(), &[&lower, &upper]);
    let name = registry.reference("a/b:1").to_string();
    let top = crated_snapshot::chain_id(Some(lower.diff_id.as_str()), upper.diff_id.as_str());
    let daemon = Fixture::start().await;
    pull(&daemon, &name).await;
    let mut snapshots = SnapshotsClient::new(daemon.channel.clone());
    let prepare = PrepareSnapshotRequest {
        snapshotter: "native".to_owned(),
        key: "writable".to_owned(),
        parent: top.clone(),
        ..PrepareSnapshotRequest::default()
    };
    snapshots.prepare(in_namespace(NAMESPACE, prepare)).await.unwrap();
    assert_eq!(blobs(&daemon).await, 4);
    drop(snapshots);
    let Fixture { running, channel, directory } = daemon;
    drop(channel);
    running.stop().await.unwrap();
    let (code, text) = fsck(directory.path(), &[]);
    assert_eq!((code, text.as_str()), (Some(0), "records, content and snapshots agree\n"));

    fs::write(database(directory.path()), "no database").unwrap();
    let error = crated::start(config(directory.path())).await.err().expect("refused");
    assert!(chain(&error).contains("crated fsck"), "{}", chain(&error));
    let (code, text) = fsck(directory.path(), &[]);
    assert_eq!(code, Some(4), "{text}");
    assert!(text.contains(&format!("{NAMESPACE} content {}: ", root.digest)), "{text}");
    assert!(text.contains("snapshot native/writable: "), "{text}");
    assert_eq!(fs::read(database(directory.path())).unwrap(), b"no database");

    let (code, text) = fsck(directory.path(), &["--repair"]);
    assert_eq!(code, Some(0), "{text}");
    let aside = database(directory.path()).with_file_name("meta.redb.damaged-1");
    assert_eq!(fs::read(aside).unwrap(), b"no database");
    let daemon = Fixture::start_on(directory).await;
    collect(&daemon).await;
    assert_eq!(blobs(&daemon).await, 4);
    let mut snapshots = SnapshotsClient::new(daemon.channel.clone());
    for key in ["writable", &top] {
        let stat = StatSnapshotRequest { snapshotter: "native".to_owned(), key: key.to_owned() };
        snapshots.stat(in_namespace(NAMESPACE, stat)).await.unwrap();
    }
    let info = InfoRequest { digest: root.digest.to_string() };
    let info = daemon.content().info(in_namespace(NAMESPACE, info)).await.unwrap().into_inner();
    let labels = info.info.unwrap().labels;
    assert!(labels.contains_key("containerd.io/gc.ref.content.l.1"), "{labels:?}");

    // The name of the image is what nothing proves. Pulled again, it costs no layer.
    let before = registry.requests().len();
    pull(&daemon, &name).await;
    let again: Vec<String> = registry.requests().split_off(before);
    let layers = [&lower, &upper].map(|layer| crated_distribution::Digest::of(&layer.gzip));
    for digest in layers {
        assert!(!again.iter().any(|request| request.contains(digest.as_str())), "{again:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_root_without_its_database_does_not_start_empty() {
    let daemon = Fixture::start().await;
    daemon.store(NAMESPACE, b"precious").await;
    let Fixture { running, channel, directory } = daemon;
    drop(channel);
    running.stop().await.unwrap();
    for name in ["meta.redb", "identity"] {
        fs::remove_file(database(directory.path()).with_file_name(name)).unwrap();
    }
    for _ in 0..2 {
        let error = crated::start(config(directory.path())).await.err().expect("refused");
        assert!(chain(&error).contains("there are content or snapshots"), "{}", chain(&error));
    }
    let (code, text) = fsck(directory.path(), &["--repair"]);
    assert_eq!(code, Some(4), "{text}");
    assert!(text.contains("1 blobs: no record can be proved"), "{text}");
    let daemon = Fixture::start_on(directory).await;
    assert_eq!(blobs(&daemon).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn fsck_leaves_a_running_daemon_alone() {
    let daemon = Fixture::start().await;
    let (code, text) = fsck(daemon.directory.path(), &["--repair"]);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("held by process"), "{text}");
}

/// Layout of state directories of earlier releases, as archives; each opens with all it held.
#[tokio::test(flavor = "multi_thread")]
async fn state_directories_of_every_release_open_with_all_they_hold() {
    let kept = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let mut archives: Vec<PathBuf> =
        fs::read_dir(&kept).unwrap().map(|entry| entry.unwrap().path()).collect();
    archives.sort();
    assert!(!archives.is_empty());
    for archive in archives {
        let directory = Arc::new(TempDir::new().unwrap());
        let packed = flate2::read::GzDecoder::new(fs::File::open(&archive).unwrap());
        tar::Archive::new(packed).unpack(directory.path()).unwrap();
        for _ in 0..2 {
            let daemon = Fixture::start_on(directory.clone()).await;
            check_golden(&daemon, &archive).await;
            collect(&daemon).await;
            check_golden(&daemon, &archive).await;
            let Fixture { running, channel, .. } = daemon;
            drop(channel);
            running.stop().await.unwrap();
        }
        let (code, text) = fsck(directory.path(), &[]);
        assert_eq!(code, Some(0), "{}: {text}", archive.display());
    }
}

/// The content that is kept of each release: made here, by the daemon of this release or by the
/// program that CRATED_GOLDEN_DAEMON names, and packed into CRATED_GOLDEN_OUT if that is set.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_kept_of_this_release_can_be_made_again() {
    let directory = Arc::new(TempDir::new().unwrap());
    let program = std::env::var_os("CRATED_GOLDEN_DAEMON");
    let program = program.unwrap_or_else(|| env!("CARGO_BIN_EXE_crated").into());
    let mut process = Process::start_program(Path::new(&program), directory.path(), &[]);
    fill_golden(&process.client().await).await;
    process.signal(Signal::TERM);
    assert!(process.wait().success());
    if let Some(out) = std::env::var_os("CRATED_GOLDEN_OUT") {
        let packer = flate2::write::GzEncoder::new(
            fs::File::create(out).unwrap(),
            flate2::Compression::best(),
        );
        let mut archive = tar::Builder::new(packer);
        archive.append_dir_all("root", directory.path().join("root")).unwrap();
        archive.into_inner().unwrap().finish().unwrap();
    }
    let daemon = Fixture::start_on(directory).await;
    check_golden(&daemon, Path::new("this release")).await;
}

async fn fill_golden(channel: &Channel) {
    let message = WriteContentRequest {
        action: WriteAction::Commit.into(),
        r#ref: "golden".to_owned(),
        data: b"golden bytes".to_vec().into(),
        labels: labels(&[("containerd.io/gc.root", "yes")]),
        ..WriteContentRequest::default()
    };
    let request = in_namespace("golden", tokio_stream::iter([message]));
    let mut content = ContentClient::new(channel.clone());
    let mut answers = content.write(request).await.unwrap().into_inner();
    let digest = answers.message().await.unwrap().unwrap().digest;
    let image = Image {
        name: "golden".to_owned(),
        labels: labels(&[("kept", "yes")]),
        target: Some(Descriptor {
            media_type: "text/plain".to_owned(),
            digest,
            size: 12,
            ..Descriptor::default()
        }),
        ..Image::default()
    };
    let request = CreateImageRequest { image: Some(image), ..CreateImageRequest::default() };
    let mut images = ImagesClient::new(channel.clone());
    images.create(in_namespace("golden", request)).await.unwrap();
    let lease = CreateRequest { id: "forever".to_owned(), ..CreateRequest::default() };
    let mut leases = LeasesClient::new(channel.clone());
    leases.create(in_namespace("golden", lease)).await.unwrap();
    let mut snapshots = SnapshotsClient::new(channel.clone());
    let prepare = |key: &str, parent: &str| PrepareSnapshotRequest {
        snapshotter: "native".to_owned(),
        key: key.to_owned(),
        parent: parent.to_owned(),
        ..PrepareSnapshotRequest::default()
    };
    snapshots.prepare(in_namespace("golden", prepare("draft", ""))).await.unwrap();
    let commit = CommitSnapshotRequest {
        snapshotter: "native".to_owned(),
        name: "base".to_owned(),
        key: "draft".to_owned(),
        ..CommitSnapshotRequest::default()
    };
    snapshots.commit(in_namespace("golden", commit)).await.unwrap();
    snapshots.prepare(in_namespace("golden", prepare("writable", "base"))).await.unwrap();
    let leased = common::with_lease("golden", "forever", prepare("leased", "base"));
    snapshots.prepare(leased).await.unwrap();
    let container = Container {
        id: "golden".to_owned(),
        runtime: Some(Runtime { name: "io.containerd.runc.v2".to_owned(), options: None }),
        spec: Some(any::pack(&ListContainersRequest::default())),
        snapshotter: "native".to_owned(),
        snapshot_key: "writable".to_owned(),
        ..Container::default()
    };
    let request = CreateContainerRequest { container: Some(container) };
    let mut containers = ContainersClient::new(channel.clone());
    containers.create(in_namespace("golden", request)).await.unwrap();
}

async fn check_golden(daemon: &Fixture, archive: &Path) {
    let at = archive.display();
    let listed = ImagesClient::new(daemon.channel.clone())
        .list(in_namespace("golden", ListImagesRequest::default()))
        .await
        .unwrap()
        .into_inner()
        .images;
    assert_eq!(listed.len(), 1, "{at}");
    assert_eq!(listed[0].labels.get("kept").map(String::as_str), Some("yes"), "{at}");
    let target = listed[0].target.clone().unwrap();
    let bytes = read(daemon, &target.digest).await;
    assert_eq!(bytes, b"golden bytes", "{at}");
    let containers = ContainersClient::new(daemon.channel.clone())
        .list(in_namespace("golden", ListContainersRequest::default()))
        .await
        .unwrap()
        .into_inner()
        .containers;
    assert_eq!(containers.len(), 1, "{at}");
    assert_eq!(containers[0].snapshot_key, "writable", "{at}");
    let mut snapshots = SnapshotsClient::new(daemon.channel.clone());
    for key in ["base", "writable", "leased"] {
        let stat = StatSnapshotRequest { snapshotter: "native".to_owned(), key: key.to_owned() };
        let stat = snapshots.stat(in_namespace("golden", stat)).await;
        assert!(stat.is_ok(), "{at}: {key}: {stat:?}");
    }
    let leases = LeasesClient::new(daemon.channel.clone())
        .list(in_namespace("golden", ListRequest::default()))
        .await
        .unwrap()
        .into_inner()
        .leases;
    assert!(leases.iter().any(|lease| lease.id == "forever"), "{at}: {leases:?}");
}

async fn read(daemon: &Fixture, digest: &str) -> Vec<u8> {
    let request = crated_api::services::content::v1::ReadContentRequest {
        digest: digest.to_owned(),
        offset: 0,
        size: 0,
    };
    let mut stream =
        daemon.content().read(in_namespace("golden", request)).await.unwrap().into_inner();
    let mut bytes = Vec::new();
    while let Some(message) = stream.message().await.unwrap() {
        bytes.extend_from_slice(&message.data);
    }
    bytes
}

#[tokio::test(flavor = "multi_thread")]
async fn deleting_an_image_twice_or_of_another_target_changes_nothing_more() {
    let daemon = Fixture::start().await;
    let mut images = ImagesClient::new(daemon.channel.clone());
    let delete =
        || DeleteImageRequest { name: "none".to_owned(), sync: true, ..Default::default() };
    for _ in 0..2 {
        let status = images.delete(in_namespace(NAMESPACE, delete())).await.unwrap_err();
        assert_eq!(status.code(), tonic::Code::NotFound);
    }
}
