//! The promises of a [`Store`], each as a function to run on an empty one.
//!
//! An implementor calls [`store_testsuite!`](crate::store_testsuite) with a factory and gets one
//! test per promise:
//!
//! ```
//! mod conformance {
//!     use crated_content::MemoryStore;
//!
//!     // The second value is kept until the test ends, for example a temporary directory.
//!     crated_content::store_testsuite!(|| (MemoryStore::new(), ()));
//! }
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Seek, SeekFrom, Write};
use std::ops::ControlFlow;
use std::sync::Barrier;
use std::time::{Duration, SystemTime};

use crate::{
    Algorithm, Commit, Digest, Error, Info, Ingest, LABEL_LEN_MAX, LabelUpdate, Labels,
    REFERENCE_LEN_MAX, ReadFrom, Store, Writer, read_blob, reader, write_blob,
};

/// Runs every promise as a test of the module it is used in. The argument is a closure yielding an
/// empty store and a value that keeps it alive.
#[macro_export]
macro_rules! store_testsuite {
    ($factory:expr) => {
        $crate::store_testsuite!(@each $factory;
            a_committed_blob_is_read_back
            an_empty_blob_is_a_blob
            nothing_is_visible_before_commit
            large_blobs_in_odd_pieces_are_read_back
            every_algorithm_is_stored_and_found
            commit_rejects_wrong_digest
            commit_rejects_wrong_size
            a_rejected_ingest_stays_until_aborted
            commit_without_demands_names_the_blob
            commit_checks_an_algorithm_other_than_the_running_one
            a_stored_blob_is_not_ingested_again
            the_second_commit_of_a_blob_learns_it_exists
            one_writer_per_reference
            a_dropped_writer_leaves_its_bytes_for_the_next
            a_large_ingest_resumes_at_any_byte
            resuming_with_another_algorithm_hashes_again
            another_total_starts_over
            truncate_starts_over
            a_truncated_large_ingest_leaves_no_stale_tail
            status_follows_the_writer
            statuses_lists_every_ingest_once
            abort_drops_an_ingest
            abort_under_a_live_writer_fails_its_commit
            unknown_ingests_are_not_found
            any_text_is_a_reference
            invalid_references_are_refused
            unknown_blobs_are_not_found
            reads_stop_at_the_end
            readers_seek
            readers_outlive_deletion
            delete_removes_blob_and_labels
            labels_are_set_at_commit_and_changed_later
            labels_without_value_do_not_exist
            labels_too_long_are_refused
            many_labels_are_kept
            concurrent_label_updates_are_all_applied
            walk_sees_every_blob_and_stops_when_told
            the_walker_may_change_the_store
            small_blobs_from_many_threads_are_all_stored
            one_blob_from_many_threads_is_stored_once
            one_reference_is_fought_for_without_loss
            times_are_plausible
            whole_blobs_are_written_and_read_by_one_call
        );
    };
    (@each $factory:expr; $($promise:ident)*) => {
        $(
            #[test]
            fn $promise() {
                let (store, _alive) = ($factory)();
                $crate::testsuite::$promise(&store);
            }
        )*
    };
}

/// Decodes the content of a checkpoint file, for fuzzing: no bytes may make it panic.
#[doc(hidden)]
pub fn fuzz_checkpoint(bytes: &[u8]) {
    crate::local::decode_checkpoint(bytes);
}

/// What goes in comes out, under its digest.
pub fn a_committed_blob_is_read_back(store: &dyn Store) {
    let digest = Digest::of(b"hello");
    let mut writer = open(store, "greeting");
    writer.write_all(b"hel").unwrap();
    writer.write_all(b"lo").unwrap();
    let commit = Commit { size_bytes: Some(5), ..Commit::expecting(digest.clone()) };
    let info = writer.commit(&commit).unwrap();

    assert_eq!((&info.digest, info.size_bytes), (&digest, 5));
    assert_eq!(store.info(&digest).unwrap(), info);
    assert_eq!(content(store, &digest), b"hello");
    assert_eq!(store.statuses().unwrap(), []);
}

/// Zero bytes are content like any other.
pub fn an_empty_blob_is_a_blob(store: &dyn Store) {
    let info = open(store, "nothing").commit(&Commit::default()).unwrap();
    assert_eq!((info.digest, info.size_bytes), (Digest::of(b""), 0));
    assert_eq!(content(store, &Digest::of(b"")), b"");
}

