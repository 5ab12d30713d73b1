//! `ctr images convert`: the same image in another form.

use std::collections::BTreeMap;
use std::io::Write;
use std::time::{Duration, SystemTime};

use crated_api::services::content::v1::content_client::ContentClient;
use crated_api::services::content::v1::{
    ReadContentRequest, UpdateRequest, WriteAction, WriteContentRequest,
};
use crated_api::services::images::v1::images_client::ImagesClient;
use crated_api::services::images::v1::{CreateImageRequest, Image, UpdateImageRequest};
use crated_api::services::leases::v1::leases_client::LeasesClient;
use crated_api::services::leases::v1::{CreateRequest, DeleteRequest};
use crated_api::types::Descriptor;
use flate2::write::MultiGzDecoder;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::get;
use crate::connect::{Daemon, client};
use crate::error::{Error, Result};
use crate::transfer::{PlatformArguments, stream_id};
use crate::{documents, output, time};

/// What to convert and how.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Make layers plain tars.
    #[arg(long)]
    uncompress: bool,
    /// Use the media types of OCI instead of Docker's.
    #[arg(long)]
    oci: bool,
    #[command(flatten)]
    platforms: PlatformArguments,
    /// The image.
    source: String,
    /// The name of the result.
    target: String,
}

/// How long a conversion may take before what it made is collected.
const LEASE: Duration = Duration::from_secs(24 * 3600);

/// Bytes in one message of a write.
const PART_BYTES: usize = 1 << 20;

/// Converts one image.
pub(crate) async fn run(daemon: &Daemon, arguments: Arguments) -> Result<()> {
    let image = get(daemon, &arguments.source).await?;
    let id = stream_id("convert")?;
    let end = time::rfc3339(SystemTime::now() + LEASE);
    let labels = BTreeMap::from([("containerd.io/gc.expire".to_owned(), end)]);
    client!(daemon, LeasesClient).create(CreateRequest { id: id.clone(), labels }).await?;
    let leased = daemon.with_lease(&id)?;
    let converted = convert(&leased, &arguments, image).await;
    client!(daemon, LeasesClient).delete(DeleteRequest { id, sync: false }).await?;
    output::line(converted?);
    Ok(())
}

async fn convert(daemon: &Daemon, arguments: &Arguments, image: Image) -> Result<String> {
    let target = image.target.clone().unwrap_or_default();
    let root = json!({
        "mediaType": target.media_type, "digest": target.digest, "size": target.size,
    });
    let conversion = Conversion { daemon, arguments };
    let root = match documents::is_index(&target.media_type) {
        true => conversion.index(root).await?,
        false => conversion.manifest(root).await?,
    };
    let text = |key: &str| root[key].as_str().unwrap_or_default().to_owned();
    let target = Descriptor {
        media_type: text("mediaType"),
        digest: text("digest"),
        size: root["size"].as_i64().unwrap_or_default(),
        annotations: target.annotations,
    };
    let digest = target.digest.clone();
    let image = Image {
        name: arguments.target.clone(),
        labels: image.labels,
        target: Some(target),
        ..Image::default()
    };
    let request = CreateImageRequest { image: Some(image.clone()), source_date_epoch: None };
    match client!(daemon, ImagesClient).create(request).await {
        Err(status) if status.code() == tonic::Code::AlreadyExists => {
            let request =
                UpdateImageRequest { image: Some(image), ..UpdateImageRequest::default() };
            client!(daemon, ImagesClient).update(request).await?;
        }
        other => drop(other?),
    }
    Ok(digest)
}

struct Conversion<'c> {
    daemon: &'c Daemon,
    arguments: &'c Arguments,
}

