//! Containers attached to a bridge and taken away again: by crated, by `ip -batch`, by the CNI
//! bridge plugin, all to the same end: a pinned namespace with loopback up, `eth0` of MTU 1400 up
//! with an IPv4 address and a default route, its host end on a bridge that is up.
//!
//! Everything happens in a network and a mount namespace of the calling process, which has to be
//! in such ones: `unshare -n -m`.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crated_netns::{
    BridgeOpts, DeleteOpts, LinkKind, LinkSpec, Netns, NetnsName, NetnsRoot, NetnsSpec, PeerSpec,
    Plan, Propagation, Route,
};

/// Where Debian keeps the CNI plugins.
const PLUGINS: &str = "/usr/lib/cni";
/// The bridge everything is attached to.
pub const BRIDGE: &str = "bench0";

/// Waits this long for devices that are to go.
const PATIENCE: Duration = Duration::from_secs(120);

/// A way to attach containers.
pub trait Attacher {
    /// What it is called in results.
    fn name(&self) -> &'static str;

    /// Attaches containers 0 to `count`.
    fn attach(&mut self, count: usize) -> io::Result<()>;

    /// Asks for all of them to be taken away.
    fn detach(&mut self, count: usize) -> io::Result<()>;
}

/// What one round took.
#[derive(Clone, Copy, Debug, Default)]
pub struct Times {
    /// To attach all.
    pub attach: Duration,
    /// Processor time of attaching, children included.
    pub cpu: Duration,
    /// Until every device was gone.
    pub gone: Duration,
}

/// Makes the bridge that containers are attached to.
pub fn add_bridge() -> io::Result<()> {
    let mut ip = Batch::default();
    ip.line(format!("link add {BRIDGE} type bridge"));
    ip.line(format!("addr add 10.88.0.1/16 dev {BRIDGE}"));
    ip.line(format!("link set {BRIDGE} up"));
    ip.run(&[])
}

/// Attaches `count` containers to a fresh bridge and takes them away.
///
/// # Errors
///
/// The contender's; and when devices stay.
pub fn round(attacher: &mut dyn Attacher, count: usize) -> io::Result<Times> {
    add_bridge()?;
    let before = devices()?;
    let (started, cpu) = (Instant::now(), processor_time()?);
    attacher.attach(count)?;
    let mut times = Times { attach: started.elapsed(), ..Times::default() };
    times.cpu = processor_time()?.saturating_sub(cpu);
    let made = devices()? - before;
    if made != count {
        return Err(io::Error::other(format!("{}: {made} of {count} are there", attacher.name())));
    }
    let started = Instant::now();
    attacher.detach(count)?;
    while devices()? > before {
        if started.elapsed() > PATIENCE {
            return Err(io::Error::other(format!("{}: devices stay", attacher.name())));
        }
        std::thread::sleep(Duration::from_micros(500));
    }
    times.gone = started.elapsed();
    let mut ip = Batch::default();
    ip.line(format!("link del {BRIDGE}"));
    ip.run(&[])?;
    Ok(times)
}

/// The address of a container.
pub fn address(n: usize) -> String {
    format!("10.88.{}.{}/16", (n + 2) / 250, (n + 2) % 250 + 1)
}

/// The crate, in this process.
pub struct InProcess {
    root: NetnsRoot,
    made: Vec<NetnsName>,
    /// Leave IPv6 link-local addresses on.
    ipv6_auto: bool,
}

impl InProcess {
    /// Namespaces in `dir`.
    ///
    /// # Errors
    ///
    /// The crate's.
    pub fn new(dir: &Path, ipv6_auto: bool) -> io::Result<Self> {
        let root = NetnsRoot::open(dir, Propagation::Private).map_err(io::Error::other)?;
        Ok(Self { root, made: Vec::new(), ipv6_auto })
    }

    fn one(&self, n: usize) -> Result<Netns, crated_netns::Error> {
        let netns = self.root.create(&format!("c{n}").parse()?, &NetnsSpec::default())?;
        let mut peer = PeerSpec::on_host(format!("v{n}").parse()?).master(BRIDGE.parse()?);
        let mut settings = LinkSpec::new("eth0".parse()?, LinkKind::Bridge(BridgeOpts::default()))
            .mtu(1400)
            .address(address(n).parse()?)
            .route(Route::default_via("10.88.0.1".parse().expect("an address")))
            .up();
        peer.settings.mtu = Some(1400);
        if !self.ipv6_auto {
            peer.settings.ipv6_auto = Some(false);
            settings.settings.ipv6_auto = Some(false);
        }
        settings.kind = LinkKind::Veth { peer };
        Plan::new().create_link(&netns, settings).execute().map_err(|failed| *failed.error)?;
        Ok(netns)
    }
}

impl Attacher for InProcess {
    fn name(&self) -> &'static str {
        if self.ipv6_auto { "crated-netns" } else { "crated-netns, ipv6_auto=false" }
    }

    fn attach(&mut self, count: usize) -> io::Result<()> {
        for n in 0..count {
            let netns = self.one(n).map_err(io::Error::other)?;
            self.made.extend(netns.name().cloned());
        }
        Ok(())
    }

    fn detach(&mut self, _: usize) -> io::Result<()> {
        let made = std::mem::take(&mut self.made);
        let opts = DeleteOpts { wait: Duration::ZERO, force: false };
        let gone: Result<Vec<_>, _> = self.root.delete_all(&made, &opts).into_iter().collect();
        gone.map(drop).map_err(io::Error::other)
    }
}

