//! Transfers: the daemon does the work; this program lends it streams and shows its progress.

use std::collections::BTreeMap;
use std::io::Read as _;

use crated_api::services::streaming::v1::StreamInit;
use crated_api::services::streaming::v1::streaming_client::StreamingClient;
use crated_api::services::transfer::v1::transfer_client::TransferClient;
use crated_api::services::transfer::v1::{TransferOptions, TransferRequest};
use crated_api::types::Platform;
use crated_api::types::transfer::{
    AuthRequest, AuthResponse, AuthType, Data, OciRegistry, Progress, RegistryResolver,
    UnpackConfiguration, WindowUpdate,
};
use crated_api::{Any, any};
use tokio::sync::mpsc;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::UnboundedReceiverStream;

use crate::beside::{Sink, Source};
use crate::connect::{Daemon, client};
use crate::documents::host_platform;
use crate::error::{Error, Result};
use crate::output;

/// How to reach a registry.
#[derive(Debug, clap::Args)]
pub(crate) struct RegistryArguments {
    /// Talk HTTP to the registry.
    #[arg(long)]
    plain_http: bool,
    /// Accept any certificate of the registry.
    #[arg(short = 'k', long)]
    skip_verify: bool,
    /// A directory of host configurations, read by the daemon.
    #[arg(long)]
    hosts_dir: Option<String>,
    /// Registry account, as `USER[:PASSWORD]`.
    #[arg(short, long)]
    user: Option<String>,
    /// A refresh token for the registry's token server.
    #[arg(long)]
    refresh: Option<String>,
    /// A file with the certificate authority of the registry.
    #[arg(long)]
    tlscacert: Option<String>,
    /// A file with the certificate of this client.
    #[arg(long)]
    tlscert: Option<String>,
    /// A file with its key.
    #[arg(long)]
    tlskey: Option<String>,
}

/// Which platforms of an image.
#[derive(Debug, clap::Args)]
pub(crate) struct PlatformArguments {
    /// Platforms, such as linux/arm64; the host's otherwise.
    #[arg(long)]
    pub(crate) platform: Vec<String>,
    /// All platforms.
    #[arg(long)]
    pub(crate) all_platforms: bool,
}

impl PlatformArguments {
    /// The platforms wanted; none for all.
    pub(crate) fn wanted(&self) -> Result<Vec<Platform>> {
        self.names().iter().map(|text| parse_platform(text)).collect()
    }

    /// The platforms wanted, as they were written; none for all.
    pub(crate) fn names(&self) -> Vec<String> {
        match (self.all_platforms, self.platform.is_empty()) {
            (true, _) => Vec::new(),
            (false, true) => vec![host_platform()],
            (false, false) => self.platform.clone(),
        }
    }

    /// Where images are unpacked, for the first platform wanted.
    pub(crate) fn unpack_into(&self, snapshotter: &str) -> Result<UnpackConfiguration> {
        let first = self.wanted()?.into_iter().next();
        let platform = first.map_or_else(|| parse_platform(&host_platform()), Ok)?;
        Ok(UnpackConfiguration { platform: Some(platform), snapshotter: snapshotter.to_owned() })
    }
}

/// A registry as the daemon is told of it, and what has to outlive the call.
pub(crate) struct Registry {
    pub(crate) message: OciRegistry,
    _hosts: Option<HostsDir>,
}

impl RegistryArguments {
    /// The registry of `reference`, with a stream on which the daemon may ask for credentials.
    pub(crate) async fn registry(&self, daemon: &Daemon, reference: &str) -> Result<Registry> {
        let mut auth_stream = String::new();
        if let Some(answer) = self.credentials() {
            auth_stream = stream_id("auth")?;
            tokio::spawn(authenticate(open(daemon, &auth_stream).await?, answer));
        }
        let hosts = self.hosts(reference)?;
        let host_dir = match (&hosts, &self.hosts_dir) {
            (Some(hosts), _) => hosts.path.clone(),
            (None, Some(given)) => given.clone(),
            (None, None) => String::new(),
        };
        let resolver = RegistryResolver {
            auth_stream,
            host_dir,
            default_scheme: if self.plain_http { "http" } else { "" }.to_owned(),
            ..RegistryResolver::default()
        };
        let reference = reference.to_owned();
        let message = OciRegistry { reference, resolver: Some(resolver) };
        Ok(Registry { message, _hosts: hosts })
    }

