//! Archives: what is written is read back by us and by others, and what others write by us.

mod support;

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use bytes::Bytes;
use crated_distribution::archive::{
    ArchiveLimits, ArchiveReader, ArchiveResolver, Contents, DockerImage, Export, OciContents,
};
use crated_distribution::testsuite::Sample;
use crated_distribution::walk::{self, WalkOptions};
use crated_distribution::{
    All, Descriptor, Digest, DocumentLimits, Error, Fetcher, Hasher, ImageConfig, LayoutResolver,
    Only, Platform, Progress, Reference, Resolver as _, State, annotation, media_type,
};
use proptest::prelude::*;
use tempfile::TempDir;

use self::support::{Image, noise};

const NAME: &str = "docker.io/library/app:v1";

/// An image in a layout, and a way to read it.
struct Stored {
    _dir: TempDir,
    layout: LayoutResolver,
    fetcher: Box<dyn Fetcher>,
}

impl Stored {
    async fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let layout = LayoutResolver::open(dir.path().join("layout")).await.unwrap();
        let fetcher = layout.fetcher(&reference()).await.unwrap();
        Self { _dir: dir, layout, fetcher }
    }

    async fn with(image: &Image) -> Self {
        let stored = Self::new().await;
        image.push(&*stored.layout.pusher(&reference()).await.unwrap()).await;
        stored
    }

    async fn put(&self, kind: &str, bytes: &[u8]) -> Descriptor {
        let descriptor = Descriptor::of(kind, bytes);
        let pinned = reference().with_digest(descriptor.digest.clone());
        let pusher = self.layout.pusher(&pinned).await.unwrap();
        pusher.push(&descriptor, &Bytes::copy_from_slice(bytes)).await.unwrap();
        descriptor
    }

    async fn export(&self, export: &Export) -> Result<Vec<u8>, Error> {
        let mut out = Vec::new();
        export.write(&*self.fetcher, &mut out, &Progress::new()).await.map(|()| out)
    }
}

fn reference() -> Reference {
    NAME.parse().unwrap()
}

fn export_of(root: &Descriptor) -> Export {
    let mut export = Export::new(WalkOptions::all());
    export.image(Some(NAME), root);
    export
}

/// Everything an archive holds: what it says, and its blobs by digest and by path.
#[derive(Debug)]
struct Read {
    contents: Contents,
    blobs: BTreeMap<Digest, Bytes>,
}

impl Read {
    fn oci(&self) -> &OciContents {
        match &self.contents {
            Contents::Oci(contents) => contents,
            other => panic!("{other:?}"),
        }
    }

    fn docker(&self) -> &[DockerImage] {
        match &self.contents {
            Contents::Docker(images) => images,
            other => panic!("{other:?}"),
        }
    }
}

async fn read_with(bytes: &[u8], limits: ArchiveLimits) -> Result<Read, Error> {
    let mut archive = ArchiveReader::new(std::io::Cursor::new(bytes.to_vec()), limits);
    let mut blobs = BTreeMap::new();
    while let Some(mut blob) = archive.next().await? {
        let mut hasher = Hasher::new(blob.algorithm());
        let mut whole = Vec::new();
        while let Some(bytes) = blob.chunk().await? {
            hasher.update(&bytes);
            whole.extend_from_slice(&bytes);
        }
        assert_eq!(blob.len_bytes(), whole.len() as u64);
        let digest = hasher.finish();
        blob.stored(digest.clone())?;
        blobs.insert(digest, whole.into());
    }
    Ok(Read { contents: archive.finish().await?, blobs })
}

async fn read(bytes: &[u8]) -> Result<Read, Error> {
    read_with(bytes, ArchiveLimits::default()).await
}

/// A tar file as GNU tar would write it.
struct Tar(tar::Builder<Vec<u8>>);

impl Tar {
    fn new() -> Self {
        Self(tar::Builder::new(Vec::new()))
    }

