//! The local store keeps every promise of a store, whichever way its bytes take to the disk.
#![allow(clippy::print_stderr, reason = "skipped tests are for people")]

use crated_content::LocalStore;
use crated_content::local::Backend;
use tempfile::TempDir;

fn store(backend: Backend) -> (LocalStore, TempDir) {
    // Below the build directory, which is on a disk more often than the directory of temporary
    // files.
    let root = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let store = match LocalStore::builder().backend(backend).open(root.path()) {
        // Where direct I/O cannot work, buffered must do: that is what the default promises.
        Err(error) if backend == Backend::Uring && std::env::var_os("CI").is_none() => {
            eprintln!("skipped: {error}");
            LocalStore::open(root.path()).unwrap()
        }
        result => result.unwrap(),
    };
    (store, root)
}

mod uring {
    use super::*;

    crated_content::store_testsuite!(|| store(Backend::Uring));
}

mod buffered {
    use super::*;

    crated_content::store_testsuite!(|| store(Backend::Buffered));
}