/// Bytes belong to readers only once verified.
pub fn nothing_is_visible_before_commit(store: &dyn Store) {
    let digest = Digest::of(b"pending");
    let mut writer = open(store, "pending");
    writer.write_all(b"pending").unwrap();
    assert_eq!(writer.digest().unwrap(), digest);
    assert_not_found(store, &digest);
    assert_eq!(walked(store).len(), 0);
    writer.commit(&Commit::default()).unwrap();
    assert_eq!(content(store, &digest), b"pending");
}

/// Piece and blob sizes around every boundary an implementation could have.
pub fn large_blobs_in_odd_pieces_are_read_back(store: &dyn Store) {
    for (size_bytes, piece, announced) in [
        (65_536, 65_536, false),
        (65_537, 1000, true),
        (262_144, 262_144, true),
        (1_048_576, 4096, false),
        (4_194_305, 1_048_577, true),
        (20_000_003, 777_777, false),
        (20_000_004, 8_388_608, true),
    ] {
        let bytes = pattern(size_bytes);
        let digest = Digest::of(&bytes);
        let mut ingest = Ingest::new(format!("large-{size_bytes}"));
        if announced {
            ingest = ingest.total(size_bytes as u64).expected(digest.clone());
        }
        let mut writer = store.writer(&ingest).unwrap();
        for piece in bytes.chunks(piece) {
            writer.write_all(piece).unwrap();
        }
        let commit =
            Commit { size_bytes: Some(bytes.len() as u64), ..Commit::expecting(digest.clone()) };
        assert_eq!(writer.commit(&commit).unwrap().size_bytes, bytes.len() as u64);
        assert!(content(store, &digest) == bytes, "{size_bytes} bytes came back changed");
    }
}

/// The algorithm follows the digest announced.
pub fn every_algorithm_is_stored_and_found(store: &dyn Store) {
    for algorithm in Algorithm::ALL {
        let digest = Digest::of_with(algorithm, b"content");
        let ingest = Ingest::new(algorithm.name()).expected(digest.clone());
        let mut writer = store.writer(&ingest).unwrap();
        writer.write_all(b"content").unwrap();
        assert_eq!(writer.digest().unwrap(), digest);
        let info = writer.commit(&Commit::expecting(digest.clone())).unwrap();
        assert_eq!(info.digest, digest);
        assert_eq!(content(store, &digest), b"content");
    }
    let all: BTreeSet<_> = walked(store).into_keys().collect();
    assert_eq!(all.len(), Algorithm::ALL.len());
}

/// A blob that fails verification never becomes visible.
pub fn commit_rejects_wrong_digest(store: &dyn Store) {
    let promised = Digest::of(b"promised");
    let mut writer = open(store, "layer");
    writer.write_all(b"delivered").unwrap();
    let error = writer.commit(&Commit::expecting(promised.clone())).unwrap_err();

    let Error::DigestMismatch { expected, actual } = error else { panic!("{error}") };
    assert_eq!((&expected, &actual), (&promised, &Digest::of(b"delivered")));
    assert_not_found(store, &expected);
    assert_not_found(store, &actual);
}

/// Nor does one of another size.
pub fn commit_rejects_wrong_size(store: &dyn Store) {
    let mut writer = open(store, "layer");
    writer.write_all(b"delivered").unwrap();
    let commit = Commit { size_bytes: Some(8), ..Commit::default() };
    let error = writer.commit(&commit).unwrap_err();

    assert!(matches!(error, Error::SizeMismatch { expected: 8, actual: 9 }), "{error}");
    assert_not_found(store, &Digest::of(b"delivered"));
}

/// The caller decides what becomes of bytes that failed verification.
pub fn a_rejected_ingest_stays_until_aborted(store: &dyn Store) {
    let mut writer = open(store, "layer");
    writer.write_all(b"delivered").unwrap();
    writer.commit(&Commit::expecting(Digest::of(b"promised"))).unwrap_err();

    assert_eq!(store.status("layer").unwrap().offset, 9);
    // The reference is free again at once.
    let writer = open(store, "layer");
    assert_eq!(writer.status().offset, 9);
    writer.commit(&Commit::expecting(Digest::of(b"promised"))).unwrap_err();
    store.abort("layer").unwrap();
    assert_ingest_not_found(store, "layer");
    assert_eq!(open(store, "layer").status().offset, 0);
}

/// A client that knows neither size nor digest learns both.
pub fn commit_without_demands_names_the_blob(store: &dyn Store) {
    let mut writer = open(store, "unknown");
    writer.write_all(b"whatever").unwrap();
    let info = writer.commit(&Commit::default()).unwrap();
    assert_eq!((info.digest, info.size_bytes), (Digest::of(b"whatever"), 8));
}

