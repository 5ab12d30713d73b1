//! Client and server of ttrpc against each other and against broken peers.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use crated_exec::{
    Error, Result,
    proto::task::{StateRequest, StateResponse},
    ttrpc::{Call, Client, Context, Frame, Kind, Server, Service},
};
use tokio::{io::AsyncWriteExt, net::UnixStream};

struct Echo;

#[async_trait]
impl Service for Echo {
    async fn call(&self, context: Context, method: &str, payload: &[u8]) -> Result<Vec<u8>> {
        match method {
            "Echo" => Ok(payload.to_vec()),
            "Namespace" => Err(Error::NotFound(context.namespace().unwrap_or("none").into())),
            "Never" => std::future::pending().await,
            "Huge" => Ok(vec![0; 5 << 20]),
            _ => Err(Error::Unimplemented(method.into())),
        }
    }
}

fn serve() -> (Client, tokio::task::JoinHandle<()>) {
    let (near, far) = UnixStream::pair().unwrap();
    let server = Arc::new(Server::new().service("test.Echo", Arc::new(Echo)));
    (Client::new(near), tokio::spawn(server.connection(far)))
}

fn request(id: &str) -> StateRequest {
    StateRequest { id: id.into(), exec_id: String::new() }
}

#[tokio::test]
async fn many_calls_share_a_connection_while_one_never_ends() {
    let (client, _server) = serve();
    let waiting = tokio::spawn({
        let client = client.clone();
        async move { client.call_raw("test.Echo", "Never", vec![], Call::default()).await }
    });
    let calls = (0..500).map(|n| {
        let client = client.clone();
        tokio::spawn(async move {
            let payload = vec![n as u8; n];
            let call = Call::default();
            let answer = client.call_raw("test.Echo", "Echo", payload.clone(), call).await;
            assert_eq!(answer.unwrap(), payload);
        })
    });
    for call in calls.collect::<Vec<_>>() {
        call.await.unwrap();
    }
    assert!(!waiting.is_finished());
    waiting.abort();
}

#[tokio::test]
async fn errors_keep_their_class_and_the_namespace_travels() {
    let (client, _server) = serve();
    let call = Call::in_namespace("blue");
    let answer: Result<StateResponse> =
        client.call("test.Echo", "Namespace", &request("x"), call).await;
    let error = answer.unwrap_err();
    assert!(matches!(&error, Error::NotFound(text) if text == "blue"), "{error}");
    for (service, method) in [("test.Echo", "Other"), ("test.Other", "Echo")] {
        let error = client.call_raw(service, method, vec![], Call::default()).await.unwrap_err();
        assert!(matches!(error, Error::Unimplemented(_)), "{error}");
    }
}

#[tokio::test]
async fn limits_fail_one_call_and_spare_the_connection() {
    let (client, _server) = serve();
    let short = Call::default().timeout(Duration::from_millis(20));
    let late = client.call_raw("test.Echo", "Never", vec![], short).await.unwrap_err();
    assert!(matches!(late, Error::DeadlineExceeded(_)), "{late}");
    let huge = client.call_raw("test.Echo", "Echo", vec![0; 5 << 20], Call::default()).await;
    assert!(matches!(huge.unwrap_err(), Error::ResourceExhausted(_)));
    let huge = client.call_raw("test.Echo", "Huge", vec![], Call::default()).await;
    assert!(matches!(huge.unwrap_err(), Error::ResourceExhausted(_)));
    let fine = client.call_raw("test.Echo", "Echo", vec![1], Call::default()).await;
    assert_eq!(fine.unwrap(), [1]);
}

#[tokio::test]
async fn the_end_of_a_connection_ends_every_call() {
    let (client, server) = serve();
    let waiting = tokio::spawn({
        let client = client.clone();
        async move { client.call_raw("test.Echo", "Never", vec![], Call::default()).await }
    });
    tokio::task::yield_now().await;
    server.abort();
    let ended = tokio::time::timeout(Duration::from_secs(60), waiting).await.unwrap().unwrap();
    assert!(matches!(ended.unwrap_err(), Error::Unavailable(_)));
    client.closed().await;
    let later = client.call_raw("test.Echo", "Echo", vec![], Call::default()).await;
    assert!(matches!(later.unwrap_err(), Error::Unavailable(_)));
}

#[tokio::test]
async fn a_peer_that_talks_nonsense_gets_an_answer_or_the_door() {
    let (mut near, far) = UnixStream::pair().unwrap();
    let server = Arc::new(Server::new().service("test.Echo", Arc::new(Echo)));
    let serving = tokio::spawn(server.connection(far));
    let frame = |kind, payload: &[u8]| Frame { stream: 1, kind, flags: 0, payload: payload.into() };
    for frame in
        [frame(Kind::Data, b"x"), frame(Kind::Other(9), b""), frame(Kind::Request, b"\xff")]
    {
        near.write_all(&frame.encode().unwrap()).await.unwrap();
    }
    let mut reader = crated_exec::ttrpc::FrameReader::new(&mut near);
    let answer = reader.next().await.unwrap();
    assert_eq!((answer.kind, answer.stream), (Kind::Response, 1));
    near.write_all(&[0xff, 0xff]).await.unwrap();
    drop(near);
    tokio::time::timeout(Duration::from_secs(60), serving).await.unwrap().unwrap();
}
