//! `crated fsck`: whether records, content and snapshots agree, and putting right what can be
//! proved.
//!
//! Without `repair` nothing is changed: a database that is missing or cannot be read is compared
//! as an empty one. With it, such a database is set aside as `meta.redb.damaged-<number>`, a new
//! one takes its place, and the records that content, snapshots and network namespaces prove are
//! written into it. What proves what is said in [`metadata::fsck`].

use std::fmt;

use crate::config::Config;
use crate::error::{Error, Result};
use crate::lock::RootLock;
use crate::metadata::fsck::{Finding, Plan};
use crate::metadata::{self, Db};
use crate::wiring;

/// What a check found.
#[derive(Debug)]
pub struct Findings {
    /// Why the database was taken for lost, if it was.
    pub lost: Option<String>,
    /// What is not as it should be.
    pub findings: Vec<Finding>,
    /// Whether what is provable was put right.
    pub repaired: bool,
}

impl Findings {
    /// Whether everything is as it should be now.
    pub fn is_sound(&self) -> bool {
        let left = |finding: &Finding| !(self.repaired && finding.provable);
        (self.lost.is_none() || self.repaired) && !self.findings.iter().any(left)
    }
}

impl fmt::Display for Findings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(reason) = &self.lost {
            let done = if self.repaired { "records rebuilt" } else { "records are to be rebuilt" };
            writeln!(f, "- database: {reason}; {done}")?;
        }
        for finding in &self.findings {
            match (finding.provable, self.repaired) {
                (true, true) => writeln!(f, "{finding}; record recreated")?,
                (true, false) => writeln!(f, "{finding}; --repair recreates it")?,
                (false, _) => writeln!(f, "{finding}")?,
            }
        }
        if self.findings.is_empty() && self.lost.is_none() {
            writeln!(f, "records, content and snapshots agree")?;
        }
        Ok(())
    }
}

/// Compares what is below the root of `config`, and with `repair` puts right what is provable.
///
/// # Errors
///
/// [`Error::RootBusy`] while a daemon runs; those of opening the stores; [`Error::Metadata`] for a
/// database that a newer release wrote, which is left alone.
pub fn run(config: &Config, repair: bool) -> Result<Findings> {
    if !config.root.is_dir() {
        let missing = std::io::ErrorKind::NotFound.into();
        return Err(Error::io("open", &config.root, missing));
    }
    let _lock = RootLock::take(&config.root)?;
    let failed = |error: metadata::Error| Error::Metadata {
        path: config.root.clone(),
        source: error.into(),
    };
    let store = wiring::content_store(config)?;
    let snapshotters = wiring::used_snapshotters(config);
    let (db, lost) = Db::open_for_check(&config.root, repair).map_err(failed)?;
    let mut plan = Plan::make(&db, &*store, &snapshotters, lost.is_some()).map_err(failed)?;
    match crate::network::proved(config) {
        Ok(alive) => plan.add_networks(&db, alive).map_err(failed)?,
        // The next start of a daemon looks again.
        Err(error) => tracing::warn!(%error, "network namespaces were not looked for"),
    }
    if repair {
        plan.apply(&db).map_err(failed)?;
        db.count_start().map_err(failed)?;
    }
    Ok(Findings { lost, findings: plan.findings().to_vec(), repaired: repair })
}
