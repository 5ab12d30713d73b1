//! Images being built and removed, layer by layer, and how to tell whether one
//! is whole.

use std::collections::{BTreeSet, VecDeque};
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crated_mount::{Mount, TempMount};
use crated_snapshot::{CommitOptions, Key, Labels, Name, Snapshotter};

const LAYERS: usize = 3;
const FILES: usize = 12;
/// Images one builder keeps.
const KEPT: usize = 3;

/// What builders and whoever cuts the power share.
#[derive(Default)]
pub(crate) struct Site {
    /// Held for each step: who holds it stops all building.
    step: Mutex<()>,
    stopping: AtomicBool,
    /// Layers whose settling was acknowledged and which are to stay.
    settled: Mutex<BTreeSet<String>>,
    /// Layers ever committed.
    committed: Mutex<usize>,
    grown: Condvar,
}

/// Ends all building when dropped, also by a panic.
pub(crate) struct Stop<'a>(&'a Site);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.stopping.store(true, Ordering::Relaxed);
    }
}

impl Site {
    pub(crate) fn pause(&self) -> MutexGuard<'_, ()> {
        self.step.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn stop_on_drop(&self) -> Stop<'_> {
        Stop(self)
    }

    pub(crate) fn settled(&self) -> BTreeSet<String> {
        self.settled.lock().unwrap().clone()
    }

    /// Waits until another layer is committed.
    pub(crate) fn wait_for_commit(&self) {
        let committed = self.committed.lock().unwrap();
        let before = *committed;
        let limit = Duration::from_secs(120);
        let same = |committed: &mut usize| *committed == before;
        let (_committed, waited) = self.grown.wait_timeout_while(committed, limit, same).unwrap();
        assert!(!waited.timed_out(), "nothing was committed for minutes");
    }

    fn goes_on(&self) -> bool {
        drop(self.pause());
        !self.stopping.load(Ordering::Relaxed)
    }
}

/// Builds images until told to stop. With `settles` each is settled once.
pub(crate) fn build(s: &dyn Snapshotter, builder: usize, settles: bool, site: &Site) {
    let mut kept: VecDeque<Vec<String>> = VecDeque::new();
    for image in 0_usize.. {
        let mut names: Vec<String> = Vec::new();
        for layer in 0..LAYERS {
            let name = format!("{builder}-{image}-{layer}");
            let parent = names.last().map(|name| Name::new(name.as_str()).unwrap());
            let key = Key::new(format!("work {builder}")).unwrap();
            let mounts = s.prepare(&key, parent.as_ref(), &Labels::new()).unwrap();
            let dir = writable(&mounts).to_owned();
            for file in 0..FILES {
                if !site.goes_on() {
                    return;
                }
                let name = format!("{name}-{file}");
                fs::write(Path::new(&dir).join(&name), content(&name)).unwrap();
            }
            let name = Name::new(name).unwrap();
            s.commit(&name, &key, &CommitOptions::default()).unwrap();
            names.push(name.to_string());
            *site.committed.lock().unwrap() += 1;
            site.grown.notify_all();
        }
        if settles {
            s.settle().unwrap();
            site.settled.lock().unwrap().extend(names.iter().cloned());
        }
        kept.push_back(names);
        if kept.len() > KEPT {
            let names = kept.pop_front().unwrap();
            site.settled.lock().unwrap().retain(|name| !names.contains(name));
            for name in names.iter().rev() {
                s.remove(name).unwrap();
            }
            s.cleanup().unwrap();
        }
    }
}

/// Makes a lost layer again.
pub(crate) fn make_again(s: &dyn Snapshotter, name: &str) {
    let parent = match layer_of(name) {
        0 => None,
        layer => Some(Name::new(layer_name(name, layer - 1)).unwrap()),
    };
    let key = Key::new(format!("again {name}")).unwrap();
    let mounts = s.prepare(&key, parent.as_ref(), &Labels::new()).unwrap();
    for file in 0..FILES {
        let name = format!("{name}-{file}");
        fs::write(Path::new(writable(&mounts)).join(&name), content(&name)).unwrap();
    }
    s.commit(&Name::new(name).unwrap(), &key, &CommitOptions::default()).unwrap();
}

/// What is wrong with a committed layer or those below it, if anything.
pub(crate) fn damage(s: &dyn Snapshotter, name: &str, mounts_at: &Path) -> Option<String> {
    let key = Key::new(format!("look {name}")).unwrap();
    let parent = Name::new(name).unwrap();
    let mounts = match s.view(&key, Some(&parent), &Labels::new()) {
        Ok(mounts) => mounts,
        Err(error) => return Some(format!("{name}: {error}")),
    };
    let shown = match TempMount::attach(&mounts, mounts_at) {
        Ok(shown) => shown,
        Err(error) => return Some(format!("{name}: {error}")),
    };
    let mut files = (0..=layer_of(name))
        .flat_map(|layer| (0..FILES).map(move |file| (layer, file)))
        .map(|(layer, file)| format!("{}-{file}", layer_name(name, layer)));
    let damage = files.find_map(|file| match fs::read(shown.path().join(&file)) {
        Ok(bytes) if bytes == content(&file) => None,
        Ok(bytes) => Some(format!("{file}: {} bytes, not what was written", bytes.len())),
        Err(error) => Some(format!("{file}: {error}")),
    });
    shown.close().unwrap();
    s.remove(key.as_str()).unwrap();
    damage
}

fn layer_of(name: &str) -> usize {
    name.rsplit('-').next().unwrap().parse().unwrap()
}

fn layer_name(name: &str, layer: usize) -> String {
    format!("{}-{layer}", name.rsplit_once('-').unwrap().0)
}

/// Where an active snapshot takes what is written.
fn writable(mounts: &[Mount]) -> &str {
    let options = &mounts[0].options;
    options.iter().find_map(|o| o.strip_prefix("upperdir=")).unwrap_or(&mounts[0].source)
}

/// Bytes that belong into the file of this name and no other.
fn content(name: &str) -> Vec<u8> {
    let seed = name.bytes().fold(7_usize, |seed, byte| seed * 31 % 65_521 + usize::from(byte));
    name.bytes().cycle().take(200 + seed % 20_000).collect()
}
