//! The `plugins` table: settings of parts of the daemon under containerd's names.
//!
//! Tables of parts that crated does not have are skipped and reported, so a file written for
//! containerd can be used as it is. Inside a table that crated does have, an unknown key is an
//! error.

use std::fmt;
use std::path::PathBuf;

use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use super::{DebugServer, Grpc, Metrics, Span, Ttrpc};

/// Settings of the parts of the daemon.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Plugins {
    /// The overlay snapshotter.
    #[serde(rename = "io.containerd.snapshotter.v1.overlayfs")]
    pub overlayfs: Overlayfs,
    /// The copying snapshotter.
    #[serde(rename = "io.containerd.snapshotter.v1.native")]
    pub native: Native,
    /// The snapshotter of images.
    #[serde(rename = "io.containerd.snapshotter.v1.erofs")]
    pub erofs: Erofs,
    /// The metadata store.
    #[serde(rename = "io.containerd.metadata.v1.bolt")]
    pub metadata: Metadata,
    /// The garbage collector.
    #[serde(rename = "io.containerd.gc.v1.scheduler")]
    pub gc: Gc,
    /// Applying and making layers.
    #[serde(rename = "io.containerd.service.v1.diff-service")]
    pub diff: Diff,
    /// Moving images.
    #[serde(rename = "io.containerd.transfer.v1.local")]
    pub transfer: Transfer,
    /// Deciding which images may be pulled.
    #[serde(rename = "io.containerd.image-verifier.v1.bindir")]
    pub image_verifier: ImageVerifier,
    /// Starting shims.
    #[serde(rename = "io.containerd.runtime.v2.task")]
    pub runtime: Runtime,
    /// Starting containers again.
    #[serde(rename = "io.containerd.monitor.container.v1.restart")]
    pub restart: Restart,
    /// The gRPC server, as files of version 4 name it.
    #[serde(rename = "io.containerd.server.v1.grpc", skip_serializing_if = "Option::is_none")]
    pub grpc: Option<Grpc>,
    /// The ttrpc server, as files of version 4 name it.
    #[serde(rename = "io.containerd.server.v1.ttrpc", skip_serializing_if = "Option::is_none")]
    pub ttrpc: Option<Ttrpc>,
    /// The debug server, as files of version 4 name it.
    #[serde(rename = "io.containerd.server.v1.debug", skip_serializing_if = "Option::is_none")]
    pub debug: Option<DebugServer>,
    /// The metrics server, as files of version 4 name it.
    #[serde(rename = "io.containerd.server.v1.metrics", skip_serializing_if = "Option::is_none")]
    pub metrics: Option<Metrics>,
    /// Tables that were skipped: parts that crated does not have.
    #[serde(skip)]
    pub skipped: Vec<String>,
}

/// The overlay snapshotter.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Overlayfs {
    /// Directory, below the daemon's root when absent.
    #[serde(skip_serializing_if = "path_is_empty")]
    pub root_path: PathBuf,
    /// Tell clients the path of the writable directory in a label.
    pub upperdir_label: bool,
    /// Delete directories before answering a removal.
    pub sync_remove: bool,
    /// Change owners file by file where the kernel cannot map them.
    pub slow_chown: bool,
    /// Options added to every overlay mount.
    pub mount_options: Vec<String>,
}

/// The copying snapshotter.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Native {
    /// Directory, below the daemon's root when absent.
    #[serde(skip_serializing_if = "path_is_empty")]
    pub root_path: PathBuf,
}

/// The snapshotter of images.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Erofs {
    /// Directory, below the daemon's root when absent.
    #[serde(skip_serializing_if = "path_is_empty")]
    pub root_path: PathBuf,
    /// Options added to every overlay mount.
    pub ovl_mount_options: Vec<String>,
    /// Protect images with fs-verity. Accepted and not honoured.
    pub enable_fsverity: bool,
    /// Make images immutable. Accepted and not honoured: their directory is the daemon's alone.
    pub set_immutable: bool,
}

/// The metadata store.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Metadata {
    /// Whether a namespace may use bytes that another one brought.
    pub content_sharing_policy: SharingPolicy,
    /// Answer before changes are durable. Accepted and not honoured: crated always syncs.
    pub no_sync: bool,
}

/// Whether a namespace may use bytes that another one brought.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum SharingPolicy {
    /// Knowing the digest is enough.
    #[default]
    Shared,
    /// Every namespace brings the bytes itself.
    Isolated,
}

impl Default for Metadata {
    fn default() -> Self {
        Self { content_sharing_policy: SharingPolicy::Shared, no_sync: false }
    }
}

/// The garbage collector.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Gc {
    /// Largest share of time that collections may take, 0 to 0.5.
    pub pause_threshold: f64,
    /// Deletions that trigger a collection, 0 for none.
    pub deletion_threshold: u32,
    /// Changes after which the next deletion triggers a collection.
    pub mutation_threshold: u32,
    /// From the trigger to the collection.
    pub schedule_delay: Span,
    /// From the start of the daemon to the first collection.
    pub startup_delay: Span,
}

impl Default for Gc {
    fn default() -> Self {
        Self {
            pause_threshold: 0.02,
            deletion_threshold: 0,
            mutation_threshold: 100,
            schedule_delay: Span::default(),
            startup_delay: Span(std::time::Duration::from_millis(100)),
        }
    }
}

