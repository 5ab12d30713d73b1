//! Kernel settings below `net.`, read and written inside a namespace.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use rustix::fs::{Mode, OFlags};
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// Longest value read or written, in bytes. The kernel's own values fit a page.
const VALUE_LEN_MAX: usize = 4096;

/// The key of a setting below `net.`, such as `net.ipv4.ip_forward`.
///
/// Parts are separated by dots, or by slashes where a part contains a dot
/// (`net/ipv4/conf/eth0.7/forwarding`).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SysctlKey(String);

impl SysctlKey {
    /// The key as given.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn path(&self) -> PathBuf {
        let below = if self.0.contains('/') { self.0.clone() } else { self.0.replace('.', "/") };
        PathBuf::from("/proc/sys").join(below)
    }

    /// Reads the value in the calling thread's namespace.
    pub(crate) fn read(&self) -> Result<String> {
        let path = self.path();
        let file = open(&path, OFlags::RDONLY)?;
        let mut value = vec![0; VALUE_LEN_MAX];
        let len =
            rustix::io::read(&file, &mut value).map_err(|errno| Error::io("read", path, errno))?;
        value.truncate(len);
        Ok(String::from_utf8_lossy(&value).trim_end().to_owned())
    }

    /// Writes the value in the calling thread's namespace.
    pub(crate) fn write(&self, value: &str) -> Result<()> {
        if value.len() > VALUE_LEN_MAX || value.contains('\0') {
            return Err(Error::value("sysctl", format!("{self}: value too long or with NUL")));
        }
        let path = self.path();
        let file = open(&path, OFlags::WRONLY)?;
        match rustix::io::write(&file, value.as_bytes()) {
            Ok(_) => Ok(()),
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::RANGE) => {
                Err(Error::value("sysctl", format!("{self}: the kernel refuses {value:?}")))
            }
            Err(errno) => Err(Error::io("write", path, errno)),
        }
    }
}

fn open(path: &std::path::Path, access: OFlags) -> Result<std::os::fd::OwnedFd> {
    rustix::fs::open(path, access | OFlags::CLOEXEC, Mode::empty())
        .map_err(|errno| Error::io("open", path, errno))
}

impl FromStr for SysctlKey {
    type Err = Error;

    fn from_str(key: &str) -> Result<Self> {
        let invalid = |reason| Error::InvalidName {
            what: "sysctl key",
            value: key.chars().take(200).collect(),
            reason,
        };
        if key.len() > 200 || key.contains(|c: char| c.is_control() || c.is_whitespace()) {
            return Err(invalid("too long, or with spaces or control characters"));
        }
        let separator = if key.contains('/') { '/' } else { '.' };
        let mut parts = key.split(separator);
        let outside = parts.next() != Some("net");
        if outside || key.split('/').any(|part| part == "..") {
            return Err(Error::Permission {
                step: format!("sysctl {key:?}"),
                needs: "a key below net.",
                kernel: None,
            });
        }
        let mut count = 0;
        for part in parts {
            count += 1;
            if part.is_empty() || part == "." {
                return Err(invalid("has an empty part"));
            }
        }
        if count == 0 {
            return Err(invalid("names no setting"));
        }
        Ok(Self(key.to_owned()))
    }
}

impl TryFrom<&str> for SysctlKey {
    type Error = Error;

    fn try_from(key: &str) -> Result<Self> {
        key.parse()
    }
}

impl TryFrom<String> for SysctlKey {
    type Error = Error;

    fn try_from(key: String) -> Result<Self> {
        key.parse()
    }
}

impl From<SysctlKey> for String {
    fn from(key: SysctlKey) -> Self {
        key.0
    }
}

impl fmt::Display for SysctlKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
