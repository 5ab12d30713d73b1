//! Prints what happens in all namespaces while a second thread makes, changes
//! and deletes one.
//!
//! `unshare -n -m cargo run --example watch`

#![allow(clippy::print_stdout, reason = "an example shows what it did")]

use std::time::Duration;

use crated_netns::{
    Error, EventKind, LinkChange, LinkKind, LinkSpec, NetnsRoot, NetnsSpec, PeerSpec, Propagation,
};

fn main() -> Result<(), Error> {
    let dir = std::env::temp_dir().join("crated-netns-watch");
    let root = NetnsRoot::open(dir, Propagation::Private)?;
    // First listen, then act: nothing can be missed.
    let mut monitor = root.monitor()?;
    let actor = std::thread::spawn(move || -> Result<(), Error> {
        let web = root.create(&"web".parse()?, &NetnsSpec::default())?;
        let cable = LinkKind::Veth { peer: PeerSpec::on_host("watch0".parse()?) };
        let name = "eth0".parse()?;
        let eth0 = LinkSpec::new("eth0".parse()?, cable).address("10.9.0.2/24".parse()?).up();
        web.create_link(&eth0)?;
        web.change_link(&name, &LinkChange { mtu: Some(1300), ..LinkChange::default() })?;
        std::thread::sleep(Duration::from_millis(100));
        web.delete(&Default::default())?;
        Ok(())
    });
    while let Some(event) = monitor.wait(Some(Duration::from_millis(500)))? {
        let text = match &event.kind {
            EventKind::LinkNew(link) => format!("link {} made", link.ifname),
            EventKind::LinkChanged(link) => format!("link {} mtu {}", link.ifname, link.mtu),
            EventKind::LinkGone { link, .. } => format!("link {} gone", link.ifname),
            EventKind::AddrAdded { addr, .. } => format!("address {addr} added"),
            EventKind::AddrRemoved { addr, .. } => format!("address {addr} removed"),
            EventKind::RouteAdded { route, .. } => format!("route to {} added", route.dst),
            EventKind::RouteRemoved { route, .. } => format!("route to {} removed", route.dst),
            other => format!("{other:?}"),
        };
        println!("{:?}: {text}", event.origin);
    }
    actor.join().expect("the actor does not panic")
}
