//! The committed bindings are what the protocol files say.

mod generator;

use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::path::Path;

/// Fields that carry bulk data: shared buffers instead of copies.
const BULK_FIELDS: [&str; 3] = [
    ".containerd.services.content.v1.ReadContentResponse.data",
    ".containerd.services.content.v1.WriteContentRequest.data",
    ".containerd.types.transfer.Data.data",
];

/// Set it to write the bindings instead of comparing them.
const UPDATE: &str = "CRATED_API_UPDATE";

#[test]
fn committed_bindings_match_the_protocol_files() {
    let committed = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/gen");
    if std::env::var_os(UPDATE).is_some() {
        fs::create_dir_all(&committed).unwrap();
        for name in read(&committed).keys() {
            fs::remove_file(committed.join(name)).unwrap();
        }
        generate(&committed).unwrap();
        return;
    }
    let fresh = tempfile::tempdir().unwrap();
    generate(fresh.path()).unwrap();

    let (committed, fresh) = (read(&committed), read(fresh.path()));
    let stale: Vec<_> = committed
        .keys()
        .chain(fresh.keys())
        .filter(|name| committed.get(*name) != fresh.get(*name))
        .collect();
    assert!(
        stale.is_empty(),
        "stale bindings: {stale:?}; run `{UPDATE}=1 cargo test -p crated-api --test generated` \
         and commit src/gen"
    );
}

/// Writes the bindings into `directory`. Maps are ordered, so that equal
/// messages have equal bytes.
fn generate(directory: &Path) -> Result<(), Box<dyn Error>> {
    let mut config = prost_build::Config::new();
    config.enable_type_names();
    config.btree_map(["."]);
    config.bytes(BULK_FIELDS);
    tonic_prost_build::configure()
        .build_client(true)
        .build_server(true)
        .emit_rerun_if_changed(false)
        .out_dir(directory)
        .include_file("mod.rs")
        .compile_fds_with_config(generator::descriptors()?, config)?;
    Ok(())
}

fn read(directory: &Path) -> BTreeMap<String, String> {
    fs::read_dir(directory)
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().unwrap();
            (name, fs::read_to_string(entry.path()).unwrap())
        })
        .collect()
}
