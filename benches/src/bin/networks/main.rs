//! Attaches containers to a bridge by crated, by crated through its API, by `ip -batch` and by the
//! CNI bridge plugin, taking turns, and prints times and quotients as Markdown.
//!
//! `networks [N...]` with counts of containers, 1, 100 and 1000 without arguments. `networks standing
//! [N]` prints what a restart of the daemon over N of them and idle watchers cost. Starts itself
//! again under `unshare -n -m`. `CRATED_BENCH_ROUNDS` sets the rounds; `CRATED_BIN` names the
//! daemon, which is looked for beside this program otherwise.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "printing is what it is for")]

mod standing;

use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use crated_api::network as api;
use crated_api::network::link_spec::Kind;
use crated_api::network::network_client::NetworkClient;
use crated_api::network::operation::Change;
use crated_benches::Samples;
use crated_benches::network::{
    Attacher, BRIDGE, Cni, InProcess, IpBatch, Times, address, private_netns_dir, round,
};
use tokio::runtime::Runtime;
use tonic::transport::{Channel, Endpoint};

/// Set in the process that is in namespaces of its own.
const INSIDE: &str = "CRATED_BENCH_INSIDE";

fn main() -> ExitCode {
    if std::env::var_os(INSIDE).is_none() {
        let this = std::env::current_exe().unwrap_or_else(|_| PathBuf::from("networks"));
        let mut again = Command::new("unshare");
        again.args(["-n", "-m", "--propagation", "private"]).arg(this);
        let error = again.args(std::env::args_os().skip(1)).env(INSIDE, "1").exec();
        eprintln!("networks: unshare: {error}");
        return ExitCode::from(2);
    }
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("networks: {error}");
            ExitCode::from(2)
        }
    }
}

fn run() -> io::Result<()> {
    let mut counts = Vec::new();
    let mut arguments = std::env::args().skip(1).peekable();
    let standing = arguments.next_if(|first| first == "standing").is_some();
    for argument in arguments {
        let invalid = |_| io::Error::other(format!("{argument:?} is no count"));
        counts.push(argument.parse::<usize>().map_err(invalid)?);
    }
    if counts.is_empty() && !standing {
        counts = vec![1, 100, 1000];
    }
    private_netns_dir()?;
    let directory = tempfile::tempdir()?;
    let load = std::fs::read_to_string("/proc/loadavg")?;
    println!("load average before: {}", load.trim());
    if standing {
        println!("\n| what | |\n|---|--:|");
        let measured = standing::measure(directory.path(), counts.pop().unwrap_or(1000));
        unmount(directory.path());
        return measured;
    }
    println!("\n| containers | contender | attach ms | fastest | CPU ms | gone ms | rounds |");
    println!("|--:|---|--:|--:|--:|--:|--:|");
    let mut verdicts = Vec::new();
    for count in counts {
        verdicts.extend(measure(directory.path(), count)?);
    }
    println!("\n| quotient of medians | |\n|---|--:|");
    verdicts.iter().for_each(|(name, value)| println!("| {name} | {value:.2} |"));
    unmount(directory.path());
    Ok(())
}

/// Takes off what would keep the directory from being removed.
fn unmount(directory: &Path) {
    for pins in ["pins", "state/netns"] {
        let pins = directory.join(pins);
        if pins.exists() {
            let _ = Command::new("umount").arg("-l").arg(pins).status();
        }
    }
}

fn measure(directory: &Path, count: usize) -> io::Result<Vec<(String, f64)>> {
    let default = match count {
        0..=9 => 11,
        10..=499 => 5,
        _ => 3,
    };
    let rounds = std::env::var("CRATED_BENCH_ROUNDS").ok().and_then(|it| it.parse().ok());
    let rounds: usize = rounds.unwrap_or(default);
    let pins = directory.join("pins");
    let mut contenders: Vec<Box<dyn Attacher>> = vec![
        Box::new(InProcess::new(&pins, true)?),
        Box::new(InProcess::new(&pins, false)?),
        Box::new(IpBatch),
    ];
    if Cni::is_there() {
        contenders.push(Box::new(Cni));
    }
    let daemon = Daemon::start(directory)?;
    match daemon {
        Some(daemon) => contenders.push(Box::new(daemon)),
        None => eprintln!("no daemon beside this program: its rows are left out"),
    }
    let mut times: Vec<Vec<Times>> = vec![Vec::new(); contenders.len()];
    for turn in 0..=rounds {
        for place in 0..contenders.len() {
            let at = (turn + place) % contenders.len();
            let taken = round(&mut *contenders[at], count)?;
            // The first pays for what the others find in place.
            if turn > 0 {
                times[at].push(taken);
            }
        }
    }
    let median =
        |times: &[Times], of: fn(&Times) -> Duration| times.iter().map(of).collect::<Samples>();
    let mut rows = Vec::new();
    for (contender, times) in contenders.iter().zip(&times) {
        let attach = median(times, |times| times.attach);
        let (cpu, gone) = (median(times, |times| times.cpu), median(times, |times| times.gone));
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        println!(
            "| {count} | {} | {:.2} | {:.2} | {:.0} | {:.2} | {} |",
            contender.name(),
            ms(attach.median()),
            ms(attach.percentile(0)),
            ms(cpu.median()),
            ms(gone.median()),
            times.len()
        );
        rows.push((contender.name(), attach.median(), gone.median()));
    }
    let mut verdicts = Vec::new();
    let (own, others) = (rows[0], &rows[1..]);
    for (name, attach, gone) in others {
        let over = |a: Duration, b: Duration| a.as_secs_f64() / b.as_secs_f64();
        match *name {
            "crated, one Apply each" => {
                let share = format!("{count}: crated-netns over {name}: attach");
                verdicts.push((share, over(own.1, *attach)));
            }
            name if name.starts_with("crated-netns") => {
                for (other, their, _) in others.iter().filter(|it| !it.0.starts_with("crated")) {
                    let of = format!("{count}: {other} over {name}: attach");
                    verdicts.push((of, over(*their, *attach)));
                }
            }
            name => {
                verdicts.push((
                    format!("{count}: {name} over crated-netns: attach"),
                    over(*attach, own.1),
                ));
                verdicts
                    .push((format!("{count}: {name} over crated-netns: gone"), over(*gone, own.2)));
            }
        }
    }
    Ok(verdicts)
}

