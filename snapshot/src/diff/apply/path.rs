//! Names of entries, cleaned.

use crate::error::{Error, Result};

/// A name relative to the root, without `.`, `..`, or slashes at its ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CleanPath {
    bytes: Vec<u8>,
    /// Where the last component begins.
    last: usize,
}

impl CleanPath {
    /// Cleans `raw` by its text alone; a name that climbs out of the root is
    /// refused.
    pub(crate) fn new(raw: &[u8]) -> Result<Self> {
        let refuse = |reason: &str| Err(Error::archive(raw, reason));
        if raw.len() > PATH_BYTES_MAX {
            return refuse("name is longer than any path");
        }
        if raw.contains(&0) {
            return refuse("zero byte in name");
        }
        let mut components: Vec<&[u8]> = Vec::new();
        for component in raw.split(|&byte| byte == b'/') {
            match component {
                b"" | b"." => {}
                b".." if components.pop().is_none() => return refuse("name leads out of the root"),
                b".." => {}
                _ if component.len() > NAME_BYTES_MAX => {
                    return refuse("component is longer than any file name");
                }
                _ => components.push(component),
            }
        }
        let last = components.last().map_or(0, |last| last.len());
        let bytes = components.join(&b'/');
        Ok(Self { last: bytes.len() - last, bytes })
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(crate) fn is_root(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The last component.
    pub(crate) fn name(&self) -> &[u8] {
        &self.bytes[self.last..]
    }

    /// Everything before it.
    pub(crate) fn parent(&self) -> &[u8] {
        &self.bytes[..self.last.saturating_sub(1)]
    }
}

/// The kernel's limits.
const PATH_BYTES_MAX: usize = 4096;
const NAME_BYTES_MAX: usize = 255;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_cleaned_by_their_text() {
        for (raw, parent, name) in [
            ("a", "", "a"),
            ("/a/b/", "a", "b"),
            ("./a//./b", "a", "b"),
            ("a/../b/c", "b", "c"),
            ("a/b/..", "", "a"),
        ] {
            let path = CleanPath::new(raw.as_bytes()).unwrap();
            assert_eq!(path.parent(), parent.as_bytes(), "{raw}");
            assert_eq!(path.name(), name.as_bytes(), "{raw}");
        }
        for raw in ["", ".", "/", "./", "./.", "a/.."] {
            assert!(CleanPath::new(raw.as_bytes()).unwrap().is_root(), "{raw:?}");
        }
    }

    #[test]
    fn names_that_climb_out_are_refused() {
        for raw in ["..", "../a", "/../a", "a/../../b", "a\0b"] {
            assert!(CleanPath::new(raw.as_bytes()).is_err(), "{raw:?}");
        }
        assert!(CleanPath::new(&[b'a'; 256]).is_err());
        assert!(CleanPath::new(&b"a/".repeat(4000)).is_err());
    }
}