    fn file(mut self, path: &str, bytes: impl AsRef<[u8]>) -> Self {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.as_ref().len() as u64);
        header.set_mode(0o644);
        self.0.append_data(&mut header, path, bytes.as_ref()).unwrap();
        self
    }

    fn link(mut self, kind: tar::EntryType, path: &str, target: &str) -> Self {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(0);
        self.0.append_link(&mut header, path, target).unwrap();
        self
    }

    /// A header as given, with a right checksum, and data behind it.
    fn raw(mut self, edit: impl FnOnce(&mut [u8; 512]), data: &[u8]) -> Self {
        let mut header = tar::Header::new_gnu();
        header.set_size(data.len() as u64);
        header.set_entry_type(tar::EntryType::Regular);
        header.as_mut_bytes()[..4].copy_from_slice(b"file");
        edit(header.as_mut_bytes());
        header.set_cksum();
        let inner = self.0.get_mut();
        inner.extend_from_slice(header.as_bytes());
        inner.extend_from_slice(data);
        inner.resize(inner.len().next_multiple_of(512), 0);
        self
    }

    fn done(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

const LAYOUT: &str = r#"{"imageLayoutVersion":"1.0.0"}"#;
const NO_IMAGES: &str = r#"{"schemaVersion":2,"manifests":[]}"#;

#[tokio::test]
async fn what_is_exported_is_read_back_and_always_the_same_bytes() {
    let image = Image::new(1, &[0, 1, 511, 512, 700_000]);
    let stored = Stored::with(&image).await;
    let progress = Progress::new();
    let mut first = Vec::new();
    let export = export_of(&image.root);
    export.write(&*stored.fetcher, &mut first, &progress).await.unwrap();
    assert!(progress.snapshot().iter().all(|entry| entry.state == State::Complete));
    let again = Stored::with(&image).await.export(&export).await.unwrap();
    assert!(first == again, "two exports of one image differ");

    let read = read(&first).await.unwrap();
    let root = &read.oci().index.manifests[0];
    assert_eq!((&root.digest, root.size_bytes), (&image.root.digest, image.root.size_bytes));
    assert_eq!(root.annotations[annotation::IMAGE_NAME], NAME);
    assert_eq!(root.annotations[annotation::REF_NAME], "v1");
    assert_eq!(read.blobs[&image.root.digest], image.manifest);
    for (descriptor, bytes) in &image.blobs {
        assert_eq!(read.blobs[&descriptor.digest], *bytes);
    }
    let mut names: Vec<String> = Vec::new();
    let mut entries = tar::Archive::new(&first[..]);
    for entry in entries.entries().unwrap() {
        let entry = entry.unwrap();
        assert_eq!((entry.header().mtime().unwrap(), entry.header().uid().unwrap()), (0, 0));
        names.push(String::from_utf8(entry.path_bytes().into_owned()).unwrap());
    }
    assert!(names.is_sorted(), "{names:?}");
    assert_eq!(names.len(), image.blobs.len() + 1 + 5);
}

#[tokio::test]
async fn an_archive_is_read_whatever_it_is_compressed_with() {
    let image = Image::new(2, &[300_000, 5]);
    let plain = Stored::with(&image).await.export(&export_of(&image.root)).await.unwrap();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&plain[..1000]).unwrap();
    let mut gzip = gzip.finish().unwrap();
    // A second member, as parallel compressors write them.
    let mut second = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    second.write_all(&plain[1000..]).unwrap();
    gzip.extend_from_slice(&second.finish().unwrap());
    let mut zstd = zstd::stream::encode_all(&plain[..1000], 1).unwrap();
    zstd.extend_from_slice(&zstd::stream::encode_all(&plain[1000..], 1).unwrap());
    for bytes in [&gzip, &zstd] {
        let read = read(bytes).await.unwrap();
        assert_eq!(read.oci().index.manifests[0].digest, image.root.digest);
        assert_eq!(read.blobs.len(), image.blobs.len() + 1);
        let cut = &bytes[..bytes.len() - 20];
        read_error(cut).await;
    }
    let bzip2 = read(b"BZh9...............").await.unwrap_err();
    assert!(matches!(bzip2, Error::Unsupported { .. }), "{bzip2}");
}

async fn read_error(bytes: &[u8]) -> Error {
    read(bytes).await.expect_err("must not be read")
}

#[tokio::test]
async fn a_bomb_stops_at_the_limit() {
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    let header = Tar::new().raw(|_| {}, &[]).done();
    gzip.write_all(&header).unwrap();
    for _ in 0..64 {
        gzip.write_all(&[0; 1 << 20]).unwrap();
    }
    let mut limits = ArchiveLimits::default();
    limits.total_bytes_max = 8 << 20;
    let error = read_with(&gzip.finish().unwrap(), limits).await.unwrap_err();
    assert!(matches!(error, Error::LimitExceeded { .. }), "{error}");
}

