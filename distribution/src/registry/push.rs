//! Writing content: is it there, can it be linked from next door, else upload it.

use async_trait::async_trait;
use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Method, StatusCode};

use super::call::{Answer, Call, Caller, Carries, Target};
use super::repository::{Repository, accept, accept_documents};
use super::upload::Upload;
use crate::body::Source;
use crate::descriptor::Descriptor;
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::media_type::MediaType;
use crate::resolver::{Pushed, Pusher};

/// Writes into one repository.
#[derive(Debug)]
pub(crate) struct RegistryPusher {
    repository: Repository,
}

impl RegistryPusher {
    pub(crate) fn new(repository: Repository) -> Self {
        Self { repository }
    }

    /// Only the first endpoint that may be written to is, whatever happens: content must not end
    /// up in two places by halves.
    fn caller(&self) -> Result<Caller> {
        let callers = self.repository.callers(|can| can.push)?;
        Ok(callers.into_iter().next().map(|(caller, _)| caller).expect("the list is not empty"))
    }

    async fn push_document(
        &self,
        caller: &Caller,
        descriptor: &Descriptor,
        source: &dyn Source,
    ) -> Result<Pushed> {
        let reference = &self.repository.reference;
        let tagged = match (reference.tag(), reference.digest()) {
            (Some(tag), None) => Some(tag),
            (Some(tag), Some(digest)) if *digest == descriptor.digest => Some(tag),
            _ => None,
        };
        let path = match tagged {
            Some(tag) => format!("manifests/{tag}"),
            None => format!("manifests/{}", descriptor.digest),
        };
        if self.has(caller, &path, descriptor).await? {
            return Ok(Pushed::AlreadyExists);
        }
        let limit = self.repository.client.limits.documents.manifest_bytes_max;
        let bytes = source.open(0).await?.collect(limit).await?;
        check_source(descriptor, &bytes)?;
        let mut call = self.call(Method::PUT, &path);
        call.headers.insert(CONTENT_TYPE, media_type(descriptor)?);
        call.carries = Carries::Bytes(bytes);
        let answer = caller.send(&call).await?;
        match answer.status {
            StatusCode::OK | StatusCode::CREATED | StatusCode::NO_CONTENT => {
                check_stored(&answer, &descriptor.digest)?;
                Ok(Pushed::Uploaded)
            }
            _ => Err(self.denied(answer).await),
        }
    }

    async fn push_blob(
        &self,
        caller: &Caller,
        descriptor: &Descriptor,
        source: &dyn Source,
    ) -> Result<Pushed> {
        let path = format!("blobs/{}", descriptor.digest);
        if self.has(caller, &path, descriptor).await? {
            return Ok(Pushed::AlreadyExists);
        }
        let from = self.mount_candidate(descriptor);
        let answer = match &from {
            Some(from) => match self.start(caller, descriptor, Some(from)).await {
                Ok(answer) if answer.status == StatusCode::CREATED => {
                    return Ok(Pushed::Mounted { from: from.clone() });
                }
                Ok(answer) if is_started(answer.status) => answer,
                // No right to read the other repository is no reason not to write this one.
                Ok(answer) if !is_forbidden(answer.status) => {
                    return Err(self.denied(answer).await);
                }
                Err(error) if !error.is_denied() => return Err(error),
                _ => self.start(caller, descriptor, None).await?,
            },
            None => self.start(caller, descriptor, None).await?,
        };
        if !is_started(answer.status) {
            return Err(self.denied(answer).await);
        }
        let upload = Upload::new(&self.repository, caller, descriptor, answer)?;
        let answer = upload.run(source).await?;
        check_stored(&answer, &descriptor.digest)?;
        Ok(Pushed::Uploaded)
    }

    /// Whether the registry has it. A tag that stands for something else is not it.
    async fn has(&self, caller: &Caller, path: &str, descriptor: &Descriptor) -> Result<bool> {
        let mut call = self.call(Method::HEAD, path);
        call.headers = match MediaType::of(&descriptor.media_type).is_document() {
            true => accept_documents(),
            false => accept("*/*"),
        };
        let answer = caller.send(&call).await?;
        match answer.status {
            status if status.is_success() => {
                let by_digest = path.ends_with(descriptor.digest.as_str());
                let named = answer.header("docker-content-digest");
                Ok(by_digest || named == Some(descriptor.digest.as_str()))
            }
            StatusCode::NOT_FOUND => Ok(false),
            // Some registries let nobody look who may only write.
            StatusCode::METHOD_NOT_ALLOWED => Ok(false),
            _ => Err(self.denied(answer).await),
        }
    }

