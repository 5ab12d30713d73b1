//! What a list of mounts asks of the daemon, before anything is done.

use crated_mount::Mount;

use super::template;
use super::{Error, MOUNTS_MAX, Result};

/// One mount of a list, its type taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Step {
    /// The mount with its base type.
    pub(super) mount: Mount,
    pub(super) format: bool,
    pub(super) mkfs: bool,
    pub(super) mkdir: bool,
}

/// A list that needs the daemon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Plan {
    pub(super) steps: Vec<Step>,
    /// How many of the steps the daemon mounts itself; the rest is the caller's.
    pub(super) active: usize,
}

impl Plan {
    /// Takes a list apart; `None` when the caller can mount all of it alone.
    pub(super) fn new(mounts: Vec<Mount>, temporary: bool) -> Result<Option<Self>> {
        if mounts.is_empty() || mounts.len() > MOUNTS_MAX {
            let count = mounts.len();
            return Err(Error::invalid(format!("{count} mounts, not 1 to {MOUNTS_MAX}")));
        }
        let steps: Vec<Step> = mounts.into_iter().map(Step::new).collect();
        if !steps.iter().any(Step::is_special) {
            return Ok(None);
        }
        let mut active = 0;
        for (index, step) in steps.iter().enumerate() {
            if step.is_handled() {
                active = active.max(index + 1);
            }
            for needed in step.needed()? {
                if needed >= index {
                    let text = format!("mount {index} refers to mount {needed} behind it");
                    return Err(Error::invalid(text));
                }
                active = active.max(needed + 1);
            }
        }
        if temporary {
            active = steps.len();
        }
        Ok(Some(Self { steps, active }))
    }
}

impl Step {
    fn new(mut mount: Mount) -> Self {
        let (mut format, mut mkfs, mut mkdir) = (false, false, false);
        let mut base = mount.kind.as_str();
        while let Some((prefix, rest)) = base.split_once('/') {
            match prefix {
                "format" => format = true,
                "mkfs" => mkfs = true,
                "mkdir" => mkdir = true,
                // A type of somebody else's, slash and all.
                _ => break,
            }
            base = rest;
        }
        mount.kind = base.to_owned();
        Self { mount, format, mkfs, mkdir }
    }

    /// Whether a caller that knows kernel mounts alone cannot do it.
    fn is_special(&self) -> bool {
        self.format || self.mkfs || self.mkdir || self.is_handled()
    }

    /// Whether its type is one that the daemon mounts.
    fn is_handled(&self) -> bool {
        matches!(self.mount.kind.as_str(), LOOP | EROFS)
    }

    /// The mounts whose places it refers to.
    fn needed(&self) -> Result<Vec<usize>> {
        if !self.format {
            return Ok(Vec::new());
        }
        let texts = [&self.mount.source, &self.mount.target];
        let mut needed = Vec::new();
        for text in texts.into_iter().chain(&self.mount.options) {
            needed.extend(template::needed(text)?);
        }
        Ok(needed)
    }
}

/// A file as a block device.
pub(super) const LOOP: &str = "loop";
/// A read-only filesystem in a file.
pub(super) const EROFS: &str = "erofs";

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(kind: &str, source: &str, options: &[&str]) -> Mount {
        Mount {
            kind: kind.into(),
            source: source.into(),
            target: String::new(),
            options: options.iter().map(|option| (*option).to_owned()).collect(),
        }
    }

    fn active(mounts: &[Mount], temporary: bool) -> Option<usize> {
        Plan::new(mounts.to_vec(), temporary).unwrap().map(|plan| plan.active)
    }

    #[test]
    fn kernel_mounts_are_left_to_the_caller() {
        let overlay = mount("overlay", "overlay", &["lowerdir=/a:/b"]);
        assert_eq!(active(&[overlay.clone(), mount("bind", "/x", &["ro"])], false), None);
        assert_eq!(active(&[overlay], true), None);
        assert_eq!(active(&[mount("strange/type", "x", &[])], false), None);
    }

    #[test]
    fn the_daemon_mounts_up_to_the_last_that_needs_it() {
        let layers = [
            mount("erofs", "/a", &["ro"]),
            mount("erofs", "/b", &["ro"]),
            mount("format/overlay", "overlay", &["lowerdir={{ overlay 0 1 }}"]),
        ];
        assert_eq!(active(&layers, false), Some(2));
        assert_eq!(active(&layers, true), Some(3));
        assert_eq!(active(&[mount("mkdir/bind", "/x", &[])], false), Some(0));
    }

    #[test]
    fn a_mount_refers_to_those_before_it_only() {
        let own = mount("format/bind", "{{ mount 0 }}", &[]);
        assert!(Plan::new(vec![own], false).is_err());
        assert!(Plan::new(Vec::new(), false).is_err());
    }
}