#[tokio::test]
async fn the_documents_may_come_at_any_position() {
    let blob = Bytes::from_static(b"some blob");
    let path = format!("blobs/sha256/{}", Digest::of(&blob).hex());
    let files = [("oci-layout", LAYOUT), ("index.json", NO_IMAGES), ("manifest.json", "[]")];
    for turn in 0..4 {
        let mut all: Vec<(&str, &[u8])> =
            files.iter().map(|(path, text)| (*path, text.as_bytes())).collect();
        all.push((&path, &blob));
        all.rotate_left(turn);
        let archive = all.iter().fold(Tar::new(), |tar, (path, bytes)| tar.file(path, bytes));
        let read = read(&archive.done()).await.unwrap();
        assert_eq!(read.oci().bytes, NO_IMAGES);
        assert_eq!(read.blobs[&Digest::of(&blob)], blob);
    }
}

/// What `docker save` wrote before it knew OCI: a directory per layer, links for repeated ones.
fn old_docker_archive(manifest_first: bool) -> (Vec<u8>, Bytes, Bytes) {
    let layer = Tar::new().file("etc/motd", "hello").done();
    let gzipped = {
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&layer).unwrap();
        gzip.finish().unwrap()
    };
    let diff = Digest::of(&layer).to_string();
    let config = serde_json::json!({
        "architecture": "arm64", "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [diff, diff, diff]},
    })
    .to_string();
    let manifest = serde_json::json!([{
        "Config": "0123.json", "RepoTags": ["app:v1", "r.example/team/app:v2"],
        "Layers": ["aaa/layer.tar", "bbb/layer.tar", "ccc/layer.tar"],
    }])
    .to_string();
    let mut tar = Tar::new();
    if manifest_first {
        tar = tar.file("manifest.json", &manifest);
    }
    tar = tar
        .link(tar::EntryType::Symlink, "bbb/layer.tar", "../aaa/layer.tar")
        .file("aaa/VERSION", "1.0")
        .file("./aaa/layer.tar", &layer)
        .file("ccc/layer.tar", &gzipped)
        .file("0123.json", &config)
        .file("repositories", "{}");
    if !manifest_first {
        tar = tar.file("manifest.json", &manifest);
    }
    (tar.done(), layer.into(), config.into())
}

#[tokio::test]
async fn archives_of_old_docker_become_images() {
    for manifest_first in [true, false] {
        let (archive, layer, config) = old_docker_archive(manifest_first);
        let read = read(&archive).await.unwrap();
        let [image] = read.docker() else { panic!("{:?}", read.contents) };
        assert_eq!(image.names, ["docker.io/library/app:v1", "r.example/team/app:v2"]);
        let kinds: Vec<&str> = image.layers.iter().map(|layer| &*layer.media_type).collect();
        let plain = media_type::DOCKER_LAYER;
        assert_eq!(kinds, [plain, plain, media_type::DOCKER_LAYER_GZIP]);
        assert_eq!(image.layers[0].digest, Digest::of(&layer));
        assert_eq!(image.layers[1], image.layers[0]);
        let parsed = ImageConfig::parse(config, &DocumentLimits::default()).unwrap();
        let (root, bytes) = image.manifest(&parsed).unwrap();
        assert_eq!(root.digest, Digest::of(&bytes));
        assert_eq!(root.platform, Some(Platform::parse("linux/arm64").unwrap()));
        let entries = image.entries(&root);
        assert_eq!(entries[1].annotations[annotation::IMAGE_NAME], "r.example/team/app:v2");
        assert_eq!(entries[1].annotations[annotation::REF_NAME], "v2");
        let mut fewer = image.clone();
        fewer.layers.pop();
        fewer.manifest(&parsed).unwrap_err();
    }
}

