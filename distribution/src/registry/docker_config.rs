//! Credentials from the configuration that container command lines share.

use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use docker_credential::{CredentialRetrievalError, DockerCredential};
use serde::Deserialize;

use super::credentials::{Credential, Credentials, Lookup, Secret};
use super::hosts::{HUB_ENDPOINT, HUB_HOST};
use crate::error::{Error, Result};

/// The `config.json` of docker: stored logins and credential helpers.
///
/// A helper is run for the host that asked and for no other. One that fails or does not answer
/// in time fails the requests to that host. What it prints on standard error is thrown away,
/// since helpers print secrets there.
#[derive(Debug, Clone)]
pub struct DockerConfig {
    path: PathBuf,
    helper_path: Option<std::ffi::OsString>,
    deadline: Duration,
}

impl DockerConfig {
    /// The configuration file at `path`; each helper is given `deadline`. Helpers are looked up
    /// in the absolute directories of `PATH`.
    pub fn new(path: impl Into<PathBuf>, deadline: Duration) -> Self {
        Self { path: path.into(), helper_path: None, deadline }
    }

    /// The user's own file: below `DOCKER_CONFIG`, else `.docker` in the home directory.
    pub fn of_user(deadline: Duration) -> Option<Self> {
        let home = || Some(PathBuf::from(std::env::var_os("HOME")?).join(".docker"));
        let dir = std::env::var_os("DOCKER_CONFIG").map(PathBuf::from).or_else(home)?;
        Some(Self::new(dir.join("config.json"), deadline))
    }

    /// The same with another list of directories to find helpers in.
    #[must_use]
    pub fn with_helper_path(mut self, path: impl Into<std::ffi::OsString>) -> Self {
        self.helper_path = Some(path.into());
        self
    }

    fn find(&self, host: &str) -> Result<Option<Credential>> {
        let mut text = Vec::new();
        let file = match std::fs::File::open(&self.path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            file => file.map_err(Error::io("open", &self.path))?,
        };
        let read = file.take(CONFIG_BYTES_MAX + 1).read_to_end(&mut text);
        read.map_err(Error::io("read", &self.path))?;
        let unusable = |line, reason: &str| Error::Config {
            path: self.path.clone(),
            line,
            reason: reason.into(),
        };
        if text.len() as u64 > CONFIG_BYTES_MAX {
            return Err(unusable(0, "larger than 1 MiB"));
        }
        // The text of a parser's error may quote a secret.
        let config: Config = serde_json::from_slice(&text)
            .map_err(|error| unusable(error.line(), "not a docker configuration"))?;
        let server = server_of(host);
        let helper = config.cred_helpers.get(host).or_else(|| config.cred_helpers.get(server));
        if let Some(helper) = helper.filter(|helper| !helper.is_empty()) {
            return self.ask(helper, server, host);
        }
        if let Some(store) = config.creds_store.filter(|store| !store.is_empty())
            && let Some(found) = self.ask(&store, server, host)?
        {
            return Ok(Some(found));
        }
        let stored = serde_json::json!({ "auths": config.auths }).to_string();
        let found = [server, host].into_iter().find_map(|name| {
            match docker_credential::get_credential_from_reader(stored.as_bytes(), name) {
                Err(CredentialRetrievalError::NoCredentialConfigured) => None,
                found => Some(found),
            }
        });
        match found {
            None => Ok(None),
            Some(Ok(DockerCredential::IdentityToken(token))) => {
                Ok(Some(Credential::RefreshToken(Secret::new(token))))
            }
            Some(Ok(DockerCredential::UsernamePassword(user, password))) => {
                Ok((!password.is_empty()).then(|| Credential::new(user, password)))
            }
            Some(Err(_)) => Err(failed(host, "malformed entry in the docker configuration")),
        }
    }

    /// Runs a helper and reads its answer; `None` when it has nothing for the server.
    fn ask(&self, helper: &str, server: &str, host: &str) -> Result<Option<Credential>> {
        let program = self.program(helper, host)?;
        let answer = run(&program, server, self.deadline).map_err(|reason| failed(host, reason))?;
        let Some(answer) = answer else { return Ok(None) };
        let answer: HelperAnswer = serde_json::from_slice(&answer)
            .map_err(|_| failed(host, "credential helper did not answer with a credential"))?;
        if answer.secret.is_empty() {
            return Err(failed(host, "credential helper answered without a secret"));
        }
        // The name that marks a secret as a refresh token.
        let user = if answer.username == "<token>" { String::new() } else { answer.username };
        Ok(Some(Credential::new(user, answer.secret)))
    }

