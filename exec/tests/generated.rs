//! The committed bindings must be what the protos say.
//!
//! After an edit of `proto/`, run this test with `UPDATE_GENERATED=1` to write them anew.

use std::{collections::BTreeMap, fs, path::Path};

const PROTOS: [&str; 13] = [
    "bootstrap.proto",
    "cgroups_v1.proto",
    "cgroups_v2.proto",
    "events.proto",
    "forward.proto",
    "process.proto",
    "runc.proto",
    "runtimeoptions.proto",
    "sandbox.proto",
    "status.proto",
    "task.proto",
    "ttrpc.proto",
    "types.proto",
];

fn read_all(dir: &Path) -> BTreeMap<String, String> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap());
    entries
        .map(|e| (e.file_name().into_string().unwrap(), fs::read_to_string(e.path()).unwrap()))
        .collect()
}

#[test]
fn committed_bindings_match_the_protos() {
    let home = Path::new(env!("CARGO_MANIFEST_DIR"));
    let fresh = tempfile::tempdir().unwrap();
    let set = protox::compile(PROTOS, [home.join("proto")]).unwrap();
    prost_build::Config::new()
        .out_dir(fresh.path())
        .include_file("mod.rs")
        .enable_type_names()
        .btree_map(["."])
        .compile_fds(set)
        .unwrap();

    let committed = home.join("src/gen");
    let fresh = read_all(fresh.path());
    if std::env::var_os("UPDATE_GENERATED").is_some() {
        for (name, text) in &fresh {
            fs::write(committed.join(name), text).unwrap();
        }
    }
    let committed = read_all(&committed);
    assert_eq!(
        committed.keys().collect::<Vec<_>>(),
        fresh.keys().collect::<Vec<_>>(),
        "files of src/gen"
    );
    for (name, text) in &fresh {
        assert!(text == &committed[name], "src/gen/{name} does not match proto/");
    }
}
