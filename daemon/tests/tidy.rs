//! House rules that a compiler does not hold: who may depend on whom, how long a file may
//! grow, and what must not be committed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use cargo_metadata::{DependencyKind, Metadata, MetadataCommand, Package};

/// Lines a source file may have; tests and conformance suites are exempt.
const FILE_LINES_MAX: usize = 800;

/// The law: which members of the workspace each member may depend on.
const ALLOWED: &[(&str, &[&str])] = &[
    ("crated-mount", &[]),
    ("crated-content", &[]),
    ("crated-distribution", &[]),
    ("crated-netns", &[]),
    ("crated-snapshot", &["crated-mount"]),
    ("crated-exec", &["crated-mount"]),
    ("crated-shim", &["crated-exec", "crated-mount"]),
    ("crated-api", &[]),
    ("ctr", &["crated-api"]),
];

/// Crates that must not contain unsafe code at all.
const SAFE: &[&str] = &["content", "snapshot", "distribution", "daemon", "ctr"];

#[test]
fn members_depend_only_on_what_the_law_allows() {
    let metadata = metadata();
    let members: BTreeSet<&str> =
        metadata.workspace_packages().iter().map(|package| package.name.as_str()).collect();
    let law: BTreeMap<&str, &[&str]> = ALLOWED.iter().copied().collect();

    for package in metadata.workspace_packages() {
        let Some(allowed) = law.get(package.name.as_str()) else { continue };
        for dependency in siblings(package, &members) {
            assert!(
                allowed.contains(&dependency.as_str()),
                "{} depends on {dependency}; it may depend on {allowed:?}",
                package.name
            );
        }
    }
    for (name, _) in ALLOWED {
        assert!(members.contains(name), "the law names {name}, which is no member");
    }
}

#[test]
fn primitives_pull_in_no_other_primitive_indirectly() {
    let metadata = metadata();
    let resolve = metadata.resolve.as_ref().expect("cargo metadata resolves the graph");
    let name_of: BTreeMap<_, _> =
        metadata.packages.iter().map(|package| (&package.id, package.name.as_str())).collect();

    for (name, allowed) in ALLOWED {
        let mut seen = BTreeSet::new();
        let mut queue: Vec<_> =
            metadata.packages.iter().filter(|p| p.name == *name).map(|p| &p.id).collect();
        while let Some(id) = queue.pop() {
            if !seen.insert(id) {
                continue;
            }
            let node = resolve.nodes.iter().find(|node| node.id == *id).expect("resolved node");
            queue.extend(
                node.deps
                    .iter()
                    .filter(|dep| dep.dep_kinds.iter().any(|k| k.kind == DependencyKind::Normal))
                    .map(|dep| &dep.pkg),
            );
        }
        for reached in seen.iter().filter_map(|id| name_of.get(*id)) {
            let member = law_names().contains(reached) || *reached == "crated";
            assert!(
                !member || reached == name || allowed.contains(reached),
                "{name} reaches {reached} through its dependencies"
            );
        }
    }
}

#[test]
fn no_source_file_outgrows_its_reader() {
    let long: Vec<String> = sources()
        .into_iter()
        .filter(|path| !is_test(path))
        .filter_map(|path| {
            let lines = fs::read_to_string(&path).ok()?.lines().count();
            (lines > FILE_LINES_MAX).then(|| format!("{} has {lines} lines", path.display()))
        })
        .collect();
    assert!(long.is_empty(), "split these:\n{}", long.join("\n"));
}

#[test]
fn unsafe_code_stays_in_sys_rs() {
    let marker = "allow(unsafe_code";
    for path in sources() {
        let text = fs::read_to_string(&path).expect("a tracked source is readable");
        if text.contains(marker) && !path.ends_with("daemon/tests/tidy.rs") {
            assert!(
                path.ends_with("sys.rs") || path.components().any(|c| c.as_os_str() == "tests"),
                "{} allows unsafe code; only sys.rs may",
                path.display()
            );
        }
    }
    for name in SAFE {
        let root = workspace_root().join(name).join("src");
        let lib = ["lib.rs", "main.rs"]
            .iter()
            .map(|file| root.join(file))
            .find(|path| path.exists())
            .expect("a crate has a root file");
        let text = fs::read_to_string(&lib).expect("a crate root is readable");
        let sys = root.join("sys.rs").exists();
        assert!(
            sys || text.contains("#![forbid(unsafe_code)]"),
            "{} must say #![forbid(unsafe_code)]",
            lib.display()
        );
    }
}

#[test]
fn nothing_unfinished_or_private_is_committed() {
    // Written in pieces, so that this file does not find itself.
    let forbidden = [
        concat!("to", "do!("),
        concat!("unimple", "mented!("),
        concat!("FIX", "ME"),
        concat!("/work/", "main"),
        concat!("/work/", "shared"),
        concat!("/tmp/", "target"),
    ];
    for path in sources() {
        let text = fs::read_to_string(&path).expect("a tracked source is readable");
        for (number, line) in text.lines().enumerate() {
            for word in forbidden {
                assert!(!line.contains(word), "{}:{}: {word}", path.display(), number + 1);
            }
            assert!(
                !line.trim_start().starts_with(concat!("#[", "ignore")),
                "{}:{}: a test that never runs",
                path.display(),
                number + 1
            );
        }
    }
}

#[test]
fn every_primitive_documents_itself() {
    for name in ["mount", "content", "snapshot", "exec", "netns", "distribution", "daemon/api"] {
        for file in ["README.md", "CHANGELOG.md"] {
            let path = workspace_root().join(name).join(file);
            assert!(path.exists(), "{} is missing", path.display());
        }
    }
}

fn law_names() -> BTreeSet<&'static str> {
    ALLOWED.iter().map(|(name, _)| *name).collect()
}

fn siblings(package: &Package, members: &BTreeSet<&str>) -> Vec<String> {
    package
        .dependencies
        .iter()
        .filter(|dependency| dependency.kind == DependencyKind::Normal)
        .map(|dependency| dependency.name.clone())
        .filter(|name| members.contains(name.as_str()) && *name != *package.name)
        .collect()
}

fn metadata() -> Metadata {
    MetadataCommand::new()
        .manifest_path(workspace_root().join("Cargo.toml"))
        .other_options(vec!["--locked".to_owned()])
        .exec()
        .expect("cargo metadata runs in the workspace")
}

fn workspace_root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("daemon/ has a parent").to_owned()
}

/// Every Rust source of the project, generated ones and build output left out.
fn sources() -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut queue = vec![workspace_root()];
    while let Some(folder) = queue.pop() {
        for entry in fs::read_dir(&folder).expect("a source folder is readable") {
            let path = entry.expect("a folder entry is readable").path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if path.is_dir() {
                let skipped = ["target", "gen", "corpus", "artifacts"].contains(&name.as_str());
                if !skipped && !name.starts_with('.') {
                    queue.push(path);
                }
            } else if name.ends_with(".rs") {
                found.push(path);
            }
        }
    }
    found
}

fn is_test(path: &Path) -> bool {
    path.components().any(|part| part.as_os_str() == "tests")
        || path.file_name().is_some_and(|name| name.to_string_lossy().contains("testsuite"))
        || path.components().any(|part| part.as_os_str() == "testsuite")
}
