//! The memory store keeps every promise of a store.

use crated_content::MemoryStore;

crated_content::store_testsuite!(|| (MemoryStore::new(), ()));
