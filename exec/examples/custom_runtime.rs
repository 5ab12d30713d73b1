//! A runtime of one's own: counts what another one does.
//!
//! Whoever takes a `dyn Runtime` takes this too. Prints the counts of a
//! container that cannot be created, so it needs nothing installed.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program talks to people")]

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

use async_trait::async_trait;
use crated_exec::{
    Bundle, CreateTask, Result, Runtime, Stdio, Task,
    reaper::Reaper,
    runc::{RuncConfig, RuncRuntime},
};

struct Counting<R> {
    inner: R,
    created: AtomicU32,
    failed: AtomicU32,
}

#[async_trait]
impl<R: Runtime> Runtime for Counting<R> {
    async fn create(&self, request: CreateTask) -> Result<Arc<dyn Task>> {
        let created = self.inner.create(request).await;
        let counter = if created.is_ok() { &self.created } else { &self.failed };
        counter.fetch_add(1, Ordering::Relaxed);
        created
    }

    async fn task(&self, id: &str) -> Result<Arc<dyn Task>> {
        self.inner.task(id).await
    }

    async fn tasks(&self) -> Vec<Arc<dyn Task>> {
        self.inner.tasks().await
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let config = RuncConfig {
        binary: "/no/such/runtime".into(),
        root: std::env::temp_dir().join("custom-runtime"),
        ..RuncConfig::default()
    };
    let inner = RuncRuntime::new(config, Reaper::new()?);
    let runtime = Counting { inner, created: AtomicU32::new(0), failed: AtomicU32::new(0) };
    let path = std::env::temp_dir().join(format!("custom-runtime-{}", std::process::id()));
    let bundle = Bundle::create(path, b"{}")?;
    let request = CreateTask {
        id: "example".into(),
        bundle: bundle.clone(),
        rootfs: Vec::new(),
        stdio: Stdio::default(),
        checkpoint: None,
    };
    if let Err(error) = runtime.create(request).await {
        println!("failed as it should: {error}");
    }
    bundle.remove()?;
    println!("created {:?}, failed {:?}", runtime.created, runtime.failed);
    Ok(())
}