#[tokio::test]
async fn links_stay_within_the_archive_and_end() {
    let manifest = r#"[{"Config":"c","Layers":["a"]}]"#;
    let with = |links: &[(&str, &str)]| {
        let tar =
            Tar::new().file("manifest.json", manifest).file("c", "{}").file("deep/b", "layer");
        let soft = tar::EntryType::Symlink;
        links.iter().fold(tar, |tar, (path, target)| tar.link(soft, path, target)).done()
    };
    assert!(read(&with(&[("a", "deep/b")])).await.is_ok());
    assert!(read(&with(&[("a", "deep/c"), ("deep/c", "b")])).await.is_ok());
    for bad in [
        &[("a", "../deep/b")][..],
        &[("a", "/deep/b")],
        &[("a", "/etc/passwd")],
        &[("a", "deep/../../deep/b")],
        &[("a", "b"), ("b", "a")],
        &[("a", "a")],
        &[("a", "nothing")],
        &[],
    ] {
        read_error(&with(bad)).await;
    }
    let hard = tar::EntryType::Link;
    let tar = Tar::new().file("manifest.json", manifest).file("c", "{}").file("deep/b", "layer");
    assert!(read(&tar.link(hard, "a", "deep/b").done()).await.is_ok());
}

fn pax(records: &str) -> impl FnOnce(Tar) -> Tar + use<'_> {
    move |tar| tar.raw(|header| header[156] = b'x', records.as_bytes())
}

#[tokio::test]
async fn archives_that_readers_disagree_about_are_refused() {
    let whole = || Tar::new().file("oci-layout", LAYOUT).file("index.json", NO_IMAGES);
    assert!(read(&whole().done()).await.is_ok());
    assert!(read(&pax("12 size=512\n")(whole()).raw(|_| {}, &[7; 512]).done()).await.is_ok());

    // Attributes are nobody's business here, even empty ones.
    let attributes = "24 SCHILY.xattr.user.a=\n";
    assert!(read(&pax(attributes)(whole()).raw(|_| {}, b"x").done()).await.is_ok());

    let one = |edit: fn(&mut [u8; 512])| whole().raw(edit, b"data").done();
    let mut cases: Vec<(&str, Vec<u8>)> = vec![
        ("twice", whole().file("a", "1").file("./a", "2").done()),
        ("index twice", whole().file("index.json", NO_IMAGES).done()),
        ("absolute", one(|header| header[..5].copy_from_slice(b"/file"))),
        ("leaves", one(|header| header[..5].copy_from_slice(b"../fi"))),
        ("not text", one(|header| header[0] = 0xff)),
        ("empty", one(|header| header[..4].fill(0))),
        ("nothing", one(|header| header[..4].copy_from_slice(b"././"))),
        ("negative size", one(|header| header[124..136].fill(0xff))),
        ("odd digits", one(|header| header[130] = b'9')),
        ("sparse", one(|header| header[156] = b'S')),
        ("unknown type", one(|header| header[156] = b'Z')),
        ("directory with data", one(|header| header[156] = b'5')),
        ("link with data", one(|header| header[156] = b'2')),
        ("index is a link", { Tar::new().link(tar::EntryType::Symlink, "index.json", "x").done() }),
        ("global size", whole().raw(|header| header[156] = b'g', b"9 size=5\n").done()),
        ("dangling extension", pax("9 path=a\n")(whole()).done()),
        ("two long names", {
            let long = |header: &mut [u8; 512]| header[156] = b'L';
            whole().raw(long, b"a\0").raw(long, b"b\0").raw(|_| {}, b"x").done()
        }),
        ("long name and pax", {
            let tar = whole().raw(|header| header[156] = b'L', b"a\0");
            pax("9 path=b\n")(tar).raw(|_| {}, b"x").done()
        }),
        ("long name without end", {
            whole()
                .raw(
                    |header| {
                        header[156] = b'L';
                        header[124..136].copy_from_slice(b"17777777777\0");
                    },
                    b"a",
                )
                .done()
        }),
    ];
    for records in [
        "9 path=a",
        "8 path=a\n",
        "900 path=a\n",
        "99999999999999999999 path=a\n",
        "-9 path=a\n",
        "7 path=\n",
        "5 =a\n",
        "8 patha\n",
        "9 path=a\n9 path=b\n",
        "9 size=1\n9 size=2\n",
        "11 size=-1\n",
        "28 size=9223372036854775808\n",
        "22 GNU.sparse.major=1\n",
        "11 path=a\0\n",
    ] {
        cases.push((records, pax(records)(whole()).raw(|_| {}, b"x").done()));
    }
    let mut wrong_sum = whole().done();
    wrong_sum[0] ^= 1;
    cases.push(("checksum", wrong_sum));
    let mut garbage = whole().done();
    garbage.extend_from_slice(b"more");
    cases.push(("data after the end", garbage));
    for (name, archive) in cases {
        let error = read(&archive).await.expect_err(name);
        assert!(!error.is_transient() || matches!(error, Error::UnexpectedEof { .. }), "{name}");
    }
}

