//! `containerd.services.introspection.v1.Introspection`.

use std::borrow::Cow;
use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use crated_api::any;
use crated_api::services::introspection::v1::introspection_server::Introspection;
use crated_api::services::introspection::v1::{
    Plugin as Record, PluginInfoRequest, PluginInfoResponse, PluginsRequest, PluginsResponse,
    ServerResponse,
};
use crated_api::types::{Platform, RuntimeInfo, RuntimeRequest};
use tonic::{Code, Request, Response, Status};

use super::status;
use crate::error::{Error, Result};
use crate::filters::{Adaptor, Filters};
use crate::plugins::{Plugin, RUNTIME};
use crate::wiring::Daemon;

/// Describes the daemon and its parts.
#[derive(Clone)]
pub struct IntrospectionService {
    daemon: Arc<Daemon>,
}

impl IntrospectionService {
    /// Describes `daemon`.
    pub fn new(daemon: Arc<Daemon>) -> Self {
        Self { daemon }
    }

    /// What operators are to know of the runtime: containers that cannot be removed yet, and why.
    fn leftovers(&self) -> impl Iterator<Item = (String, String)> {
        self.daemon.shims.leftovers().into_iter().map(|left| {
            let step = left.step.as_str();
            let text = format!("{step}, tried {} times: {}", left.attempts, left.blocker);
            (format!("leftover {}/{}", left.namespace, left.id), text)
        })
    }

    /// What the runtime that the options name says about itself.
    async fn runtime_info(&self, options: Option<crated_api::Any>) -> Result<RuntimeInfo, Status> {
        let request: RuntimeRequest = match &options {
            Some(options) => any::unpack(options).map_err(status::invalid)?,
            None => RuntimeRequest::default(),
        };
        let name = match request.runtime_path.as_str() {
            "" => RUNTIME_DEFAULT,
            name => name,
        };
        let info = self.daemon.shims.runtime_info(name, request.options.as_ref()).await;
        let info = info.map_err(|error| status::from_exec(&error))?;
        // The same message under two roofs: the shim's protocol and ours.
        let bytes = prost::Message::encode_to_vec(&info);
        prost::Message::decode(bytes.as_slice())
            .map_err(|error| status::status(Code::Internal, &error))
    }
}

#[tonic::async_trait]
impl Introspection for IntrospectionService {
    async fn plugins(
        &self,
        request: Request<PluginsRequest>,
    ) -> Result<Response<PluginsResponse>, Status> {
        let filters = Filters::parse(&request.into_inner().filters)?;
        let plugins = self.daemon.plugins.iter();
        let plugins = plugins.filter(|plugin| filters.matches(*plugin));
        let plugins = plugins.map(|plugin| {
            let mut record = record(plugin);
            if plugin.kind == RUNTIME {
                record.exports.extend(self.leftovers());
            }
            record
        });
        Ok(Response::new(PluginsResponse { plugins: plugins.collect() }))
    }

    async fn server(&self, _: Request<()>) -> Result<Response<ServerResponse>, Status> {
        let namespace =
            fs::metadata("/proc/self/ns/pid").map_err(|error| status::from_io(&error))?;
        Ok(Response::new(ServerResponse {
            uuid: self.daemon.uuid.clone(),
            pid: std::process::id().into(),
            pidns: namespace.ino(),
            deprecations: Vec::new(),
        }))
    }

    async fn plugin_info(
        &self,
        request: Request<PluginInfoRequest>,
    ) -> Result<Response<PluginInfoResponse>, Status> {
        let PluginInfoRequest { r#type, id, options } = request.into_inner();
        let plugin = self
            .daemon
            .plugins
            .iter()
            .find(|plugin| plugin.kind == r#type && plugin.id == id)
            .ok_or_else(|| status::not_found(format!("plugin {type}.{id}", r#type = r#type)))?;
        if (plugin.kind, plugin.id.as_str()) != (RUNTIME, "task") {
            return Err(status::unimplemented(format!("info of plugin {}.{id}", plugin.kind)));
        }
        let extra = any::pack(&self.runtime_info(options).await?);
        Ok(Response::new(PluginInfoResponse { plugin: Some(record(plugin)), extra: Some(extra) }))
    }
}

impl Adaptor for Plugin {
    fn field<'a>(&'a self, path: &[String]) -> Option<Cow<'a, str>> {
        match path {
            [field] if field == "type" => Some(Cow::Borrowed(self.kind)),
            [field] if field == "id" => Some(Cow::Borrowed(&self.id)),
            _ => None,
        }
    }
}

/// The identity of a root directory: read from `<root>/io.containerd.grpc.v1.introspection/uuid`,
/// and made up and written there the first time.
///
/// # Errors
///
/// [`Error::Io`].
pub fn uuid(root: &Path) -> Result<String> {
    let directory = root.join("io.containerd.grpc.v1.introspection");
    let path = directory.join("uuid");
    match fs::read_to_string(&path) {
        Ok(text) if !text.trim().is_empty() => return Ok(text.trim().to_owned()),
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(Error::io("read", &path, error));
        }
        _ => {}
    }
    let fail = |error| Error::io("write", &path, error);
    fs::create_dir_all(&directory).map_err(fail)?;
    let text = fs::read_to_string("/proc/sys/kernel/random/uuid").map_err(fail)?;
    let draft = directory.join("uuid.new");
    let mut file = fs::File::create(&draft).map_err(fail)?;
    file.write_all(text.trim().as_bytes()).map_err(fail)?;
    file.sync_all().map_err(fail)?;
    fs::rename(&draft, &path).map_err(fail)?;
    fs::File::open(&directory).and_then(|directory| directory.sync_all()).map_err(fail)?;
    Ok(text.trim().to_owned())
}

fn record(plugin: &Plugin) -> Record {
    Record {
        r#type: plugin.kind.to_owned(),
        id: plugin.id.clone(),
        requires: plugin.requires.iter().map(|kind| (*kind).to_owned()).collect(),
        platforms: plugin.platforms.iter().map(|platform| platform_of(platform)).collect(),
        exports: plugin.exports.clone(),
        capabilities: plugin.capabilities.clone(),
        init_err: plugin.failure.as_ref().map(|reason| crated_api::rpc::Status {
            code: Code::Unknown.into(),
            message: reason.clone(),
            details: Vec::new(),
        }),
    }
}

fn platform_of(text: &str) -> Platform {
    let mut parts = text.splitn(3, '/').map(str::to_owned);
    let mut next = || parts.next().unwrap_or_default();
    Platform { os: next(), architecture: next(), variant: next(), ..Platform::default() }
}

/// The runtime clients mean when they name none.
const RUNTIME_DEFAULT: &str = "io.containerd.runc.v2";