/// The digest demanded decides, not the one announced.
pub fn commit_checks_an_algorithm_other_than_the_running_one(store: &dyn Store) {
    for size_bytes in [10, 300_000] {
        let bytes = pattern(size_bytes);
        let good = Digest::of_with(Algorithm::Sha512, &bytes);
        let wrong = Digest::of_with(Algorithm::Sha512, b"other");
        let mut writer = open(store, "layer");
        writer.write_all(&bytes).unwrap();
        let error = writer.commit(&Commit::expecting(wrong)).unwrap_err();
        assert!(matches!(error, Error::DigestMismatch { .. }), "{error}");
        let info = open(store, "layer").commit(&Commit::expecting(good.clone())).unwrap();
        assert_eq!(info.digest, good);
        assert!(content(store, &good) == bytes);
    }
}

/// Announcing the digest of a stored blob spares the transfer.
pub fn a_stored_blob_is_not_ingested_again(store: &dyn Store) {
    let digest = write_blob(store, "first", b"content").unwrap();
    let error = refused(store, &Ingest::new("second").expected(digest.clone()));
    assert!(matches!(&error, Error::AlreadyExists(existing) if *existing == digest), "{error}");
    assert_ingest_not_found(store, "second");
}

/// Without an announcement it is the commit that tells, and the ingest is gone.
pub fn the_second_commit_of_a_blob_learns_it_exists(store: &dyn Store) {
    for size_bytes in [10, 300_000] {
        let bytes = pattern(size_bytes);
        let labels = Labels::from([("kept".to_owned(), "yes".to_owned())]);
        let mut writer = open(store, "first");
        writer.write_all(&bytes).unwrap();
        let first = writer.commit(&Commit { labels, ..Commit::default() }).unwrap();

        let mut writer = open(store, "second");
        writer.write_all(&bytes).unwrap();
        let error = writer.commit(&Commit::default()).unwrap_err();
        assert!(matches!(&error, Error::AlreadyExists(d) if *d == first.digest), "{error}");
        assert_eq!(store.info(&first.digest).unwrap(), first);
        assert_ingest_not_found(store, "second");
    }
}

/// A reference has one live writer; it is free as soon as that one is gone.
pub fn one_writer_per_reference(store: &dyn Store) {
    let before = SystemTime::now() - Duration::from_secs(1);
    let writer = open(store, "layer");
    let error = refused(store, &"layer".into());
    let Error::Locked { reference, since } = &error else { panic!("{error}") };
    assert_eq!(reference, "layer");
    assert!(*since >= before && *since <= SystemTime::now() + Duration::from_secs(1));
    open(store, "another");
    drop(writer);
    open(store, "layer").commit(&Commit::default()).unwrap();
    open(store, "layer");
}

/// An interrupted ingest goes on where it stopped.
pub fn a_dropped_writer_leaves_its_bytes_for_the_next(store: &dyn Store) {
    let digest = Digest::of(b"first second");
    let mut writer = open(store, "layer");
    writer.write_all(b"first ").unwrap();
    drop(writer);

    let status = store.status("layer").unwrap();
    assert_eq!((status.reference.as_str(), status.offset), ("layer", 6));
    let mut writer = open(store, "layer");
    assert_eq!(writer.status().offset, 6);
    assert_eq!(writer.digest().unwrap(), Digest::of(b"first "));
    writer.write_all(b"second").unwrap();
    writer.commit(&Commit::expecting(digest.clone())).unwrap();
    assert_eq!(content(store, &digest), b"first second");
}

/// Wherever it stopped, the hash goes on as well.
pub fn a_large_ingest_resumes_at_any_byte(store: &dyn Store) {
    let bytes = pattern(18_000_001);
    let digest = Digest::of(&bytes);
    let ingest = Ingest::new("layer").total(bytes.len() as u64).expected(digest.clone());
    let mut offset = 0;
    for next in [1, 65_536, 70_001, 1_048_576, 8_388_608, 8_388_609, 16_900_007, bytes.len()] {
        let mut writer = store.writer(&ingest).unwrap();
        assert_eq!(writer.status().offset, offset as u64);
        assert_eq!(writer.digest().unwrap(), Digest::of(&bytes[..offset]));
        writer.write_all(&bytes[offset..next]).unwrap();
        assert_eq!(writer.status().offset, next as u64);
        offset = next;
    }
    let writer = store.writer(&ingest).unwrap();
    writer.commit(&Commit::expecting(digest.clone())).unwrap();
    assert!(content(store, &digest) == bytes);
}

