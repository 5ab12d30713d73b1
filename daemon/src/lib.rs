//! A container daemon that speaks containerd's API.
//!
//! The daemon wires independent primitives together, keeps their metadata and serves them to
//! clients over gRPC. [`wiring`] is the only place that names implementors, [`services`] only
//! translate, [`metadata`] gives every namespace its own view, [`pipeline`] composes primitives
//! into what users ask for, and [`blocking`] is the one bridge between async and blocking code.
//!
//! ```no_run
//! use crated::config::Config;
//!
//! # #[tokio::main(flavor = "multi_thread")] async fn main() -> crated::error::Result<()> {
//! let running = crated::start(Config::default()).await?;
//! running.stop().await
//! # }
//! ```

#![forbid(unsafe_code)]

#[cfg(not(target_os = "linux"))]
compile_error!("crated runs containers of Linux, on Linux");

pub mod blocking;
pub mod config;
mod directory;
pub mod dump;
pub mod error;
pub mod events;
pub mod filters;
pub mod fsck;
pub mod lock;
pub mod metadata;
pub mod metrics;
pub mod mounts;
pub mod network;
pub mod pipeline;
pub mod plugins;
pub mod programs;
pub mod proxy;
pub mod publish;
pub mod recover;
pub mod restart;
pub mod services;
pub mod wiring;

use std::sync::Arc;

use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::config::Config;
use crate::error::{Error, Result};
use crate::metrics::calls::CallLayer;
use crate::metrics::server::Exporter;
use crate::recover::Recovery;
use crate::services::socket::{self, Socket};
use crate::services::{server, ttrpc};
use crate::wiring::Daemon;

/// A daemon that serves.
pub struct Running {
    daemon: Arc<Daemon>,
    serving: watch::Sender<bool>,
    grpc: JoinHandle<Result<(), tonic::transport::Error>>,
    ttrpc: JoinHandle<crated_exec::Result<()>>,
    metrics: Option<(JoinHandle<()>, String)>,
    // Taken away from their addresses when the daemon has stopped.
    grpc_socket: Socket,
    ttrpc_socket: Socket,
}

/// Opens the directories of `config` and serves on its sockets. Clients that connect once this
/// has returned are answered.
///
/// # Errors
///
/// [`Error::RootBusy`] and [`Error::SocketBusy`] when another daemon is there, others when a part
/// does not come up. Nothing is served then, and nothing stays locked.
pub async fn start(config: Config) -> Result<Running> {
    let opened = tokio::task::spawn_blocking(move || Daemon::open(config)).await;
    let daemon = opened.map_err(|error| Error::Io {
        object: "daemon".to_owned(),
        step: "open",
        source: std::io::Error::other(error),
    })??;
    let config = &daemon.config;
    // Shims that outlived the last daemon deliver first, then clients may ask about containers.
    let (ttrpc_listener, ttrpc_socket) =
        socket::listen(&config.ttrpc_address(), config.ttrpc.uid, config.ttrpc.gid)?;
    let (listener, grpc_socket) =
        socket::listen(&config.grpc.address, config.grpc.uid, config.grpc.gid)?;
    let exporter = match config.metrics.address.as_str() {
        "" => None,
        address => Some(Exporter::listen(address, config.grpc.uid, config.grpc.gid).await?),
    };

    let (serving, health) = watch::channel(true);
    let recovery = Recovery::start(&daemon);
    restart::start(&daemon, recovery.clone());
    let routes = server::routes(&daemon, recovery, health);
    let stop = stopped(&daemon);
    let grpc =
        tokio::spawn(server::serve(routes, listener, CallLayer(daemon.metrics.clone()), stop));
    let stop = stopped(&daemon);
    let events = ttrpc::server(Arc::clone(&daemon));
    let ttrpc = tokio::spawn(async move { events.serve(ttrpc_listener, stop).await });
    let metrics = exporter.map(|exporter| {
        let (address, stop) = (exporter.address(), stopped(&daemon));
        (tokio::spawn(exporter.serve(Arc::clone(&daemon), stop)), address)
    });
    tracing::info!(address = %grpc_socket.path().display(), "serving");
    Ok(Running { daemon, serving, grpc, ttrpc, metrics, grpc_socket, ttrpc_socket })
}

impl Running {
    /// What is served.
    pub fn daemon(&self) -> &Arc<Daemon> {
        &self.daemon
    }

    /// Where metrics are served, when they are.
    pub fn metrics_address(&self) -> Option<&str> {
        self.metrics.as_ref().map(|(_, address)| address.as_str())
    }

    /// Resolves when serving ends though nobody asked for it.
    ///
    /// # Errors
    ///
    /// Always: [`Error::Serve`] says on which socket and why.
    pub async fn failed(&mut self) -> Error {
        tokio::select! {
            ended = &mut self.grpc => unasked(&self.grpc_socket, ended.map_err(Into::into)
                .and_then(|result| result.map_err(Into::into))),
            ended = &mut self.ttrpc => unasked(&self.ttrpc_socket, ended.map_err(Into::into)
                .and_then(|result| result.map_err(Into::into))),
        }
    }

    /// Takes no more calls, lets open ones end for as long as the configuration says, and closes
    /// everything. Containers go on running.
    ///
    /// # Errors
    ///
    /// [`Error::Serve`] when a server failed on its way out.
    pub async fn stop(self) -> Result<()> {
        let Self { daemon, serving, mut grpc, mut ttrpc, metrics, grpc_socket, ttrpc_socket } =
            self;
        serving.send_replace(false);
        daemon.stop();
        let deadline = daemon.config.crated.drain_timeout.0;
        let drained = tokio::time::timeout(deadline, async {
            ended(&mut grpc).await;
            ended(&mut ttrpc).await;
        });
        if drained.await.is_err() {
            tracing::warn!(?deadline, "open calls were cut off");
            grpc.abort();
            ttrpc.abort();
            ended(&mut grpc).await;
            ended(&mut ttrpc).await;
        }
        if let Some((mut exporter, _)) = metrics {
            ended(&mut exporter).await;
        }
        drop((grpc_socket, ttrpc_socket));
        Ok(())
    }
}

/// Waits for a server to end. One that has ended may have been asked for its outcome already, and
/// must not be asked twice.
async fn ended<T>(server: &mut JoinHandle<T>) {
    if !server.is_finished() {
        // Why it ended matters to nobody who asked it to.
        let _ = server.await;
    }
}

fn unasked(socket: &Socket, ended: Result<(), Box<dyn std::error::Error + Send + Sync>>) -> Error {
    let source = ended.err().unwrap_or_else(|| "ended by itself".into());
    Error::Serve { path: socket.path().to_path_buf(), source }
}

/// Resolves when the daemon begins to stop.
async fn stopped_by(mut stopping: watch::Receiver<bool>) {
    // An error means that the daemon is gone, which is stopping too.
    let _ = stopping.wait_for(|stopping| *stopping).await;
}

fn stopped(daemon: &Daemon) -> impl Future<Output = ()> + Send + 'static {
    stopped_by(daemon.stopping())
}
