//! What several test files need: a real registry, certificates, a token server, an image.

#![allow(dead_code, reason = "each test file uses a part")]

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use crated_distribution::{
    Descriptor, Manifest, Pusher, Reference, RegistryOptions, RegistryResolver, Resolver,
    media_type,
};
use tempfile::TempDir;

pub(crate) mod hostile;
pub(crate) mod token_server;

/// The registry program of the distribution project.
pub(crate) const REGISTRY: &str = "docker-registry";

/// Skips a test that needs a program which is missing; under CI that is a failure.
#[macro_export]
macro_rules! require {
    ($program:expr) => {
        if !$crate::support::is_installed($program) {
            let missing = format!("{} is not installed", $program);
            assert!(std::env::var("CI").as_deref() != Ok("true"), "{missing}");
            println!("skipped: {missing}");
            return;
        }
    };
}

pub(crate) fn is_installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(program).is_file())
}

/// A running registry with its storage; stopped when dropped.
pub(crate) struct Registry {
    child: Child,
    pub(crate) dir: TempDir,
    pub(crate) port: u16,
}

impl Registry {
    /// Starts one; `extra` is YAML at the top level, `http` YAML inside the `http` section.
    pub(crate) fn start_with(dir: TempDir, http: &str, extra: &str) -> Self {
        Self::launch(dir, "", http, extra)
    }

    /// Stops it and starts one that only reads, with the same content.
    pub(crate) fn into_read_only(mut self) -> Self {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let dir = std::mem::replace(&mut self.dir, TempDir::new().unwrap());
        Self::launch(dir, "  maintenance:\n    readonly:\n      enabled: true\n", "", "")
    }

    /// `storage` is YAML inside the `storage` section, indented.
    fn launch(dir: TempDir, storage_extra: &str, http: &str, extra: &str) -> Self {
        let indented =
            |text: &str| text.lines().map(|line| format!("  {line}\n")).collect::<String>();
        for _ in 0..10 {
            let port = free_port();
            let storage = dir.path().join("storage");
            let config = format!(
                "version: 0.1\nlog:\n  level: error\nstorage:\n  delete:\n    enabled: true\n  \
                 filesystem:\n    rootdirectory: {}\n{storage_extra}http:\n  addr: 127.0.0.1:{port}\n{}{extra}",
                storage.display(),
                indented(http),
            );
            let file = dir.path().join("config.yml");
            std::fs::write(&file, config).unwrap();
            let mut child = Command::new(REGISTRY)
                .arg("serve")
                .arg(&file)
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            if wait_for(&mut child, port) {
                return Self { child, dir, port };
            }
            let _ = child.kill();
            let _ = child.wait();
        }
        panic!("the registry did not start");
    }

    pub(crate) fn start() -> Self {
        Self::start_with(TempDir::new().unwrap(), "", "")
    }

    pub(crate) fn reference(&self, rest: &str) -> Reference {
        format!("127.0.0.1:{}/{rest}", self.port).parse().unwrap()
    }