/// The daemon, asked by one call for each container.
struct Daemon {
    child: Child,
    runtime: Runtime,
    client: NetworkClient<Channel>,
}

impl Daemon {
    fn start(directory: &Path) -> io::Result<Option<Self>> {
        let beside = || Some(std::env::current_exe().ok()?.with_file_name("crated"));
        let program = std::env::var_os("CRATED_BIN").map(PathBuf::from).or_else(beside);
        let Some(program) = program.filter(|program| program.exists()) else { return Ok(None) };
        let socket = directory.join("c.sock");
        let child = Command::new(program)
            .arg("--root")
            .arg(directory.join("root"))
            .arg("--state")
            .arg(directory.join("state"))
            .arg("--address")
            .arg(&socket)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let started = Instant::now();
        while std::os::unix::net::UnixStream::connect(&socket).is_err() {
            if started.elapsed() > Duration::from_secs(30) {
                return Err(io::Error::other("the daemon does not answer"));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let channel = runtime.block_on(connect(socket)).map_err(io::Error::other)?;
        let client = NetworkClient::new(channel);
        Ok(Some(Self { child, runtime, client }))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Attacher for Daemon {
    fn name(&self) -> &'static str {
        "crated, one Apply each"
    }

    fn attach(&mut self, count: usize) -> io::Result<()> {
        // As many clients as a busy host has.
        let calls = (0..count).map(|n| {
            let mut client = self.client.clone();
            async move { client.apply(call(attachment(n))).await.map(drop) }
        });
        let all = async {
            use futures_util::StreamExt;
            let mut running = futures_util::stream::iter(calls).buffer_unordered(CLIENTS);
            while let Some(done) = running.next().await {
                done?;
            }
            Ok::<(), tonic::Status>(())
        };
        self.runtime.block_on(all).map_err(io::Error::other)
    }

    fn detach(&mut self, count: usize) -> io::Result<()> {
        let operations = (0..count).map(|n| {
            let request = api::DeleteNetnsRequest {
                id: format!("c{n}"),
                wait_timeout_ms: Some(0),
                force: true,
                etag: String::new(),
            };
            operation(Change::DeleteNetns(request))
        });
        let request = api::ApplyRequest { operations: operations.collect(), atomic: false };
        let answer = self.runtime.block_on(self.client.apply(call(request)));
        answer.map(drop).map_err(io::Error::other)
    }
}

/// Calls under way at once.
const CLIENTS: usize = 8;

async fn connect(socket: PathBuf) -> Result<Channel, tonic::transport::Error> {
    let dial = tower::service_fn(move |_| {
        let socket = socket.clone();
        async move { tokio::net::UnixStream::connect(socket).await.map(hyper_util::rt::TokioIo::new) }
    });
    Endpoint::from_static("http://localhost").connect_with_connector(dial).await
}

fn call<T>(message: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    let bench = tonic::metadata::MetadataValue::from_static("bench");
    request.metadata_mut().insert("containerd-namespace", bench);
    request
}

fn operation(change: Change) -> api::Operation {
    api::Operation { netns: String::new(), change: Some(change) }
}

fn attachment(n: usize) -> api::ApplyRequest {
    let netns = api::Netns { id: format!("c{n}"), ..api::Netns::default() };
    let peer = api::LinkSpec {
        name: format!("v{n}"),
        master: BRIDGE.to_owned(),
        mtu: Some(1400),
        ..api::LinkSpec::default()
    };
    let pair = api::Pair { peer: Some(peer.into()), peer_netns: "host".into(), layer3: false };
    let route = api::Route {
        dst: "default".to_owned(),
        gateway: "10.88.0.1".to_owned(),
        ..api::Route::default()
    };
    let spec = api::LinkSpec {
        name: "eth0".to_owned(),
        kind: Some(Kind::Veth(pair.into())),
        mtu: Some(1400),
        addrs: vec![api::Address { address: address(n), ..api::Address::default() }],
        routes: vec![route],
        ..api::LinkSpec::default()
    };
    let link = api::Link { netns: format!("c{n}"), spec: Some(spec), ..api::Link::default() };
    let changes = [
        Change::CreateNetns(api::CreateNetnsRequest { netns: Some(netns) }),
        Change::CreateLink(api::CreateLinkRequest { link: Some(link) }),
    ];
    api::ApplyRequest { operations: changes.into_iter().map(operation).collect(), atomic: true }
}