/// A later writer may know the digest, in another algorithm than was assumed.
pub fn resuming_with_another_algorithm_hashes_again(store: &dyn Store) {
    for size_bytes in [100, 9_000_000] {
        let bytes = pattern(size_bytes);
        let mut writer = open(store, "layer");
        writer.write_all(&bytes).unwrap();
        drop(writer);
        for algorithm in [Algorithm::Sha512, Algorithm::Blake3, Algorithm::Sha256] {
            let digest = Digest::of_with(algorithm, &bytes);
            let ingest = Ingest::new("layer").expected(digest.clone());
            assert_eq!(store.writer(&ingest).unwrap().digest().unwrap(), digest);
            assert_eq!(store.status("layer").unwrap().expected, Some(digest));
        }
        store.abort("layer").unwrap();
    }
}

/// A different total is a different blob.
pub fn another_total_starts_over(store: &dyn Store) {
    for size_bytes in [100_usize, 300_000] {
        let total = size_bytes as u64 * 2;
        let mut writer = store.writer(&Ingest::new("layer").total(total)).unwrap();
        writer.write_all(&pattern(size_bytes)).unwrap();
        drop(writer);
        assert_eq!(open(store, "layer").status().total, Some(total));
        let mut writer = store.writer(&Ingest::new("layer").total(total + 1)).unwrap();
        let status = writer.status();
        assert_eq!((status.offset, status.total), (0, Some(total + 1)));
        let bytes = vec![7; size_bytes * 2 + 1];
        writer.write_all(&bytes).unwrap();
        let info = writer.commit(&Commit::default()).unwrap();
        assert_eq!((info.digest.clone(), info.size_bytes), (Digest::of(&bytes), total + 1));
        store.delete(&info.digest).unwrap();
    }
}

/// Truncating forgets the bytes and the hash.
pub fn truncate_starts_over(store: &dyn Store) {
    let mut writer = open(store, "layer");
    writer.write_all(b"wrong bytes, more than of the right ones").unwrap();
    writer.truncate().unwrap();
    assert_eq!(writer.status().offset, 0);
    assert_eq!(writer.digest().unwrap(), Digest::of(b""));
    writer.write_all(b"right").unwrap();
    let info = writer.commit(&Commit::expecting(Digest::of(b"right"))).unwrap();
    assert_eq!(content(store, &info.digest), b"right");
}

/// Also of bytes that have long been on the disk.
pub fn a_truncated_large_ingest_leaves_no_stale_tail(store: &dyn Store) {
    let wrong = vec![0xee; 9_500_000];
    let right = pattern(300_001);
    for announced in [None, Some(wrong.len() as u64)] {
        let ingest = Ingest { total: announced, ..Ingest::new("layer") };
        let mut writer = store.writer(&ingest).unwrap();
        writer.write_all(&wrong).unwrap();
        drop(writer);
        let mut writer = store.writer(&ingest).unwrap();
        writer.truncate().unwrap();
        writer.write_all(&right).unwrap();
        drop(writer);
        let writer = store.writer(&ingest).unwrap();
        assert_eq!(writer.status().offset, right.len() as u64);
        let info = writer.commit(&Commit::default()).unwrap();
        assert_eq!(info.digest, Digest::of(&right));
        assert!(content(store, &info.digest) == right);
        store.delete(&info.digest).unwrap();
    }
}

/// Progress can be polled while bytes arrive.
pub fn status_follows_the_writer(store: &dyn Store) {
    let expected = Digest::of(b"never");
    let ingest = Ingest::new("layer").total(1_000_000).expected(expected.clone());
    let mut writer = store.writer(&ingest).unwrap();
    let mut offset = 0;
    for count in [0, 1, 65_535, 200_000, 500_000] {
        writer.write_all(&vec![7; count]).unwrap();
        offset += count as u64;
        let status = store.status("layer").unwrap();
        assert_eq!(status, writer.status());
        assert_eq!((status.offset, status.total), (offset, Some(1_000_000)));
        assert_eq!(status.expected.as_ref(), Some(&expected));
        assert!(status.started_at <= status.updated_at);
    }
    drop(writer);
    let status = store.status("layer").unwrap();
    assert_eq!((status.offset, status.total), (offset, Some(1_000_000)));
    assert_eq!(status.expected, Some(expected));
}

/// Live or not, small or large.
pub fn statuses_lists_every_ingest_once(store: &dyn Store) {
    let mut alive = Vec::new();
    for (reference, size_bytes, keep) in
        [("a", 0, true), ("b", 10, false), ("c", 300_000, true), ("d", 300_001, false)]
    {
        let mut writer = open(store, reference);
        writer.write_all(&vec![1; size_bytes]).unwrap();
        if keep {
            alive.push(writer);
        }
    }
    let listed: Vec<_> =
        store.statuses().unwrap().into_iter().map(|s| (s.reference, s.offset)).collect();
    let expected = [("a", 0), ("b", 10), ("c", 300_000), ("d", 300_001)];
    assert_eq!(listed, expected.map(|(reference, offset)| (reference.to_owned(), offset)));
}

