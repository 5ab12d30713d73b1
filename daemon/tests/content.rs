//! The content service through the socket: the write protocol and its traps.

mod common;

use common::{Fixture, in_namespace, labels, mask, with_lease};
use crated_api::services::content::v1::{
    AbortRequest, DeleteContentRequest, Info, InfoRequest, ListContentRequest, ListStatusesRequest,
    ReadContentRequest, StatusRequest, UpdateRequest, WriteAction, WriteContentRequest,
    WriteContentResponse,
};
use crated_api::services::leases::v1::leases_client::LeasesClient;
use crated_api::services::leases::v1::{CreateRequest, ListResourcesRequest};
use crated_content::Digest;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Status, Streaming};

/// A write under way.
struct Write {
    messages: mpsc::Sender<WriteContentRequest>,
    answers: Streaming<WriteContentResponse>,
}

impl Write {
    async fn begin(daemon: &Fixture, headers: Request<()>) -> Self {
        let (messages, receiver) = mpsc::channel(1);
        let (metadata, extensions, ()) = headers.into_parts();
        let request = Request::from_parts(metadata, extensions, ReceiverStream::new(receiver));
        let answers = daemon.content().write(request).await.unwrap().into_inner();
        Self { messages, answers }
    }

    async fn send(&mut self, message: WriteContentRequest) -> Result<WriteContentResponse, Status> {
        // A stream that ended already takes no more messages; its answer tells why.
        let _ = self.messages.send(message).await;
        self.answers.message().await.map(|answer| answer.expect("one answer per message"))
    }

    /// Ends the stream and waits until the daemon has ended it too.
    async fn end(self) {
        let Self { messages, mut answers } = self;
        drop(messages);
        while let Ok(Some(_)) = answers.message().await {}
    }
}

fn message(action: WriteAction, reference: &str, offset: i64, data: &str) -> WriteContentRequest {
    WriteContentRequest {
        action: action.into(),
        r#ref: reference.into(),
        offset,
        data: data.as_bytes().to_vec().into(),
        ..WriteContentRequest::default()
    }
}

fn namespace(name: &str) -> Request<()> {
    in_namespace(name, ())
}

