//! Option strings to typed options and back. Pure: no I/O.
//!
//! The words are those of mount(8). A later word overrules an earlier one, as
//! there. What no word claims is data for the filesystem.

use std::ops::{BitAnd, BitOr, BitOrAssign, Not};

use crate::idmap::{IdMap, Ranges};
use crate::{Error, Result};

/// Options of one mount, by meaning.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Options {
    /// Restrictions and habits that are on.
    pub flags: Flags,
    /// Set for `bind` and `rbind`.
    pub bind: Option<Reach>,
    /// Change an existing mount rather than make one.
    pub remount: bool,
    /// How mounts made below travel to other mount namespaces.
    pub propagation: Option<(Propagation, Reach)>,
    /// `loop`: the source is an image file that needs a block device.
    pub loop_device: bool,
    /// `uidmap=` and `gidmap=`.
    pub id_map: Option<IdMap>,
    /// Options for other programs (`X-…`, `x-…`, `_netdev`); the kernel never
    /// sees them.
    pub private: Vec<String>,
    /// Everything else, in order, for the filesystem.
    pub data: Vec<Datum>,
}

/// One option for the filesystem: `key` or `key=value`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Datum {
    /// The part before the first `=`; never empty.
    pub key: String,
    /// The part after it, verbatim.
    pub value: Option<String>,
}

/// One mount, or everything below it too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// This mount only.
    One,
    /// And every mount below.
    Tree,
}

/// How mount events travel between peers; see mount_namespaces(7).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Propagation {
    /// Neither receives nor sends.
    Private,
    /// Receives and sends.
    Shared,
    /// Receives only.
    Slave,
    /// Private, and cannot be bind mounted.
    Unbindable,
}

/// A set of flag words that are on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Flags(u32);

impl Flags {
    /// None.
    pub const NONE: Self = Self(0);
    /// `ro`
    pub const READ_ONLY: Self = Self(1);
    /// `nosuid`
    pub const NO_SUID: Self = Self(1 << 1);
    /// `nodev`
    pub const NO_DEV: Self = Self(1 << 2);
    /// `noexec`
    pub const NO_EXEC: Self = Self(1 << 3);
    /// `nosymfollow`
    pub const NO_SYMLINKS: Self = Self(1 << 4);
    /// `nodiratime`
    pub const NO_DIR_ATIME: Self = Self(1 << 5);
    /// `noatime`
    pub const NO_ATIME: Self = Self(1 << 6);
    /// `relatime`
    pub const REL_ATIME: Self = Self(1 << 7);
    /// `strictatime`
    pub const STRICT_ATIME: Self = Self(1 << 8);
    /// `sync`
    pub const SYNC: Self = Self(1 << 9);
    /// `dirsync`
    pub const DIR_SYNC: Self = Self(1 << 10);
    /// `lazytime`
    pub const LAZY_TIME: Self = Self(1 << 11);
    /// `mand`
    pub const MAND_LOCK: Self = Self(1 << 12);
    /// `silent`
    pub const SILENT: Self = Self(1 << 13);

    /// The three of which at most one is on.
    pub(crate) const ATIME: Self =
        Self(Self::NO_ATIME.0 | Self::REL_ATIME.0 | Self::STRICT_ATIME.0);
    /// Those that belong to the filesystem rather than to one mount of it.
    pub(crate) const SUPERBLOCK: Self =
        Self(Self::SYNC.0 | Self::DIR_SYNC.0 | Self::LAZY_TIME.0 | Self::MAND_LOCK.0);

    /// Whether all of `other` is on.
    pub fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Whether nothing is on.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    fn set(&mut self, flag: Self, on: bool) {
        let cleared = if Self::ATIME.contains(flag) && on { Self::ATIME } else { flag };
        *self = *self & !cleared;
        if on {
            *self |= flag;
        }
    }
}

impl Options {
    /// Reads option strings, one option each.
    ///
    /// A string may also hold several separated by commas, unless it starts with
    /// a key whose value is a path or an id map: there commas belong to the value.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] for a NUL byte, an empty key, a malformed id
    /// map, only one of `uidmap` and `gidmap`, or more than [`OPTIONS_MAX`].
    pub fn parse<S: AsRef<str>>(options: &[S]) -> Result<Self> {
        let mut parsed = Self::default();
        let mut maps = (None, None);
        let mut count: usize = 0;
        for option in options.iter().map(AsRef::as_ref) {
            if option.contains('\0') {
                return Err(Error::invalid("option", option, "contains a NUL byte"));
            }
            for word in split(option).filter(|word| !word.is_empty()) {
                count += 1;
                if count > OPTIONS_MAX {
                    let reason = format!("more than {OPTIONS_MAX} options");
                    return Err(Error::invalid("option", word, reason));
                }
                parsed.word(word, &mut maps)?;
            }
        }
        parsed.id_map = match maps {
            (None, None) => None,
            (Some(uids), Some(gids)) => Some(IdMap { uids, gids }),
            (Some(_), None) => return Err(Error::invalid("option", "uidmap", "needs gidmap too")),
            (None, Some(_)) => return Err(Error::invalid("option", "gidmap", "needs uidmap too")),
        };
        Ok(parsed)
    }