/// A smuggled archive: a reader that takes the size from the wrong place sees other entries.
#[tokio::test]
async fn case_43_an_archive_inside_a_file_stays_a_file() {
    let inner = Tar::new().file("oci-layout", "smuggled").done();
    let records = format!("{} size={}\n", 9 + inner.len().to_string().len(), inner.len());
    let archive = pax(&records)(Tar::new())
        .raw(|header| header[124..136].copy_from_slice(b"00000000000\0"), &inner)
        .file("oci-layout", LAYOUT)
        .file("index.json", NO_IMAGES)
        .done();
    let read = read(&archive).await.unwrap();
    assert_eq!(read.blobs.values().collect::<Vec<_>>(), [&Bytes::from(inner)]);
}

#[tokio::test]
async fn an_archive_that_was_cut_anywhere_is_not_taken_for_a_whole_one() {
    let image = Image::new(3, &[600]);
    let whole = Stored::with(&image).await.export(&export_of(&image.root)).await.unwrap();
    for len in (0..whole.len() - 1024).step_by(256) {
        read_error(&whole[..len]).await;
    }
    // One of the two empty blocks at the end is enough to know that it is one.
    assert!(read(&whole[..whole.len() - 512]).await.is_ok());
}

#[tokio::test]
async fn limits_of_archives_are_held() {
    let many = |count: usize| (0..count).fold(Tar::new(), |tar, at| tar.file(&at.to_string(), ""));
    let mut limits = ArchiveLimits::default();
    limits.entries_max = 10;
    limits.path_bytes_max = 150;
    limits.blob_bytes_max = 100;
    limits.docker_manifest_bytes_max = 100;
    for (name, archive) in [
        ("entries", many(11).done()),
        ("path", Tar::new().file(&"a/".repeat(100), "").done()),
        ("blob", Tar::new().file("a", [0; 101]).done()),
        ("manifest", Tar::new().file("manifest.json", [b' '; 101]).done()),
        ("extension", Tar::new().raw(|header| header[156] = b'x', &[b'1'; 70_000]).done()),
    ] {
        let error = read_with(&archive, limits.clone()).await.expect_err(name);
        assert!(matches!(error, Error::LimitExceeded { .. }), "{name}: {error}");
    }
    let sparse = Tar::new().raw(
        |header| {
            header[..10].copy_from_slice(b"index.json");
            header[124..136].copy_from_slice(b"\x80\0\0\0\0\0\0\x02\0\0\0\0");
        },
        b"",
    );
    let error = read_error(&sparse.done()).await;
    assert!(matches!(error, Error::LimitExceeded { .. }), "{error}");
}

