use std::{
    fs,
    io::{self, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
};

use crated_exec::{
    Error, Exit, Result,
    proto::{self, runc::Options, task::DeleteResponse},
    reaper::Reaper,
    runc::{Runc, RuncConfig, delete_leftovers},
};
use prost::Message;

use crate::args::Args;

/// Ends and removes a container whose shim is gone, and prints its end.
pub(crate) fn run(args: &Args) -> Result<()> {
    let bundle = match &args.bundle {
        Some(bundle) => bundle.clone(),
        None => std::env::current_dir().map_err(|e| io_error("find", ".", e))?,
    };
    let pid = fs::read_to_string(bundle.join("init.pid")).ok();
    let pid = pid.and_then(|pid| pid.trim().parse().ok()).unwrap_or_default();
    crate::orphans::kill(&bundle);
    let options = read_options(&bundle);
    let config = RuncConfig::from_options(&options, &args.namespace);
    crate::runtime()?.block_on(async {
        let runc = Runc::new(config, Reaper::new()?);
        delete_leftovers(&runc, &args.id, &bundle).await
    })?;
    remove_socket(args, &bundle);
    // Ended while the shim lived, or ended here.
    let exit = crate::exit::read(&bundle, pid).unwrap_or_else(|| Exit::now(KILLED));
    let response = DeleteResponse {
        pid,
        exit_status: exit.status,
        exited_at: Some(proto::timestamp(Some(exit.exited_at))),
    };
    let mut out = io::stdout();
    out.write_all(&response.encode_to_vec())
        .and_then(|()| out.flush())
        .map_err(|e| io_error("write", "stdout", e))
}

/// Keeps what a later `delete` must know.
pub(crate) fn write_options(bundle: &Path, options: &Options) -> Result<()> {
    let json = serde_json::json!({
        "binary_name": options.binary_name,
        "root": options.root,
        "systemd_cgroup": options.systemd_cgroup,
    });
    let path = bundle.join(OPTIONS_FILE);
    fs::write(&path, json.to_string()).map_err(|e| io_error("write", &path, e))
}

/// What is missing or broken has its default: the container must go anyway.
fn read_options(bundle: &Path) -> Options {
    let json: Option<serde_json::Value> = fs::read(bundle.join(OPTIONS_FILE))
        .ok()
        .and_then(|bytes| serde_json::from_slice(&bytes).ok());
    let json = json.unwrap_or_default();
    let text = |key: &str| json[key].as_str().unwrap_or_default().to_owned();
    Options {
        binary_name: text("binary_name"),
        root: text("root"),
        systemd_cgroup: json["systemd_cgroup"].as_bool().unwrap_or_default(),
        ..Default::default()
    }
}

/// Removes the socket's file unless a shim of the same group still listens.
fn remove_socket(args: &Args, bundle: &Path) {
    let address = fs::read_to_string(bundle.join("address")).unwrap_or_default();
    let socket = match address.trim().strip_prefix("unix://") {
        Some(socket) => PathBuf::from(socket),
        // The start was broken off before it could tell.
        None => match crate::start::default_socket(args, bundle) {
            Ok(socket) => socket,
            Err(_) => return,
        },
    };
    if UnixStream::connect(&socket).is_err() {
        // Gone already, or in the way of nobody.
        let _ = fs::remove_file(socket);
    }
}

fn io_error(op: &'static str, path: impl Into<PathBuf>, source: io::Error) -> Error {
    Error::Io { op, path: path.into(), source }
}

const OPTIONS_FILE: &str = "options.json";

/// 128 and SIGKILL: that is how the container ends here.
const KILLED: u32 = 137;