    fn word(&mut self, word: &str, maps: &mut (Option<Ranges>, Option<Ranges>)) -> Result<()> {
        if let Some((_, flag, on)) = FLAG_WORDS.iter().find(|(name, ..)| *name == word) {
            self.flags.set(*flag, *on);
        } else if let Some((_, propagation)) = PROPAGATION_WORDS.iter().find(|(w, _)| *w == word) {
            self.propagation = Some(*propagation);
        } else if let Some(text) = word.strip_prefix("uidmap=") {
            maps.0 = Some(text.parse()?);
        } else if let Some(text) = word.strip_prefix("gidmap=") {
            maps.1 = Some(text.parse()?);
        } else if word.starts_with("X-") || word.starts_with("x-") || word == "_netdev" {
            self.private.push(word.to_owned());
        } else {
            match word {
                "defaults" => {}
                "bind" => self.bind = Some(Reach::One),
                "rbind" => self.bind = Some(Reach::Tree),
                "remount" => self.remount = true,
                "loop" => self.loop_device = true,
                _ => self.data.push(Datum::parse(word)?),
            }
        }
        Ok(())
    }

    /// The strings that [`parse`](Self::parse) reads back as this value.
    pub fn to_strings(&self) -> Vec<String> {
        let mut strings = Vec::new();
        match self.bind {
            Some(Reach::One) => strings.push("bind".to_owned()),
            Some(Reach::Tree) => strings.push("rbind".to_owned()),
            None => {}
        }
        if self.remount {
            strings.push("remount".to_owned());
        }
        let on = FLAG_WORDS.iter().filter(|(_, flag, on)| *on && self.flags.contains(*flag));
        strings.extend(on.map(|(word, ..)| (*word).to_owned()));
        let propagation = PROPAGATION_WORDS.iter().find(|(_, p)| Some(*p) == self.propagation);
        strings.extend(propagation.map(|(word, _)| (*word).to_owned()));
        if self.loop_device {
            strings.push("loop".to_owned());
        }
        if let Some(map) = &self.id_map {
            strings.push(format!("uidmap={}", map.uids));
            strings.push(format!("gidmap={}", map.gids));
        }
        strings.extend(self.private.iter().cloned());
        strings.extend(self.data.iter().map(Datum::to_string));
        strings
    }
}

impl Datum {
    fn parse(word: &str) -> Result<Self> {
        let (key, value) = match word.split_once('=') {
            Some((key, value)) => (key, Some(value.to_owned())),
            None => (word, None),
        };
        if key.is_empty() {
            return Err(Error::invalid("option", word, "has no key"));
        }
        Ok(Self { key: key.to_owned(), value })
    }

    /// The value as the filesystem means it, without the quotes that protect
    /// commas in security labels.
    pub(crate) fn plain_value(&self) -> Option<&str> {
        let value = self.value.as_deref()?;
        let inner = value.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
        Some(inner.unwrap_or(value))
    }
}

impl std::fmt::Display for Datum {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.value {
            Some(value) => write!(f, "{}={value}", self.key),
            None => f.write_str(&self.key),
        }
    }
}

impl BitOr for Flags {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl BitOrAssign for Flags {
    fn bitor_assign(&mut self, other: Self) {
        self.0 |= other.0;
    }
}

impl BitAnd for Flags {
    type Output = Self;

    fn bitand(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }
}

impl Not for Flags {
    type Output = Self;

