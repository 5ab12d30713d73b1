//! A namespace on a bridge: address, default route, sysctl, limit of rate, all
//! by one plan that is taken back when a step fails.
//!
//! `unshare -n -m cargo run --example container_network`

#![allow(clippy::print_stdout, reason = "an example shows what it did")]

use std::time::Duration;

use crated_netns::{
    Bandwidth, BridgeOpts, DeleteOpts, LinkKind, LinkSpec, NetnsRoot, NetnsSpec, Op, PeerSpec,
    Plan, Propagation, Rate, Route,
};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let dir = std::env::temp_dir().join("crated-netns-container");
    let root = NetnsRoot::open(dir, Propagation::Private)?;
    let (host, web) = (root.host(), root.create(&"web".parse()?, &NetnsSpec::default())?);

    let bridge = LinkSpec::new("demo0".parse()?, LinkKind::Bridge(BridgeOpts::default()))
        .address("10.88.0.1/24".parse()?)
        .up();
    let peer = PeerSpec::on_host("demoweb".parse()?).master("demo0".parse()?);
    let eth0 = LinkSpec::new("eth0".parse()?, LinkKind::Veth { peer })
        .mac("02:00:00:88:00:02".parse()?)
        .mtu(1400)
        .address("10.88.0.2/24".parse()?)
        .route(Route::default_via("10.88.0.1".parse()?))
        .bandwidth(Bandwidth::both(Rate::bits_per_second(100_000_000)))
        .up();
    let forward = Op::SetSysctl { key: "net.ipv4.ip_forward".parse()?, value: "1".into() };
    Plan::new().create_link(&host, bridge).create_link(&web, eth0).step(&web, forward).execute()?;

    for link in web.links()? {
        let addrs: Vec<String> = link.addrs.iter().map(ToString::to_string).collect();
        println!("{} {:?} mtu {} {}", link.ifname, link.kind, link.mtu, addrs.join(" "));
    }
    println!("join it: nsenter --net={}", web.path().display());

    let opts = DeleteOpts { wait: Duration::from_secs(5), force: false };
    println!("gone: {}", web.delete(&opts)?.gone);
    host.delete_link(&"demo0".parse()?)?;
    Ok(())
}
