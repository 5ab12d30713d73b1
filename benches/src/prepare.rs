//! The life of a container's root: prepare, mount, unmount, remove.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crated_mount::TempMount;
use crated_snapshot::{
    CommitOptions, Key, Labels, Name, OverlayOptions, OverlaySnapshotter, Snapshotter, SyncMode,
};

use crate::samples::{Measured, Row, Samples};
use crate::settings::Settings;
use crate::volume::Volume;

/// The times and ratios of this hop. The sizes take turns, cycle by cycle.
///
/// # Errors
///
/// The first of a snapshotter, a mount or the volume.
pub fn measure(volume: &mut Volume, settings: &Settings) -> io::Result<Measured> {
    volume.format()?;
    let mut populations = Vec::new();
    for count in &settings.snapshots {
        populations.push(Population::create(&volume.directory()?, *count)?);
    }
    let mut times = vec![Vec::with_capacity(settings.cycles); populations.len()];
    for cycle in 0..WARM_UP_CYCLES + settings.cycles {
        for (population, times) in populations.iter_mut().zip(&mut times) {
            let time = population.cycle()?;
            if cycle >= WARM_UP_CYCLES {
                times.push(time);
            }
        }
    }
    drop(populations);
    let samples: Vec<Samples> = times.into_iter().map(Samples::from_iter).collect();
    let mut measured = Measured::default();
    let tail =
        |samples: &Samples| samples.percentile(99).as_secs_f64() / samples.median().as_secs_f64();
    if let (Some(fewest), Some(most)) = (samples.first(), samples.last()) {
        measured.ratio("prepare-growth", most.median(), fewest.median());
        let worst = samples.iter().map(tail).fold(0.0, f64::max);
        measured.ratios.push(crate::Ratio { name: "prepare-tail", value: worst });
    }
    let rows = settings.snapshots.iter().zip(samples);
    measured.rows.extend(rows.map(|(count, samples)| Row {
        name: format!("prepare, mount, unmount, remove among {count} snapshots"),
        samples,
    }));
    Ok(measured)
}

/// An overlay snapshotter that holds many containers' snapshots of one image.
#[derive(Debug)]
pub struct Population {
    snapshotter: OverlaySnapshotter,
    temp_root: PathBuf,
    image: Name,
    next_key: u64,
}

impl Population {
    /// One with `count` active snapshots, in `directory`. Each change is durable before it is
    /// acknowledged, and `remove` deletes the directories it leaves.
    ///
    /// # Errors
    ///
    /// Those of the snapshotter.
    pub fn create(directory: &Path, count: usize) -> io::Result<Self> {
        let options = OverlayOptions {
            root: directory.join("snapshots"),
            sync_remove: true,
            ..OverlayOptions::default()
        };
        let image = populate(&options, count).map_err(io::Error::other)?;
        let snapshotter = OverlaySnapshotter::open(options).map_err(io::Error::other)?;
        let temp_root = directory.join("mounts");
        Ok(Self { snapshotter, temp_root, image, next_key: 0 })
    }

    /// One more snapshot, prepared, mounted, unmounted and removed.
    ///
    /// # Errors
    ///
    /// Those of the snapshotter and of the mount.
    pub fn cycle(&mut self) -> io::Result<Duration> {
        self.next_key += 1;
        let key = format!("cycle-{}", self.next_key);
        let key = Key::new(key).map_err(io::Error::other)?;
        let parent = Some(&self.image);
        let start = Instant::now();
        let mounts =
            self.snapshotter.prepare(&key, parent, &Labels::new()).map_err(io::Error::other)?;
        let tree = TempMount::attach(&mounts, &self.temp_root).map_err(io::Error::other)?;
        tree.close().map_err(io::Error::other)?;
        self.snapshotter.remove(key.as_str()).map_err(io::Error::other)?;
        Ok(start.elapsed())
    }
}

/// Fills the snapshotter without waiting for the disk each time. Returns the name of the image.
fn populate(options: &OverlayOptions, count: usize) -> crated_snapshot::Result<Name> {
    let options = OverlayOptions { sync: SyncMode::Deferred, ..options.clone() };
    let snapshotter = OverlaySnapshotter::open(options)?;
    let (image, draft) = (Name::new("image")?, Key::new("draft")?);
    snapshotter.prepare(&draft, None, &Labels::new())?;
    snapshotter.commit(&image, &draft, &CommitOptions::default())?;
    for number in 0..count {
        let key = Key::new(format!("container-{number}"))?;
        snapshotter.prepare(&key, Some(&image), &Labels::new())?;
    }
    snapshotter.sync()?;
    Ok(image)
}

/// Not counted: the first ones read what the others find in memory.
const WARM_UP_CYCLES: usize = 5;
