use std::time::SystemTime;

use crated_api::any::pack;
use crated_api::events as pb;
use prost_types::Any;

use super::*;
use crate::filters::Filters;
use crate::metadata::{Event, EventSink, Labels, Namespace, Runtime};

fn namespace(name: &str) -> Namespace {
    name.parse().unwrap()
}

fn filters(filters: &[&str]) -> Filters {
    Filters::parse(filters).unwrap()
}

fn exit(container_id: &str) -> Any {
    pack(&pb::TaskExit {
        container_id: container_id.to_owned(),
        id: "exec".to_owned(),
        pid: 7,
        ..pb::TaskExit::default()
    })
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().build().unwrap()
}

/// The topics that wait in a subscription, without waiting for more.
fn waiting(subscription: &mut Subscription) -> Vec<String> {
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    let mut topics = Vec::new();
    while let std::task::Poll::Ready(Some(Ok(envelope))) =
        futures_core::Stream::poll_next(std::pin::Pin::new(subscription), &mut context)
    {
        topics.push(envelope.topic.clone());
    }
    topics
}

#[test]
fn subscribers_get_what_passes_their_filters_in_order() {
    let exchange = Exchange::new();
    let mut docker = exchange.subscribe(filters(&["namespace==moby,topic~=|^/tasks/|"]));
    let mut all = exchange.subscribe(Filters::all());
    exchange.publish(&namespace("moby"), "/tasks/start", exit("a")).unwrap();
    exchange.publish(&namespace("default"), "/tasks/exit", exit("a")).unwrap();
    exchange.publish(&namespace("moby"), "/images/create", exit("a")).unwrap();
    exchange.publish(&namespace("moby"), "/tasks/exit", exit("a")).unwrap();
    assert_eq!(waiting(&mut docker), ["/tasks/start", "/tasks/exit"]);
    assert_eq!(waiting(&mut all).len(), 4);
    assert_eq!(waiting(&mut all).len(), 0);
    let mut late = exchange.subscribe(Filters::all());
    assert_eq!(waiting(&mut late).len(), 0, "nothing historic");
}

#[test]
fn malformed_events_reach_nobody() {
    let exchange = Exchange::new();
    let mut all = exchange.subscribe(Filters::all());
    for topic in ["", "/", "tasks", "/tasks//exit", "/tasks/?"] {
        assert!(exchange.publish(&namespace("n"), topic, exit("a")).is_err(), "{topic}");
    }
    let good = Envelope {
        timestamp: SystemTime::UNIX_EPOCH,
        namespace: "n".to_owned(),
        topic: "/tasks/exit".to_owned(),
        event: exit("a"),
    };
    for bad in [
        Envelope { namespace: String::new(), ..good.clone() },
        Envelope { namespace: "../x".to_owned(), ..good.clone() },
        Envelope { topic: "x".to_owned(), ..good.clone() },
        Envelope { timestamp: zero_time(), ..good.clone() },
    ] {
        assert!(matches!(exchange.forward(bad), Err(Error::Invalid(_))));
    }
    assert_eq!(waiting(&mut all).len(), 0);
    exchange.forward(good.clone()).unwrap();
    let got = runtime().block_on(all.next()).unwrap().unwrap();
    assert_eq!(*got, good, "forwarded unchanged");
}

#[test]
fn filters_look_into_known_events_only() {
    let exchange = Exchange::new();
    let mut one = exchange.subscribe(filters(&["event.container_id==a"]));
    let mut present = exchange.subscribe(filters(&["event.id"]));
    let mut label = exchange.subscribe(filters(&["event.labels.\"a.b/c\"==1"]));
    exchange.publish(&namespace("n"), "/tasks/exit", exit("a")).unwrap();
    exchange.publish(&namespace("n"), "/tasks/exit", exit("b")).unwrap();
    let mut unknown = exit("a");
    unknown.type_url = "some.unknown.Type".to_owned();
    exchange.publish(&namespace("n"), "/tasks/exit", unknown).unwrap();
    let mut broken = exit("a");
    broken.value = vec![0xff; 9];
    exchange.publish(&namespace("n"), "/tasks/exit", broken).unwrap();
    let labels = Labels::from([("a.b/c".to_owned(), "1".to_owned())]);
    exchange.emit(&namespace("n"), Event::ImageCreate { name: "i".to_owned(), labels });
    assert_eq!(waiting(&mut one).len(), 1);
    assert_eq!(waiting(&mut present).len(), 2);
    assert_eq!(waiting(&mut label), ["/images/create"]);
}