    async fn start(
        &self,
        caller: &Caller,
        descriptor: &Descriptor,
        from: Option<&str>,
    ) -> Result<Answer> {
        let mut call = self.call(Method::POST, "blobs/uploads/");
        if let (Some(from), Target::Path(_, query)) = (from, &mut call.target) {
            query.push(("mount".into(), descriptor.digest.to_string()));
            query.push(("from".into(), from.into()));
            call.scopes.insert(format!("repository:{from}:pull"));
        }
        // An empty payload with a length, since some servers refuse a POST without one.
        call.carries = Carries::Bytes(Bytes::new());
        caller.send(&call).await
    }

    /// The repository of the same registry that is known to have the content, and is most like
    /// the target: most of the path in common means most likely the same owner.
    fn mount_candidate(&self, descriptor: &Descriptor) -> Option<String> {
        let target = &self.repository.reference;
        let key = format!("{SOURCE_ANNOTATION_PREFIX}{}", target.host());
        let sources = descriptor.annotations.get(&key)?;
        let common = |source: &str| {
            let pairs = source.split('/').zip(target.repository().split('/'));
            pairs.take_while(|(a, b)| a == b).count()
        };
        sources
            .split(',')
            .map(str::trim)
            .filter(|source| *source != target.repository())
            .filter(|source| crate::reference::check_repository(source).is_ok())
            .max_by_key(|source| common(source))
            .map(str::to_owned)
    }

    fn call(&self, method: Method, path: &str) -> Call<'static> {
        let mut call = self.repository.call(method, path, true);
        call.scopes = self.repository.scopes(&["pull", "push"]);
        call
    }

    async fn denied(&self, answer: Answer) -> Error {
        let host = super::origin::Origin::of(&answer.url).authority();
        match answer.into_error(&self.repository.client).await {
            Error::Status { status: 401 | 403, message, .. } => Error::Denied {
                host,
                reason: format!(
                    "push access denied, repository does not exist or may require authorization:\
                     {message}"
                ),
            },
            error => error,
        }
    }
}

#[async_trait]
impl Pusher for RegistryPusher {
    async fn push(&self, descriptor: &Descriptor, source: &dyn Source) -> Result<Pushed> {
        descriptor.check()?;
        let caller = self.caller()?;
        if MediaType::of(&descriptor.media_type).is_document() {
            self.push_document(&caller, descriptor, source).await
        } else {
            self.push_blob(&caller, descriptor, source).await
        }
    }
}

fn is_started(status: StatusCode) -> bool {
    matches!(status, StatusCode::OK | StatusCode::ACCEPTED | StatusCode::NO_CONTENT)
}

fn is_forbidden(status: StatusCode) -> bool {
    matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN)
}

fn media_type(descriptor: &Descriptor) -> Result<HeaderValue> {
    HeaderValue::from_str(&descriptor.media_type).map_err(|_| Error::InvalidArgument {
        what: "media type",
        reason: format!("of {} cannot be a header", descriptor.digest),
    })
}

/// What is about to be sent must be what was announced.
fn check_source(descriptor: &Descriptor, bytes: &[u8]) -> Result<()> {
    let mut hasher = crate::digest::Hasher::new(descriptor.digest.algorithm());
    hasher.update(bytes);
    let actual = hasher.finish();
    if actual != descriptor.digest || bytes.len() as u64 != descriptor.size_bytes {
        return Err(Error::DigestMismatch { expected: descriptor.digest.clone(), actual });
    }
    Ok(())
}

/// What the registry says it stored must be what was sent.
fn check_stored(answer: &Answer, digest: &Digest) -> Result<()> {
    match answer.header("docker-content-digest") {
        Some(stored) if stored != digest.as_str() => {
            // Registries that prefer another algorithm may name it by that.
            let other = Digest::parse(stored)?;
            if other.algorithm() == digest.algorithm() {
                return Err(Error::DigestMismatch { expected: digest.clone(), actual: other });
            }
            Ok(())
        }
        _ => Ok(()),
    }
}

/// Annotations that name the repositories of a host where content came from.
const SOURCE_ANNOTATION_PREFIX: &str = "containerd.io/distribution.source.";
