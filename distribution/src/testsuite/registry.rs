//! A registry in memory, small and strict, for tests of whatever uses one.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;

use crate::{Descriptor, Digest, Document, DocumentLimits, Hasher, Reference};

/// A registry on a port of the loopback interface, over plain http and open to everyone.
///
/// It verifies what is pushed, refuses manifests whose blobs are missing, serves ranges, and
/// keeps a list of the requests it saw. It stops when dropped.
pub struct MemoryRegistry {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    task: tokio::task::JoinHandle<()>,
}

#[derive(Default)]
struct State {
    repositories: BTreeMap<String, Repository>,
    uploads: BTreeMap<String, Vec<u8>>,
    requests: Vec<String>,
    next_upload: u64,
}

#[derive(Default)]
struct Repository {
    blobs: BTreeMap<Digest, Bytes>,
    manifests: BTreeMap<Digest, (String, Bytes)>,
    tags: BTreeMap<String, Digest>,
}

type Answer = Response<Full<Bytes>>;

impl MemoryRegistry {
    /// Starts an empty registry on the runtime of the caller.
    ///
    /// # Errors
    ///
    /// When no port can be had.
    pub async fn start() -> std::io::Result<Self> {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let state = Arc::<Mutex<State>>::default();
        let shared = state.clone();
        let task = tokio::spawn(async move {
            // Dropped with this task, and every connection with it.
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let state = shared.clone();
                connections.spawn(async move {
                    let service = service_fn(move |request| answer(state.clone(), request));
                    // A client that hangs up is no failure of the registry.
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
                while connections.try_join_next().is_some() {}
            }
        });
        Ok(Self { address, state, task })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The host and port, as references have it.
    pub fn host(&self) -> String {
        self.address.to_string()
    }

    /// `rest` (`repository:tag`) as a reference to this registry.
    ///
    /// # Panics
    ///
    /// When `rest` is not the rest of a reference.
    pub fn reference(&self, rest: &str) -> Reference {
        format!("{}/{rest}", self.address).parse().expect("rest of a reference")
    }

    /// Puts a blob into a repository.
    pub fn put_blob(&self, repository: &str, bytes: impl Into<Bytes>) -> Digest {
        let bytes = bytes.into();
        let digest = Digest::of(&bytes);
        self.lock().repository(repository).blobs.insert(digest.clone(), bytes);
        digest
    }

    /// Puts a manifest or index into a repository, under a tag if there is one. Nothing is
    /// checked, so that tests can put what no client would push.
    pub fn put_manifest(
        &self,
        repository: &str,
        tag: Option<&str>,
        media_type: &str,
        bytes: impl Into<Bytes>,
    ) -> Descriptor {
        let bytes = bytes.into();
        let descriptor = Descriptor::of(media_type, &bytes);
        let mut state = self.lock();
        let repository = state.repository(repository);
        let digest = descriptor.digest.clone();
        repository.manifests.insert(digest.clone(), (media_type.to_owned(), bytes));
        if let Some(tag) = tag {
            repository.tags.insert(tag.to_owned(), digest);
        }
        descriptor
    }

    /// The requests so far, as `METHOD path?query`.
    pub fn requests(&self) -> Vec<String> {
        self.lock().requests.clone()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

impl Drop for MemoryRegistry {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl fmt::Debug for MemoryRegistry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryRegistry").field("address", &self.address).finish_non_exhaustive()
    }
}

impl State {
    fn repository(&mut self, name: &str) -> &mut Repository {
        self.repositories.entry(name.to_owned()).or_default()
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    // A panicking test must not hide its message behind a poisoned lock.
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a request asks for, cut out of its address.
struct Asked<'a> {
    method: &'a Method,
    repository: &'a str,
    object: &'a str,
    query: BTreeMap<String, String>,
    media_type: String,
    range: Option<String>,
    content_range: Option<String>,
}

async fn answer(
    state: Arc<Mutex<State>>,
    request: Request<Incoming>,
) -> Result<Answer, Infallible> {
    let (head, body) = request.into_parts();
    let path = head.uri.path().to_owned();
    let query = head.uri.query().unwrap_or_default().to_owned();
    let header = |name: &str| {
        head.headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned)
    };
    let Ok(body) = body.collect().await else {
        return Ok(refuse(StatusCode::BAD_REQUEST, "BLOB_UPLOAD_INVALID"));
    };
    let mut state = lock(&state);
    let separator = if query.is_empty() { "" } else { "?" };
    state.requests.push(format!("{} {path}{separator}{query}", head.method));
    let rest = match path.strip_prefix("/v2") {
        Some("" | "/") => return Ok(Answer::default()),
        Some("/_catalog") => {
            let names: Vec<_> = state.repositories.keys().collect();
            return Ok(json(&serde_json::json!({ "repositories": names })));
        }
        Some(rest) => rest.trim_start_matches('/'),
        None => return Ok(refuse(StatusCode::NOT_FOUND, "NAME_UNKNOWN")),
    };
    let Some((repository, kind, object)) = split(rest) else {
        return Ok(refuse(StatusCode::NOT_FOUND, "NAME_UNKNOWN"));
    };
    let asked = Asked {
        method: &head.method,
        repository,
        object,
        query: url::form_urlencoded::parse(query.as_bytes()).into_owned().collect(),
        media_type: header("content-type").unwrap_or_default(),
        range: header("range"),
        content_range: header("content-range"),
    };
    Ok(match kind {
        "manifests" => manifests(&mut state, &asked, body.to_bytes()),
        "blobs" => blobs(&mut state, &asked),
        "blobs/uploads" => uploads(&mut state, &asked, &body.to_bytes()),
        "referrers" => referrers(&mut state, &asked),
        _ => tags(&mut state, &asked),
    })
}

fn split(rest: &str) -> Option<(&str, &str, &str)> {
    for kind in ["blobs/uploads", "blobs", "manifests", "referrers", "tags"] {
        if let Some((repository, object)) = rest.split_once(&format!("/{kind}/")) {
            return Some((repository, kind, object));
        }
    }
    None
}

fn manifests(state: &mut State, asked: &Asked<'_>, body: Bytes) -> Answer {
    let repository = state.repository(asked.repository);
    let digest = match Digest::parse(asked.object) {
        Ok(digest) => Some(digest),
        Err(_) => repository.tags.get(asked.object).cloned(),
    };
    if asked.method == Method::PUT {
        return put_manifest(repository, asked, body);
    }
    let found = digest.and_then(|digest| {
        let (media_type, bytes) = repository.manifests.get(&digest)?;
        Some((digest, media_type.clone(), bytes.clone()))
    });
    let Some((digest, media_type, bytes)) = found else {
        return refuse(StatusCode::NOT_FOUND, "MANIFEST_UNKNOWN");
    };
    if asked.method == Method::DELETE {
        if repository.tags.remove(asked.object).is_none() {
            repository.manifests.remove(&digest);
            repository.tags.retain(|_, tagged| *tagged != digest);
        }
        return status(StatusCode::ACCEPTED);
    }
    let mut answer = content(asked, &digest, bytes);
    if let Ok(value) = media_type.parse() {
        answer.headers_mut().insert("content-type", value);
    }
    answer
}

fn put_manifest(repository: &mut Repository, asked: &Asked<'_>, body: Bytes) -> Answer {
    let document = match Document::parse(&body, &asked.media_type, &DocumentLimits::default()) {
        Ok(document) => document,
        Err(_) => return refuse(StatusCode::BAD_REQUEST, "MANIFEST_INVALID"),
    };
    let missing = document.children().into_iter().any(|child| {
        !repository.blobs.contains_key(&child.digest)
            && !repository.manifests.contains_key(&child.digest)
    });
    if missing {
        return refuse(StatusCode::BAD_REQUEST, "MANIFEST_BLOB_UNKNOWN");
    }
    let digest = match Digest::parse(asked.object) {
        Ok(digest) if !is(&digest, &body) => {
            return refuse(StatusCode::BAD_REQUEST, "DIGEST_INVALID");
        }
        Ok(digest) => digest,
        Err(_) => {
            let digest = Digest::of(&body);
            repository.tags.insert(asked.object.to_owned(), digest.clone());
            digest
        }
    };
    repository.manifests.insert(digest.clone(), (asked.media_type.clone(), body));
    created(&format!("/v2/{}/manifests/{digest}", asked.repository), &digest)
}

fn blobs(state: &mut State, asked: &Asked<'_>) -> Answer {
    let repository = state.repository(asked.repository);
    let Ok(digest) = Digest::parse(asked.object) else {
        return refuse(StatusCode::BAD_REQUEST, "DIGEST_INVALID");
    };
    match repository.blobs.get(&digest).cloned() {
        None => refuse(StatusCode::NOT_FOUND, "BLOB_UNKNOWN"),
        Some(_) if asked.method == Method::DELETE => {
            repository.blobs.remove(&digest);
            status(StatusCode::ACCEPTED)
        }
        Some(bytes) => content(asked, &digest, bytes),
    }
}

fn uploads(state: &mut State, asked: &Asked<'_>, body: &Bytes) -> Answer {
    let session = asked.object.to_owned();
    if asked.method == Method::POST {
        if let (Some(digest), Some(from)) = (asked.query.get("mount"), asked.query.get("from")) {
            let source = state.repositories.get(from);
            let digest = Digest::parse(digest).ok();
            let found = digest.and_then(|digest| {
                let bytes = source?.blobs.get(&digest)?.clone();
                Some((digest, bytes))
            });
            if let Some((digest, bytes)) = found {
                state.repository(asked.repository).blobs.insert(digest.clone(), bytes);
                return created(&format!("/v2/{}/blobs/{digest}", asked.repository), &digest);
            }
        }
        state.next_upload += 1;
        let session = format!("session-{}", state.next_upload);
        state.uploads.insert(session.clone(), Vec::new());
        return accepted(asked.repository, &session, 0);
    }
    let Some(mut bytes) = state.uploads.get(&session).cloned() else {
        return refuse(StatusCode::NOT_FOUND, "BLOB_UPLOAD_UNKNOWN");
    };
    if asked.method == Method::GET {
        let mut answer = accepted(asked.repository, &session, bytes.len());
        *answer.status_mut() = StatusCode::NO_CONTENT;
        return answer;
    }
    if let Some(range) = &asked.content_range
        && !range.starts_with(&format!("{}-", bytes.len()))
    {
        return refuse(StatusCode::RANGE_NOT_SATISFIABLE, "BLOB_UPLOAD_INVALID");
    }
    bytes.extend_from_slice(body);
    if asked.method == Method::PATCH {
        let len = bytes.len();
        state.uploads.insert(session.clone(), bytes);
        return accepted(asked.repository, &session, len);
    }
    state.uploads.remove(&session);
    let digest = asked.query.get("digest").and_then(|text| Digest::parse(text).ok());
    match digest.filter(|digest| is(digest, &bytes)) {
        None => refuse(StatusCode::BAD_REQUEST, "DIGEST_INVALID"),
        Some(digest) => {
            let blobs = &mut state.repository(asked.repository).blobs;
            blobs.insert(digest.clone(), bytes.into());
            created(&format!("/v2/{}/blobs/{digest}", asked.repository), &digest)
        }
    }
}

fn referrers(state: &mut State, asked: &Asked<'_>) -> Answer {
    let limits = DocumentLimits::default();
    let found: Vec<Descriptor> = state
        .repository(asked.repository)
        .manifests
        .iter()
        .filter_map(|(digest, (media_type, bytes))| {
            let document = Document::parse(bytes, media_type, &limits).ok()?;
            let (subject, kind) = match document {
                Document::Manifest(manifest) => {
                    let config = manifest.config.media_type;
                    (manifest.subject?, manifest.artifact_type.unwrap_or(config))
                }
                Document::Index(index) => (index.subject?, index.artifact_type.unwrap_or_default()),
            };
            let mut descriptor = Descriptor::new(media_type, digest.clone(), bytes.len() as u64);
            descriptor.artifact_type = Some(kind);
            (subject.digest.as_str() == asked.object).then_some(descriptor)
        })
        .collect();
    let mut answer = json(&serde_json::json!({
        "schemaVersion": 2, "mediaType": crate::media_type::OCI_INDEX, "manifests": found,
    }));
    let kind = http::HeaderValue::from_static(crate::media_type::OCI_INDEX);
    answer.headers_mut().insert("content-type", kind);
    answer
}

fn tags(state: &mut State, asked: &Asked<'_>) -> Answer {
    let Some(repository) = state.repositories.get(asked.repository) else {
        return refuse(StatusCode::NOT_FOUND, "NAME_UNKNOWN");
    };
    let tags: Vec<_> = repository.tags.keys().collect();
    json(&serde_json::json!({ "name": asked.repository, "tags": tags }))
}

/// A whole object or the part that was asked for.
fn content(asked: &Asked<'_>, digest: &Digest, bytes: Bytes) -> Answer {
    let whole = bytes.len();
    let part = asked.range.as_deref().and_then(|range| {
        let (first, last) = range.strip_prefix("bytes=")?.split_once('-')?;
        let last = if last.is_empty() { whole } else { last.parse::<usize>().ok()? };
        Some((first.parse::<usize>().ok()?, last))
    });
    let builder = Response::builder()
        .header("docker-content-digest", digest.as_str())
        .header("accept-ranges", "bytes");
    let (builder, bytes) = match part {
        Some((first, last)) if first >= whole || last < first => {
            return refuse(StatusCode::RANGE_NOT_SATISFIABLE, "RANGE_INVALID");
        }
        Some((first, last)) => {
            let last = last.min(whole - 1);
            let shown = format!("bytes {first}-{last}/{whole}");
            let builder = builder.status(StatusCode::PARTIAL_CONTENT);
            (builder.header("content-range", shown), bytes.slice(first..=last))
        }
        None => (builder, bytes),
    };
    let builder = builder.header("content-length", bytes.len());
    let bytes = if asked.method == Method::HEAD { Bytes::new() } else { bytes };
    builder.body(Full::new(bytes)).expect("headers are well-formed")
}

fn is(digest: &Digest, bytes: &[u8]) -> bool {
    let mut hasher = Hasher::new(digest.algorithm());
    hasher.update(bytes);
    hasher.finish() == *digest
}

fn accepted(repository: &str, session: &str, len: usize) -> Answer {
    Response::builder()
        .status(StatusCode::ACCEPTED)
        .header("location", format!("/v2/{repository}/blobs/uploads/{session}"))
        .header("range", format!("0-{}", len.saturating_sub(1)))
        .body(Full::default())
        .expect("headers are well-formed")
}

fn created(location: &str, digest: &Digest) -> Answer {
    Response::builder()
        .status(StatusCode::CREATED)
        .header("location", location)
        .header("docker-content-digest", digest.as_str())
        .body(Full::default())
        .expect("headers are well-formed")
}

fn json(value: &serde_json::Value) -> Answer {
    let mut answer = Response::new(Full::from(value.to_string()));
    let kind = http::HeaderValue::from_static("application/json");
    answer.headers_mut().insert("content-type", kind);
    answer
}

fn status(status: StatusCode) -> Answer {
    let mut answer = Answer::default();
    *answer.status_mut() = status;
    answer
}

fn refuse(code: StatusCode, error: &str) -> Answer {
    let mut answer = json(&serde_json::json!({ "errors": [{ "code": error }] }));
    *answer.status_mut() = code;
    answer
}
