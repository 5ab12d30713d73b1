//! Two containers with hardware addresses of their own on one parent, without a bridge.
//!
//! `unshare -n -m cargo run -p crated-netns --example macvlan`

#![allow(clippy::print_stdout, reason = "an example shows what it did")]

use std::process::Command;

use crated_netns::{
    BridgeOpts, LinkKind, LinkSpec, MacvlanMode, NetnsRoot, NetnsSpec, Parent, Propagation,
};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = NetnsRoot::open(std::env::temp_dir().join("crated-macvlan"), Propagation::Private)?;
    // Stands for the machine's network card, which a scratch host lacks.
    let card = LinkSpec::new("card0".parse()?, LinkKind::Bridge(BridgeOpts::default()));
    root.host().create_link(&card.up())?;
    let mut made = Vec::new();
    for (n, name) in ["one", "two"].into_iter().enumerate() {
        let netns = root.create(&name.parse()?, &NetnsSpec::default())?;
        let parent = Parent::on_host("card0".parse()?);
        let kind = LinkKind::Macvlan { parent, mode: MacvlanMode::Bridge };
        let spec = LinkSpec::new("eth0".parse()?, kind)
            .mac(format!("02:00:00:00:00:0{}", n + 1).parse()?)
            .address(format!("10.77.0.{}/24", n + 1).parse()?)
            .up();
        let eth0 = netns.create_link(&spec)?;
        println!("{name}: {} {:?}", eth0.ifname, eth0.mac);
        made.push(netns);
    }
    let net = format!("--net={}", made[0].path().display());
    let ping = Command::new("nsenter").args([&net, "ping", "-c", "1", "10.77.0.2"]).output()?;
    print!("{}", String::from_utf8_lossy(&ping.stdout));
    for netns in &made {
        netns.delete(&Default::default())?;
    }
    root.host().delete_link(&"card0".parse()?)?;
    match ping.status.success() {
        true => Ok(()),
        false => Err("the two do not reach each other".into()),
    }
}
