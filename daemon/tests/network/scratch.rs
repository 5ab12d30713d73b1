//! A host of one's own, and a daemon on it.
#![allow(dead_code, unreachable_pub, reason = "every test uses a part of it")]
#![allow(unsafe_code, reason = "a test thread leaves the process's namespaces for good")]
#![allow(clippy::print_stdout, reason = "a skipped test says why")]

use std::future::Future;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crated_api::network as api;
use crated_api::network::network_client::NetworkClient;
use crated_api::network::operation::Change;
use rustix::mount::MountPropagationFlags;
use rustix::thread::UnshareFlags;
use tempfile::TempDir;
use tonic::transport::Channel;

use crate::common::{Fixture, connect, in_namespace};

/// Waits for what must come at last, on a machine that may be stalled.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Runs `test` on a thread with a network and a mount namespace of its own, under a runtime whose
/// threads are in them too. Prints why and does nothing when not root, but fails in CI.
pub fn scratch<F: Future<Output = ()>>(test: impl FnOnce(Arc<TempDir>) -> F + Send + 'static) {
    if !rustix::process::geteuid().is_root() {
        assert!(std::env::var("CI").as_deref() != Ok("true"), "needs root");
        println!("skipped: needs root");
        return;
    }
    let thread = std::thread::spawn(move || {
        // SAFETY: neither flag concerns descriptors or memory of other threads.
        unsafe {
            rustix::thread::unshare_unsafe(UnshareFlags::NEWNET | UnshareFlags::NEWNS).unwrap();
        }
        let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
        rustix::mount::mount_change("/", private).unwrap();
        let directory = Arc::new(TempDir::new().unwrap());
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .max_blocking_threads(crated::blocking::THREADS_MAX)
            .enable_all()
            .build()
            .unwrap();
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            runtime.block_on(test(Arc::clone(&directory)));
        }));
        runtime.shutdown_background();
        // The directory of pins is a mount, which would keep its parent from being removed.
        let pins = directory.path().join("state/netns");
        let _ = rustix::mount::unmount(&pins, rustix::mount::UnmountFlags::DETACH);
        if let Err(panic) = outcome {
            std::panic::resume_unwind(panic);
        }
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// A client of a daemon's networks.
pub fn client(channel: &Channel) -> NetworkClient<Channel> {
    NetworkClient::new(channel.clone())
}

/// A daemon in this process and its client.
pub async fn start(directory: Arc<TempDir>) -> (Fixture, NetworkClient<Channel>) {
    let fixture = Fixture::start_on(directory).await;
    let client = client(&fixture.channel);
    (fixture, client)
}

/// A call in the namespace of these tests.
pub fn call<T>(message: T) -> tonic::Request<T> {
    in_namespace("test", message)
}

/// The operation that makes a namespace.
pub fn netns(id: &str) -> api::CreateNetnsRequest {
    let netns = api::Netns { id: id.to_owned(), ..api::Netns::default() };
    api::CreateNetnsRequest { netns: Some(netns) }
}

/// A bridge on the host.
pub fn bridge(name: &str) -> api::CreateLinkRequest {
    let kind = api::link_spec::Kind::Bridge(api::Bridge::default());
    link("host", name, kind, |_| ())
}

/// A link.
pub fn link(
    netns: &str,
    name: &str,
    kind: api::link_spec::Kind,
    change: impl FnOnce(&mut api::LinkSpec),
) -> api::CreateLinkRequest {
    let mut spec =
        api::LinkSpec { name: name.to_owned(), kind: Some(kind), ..api::LinkSpec::default() };
    change(&mut spec);
    let link = api::Link { netns: netns.to_owned(), spec: Some(spec), ..api::Link::default() };
    api::CreateLinkRequest { link: Some(link) }
}

/// A cable from a namespace to the host, there a port of `master` unless empty.
pub fn cable(netns: &str, name: &str, peer: &str, master: &str) -> api::CreateLinkRequest {
    let peer = api::LinkSpec {
        name: peer.to_owned(),
        master: master.to_owned(),
        ..api::LinkSpec::default()
    };
    let pair = api::Pair { peer: Some(peer.into()), peer_netns: "host".to_owned(), layer3: false };
    link(netns, name, api::link_spec::Kind::Veth(pair.into()), |_| ())
}

