//! One configuration out of several files: each is checked on its own, so that an error names its
//! line, then laid over the one that imports it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::{fs, io};

use serde::Deserialize;
use toml::{Table, Value};

use super::Config;
use crate::error::{Error, Result};

/// Files that one configuration may be made of: more is a loop or a mistake.
const FILES_MAX: usize = 64;

/// Size of one file in bytes: more is not a configuration.
const FILE_BYTES_MAX: u64 = 4 << 20;

/// Reads `path` and everything it imports.
pub(super) fn load(path: &Path) -> Result<Config> {
    let mut seen = BTreeSet::new();
    let table = layer(path, &mut seen)?;
    Config::deserialize(table).map_err(|error| refuse(path, None, error.message().to_owned()))
}

/// Reads one text.
pub(super) fn parse(text: &str, path: &Path) -> Result<Config> {
    toml::from_str(text).map_err(|error| {
        let line = error.span().map(|span| line_of(text, span.start));
        refuse(path, line, error.message().replace('\n', "; "))
    })
}

fn layer(path: &Path, seen: &mut BTreeSet<PathBuf>) -> Result<Table> {
    if !seen.insert(path.to_path_buf()) || seen.len() > FILES_MAX {
        let reason = format!("imports form a loop or more than {FILES_MAX} files");
        return Err(refuse(path, None, reason));
    }
    let text = read(path)?;
    let config = parse(&text, path)?;
    let mut table: Table =
        text.parse().map_err(|error: toml::de::Error| refuse(path, None, error.to_string()))?;
    for pattern in &config.imports {
        for file in matches(path, pattern)? {
            merge(&mut table, layer(&file, seen)?);
        }
    }
    Ok(table)
}

fn read(path: &Path) -> Result<String> {
    let object = || format!("configuration {}", path.display());
    let fail = |source| Error::Io { object: object(), step: "read", source };
    let size_bytes = fs::metadata(path).map_err(fail)?.len();
    if size_bytes > FILE_BYTES_MAX {
        return Err(fail(io::Error::other(format!("larger than {FILE_BYTES_MAX} bytes"))));
    }
    fs::read_to_string(path).map_err(fail)
}

/// The later layer wins; tables are merged, lists are joined.
fn merge(base: &mut Table, over: Table) {
    for (key, value) in over {
        match (base.get_mut(&key), value) {
            (Some(Value::Table(below)), Value::Table(above)) => merge(below, above),
            (Some(Value::Array(below)), Value::Array(above)) => below.extend(above),
            (_, value) => {
                base.insert(key, value);
            }
        }
    }
}

/// The files that `pattern` names, sorted. Only the last component may hold a `*`; a name without
/// one must exist.
fn matches(importer: &Path, pattern: &str) -> Result<Vec<PathBuf>> {
    let pattern = importer.parent().unwrap_or(Path::new("/")).join(pattern);
    let name = pattern.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let Some((front, back)) = name.split_once('*') else { return Ok(vec![pattern]) };
    let directory = pattern.parent().unwrap_or(Path::new("/"));
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Error::io("list", directory, error)),
    };
    let mut files = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|error| Error::io("list", directory, error))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let fits = name.len() >= front.len() + back.len()
            && name.starts_with(front)
            && name.ends_with(back);
        if fits {
            files.push(entry.path());
        }
    }
    files.sort();
    Ok(files)
}

fn line_of(text: &str, offset: usize) -> usize {
    1 + text.as_bytes().iter().take(offset).filter(|byte| **byte == b'\n').count()
}

fn refuse(path: &Path, line: Option<usize>, reason: String) -> Error {
    Error::Config { path: path.to_path_buf(), line, reason }
}