#[test]
fn metadata_events_have_the_names_clients_decode() {
    let exchange = Exchange::new();
    let mut all = exchange.subscribe(Filters::all());
    let (name, id) = ("name".to_owned(), "id".to_owned());
    exchange.emit(
        &namespace("n"),
        Event::ContainerCreate {
            id: id.clone(),
            image: None,
            runtime: Runtime { name: "io.containerd.runc.v2".to_owned(), options: None },
        },
    );
    exchange.emit(&namespace("n"), Event::ImageDelete { name: name.clone() });
    exchange
        .emit(&namespace("n"), Event::SnapshotPrepare { key: id, parent: None, snapshotter: name });
    let urls: Vec<_> = (0..3)
        .map(|_| runtime().block_on(all.next()).unwrap().unwrap().event.type_url.clone())
        .collect();
    assert_eq!(
        urls,
        [
            "containerd.events.ContainerCreate",
            "containerd.services.images.v1.ImageDelete",
            "containerd.events.SnapshotPrepare",
        ]
    );
}

#[test]
fn a_reader_who_leaves_is_forgotten() {
    let exchange = Exchange::new();
    let gone = exchange.subscribe(Filters::all());
    let _stays = exchange.subscribe(Filters::all());
    assert_eq!(exchange.subscriptions(), 2);
    drop(gone);
    exchange.publish(&namespace("n"), "/a", exit("a")).unwrap();
    assert_eq!(exchange.subscriptions(), 1);
}

#[test]
fn a_reader_who_is_stuck_gets_what_is_queued_and_then_the_end() {
    let exchange = Exchange::new();
    let mut stuck = exchange.subscribe(Filters::all());
    let mut lively = exchange.subscribe(filters(&["topic==\"/last\""]));
    let big = Any { type_url: "big".to_owned(), value: vec![0; 32 << 20] };
    for _ in 0..9 {
        exchange.publish(&namespace("n"), "/big", big.clone()).unwrap();
    }
    exchange.publish(&namespace("n"), "/last", exit("a")).unwrap();
    assert_eq!(exchange.subscriptions(), 1, "the stuck reader's queue is closed");
    runtime().block_on(async {
        let mut received = 0;
        loop {
            match stuck.next().await {
                Some(Ok(_)) => received += 1,
                Some(Err(error)) => {
                    assert!(matches!(error, Error::Overrun));
                    break;
                }
                None => panic!("ended without saying why"),
            }
        }
        assert_eq!(received, 7);
        assert!(stuck.next().await.is_none());
        assert_eq!(lively.next().await.unwrap().unwrap().topic, "/last");
    });
}

#[test]
fn readers_see_one_order_whoever_publishes() {
    let exchange = Exchange::new();
    let mut first = exchange.subscribe(Filters::all());
    let mut second = exchange.subscribe(Filters::all());
    std::thread::scope(|threads| {
        for thread in 0..8 {
            let exchange = exchange.clone();
            threads.spawn(move || {
                for number in 0..100 {
                    let topic = format!("/t{thread}/n{number}");
                    exchange.publish(&namespace("n"), &topic, exit("a")).unwrap();
                }
            });
        }
    });
    let topics = waiting(&mut first);
    assert_eq!(topics.len(), 800);
    assert_eq!(topics, waiting(&mut second));
}