impl Conversion<'_> {
    /// An index of the wanted platforms, converted.
    async fn index(&self, mut root: Value) -> Result<Value> {
        let mut index: Value = documents::document(self.daemon, digest(&root)).await?;
        let wanted = self.arguments.platforms.wanted()?;
        let mut children = Vec::new();
        for child in index["manifests"].as_array().cloned().unwrap_or_default() {
            let has = |key: &str, value: &str| child["platform"][key].as_str() == Some(value);
            let matches = wanted.is_empty()
                || wanted
                    .iter()
                    .any(|one| has("os", &one.os) && has("architecture", &one.architecture));
            if matches {
                children.push(self.manifest(child).await?);
            }
        }
        if children.is_empty() {
            return Err(Error::Refused(
                "no manifest of the wanted platforms: not found".to_owned(),
            ));
        }
        let labels = children
            .iter()
            .enumerate()
            .map(|(number, child)| (format!("{LABEL_CHILD}.m.{number}"), digest(child).to_owned()));
        let labels = labels.collect();
        index["manifests"] = Value::Array(children);
        self.retype(&mut index);
        self.retype(&mut root);
        self.store(root, &index, labels).await
    }

    /// A manifest whose layers are converted.
    async fn manifest(&self, mut root: Value) -> Result<Value> {
        let mut manifest: Value = documents::document(self.daemon, digest(&root)).await?;
        let mut labels = BTreeMap::new();
        for number in 0..manifest["layers"].as_array().map_or(0, Vec::len) {
            let layer = &mut manifest["layers"][number];
            if self.arguments.uncompress {
                self.uncompress(layer).await?;
            }
            self.retype(layer);
            labels.insert(format!("{LABEL_CHILD}.l.{number}"), digest(layer).to_owned());
        }
        self.retype(&mut manifest["config"]);
        labels.insert(format!("{LABEL_CHILD}.config"), digest(&manifest["config"]).to_owned());
        self.retype(&mut manifest);
        self.retype(&mut root);
        self.store(root, &manifest, labels).await
    }

    /// Stores the plain tar of a layer, and makes its descriptor say so.
    async fn uncompress(&self, layer: &mut Value) -> Result<()> {
        let media_type = layer["mediaType"].as_str().unwrap_or_default().to_owned();
        let plain = [".gzip", "+gzip", "+zstd", ".zstd"]
            .iter()
            .find_map(|suffix| media_type.strip_suffix(*suffix));
        let Some(plain) = plain else { return Ok(()) };
        let request = ReadContentRequest { digest: digest(layer).to_owned(), offset: 0, size: 0 };
        let mut parts = client!(self.daemon, ContentClient).read(request).await?.into_inner();
        let mut writer = Writer::open(self.daemon, digest(layer)).await?;
        let mut decoder = if media_type.ends_with("gzip") {
            Decoder::Gzip(Box::new(MultiGzDecoder::new(Vec::new())))
        } else {
            Decoder::zstd()?
        };
        while let Some(part) = parts.message().await? {
            let inflated = decoder.push(&part.data);
            writer.write(inflated.map_err(Error::io("inflate", digest(layer)))?).await?;
        }
        let rest = decoder.finish().map_err(Error::io("inflate", digest(layer)))?;
        writer.write(rest).await?;
        let (digest, size) = writer.commit(BTreeMap::new()).await?;
        let label = BTreeMap::from([(LABEL_UNCOMPRESSED.to_owned(), digest.clone())]);
        let info = crated_api::services::content::v1::Info {
            digest: digest.clone(),
            labels: label,
            ..Default::default()
        };
        let paths = vec![format!("labels.{LABEL_UNCOMPRESSED}")];
        let update_mask = Some(crated_api::FieldMask { paths });
        let request = UpdateRequest { info: Some(info), update_mask };
        client!(self.daemon, ContentClient).update(request).await?;
        layer["mediaType"] = Value::from(plain);
        layer["digest"] = Value::from(digest);
        layer["size"] = Value::from(size);
        Ok(())
    }

    /// Changes a media type of Docker's to the one of OCI, when that is wanted.
    fn retype(&self, object: &mut Value) {
        let Some(media_type) = object["mediaType"].as_str().filter(|_| self.arguments.oci) else {
            return;
        };
        let changed = match media_type {
            "application/vnd.docker.distribution.manifest.v2+json" => {
                "application/vnd.oci.image.manifest.v1+json"
            }
            "application/vnd.docker.distribution.manifest.list.v2+json" => {
                "application/vnd.oci.image.index.v1+json"
            }
            "application/vnd.docker.container.image.v1+json" => {
                "application/vnd.oci.image.config.v1+json"
            }
            "application/vnd.docker.image.rootfs.diff.tar" => {
                "application/vnd.oci.image.layer.v1.tar"
            }
            "application/vnd.docker.image.rootfs.diff.tar.gzip" => {
                "application/vnd.oci.image.layer.v1.tar+gzip"
            }
            "application/vnd.docker.image.rootfs.diff.tar.zstd" => {
                "application/vnd.oci.image.layer.v1.tar+zstd"
            }
            other => other,
        };
        object["mediaType"] = Value::from(changed.to_owned());
    }

    /// Stores a document with the labels that keep its parts; answers its descriptor.
    async fn store(
        &self,
        mut descriptor: Value,
        document: &Value,
        labels: BTreeMap<String, String>,
    ) -> Result<Value> {
        let bytes = serde_json::to_vec(document).map_err(Error::malformed("document"))?;
        let mut writer = Writer::open(self.daemon, digest(&descriptor)).await?;
        writer.write(bytes).await?;
        let (digest, size) = writer.commit(labels).await?;
        descriptor["digest"] = Value::from(digest);
        descriptor["size"] = Value::from(size);
        Ok(descriptor)
    }
}

