//! `ctr images pull`: the daemon does the work; this program shows its progress.

use std::collections::BTreeMap;

use crated_api::services::streaming::v1::StreamInit;
use crated_api::services::streaming::v1::streaming_client::StreamingClient;
use crated_api::services::transfer::v1::transfer_client::TransferClient;
use crated_api::services::transfer::v1::{TransferOptions, TransferRequest};
use crated_api::types::Platform;
use crated_api::types::transfer::{
    AuthRequest, AuthResponse, AuthType, ImageStore, OciRegistry, Progress, RegistryResolver,
    UnpackConfiguration,
};
use crated_api::{Any, any};
use tokio::sync::mpsc;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::UnboundedReceiverStream;

use crate::connect::{Daemon, client};
use crate::documents::host_platform;
use crate::error::{Error, Result};
use crate::output;
use crate::spec::split_pair;

/// The snapshotter that images are unpacked into unless told otherwise.
pub(crate) const DEFAULT_SNAPSHOTTER: &str = "overlayfs";

/// What to pull and how.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Talk HTTP to the registry.
    #[arg(long)]
    plain_http: bool,
    /// A directory of host configurations, read by the daemon.
    #[arg(long)]
    hosts_dir: Option<String>,
    /// Registry account, as `USER[:PASSWORD]`.
    #[arg(short, long)]
    user: Option<String>,
    /// The snapshotter to unpack into.
    #[arg(long, env = "CONTAINERD_SNAPSHOTTER", default_value = DEFAULT_SNAPSHOTTER)]
    snapshotter: String,
    /// Platforms to pull, such as linux/arm64; the host's otherwise.
    #[arg(long)]
    platform: Vec<String>,
    /// Pull for all platforms.
    #[arg(long)]
    all_platforms: bool,
    /// Pull manifests and configurations of all platforms.
    #[arg(long)]
    all_metadata: bool,
    /// Labels of the image, given as KEY=VALUE.
    #[arg(long)]
    label: Vec<String>,
    /// The image.
    reference: String,
}

/// Pulls one image.
pub(crate) async fn run(daemon: &Daemon, arguments: Arguments) -> Result<()> {
    let credentials = arguments.user.as_deref().map(|user| {
        let (name, secret) = user.split_once(':').unwrap_or((user, ""));
        AuthResponse {
            auth_type: AuthType::Credentials.into(),
            username: name.to_owned(),
            secret: secret.to_owned(),
            expire_at: None,
        }
    });
    let (id, progress) = (stream_id("progress")?, stream_id("auth")?);
    let shown = tokio::spawn(show(open_stream(daemon, &id).await?));
    let auth_stream = match credentials {
        Some(credentials) => {
            tokio::spawn(authenticate(open_stream(daemon, &progress).await?, credentials));
            progress
        }
        None => String::new(),
    };
    let source = OciRegistry {
        reference: arguments.reference.clone(),
        resolver: Some(RegistryResolver {
            auth_stream,
            host_dir: arguments.hosts_dir.clone().unwrap_or_default(),
            default_scheme: if arguments.plain_http { "http" } else { "" }.to_owned(),
            ..RegistryResolver::default()
        }),
    };
    let request = TransferRequest {
        source: Some(any::pack(&source)),
        destination: Some(any::pack(&destination(&arguments)?)),
        options: Some(TransferOptions { progress_stream: id }),
    };
    client!(daemon, TransferClient).transfer(request).await?;
    // The daemon ends the stream after the last event.
    let _ = shown.await;
    Ok(())
}

fn destination(arguments: &Arguments) -> Result<ImageStore> {
    let wanted = match (arguments.all_platforms, arguments.platform.is_empty()) {
        (true, _) => Vec::new(),
        (false, true) => vec![host_platform()],
        (false, false) => arguments.platform.clone(),
    };
    let platforms = wanted.iter().map(|text| parse_platform(text)).collect::<Result<Vec<_>>>()?;
    let unpack_for = match platforms.first() {
        Some(platform) => platform.clone(),
        None => parse_platform(&host_platform())?,
    };
    let labels: BTreeMap<_, _> =
        arguments.label.iter().map(|pair| split_pair(pair)).collect::<Result<_>>()?;
    Ok(ImageStore {
        name: arguments.reference.clone(),
        labels,
        platforms,
        all_metadata: arguments.all_metadata,
        unpacks: vec![UnpackConfiguration {
            platform: Some(unpack_for),
            snapshotter: arguments.snapshotter.clone(),
        }],
        ..ImageStore::default()
    })
}

fn parse_platform(text: &str) -> Result<Platform> {
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
struct Stream {
    send: mpsc::UnboundedSender<Any>,
    receive: tonic::Streaming<Any>,
}

async fn open_stream(daemon: &Daemon, id: &str) -> Result<Stream> {
    let (send, outgoing) = mpsc::unbounded_channel();
    // Sending cannot fail while the receiving half is held.
    let _ = send.send(any::pack(&StreamInit { id: id.to_owned() }));
    let outgoing = UnboundedReceiverStream::new(outgoing);
    let mut receive = client!(daemon, StreamingClient).stream(outgoing).await?.into_inner();
    // The first answer says that the stream can be named in other calls.
    receive.message().await?;
    Ok(Stream { send, receive })
}

fn stream_id(purpose: &str) -> Result<String> {
    use std::io::Read as _;
    let mut seed = [0_u8; 8];
    std::fs::File::open("/dev/urandom")
        .and_then(|mut random| random.read_exact(&mut seed))
        .map_err(Error::io("read", "/dev/urandom"))?;
    Ok(format!("ctr-{purpose}-{:016x}", u64::from_ne_bytes(seed)))
}

/// Prints what happens to each object: once when it starts and once when it is there.
async fn show(mut stream: Stream) {
    let mut last = BTreeMap::new();
    while let Some(Ok(packed)) = stream.receive.next().await {
        let Ok(progress) = any::unpack::<Progress>(&packed) else {
            continue;
        };
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
