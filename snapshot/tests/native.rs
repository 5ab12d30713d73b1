//! Every promise, kept by copying.

use std::path::Path;

use crated_snapshot::NativeSnapshotter;

crated_snapshot::snapshotter_testsuite!(|root: &Path| NativeSnapshotter::open(root));
