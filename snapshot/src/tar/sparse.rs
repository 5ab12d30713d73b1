//! Maps of files with holes.

use crate::error::{Error, Result};

/// A stretch of data in a file with holes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Region {
    pub(crate) offset: u64,
    pub(crate) length: u64,
}

/// Most regions of one file: more than any file written by a tool that looks
/// for holes, one megabyte of memory.
pub(crate) const REGIONS_MAX: usize = 65_536;

/// Checks that the regions are in order, apart, within `real_size`, and add up
/// to the `stored` bytes that follow.
pub(crate) fn check(entry: &[u8], regions: &[Region], stored: u64, real_size: u64) -> Result<()> {
    let refuse = |reason: &str| Err(Error::archive(entry, reason));
    if regions.len() > REGIONS_MAX {
        return Err(Error::LimitExceeded { limit: "sparse regions", max: REGIONS_MAX as u64 });
    }
    let (mut end, mut sum) = (0_u64, 0_u64);
    for region in regions {
        if region.offset < end {
            return refuse("sparse regions overlap or are out of order");
        }
        end = match region.offset.checked_add(region.length) {
            Some(end) if end <= real_size => end,
            _ => return refuse("sparse region beyond the end of the file"),
        };
        sum += region.length;
    }
    if sum != stored {
        return refuse("sparse regions do not add up to the data");
    }
    Ok(())
}
