//! Overlays of many layers, attached and detached.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crated_mount::{DetachFlags, Mount, detach};

use crate::samples::{Measured, Ratio, Row, Samples};
use crate::settings::Settings;
use crate::volume::Volume;

/// The times and ratios of this hop. The sizes take turns, cycle by cycle.
///
/// # Errors
///
/// The first of a mount or the volume.
pub fn measure(volume: &mut Volume, settings: &Settings) -> io::Result<Measured> {
    volume.format()?;
    let mut stacks = Vec::new();
    for lowers in &settings.lowers {
        stacks.push(Stack::create(&volume.directory()?, *lowers)?);
    }
    let mut times = vec![Vec::with_capacity(settings.cycles); stacks.len()];
    for cycle in 0..=settings.cycles {
        for (stack, times) in stacks.iter().zip(&mut times) {
            let time = stack.cycle()?;
            if cycle > 0 {
                times.push(time);
            }
        }
    }
    let samples: Vec<Samples> = times.into_iter().map(Samples::from_iter).collect();
    let mut measured = Measured::default();
    let per_lower: Vec<f64> = settings
        .lowers
        .iter()
        .zip(&samples)
        .map(|(lowers, samples)| samples.median().as_secs_f64() / *lowers as f64)
        .collect();
    if let [fewest, .., most] = per_lower[..] {
        measured.ratios.push(Ratio { name: "mount-growth-per-lower", value: most / fewest });
    }
    let rows = settings.lowers.iter().zip(samples);
    measured.rows.extend(rows.map(|(lowers, samples)| Row {
        name: format!("attach and detach with {lowers} lowers"),
        samples,
    }));
    Ok(measured)
}

/// A writable overlay ready to be attached.
#[derive(Debug)]
pub struct Stack {
    mount: Mount,
    target: PathBuf,
}

impl Stack {
    /// One over that many empty directories, all in `directory`.
    ///
    /// # Errors
    ///
    /// What the filesystem says.
    pub fn create(directory: &Path, lowers: usize) -> io::Result<Self> {
        let below = |name: &str| {
            let path = directory.join(name);
            fs::create_dir(&path).map(|()| path)
        };
        let mut stack = Vec::with_capacity(lowers);
        for number in 0..lowers {
            stack.push(below(&format!("lower-{number}"))?.display().to_string());
        }
        let options = vec![
            format!("workdir={}", below("work")?.display()),
            format!("upperdir={}", below("upper")?.display()),
            format!("lowerdir={}", stack.join(":")),
        ];
        let overlay = || "overlay".to_owned();
        let mount = Mount { kind: overlay(), source: overlay(), options, ..Mount::default() };
        Ok(Self { mount, target: below("target")? })
    }

    /// Attaches and detaches it.
    ///
    /// # Errors
    ///
    /// Those of the mount.
    pub fn cycle(&self) -> io::Result<Duration> {
        let start = Instant::now();
        self.mount.attach(&self.target).map_err(io::Error::other)?;
        detach(&self.target, DetachFlags::NONE).map_err(io::Error::other)?;
        Ok(start.elapsed())
    }
}
