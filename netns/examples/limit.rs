//! A limit of 10 Mbit/s, seen by a real transfer.
//!
//! `unshare -n -m cargo run -p crated-netns --example limit`

#![allow(clippy::print_stdout, reason = "an example shows what it did")]

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::time::Instant;

use crated_netns::{
    Bandwidth, LinkChange, LinkKind, LinkSpec, NetnsRoot, NetnsSpec, PeerSpec, Propagation, Rate,
};

/// What is sent, in bytes: about five seconds' worth.
const SENT: usize = 6_000_000;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = NetnsRoot::open(std::env::temp_dir().join("crated-limit"), Propagation::Private)?;
    let netns = root.create(&"slow".parse()?, &NetnsSpec::default())?;
    let mut peer = PeerSpec::on_host("slow0".parse()?);
    peer.settings.addrs.push("10.66.0.1/24".parse()?);
    let eth0 = LinkSpec::new("eth0".parse()?, LinkKind::Veth { peer });
    netns.create_link(&eth0.address("10.66.0.2/24".parse()?).up())?;

    let rate = |bits: u64| bits as f64 / 1e6;
    println!("without a limit: {:.0} Mbit/s", rate(transfer(netns.path())?));
    let limit = Bandwidth { egress: Some(Rate::bits_per_second(10_000_000)), ingress: None };
    let change = LinkChange { bandwidth: Some(limit), ..LinkChange::default() };
    netns.change_link(&"eth0".parse()?, &change)?;
    println!("limited to 10 Mbit/s: {:.1} Mbit/s", rate(transfer(netns.path())?));
    println!("counters: {:?}", netns.stats()?.total);
    netns.delete(&Default::default())?;
    Ok(())
}

/// Sends from inside to the host; answers with the rate in bits per second.
fn transfer(path: std::path::PathBuf) -> std::io::Result<u64> {
    let listener = TcpListener::bind("10.66.0.1:0")?;
    let to = listener.local_addr()?;
    let sender = std::thread::spawn(move || {
        let netns = std::fs::File::open(path)?;
        rustix::thread::move_into_link_name_space(netns.as_fd(), None)?;
        TcpStream::connect(to)?.write_all(&vec![7; SENT])
    });
    let (mut stream, _) = listener.accept()?;
    let (started, mut buffer, mut len) = (Instant::now(), vec![0; 64 * 1024], 0);
    loop {
        match stream.read(&mut buffer)? {
            0 => break,
            read => len += read,
        }
    }
    sender.join().expect("the thread ends")?;
    Ok((len as f64 * 8.0 / started.elapsed().as_secs_f64()) as u64)
}