    fn not(self) -> Self {
        Self(!self.0)
    }
}

/// Splits at commas outside double quotes, or not at all for [`WHOLE`] keys.
fn split(option: &str) -> impl Iterator<Item = &str> {
    let mut rest = Some(option);
    std::iter::from_fn(move || {
        let text = rest?;
        let whole = WHOLE.iter().any(|key| text.starts_with(key));
        let mut quoted = false;
        let comma = text.bytes().position(|byte| {
            quoted ^= byte == b'"';
            byte == b',' && !quoted && !whole
        });
        let (head, tail) = match comma {
            Some(at) => (&text[..at], Some(&text[at + 1..])),
            None => (text, None),
        };
        rest = tail;
        Some(head)
    })
}

/// Options of one mount at most: overlayfs takes 500 layers, one option each,
/// and nothing else comes near. Beyond that it is an attack or a mistake.
pub const OPTIONS_MAX: usize = 4096;

/// Keys whose value may hold commas.
const WHOLE: &[&str] = &[
    "lowerdir=",
    "lowerdir+=",
    "datadir+=",
    "upperdir=",
    "workdir=",
    "device=",
    "uidmap=",
    "gidmap=",
    "X-",
    "x-",
];

const FLAG_WORDS: &[(&str, Flags, bool)] = &[
    ("ro", Flags::READ_ONLY, true),
    ("rw", Flags::READ_ONLY, false),
    ("nosuid", Flags::NO_SUID, true),
    ("suid", Flags::NO_SUID, false),
    ("nodev", Flags::NO_DEV, true),
    ("dev", Flags::NO_DEV, false),
    ("noexec", Flags::NO_EXEC, true),
    ("exec", Flags::NO_EXEC, false),
    ("nosymfollow", Flags::NO_SYMLINKS, true),
    ("symfollow", Flags::NO_SYMLINKS, false),
    ("nodiratime", Flags::NO_DIR_ATIME, true),
    ("diratime", Flags::NO_DIR_ATIME, false),
    ("noatime", Flags::NO_ATIME, true),
    ("atime", Flags::NO_ATIME, false),
    ("relatime", Flags::REL_ATIME, true),
    ("norelatime", Flags::REL_ATIME, false),
    ("strictatime", Flags::STRICT_ATIME, true),
    ("nostrictatime", Flags::STRICT_ATIME, false),
    ("sync", Flags::SYNC, true),
    ("async", Flags::SYNC, false),
    ("dirsync", Flags::DIR_SYNC, true),
    ("lazytime", Flags::LAZY_TIME, true),
    ("nolazytime", Flags::LAZY_TIME, false),
    ("mand", Flags::MAND_LOCK, true),
    ("nomand", Flags::MAND_LOCK, false),
    ("silent", Flags::SILENT, true),
    ("loud", Flags::SILENT, false),
];

const PROPAGATION_WORDS: &[(&str, (Propagation, Reach))] = &[
    ("private", (Propagation::Private, Reach::One)),
    ("rprivate", (Propagation::Private, Reach::Tree)),
    ("shared", (Propagation::Shared, Reach::One)),
    ("rshared", (Propagation::Shared, Reach::Tree)),
    ("slave", (Propagation::Slave, Reach::One)),
    ("rslave", (Propagation::Slave, Reach::Tree)),
    ("unbindable", (Propagation::Unbindable, Reach::One)),
    ("runbindable", (Propagation::Unbindable, Reach::Tree)),
];

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_later_word_overrules_an_earlier_one() {
        let options = Options::parse(&["ro", "nosuid", "rw", "noatime,relatime"]).unwrap();

        assert_eq!(options.flags, Flags::NO_SUID | Flags::REL_ATIME);
        assert!(options.data.is_empty());
    }

    #[test]
    fn paths_and_labels_keep_their_commas() {
        let options = Options::parse(&[
            "lowerdir=/a,b:/c",
            "context=\"system_u:object_r:x:s0:c1,c2\",size=1m",
        ])
        .unwrap();

        let data: Vec<_> = options.data.iter().map(|d| (&*d.key, d.plain_value())).collect();
        assert_eq!(
            data,
            [
                ("lowerdir", Some("/a,b:/c")),
                ("context", Some("system_u:object_r:x:s0:c1,c2")),
                ("size", Some("1m")),
            ]
        );
    }

    #[test]
    fn words_for_other_programs_are_not_data() {
        let options =
            Options::parse(&["X-containerd.mkfs.size=1,2", "x-systemd.automount", "loop"]).unwrap();

        assert_eq!(options.private, ["X-containerd.mkfs.size=1,2", "x-systemd.automount"]);
        assert!(options.loop_device);
        assert!(options.data.is_empty());
    }

    #[test]
    fn one_id_map_alone_is_refused() {
        for option in ["uidmap=0:1:1", "gidmap=0:1:1"] {
            let error = Options::parse(&[option]).unwrap_err();
            assert!(matches!(error, Error::InvalidArgument { .. }), "{error}");
        }
    }

    #[test]
    fn hostile_strings_are_refused() {
        let many = vec!["a"; OPTIONS_MAX + 1];
        for options in [vec!["a\0b"], vec!["=x"], vec!["ro,=x"], many] {
            assert!(Options::parse(&options).is_err(), "{:?}", options[0]);
        }
    }

    proptest! {
        #[test]
        fn parsing_never_panics_and_round_trips(options: Vec<String>) {
            if let Ok(parsed) = Options::parse(&options) {
                prop_assert_eq!(Options::parse(&parsed.to_strings()).unwrap(), parsed);
            }
        }

        #[test]
        fn known_words_round_trip(words in proptest::collection::vec(known_word(), 0..12)) {
            let parsed = Options::parse(&words).unwrap();
            prop_assert_eq!(Options::parse(&parsed.to_strings()).unwrap(), parsed);
        }
    }

    fn known_word() -> impl Strategy<Value = String> {
        let words: Vec<String> = FLAG_WORDS
            .iter()
            .map(|(word, ..)| *word)
            .chain(PROPAGATION_WORDS.iter().map(|(word, _)| *word))
            .chain(["bind", "rbind", "remount", "loop", "defaults", "_netdev"])
            .chain(["size=1m", "lowerdir=/a,b:/c", "X-a=b,c", "\"quo,ted\"=x", "index=off"])
            .map(str::to_owned)
            .collect();
        proptest::sample::select(words)
    }
}
