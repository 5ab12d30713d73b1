//! Two hosts (played by namespaces) joined by a VXLAN network, each with one
//! container attached. The underlay stays with the hosts; containers see only
//! their own address.
//!
//! `unshare -n -m cargo run --example vxlan`

#![allow(clippy::print_stdout, reason = "an example shows what it did")]

use std::process::Command;

use crated_netns::{
    Fdb, LinkKind, LinkSpec, NetnsRoot, NetnsSpec, PeerSpec, Place, Propagation, VxlanOpts,
};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let dir = std::env::temp_dir().join("crated-netns-vxlan");
    let root = NetnsRoot::open(dir, Propagation::Private)?;
    let can = root.capabilities()?;
    println!("this kernel makes: {:?}", can.kinds);

    let spec = NetnsSpec::default();
    let one = root.create(&"one".parse()?, &spec)?;
    root.create(&"two".parse()?, &spec)?;
    let mut peer = PeerSpec::in_netns("net0".parse()?, "two".parse()?);
    peer.settings.addrs.push("192.0.2.2/24".parse()?);
    let cable = LinkKind::Veth { peer };
    one.create_link(&LinkSpec::new("net0".parse()?, cable).address("192.0.2.1/24".parse()?).up())?;

    let ends = [
        ("a", "one", "192.0.2.1", "192.0.2.2", "10.7.0.1/24"),
        ("b", "two", "192.0.2.2", "192.0.2.1", "10.7.0.2/24"),
    ];
    for (container, host, local, remote, address) in ends {
        let netns = root.create(&container.parse()?, &spec)?;
        let mut opts = VxlanOpts::new(42);
        opts.underlay = Place::Named(host.parse()?);
        opts.local = local.parse().ok();
        let kind = LinkKind::Vxlan(opts);
        netns.create_link(&LinkSpec::new("eth0".parse()?, kind).address(address.parse()?).up())?;
        // Everything unknown goes to the other host.
        netns.add_fdb(&Fdb {
            dev: "eth0".parse()?,
            mac: [0; 6],
            dst: remote.parse().ok(),
            vlan: None,
            own_table: true,
            permanent: true,
        })?;
        println!("{container}: {:?}", netns.link(&"eth0".parse()?)?.kind);
    }
    let net = format!("--net={}", root.get(&"a".parse()?)?.path().display());
    let ping = Command::new("nsenter").args([&net, "ping", "-c", "1", "10.7.0.2"]).output()?;
    print!("{}", String::from_utf8_lossy(&ping.stdout));
    let names = root.list()?.into_iter().map(|pin| pin.name).collect::<Vec<_>>();
    for result in root.delete_all(&names, &Default::default()) {
        println!("gone: {}", result?.gone);
    }
    match ping.status.success() {
        true => Ok(()),
        false => Err("the two hosts' containers do not reach each other".into()),
    }
}
