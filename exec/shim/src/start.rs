use std::{
    fs,
    io::{self, Read, Write},
    os::unix::{
        fs::{DirBuilderExt, PermissionsExt},
        net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
};

use crated_exec::{
    Bundle, Error, Result,
    proto::{self, bootstrap::BootstrapParams, bootstrap::BootstrapResult, runc},
    shim, spec,
    sys::{self, Forked},
};
use prost::Message;
use prost_types::Any;

use crate::args::Args;

/// Makes the shim for a container, or finds the one of its group, and prints
/// where it listens.
///
/// The shim is a fork of this process: starting the same program again would
/// cost more than all the rest that happens here. It has its own session and no
/// descriptor of ours but the listener, so that neither our end nor the
/// daemon's concerns it. There, this returns when the shim ends.
pub(crate) fn run(args: &Args) -> Result<()> {
    let input = Input::read(args)?;
    let cwd = std::env::current_dir().map_err(|e| io_error("find", ".", e))?;
    let group = group(&cwd)?.unwrap_or_else(|| args.id.clone());
    let folder = input.socket_dir.clone().unwrap_or_else(|| PathBuf::from(shim::SOCKET_DIR));
    let socket = shim::socket_path(&folder, &args.address, &args.namespace, &group)?;
    if UnixStream::connect(&socket).is_err() {
        let listener = listen(&folder, &socket)?;
        // From here on there are two of us, and one is the shim.
        let forked = sys::fork_alone().map_err(|e| io_error("fork", "/proc/self", e))?;
        let Forked::Parent(pid) = forked else {
            return crate::serve::run(args, listener.into());
        };
        settle(&cwd, pid, input.options.as_ref())?;
    }
    let address = format!("unix://{}", socket.display());
    let path = cwd.join("address");
    fs::write(&path, &address).map_err(|e| io_error("write", &path, e))?;
    let mut out = io::stdout();
    let answer = input.answer(address);
    out.write_all(&answer).and_then(|()| out.flush()).map_err(|e| io_error("write", "stdout", e))
}

/// Where a shim for the bundle listens when the daemon asks for no other folder.
pub(crate) fn default_socket(args: &Args, bundle: &Path) -> Result<PathBuf> {
    let group = group(bundle)?.unwrap_or_else(|| args.id.clone());
    let folder = Path::new(shim::SOCKET_DIR);
    shim::socket_path(folder, &args.address, &args.namespace, &group)
}

/// What the daemon wrote to stdin, and how it wants to be answered.
struct Input {
    dialect: Dialect,
    options: Option<runc::Options>,
    socket_dir: Option<PathBuf>,
}

/// How the answer is spelled; daemons cannot be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Dialect {
    /// The address alone, for daemons that say nothing of versions.
    Plain,
    /// JSON, version 2.
    Json,
    /// A message, version 3, for those that sent one.
    Message,
}

impl Input {
    fn read(args: &Args) -> Result<Self> {
        let mut bytes = Vec::new();
        let stdin = io::stdin().take(STDIN_MAX_BYTES + 1);
        { stdin }.read_to_end(&mut bytes).map_err(|e| io_error("read", "stdin", e))?;
        if bytes.len() as u64 > STDIN_MAX_BYTES {
            return Err(Error::InvalidArgument("options on stdin are too large".into()));
        }
        let spoken = std::env::var_os("MAX_SHIM_VERSION").is_some();
        Ok(Input::parse(args, &bytes, spoken))
    }

    /// The two messages a daemon may send parse as each other, so the newer
    /// one is believed only if it names this container.
    fn parse(args: &Args, bytes: &[u8], speaks_versions: bool) -> Self {
        if let Ok(params) = BootstrapParams::decode(bytes)
            && params.instance_id == args.id
            && params.namespace == args.namespace
        {
            let values = params.extensions.iter().filter_map(|e| e.value.as_ref());
            return Input {
                dialect: Dialect::Message,
                options: values.filter_map(|any| proto::unpack(any).ok()).next(),
                socket_dir: params.socket_dir.filter(|s| !s.is_empty()).map(PathBuf::from),
            };
        }
        let dialect = if speaks_versions { Dialect::Json } else { Dialect::Plain };
        let options = Any::decode(bytes).ok().and_then(|any| proto::unpack(&any).ok());
        Input { dialect, options, socket_dir: None }
    }

    fn answer(&self, address: String) -> Vec<u8> {
        match self.dialect {
            Dialect::Plain => address.into_bytes(),
            Dialect::Json => {
                serde_json::json!({ "version": 2, "address": address, "protocol": "ttrpc" })
                    .to_string()
                    .into_bytes()
            }
            Dialect::Message => {
                let protocol = "ttrpc".to_owned();
                let version = 3;
                BootstrapResult { version, address, protocol, ..Default::default() }.encode_to_vec()
            }
        }
    }
}

