//! A way to a server that lets as much through as a test says.
#![allow(dead_code, unreachable_pub, reason = "every test uses a part of it")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Passes connections on to another address. What comes back stops at a limit.
pub struct Gate {
    pub address: SocketAddr,
    passed: Arc<AtomicU64>,
    limit: watch::Sender<u64>,
    task: JoinHandle<()>,
}

impl Gate {
    /// A gate before `server` that is open.
    pub async fn before(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (limit, limits) = watch::channel(u64::MAX);
        let passed = Arc::<AtomicU64>::default();
        let counted = passed.clone();
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                let (counted, limits) = (counted.clone(), limits.clone());
                connections.spawn(async move {
                    // Either side may hang up.
                    if let Ok(server) = TcpStream::connect(server).await {
                        let _ = join(client, server, &counted, limits).await;
                    }
                });
            }
        });
        Self { address, passed, limit, task }
    }

    /// Bytes that came back so far.
    pub fn passed(&self) -> u64 {
        self.passed.load(Ordering::SeqCst)
    }

    /// Lets so many more bytes through, and then none.
    pub fn allow(&self, bytes: u64) {
        self.limit.send_replace(self.passed().saturating_add(bytes));
    }

    /// Lets everything through.
    pub fn open(&self) {
        self.limit.send_replace(u64::MAX);
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn join(
    client: TcpStream,
    server: TcpStream,
    passed: &AtomicU64,
    mut limits: watch::Receiver<u64>,
) -> std::io::Result<()> {
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let forth = async move {
        tokio::io::copy(&mut from_client, &mut to_server).await?;
        to_server.shutdown().await
    };
    let back = async move {
        let mut buffer = vec![0; 64 << 10];
        loop {
            let length = from_server.read(&mut buffer).await?;
            if length == 0 {
                return to_client.shutdown().await;
            }
            let mut rest = &buffer[..length];
            while !rest.is_empty() {
                let limit = *limits.borrow_and_update();
                let room = limit.saturating_sub(passed.load(Ordering::SeqCst));
                let now = rest.len().min(usize::try_from(room).unwrap_or(usize::MAX));
                if now == 0 {
                    if limits.changed().await.is_err() {
                        return Ok(());
                    }
                    continue;
                }
                passed.fetch_add(now as u64, Ordering::SeqCst);
                to_client.write_all(&rest[..now]).await?;
                rest = &rest[now..];
            }
        }
    };
    tokio::try_join!(forth, back).map(drop)
}
