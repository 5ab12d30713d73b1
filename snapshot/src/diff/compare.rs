//! Walks two trees and writes what differs.

use std::io::Write;

use crated_mount::Mount;

use crate::diff::{DiffOptions, Diffed, Differ};
use crate::error::{Error, Result};

/// Walks both filesystems side by side.
#[derive(Clone, Copy, Debug, Default)]
pub struct WalkingDiffer;

impl Differ for WalkingDiffer {
    fn diff(
        &self,
        lower: &[Mount],
        upper: &[Mount],
        out: &mut dyn Write,
        options: &DiffOptions,
    ) -> Result<Diffed> {
        let _ = (lower, upper, out, options);
        Err(Error::Unsupported {
            reason: "comparing filesystems".into(),
        })
    }
}