    pub(crate) fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn wait_for(child: &mut Child, port: u16) -> bool {
    let deadline = Instant::now() + Duration::from_secs(20);
    while Instant::now() < deadline {
        if child.try_wait().unwrap().is_some() {
            return false;
        }
        if std::net::TcpStream::connect(("127.0.0.1", port)).is_ok() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    false
}

/// A certificate authority and server certificates for 127.0.0.1, in a directory.
pub(crate) struct Certificates {
    pub(crate) dir: TempDir,
}

impl Certificates {
    pub(crate) fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let made = Self { dir };
        made.openssl(&[
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-keyout",
            "ca.key",
            "-out",
            "ca.pem",
            "-days",
            "30",
            "-subj",
            "/CN=test authority",
            "-addext",
            "basicConstraints=critical,CA:TRUE",
            "-addext",
            "keyUsage=critical,keyCertSign",
        ]);
        made.issue("server", "subjectAltName=IP:127.0.0.1,DNS:localhost", "30");
        made
    }

    /// Issues `<name>.pem` and `<name>.key`.
    pub(crate) fn issue(&self, name: &str, extension: &str, days: &str) {
        let extensions = self.path(&format!("{name}.ext"));
        std::fs::write(&extensions, format!("{extension}\n")).unwrap();
        let (key, csr, pem) = (format!("{name}.key"), format!("{name}.csr"), format!("{name}.pem"));
        self.openssl(&[
            "req",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-keyout",
            &key,
            "-out",
            &csr,
            "-subj",
            &format!("/CN={name}"),
        ]);
        self.openssl(&[
            "x509",
            "-req",
            "-in",
            &csr,
            "-CA",
            "ca.pem",
            "-CAkey",
            "ca.key",
            "-CAcreateserial",
            "-out",
            &pem,
            "-days",
            days,
            "-extfile",
            extensions.to_str().unwrap(),
        ]);
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn read(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.path(name)).unwrap()
    }

    fn openssl(&self, args: &[&str]) {
        let output =
            Command::new("openssl").args(args).current_dir(self.dir.path()).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

/// A small image: a configuration, layers, a manifest over them.
pub(crate) struct Image {
    pub(crate) manifest: Bytes,
    pub(crate) root: Descriptor,
    pub(crate) blobs: Vec<(Descriptor, Bytes)>,
}

impl Image {
    /// Layers of these sizes with content that depends on `seed`.
    pub(crate) fn new(seed: u64, layer_sizes: &[usize]) -> Self {
        let layers: Vec<(Descriptor, Bytes)> = layer_sizes
            .iter()
            .enumerate()
            .map(|(at, size)| {
                let bytes = noise(seed * 1000 + at as u64, *size);
                (Descriptor::of(media_type::OCI_LAYER_GZIP, &bytes), bytes)
            })
            .collect();
        let diff_ids: Vec<_> = layers.iter().map(|(layer, _)| layer.digest.to_string()).collect();
        let config = Bytes::from(
            serde_json::json!({
                "architecture": "amd64", "os": "linux", "created_by": seed,
                "rootfs": {"type": "layers", "diff_ids": diff_ids},
            })
            .to_string(),
        );
        let config_descriptor = Descriptor::of(media_type::OCI_CONFIG, &config);
        let manifest = Manifest {
            schema_version: 2,
            media_type: Some(media_type::OCI_MANIFEST.into()),
            artifact_type: None,
            config: config_descriptor.clone(),
            layers: layers.iter().map(|(layer, _)| layer.clone()).collect(),
            subject: None,
            annotations: BTreeMap::new(),
        };
        let manifest = Bytes::from(serde_json::to_vec(&manifest).unwrap());
        let root = Descriptor::of(media_type::OCI_MANIFEST, &manifest);
        let mut blobs = vec![(config_descriptor, config)];
        blobs.extend(layers);
        Self { manifest, root, blobs }
    }

    pub(crate) async fn push(&self, pusher: &dyn Pusher) {
        for (descriptor, bytes) in &self.blobs {
            pusher.push(descriptor, bytes).await.unwrap();
        }
        pusher.push(&self.root, &self.manifest).await.unwrap();
    }

    /// Resolves, fetches and compares every byte.
    pub(crate) async fn assert_pulls(&self, resolver: &RegistryResolver, reference: &Reference) {
        let resolved = resolver.resolve(reference).await.unwrap();
        assert_eq!(resolved.descriptor.digest, self.root.digest);
        assert_eq!(resolved.descriptor.size_bytes, self.root.size_bytes);
        assert_eq!(resolved.descriptor.media_type, self.root.media_type);
        let fetcher = resolver.fetcher(reference).await.unwrap();
        let whole = [(self.root.clone(), self.manifest.clone())];
        for (descriptor, bytes) in whole.iter().chain(&self.blobs) {
            let body = fetcher.fetch(descriptor, 0).await.unwrap();
            let verifier = crated_distribution::Verifier::new(body, descriptor).unwrap();
            assert_eq!(verifier.collect(1 << 30).await.unwrap(), *bytes);
        }
    }
}

/// Bytes that do not compress and differ by seed.
pub(crate) fn noise(seed: u64, len: usize) -> Bytes {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes.into()
}

pub(crate) fn resolver(options: RegistryOptions) -> RegistryResolver {
    RegistryResolver::new(options).unwrap()
}

pub(crate) fn arc<T>(value: T) -> Arc<T> {
    Arc::new(value)
}

pub(crate) fn exists(path: &Path) -> bool {
    path.exists()
}
