//! Opening the database: creating it, refusing what cannot be read, moving old layouts forward.

use std::fs::{DirBuilder, File, OpenOptions};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;

use redb::{Database, DatabaseError, ReadableTable, StorageError};

use super::batch::panic_text;
use super::engine::Reserved;
use super::schema::{Table, VERSION, VERSION_KEY};
use super::txn::storage;
use super::{Error, Result};

/// Opens the database below `root`, and says where it is.
pub(super) fn open(root: &Path) -> Result<(Database, Arc<Path>)> {
    let directory = root.join(DIRECTORY);
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&directory)
        .map_err(|source| io("creating", &directory, source))?;
    let path: Arc<Path> = directory.join(FILE).into();
    let fresh = prepare_file(&path)?;

    let database = open_file(&path, !fresh)?;
    catch_unwind(AssertUnwindSafe(|| upgrade(&database, &path)))
        .map_err(|panic| damaged(&path, panic_text(panic.as_ref())))??;
    if fresh {
        sync_directory(&directory)?;
    }
    Ok((database, path))
}

/// Whether there is a database below `root`.
pub fn exists(root: &Path) -> bool {
    root.join(DIRECTORY).join(FILE).symlink_metadata().is_ok_and(|found| found.len() > 0)
}

/// Puts the database below `root` aside under a name that is free.
pub(super) fn set_aside(root: &Path) -> Result<()> {
    let path = root.join(DIRECTORY).join(FILE);
    let aside = (1..)
        .map(|number| path.with_file_name(format!("{FILE}.damaged-{number}")))
        .find(|aside| aside.symlink_metadata().is_err())
        .unwrap_or_else(|| path.with_extension("damaged"));
    std::fs::rename(&path, &aside).map_err(|source| io("setting aside", &path, source))?;
    sync_directory(&root.join(DIRECTORY))
}

/// An empty database that is gone when it is closed.
pub(super) fn in_memory() -> Result<(Database, Arc<Path>)> {
    let path: Arc<Path> = Path::new("memory").into();
    let database = redb::Builder::new()
        .create_with_backend(redb::backends::InMemoryBackend::new())
        .map_err(|error| refuse(&path, error))?;
    upgrade(&database, &path)?;
    Ok((database, path))
}

/// Opens the file, verifying every page if `verify`.
pub(super) fn open_file(path: &Path, verify: bool) -> Result<Database> {
    let file = file(path, false)?;
    // On a file altered behind its back the engine may panic instead of returning.
    catch_unwind(AssertUnwindSafe(|| {
        redb::Builder::new()
            .set_cache_size(CACHE_SIZE_BYTES)
            .set_check_integrity_on_open(verify)
            .create_with_backend(Reserved::new(file)?)
    }))
    .map_err(|panic| damaged(path, panic_text(panic.as_ref())))?
    .map_err(|error| refuse(path, error))
}

fn file(path: &Path, create: bool) -> Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(create)
        .truncate(false)
        .mode(0o600)
        .custom_flags(rustix::fs::OFlags::NOFOLLOW.bits().cast_signed())
        .open(path)
        .map_err(|source| io("opening", path, source))
}

/// Creates the file readable by its owner only; tells whether it is new.
fn prepare_file(path: &Path) -> Result<bool> {
    let file = file(path, true)?;
    let metadata = file.metadata().map_err(|source| io("examining", path, source))?;
    if !metadata.is_file() {
        return Err(damaged(path, "not a regular file".to_owned()));
    }
    Ok(metadata.size() == 0)
}

/// Brings the tables to the present layout in one transaction.
fn upgrade(database: &Database, path: &Path) -> Result<()> {
    let failed = |error: redb::Error| storage("preparing", path, error);
    let transaction = database.begin_write().map_err(|error| failed(error.into()))?;
    let found = {
        let meta = transaction
            .open_table(Table::Meta.definition())
            .map_err(|error| damaged(path, error.to_string()))?;
        let value = meta.get(VERSION_KEY).map_err(|error| failed(error.into()))?;
        value.map(|value| value.value().to_vec())
    };
    match found.as_deref().map(<[u8; 4]>::try_from) {
        Some(Ok(version)) if u32::from_le_bytes(version) == VERSION => {
            let before = count_tables(&transaction, path)?;
            check_tables(&transaction, path)?;
            // Tables that came after the file was made are empty, but have to be there.
            let ended = match before < Table::ALL.len() {
                true => transaction.commit().map_err(Into::into),
                false => transaction.abort().map_err(Into::into),
            };
            return ended.map_err(failed);
        }
        Some(Ok(version)) => {
            let version = u32::from_le_bytes(version);
            if version > VERSION {
                let (path, found) = (path.to_owned(), version);
                return Err(Error::Newer { path, found, known: VERSION });
            }
            return Err(damaged(path, format!("layout {version} is unknown")));
        }
        Some(Err(_)) => return Err(damaged(path, "the layout version is malformed".to_owned())),
        None if !is_empty(&transaction, path)? => {
            return Err(damaged(path, "not a database of this daemon".to_owned()));
        }
        None => {}
    }
    check_tables(&transaction, path)?;
    {
        let mut meta = transaction
            .open_table(Table::Meta.definition())
            .map_err(|error| failed(error.into()))?;
        meta.insert(VERSION_KEY, VERSION.to_le_bytes().as_slice())
            .map_err(|error| failed(error.into()))?;
    }
    transaction.commit().map_err(|error| failed(error.into()))
}

/// Opens, and where missing creates, every table.
fn check_tables(transaction: &redb::WriteTransaction, path: &Path) -> Result<()> {
    for table in Table::ALL {
        transaction
            .open_table(table.definition())
            .map_err(|error| damaged(path, error.to_string()))?;
    }
    Ok(())
}

/// Whether the file holds no table but the one just opened.
fn is_empty(transaction: &redb::WriteTransaction, path: &Path) -> Result<bool> {
    Ok(count_tables(transaction, path)? <= 1)
}

fn count_tables(transaction: &redb::WriteTransaction, path: &Path) -> Result<usize> {
    Ok(transaction.list_tables().map_err(|error| storage("reading", path, error.into()))?.count())
}

fn refuse(path: &Path, error: DatabaseError) -> Error {
    match error {
        DatabaseError::DatabaseAlreadyOpen => Error::InUse { path: path.to_owned() },
        DatabaseError::Storage(StorageError::Io(source))
            if !matches!(
                source.kind(),
                std::io::ErrorKind::InvalidData
                    | std::io::ErrorKind::UnexpectedEof
                    | std::io::ErrorKind::InvalidInput
            ) =>
        {
            io("opening", path, source)
        }
        other => damaged(path, other.to_string()),
    }
}

fn sync_directory(directory: &Path) -> Result<()> {
    File::open(directory)
        .and_then(|directory| directory.sync_all())
        .map_err(|source| io("syncing", directory, source))
}

fn damaged(path: &Path, reason: String) -> Error {
    Error::Damaged { path: path.to_owned(), reason }
}

fn io(op: &'static str, path: &Path, source: std::io::Error) -> Error {
    Error::Io { op, path: path.to_owned(), source }
}

/// Where clients and tools expect the metadata plugin's state.
const DIRECTORY: &str = "io.containerd.metadata.v1.bolt";

const FILE: &str = "meta.redb";

/// Pages kept in memory beside the system's own cache, and never given back: the upper levels of
/// the trees of a busy host (10^5 objects), and all of a small one's.
const CACHE_SIZE_BYTES: usize = 4 << 20;
