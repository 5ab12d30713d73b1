//! Layers into directories, by the applier, by GNU tar and by umoci.

use std::io;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crated_snapshot::{Applier, ApplyOptions, Compression, Mount, TarApplier};

use crate::layer::Layer;
use crate::samples::{Contender, Measured, interleave};
use crate::settings::Settings;
use crate::umoci::Image;
use crate::volume::Volume;

/// The times and ratios of this hop.
///
/// # Errors
///
/// The first of the applier, tar or the volume.
pub fn measure(volume: &mut Volume, settings: &Settings) -> io::Result<Measured> {
    let mut measured = Measured::default();
    let root = settings.root_size_bytes;
    let small = settings.small_files;
    let plain = || Layer::debian_like(root, Compression::None);
    let gzip = || Layer::debian_like(root, Compression::Gzip);
    let mut compare = |names: [&'static str; 2], ratio, layer: Layer| {
        let mut contenders: [Contender<'_>; 2] = [
            Box::new(|directory| apply(&layer, directory)),
            Box::new(|directory| gnu_tar(&layer, directory)),
        ];
        let samples = interleave(volume, settings.rounds, &mut contenders)?;
        let medians = measured.rows(&names, samples);
        measured.ratio(ratio, medians[0], medians[1]);
        Ok::<(), io::Error>(())
    };
    compare(["root: crated-snapshot", "root: GNU tar"], "apply-root-over-tar", plain()?)?;
    compare(
        ["small files: crated-snapshot", "small files: GNU tar"],
        "apply-small-files-over-tar",
        Layer::small_files(small)?,
    )?;
    let layer = gzip()?;
    let image = Image::create(&layer, &plain()?)?;
    let mut contenders: [Contender<'_>; 3] = [
        Box::new(|directory| apply(&layer, directory)),
        Box::new(|directory| gnu_tar(&layer, directory)),
        Box::new(|directory| image.unpack(directory)),
    ];
    let samples = interleave(volume, settings.rounds, &mut contenders)?;
    let names = ["root in gzip: crated-snapshot", "root in gzip: GNU tar", "root in gzip: umoci"];
    let medians = measured.rows(&names, samples);
    measured.ratio("apply-root-gzip-over-tar", medians[0], medians[1]);
    measured.ratio("apply-root-gzip-over-umoci", medians[0], medians[2]);
    Ok(measured)
}

/// Through a bind mount of `directory`, as a snapshotter would hand it out. Computes the diff id
/// as well, which tar does not.
///
/// # Errors
///
/// Those of the applier.
pub fn apply(layer: &Layer, directory: &Path) -> io::Result<Duration> {
    let mount = Mount {
        kind: "bind".to_owned(),
        source: directory.display().to_string(),
        options: vec!["rw".to_owned(), "rbind".to_owned()],
        ..Mount::default()
    };
    let applier = TarApplier::default();
    let mut stream = layer.open()?;
    let start = Instant::now();
    let applied =
        applier.apply(&mut stream, &[mount], &ApplyOptions::default()).map_err(io::Error::other)?;
    let time = start.elapsed();
    std::hint::black_box(applied);
    Ok(time)
}

/// From the start of the program to its end.
///
/// # Errors
///
/// When it cannot be started or fails.
pub fn gnu_tar(layer: &Layer, directory: &Path) -> io::Result<Duration> {
    let mut tar = Command::new("tar");
    tar.args(["-x", "-p", "--numeric-owner", "-f", "-", "-C"]).arg(directory);
    if layer.compression() == Compression::Gzip {
        tar.arg("-z");
    }
    tar.stdin(layer.open()?).stdout(Stdio::null());
    let start = Instant::now();
    let status = tar.status()?;
    let time = start.elapsed();
    if !status.success() {
        return Err(io::Error::other(format!("tar: {status}")));
    }
    Ok(time)
}
