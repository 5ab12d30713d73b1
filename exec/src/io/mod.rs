//! Stdio of containers: where it goes and how it gets there.
//!
//! | address | output | input |
//! |---|---|---|
//! | empty | dropped | end of file |
//! | `/path`, `fifo:///path` | a FIFO the client made, or a file that exists | same |
//! | `file:///path` | appended; missing folders are made | |
//! | `binary:///path?k=v` | a program reads it, see below | |
//!
//! A logger program gets the keys and values as arguments, output on
//! descriptors 3 and 4, and `CONTAINER_ID` and `CONTAINER_NAMESPACE` in its
//! environment. It says that it is ready by closing descriptor 5. At the end
//! its inputs close, then it is asked, then told to end.
//!
//! Both ends of an output FIFO are held here, so that a client may detach and
//! attach again without the container noticing.

mod logger;
mod pump;
mod stdio;

use std::{path::PathBuf, time::Duration};

pub use logger::Logger;
pub use stdio::{ChildStdio, IoConfig, ProcessIo};

pub(crate) use pump::{Sink, pump, watch_read, watch_read_write, watch_write};

use crate::{Error, Result};

/// How long a deletion waits for output that is still on its way, for example
/// because a grandchild holds the pipe open.
pub const DRAIN_DEADLINE: Duration = Duration::from_secs(10);

/// An address of stdio, parsed.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Target {
    /// Nowhere.
    Null,
    /// A FIFO, or what else is at this path already.
    Path(PathBuf),
    /// Appended to this file.
    File(PathBuf),
    /// Read by a program.
    Binary {
        /// Absolute path of the program.
        path: PathBuf,
        /// Keys and values in turn.
        args: Vec<String>,
    },
}

impl Target {
    /// Parses an address.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] for an unknown scheme, a host, or a path
    /// that is not absolute.
    pub fn parse(address: &str) -> Result<Self> {
        let invalid = |why: &str| Error::InvalidArgument(format!("stdio {address:?}: {why}"));
        if address.is_empty() {
            return Ok(Target::Null);
        }
        if address.contains('\0') {
            return Err(invalid("contains a zero byte"));
        }
        let (scheme, rest) = match address.split_once("://") {
            Some((scheme, rest)) if is_scheme(scheme) => (scheme, rest),
            _ => ("fifo", address),
        };
        let (path, query) = match rest.split_once('?') {
            Some((path, query)) if scheme != "fifo" => (path, query),
            _ => (rest, ""),
        };
        let path = if scheme == "fifo" && rest == address {
            address.to_owned()
        } else {
            decode(path).ok_or_else(|| invalid("bad escape"))?
        };
        if !path.starts_with('/') {
            return Err(invalid("path is not absolute"));
        }
        let path = PathBuf::from(path);
        match scheme {
            "fifo" => Ok(Target::Path(path)),
            "file" => Ok(Target::File(path)),
            "binary" | "binary-v2" => {
                let args = arguments(query).ok_or_else(|| invalid("bad escape"))?;
                Ok(Target::Binary { path, args })
            }
            other => Err(invalid(&format!("unknown scheme {other:?}"))),
        }
    }
}

fn is_scheme(text: &str) -> bool {
    let mut bytes = text.bytes();
    bytes.next().is_some_and(|b| b.is_ascii_alphabetic())
        && bytes.all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b))
}

/// Keys and values in the order given; a key without a value stands alone.
fn arguments(query: &str) -> Option<Vec<String>> {
    let mut args = Vec::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        args.push(decode(&key.replace('+', " "))?);
        if !value.is_empty() {
            args.push(decode(&value.replace('+', " "))?);
        }
    }
    Some(args)
}

/// Undoes percent escapes; `None` for a broken one or for bytes that are not UTF-8.
fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        rest = tail;
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let digits = std::str::from_utf8(tail.get(..2)?).ok()?;
        if digits.starts_with('+') {
            return None;
        }
        bytes.push(u8::from_str_radix(digits, 16).ok()?);
        rest = &tail[2..];
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bare_path_is_taken_literally() {
        let path = "/run/x y%41?z";
        assert_eq!(Target::parse(path).unwrap(), Target::Path(path.into()));
    }

    #[test]
    fn a_logger_gets_its_arguments_in_order() {
        let parsed = Target::parse("binary:///bin/log%20ger?a=1&id=x+y&flag").unwrap();
        let args = ["a", "1", "id", "x y", "flag"].map(String::from).to_vec();
        assert_eq!(parsed, Target::Binary { path: "/bin/log ger".into(), args });
    }

    #[test]
    fn what_is_not_an_absolute_path_is_refused() {
        for address in ["x", "file://x", "file://host/x", "npipe:///x", "file:///%4", "binary://"] {
            let error = Target::parse(address).unwrap_err();
            assert!(matches!(error, Error::InvalidArgument(_)), "{address}: {error}");
        }
    }
}