    fn credentials(&self) -> Option<AuthResponse> {
        let answer = |auth_type: AuthType, username: &str, secret: &str| AuthResponse {
            auth_type: auth_type.into(),
            username: username.to_owned(),
            secret: secret.to_owned(),
            expire_at: None,
        };
        if let Some(token) = &self.refresh {
            return Some(answer(AuthType::Refresh, "", token));
        }
        let (name, secret) = match self.user.as_deref()?.split_once(':') {
            Some((name, secret)) => (name, secret),
            None => (self.user.as_deref()?, ""),
        };
        Some(answer(AuthType::Credentials, name, secret))
    }

    /// A directory of host configurations for what this command line alone says of the host.
    fn hosts(&self, reference: &str) -> Result<Option<HostsDir>> {
        let tls = [&self.tlscacert, &self.tlscert, &self.tlskey];
        if !self.skip_verify && tls.iter().all(|file| file.is_none()) {
            return Ok(None);
        }
        if self.hosts_dir.is_some() {
            let reason = "--hosts-dir says everything about a host, so no other option may";
            return Err(Error::Refused(reason.to_owned()));
        }
        let host = reference.split('/').next().unwrap_or_default();
        let scheme = if self.plain_http { "http" } else { "https" };
        let mut text = format!(
            "[host.{:?}]\nskip_verify = {}\n",
            format!("{scheme}://{host}"),
            self.skip_verify
        );
        if let Some(file) = &self.tlscacert {
            text.push_str(&format!("ca = {:?}\n", absolute(file)?));
        }
        if let (Some(certificate), Some(key)) = (&self.tlscert, &self.tlskey) {
            let pair = (absolute(certificate)?, absolute(key)?);
            text.push_str(&format!("client = [[{:?}, {:?}]]\n", pair.0, pair.1));
        }
        HostsDir::new(host, &text).map(Some)
    }
}

/// A temporary directory that the daemon reads.
struct HostsDir {
    path: String,
    host: String,
}

impl HostsDir {
    fn new(host: &str, text: &str) -> Result<Self> {
        let root = std::env::temp_dir().join(stream_id("hosts")?);
        let this = Self { path: root.display().to_string(), host: host.to_owned() };
        let dir = root.join(host);
        std::fs::create_dir_all(&dir).map_err(Error::io("create", dir.display()))?;
        let file = dir.join("hosts.toml");
        std::fs::write(&file, text).map_err(Error::io("write", file.display()))?;
        Ok(this)
    }
}

impl Drop for HostsDir {
    fn drop(&mut self) {
        let dir = std::path::Path::new(&self.path).join(&self.host);
        // What is left of it harms nobody.
        let _ = std::fs::remove_file(dir.join("hosts.toml"));
        let _ = std::fs::remove_dir(&dir);
        let _ = std::fs::remove_dir(&self.path);
    }
}

fn absolute(file: &str) -> Result<String> {
    let path = std::path::absolute(file).map_err(Error::io("find", file))?;
    Ok(path.display().to_string())
}

/// Runs one transfer, showing its progress. Answers the names that were saved.
pub(crate) async fn run(
    daemon: &Daemon,
    source: Any,
    destination: Any,
    verbose: bool,
) -> Result<Vec<String>> {
    let id = stream_id("progress")?;
    let shown = tokio::spawn(show(open(daemon, &id).await?, verbose));
    let request = TransferRequest {
        source: Some(source),
        destination: Some(destination),
        options: Some(TransferOptions { progress_stream: id }),
    };
    client!(daemon, TransferClient).transfer(request).await?;
    // The daemon ends the stream after the last event.
    Ok(shown.await.unwrap_or_default())
}

pub(crate) fn parse_platform(text: &str) -> Result<Platform> {
    let mut parts = text.split('/').map(str::to_owned);
    match (parts.next(), parts.next(), parts.next(), parts.next()) {
        (Some(os), Some(architecture), variant, None) if !os.is_empty() => Ok(Platform {
            os,
            architecture,
            variant: variant.unwrap_or_default(),
            ..Platform::default()
        }),
        _ => Err(Error::Refused(format!("platform {text:?} is not OS/ARCHITECTURE[/VARIANT]"))),
    }
}

/// Two directions of one stream that the daemon knows by name.
pub(crate) struct Stream {
    send: mpsc::UnboundedSender<Any>,
    receive: tonic::Streaming<Any>,
}

