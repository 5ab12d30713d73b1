//! Stdio of containers: where it goes and how it gets there.

use std::time::Duration;

/// How long a deletion waits for output that is still on its way, for example
/// because a grandchild holds the pipe open.
pub const DRAIN_DEADLINE: Duration = Duration::from_secs(10);