/// Nothing of it remains.
pub fn abort_drops_an_ingest(store: &dyn Store) {
    for size_bytes in [10, 300_000] {
        let mut writer = open(store, "layer");
        writer.write_all(&pattern(size_bytes)).unwrap();
        drop(writer);
        store.abort("layer").unwrap();
        assert_ingest_not_found(store, "layer");
        assert_eq!(store.statuses().unwrap(), []);
        assert_eq!(open(store, "layer").status().offset, 0);
        store.abort("layer").unwrap();
    }
}

/// Abort does not ask the writer, which finds out at its commit and leaves nothing behind.
pub fn abort_under_a_live_writer_fails_its_commit(store: &dyn Store) {
    for size_bytes in [10, 300_000] {
        let bytes = pattern(size_bytes);
        let mut writer = open(store, "layer");
        writer.write_all(&bytes).unwrap();
        store.abort("layer").unwrap();
        assert_ingest_not_found(store, "layer");
        assert_eq!(store.statuses().unwrap(), []);
        let error = writer.commit(&Commit::default()).unwrap_err();
        assert!(matches!(&error, Error::IngestNotFound(r) if r == "layer"), "{error}");
        assert_not_found(store, &Digest::of(&bytes));
        assert_ingest_not_found(store, "layer");

        let mut writer = open(store, "layer");
        writer.write_all(&bytes).unwrap();
        store.abort("layer").unwrap();
        drop(writer);
        assert_ingest_not_found(store, "layer");
    }
}

/// Asking for what is not there is an error of its own.
pub fn unknown_ingests_are_not_found(store: &dyn Store) {
    assert_ingest_not_found(store, "nobody");
    assert_eq!(store.statuses().unwrap(), []);
}

/// References are names, not paths.
pub fn any_text_is_a_reference(store: &dyn Store) {
    let longest = "x".repeat(REFERENCE_LEN_MAX);
    let hostile = [
        "..",
        ".",
        "/",
        "../../etc/passwd",
        "a/b",
        "with space",
        "new\nline",
        "\u{7f}\u{1}",
        "ünï",
        "docker.io/library/redis:7@sha256:0",
        "-rf",
        "*",
        "%00",
        longest.as_str(),
    ];
    for reference in hostile {
        let mut writer = open(store, reference);
        writer.write_all(reference.as_bytes()).unwrap();
    }
    let listed: BTreeSet<_> =
        store.statuses().unwrap().into_iter().map(|status| status.reference).collect();
    assert_eq!(listed, hostile.map(str::to_owned).into());
    for reference in hostile {
        assert_eq!(store.status(reference).unwrap().offset, reference.len() as u64);
        let info = open(store, reference).commit(&Commit::default()).unwrap();
        assert_eq!(info.digest, Digest::of(reference.as_bytes()));
    }
}

/// The few texts no store can keep.
pub fn invalid_references_are_refused(store: &dyn Store) {
    for reference in [String::new(), "nul\0".to_owned(), "x".repeat(REFERENCE_LEN_MAX + 1)] {
        let error = refused(store, &Ingest::new(reference));
        assert!(matches!(error, Error::InvalidArgument { what: "reference", .. }), "{error}");
    }
}

/// The same for blobs, whatever is asked.
pub fn unknown_blobs_are_not_found(store: &dyn Store) {
    for algorithm in Algorithm::ALL {
        let digest = Digest::of_with(algorithm, b"unknown");
        assert_not_found(store, &digest);
        let update = LabelUpdate::Replace(Labels::new());
        assert!(matches!(store.update(&digest, &update), Err(Error::NotFound(_))));
        assert!(matches!(store.delete(&digest), Err(Error::NotFound(_))));
    }
    assert_eq!(walked(store).len(), 0);
}

/// Offsets at, behind and far behind the end read nothing; no arithmetic overflows.
pub fn reads_stop_at_the_end(store: &dyn Store) {
    let digest = write_blob(store, "blob", b"0123456789").unwrap();
    let blob = store.reader(&digest).unwrap();
    assert_eq!(blob.size_bytes(), 10);
    let mut buffer = [0; 16];
    for (offset, expected) in
        [(0, "0123456789"), (7, "789"), (9, "9"), (10, ""), (11, ""), (u64::MAX, "")]
    {
        let count = blob.read_at(&mut buffer, offset).unwrap();
        assert_eq!(&buffer[..count], expected.as_bytes());
    }
    assert_eq!(blob.read_at(&mut buffer[..3], 4).unwrap(), 3);
    assert_eq!(&buffer[..3], b"456");
    assert_eq!(blob.read_at(&mut [], 4).unwrap(), 0);
    let error = ReadFrom::new(store.reader(&digest).unwrap(), 11).map(drop).unwrap_err();
    assert!(matches!(error, Error::OutOfRange { offset: 11, size_bytes: 10 }), "{error}");
}

