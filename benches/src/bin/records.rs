//! Measures how long a daemon takes to find records: get, list and filter among 10,000 images,
//! 10,000 containers and 100,000 blobs.
//!
//! `records SOCKET [make]` speaks to any daemon with containerd's API on `SOCKET`, so that two are
//! compared through one client. With `make` it first makes the records, which takes minutes;
//! `CRATED_BENCH_RECORDS` divides their number. The output is Markdown.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "printing is what it is for")]

use std::collections::BTreeMap;
use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use crated_api::Any;
use crated_api::services::containers::v1::container::Runtime;
use crated_api::services::containers::v1::containers_client::ContainersClient;
use crated_api::services::containers::v1::{
    Container, CreateContainerRequest, GetContainerRequest, ListContainersRequest,
};
use crated_api::services::content::v1::content_client::ContentClient;
use crated_api::services::content::v1::{
    InfoRequest, ListContentRequest, WriteAction, WriteContentRequest,
};
use crated_api::services::images::v1::images_client::ImagesClient;
use crated_api::services::images::v1::{
    CreateImageRequest, GetImageRequest, Image, ListImagesRequest,
};
use crated_api::types::Descriptor;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tokio::task::JoinSet;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

const NAMESPACE: &str = "bench";

/// Calls at a time while records are made.
const MAKERS: usize = 64;

/// How often each call is measured.
const RUNS: usize = 21;

/// The largest answer: lists of this many records are larger than clients take by default.
const ANSWER_BYTES_MAX: usize = 256 << 20;