fn digest(descriptor: &Value) -> &str {
    descriptor["digest"].as_str().unwrap_or_default()
}

/// What inflates a layer piece by piece.
enum Decoder {
    Gzip(Box<MultiGzDecoder<Vec<u8>>>),
    Zstd(Box<zstd::stream::write::Decoder<'static, Vec<u8>>>),
}

impl Decoder {
    fn zstd() -> Result<Self> {
        let decoder = zstd::stream::write::Decoder::new(Vec::new());
        Ok(Self::Zstd(Box::new(decoder.map_err(Error::io("open", "decoder"))?)))
    }

    fn push(&mut self, bytes: &[u8]) -> std::io::Result<Vec<u8>> {
        match self {
            Self::Gzip(decoder) => {
                decoder.write_all(bytes)?;
                Ok(std::mem::take(decoder.get_mut()))
            }
            Self::Zstd(decoder) => {
                decoder.write_all(bytes)?;
                Ok(std::mem::take(decoder.get_mut()))
            }
        }
    }

    fn finish(self) -> std::io::Result<Vec<u8>> {
        match self {
            Self::Gzip(decoder) => decoder.finish(),
            Self::Zstd(mut decoder) => {
                decoder.flush()?;
                Ok(decoder.into_inner())
            }
        }
    }
}

/// A blob on its way into the daemon's store.
struct Writer {
    send: mpsc::Sender<WriteContentRequest>,
    answers: tonic::Streaming<crated_api::services::content::v1::WriteContentResponse>,
    offset: i64,
}

impl Writer {
    async fn open(daemon: &Daemon, from: &str) -> Result<Self> {
        let (send, outgoing) = mpsc::channel(1);
        let first = WriteContentRequest {
            action: WriteAction::Stat.into(),
            r#ref: format!("{}-{from}", stream_id("convert")?),
            ..WriteContentRequest::default()
        };
        // The receiving half is held here.
        let _ = send.send(first).await;
        let mut answers =
            client!(daemon, ContentClient).write(ReceiverStream::new(outgoing)).await?.into_inner();
        answers.message().await?;
        Ok(Self { send, answers, offset: 0 })
    }

    async fn write(&mut self, bytes: Vec<u8>) -> Result<()> {
        for part in bytes.chunks(PART_BYTES) {
            self.call(WriteContentRequest {
                action: WriteAction::Write.into(),
                offset: self.offset,
                data: part.to_vec().into(),
                ..WriteContentRequest::default()
            })
            .await?;
            self.offset += i64::try_from(part.len()).unwrap_or(i64::MAX);
        }
        Ok(())
    }

    /// Publishes what was written; answers its digest and size. What was there before is as good.
    async fn commit(mut self, labels: BTreeMap<String, String>) -> Result<(String, i64)> {
        let so_far = self
            .call(WriteContentRequest {
                action: WriteAction::Stat.into(),
                offset: self.offset,
                ..WriteContentRequest::default()
            })
            .await?;
        let commit = WriteContentRequest {
            action: WriteAction::Commit.into(),
            offset: self.offset,
            labels,
            ..WriteContentRequest::default()
        };
        match self.call(commit).await {
            Ok(answer) => Ok((answer.digest, answer.offset)),
            Err(Error::Call(status)) if status.code() == tonic::Code::AlreadyExists => {
                Ok((so_far.digest, self.offset))
            }
            Err(error) => Err(error),
        }
    }

    async fn call(
        &mut self,
        message: WriteContentRequest,
    ) -> Result<crated_api::services::content::v1::WriteContentResponse> {
        // A refusal arrives as the answer; the channel's end says less.
        let _ = self.send.send(message).await;
        let ended = || Error::Refused("the daemon ended the transfer".to_owned());
        self.answers.message().await?.ok_or_else(ended)
    }
}

/// Prefix of the labels that keep the parts of a document.
const LABEL_CHILD: &str = "containerd.io/gc.ref.content";

/// The digest of a layer's plain tar.
const LABEL_UNCOMPRESSED: &str = "containerd.io/uncompressed";
