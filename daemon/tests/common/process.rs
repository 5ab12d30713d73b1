//! A daemon in a process of its own.
#![allow(dead_code, unreachable_pub, reason = "every test uses a part of it")]

use std::path::Path;
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use tonic::transport::Channel;

use crate::common::{self, until};

/// A daemon in a process of its own, killed when dropped.
pub struct Process {
    child: Child,
    pub channel: Channel,
}

impl Process {
    /// Starts a daemon on the `config.toml` below `directory` and waits until it listens.
    pub async fn start(directory: &Path) -> Self {
        let address = directory.join("c.sock");
        let _ = std::fs::remove_file(&address);
        let child = Command::new(env!("CARGO_BIN_EXE_crated"))
            .arg("--config")
            .arg(directory.join("config.toml"))
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        until("the daemon listens", async || {
            tokio::net::UnixStream::connect(&address).await.is_ok()
        })
        .await;
        Self { child, channel: common::connect(address).await }
    }

    /// Ends the daemon.
    pub fn end(&mut self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).unwrap()).unwrap();
        kill_process(pid, signal).unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
