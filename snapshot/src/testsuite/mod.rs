//! What implementors of this crate's traits promise, as functions.
//!
//! Each function is one promise and panics when it is broken. The macros run
//! all of them as tests:
//!
//! ```text
//! mod mine {
//!     crated_snapshot::snapshotter_testsuite!(|root: &Path| MySnapshotter::open(root));
//! }
//! ```
//!
//! They need root, for mounting: without it they are skipped with a message,
//! or fail if the environment says `CI=true`. So does a snapshotter that
//! answers [`Error::Unsupported`](crate::Error::Unsupported) when opened.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::error::{Error, Result};
use crate::snapshotter::Snapshotter;

pub use self::layer::{Item, LayerBuilder, header, list_layer, seal};

pub mod apply;
pub mod diff;
mod layer;
pub mod snapshotter;

/// Everything a promise of [`Snapshotter`] needs.
pub struct Bench<'a> {
    open: &'a dyn Fn(&Path) -> Result<Box<dyn Snapshotter>>,
    /// A private directory: `root` below is the snapshotter's.
    pub temp: TestDir,
}

impl Bench<'_> {
    /// Opens the snapshotter, on the same directory each time.
    ///
    /// # Panics
    ///
    /// When it does not open.
    pub fn open(&self) -> Box<dyn Snapshotter> {
        (self.open)(&self.temp.path().join("root")).expect("snapshotter opens")
    }
}

/// Runs one promise on a fresh snapshotter.
///
/// # Panics
///
/// When the promise is broken, and without root or support under `CI=true`.
pub fn run<S: Snapshotter + 'static>(
    open: impl Fn(&Path) -> Result<S>,
    promise: impl Fn(&Bench<'_>),
) {
    if !may_run(rustix::process::geteuid().is_root(), "needs root") {
        return;
    }
    let open = move |root: &Path| -> Result<Box<dyn Snapshotter>> { Ok(Box::new(open(root)?)) };
    let bench = Bench { open: &open, temp: TestDir::new() };
    match (bench.open)(&bench.temp.path().join("root")) {
        Err(Error::Unsupported { reason }) => {
            may_run(false, &reason);
        }
        opened => {
            drop(opened);
            promise(&bench);
        }
    }
}

/// Whether a test may run; says why not, or fails under `CI=true`.
///
/// # Panics
///
/// When `CI=true` and the condition does not hold.
#[allow(clippy::print_stderr, reason = "tests report there")]
pub fn may_run(condition: bool, reason: &str) -> bool {
    if !condition {
        assert!(std::env::var("CI").as_deref() != Ok("true"), "cannot run: {reason}");
        eprintln!("skipped: {reason}");
    }
    condition
}

/// A directory of its own that disappears with the value.
#[derive(Debug)]
pub struct TestDir(PathBuf);

impl TestDir {
    /// Makes one in the system's temporary directory.
    ///
    /// # Panics
    ///
    /// When it cannot be made.
    #[allow(clippy::new_without_default, reason = "it makes a directory")]
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let unique = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("crated-snapshot-test-{}-{unique}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir(&path).expect("temporary directory");
        Self(path)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for TestDir {
    fn drop(&mut self) {
        // Stops at mount points: a leaked mount keeps its content.
        let _ = crate::tree::remove_tree(&self.0);
    }
}

/// Runs every promise of [`Snapshotter`] as a test, on snapshotters opened by
/// a function from an empty or earlier used directory to a `Result`.
#[macro_export]
macro_rules! snapshotter_testsuite {
    ($open:expr) => {
        $crate::snapshotter_testsuite! { @each $open;
            prepare_gives_an_empty_writable_filesystem
            children_see_what_parents_committed
            children_do_not_change_their_parents
            siblings_do_not_see_each_other
            views_show_their_parent_and_refuse_writes
            a_view_of_nothing_is_empty
            a_taken_key_is_refused
            a_missing_parent_is_not_found
            a_parent_must_be_committed
            a_taken_name_is_refused_and_the_key_stays
            committing_what_is_missing_is_not_found
            only_active_snapshots_are_committed
            a_committed_key_is_gone
            parents_outlive_their_children
            what_is_missing_is_not_found
            committed_snapshots_have_no_mounts
            mounts_stay_the_same
            everything_survives_reopening
            labels_are_replaced_and_merged
            commit_keeps_no_label_of_the_key
            commit_starts_new_times
            walk_visits_each_once_and_stops
            keys_are_opaque
            deleted_files_stay_deleted
            a_directory_deleted_and_made_again_is_empty
            a_file_and_a_directory_replace_each_other
            renamed_files_move
            owners_and_modes_are_kept
            hard_links_are_kept
            the_root_directory_keeps_its_mode
            links_nodes_and_attributes_are_kept
            usage_counts_one_layer
            long_chains_mount
            one_of_many_gets_the_key
            removed_keys_start_afresh
            cleanup_keeps_what_is_in_use
            rebasing_checks_the_parent
            a_rebased_snapshot_has_its_parent
            settling_loses_nothing
        }
    };
    (@each $open:expr; $($promise:ident)*) => {
        $(
            #[test]
            fn $promise() {
                $crate::testsuite::run($open, $crate::testsuite::snapshotter::$promise);
            }
        )*
    };
}

/// Runs every promise of [`Applier`](crate::Applier) as a test.
#[macro_export]
macro_rules! applier_testsuite {
    ($applier:expr) => {
        $crate::applier_testsuite! { @each $applier;
            every_kind_of_entry_is_made
            the_diff_id_covers_everything
            compression_is_told_from_the_bytes
            whiteouts_work_in_any_order
            opaque_directories_keep_what_the_layer_has
            a_layer_cannot_leave_its_target
            missing_parents_are_made
            types_replace_each_other
            times_of_directories_are_kept
            a_broken_stream_is_an_error
        }
    };
    (@each $applier:expr; $($promise:ident)*) => {
        $(
            #[test]
            fn $promise() {
                if $crate::testsuite::may_run($crate::testsuite::is_root(), "needs root") {
                    $crate::testsuite::apply::$promise(&$applier);
                }
            }
        )*
    };
}

/// Runs every promise of [`Differ`](crate::Differ) as a test.
#[macro_export]
macro_rules! differ_testsuite {
    ($differ:expr) => {
        $crate::differ_testsuite! { @each $differ;
            equal_trees_differ_in_nothing
            each_change_becomes_an_entry
            parents_of_changes_are_written_once
            deletions_become_whiteouts
            hard_links_are_written_as_links
            the_same_input_gives_the_same_bytes
            times_after_the_epoch_are_capped
            an_overlay_gives_the_same_bytes_as_a_walk
            digests_are_those_of_the_bytes
        }
    };
    (@each $differ:expr; $($promise:ident)*) => {
        $(
            #[test]
            fn $promise() {
                if $crate::testsuite::may_run($crate::testsuite::is_root(), "needs root") {
                    $crate::testsuite::diff::$promise(&$differ);
                }
            }
        )*
    };
}

/// Whether this process runs as root.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}
