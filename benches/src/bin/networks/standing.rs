//! What networks cost while nothing happens: a restart over many of them, and who watches them.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use crated_api::network as api;
use crated_api::network::network_client::NetworkClient;
use crated_benches::Samples;
use crated_benches::network::{Attacher, add_bridge};

use super::{Daemon, call, connect};

/// Who watches.
const WATCHERS: usize = 100;
/// How long the kernel has to come to rest.
const SETTLING: Duration = Duration::from_secs(30);
/// Restarts of each kind.
const RESTARTS: usize = 5;

/// Prints a table of both with `count` network namespaces.
pub(super) fn measure(directory: &Path, count: usize) -> io::Result<()> {
    let missing = || io::Error::other("no daemon beside this program");
    let empty = restarts(directory)?;
    let mut daemon = Daemon::start(directory)?.ok_or_else(missing)?;
    add_bridge()?;
    daemon.attach(count)?;
    drop(daemon);
    let busy = restarts(directory)?;
    // A thousand new ports of one bridge keep the kernel busy for a while.
    std::thread::sleep(SETTLING);
    let full = restarts(directory)?;
    let daemon = Daemon::start(directory)?.ok_or_else(missing)?;
    let (before, watched) = watch(&daemon, &directory.join("c.sock"))?;
    let ms = |samples: &Samples| samples.median().as_secs_f64() * 1e3;
    println!("| restart after kill -9 until it answers, no namespaces | {:.1} ms |", ms(&empty));
    println!("| the same with {count}, one pin and one cable each | {:.1} ms |", ms(&full));
    println!("| right after they were attached | {:.1} ms |", ms(&busy));
    println!("| recovery, by the difference | {:.1} ms |", ms(&full) - ms(&empty));
    println!("| right after they were attached | {:.1} ms |", ms(&busy) - ms(&empty));
    println!("| resident before watchers | {:.1} MiB |", mib(before.resident));
    let grown = watched.resident.saturating_sub(before.resident);
    println!("| growth by {WATCHERS} watchers, a connection each | {:.1} MiB |", mib(grown));
    println!("| netlink sockets without and with them | {}, {} |", before.sockets, watched.sockets);
    let mut daemon = daemon;
    daemon.detach(count)
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / 1024.0 / 1024.0
}

fn restarts(directory: &Path) -> io::Result<Samples> {
    // The first makes what the others find.
    drop(Daemon::start(directory)?);
    let mut all = Vec::new();
    for _ in 0..RESTARTS {
        let started = Instant::now();
        let daemon = Daemon::start(directory)?;
        all.push(started.elapsed());
        drop(daemon);
    }
    Ok(all.into_iter().collect::<Samples>())
}

struct Use {
    resident: u64,
    sockets: usize,
}

/// The daemon without watchers and with them.
fn watch(daemon: &Daemon, socket: &Path) -> io::Result<(Use, Use)> {
    let pid = daemon.child.id();
    // After a start the daemon gives memory back.
    let quiet = || std::thread::sleep(Duration::from_secs(5));
    quiet();
    let before = used(pid)?;
    let mut streams = Vec::new();
    daemon.runtime.block_on(async {
        for _ in 0..WATCHERS {
            let channel = connect(socket.to_owned()).await.map_err(io::Error::other)?;
            let watch = NetworkClient::new(channel).watch(call(api::WatchRequest::default())).await;
            let mut events = watch.map_err(io::Error::other)?.into_inner();
            // From now on it hears of everything.
            events.message().await.map_err(io::Error::other)?;
            streams.push(events);
        }
        Ok::<(), io::Error>(())
    })?;
    quiet();
    let watched = used(pid)?;
    Ok((before, watched))
}

fn used(pid: u32) -> io::Result<Use> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let resident = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    let resident = resident.and_then(|text| text.split_whitespace().next()?.parse::<u64>().ok());
    let netlink = std::fs::read_to_string(format!("/proc/{pid}/net/netlink"))?;
    let inodes: BTreeSet<&str> =
        netlink.lines().filter_map(|line| line.split_whitespace().last()).collect();
    let mut sockets = 0;
    for entry in std::fs::read_dir(format!("/proc/{pid}/fd"))? {
        let Ok(target) = std::fs::read_link(entry?.path()) else { continue };
        let target = target.to_string_lossy().into_owned();
        let inode = target.strip_prefix("socket:[").and_then(|text| text.strip_suffix(']'));
        sockets += usize::from(inode.is_some_and(|inode| inodes.contains(inode)));
    }
    Ok(Use { resident: resident.unwrap_or_default() * 1024, sockets })
}
