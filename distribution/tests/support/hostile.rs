//! A server that answers whatever a test tells it to, byte for byte.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crated_distribution::{Hosts, Limits, Reference, RegistryOptions, Timeouts};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// A request as it arrived.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) method: String,
    /// Path and query.
    pub(crate) path: String,
    /// Names in lower case.
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) body: Vec<u8>,
    /// How many came before it.
    pub(crate) number: usize,
}

impl Seen {
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map(String::as_str).unwrap_or_default()
    }

    /// The first byte a range asks for.
    pub(crate) fn offset(&self) -> usize {
        self.range(usize::MAX).map_or(0, |part| part.start)
    }

    /// The part of `whole` bytes that is asked for, if it is one.
    pub(crate) fn range(&self, whole: usize) -> Option<std::ops::Range<usize>> {
        let (first, last) = self.header("range").strip_prefix("bytes=")?.split_once('-')?;
        let end = if last.is_empty() { whole } else { last.parse::<usize>().ok()? + 1 };
        Some(first.parse().ok()?..end)
    }
}

/// What the server does with a request: writes, waits, and hangs up at the end.
#[derive(Debug, Clone, Default)]
pub(crate) struct Reply {
    steps: Vec<Step>,
}

#[derive(Debug, Clone)]
enum Step {
    Write(Vec<u8>),
    Wait(Duration),
}

impl Reply {
    /// A whole answer with an honest length.
    pub(crate) fn new(status: u16, headers: &[(&str, &str)], body: impl AsRef<[u8]>) -> Self {
        let length = body.as_ref().len().to_string();
        let mut all = headers.to_vec();
        all.push(("content-length", &length));
        Self::head(status, &all).then(body)
    }

    /// A status and headers alone.
    pub(crate) fn head(status: u16, headers: &[(&str, &str)]) -> Self {
        let mut head = format!("HTTP/1.1 {status} x\r\nconnection: close\r\n");
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str("\r\n");
        Self::default().then(head)
    }

    pub(crate) fn status(status: u16) -> Self {
        Self::new(status, &[], "")
    }

    pub(crate) fn ok(body: impl AsRef<[u8]>) -> Self {
        Self::new(200, &[], body)
    }

    pub(crate) fn redirect(location: &str) -> Self {
        Self::new(307, &[("location", location)], "")
    }

    pub(crate) fn unauthorized(challenge: &str) -> Self {
        Self::new(401, &[("www-authenticate", challenge)], "")
    }

    pub(crate) fn then(mut self, bytes: impl AsRef<[u8]>) -> Self {
        self.steps.push(Step::Write(bytes.as_ref().to_vec()));
        self
    }

    pub(crate) fn wait(mut self, time: Duration) -> Self {
        self.steps.push(Step::Wait(time));
        self
    }
}

pub(crate) struct Hostile {
    pub(crate) address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Hostile {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Hostile {
    pub(crate) async fn start(reply: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (shared, reply) = (seen.clone(), Arc::new(reply));
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (shared, reply) = (shared.clone(), reply.clone());
                connections.spawn(async move {
                    let _ = serve(stream, &shared, &*reply).await;
                });
            }
        });
        Self { address, seen, task }
    }

    pub(crate) fn requests(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    pub(crate) fn count(&self) -> usize {
        self.requests().len()
    }

    pub(crate) fn reference(&self) -> Reference {
        format!("{}/team/app:v1", self.address).parse().unwrap()
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Whether any request carried something that only its own server may see.
    pub(crate) fn got_secrets(&self) -> bool {
        self.requests().iter().any(|seen| {
            seen.headers.contains_key("authorization")
                || seen.headers.contains_key("cookie")
                || seen.headers.contains_key("x-own")
                || seen.path.contains("canary")
                || String::from_utf8_lossy(&seen.body).contains("canary")
        })
    }
}

async fn serve(
    mut stream: TcpStream,
    shared: &Mutex<Vec<Seen>>,
    reply: &(dyn Fn(&Seen) -> Reply + Send + Sync),
) -> std::io::Result<()> {
    let mut bytes = Vec::new();
    let head_end = loop {
        if let Some(at) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            break at;
        }
        if stream.read_buf(&mut bytes).await? == 0 {
            return Ok(());
        }
    };
    let head = String::from_utf8_lossy(&bytes[..head_end]).into_owned();
    let mut body = bytes.split_off(head_end + 4);
    let mut lines = head.lines();
    let mut first = lines.next().unwrap_or_default().split(' ');
    let headers: BTreeMap<String, String> = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
        .collect();
    let length: usize =
        headers.get("content-length").and_then(|text| text.parse().ok()).unwrap_or(0);
    while body.len() < length {
        if stream.read_buf(&mut body).await? == 0 {
            break;
        }
    }
    let seen = {
        let mut all = shared.lock().unwrap();
        let seen = Seen {
            method: first.next().unwrap_or_default().to_owned(),
            path: first.next().unwrap_or_default().to_owned(),
            headers,
            body,
            number: all.len(),
        };
        all.push(seen.clone());
        seen
    };
    for step in reply(&seen).steps {
        match step {
            Step::Write(bytes) => stream.write_all(&bytes).await?,
            Step::Wait(time) => tokio::time::sleep(time).await,
        }
    }
    stream.shutdown().await
}

/// Options for plain http, with a header of their own to look for elsewhere.
pub(crate) fn options() -> RegistryOptions {
    let mut options = RegistryOptions::new().with_hosts(Hosts::plain_http());
    options.timeouts = Timeouts::default();
    options.timeouts.retry_after_max = Duration::from_millis(100);
    options.limits = Limits::default();
    options.headers.push(("x-own".into(), "canary".into()));
    options
}