/// Applying and making layers.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Diff {
    /// Differs in the order in which they are asked. crated has `walking`.
    pub default: Vec<String>,
    /// Flush the file system after every layer.
    pub sync_fs: bool,
}

impl Default for Diff {
    fn default() -> Self {
        Self { default: vec!["walking".to_owned()], sync_fs: false }
    }
}

/// Moving images.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Transfer {
    /// Blobs fetched at a time.
    pub max_concurrent_downloads: u32,
    /// Pieces of one blob fetched at a time, in bytes per piece; 0 for the whole blob.
    pub concurrent_layer_fetch_buffer: u64,
    /// Layers pushed at a time.
    pub max_concurrent_uploaded_layers: u32,
    /// Layers unpacked at a time.
    pub max_concurrent_unpacks: u32,
    /// Refuse platforms that no snapshotter supports.
    pub check_platform_supported: bool,
    /// Directory of registry configurations.
    #[serde(skip_serializing_if = "path_is_empty")]
    pub config_path: PathBuf,
    /// Pairs of platform and snapshotter that images may be unpacked for.
    pub unpack_config: Vec<UnpackConfig>,
}

impl Default for Transfer {
    fn default() -> Self {
        Self {
            max_concurrent_downloads: 3,
            concurrent_layer_fetch_buffer: 0,
            max_concurrent_uploaded_layers: 3,
            max_concurrent_unpacks: 1,
            check_platform_supported: false,
            config_path: PathBuf::new(),
            unpack_config: Vec::new(),
        }
    }
}

/// A pair of platform and snapshotter that images may be unpacked for.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct UnpackConfig {
    /// Such as `linux/amd64`; empty for the host's.
    pub platform: String,
    /// Name of the snapshotter.
    pub snapshotter: String,
    /// Name of the differ.
    pub differ: String,
    /// Media type of configs this entry is for.
    pub config_type: String,
    /// Media types of layers this entry is for.
    pub layer_types: Vec<String>,
    /// Carry on without this entry when its snapshotter is missing.
    pub optional: bool,
}

/// Deciding which images may be pulled.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct ImageVerifier {
    /// Directory of programs that must all accept an image.
    pub bin_dir: PathBuf,
    /// Programs asked about one image; a negative number for all there are.
    pub max_verifiers: i64,
    /// How long one program may take.
    pub per_verifier_timeout: Span,
}

impl Default for ImageVerifier {
    fn default() -> Self {
        Self {
            bin_dir: "/opt/containerd/image-verifier/bin".into(),
            max_verifiers: 10,
            per_verifier_timeout: Span(std::time::Duration::from_secs(10)),
        }
    }
}

/// Starting shims.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Runtime {
    /// Platforms offered to clients; empty for the host's.
    pub platforms: Vec<String>,
    /// Give each container its own core scheduling group.
    pub sched_core: bool,
}

/// Starting containers again, by their labels.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Restart {
    /// From one look at all containers to the next, 10 ms at least.
    pub interval: Span,
}

impl Default for Restart {
    fn default() -> Self {
        Self { interval: Span(std::time::Duration::from_secs(10)) }
    }
}

impl<'de> Deserialize<'de> for Plugins {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Tables)
    }
}

struct Tables;

impl<'de> Visitor<'de> for Tables {
    type Value = Plugins;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a table of plugin settings")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Plugins, A::Error> {
        let mut plugins = Plugins::default();
        while let Some(id) = map.next_key::<String>()? {
            match id.as_str() {
                "io.containerd.snapshotter.v1.overlayfs" => plugins.overlayfs = map.next_value()?,
                "io.containerd.snapshotter.v1.native" => plugins.native = map.next_value()?,
                "io.containerd.snapshotter.v1.erofs" => plugins.erofs = map.next_value()?,
                "io.containerd.metadata.v1.bolt" => plugins.metadata = map.next_value()?,
                "io.containerd.gc.v1.scheduler" => plugins.gc = map.next_value()?,
                "io.containerd.service.v1.diff-service" => plugins.diff = map.next_value()?,
                "io.containerd.transfer.v1.local" => plugins.transfer = map.next_value()?,
                "io.containerd.image-verifier.v1.bindir" => {
                    plugins.image_verifier = map.next_value()?;
                }
                "io.containerd.runtime.v2.task" => plugins.runtime = map.next_value()?,
                "io.containerd.monitor.container.v1.restart"
                | "io.containerd.internal.v1.restart" => plugins.restart = map.next_value()?,
                "io.containerd.server.v1.grpc" => plugins.grpc = Some(map.next_value()?),
                "io.containerd.server.v1.ttrpc" => plugins.ttrpc = Some(map.next_value()?),
                "io.containerd.server.v1.debug" => plugins.debug = Some(map.next_value()?),
                "io.containerd.server.v1.metrics" => plugins.metrics = Some(map.next_value()?),
                _ => {
                    map.next_value::<IgnoredAny>()?;
                    plugins.skipped.push(id);
                }
            }
        }
        Ok(plugins)
    }
}

fn path_is_empty(path: &std::path::Path) -> bool {
    path.as_os_str().is_empty()
}
