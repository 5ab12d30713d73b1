//! Two containers talk over a bridge, with addresses the caller chose.
//!
//! `unshare -n -m cargo run -p crated-netns --example bridge`

#![allow(clippy::print_stdout, reason = "an example shows what it did")]

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::thread::JoinHandle;

use crated_netns::{
    BridgeOpts, LinkKind, LinkSpec, NetnsRoot, NetnsSpec, PeerSpec, Plan, Propagation,
};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = NetnsRoot::open(std::env::temp_dir().join("crated-bridge"), Propagation::Private)?;
    let bridge = LinkKind::Bridge(BridgeOpts::default());
    let mut plan =
        Plan::new().create_link(&root.host(), LinkSpec::new("br0".parse()?, bridge).up());
    let mut made = Vec::new();
    for (name, address) in [("web", "10.88.0.2/24"), ("db", "10.88.0.3/24")] {
        let netns = root.create(&name.parse()?, &NetnsSpec::default())?;
        let peer = PeerSpec::on_host(format!("{name}0").parse()?).master("br0".parse()?);
        let eth0 = LinkSpec::new("eth0".parse()?, LinkKind::Veth { peer });
        plan = plan.create_link(&netns, eth0.address(address.parse()?).up());
        made.push(netns);
    }
    plan.execute()?;

    // What a container does: a thread that lives inside and never comes back.
    let listener = inside(made[0].path(), || TcpListener::bind("10.88.0.2:80"));
    let listener = listener.join().expect("the thread ends")?;
    let asked = inside(made[1].path(), || {
        let mut stream = TcpStream::connect("10.88.0.2:80")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok::<_, std::io::Error>((stream.local_addr()?, answer))
    });
    let (mut stream, from) = listener.accept()?;
    stream.write_all(b"hello over the bridge")?;
    drop(stream);
    let (own, answer) = asked.join().expect("the thread ends")?;
    // A socket opened inside keeps its namespace alive.
    drop(listener);
    println!("web was asked by {from}; db ({own}) heard: {answer}");

    for netns in &made {
        println!("gone: {}", netns.delete(&Default::default())?.gone);
    }
    root.host().delete_link(&"br0".parse()?)?;
    Ok(())
}

/// Runs `work` on a thread inside the namespace pinned at `path`.
fn inside<T: Send + 'static>(
    path: PathBuf,
    work: impl FnOnce() -> T + Send + 'static,
) -> JoinHandle<T> {
    std::thread::spawn(move || {
        let netns = std::fs::File::open(path).expect("the pin is there");
        rustix::thread::move_into_link_name_space(netns.as_fd(), None).expect("needs root");
        work()
    })
}
