use std::io::{self, Read, Write};

use crated_exec::{
    Error, Result,
    proto::{
        self,
        types::{RuntimeInfo, RuntimeVersion},
    },
    reaper::Reaper,
    runc::{Runc, RuncConfig},
};
use prost::Message;
use prost_types::Any;

use crate::args::Args;

/// Prints what this runtime is, for the options on stdin.
pub(crate) fn run(args: &Args) -> Result<()> {
    let mut bytes = Vec::new();
    let stdin = io::stdin();
    stdin.take(STDIN_MAX_BYTES).read_to_end(&mut bytes).map_err(|e| failed("read", e))?;
    let any = Any::decode(&*bytes).ok().filter(|any| !any.type_url.is_empty());
    let options = crate::options::read(any.as_ref())?;
    let config = RuncConfig::from_options(&options, &args.namespace);
    let features = crate::runtime()?
        .block_on(async { Runc::new(config, Reaper::new()?).features().await })
        .ok();
    let version = env!("CARGO_PKG_VERSION").to_owned();
    let info = RuntimeInfo {
        name: "io.containerd.crated.v2".into(),
        version: Some(RuntimeVersion { version, revision: String::new() }),
        options: any,
        features: features.map(|value| Any { type_url: proto::FEATURES_URL.into(), value }),
        annotations: Default::default(),
    };
    print(&info.encode_to_vec())
}

/// Prints versions in the lines daemons look for.
pub(crate) fn version() -> Result<()> {
    let version = env!("CARGO_PKG_VERSION");
    let text = format!(
        "containerd-shim-crated-v2:\n  Version:  {version}\n  Revision: \n  Go version: none\n\n"
    );
    print(text.as_bytes())
}

fn print(bytes: &[u8]) -> Result<()> {
    let mut out = io::stdout();
    out.write_all(bytes).and_then(|()| out.flush()).map_err(|e| failed("write", e))
}

fn failed(op: &'static str, source: io::Error) -> Error {
    Error::Io { op, path: "stdio".into(), source }
}

/// Options of a runtime are small.
const STDIN_MAX_BYTES: u64 = 4 << 20;