/// The same with an address.
pub fn with_address(mut request: api::CreateLinkRequest, address: &str) -> api::CreateLinkRequest {
    let spec = request.link.as_mut().unwrap().spec.as_mut().unwrap();
    let address = api::Address { address: address.to_owned(), ..api::Address::default() };
    spec.addrs.push(address);
    request
}

pub fn operation(change: Change) -> api::Operation {
    api::Operation { netns: String::new(), change: Some(change) }
}

/// A namespace and its cable by one call.
pub fn container(id: &str, peer: &str, master: &str, address: &str) -> api::ApplyRequest {
    let cable = with_address(cable(id, "eth0", peer, master), address);
    let changes = [Change::CreateNetns(netns(id)), Change::CreateLink(cable)];
    api::ApplyRequest { operations: changes.into_iter().map(operation).collect(), atomic: true }
}

/// Runs a program on the scratch host and answers with what it printed.
pub fn run(line: &str) -> (bool, String) {
    let mut words = line.split_whitespace();
    let out = Command::new(words.next().unwrap()).args(words).output().unwrap();
    let text = [out.stdout, out.stderr].concat();
    (out.status.success(), String::from_utf8_lossy(&text).into_owned())
}

/// Runs a program that must succeed.
pub fn must(line: &str) -> String {
    let (ok, text) = run(line);
    assert!(ok, "{line}: {text}");
    text
}

/// Names of the links on the scratch host.
pub fn host_links() -> Vec<String> {
    let text = must("ip -o link");
    let name = |line: &str| Some(line.split(": ").nth(1)?.split('@').next()?.to_owned());
    text.lines().filter_map(name).filter(|name| name != "lo").collect()
}

/// What is in the directory of pins.
pub fn pins(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory.join("state/netns")).into_iter().flatten();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

/// Waits until `done` says so.
pub async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "in vain: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A daemon as a process of its own.
pub struct Process {
    child: Child,
    pub channel: Channel,
}

impl Process {
    /// Starts the daemon's program below `directory` and waits until it answers.
    pub async fn start(directory: &Path, settings: &str, env: &[(&str, &str)]) -> Self {
        let mut program = Command::new(env!("CARGO_BIN_EXE_crated"));
        program.envs(env.iter().copied());
        Self::run(program, directory, settings).await
    }

    /// The same for a daemon that lacks a capability.
    pub async fn start_without(directory: &Path, capability: &str) -> Self {
        let mut program = Command::new("setpriv");
        program.arg(format!("--bounding-set=-{capability}"));
        program.arg("--").arg(env!("CARGO_BIN_EXE_crated"));
        Self::run(program, directory, "").await
    }

    async fn run(mut program: Command, directory: &Path, settings: &str) -> Self {
        let config = directory.join("config.toml");
        let text = format!(
            "version = 4\nroot = {:?}\nstate = {:?}\n[grpc]\naddress = {:?}\n{settings}",
            directory.join("root"),
            directory.join("state"),
            directory.join("c.sock"),
        );
        std::fs::write(&config, text).unwrap();
        let log = std::fs::File::options().create(true).append(true).open(directory.join("log"));
        let log = log.unwrap();
        let mut child = program
            .arg("--config")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let address: PathBuf = directory.join("c.sock");
        let deadline = Instant::now() + PATIENCE;
        while std::os::unix::net::UnixStream::connect(&address).is_err() {
            let ended = child.try_wait().unwrap();
            let log = || std::fs::read_to_string(directory.join("log")).unwrap();
            assert!(ended.is_none(), "the daemon ended: {}", log());
            assert!(Instant::now() < deadline, "the daemon does not answer: {}", log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Self { child, channel: connect(address).await }
    }

    /// Waits until the daemon has ended by itself.
    pub async fn ended(&mut self) {
        let child = &mut self.child;
        until("the daemon ends", || child.try_wait().unwrap().is_some()).await;
    }

    /// Ends it as a power cut would.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
