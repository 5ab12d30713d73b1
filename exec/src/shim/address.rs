use std::{
    fmt::Write as _,
    path::{Path, PathBuf},
};

use prost::Message;
use sha2::{Digest, Sha256};

use crate::{Error, Result, proto::bootstrap::BootstrapResult};

/// Where shims have their sockets.
pub const SOCKET_DIR: &str = "/run/containerd/s";

/// Longest folder for sockets: 64 digits and a slash must fit behind it.
pub const SOCKET_DIR_MAX_BYTES: usize = 38;

/// The socket of a container's, or a group's, shim under one daemon.
///
/// The name is a hash, so it is short whatever the daemon's address is, and
/// two daemons never meet.
///
/// # Errors
///
/// [`Error::InvalidArgument`] for a folder that is relative or too long.
pub fn socket_path(
    folder: &Path,
    daemon_address: &str,
    namespace: &str,
    group: &str,
) -> Result<PathBuf> {
    if !folder.is_absolute() || folder.as_os_str().len() > SOCKET_DIR_MAX_BYTES {
        let text = format!(
            "folder {} for sockets is not absolute or over {SOCKET_DIR_MAX_BYTES} bytes",
            folder.display()
        );
        return Err(Error::InvalidArgument(text));
    }
    let mut name = String::with_capacity(64);
    for byte in Sha256::digest(format!("{daemon_address}/{namespace}/{group}")) {
        // Writing to a String cannot fail.
        let _ = write!(name, "{byte:02x}");
    }
    Ok(folder.join(name))
}

/// Where a shim listens, as it said at its start.
#[derive(Clone, Debug, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
pub struct Address {
    /// Version of the task API, 2 or 3.
    pub version: i32,
    /// `unix://` and a path.
    pub address: String,
    /// `ttrpc`.
    #[serde(default = "ttrpc")]
    pub protocol: String,
}

impl Address {
    /// Reads the answer of a shim's start in any of its three spellings: a
    /// message, JSON, or the bare address.
    ///
    /// # Errors
    ///
    /// - [`Error::Unimplemented`]: a version or protocol from the future.
    /// - [`Error::InvalidArgument`]: anything else that is no answer.
    pub fn parse(answer: &[u8]) -> Result<Self> {
        if answer.len() > ANSWER_MAX_BYTES {
            return Err(invalid("is too long"));
        }
        // A message is tried before anything is trimmed: its bytes may be blanks.
        let parsed = match BootstrapResult::decode(answer) {
            Ok(message) if message.address.contains("://") => Address {
                version: message.version,
                address: message.address,
                protocol: message.protocol,
            },
            _ => Self::parse_text(answer)?,
        };
        parsed.check()
    }

    fn parse_text(answer: &[u8]) -> Result<Self> {
        let text = std::str::from_utf8(answer).map_err(|_| invalid("is no text"))?.trim();
        if text.starts_with('{') {
            return serde_json::from_str(text).map_err(|e| invalid(&e.to_string()));
        }
        Ok(Address { version: 2, address: text.to_owned(), protocol: ttrpc() })
    }

    fn check(mut self) -> Result<Self> {
        if self.protocol.is_empty() {
            self.protocol = ttrpc();
        }
        if self.version > 3 || self.protocol != "ttrpc" {
            let text = format!("shim speaks {} version {}", self.protocol, self.version);
            return Err(Error::Unimplemented(text));
        }
        if self.version < 2 {
            return Err(invalid("has no usable version"));
        }
        self.socket()?;
        Ok(self)
    }

    /// Path of the socket.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] for anything but `unix:///path`.
    pub fn socket(&self) -> Result<PathBuf> {
        let path = self.address.strip_prefix("unix://").unwrap_or_default();
        let plain = path.starts_with('/')
            && path.len() < SOCKET_MAX_BYTES
            && !path.chars().any(|c| c.is_control() || c.is_whitespace());
        if plain { Ok(path.into()) } else { Err(invalid("names no socket on the file system")) }
    }
}

fn ttrpc() -> String {
    "ttrpc".to_owned()
}

fn invalid(why: &str) -> Error {
    Error::InvalidArgument(format!("answer of the shim's start {why}"))
}

/// An address and some words.
const ANSWER_MAX_BYTES: usize = 64 << 10;

/// What the kernel takes.
const SOCKET_MAX_BYTES: usize = 108;

#[cfg(test)]
mod tests {
    use super::*;

    fn message(version: i32, address: &str) -> Vec<u8> {
        let (address, protocol) = (address.to_owned(), ttrpc());
        BootstrapResult { version, address, protocol, ..Default::default() }.encode_to_vec()
    }

    #[test]
    fn all_three_spellings_are_read() {
        let socket = "unix:///run/s/0123";
        let json = format!("{{\"version\":2,\"address\":\"{socket}\",\"protocol\":\"ttrpc\"}}\n");
        let short = format!("{{\"version\":3,\"address\":\"{socket}\"}}");
        for (answer, version) in [
            (socket.as_bytes().to_vec(), 2),
            (format!("\n {socket} \n").into_bytes(), 2),
            (json.into_bytes(), 2),
            (short.into_bytes(), 3),
            (message(3, socket), 3),
        ] {
            let parsed = Address::parse(&answer).unwrap();
            assert_eq!((parsed.version, parsed.address.as_str()), (version, socket));
        }
    }

    #[test]
    fn what_is_no_answer_is_refused() {
        let relative = b"unix://run/x".to_vec();
        let noisy = b"warning: old kernel\nunix:///run/x".to_vec();
        let huge = vec![b'u'; ANSWER_MAX_BYTES + 1];
        for answer in [vec![], b"\n".to_vec(), relative, noisy, huge, vec![0xff], b"{}".to_vec()] {
            let error = Address::parse(&answer).unwrap_err();
            assert!(matches!(error, Error::InvalidArgument(_)), "{error}");
        }
        for answer in
            [message(4, "unix:///x"), b"{\"version\":4,\"address\":\"unix:///x\"}".to_vec()]
        {
            let error = Address::parse(&answer).unwrap_err();
            assert!(matches!(error, Error::Unimplemented(_)), "{error}");
        }
    }

    #[test]
    fn sockets_differ_by_daemon_namespace_and_group() {
        let path = |d, n, g| socket_path(Path::new(SOCKET_DIR), d, n, g).unwrap();
        let one = path("/run/a.sock", "n", "g");
        assert_ne!(one, path("/run/b.sock", "n", "g"));
        assert_ne!(one, path("/run/a.sock", "m", "g"));
        assert_ne!(one, path("/run/a.sock", "n", "h"));
        assert!(one.as_os_str().len() < SOCKET_MAX_BYTES);
        assert!(
            socket_path(Path::new("/a/folder/much/too/long/for/any/socket"), "", "", "").is_ok()
        );
        assert!(
            socket_path(Path::new("/a/folder/much/too/long/for/any/socket!"), "", "", "").is_err()
        );
    }
}