async fn read(daemon: &Fixture, digest: &str, offset: i64, size: i64) -> Result<Vec<u8>, Status> {
    let request = ReadContentRequest { digest: digest.into(), offset, size };
    let mut stream = daemon.content().read(in_namespace("n", request)).await?.into_inner();
    let mut data = Vec::new();
    while let Some(message) = stream.message().await? {
        assert_eq!(message.offset, data.len() as i64, "offsets count from the start of the read");
        assert!(message.data.len() <= 1 << 20);
        data.extend_from_slice(&message.data);
    }
    Ok(data)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_is_written_in_pieces_and_read_back() {
    let daemon = Fixture::start().await;
    let mut write = Write::begin(&daemon, namespace("n")).await;
    let stat = write.send(message(WriteAction::Stat, "r 1:@", 0, "")).await.unwrap();
    assert_eq!((stat.offset, stat.action), (0, WriteAction::Stat.into()));
    assert!(stat.started_at.is_some());
    let first = write.send(message(WriteAction::Write, "r 1:@", 0, "hello ")).await.unwrap();
    assert_eq!((first.offset, first.digest), (6, Digest::of(b"hello ").to_string()));
    let commit = WriteContentRequest {
        total: 11,
        expected: Digest::of(b"hello world").to_string(),
        labels: labels(&[("k", "v"), ("empty", "")]),
        ..message(WriteAction::Commit, "r 1:@", 6, "world")
    };
    let done = write.send(commit).await.unwrap();
    let digest = Digest::of(b"hello world").to_string();
    assert_eq!((done.offset, done.digest.as_str()), (11, digest.as_str()));
    assert!(write.answers.message().await.unwrap().is_none(), "a commit ends the stream");

    let info = InfoRequest { digest: digest.clone() };
    let info = daemon.content().info(in_namespace("n", info)).await.unwrap().into_inner();
    let info = info.info.unwrap();
    assert_eq!((info.size, info.labels), (11, labels(&[("k", "v")])));
    assert_eq!(read(&daemon, &digest, 0, 0).await.unwrap(), b"hello world");
    assert_eq!(read(&daemon, &digest, 6, 3).await.unwrap(), b"wor");
    assert_eq!(read(&daemon, &digest, -4, 99).await.unwrap(), b"hello world");
    assert_eq!(read(&daemon, &digest, 11, 1).await.unwrap(), b"");
    assert_eq!(read(&daemon, &digest, 12, 1).await.unwrap_err().code(), Code::OutOfRange);
}

#[tokio::test(flavor = "multi_thread")]
async fn large_blobs_come_in_chunks_in_order() {
    let daemon = Fixture::start().await;
    let data: Vec<u8> = (0..5_000_001_u32).map(|n| (n % 251) as u8).collect();
    let digest = daemon.store("n", &data).await;
    assert!(read(&daemon, &digest, 0, 0).await.unwrap() == data);
    assert!(
        read(&daemon, &digest, 1_000_000, 3_000_000).await.unwrap() == data[1_000_000..4_000_000]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_write_resumes_at_once_and_keeps_its_digest() {
    let daemon = Fixture::start().await;
    let mut write = Write::begin(&daemon, namespace("n")).await;
    write.send(message(WriteAction::Write, "r", 0, "first ")).await.unwrap();
    write.end().await;

    // The reference is free the moment the stream has ended.
    let mut write = Write::begin(&daemon, namespace("n")).await;
    let stat = write.send(message(WriteAction::Stat, "r", 0, "")).await.unwrap();
    assert_eq!((stat.offset, stat.digest), (6, Digest::of(b"first ").to_string()));
    write.end().await;

    let daemon = daemon.restart().await;
    let mut write = Write::begin(&daemon, namespace("n")).await;
    let stat = write.send(message(WriteAction::Stat, "r", 0, "")).await.unwrap();
    assert_eq!(stat.offset, 6);
    let done = write.send(message(WriteAction::Commit, "r", 6, "second")).await.unwrap();
    assert_eq!(done.digest, Digest::of(b"first second").to_string());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reference_has_one_writer_at_a_time() {
    let daemon = Fixture::start().await;
    let mut first = Write::begin(&daemon, namespace("n")).await;
    first.send(message(WriteAction::Write, "r", 0, "mine")).await.unwrap();
    let mut second = Write::begin(&daemon, namespace("n")).await;
    let locked = second.send(message(WriteAction::Stat, "r", 0, "")).await.unwrap_err();
    assert_eq!(locked.code(), Code::Unavailable, "{locked}");
    let mut elsewhere = Write::begin(&daemon, namespace("other")).await;
    elsewhere.send(message(WriteAction::Stat, "r", 0, "")).await.unwrap();

    // A client that vanishes leaves the reference free, though nobody says when.
    drop(first);
    for _ in 0..200 {
        let mut third = Write::begin(&daemon, namespace("n")).await;
        match third.send(message(WriteAction::Stat, "r", 0, "")).await {
            Ok(stat) => {
                assert_eq!(stat.offset, 4, "bytes of a cancelled write stay");
                return;
            }
            Err(error) => assert_eq!(error.code(), Code::Unavailable, "{error}"),
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    panic!("the reference of a vanished client stays locked");
}

#[tokio::test(flavor = "multi_thread")]
async fn offsets_are_held_to_and_zero_starts_over() {
    let daemon = Fixture::start().await;
    let mut write = Write::begin(&daemon, namespace("n")).await;
    write.send(message(WriteAction::Write, "r", 0, "wrong")).await.unwrap();
    let over = write.send(message(WriteAction::Write, "r", 0, "right")).await.unwrap();
    assert_eq!((over.offset, over.digest), (5, Digest::of(b"right").to_string()));
    let wrong = write.send(message(WriteAction::Write, "r", 3, "x")).await.unwrap_err();
    assert_eq!(wrong.code(), Code::OutOfRange);

    let mut write = Write::begin(&daemon, namespace("n")).await;
    let stat = write.send(message(WriteAction::Stat, "r", 0, "")).await.unwrap();
    assert_eq!(stat.offset, 5, "a refused message loses nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_breaks_its_promise_keeps_the_ingest() {
    let daemon = Fixture::start().await;
    for (total, expected) in [(99, String::new()), (0, Digest::of(b"other").to_string())] {
        let mut write = Write::begin(&daemon, namespace("n")).await;
        let promise = WriteContentRequest {
            total,
            expected,
            ..message(WriteAction::Commit, "r", 0, "bytes")
        };
        let error = write.send(promise).await.unwrap_err();
        assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
        write.end().await;
        let status = StatusRequest { r#ref: "r".into() };
        let status = daemon.content().status(in_namespace("n", status)).await.unwrap();
        assert_eq!(status.into_inner().status.unwrap().r#ref, "r");
        let abort = AbortRequest { r#ref: "r".into() };
        daemon.content().abort(in_namespace("n", abort.clone())).await.unwrap();
        let gone = daemon.content().abort(in_namespace("n", abort)).await.unwrap_err();
        assert_eq!(gone.code(), Code::NotFound);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_existing_blob_ends_the_write_and_joins_the_lease() {
    let daemon = Fixture::start().await;
    let digest = daemon.store("n", b"there").await;
    let mut leases = LeasesClient::new(daemon.channel.clone());
    for (id, stage) in [("at-open", 0), ("at-commit", 1)] {
        let create = CreateRequest { id: id.into(), ..Default::default() };
        leases.create(in_namespace("n", create)).await.unwrap();
        let mut write = Write::begin(&daemon, with_lease("n", id, ())).await;
        if stage == 1 {
            write.send(message(WriteAction::Write, id, 0, "the")).await.unwrap();
        }
        let again = WriteContentRequest {
            expected: digest.clone(),
            ..message(WriteAction::Stat, id, 0, "")
        };
        let error = write.send(again).await.unwrap_err();
        assert_eq!(error.code(), Code::AlreadyExists, "{error}");
        let held = ListResourcesRequest { id: id.into() };
        let held = leases.list_resources(in_namespace("n", held)).await.unwrap().into_inner();
        let held: Vec<_> = held.resources.iter().map(|held| held.id.as_str()).collect();
        assert_eq!(held, [digest.as_str()], "{id}");
    }
    let statuses = ListStatusesRequest { filters: vec![String::new()] };
    let statuses = daemon.content().list_statuses(in_namespace("n", statuses)).await.unwrap();
    assert!(statuses.into_inner().statuses.is_empty(), "needless ingests are gone");
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_of_another_namespace_need_not_be_sent_again() {
    let daemon = Fixture::start().await;
    let digest = daemon.store("one", b"shared bytes").await;
    let missing = InfoRequest { digest: digest.clone() };
    let missing = daemon.content().info(in_namespace("two", missing)).await.unwrap_err();
    assert_eq!(missing.code(), Code::NotFound, "another namespace does not see it");

    let mut write = Write::begin(&daemon, namespace("two")).await;
    let open = WriteContentRequest {
        total: 12,
        expected: digest.clone(),
        ..message(WriteAction::Stat, "r", 0, "")
    };
    let stat = write.send(open).await.unwrap();
    assert_eq!(stat.offset, 12, "all bytes are there");
    let commit = WriteContentRequest {
        total: 12,
        expected: digest.clone(),
        ..message(WriteAction::Commit, "r", 12, "")
    };
    let done = write.send(commit).await.unwrap();
    assert_eq!((done.offset, done.digest), (12, digest));
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_requests_leave_nothing_behind() {
    let daemon = Fixture::start().await;
    let cases = [
        (namespace("n"), message(WriteAction::Stat, "", 0, ""), Code::InvalidArgument),
        (with_lease("n", "nope", ()), message(WriteAction::Stat, "r", 0, ""), Code::NotFound),
        (
            namespace("n"),
            WriteContentRequest {
                expected: "md5:1".into(),
                ..message(WriteAction::Stat, "r", 0, "")
            },
            Code::InvalidArgument,
        ),
    ];
    for (headers, first, code) in cases {
        let mut write = Write::begin(&daemon, headers).await;
        let error = write.send(first).await.unwrap_err();
        assert_eq!(error.code(), code, "{error}");
    }
    let statuses = ListStatusesRequest::default();
    let statuses = daemon.content().list_statuses(in_namespace("n", statuses)).await.unwrap();
    assert!(statuses.into_inner().statuses.is_empty());
    let request = Request::new(tokio_stream::iter([message(WriteAction::Stat, "r", 0, "")]));
    let nowhere = daemon.content().write(request).await.unwrap_err();
    assert_eq!(nowhere.code(), Code::FailedPrecondition);
}

#[tokio::test(flavor = "multi_thread")]
async fn labels_merge_by_key_and_are_replaced_as_a_whole() {
    let daemon = Fixture::start().await;
    let digest = daemon.store("n", b"labelled").await;
    let update = |pairs: &[(&str, &str)], paths: &[&str]| {
        let info = Info { digest: digest.clone(), labels: labels(pairs), ..Info::default() };
        in_namespace("n", UpdateRequest { info: Some(info), update_mask: mask(paths) })
    };
    let updated = daemon.content().update(update(&[("a", "1"), ("b", "2")], &["labels"])).await;
    assert_eq!(
        updated.unwrap().into_inner().info.unwrap().labels,
        labels(&[("a", "1"), ("b", "2")])
    );
    let key = "labels.containerd.io/gc.ref.content.0";
    let pairs = [("containerd.io/gc.ref.content.0", "sha256:x"), ("ignored", "y")];
    daemon.content().update(update(&pairs, &[key, "labels.b"])).await.unwrap();
    let filter = r#"labels."containerd.io/gc.ref.content.0"==sha256:x"#.to_owned();
    let list = ListContentRequest { filters: vec![filter] };
    let mut list = daemon.content().list(in_namespace("n", list)).await.unwrap().into_inner();
    let found = list.message().await.unwrap().unwrap().info;
    let expected = labels(&[("a", "1"), ("containerd.io/gc.ref.content.0", "sha256:x")]);
    assert_eq!(found[0].labels, expected);
    assert!(list.message().await.unwrap().is_none());

    let bad = daemon.content().update(update(&[], &["size"])).await.unwrap_err();
    assert_eq!(bad.code(), Code::InvalidArgument);
    let long = "x".repeat(4097);
    let bad = daemon.content().update(update(&[("k", &long)], &["labels"])).await.unwrap_err();
    assert_eq!(bad.code(), Code::InvalidArgument);
    let unknown = Info { digest: Digest::of(b"none").to_string(), ..Info::default() };
    let unknown = UpdateRequest { info: Some(unknown), update_mask: mask(&["labels.a"]) };
    let unknown = daemon.content().update(in_namespace("n", unknown)).await.unwrap_err();
    assert_eq!(unknown.code(), Code::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_come_in_batches_and_deletes_are_seen_at_once() {
    let daemon = Fixture::start().await;
    let mut digests = Vec::new();
    for length in 1..=120 {
        digests.push(daemon.store("n", &vec![b'x'; length]).await);
    }
    let list = in_namespace("n", ListContentRequest::default());
    let mut list = daemon.content().list(list).await.unwrap().into_inner();
    let mut sizes = Vec::new();
    while let Some(message) = list.message().await.unwrap() {
        sizes.push(message.info.len());
    }
    assert_eq!(sizes, [100, 20]);

    let delete = DeleteContentRequest { digest: digests[0].clone() };
    daemon.content().delete(in_namespace("n", delete.clone())).await.unwrap();
    let again = daemon.content().delete(in_namespace("n", delete)).await.unwrap_err();
    assert_eq!(again.code(), Code::NotFound);
    assert_eq!(read(&daemon, &digests[0], 0, 0).await.unwrap_err().code(), Code::NotFound);
}
