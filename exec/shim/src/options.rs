//! The options of the runtime, in both spellings daemons send.

use std::{fs, io::Read, path::Path};

use crated_exec::{
    Error, Result,
    proto::{self, runc::Options, runtimeoptions},
};
use prost_types::Any;
use serde::Deserialize;

/// The options of runc, as a TOML document has them.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct Document {
    no_pivot_root: bool,
    no_new_keyring: bool,
    shim_cgroup: String,
    io_uid: u32,
    io_gid: u32,
    binary_name: String,
    root: String,
    systemd_cgroup: bool,
    criu_image_path: String,
    criu_work_path: String,
}

/// Reads options: those of runc itself, or the generic ones, whose body or file is a TOML
/// document of the same fields.
pub(crate) fn read(any: Option<&Any>) -> Result<Options> {
    let Some(any) = any.filter(|any| !any.type_url.is_empty()) else {
        return Ok(Options::default());
    };
    if proto::type_name(&any.type_url) != "runtimeoptions.v1.Options" {
        return proto::unpack(any).map_err(|e| e.context("runtime options"));
    }
    let generic: runtimeoptions::Options =
        proto::unpack(any).map_err(|e| e.context("runtime options"))?;
    // Options of another kind of runtime are none of ours; containers run without.
    if !["", "containerd.runc.v1.Options"].contains(&proto::type_name(&generic.type_url)) {
        return Ok(Options::default());
    }
    let text = match (generic.config_body.as_slice(), generic.config_path.as_str()) {
        ([], "") => return Ok(Options::default()),
        ([], path) => file(Path::new(path))?,
        (body, _) => String::from_utf8(body.to_vec())
            .map_err(|_| Error::InvalidArgument("runtime options: body is no text".into()))?,
    };
    document(&text)
}

fn document(text: &str) -> Result<Options> {
    let document: Document = toml::from_str(text)
        .map_err(|e| Error::InvalidArgument(format!("runtime options: {}", e.message())))?;
    let Document { no_pivot_root, no_new_keyring, shim_cgroup, io_uid, io_gid, .. } = document;
    let Document { binary_name, root, systemd_cgroup, criu_image_path, criu_work_path, .. } =
        document;
    Ok(Options {
        no_pivot_root,
        no_new_keyring,
        shim_cgroup,
        io_uid,
        io_gid,
        binary_name,
        root,
        systemd_cgroup,
        criu_image_path,
        criu_work_path,
        ..Options::default()
    })
}

fn file(path: &Path) -> Result<String> {
    let fail = |source| Error::Io { op: "read", path: path.into(), source };
    let mut text = String::new();
    let file = fs::File::open(path).map_err(fail)?;
    if !file.metadata().map_err(fail)?.is_file() {
        let text = format!("runtime options: {} is no file", path.display());
        return Err(Error::InvalidArgument(text));
    }
    file.take(SIZE_MAX_BYTES).read_to_string(&mut text).map_err(fail)?;
    Ok(text)
}

/// A page of settings.
const SIZE_MAX_BYTES: u64 = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    const TOML: &str = "BinaryName = \"crun\"\nSystemdCgroup = true\nIoUid = 7\nUnknown = 1\n";

    #[test]
    fn generic_options_are_read_from_body_or_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("options.toml");
        fs::write(&path, TOML).unwrap();
        let body =
            runtimeoptions::Options { config_body: TOML.as_bytes().to_vec(), ..Default::default() };
        let file = runtimeoptions::Options {
            type_url: "containerd.runc.v1.Options".into(),
            config_path: path.display().to_string(),
            ..Default::default()
        };
        for generic in [body, file] {
            let options = read(Some(&proto::pack(&generic))).unwrap();
            assert_eq!((options.binary_name.as_str(), options.io_uid), ("crun", 7));
            assert!(options.systemd_cgroup && !options.no_pivot_root);
        }
    }

    #[test]
    fn typed_options_pass_and_those_of_others_are_ignored() {
        let typed = Options { root: "/r".into(), ..Default::default() };
        assert_eq!(read(Some(&proto::pack(&typed))).unwrap(), typed);
        let other = runtimeoptions::Options {
            type_url: "io.example.Options".into(),
            config_path: "/no/such".into(),
            ..Default::default()
        };
        assert_eq!(read(Some(&proto::pack(&other))).unwrap(), Options::default());
        assert_eq!(read(None).unwrap(), Options::default());
    }

    #[test]
    fn what_cannot_be_read_is_refused() {
        for generic in [
            runtimeoptions::Options { config_path: "/dev/zero".into(), ..Default::default() },
            runtimeoptions::Options { config_path: "/no/such".into(), ..Default::default() },
            runtimeoptions::Options { config_body: b"IoUid = [".to_vec(), ..Default::default() },
            runtimeoptions::Options { config_body: vec![0xff], ..Default::default() },
        ] {
            assert!(read(Some(&proto::pack(&generic))).is_err(), "{generic:?}");
        }
    }
}
