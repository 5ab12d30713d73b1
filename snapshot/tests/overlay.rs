//! Every promise, kept by overlayfs, plus its own mechanics.

use std::path::Path;

use crated_snapshot::{OverlayOptions, OverlaySnapshotter, Result};

fn open(root: &Path) -> Result<OverlaySnapshotter> {
    OverlaySnapshotter::open(OverlayOptions { root: root.to_owned(), ..OverlayOptions::default() })
}

crated_snapshot::snapshotter_testsuite!(open);
