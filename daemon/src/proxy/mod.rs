//! Parts that run as processes of their own: `[proxy_plugins]` of the configuration.
//!
//! A proxy serves one of containerd's services on a unix socket. The daemon connects when it first
//! needs it, and again after the connection broke; a daemon starts while its proxies are down, and
//! calls that need one fail with Unavailable, naming the socket, until it is back. Every call has a
//! deadline, so that a mute proxy costs its own callers only.
//!
//! ```text
//! [proxy_plugins.stargz]        services::snapshots ─► metadata ─► ProxySnapshotter ─► socket
//!   type = "snapshot"           clients see it like a snapshotter of the daemon's own
//! ```
//!
//! [`ProxySnapshotter`] and [`ProxyStore`] implement the blocking traits of the primitives by
//! waiting for the runtime from a blocking thread. Keys and references are those of the layer
//! below the namespaces. The header `containerd-namespace` carries the namespace that a snapshot
//! key begins with, and `default` where nothing tells: blobs have no namespace down here.

mod content;
mod diff;
mod failure;
mod link;
mod snapshots;
mod writer;

use std::path::{Path, PathBuf};

pub use self::content::ProxyStore;
pub use self::failure::Failure;
pub(crate) use self::link::scoped;
pub use self::link::{Deadlines, Link};
pub use self::snapshots::ProxySnapshotter;
use crate::config::ProxyPlugin;
use crate::plugins::{CONTENT, DIFFER, Plugin, SANDBOX_CONTROLLER, SNAPSHOTTER, host_platform};

/// The namespace sent where a call has none of its own.
const NAMESPACE_DEFAULT: &str = "default";

/// What kind of part a `type` of the configuration means.
///
/// Both the short words and the full plugin types are accepted.
pub fn kind(word: &str) -> Option<&'static str> {
    Some(match word {
        "snapshot" | SNAPSHOTTER => SNAPSHOTTER,
        "content" | CONTENT => CONTENT,
        "diff" | DIFFER => DIFFER,
        "sandbox" | SANDBOX_CONTROLLER => SANDBOX_CONTROLLER,
        _ => return None,
    })
}

/// The path of a proxy's socket, with or without a scheme before it.
pub fn socket_path(address: &Path) -> PathBuf {
    address.strip_prefix("unix:").map_or_else(
        |_| address.to_path_buf(),
        // `unix:///run/x.sock` has an empty host, of which paths keep nothing.
        |rest| Path::new("/").join(rest),
    )
}

/// How clients see the proxy called `name`; `None` when its type is unknown.
pub fn listed(name: &str, proxy: &ProxyPlugin) -> Option<Plugin> {
    let platform = match proxy.platform.as_str() {
        "" => host_platform(),
        platform => platform.to_owned(),
    };
    let mut plugin = Plugin::new(kind(&proxy.kind)?, name);
    plugin.platforms = vec![platform];
    plugin.capabilities.clone_from(&proxy.capabilities);
    plugin.exports.clone_from(&proxy.exports);
    Some(plugin.export("address", socket_path(&proxy.address).display().to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_may_have_a_scheme() {
        for address in ["/run/x.sock", "unix:///run/x.sock", "unix:/run/x.sock"] {
            assert_eq!(socket_path(Path::new(address)), Path::new("/run/x.sock"), "{address}");
        }
    }

    #[test]
    fn types_have_a_short_and_a_long_word() {
        assert_eq!(kind("snapshot"), Some(SNAPSHOTTER));
        assert_eq!(kind("io.containerd.sandbox.controller.v1"), Some(SANDBOX_CONTROLLER));
        assert_eq!(kind("runtime"), None);
    }
}
