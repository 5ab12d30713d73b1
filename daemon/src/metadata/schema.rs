//! The tables of the database.

use redb::TableDefinition;

/// One table: keys of [`super::key`], values of [`super::record`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Table {
    /// Facts about the database itself.
    Meta,
    /// namespace
    Namespaces,
    /// namespace, image name
    Images,
    /// namespace, container id
    Containers,
    /// namespace, sandbox id
    Sandboxes,
    /// namespace, digest
    Blobs,
    /// namespace, client reference
    Ingests,
    /// namespace, snapshotter, key
    Snapshots,
    /// namespace, snapshotter, parent key, key; no value
    Children,
    /// snapshotter, backend key, namespace, key; no value
    Backends,
    /// namespace, lease id
    Leases,
    /// namespace, lease id, resource kind, resource id; no value
    Resources,
    /// namespace, network namespace id
    Netns,
    /// namespace, network namespace id or `host`, link id
    Links,
    /// what is counted, namespace, and for snapshots the snapshotter
    Sequences,
}

impl Table {
    pub(super) const ALL: [Self; 15] = [
        Self::Meta,
        Self::Namespaces,
        Self::Images,
        Self::Containers,
        Self::Sandboxes,
        Self::Blobs,
        Self::Ingests,
        Self::Snapshots,
        Self::Children,
        Self::Backends,
        Self::Leases,
        Self::Resources,
        Self::Netns,
        Self::Links,
        Self::Sequences,
    ];

    pub(super) fn definition(self) -> TableDefinition<'static, &'static [u8], &'static [u8]> {
        TableDefinition::new(match self {
            Self::Meta => "meta",
            Self::Namespaces => "namespaces",
            Self::Images => "images",
            Self::Containers => "containers",
            Self::Sandboxes => "sandboxes",
            Self::Blobs => "blobs",
            Self::Ingests => "ingests",
            Self::Snapshots => "snapshots",
            Self::Children => "children",
            Self::Backends => "backends",
            Self::Leases => "leases",
            Self::Resources => "resources",
            Self::Netns => "netns",
            Self::Links => "links",
            Self::Sequences => "sequences",
        })
    }

    /// The place in [`Table::ALL`].
    pub(super) fn index(self) -> usize {
        self as usize
    }
}

/// The layout this build writes. A higher one is refused, a lower one migrated.
pub(super) const VERSION: u32 = 1;

/// Where the layout version stands in [`Table::Meta`]: four bytes, little-endian.
pub(super) const VERSION_KEY: &[u8] = b"version";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_table_stands_at_its_index_under_its_own_name() {
        use redb::TableHandle;
        let mut names = std::collections::BTreeSet::new();
        for (index, table) in Table::ALL.into_iter().enumerate() {
            assert_eq!(table.index(), index);
            assert!(names.insert(table.definition().name().to_owned()));
        }
    }
}
