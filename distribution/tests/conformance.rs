//! The promises, kept by both implementors.

use crated_distribution::testsuite::MemoryRegistry;
use crated_distribution::{Hosts, LayoutResolver, Reference, RegistryOptions, RegistryResolver};
use tempfile::TempDir;

mod registry {
    use super::*;

    async fn empty() -> (RegistryResolver, Reference, MemoryRegistry) {
        let registry = MemoryRegistry::start().await.unwrap();
        let options = RegistryOptions::new().with_hosts(Hosts::plain_http());
        let reference = registry.reference("team/app:v1");
        (RegistryResolver::new(options).unwrap(), reference, registry)
    }

    crated_distribution::resolver_testsuite!(empty);
}

mod layout {
    use super::*;

    async fn empty() -> (LayoutResolver, Reference, TempDir) {
        let dir = TempDir::new().unwrap();
        let resolver = LayoutResolver::open(dir.path()).await.unwrap();
        (resolver, "registry.example/team/app:v1".parse().unwrap(), dir)
    }

    crated_distribution::resolver_testsuite!(empty);
}