/// The group a container shares its shim with, by its annotations.
fn group(bundle: &Path) -> Result<Option<String>> {
    let config = bundle.join("config.json");
    if !config.exists() {
        return Ok(None);
    }
    let bytes = Bundle::open(bundle)?.read_spec()?;
    // Nearly all are in no group, and what is parsed here stays in the memory of the shim. A key
    // spelled with escapes is found by the parser only.
    let mentions = |word: &str| bytes.windows(word.len()).any(|part| part == word.as_bytes());
    if !GROUP_ANNOTATIONS.into_iter().chain(["\\u"]).any(mentions) {
        return Ok(None);
    }
    for key in GROUP_ANNOTATIONS {
        if let Some(group) = spec::annotation(&bytes, key)? {
            return Ok(Some(group));
        }
    }
    Ok(None)
}

/// Listens where only root may connect. A file left by a shim that died is replaced.
fn listen(folder: &Path, socket: &Path) -> Result<UnixListener> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o711)
        .create(folder)
        .map_err(|e| io_error("create", folder, e))?;
    match fs::remove_file(socket) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            return Err(io_error("remove", socket, e));
        }
        _ => {}
    }
    // Nobody connects between the two calls: the mask is in force at once.
    let mask = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o177));
    let bound = UnixListener::bind(socket);
    rustix::process::umask(mask);
    let listener = bound.map_err(|e| io_error("listen on", socket, e))?;
    let private = fs::Permissions::from_mode(0o600);
    fs::set_permissions(socket, private).map_err(|e| io_error("protect", socket, e))?;
    Ok(listener)
}

/// Notes the shim's pid, and puts it where the options want it.
fn settle(cwd: &Path, pid: u32, options: Option<&runc::Options>) -> Result<()> {
    let path = cwd.join("shim.pid");
    fs::write(&path, pid.to_string()).map_err(|e| io_error("write", &path, e))?;
    if let Some(cgroup) = options.map(|o| o.shim_cgroup.as_str()).filter(|c| !c.is_empty()) {
        crated_exec::cgroup::join(cgroup, pid).map_err(|e| e.context("join shim_cgroup"))?;
    }
    Ok(())
}

fn io_error(op: &'static str, path: impl Into<PathBuf>, source: io::Error) -> Error {
    Error::Io { op, path: path.into(), source }
}

/// Annotations that group containers, the first present one counts.
const GROUP_ANNOTATIONS: [&str; 2] =
    ["io.containerd.runc.v2.group", "io.kubernetes.cri.sandbox-id"];

/// Options of a runtime are small.
const STDIN_MAX_BYTES: u64 = 4 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    fn args() -> Args {
        let words = "-namespace ns -id box -address /a start".split(' ');
        Args::parse(words.map(String::from)).unwrap()
    }

    fn options() -> Any {
        let options = runc::Options { shim_cgroup: "/shims".into(), ..Default::default() };
        proto::pack(&options)
    }

    #[test]
    fn an_old_daemon_gets_the_bare_address() {
        let input = Input::parse(&args(), &[], false);
        assert_eq!(input.answer("unix:///s".into()), b"unix:///s");
    }

    #[test]
    fn options_are_not_taken_for_the_newer_message() {
        let input = Input::parse(&args(), &options().encode_to_vec(), true);
        assert_eq!(input.dialect, Dialect::Json);
        assert_eq!(input.options.as_ref().unwrap().shim_cgroup, "/shims");
        let answer: serde_json::Value =
            serde_json::from_slice(&input.answer("unix:///s".into())).unwrap();
        assert_eq!(answer["version"], 2);
    }

    #[test]
    fn the_newer_message_is_answered_in_kind() {
        let params = BootstrapParams {
            instance_id: "box".into(),
            namespace: "ns".into(),
            socket_dir: Some("/run/x".into()),
            extensions: vec![proto::bootstrap::Extension { value: Some(options()) }],
            ..Default::default()
        };
        let input = Input::parse(&args(), &params.encode_to_vec(), true);
        assert_eq!(input.options.as_ref().unwrap().shim_cgroup, "/shims");
        assert_eq!(input.socket_dir.as_deref(), Some(Path::new("/run/x")));
        let answer = BootstrapResult::decode(&*input.answer("unix:///s".into())).unwrap();
        assert_eq!((answer.version, answer.address.as_str()), (3, "unix:///s"));
    }

    #[test]
    fn a_message_for_another_container_is_not_believed() {
        let params = BootstrapParams {
            instance_id: "other".into(),
            namespace: "ns".into(),
            ..Default::default()
        };
        let input = Input::parse(&args(), &params.encode_to_vec(), true);
        assert_eq!(input.dialect, Dialect::Json);
    }
}