/// Opens a stream that the daemon then knows as `id`.
pub(crate) async fn open(daemon: &Daemon, id: &str) -> Result<Stream> {
    let (send, outgoing) = mpsc::unbounded_channel();
    // Sending cannot fail while the receiving half is held.
    let _ = send.send(any::pack(&StreamInit { id: id.to_owned() }));
    let outgoing = UnboundedReceiverStream::new(outgoing);
    let mut receive = client!(daemon, StreamingClient).stream(outgoing).await?.into_inner();
    // The first answer says that the stream can be named in other calls.
    receive.message().await?;
    Ok(Stream { send, receive })
}

pub(crate) fn stream_id(purpose: &str) -> Result<String> {
    let mut seed = [0_u8; 8];
    std::fs::File::open("/dev/urandom")
        .and_then(|mut random| random.read_exact(&mut seed))
        .map_err(Error::io("read", "/dev/urandom"))?;
    Ok(format!("ctr-{purpose}-{:016x}", u64::from_ne_bytes(seed)))
}

/// Bytes in one message.
const MESSAGE_BYTES_MAX: usize = 32 << 10;

/// Bytes read at once.
const READ_BYTES: usize = 256 << 10;

/// Sends a file, no faster than the daemon grants. Ends early when the daemon wants no more.
///
/// Returns the other direction, to be held until the transfer is over: whoever hangs up before
/// takes back what is still on its way.
pub(crate) async fn send(mut stream: Stream, mut from: Source) -> Result<tonic::Streaming<Any>> {
    let mut window = 0_usize;
    loop {
        while window == 0 {
            let Some(Ok(packed)) = stream.receive.next().await else { return Ok(stream.receive) };
            if let Ok(grant) = any::unpack::<WindowUpdate>(&packed) {
                window += usize::try_from(grant.update).unwrap_or(0);
            }
        }
        let part = from.read(READ_BYTES.min(window)).await?;
        if part.is_empty() {
            return Ok(stream.receive);
        }
        window -= part.len();
        for message in part.chunks(MESSAGE_BYTES_MAX) {
            let data = Data { data: message.to_vec().into() };
            if stream.send.send(any::pack(&data)).is_err() {
                return Ok(stream.receive);
            }
        }
    }
}

/// What the daemon may have on its way to this program.
const WINDOW_BYTES: i32 = 1 << 20;

/// Receives into a file until the daemon ends the stream.
pub(crate) async fn receive(mut stream: Stream, mut into: Sink) -> Result<()> {
    let mut granted = 0;
    loop {
        if granted < WINDOW_BYTES / 2 {
            let update = WindowUpdate { update: WINDOW_BYTES - granted };
            // A daemon that has sent everything listens no more; what it sent is still to come.
            let _ = stream.send.send(any::pack(&update));
            granted = WINDOW_BYTES;
        }
        let Some(packed) = stream.receive.next().await else { break };
        let Ok(data) = any::unpack::<Data>(&packed?) else { continue };
        granted -= i32::try_from(data.data.len()).unwrap_or(i32::MAX).min(granted);
        into.write(data.data.to_vec()).await?;
    }
    into.flush().await
}

/// Prints what happens to each object: once when it starts and once when it is there.
async fn show(mut stream: Stream, verbose: bool) -> Vec<String> {
    let mut last = BTreeMap::new();
    let mut saved = Vec::new();
    while let Some(Ok(packed)) = stream.receive.next().await {
        let Ok(progress) = any::unpack::<Progress>(&packed) else {
            continue;
        };
        if progress.event == "saved" {
            saved.push(progress.name.clone());
        }
        if !verbose {
            continue;
        }
        if progress.name.is_empty() {
            output::line(&progress.event);
            continue;
        }
        if last.insert(progress.name.clone(), progress.event.clone()).as_ref()
            == Some(&progress.event)
        {
            continue;
        }
        let size = u64::try_from(progress.total).unwrap_or_default();
        let size = if size > 0 { output::size_binary(size) } else { String::new() };
        output::line(format!("{:<80} {:<15} {size}", progress.name, progress.event).trim_end());
    }
    saved
}

/// Answers each of the daemon's questions for credentials with the same pair.
async fn authenticate(mut stream: Stream, credentials: AuthResponse) {
    while let Some(Ok(packed)) = stream.receive.next().await {
        let asked = any::is::<AuthRequest>(&packed);
        if asked && stream.send.send(any::pack(&credentials)).is_err() {
            return;
        }
    }
}