#[tokio::test]
async fn documents_of_archives_are_read_strictly() {
    let docker = |text: &str| Tar::new().file("c", "{}").file("l", "x").file("manifest.json", text);
    let fine = r#"[{"Config":"c","RepoTags":null,"Layers":["l"]}]"#;
    let read_fine = read(&docker(fine).done()).await.unwrap();
    assert!(read_fine.docker()[0].names.is_empty());
    let root = Descriptor::of(media_type::DOCKER_MANIFEST, b"x");
    assert_eq!(read_fine.docker()[0].entries(&root), [root]);
    for bad in [
        "{}",
        "[",
        "[]x",
        r#"[{"Config":"c","config":"d","Layers":["l"]}]"#,
        r#"[{"Config":"c","Config":"c","Layers":["l"]}]"#,
        r#"[{"Config":"../c","Layers":["l"]}]"#,
        r#"[{"Config":"/c","Layers":["l"]}]"#,
        r#"[{"Config":"c","Layers":["missing"]}]"#,
        r#"[{"Config":"c","RepoTags":["a b"],"Layers":["l"]}]"#,
        r#"[{"Layers":["l"]}]"#,
    ] {
        read_error(&docker(bad).done()).await;
    }
    for (layout, index) in [
        (r#"{"imageLayoutVersion":"2.0.0"}"#, NO_IMAGES),
        (LAYOUT, r#"{"schemaVersion":2,"manifests":[],"layers":[]}"#),
        (LAYOUT, "[]"),
    ] {
        read_error(&Tar::new().file("oci-layout", layout).file("index.json", index).done()).await;
    }
    read_error(&Tar::new().file("oci-layout", LAYOUT).done()).await;
    let nothing = read_error(&Tar::new().file("a", "b").done()).await;
    assert!(nothing.to_string().contains("unrecognized image format"), "{nothing}");
}

#[tokio::test]
async fn blobs_that_are_not_what_their_path_promises_are_refused() {
    let path = format!("blobs/sha256/{}", Digest::of(b"right").hex());
    let archive = Tar::new().file(&path, "wrong").done();
    let error = read_error(&archive).await;
    assert!(matches!(error, Error::DigestMismatch { .. }), "{error}");
    let mut archive = ArchiveReader::new(std::io::Cursor::new(archive), ArchiveLimits::default());
    let unread = archive.next().await.unwrap().unwrap();
    unread.stored(Digest::of(b"right")).unwrap_err();
}

#[tokio::test]
async fn an_export_has_the_platforms_asked_for_and_names_the_best_for_docker() {
    let stored = Stored::new().await;
    let mut manifests = Vec::new();
    let mut samples = Vec::new();
    for (at, platform) in ["linux/amd64", "linux/arm64", "linux/riscv64"].iter().enumerate() {
        let sample = Sample::new(40 + at as u64);
        // The last one is not here, as after a pull of some platforms.
        if at < 2 {
            let pinned = reference().with_digest(sample.root.digest.clone());
            sample.push(&stored.layout, &pinned).await;
        }
        let mut entry = sample.root.clone();
        entry.platform = Some(Platform::parse(platform).unwrap());
        manifests.push(entry);
        samples.push(sample);
    }
    let index = serde_json::json!({
        "schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": manifests,
    });
    let root = stored.put(media_type::OCI_INDEX, index.to_string().as_bytes()).await;

    let arm = Only::new(&Platform::parse("linux/arm64").unwrap());
    let mut options = WalkOptions::all();
    options.platforms = Arc::new(arm.clone());
    let mut export = Export::new(options);
    export.docker_platform = Arc::new(arm);
    export.image(Some(NAME), &root).image(Some("r.example/other:v2"), &root);
    let archive = stored.export(&export).await.unwrap();
    let read_back = read(&archive).await.unwrap();
    assert_eq!(read_back.oci().index.manifests.len(), 2);
    assert!(read_back.blobs.contains_key(&root.digest));
    assert!(read_back.blobs.contains_key(&samples[1].root.digest));
    assert!(!read_back.blobs.contains_key(&samples[0].root.digest));

    export.layout = false;
    let docker = read(&stored.export(&export).await.unwrap()).await.unwrap();
    let [image] = docker.docker() else { panic!("{:?}", docker.contents) };
    assert_eq!(image.names, [NAME, "r.example/other:v2"]);
    assert!(docker.blobs.contains_key(&image.config.digest));

    export.options.platforms = Arc::new(All);
    let error = stored.export(&export).await.unwrap_err();
    assert!(error.is_not_found(), "{error}");
    let mut blob = Export::new(WalkOptions::all());
    blob.image(None, &samples[0].blobs[0].0);
    let refused = stored.export(&blob).await.unwrap_err();
    assert!(matches!(refused, Error::InvalidArgument { .. }), "{refused}");
}

#[tokio::test]
async fn layers_that_must_not_be_distributed_can_be_left_out() {
    let stored = Stored::new().await;
    let config = r#"{"architecture":"amd64","os":"linux","rootfs":{"type":"layers"}}"#;
    let config = stored.put(media_type::OCI_CONFIG, config.as_bytes()).await;
    let kind = "application/vnd.oci.image.layer.nondistributable.v1.tar";
    let layer = Descriptor::of(kind, b"not here");
    let manifest = serde_json::json!({"schemaVersion": 2, "config": config, "layers": [layer]});
    let root = stored.put(media_type::OCI_MANIFEST, manifest.to_string().as_bytes()).await;
    let mut export = export_of(&root);
    assert!(stored.export(&export).await.unwrap_err().is_not_found());
    export.skip_non_distributable = true;
    let read = read(&stored.export(&export).await.unwrap()).await.unwrap();
    assert_eq!(read.blobs.len(), 2);
}

fn run(program: &str, args: &[&str]) -> Vec<u8> {
    let output = Command::new(program).args(args).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args:?}: {stderr}");
    output.stdout
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// An image whose layers are real archives, since other programs look inside.
async fn real_image(stored: &Stored) -> (Descriptor, Vec<Descriptor>) {
    let mut layers = Vec::new();
    let mut diff_ids = Vec::new();
    for at in 0..3 {
        let layer = Tar::new().file(&format!("file-{at}"), noise(at, 100_000)).done();
        diff_ids.push(Digest::of(&layer).to_string());
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&layer).unwrap();
        layers.push(stored.put(media_type::OCI_LAYER_GZIP, &gzip.finish().unwrap()).await);
    }
    let config = serde_json::json!({
        "architecture": "amd64", "os": "linux", "config": {},
        "history": [{"created_by": "a"}, {"created_by": "b"}, {"created_by": "c"}],
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    });
    let config = stored.put(media_type::OCI_CONFIG, config.to_string().as_bytes()).await;
    let manifest = serde_json::json!({
        "schemaVersion": 2, "mediaType": media_type::OCI_MANIFEST,
        "config": config, "layers": layers,
    });
    let root = stored.put(media_type::OCI_MANIFEST, manifest.to_string().as_bytes()).await;
    layers.insert(0, config);
    (root, layers)
}

fn manifest_digest(layout: &Path) -> String {
    let index: serde_json::Value =
        serde_json::from_slice(&std::fs::read(layout.join("index.json")).unwrap()).unwrap();
    index["manifests"][0]["digest"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn skopeo_and_umoci_read_what_we_export() {
    require!("skopeo");
    require!("umoci");
    let stored = Stored::new().await;
    let (root, blobs) = real_image(&stored).await;
    let dir = TempDir::new().unwrap();
    let archive = dir.path().join("ours.tar");
    std::fs::write(&archive, stored.export(&export_of(&root)).await.unwrap()).unwrap();

    // As an OCI archive: nothing changes, digest for digest.
    let layout = dir.path().join("layout");
    let (from, to) =
        (format!("oci-archive:{}:v1", text(&archive)), format!("oci:{}:v1", text(&layout)));
    run("skopeo", &["--insecure-policy", "copy", &from, &to]);
    assert_eq!(manifest_digest(&layout), root.digest.as_str());
    for blob in &blobs {
        let copied = std::fs::read(layout.join("blobs/sha256").join(blob.digest.hex())).unwrap();
        assert_eq!(Digest::of(&copied), blob.digest);
    }
    // As a docker archive: the configuration, which is what docker calls the image, is the same.
    let from = format!("docker-archive:{}:app:v1", text(&archive));
    let config = run("skopeo", &["--insecure-policy", "inspect", "--config", "--raw", &from]);
    assert_eq!(Digest::of(&config), blobs[0].digest);

    let unpacked = dir.path().join("unpacked");
    std::fs::create_dir(&unpacked).unwrap();
    run("tar", &["-xf", text(&archive), "-C", text(&unpacked)]);
    let image = format!("{}:v1", text(&unpacked));
    let stat = run("umoci", &["stat", "--image", &image, "--json"]);
    let stat: serde_json::Value = serde_json::from_slice(&stat).unwrap();
    assert!(stat.to_string().contains(blobs[1].digest.as_str()), "{stat}");
}

#[tokio::test]
async fn we_read_what_skopeo_and_umoci_write() {
    require!("skopeo");
    require!("umoci");
    let stored = Stored::new().await;
    let (root, blobs) = real_image(&stored).await;
    let dir = TempDir::new().unwrap();
    let ours = dir.path().join("ours.tar");
    std::fs::write(&ours, stored.export(&export_of(&root)).await.unwrap()).unwrap();
    let from = format!("oci-archive:{}:v1", text(&ours));

    let oci = dir.path().join("oci.tar");
    let to = format!("oci-archive:{}:v1", text(&oci));
    run("skopeo", &["--insecure-policy", "copy", &from, &to]);
    let theirs = read(&std::fs::read(&oci).unwrap()).await.unwrap();
    assert_eq!(theirs.oci().index.manifests[0].digest, root.digest);
    assert!(blobs.iter().all(|blob| theirs.blobs.contains_key(&blob.digest)));

    let docker = dir.path().join("docker.tar");
    let to = format!("docker-archive:{}:app:v1", text(&docker));
    run("skopeo", &["--insecure-policy", "copy", &from, &to]);
    let theirs = read(&std::fs::read(&docker).unwrap()).await.unwrap();
    let [image] = theirs.docker() else { panic!("{:?}", theirs.contents) };
    assert_eq!(
        (&image.names[..], &image.config.digest),
        (&[NAME.to_owned()][..], &blobs[0].digest)
    );
    let config = theirs.blobs[&image.config.digest].clone();
    let config = ImageConfig::parse(config, &DocumentLimits::default()).unwrap();
    let diff_ids: Vec<&Digest> = image.layers.iter().map(|layer| &layer.digest).collect();
    assert_eq!(diff_ids, config.diff_ids.iter().collect::<Vec<_>>());
    image.manifest(&config).unwrap();

    // umoci writes layouts; packed as they are, they are archives.
    let layout = dir.path().join("layout");
    run("umoci", &["init", "--layout", text(&layout)]);
    run("umoci", &["new", "--image", &format!("{}:v9", text(&layout))]);
    let packed = dir.path().join("umoci.tar");
    run("tar", &["-cf", text(&packed), "-C", text(&layout), "."]);
    let theirs = read(&std::fs::read(&packed).unwrap()).await.unwrap();
    let image = &theirs.oci().index.manifests[0];
    assert_eq!(image.annotations[annotation::REF_NAME], "v9");
    assert!(theirs.blobs.contains_key(&image.digest));
}

#[tokio::test]
async fn an_archive_on_disk_is_a_place_to_copy_from() {
    let image = Image::new(4, &[300_000, 0, 7]);
    let stored = Stored::with(&image).await;
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("image.tar");
    let exported = stored.export(&export_of(&image.root)).await.unwrap();
    std::fs::write(&path, &exported).unwrap();
    let archive = ArchiveResolver::open(&path, ArchiveLimits::default()).await.unwrap();
    assert_eq!(archive.roots().len(), 1);
    let resolved = archive.resolve(&reference()).await.unwrap();
    assert_eq!(resolved.descriptor.digest, image.root.digest);
    let absent = archive.resolve(&"r.example/a:b".parse().unwrap()).await.unwrap_err();
    assert!(absent.is_not_found(), "{absent}");
    archive.pusher(&reference()).await.map(drop).unwrap_err();

    let fetcher: Arc<dyn Fetcher> = archive.fetcher(&reference()).await.unwrap().into();
    let (layer, bytes) = &image.blobs[1];
    let rest = fetcher.fetch(layer, 299_000).await.unwrap().collect(1 << 20).await.unwrap();
    assert_eq!(rest, bytes.slice(299_000..));
    fetcher.fetch(layer, 300_001).await.map(drop).unwrap_err();
    let copy = Stored::new().await;
    let pusher = copy.layout.pusher(&reference()).await.unwrap();
    let root = &resolved.descriptor;
    walk::copy(fetcher, &*pusher, root, &WalkOptions::all(), &Progress::new()).await.unwrap();
    for (descriptor, bytes) in &image.blobs {
        let copied = copy.fetcher.fetch(descriptor, 0).await.unwrap();
        assert_eq!(copied.collect(1 << 20).await.unwrap(), *bytes);
    }

    std::fs::write(&path, zstd::stream::encode_all(&exported[..], 1).unwrap()).unwrap();
    let error = ArchiveResolver::open(&path, ArchiveLimits::default()).await.unwrap_err();
    assert!(matches!(error, Error::Unsupported { .. }), "{error}");
}

#[tokio::test]
async fn a_docker_archive_on_disk_has_the_manifests_it_lacks() {
    let (archive, layer, config) = old_docker_archive(false);
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("image.tar");
    std::fs::write(&path, archive).unwrap();
    let archive = ArchiveResolver::open(&path, ArchiveLimits::default()).await.unwrap();
    let root = archive.resolve(&reference()).await.unwrap().descriptor;
    let fetcher = archive.fetcher(&reference()).await.unwrap();
    let nodes = walk::walk(&*fetcher, &root, &WalkOptions::all()).await.unwrap();
    let digests: Vec<&Digest> = nodes.iter().map(|node| &node.descriptor.digest).collect();
    assert_eq!(digests[..3], [&root.digest, &Digest::of(&config), &Digest::of(&layer)]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn damaged_archives_never_panic(
        damage in proptest::collection::vec((0_usize..6_000, any::<u8>()), 1..8),
    ) {
        let mut archive = old_docker_archive(true).0;
        for (at, byte) in damage {
            let at = at % archive.len();
            archive[at] = byte;
        }
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let _ = runtime.block_on(read(&archive));
    }
}