/// Sequential readers start and go anywhere.
pub fn readers_seek(store: &dyn Store) {
    let digest = write_blob(store, "blob", b"0123456789").unwrap();
    let mut blob = ReadFrom::new(store.reader(&digest).unwrap(), 4).unwrap();
    let mut text = String::new();
    blob.read_to_string(&mut text).unwrap();
    assert_eq!(text, "456789");
    assert_eq!(blob.seek(SeekFrom::End(-3)).unwrap(), 7);
    assert_eq!(blob.seek(SeekFrom::Current(-5)).unwrap(), 2);
    blob.seek(SeekFrom::Current(-3)).unwrap_err();
    text.clear();
    blob.read_to_string(&mut text).unwrap();
    assert_eq!(text, "23456789");
}

/// A reader sees the bytes it was opened on, or none.
pub fn readers_outlive_deletion(store: &dyn Store) {
    let bytes = pattern(400_000);
    let digest = write_blob(store, "blob", &bytes).unwrap();
    let blob = store.reader(&digest).unwrap();
    store.delete(&digest).unwrap();
    write_blob(store, "other", &vec![9; 400_000]).unwrap();
    let mut read = Vec::new();
    reader(blob).read_to_end(&mut read).unwrap();
    assert!(read == bytes);
}

/// A blob that comes back has no memory of its earlier labels.
pub fn delete_removes_blob_and_labels(store: &dyn Store) {
    let digest = write_blob(store, "blob", b"content").unwrap();
    set_label(store, &digest, "a", "1");
    store.delete(&digest).unwrap();
    assert_not_found(store, &digest);
    assert!(matches!(store.delete(&digest), Err(Error::NotFound(_))));
    write_blob(store, "blob", b"content").unwrap();
    assert_eq!(store.info(&digest).unwrap().labels, Labels::new());
}

/// Labels are replaced as a whole or one by one.
pub fn labels_are_set_at_commit_and_changed_later(store: &dyn Store) {
    let labels = |pairs: &[(&str, &str)]| -> Labels {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    };
    let mut writer = open(store, "blob");
    writer.write_all(b"content").unwrap();
    let commit = Commit { labels: labels(&[("a", "1"), ("b", "2")]), ..Commit::default() };
    let info = writer.commit(&commit).unwrap();
    assert_eq!(info.labels, commit.labels);

    let merge = BTreeMap::from([
        ("a".to_owned(), None),
        ("b".to_owned(), Some("two".to_owned())),
        ("c/d.e".to_owned(), Some("3".to_owned())),
        ("absent".to_owned(), None),
    ]);
    let changed = store.update(&info.digest, &LabelUpdate::Merge(merge)).unwrap();
    assert_eq!(changed.labels, labels(&[("b", "two"), ("c/d.e", "3")]));
    assert_eq!(changed.created_at, info.created_at);
    assert!(changed.updated_at >= info.updated_at);
    assert_eq!(store.info(&info.digest).unwrap(), changed);

    let only = labels(&[("only", "this \"one\"\n\u{1F980}")]);
    let replaced = store.update(&info.digest, &LabelUpdate::Replace(only.clone())).unwrap();
    assert_eq!(replaced.labels, only);
    assert_eq!(walked(store)[&info.digest], replaced);
    let none = store.update(&info.digest, &LabelUpdate::Replace(Labels::new())).unwrap();
    assert_eq!(none.labels, Labels::new());
}

/// An empty value is how a label is deleted.
pub fn labels_without_value_do_not_exist(store: &dyn Store) {
    let empty = || Labels::from([("empty".to_owned(), String::new())]);
    let mut writer = open(store, "blob");
    writer.write_all(b"content").unwrap();
    let info = writer.commit(&Commit { labels: empty(), ..Commit::default() }).unwrap();
    assert_eq!(info.labels, Labels::new());
    let update = LabelUpdate::Replace(empty());
    assert_eq!(store.update(&info.digest, &update).unwrap().labels, Labels::new());
    set_label(store, &info.digest, "a", "1");
    set_label(store, &info.digest, "a", "");
    assert_eq!(store.info(&info.digest).unwrap().labels, Labels::new());
}

