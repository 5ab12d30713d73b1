//! Namespaces: labels of a name under which everything else is kept.

use crated_content::LabelUpdate;

use super::{Db, Labels, Namespace, Result};

/// One namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamespaceRecord {
    /// Its name.
    pub name: Namespace,
    /// Its labels; none has an empty value.
    pub labels: Labels,
}

/// The namespace records.
#[derive(Clone)]
pub struct Namespaces {
    db: Db,
}