    /// The helper's program. Relative directories are passed over: nothing is run from wherever
    /// this process happens to stand.
    fn program(&self, helper: &str, host: &str) -> Result<PathBuf> {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if !helper.chars().all(plain) {
            return Err(failed(host, "malformed name of a credential helper"));
        }
        let name = format!("docker-credential-{helper}");
        let path = self.helper_path.clone().or_else(|| std::env::var_os("PATH"));
        std::env::split_paths(&path.unwrap_or_default())
            .filter(|dir| dir.is_absolute())
            .map(|dir| dir.join(&name))
            .find(|program| program.is_file())
            .ok_or_else(|| failed(host, format!("credential helper {name} is not installed")))
    }
}

#[async_trait]
impl Credentials for DockerConfig {
    async fn lookup(&self, lookup: Lookup<'_>) -> Result<Option<Credential>> {
        let (config, host) = (self.clone(), lookup.host.to_owned());
        let found = tokio::task::spawn_blocking(move || config.find(&host)).await;
        found.map_err(|_| failed(lookup.host, "lookup was interrupted"))?
    }
}

/// Runs a helper's `get`. `Ok(None)` means that it has no credential.
fn run(program: &Path, server: &str, deadline: Duration) -> Result<Option<Vec<u8>>, String> {
    let explain = |error: std::io::Error| format!("credential helper: {error}");
    let mut child = Command::new(program)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(explain)?;
    if let Some(mut stdin) = child.stdin.take() {
        // A helper that does not read its input may still answer.
        let _ = stdin.write_all(server.as_bytes());
    }
    let stdout = child.stdout.take();
    let reader = std::thread::spawn(move || {
        let mut answer = Vec::new();
        let read = stdout.map(|out| out.take(HELPER_BYTES_MAX + 1).read_to_end(&mut answer));
        read.transpose().map(|_| answer)
    });
    let started = Instant::now();
    let status = loop {
        match child.try_wait().map_err(explain)? {
            Some(status) => break status,
            None if started.elapsed() >= deadline => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(format!("credential helper did not answer within {deadline:?}"));
            }
            None => std::thread::sleep(HELPER_POLL),
        }
    };
    // A process the helper left behind may hold the pipe open for ever; the answer is complete
    // once the helper itself is gone.
    while !reader.is_finished() && started.elapsed() < deadline {
        std::thread::sleep(HELPER_POLL);
    }
    if !reader.is_finished() {
        return Err("credential helper left its output open".into());
    }
    let answer = reader.join().map_err(|_| "credential helper".to_owned())?.map_err(explain)?;
    if answer.len() as u64 > HELPER_BYTES_MAX {
        return Err("credential helper answered more than 64 KiB".into());
    }
    if !status.success() {
        let text = String::from_utf8_lossy(&answer);
        // The one answer every helper gives for a server it does not know.
        if text.trim() == "credentials not found in native keychain" {
            return Ok(None);
        }
        return Err(format!("credential helper failed with {status}"));
    }
    Ok(Some(answer))
}

/// The name under which docker files a host.
fn server_of(host: &str) -> &str {
    match host {
        HUB_HOST | HUB_ENDPOINT => "https://index.docker.io/v1/",
        other => other,
    }
}

fn failed(host: &str, reason: impl Into<String>) -> Error {
    Error::Credentials { host: host.to_owned(), reason: reason.into() }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Config {
    #[serde(default)]
    auths: serde_json::Value,
    #[serde(default)]
    creds_store: Option<String>,
    #[serde(default)]
    cred_helpers: std::collections::HashMap<String, String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct HelperAnswer {
    #[serde(default)]
    username: String,
    #[serde(default)]
    secret: String,
}

/// A configuration with hundreds of logins is a tenth of this.
const CONFIG_BYTES_MAX: u64 = 1 << 20;
/// Answers are a name and a token.
const HELPER_BYTES_MAX: u64 = 64 * 1024;
/// Helpers answer in tens of milliseconds at best.
const HELPER_POLL: Duration = Duration::from_millis(5);
