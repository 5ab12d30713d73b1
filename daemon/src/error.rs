//! Why the daemon cannot start or go on.

use std::error::Error as StdError;
use std::io;
use std::path::{Path, PathBuf};

use crate::metadata;

/// The result of starting or running the daemon.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why the daemon cannot start or go on, named for what the operator can do about it.
///
/// Every message reads `<object>: <step>`, and the causes follow as sources; [`chain`] joins them
/// to the one line that the operator sees.
#[allow(missing_docs, reason = "each variant's doc covers its fields")]
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The configuration file says something this daemon does not accept. Correct the line.
    #[error("configuration {}{}: {reason}", path.display(), at(*line))]
    Config { path: PathBuf, line: Option<usize>, reason: String },
    /// Another daemon runs on this root. Stop it, or choose another root.
    #[error("root {}: lock: held by {holder}", path.display())]
    RootBusy { path: PathBuf, holder: String },
    /// Another daemon answers on this socket. Stop it, or choose another address.
    #[error("socket {}: bind: busy, another daemon answers on it", path.display())]
    SocketBusy { path: PathBuf },
    /// The socket address cannot be served; `reason` says why.
    #[error("socket {}: bind: {reason}", path.display())]
    SocketAddress { path: PathBuf, reason: String },
    /// A directory of the daemon's is not fit to be used; `reason` says what to change.
    #[error("directory {}: check: {reason}", path.display())]
    Directory { path: PathBuf, reason: String },
    /// A part that the configuration requires is out of use.
    #[error("plugin {id}: load: {reason}")]
    Plugin { id: String, reason: String },
    /// The metadata store cannot be opened.
    #[error("metadata {}: open", path.display())]
    Metadata { path: PathBuf, source: Box<metadata::Error> },
    /// The content store cannot be opened.
    #[error("content {}: open", path.display())]
    Content { path: PathBuf, source: crated_content::Error },
    /// The operating system refused a step on an object.
    #[error("{object}: {step}")]
    Io { object: String, step: &'static str, source: io::Error },
    /// Serving ended before it was asked to.
    #[error("socket {}: serve", path.display())]
    Serve { path: PathBuf, source: Box<dyn StdError + Send + Sync> },
}

impl Error {
    /// The operating system refused `step` on `path`.
    pub fn io(step: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io { object: path.display().to_string(), step, source }
    }
}

/// The error and all its causes in one line, each separated by `: `.
pub fn chain(error: &dyn StdError) -> String {
    let mut line = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let text = cause.to_string();
        if !line.ends_with(&text) {
            line.push_str(": ");
            line.push_str(&text);
        }
        next = cause.source();
    }
    line
}

fn at(line: Option<usize>) -> String {
    line.map_or_else(String::new, |line| format!(":{line}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_is_one_line_with_every_cause_once() {
        let error = Error::io("create", Path::new("/x"), io::Error::other("no room"));
        assert_eq!(chain(&error), "/x: create: no room");
    }
}