fn main() -> ExitCode {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let done = runtime.map_err(Into::into).and_then(|runtime| runtime.block_on(run()));
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("records: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run() -> Outcome<()> {
    let mut arguments = std::env::args().skip(1);
    let socket: PathBuf = arguments.next().ok_or("usage: records SOCKET [make]")?.into();
    let channel = connect(socket).await?;
    let divisor = match std::env::var("CRATED_BENCH_RECORDS") {
        Ok(text) => text.parse::<usize>()?.max(1),
        Err(_) => 1,
    };
    let (images, containers, blobs) = (10_000 / divisor, 10_000 / divisor, 100_000 / divisor);
    if arguments.next().as_deref() == Some("make") {
        let begin = Instant::now();
        make(blobs, |number| content(channel.clone(), number)).await?;
        make(images, |number| image(channel.clone(), number)).await?;
        make(containers, |number| container(channel.clone(), number)).await?;
        eprintln!("made in {:.1?}", begin.elapsed());
    }
    println!("| call | records | median ms | fastest |\n|---|--:|--:|--:|");
    measure_images(&channel, images).await?;
    measure_containers(&channel, containers).await?;
    measure_content(&channel, blobs).await
}

async fn connect(socket: PathBuf) -> Outcome<Channel> {
    let dial = tower::service_fn(move |_| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    Ok(Endpoint::from_static("http://localhost").connect_with_connector(dial).await?)
}

fn call<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    let namespace = NAMESPACE.parse().expect("the namespace is plain text");
    request.metadata_mut().insert("containerd-namespace", namespace);
    request
}

/// Makes `count` records, many at a time. Those that an earlier run made are fine.
async fn make<F>(count: usize, one: impl Fn(usize) -> F) -> Outcome<()>
where
    F: Future<Output = Result<(), Status>> + Send + 'static,
{
    let mut running = JoinSet::new();
    for number in 0..count {
        if running.len() == MAKERS {
            settled(running.join_next().await)?;
        }
        running.spawn(one(number));
    }
    while !running.is_empty() {
        settled(running.join_next().await)?;
    }
    Ok(())
}

fn settled(joined: Option<Result<Result<(), Status>, tokio::task::JoinError>>) -> Outcome<()> {
    match joined {
        Some(Ok(Err(status))) if status.code() != Code::AlreadyExists => Err(status.into()),
        Some(Err(error)) => Err(error.into()),
        _ => Ok(()),
    }
}

fn marks(number: usize) -> BTreeMap<String, String> {
    let mark = |key: &str, value: String| (key.to_owned(), value);
    [
        mark("number", number.to_string()),
        mark("tenth", (number % 10).to_string()),
        // Without this the collector would take the blobs.
        mark("containerd.io/gc.root", "bench".to_owned()),
    ]
    .into()
}

async fn content(channel: Channel, number: usize) -> Result<(), Status> {
    let message = WriteContentRequest {
        action: WriteAction::Commit.into(),
        r#ref: format!("bench-{number}"),
        data: text(number).into_bytes().into(),
        labels: marks(number),
        ..WriteContentRequest::default()
    };
    let request = call(tokio_stream::iter([message]));
    let mut answers = ContentClient::new(channel).write(request).await?.into_inner();
    while answers.message().await?.is_some() {}
    Ok(())
}

fn text(number: usize) -> String {
    format!("blob {number}")
}

fn digest(number: usize) -> String {
    crated_content::Digest::of(text(number).as_bytes()).to_string()
}

async fn image(channel: Channel, number: usize) -> Result<(), Status> {
    let target = Descriptor {
        media_type: "application/vnd.oci.image.manifest.v1+json".to_owned(),
        digest: digest(number),
        size: 10,
        ..Descriptor::default()
    };
    let image = Image {
        name: format!("registry.example/image-{number}:latest"),
        labels: marks(number),
        target: Some(target),
        ..Image::default()
    };
    let request = CreateImageRequest { image: Some(image), ..CreateImageRequest::default() };
    ImagesClient::new(channel).create(call(request)).await.map(drop)
}

async fn container(channel: Channel, number: usize) -> Result<(), Status> {
    let container = Container {
        id: format!("container-{number}"),
        labels: marks(number),
        image: format!("registry.example/image-{number}:latest"),
        runtime: Some(Runtime { name: "io.containerd.runc.v2".to_owned(), options: None }),
        // As large as the specification of a small container.
        spec: Some(Any { type_url: "spec".to_owned(), value: vec![b' '; 8 << 10] }),
        ..Container::default()
    };
    let request = CreateContainerRequest { container: Some(container) };
    ContainersClient::new(channel).create(call(request)).await.map(drop)
}

async fn measure_images(channel: &Channel, count: usize) -> Outcome<()> {
    let client = ImagesClient::new(channel.clone()).max_decoding_message_size(ANSWER_BYTES_MAX);
    let get = || async {
        let name = format!("registry.example/image-{}:latest", count / 2);
        client.clone().get(call(GetImageRequest { name })).await.map(|_| 1)
    };
    print("images: get", count, 1, get).await?;
    let list = |filters: Vec<String>| {
        let mut client = client.clone();
        async move {
            let listed = client.list(call(ListImagesRequest { filters })).await?;
            Ok::<_, Status>(listed.into_inner().images.len())
        }
    };
    print("images: list", count, count, || list(Vec::new())).await?;
    let filter = || list(vec!["labels.tenth==3".to_owned()]);
    print("images: filter, a tenth matches", count, count / 10, filter).await
}

async fn measure_containers(channel: &Channel, count: usize) -> Outcome<()> {
    let client = ContainersClient::new(channel.clone()).max_decoding_message_size(ANSWER_BYTES_MAX);
    let get = || async {
        let id = format!("container-{}", count / 2);
        client.clone().get(call(GetContainerRequest { id })).await.map(|_| 1)
    };
    print("containers: get", count, 1, get).await?;
    let list = |filters: Vec<String>| {
        let mut client = client.clone();
        async move {
            let request = call(ListContainersRequest { filters });
            let mut stream = client.list_stream(request).await?.into_inner();
            let mut found = 0;
            while stream.message().await?.is_some() {
                found += 1;
            }
            Ok::<_, Status>(found)
        }
    };
    print("containers: list", count, count, || list(Vec::new())).await?;
    let filter = || list(vec!["labels.tenth==3".to_owned()]);
    print("containers: filter, a tenth matches", count, count / 10, filter).await
}

async fn measure_content(channel: &Channel, count: usize) -> Outcome<()> {
    let client = ContentClient::new(channel.clone());
    let get = || async {
        let request = InfoRequest { digest: digest(count / 2) };
        client.clone().info(call(request)).await.map(|_| 1)
    };
    print("content: info", count, 1, get).await?;
    let list = |filters: Vec<String>| {
        let mut client = client.clone();
        async move {
            let mut stream = client.list(call(ListContentRequest { filters })).await?.into_inner();
            let mut found = 0;
            while let Some(batch) = stream.message().await? {
                found += batch.info.len();
            }
            Ok::<_, Status>(found)
        }
    };
    print("content: list", count, count, || list(Vec::new())).await?;
    let filter = || list(vec!["labels.tenth==3".to_owned()]);
    print("content: filter, a tenth matches", count, count / 10, filter).await
}

/// Measures a call that is to find `expected` records, and prints a row.
async fn print<F>(name: &str, count: usize, expected: usize, one: impl Fn() -> F) -> Outcome<()>
where
    F: Future<Output = Result<usize, Status>>,
{
    let mut times = Vec::with_capacity(RUNS);
    for _ in 0..RUNS {
        let begin = Instant::now();
        let found = one().await?;
        times.push(begin.elapsed());
        if found != expected {
            return Err(format!("{name}: {found} records instead of {expected}").into());
        }
    }
    times.sort();
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    println!("| {name} | {count} | {:.2} | {:.2} |", ms(times[RUNS / 2]), ms(times[0]));
    Ok(())
}