/// A refused label changes nothing.
pub fn labels_too_long_are_refused(store: &dyn Store) {
    let digest = write_blob(store, "blob", b"content").unwrap();
    let longest = "v".repeat(LABEL_LEN_MAX - 3);
    set_label(store, &digest, "key", &longest);
    for (key, value) in [("key!", longest.as_str()), ("", "nameless")] {
        let update = Labels::from([(key.to_owned(), value.to_owned())]);
        let error = store.update(&digest, &LabelUpdate::Replace(update.clone())).unwrap_err();
        assert!(matches!(error, Error::InvalidArgument { what: "label", .. }), "{error}");
        let writer = open(store, "other");
        let error = writer.commit(&Commit { labels: update, ..Commit::default() }).unwrap_err();
        assert!(matches!(error, Error::InvalidArgument { what: "label", .. }), "{error}");
        assert_not_found(store, &Digest::of(b""));
    }
    assert_eq!(store.info(&digest).unwrap().labels["key"], longest);
}

/// The limit holds per label, not for their sum: an index carries hundreds.
pub fn many_labels_are_kept(store: &dyn Store) {
    let digest = write_blob(store, "blob", b"content").unwrap();
    let labels: Labels = (0..500).map(|n| (format!("label-{n}"), "v".repeat(1000))).collect();
    store.update(&digest, &LabelUpdate::Replace(labels.clone())).unwrap();
    assert_eq!(store.info(&digest).unwrap().labels, labels);
}

/// Read, modify and write are one step.
pub fn concurrent_label_updates_are_all_applied(store: &dyn Store) {
    let digest = write_blob(store, "blob", b"content").unwrap();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let digest = &digest;
            scope.spawn(move || {
                for n in 0..5 {
                    set_label(store, digest, &format!("{thread}-{n}"), "set");
                }
            });
        }
    });
    assert_eq!(store.info(&digest).unwrap().labels.len(), 20);
}

