//! The daemon is killed at every step of making and deleting a network, and started again.

use crated_api::network as api;
use crated_api::network::operation::Change;

use crate::scratch::*;

/// Ends the daemon when it comes to the step of this name.
const CRASH_AT: &str = "CRATED_CRASH_AT";

#[test]
fn killed_at_any_step_of_a_creation_nothing_is_left() {
    scratch(|directory| async move {
        for step in ["noted", "pinned", "linked", "made", "recorded", "told"] {
            let mut daemon = Process::start(directory.path(), "", &[(CRASH_AT, step)]).await;
            let mut client = client(&daemon.channel);
            let request = container("web", "v0", "", "10.9.0.2/24");
            let error = client.apply(call(request)).await;
            assert!(error.is_err(), "{step}: the daemon goes on");
            daemon.ended().await;
            drop((client, daemon));

            let daemon = Process::start(directory.path(), "", &[]).await;
            let mut client = crate::scratch::client(&daemon.channel);
            let found = client.list_netns(call(api::ListNetnsRequest::default())).await.unwrap();
            let found = found.into_inner().netns;
            if found.is_empty() {
                until("what was made is gone", || {
                    pins(directory.path()).is_empty() && host_links().is_empty()
                })
                .await;
            } else {
                // Complete and recorded, only the answer was lost.
                assert_eq!(found[0].state(), api::State::Ready, "{step}");
                assert_eq!(step, "told", "{step} is not complete");
                delete(&mut client).await;
                until("the cable is gone", || host_links().is_empty()).await;
            }
            // The name is free, and works.
            let request = container("web", "v0", "", "10.9.0.2/24");
            client.apply(call(request)).await.unwrap();
            delete(&mut client).await;
            until("the cable is gone", || host_links().is_empty()).await;
            drop(client);
            daemon.kill();
        }
    });
}

#[test]
fn killed_at_any_step_of_making_a_link_of_the_host_it_is_gone_or_complete() {
    scratch(|directory| async move {
        for step in ["noted", "linked", "made", "recorded", "told"] {
            let mut daemon = Process::start(directory.path(), "", &[(CRASH_AT, step)]).await;
            let mut client = client(&daemon.channel);
            assert!(client.create_link(call(bridge("br0"))).await.is_err(), "{step}");
            daemon.ended().await;
            drop((client, daemon));

            let daemon = Process::start(directory.path(), "", &[]).await;
            let mut client = crate::scratch::client(&daemon.channel);
            let list = call(api::ListLinksRequest::default());
            let records = client.list_links(list).await.unwrap().into_inner().links;
            if records.is_empty() {
                until("what was made is gone", || host_links().is_empty()).await;
                assert!(!["recorded", "told"].contains(&step), "{step}: its record is gone");
                client.create_link(call(bridge("br0"))).await.unwrap();
            }
            // The record may be older than the kernel's part when the daemon is killed between.
            let delete =
                api::DeleteLinkRequest { netns: "host".into(), id: "br0".into(), etag: "".into() };
            client.delete_link(call(delete)).await.unwrap();
            until("the bridge is gone", || host_links().is_empty()).await;
            drop(client);
            daemon.kill();
        }
    });
}

#[test]
fn killed_at_any_step_of_a_deletion_it_goes_on_after_the_start() {
    scratch(|directory| async move {
        for step in ["deleting", "unpinned", "forgotten"] {
            let daemon = Process::start(directory.path(), "", &[]).await;
            let mut client = client(&daemon.channel);
            let request = container("web", "v0", "", "10.9.0.2/24");
            client.apply(call(request)).await.unwrap();
            drop(client);
            daemon.kill();

            let mut daemon = Process::start(directory.path(), "", &[(CRASH_AT, step)]).await;
            let mut client = crate::scratch::client(&daemon.channel);
            let request = api::DeleteNetnsRequest { id: "web".into(), ..Default::default() };
            assert!(client.delete_netns(call(request)).await.is_err(), "{step}");
            daemon.ended().await;
            drop((client, daemon));

            let daemon = Process::start(directory.path(), "", &[]).await;
            let mut client = crate::scratch::client(&daemon.channel);
            let deadline = std::time::Instant::now() + PATIENCE;
            loop {
                let all = client.list_netns(call(api::ListNetnsRequest::default())).await.unwrap();
                let records = all.into_inner().netns.len();
                if records == 0 && pins(directory.path()).is_empty() && host_links().is_empty() {
                    break;
                }
                assert!(std::time::Instant::now() < deadline, "{step}: {records} records are left");
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
            drop(client);
            daemon.kill();
        }
    });
}

#[test]
fn killed_while_many_are_made_only_whole_ones_are_left() {
    scratch(|directory| async move {
        let daemon = Process::start(directory.path(), "", &[]).await;
        let made = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let mut busy = Vec::new();
        for n in 0..4 {
            let (mut client, made) = (client(&daemon.channel), made.clone());
            busy.push(tokio::spawn(async move {
                for m in 0..1000 {
                    let id = format!("n{n}-{m}");
                    let request = container(&id, &format!("v{n}x{m}"), "", "10.9.0.2/24");
                    if client.apply(call(request)).await.is_err() {
                        return;
                    }
                    made.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                }
            }));
        }
        until("some are made", || made.load(std::sync::atomic::Ordering::Relaxed) >= 12).await;
        daemon.kill();
        for task in busy {
            task.await.unwrap();
        }
        let daemon = Process::start(directory.path(), "", &[]).await;
        let mut client = crate::scratch::client(&daemon.channel);
        let all = client.list_netns(call(api::ListNetnsRequest::default())).await.unwrap();
        let all = all.into_inner().netns;
        assert!(all.len() >= made.load(std::sync::atomic::Ordering::Relaxed));
        assert!(all.iter().all(|netns| netns.state() == api::State::Ready));
        until("only whole ones are left", || {
            pins(directory.path()).len() == all.len() && host_links().len() == all.len()
        })
        .await;
        let operations = all.iter().map(|netns| {
            let request = api::DeleteNetnsRequest {
                id: netns.id.clone(),
                wait_timeout_ms: Some(0),
                ..Default::default()
            };
            operation(Change::DeleteNetns(request))
        });
        let request = api::ApplyRequest { operations: operations.collect(), atomic: false };
        client.apply(call(request)).await.unwrap();
        until("all are gone", || pins(directory.path()).is_empty()).await;
    });
}

async fn delete(client: &mut api::network_client::NetworkClient<tonic::transport::Channel>) {
    let request = api::DeleteNetnsRequest { id: "web".into(), ..Default::default() };
    client.delete_netns(call(request)).await.unwrap();
}
