//! Whether the database belongs to the root it is found in, and is no older than it.
//!
//! The database holds an identity and counts the starts of daemons on it. The file `identity`
//! beside it holds both as well: `<identity> <starts>`. After the database was replaced, by that
//! of another host or by an older copy of itself, the two disagree. What the root holds is unknown
//! to the records then, and a collection would remove it: the daemon refuses to start instead.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use super::schema::Table;
use super::txn::View;
use super::{Db, Error, Result, rows};

/// What one side says.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Identity {
    id: String,
    starts: u64,
}

/// Compares the two sides; says what is wrong, if anything.
pub(super) fn mismatch(db: &Db) -> Result<Option<String>> {
    let Some(beside) = read_beside(db)? else { return Ok(None) };
    let within = read_within(db)?;
    if within.id.is_empty() {
        return Ok(Some("it is new, and another was here before".to_owned()));
    }
    if within.id != beside.id {
        return Ok(Some("it belongs to another root".to_owned()));
    }
    if within.starts < beside.starts {
        let Identity { starts, .. } = within;
        return Ok(Some(format!(
            "it is an older copy: it has seen {starts} starts, this root {}",
            beside.starts
        )));
    }
    Ok(None)
}

/// Counts a start, first in the database and then beside it: whichever of the two a crash loses,
/// the database is never the older one.
pub(super) fn count_start(db: &Db) -> Result<()> {
    let seen = read_beside(db)?.map_or(0, |beside| beside.starts);
    let within = db.write(move |tx| {
        let id = match tx.value(Table::Meta, ID_KEY)? {
            Some(id) => String::from_utf8_lossy(&id).into_owned(),
            None => {
                let id = fresh_id()?;
                tx.put(Table::Meta, ID_KEY.to_vec(), id.clone().into_bytes());
                id
            }
        };
        let starts = rows::number(tx, &[STARTS])?.max(seen) + 1;
        rows::raise_number(tx, &[STARTS], starts)?;
        tx.effects.silent = true;
        Ok(Identity { id, starts })
    })?;
    write_beside(db, &within)
}

fn read_within(db: &Db) -> Result<Identity> {
    let view = db.read()?;
    let id = view.value(Table::Meta, ID_KEY)?.unwrap_or_default();
    Ok(Identity {
        id: String::from_utf8_lossy(&id).into_owned(),
        starts: rows::number(&view, &[STARTS])?,
    })
}

/// What stands beside the database; nothing in roots of before it did, or when it is unreadable.
fn read_beside(db: &Db) -> Result<Option<Identity>> {
    let path = db.inner().engine.path.with_file_name(FILE);
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(rustix::fs::OFlags::NOFOLLOW.bits().cast_signed())
        .open(&path);
    let mut text = String::new();
    match file.and_then(|file| file.take(FILE_BYTES_MAX).read_to_string(&mut text)) {
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(io("reading", &path, source)),
    }
    let parsed = text.trim().split_once(' ').and_then(|(id, starts)| {
        Some(Identity { id: id.to_owned(), starts: starts.parse().ok()? })
    });
    if parsed.is_none() {
        tracing::warn!(path = %path.display(), "identity of the database is unreadable, renewed");
    }
    Ok(parsed)
}

fn write_beside(db: &Db, identity: &Identity) -> Result<()> {
    let path = db.inner().engine.path.with_file_name(FILE);
    let draft = path.with_extension("new");
    let Identity { id, starts } = identity;
    let write = || -> std::io::Result<()> {
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&draft)?;
        writeln!(file, "{id} {starts}")?;
        file.sync_all()?;
        fs::rename(&draft, &path)?;
        File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
    };
    write().map_err(|source| io("writing", &path, source))
}

/// Sixteen random bytes in hexadecimal.
fn fresh_id() -> Result<String> {
    let mut bytes = [0_u8; 16];
    let random = Path::new("/dev/urandom");
    File::open(random)
        .and_then(|mut file| file.read_exact(&mut bytes))
        .map_err(|source| io("reading", random, source))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

fn io(op: &'static str, path: &Path, source: std::io::Error) -> Error {
    Error::Io { op, path: path.to_owned(), source }
}

const FILE: &str = "identity";

/// Far more than an identity and a number need.
const FILE_BYTES_MAX: u64 = 256;

/// Where the identity stands in [`Table::Meta`].
const ID_KEY: &[u8] = b"identity";

/// The sequence that counts starts.
const STARTS: &str = "starts";