/// Each blob once, and no further than asked.
pub fn walk_sees_every_blob_and_stops_when_told(store: &dyn Store) {
    let digests: BTreeSet<_> =
        (0..20).map(|n| write_blob(store, "blob", format!("{n}").as_bytes()).unwrap()).collect();
    let mut seen = Vec::new();
    store
        .walk(&mut |info| {
            seen.push(info.digest);
            ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!(seen.len(), 20);
    assert_eq!(BTreeSet::from_iter(seen), digests);
    let mut count = 0;
    store
        .walk(&mut |_| {
            count += 1;
            if count == 7 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })
        .unwrap();
    assert_eq!(count, 7);
}

/// A collector deletes while it walks.
pub fn the_walker_may_change_the_store(store: &dyn Store) {
    for n in 0..20 {
        write_blob(store, "blob", format!("{n}").as_bytes()).unwrap();
    }
    store
        .walk(&mut |info| {
            store.delete(&info.digest).unwrap();
            ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!(walked(store).len(), 0);
}

/// Commits that arrive together neither block nor lose each other.
pub fn small_blobs_from_many_threads_are_all_stored(store: &dyn Store) {
    const THREADS: usize = 32;
    const EACH: usize = 8;
    let start = Barrier::new(THREADS);
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let start = &start;
            scope.spawn(move || {
                start.wait();
                for n in 0..EACH {
                    let text = format!("blob {n} of {thread}");
                    write_blob(store, &text, text.as_bytes()).unwrap();
                }
            });
        }
    });
    let walked = walked(store);
    assert_eq!(walked.len(), THREADS * EACH);
    for digest in walked.keys() {
        read_blob(store, digest, 100).unwrap();
    }
    assert_eq!(store.statuses().unwrap(), []);
}

/// Exactly one wins, and every loser may rely on the winner.
pub fn one_blob_from_many_threads_is_stored_once(store: &dyn Store) {
    const THREADS: usize = 16;
    for size_bytes in [100, 300_000] {
        let bytes = &pattern(size_bytes);
        let start = Barrier::new(THREADS);
        let won: usize = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..THREADS)
                .map(|thread| {
                    let start = &start;
                    scope.spawn(move || {
                        let mut writer = open(store, &format!("{size_bytes}-{thread}"));
                        writer.write_all(bytes).unwrap();
                        start.wait();
                        let outcome = writer.commit(&Commit::default());
                        assert!(content(store, &Digest::of(bytes)) == *bytes);
                        match outcome {
                            Ok(_) => 1,
                            Err(Error::AlreadyExists(_)) => 0,
                            Err(error) => panic!("{error}"),
                        }
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert_eq!(won, 1);
        assert_eq!(store.statuses().unwrap(), []);
    }
}

/// Writers of one reference take turns; whoever gets it goes on from the last byte.
pub fn one_reference_is_fought_for_without_loss(store: &dyn Store) {
    let bytes = &pattern(200_000);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(move || {
                loop {
                    match store.writer(&"layer".into()) {
                        Ok(mut writer) => {
                            let offset = writer.status().offset as usize;
                            if offset == bytes.len() {
                                return;
                            }
                            let end = bytes.len().min(offset + 9973);
                            writer.write_all(&bytes[offset..end]).unwrap();
                        }
                        Err(Error::Locked { .. }) => std::thread::yield_now(),
                        Err(error) => panic!("{error}"),
                    }
                }
            });
        }
    });
    open(store, "layer").commit(&Commit::expecting(Digest::of(bytes))).unwrap();
}

/// Times come from the wall clock and survive resumption.
pub fn times_are_plausible(store: &dyn Store) {
    // File systems keep coarser times than the clock shows.
    let slack = Duration::from_secs(2);
    let before = SystemTime::now() - slack;
    let mut writer = open(store, "blob");
    writer.write_all(b"content").unwrap();
    let started_at = writer.status().started_at;
    drop(writer);
    let writer = open(store, "blob");
    let resumed = writer.status();
    let drift = match resumed.started_at.duration_since(started_at) {
        Ok(later) => later,
        Err(earlier) => earlier.duration(),
    };
    assert!(drift < slack, "started {drift:?} apart");
    assert!(resumed.updated_at >= before);
    let info = writer.commit(&Commit::default()).unwrap();
    let after = SystemTime::now() + slack;
    assert!(started_at >= before && started_at <= after);
    assert!(info.created_at >= before && info.created_at <= after);
    assert!(info.updated_at >= info.created_at && info.updated_at <= after);
}

/// The helpers around the traits work with any store.
pub fn whole_blobs_are_written_and_read_by_one_call(store: &dyn Store) {
    let digest = write_blob(store, "config", b"{}").unwrap();
    assert_eq!(write_blob(store, "config", b"{}").unwrap(), digest);
    assert_eq!(read_blob(store, &digest, 2).unwrap(), b"{}");
    let error = read_blob(store, &digest, 1).unwrap_err();
    assert!(matches!(error, Error::InvalidArgument { what: "blob", .. }), "{error}");
    assert!(crate::exists(store, &digest).unwrap());
    assert!(!crate::exists(store, &Digest::of(b"other")).unwrap());

    let bytes = pattern(700_000);
    let writer = open(store, "layer");
    let commit = Commit::expecting(Digest::of(&bytes));
    let info = crate::copy(&mut bytes.as_slice(), writer, &commit).unwrap();
    assert_eq!(info.size_bytes, 700_000);
}

fn open(store: &dyn Store, reference: &str) -> Box<dyn Writer> {
    store.writer(&reference.into()).unwrap()
}

fn refused(store: &dyn Store, ingest: &Ingest) -> Error {
    match store.writer(ingest) {
        Ok(_) => panic!("{ingest:?} was accepted"),
        Err(error) => error,
    }
}

fn content(store: &dyn Store, digest: &Digest) -> Vec<u8> {
    let mut bytes = Vec::new();
    reader(store.reader(digest).unwrap()).read_to_end(&mut bytes).unwrap();
    bytes
}

fn walked(store: &dyn Store) -> BTreeMap<Digest, Info> {
    let mut infos = BTreeMap::new();
    store
        .walk(&mut |info| {
            infos.insert(info.digest.clone(), info);
            ControlFlow::Continue(())
        })
        .unwrap();
    infos
}

fn set_label(store: &dyn Store, digest: &Digest, key: &str, value: &str) {
    let change = BTreeMap::from([(key.to_owned(), Some(value.to_owned()))]);
    store.update(digest, &LabelUpdate::Merge(change)).unwrap();
}

fn assert_not_found(store: &dyn Store, digest: &Digest) {
    assert!(matches!(store.info(digest), Err(Error::NotFound(_))));
    assert!(matches!(store.reader(digest).map(drop), Err(Error::NotFound(_))));
}

fn assert_ingest_not_found(store: &dyn Store, reference: &str) {
    assert!(matches!(store.status(reference), Err(Error::IngestNotFound(_))));
    assert!(matches!(store.abort(reference), Err(Error::IngestNotFound(_))));
}

/// Bytes without a period a swapped or repeated buffer could hide in.
fn pattern(size_bytes: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(size_bytes + 8);
    while bytes.len() < size_bytes {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(size_bytes);
    bytes
}
