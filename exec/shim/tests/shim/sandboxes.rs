//! A sandbox and its containers in one shim.

use std::{fs, time::Duration};

use crated_exec::{
    Error,
    proto::process::Status,
    shim::{CreateSandbox, ShimConfig, ShimSandboxes},
};

use crate::support::{World, run};

fn controller(world: &World) -> std::sync::Arc<ShimSandboxes> {
    let config = world.config();
    let config = ShimConfig {
        state_dir: world.path("sandboxes"),
        root_dir: world.path("sandboxes-root"),
        ..config
    };
    ShimSandboxes::new(config).unwrap()
}

fn sandbox(id: &str) -> CreateSandbox {
    CreateSandbox {
        namespace: "ns".into(),
        id: id.into(),
        runtime: "io.containerd.runc.v2".into(),
        netns_path: "/run/netns/box".into(),
        ..CreateSandbox::default()
    }
}

#[test]
fn a_sandbox_keeps_its_shim_until_it_is_shut_down() {
    run(|world| async move {
        let controller = controller(&world);
        let made = controller.create(sandbox("box")).await.unwrap();
        let again = controller.create(sandbox("box")).await.unwrap_err();
        assert!(matches!(again, Error::AlreadyExists(_)), "{again}");
        assert_eq!(made.status(false).await.unwrap().state, "SANDBOX_NOTREADY");
        let started = made.start().await.unwrap();
        assert!(crate::support::is_alive(started.pid));
        assert!(matches!(made.start().await, Err(Error::FailedPrecondition(_))));
        let status = made.status(true).await.unwrap();
        assert_eq!((status.pid, status.state.as_str()), (started.pid, "SANDBOX_READY"));
        assert_eq!(status.info["netns"], "/run/netns/box");
        assert_eq!(made.platform().await.unwrap().os, "linux");
        assert!(made.metrics().await.unwrap().data.is_some());

        // A new daemon finds it, and waits for its end like the old one.
        drop(controller);
        let controller = self::controller(&world);
        let found = controller.recover().await.pop().unwrap();
        let waiting = tokio::spawn({
            let found = std::sync::Arc::clone(&found);
            async move { found.wait().await }
        });
        found.stop(Duration::ZERO).await.unwrap();
        assert_eq!(waiting.await.unwrap().unwrap().status, 0);
        assert_eq!(found.status(false).await.unwrap().state, "SANDBOX_NOTREADY");
        found.shut_down().await.unwrap();
        assert!(matches!(controller.sandbox("ns", "box"), Err(Error::NotFound(_))));
        assert!(fs::read_dir(world.path("sandboxes/ns")).unwrap().next().is_none());
    });
}

#[test]
fn a_container_of_the_group_runs_in_the_shim_of_its_sandbox() {
    run(|world| async move {
        let controller = controller(&world);
        let made = controller.create(sandbox("box")).await.unwrap();
        let started = made.start().await.unwrap();

        let daemon = world.daemon();
        let mut request = world.request("member", "sleep 1000");
        let mut spec: serde_json::Value = serde_json::from_slice(&request.spec).unwrap();
        spec["annotations"]["io.containerd.runc.v2.group"] = "box".into();
        request.spec = spec.to_string().into_bytes();
        let task = daemon.create(request).await.unwrap();
        task.start("").await.unwrap();
        assert_eq!(task.connect().await.unwrap().shim_pid, started.pid);
        let refused = made.shut_down().await.unwrap_err();
        assert!(matches!(refused, Error::FailedPrecondition(_)), "{refused}");

        task.kill("", 9, true).await.unwrap();
        task.wait("").await.unwrap();
        assert_eq!(task.state("").await.unwrap().status, i32::from(Status::Stopped));
        task.delete().await.unwrap();
        // The last container has gone, and the sandbox is still there.
        assert_eq!(made.status(false).await.unwrap().state, "SANDBOX_READY");
        made.shut_down().await.unwrap();
    });
}
