//! Requests that leave through a proxy.

use crated_distribution::Proxies;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;
use crate::support::{Certificates, Registry};

/// Options whose proxy is `proxy`, with a login.
fn through(proxy: &str) -> RegistryOptions {
    let mut options = options();
    let address = format!("http://user:canary@{proxy}");
    options.proxies = Proxies::new(&address, &address, "").unwrap();
    options
}

#[tokio::test]
async fn plain_http_asks_the_proxy_for_whole_addresses_and_logs_in() {
    let bytes = noise(60, 1000);
    let content = bytes.clone();
    let proxy = Hostile::start(move |seen| honest(&content, seen)).await;
    let options = through(&proxy.address.to_string());
    let reference = "registry.test:5000/team/app:v1".parse().unwrap();
    let fetcher = resolver(options).fetcher(&reference).await.unwrap();
    let body = fetcher.fetch(&layer(&bytes), 0).await.unwrap();
    assert_eq!(body.collect(1 << 20).await.unwrap(), bytes);
    let seen = &proxy.requests()[0];
    assert!(seen.path.starts_with("http://registry.test:5000/v2/team/app/blobs/"), "{}", seen.path);
    // user:canary
    assert_eq!(seen.header("proxy-authorization"), "Basic dXNlcjpjYW5hcnk=");
}

#[tokio::test]
async fn this_machine_is_reached_without_the_proxy() {
    let bytes = noise(61, 1000);
    let content = bytes.clone();
    let server = Hostile::start(move |seen| honest(&content, seen)).await;
    let proxy = Hostile::start(|_| Reply::status(500)).await;
    let options = through(&proxy.address.to_string());
    assert_eq!(fetch_with(options, &server, &layer(&bytes)).await.unwrap(), bytes);
    assert!(!server.requests()[0].headers.contains_key("proxy-authorization"));
    assert_eq!(proxy.count(), 0);
}

/// A proxy that takes every tunnel to `target`, whatever was asked for; tells what was.
async fn tunnels(
    target: String,
) -> (std::net::SocketAddr, tokio::sync::mpsc::UnboundedReceiver<String>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (sender, heads) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let (target, sender) = (target.clone(), sender.clone());
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    if client.read_buf(&mut head).await? == 0 {
                        return Ok(());
                    }
                }
                let _ = sender.send(String::from_utf8_lossy(&head).into_owned());
                let mut server = tokio::net::TcpStream::connect(target).await?;
                client.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await?;
                tokio::io::copy_bidirectional(&mut client, &mut server).await?;
                std::io::Result::Ok(())
            });
        }
    });
    (address, heads)
}

#[tokio::test]
async fn https_goes_through_a_tunnel_and_the_certificate_is_that_of_the_registry() {
    require!(support::REGISTRY);
    require!("openssl");
    let certificates = Certificates::new();
    certificates.issue("named", "subjectAltName=DNS:registry.test", "30");
    let tls = format!(
        "tls:\n  certificate: {}\n  key: {}\n",
        certificates.path("named.pem").display(),
        certificates.path("named.key").display()
    );
    let registry = Registry::start_with(TempDir::new().unwrap(), &tls, "");
    let (proxy, mut heads) = tunnels(registry.host()).await;
    let mut options = RegistryOptions::new();
    let address = format!("http://user:canary@{proxy}");
    options.proxies = Proxies::new("", &address, "").unwrap();
    options.ca_pem.push(certificates.read("ca.pem"));
    let image = support::Image::new(60, &[100_000]);
    let reference = "registry.test/team/app:v1".parse().unwrap();
    let client = resolver(options.clone());
    image.push(&*client.pusher(&reference).await.unwrap()).await;
    image.assert_pulls(&client, &reference).await;
    let head = heads.recv().await.unwrap();
    assert!(head.starts_with("CONNECT registry.test:443 HTTP/1.1\r\n"), "{head}");
    assert!(head.contains("\r\nProxy-Authorization: Basic dXNlcjpjYW5hcnk=\r\n"), "{head}");

    // The tunnel proves nothing: another name is another registry.
    let other = "other.test/team/app:v1".parse().unwrap();
    let error = resolver(options).resolve(&other).await.unwrap_err();
    assert!(error.to_string().contains("x509: certificate is not valid"), "{error}");
    assert!(!error.to_string().contains("canary"), "{error}");
}

#[tokio::test]
async fn case_31_what_a_proxy_refuses_is_told_without_its_login() {
    for (answer, expected) in [
        (Reply::new(407, &[("proxy-authenticate", "Basic")], ""), "authentication required"),
        (Reply::status(403), "status 403"),
        (Reply::default().then("HTTP/1.1 200"), "unexpected EOF"),
        (Reply::default().then("\r\n\r\n"), "not http"),
        (Reply::default().then([b'a'; 20_000]), "too long"),
    ] {
        let proxy = Hostile::start(move |_| answer.clone()).await;
        let mut options = RegistryOptions::new();
        let address = format!("http://user:canary@{}", proxy.address);
        options.proxies = Proxies::new("", &address, "").unwrap();
        let reference = "registry.test/team/app:v1".parse().unwrap();
        let error = resolver(options).resolve(&reference).await.unwrap_err();
        let text = format!("{error} {error:?}");
        assert!(text.contains(expected), "{text}");
        assert!(text.contains(&format!("through the proxy {}", proxy.address)), "{text}");
        assert!(!text.contains("canary") && !text.contains("dXNlcjpjYW5hcnk"), "{text}");
    }
}

/// Run with variables set by the test below, in a process of its own.
#[tokio::test]
async fn proxies_of_the_environment_are_used() {
    let proxy = Hostile::start(|_| Reply::status(404)).await;
    if std::env::var_os("REACH_THROUGH").is_some() {
        let reference = "registry.test:5000/team/app:v1".parse().unwrap();
        let options = RegistryOptions::new().with_hosts(Hosts::plain_http());
        resolver(options).resolve(&reference).await.unwrap_err();
        return;
    }
    for (variable, count) in [("HTTP_PROXY", 1), ("http_proxy", 2), ("ALL_PROXY", 3)] {
        let address = format!("http://{}", proxy.address);
        let run = tokio::task::spawn_blocking(move || {
            std::process::Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "proxies::proxies_of_the_environment_are_used"])
                .env_clear()
                .env("REACH_THROUGH", "1")
                .env(variable, address)
                .output()
                .unwrap()
        });
        let output = run.await.unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        assert_eq!(proxy.count(), count, "{variable}");
    }
}