/// `ip -batch`: one process for the host's part, one for each namespace.
pub struct IpBatch;

impl Attacher for IpBatch {
    fn name(&self) -> &'static str {
        "ip -batch"
    }

    fn attach(&mut self, count: usize) -> io::Result<()> {
        let mut host = Batch::default();
        for n in 0..count {
            host.line(format!("netns add b{n}"));
            host.line(format!(
                "link add v{n} mtu 1400 type veth peer name eth0 mtu 1400 netns b{n}"
            ));
            host.line(format!("link set v{n} master {BRIDGE} up"));
        }
        host.run(&[])?;
        for n in 0..count {
            let mut inside = Batch::default();
            inside.line("link set lo up".to_owned());
            inside.line("link set eth0 up".to_owned());
            inside.line(format!("addr add {} dev eth0", address(n)));
            inside.line("route add default via 10.88.0.1".to_owned());
            inside.run(&["-n", &format!("b{n}")])?;
        }
        Ok(())
    }

    fn detach(&mut self, count: usize) -> io::Result<()> {
        let mut host = Batch::default();
        (0..count).for_each(|n| host.line(format!("netns del b{n}")));
        host.run(&[])
    }
}

/// The CNI bridge plugin with static addresses, in namespaces of `ip netns add`. Loopback stays
/// down, which spares it a plugin.
pub struct Cni;

impl Cni {
    /// Whether the plugins are installed.
    pub fn is_there() -> bool {
        Path::new(PLUGINS).join("bridge").exists() && Path::new(PLUGINS).join("static").exists()
    }

    fn plugin(command: &str, n: usize) -> io::Result<()> {
        let config = format!(
            r#"{{"cniVersion":"0.4.0","name":"bench","type":"bridge","bridge":"{BRIDGE}","mtu":1400,
            "ipam":{{"type":"static","addresses":[{{"address":"{}","gateway":"10.88.0.1"}}],
            "routes":[{{"dst":"0.0.0.0/0"}}]}}}}"#,
            address(n)
        );
        let mut child = Command::new(Path::new(PLUGINS).join("bridge"))
            .env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", format!("b{n}"))
            .env("CNI_NETNS", format!("/run/netns/b{n}"))
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", PLUGINS)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        child.stdin.take().expect("piped").write_all(config.as_bytes())?;
        let out = child.wait_with_output()?;
        if out.status.success() {
            return Ok(());
        }
        Err(io::Error::other(format!("{command}: {}", String::from_utf8_lossy(&out.stdout))))
    }
}

impl Attacher for Cni {
    fn name(&self) -> &'static str {
        "CNI bridge"
    }

    fn attach(&mut self, count: usize) -> io::Result<()> {
        for n in 0..count {
            run("ip", &["netns", "add", &format!("b{n}")], "")?;
            Self::plugin("ADD", n)?;
        }
        Ok(())
    }

    fn detach(&mut self, count: usize) -> io::Result<()> {
        for n in 0..count {
            Self::plugin("DEL", n)?;
            run("ip", &["netns", "del", &format!("b{n}")], "")?;
        }
        Ok(())
    }
}

/// Lines for `ip -batch`.
#[derive(Default)]
struct Batch(String);

impl Batch {
    fn line(&mut self, line: String) {
        self.0.push_str(&line);
        self.0.push('\n');
    }

    fn run(&self, first: &[&str]) -> io::Result<()> {
        let args: Vec<&str> = first.iter().copied().chain(["-batch", "-"]).collect();
        run("ip", &args, &self.0)
    }
}

fn run(program: &str, args: &[&str], input: &str) -> io::Result<()> {
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    child.stdin.take().expect("piped").write_all(input.as_bytes())?;
    let out = child.wait_with_output()?;
    match out.status.success() {
        true => Ok(()),
        false => {
            let said = String::from_utf8_lossy(&out.stderr).into_owned();
            Err(io::Error::other(format!("{program} {args:?}: {said}")))
        }
    }
}

/// Devices of the calling thread's network namespace.
fn devices() -> io::Result<usize> {
    Ok(fs::read_to_string("/proc/thread-self/net/dev")?.lines().count())
}

/// User and system time of this process and its children so far, to a hundredth of a second.
fn processor_time() -> io::Result<Duration> {
    let stat = fs::read_to_string("/proc/self/stat")?;
    let fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    // utime, stime, cutime and cstime are the 14th to 17th field; two are cut off.
    let ticks: u64 =
        fields.split_whitespace().skip(11).take(4).filter_map(|n| n.parse::<u64>().ok()).sum();
    Ok(Duration::from_millis(ticks * 10))
}

/// Makes a place for `ip netns` that nobody else sees. For processes in a mount namespace of their
/// own.
///
/// # Errors
///
/// When the mount fails.
pub fn private_netns_dir() -> io::Result<PathBuf> {
    let dir = PathBuf::from("/run/netns");
    fs::create_dir_all(&dir)?;
    run("mount", &["-t", "tmpfs", "netns", "/run/netns"], "")?;
    run("mount", &["--make-shared", "/run/netns"], "")?;
    Ok(dir)
}
