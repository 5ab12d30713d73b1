//! One repository at the endpoints of its host.

use std::collections::BTreeSet;
use std::sync::Arc;

use http::header::ACCEPT;
use http::{HeaderMap, HeaderValue, Method};

use super::call::{Answer, Call, Caller, Carries, Target};
use super::client::ClientParts;
use super::endpoint::{Capabilities, Endpoints};
use crate::descriptor::Descriptor;
use crate::error::{Error, Result};
use crate::media_type::{self, MediaType};
use crate::reference::Reference;

/// The requests that belong to one repository.
#[derive(Debug, Clone)]
pub(crate) struct Repository {
    pub(crate) client: Arc<ClientParts>,
    pub(crate) reference: Reference,
    endpoints: Endpoints,
}

impl Repository {
    pub(crate) async fn new(client: &Arc<ClientParts>, reference: &Reference) -> Result<Self> {
        let endpoints = client.endpoints(reference.host()).await?;
        Ok(Self { client: client.clone(), reference: reference.clone(), endpoints })
    }

    /// The endpoints that may be asked, best first; each with whether it is the last one.
    pub(crate) fn callers(
        &self,
        wanted: impl Fn(Capabilities) -> bool,
    ) -> Result<Vec<(Caller, bool)>> {
        let fit: Vec<_> =
            self.endpoints.iter().filter(|endpoint| wanted(endpoint.capabilities)).collect();
        let count = fit.len();
        if count == 0 {
            let host = self.reference.host();
            return Err(Error::not_found(format!("{host}: no endpoint with that capability")));
        }
        let caller = |(at, endpoint): (usize, &Arc<super::endpoint::Endpoint>)| {
            let (client, endpoint) = (self.client.clone(), endpoint.clone());
            (Caller { client, endpoint }, at + 1 == count)
        };
        Ok(fit.into_iter().enumerate().map(caller).collect())
    }

    /// A request below this repository's path.
    pub(crate) fn call(&self, method: Method, path: &str, insist: bool) -> Call<'static> {
        Call {
            method,
            target: Target::Path(format!("{}/{path}", self.reference.repository()), Vec::new()),
            headers: HeaderMap::new(),
            carries: Carries::Nothing,
            scopes: self.scopes(&["pull"]),
            reference: self.reference.locator(),
            insist,
        }
    }

    /// The scope of this repository with `actions`.
    pub(crate) fn scopes(&self, actions: &[&str]) -> BTreeSet<String> {
        let repository = self.reference.repository();
        BTreeSet::from([format!("repository:{repository}:{}", actions.join(","))])
    }

    /// The path of what a descriptor names, as registries keep it.
    pub(crate) fn path(descriptor: &Descriptor) -> String {
        if MediaType::of(&descriptor.media_type).is_document() {
            format!("manifests/{}", descriptor.digest)
        } else {
            format!("blobs/{}", descriptor.digest)
        }
    }

    /// The whole reference in errors.
    pub(crate) fn name(&self) -> String {
        self.reference.to_string()
    }
}

/// The `Accept` header of requests for manifests of any kind.
pub(crate) fn accept_documents() -> HeaderMap {
    let types = [
        media_type::DOCKER_MANIFEST,
        media_type::DOCKER_INDEX,
        media_type::OCI_MANIFEST,
        media_type::OCI_INDEX,
        "*/*",
    ];
    accept(&types.join(", "))
}

/// An `Accept` header.
pub(crate) fn accept(types: &str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    // Media types of documents were checked for control characters; others ask for anything.
    let value = HeaderValue::from_str(types).unwrap_or(HeaderValue::from_static("*/*"));
    headers.insert(ACCEPT, value);
    headers
}

/// The first error of the worst kind: what a user needs to read when several endpoints failed.
#[derive(Debug, Default)]
pub(crate) struct Failures {
    worst: Option<(u8, Error)>,
    beyond_absence: bool,
}

impl Failures {
    pub(crate) fn add(&mut self, error: Error) {
        self.beyond_absence |= !error.is_not_found();
        let rank = match &error {
            Error::LimitExceeded { .. } => 1,
            Error::Status { status: 404, .. } | Error::NotFound { .. } => 3,
            Error::Status { .. } | Error::TooManyRequests { .. } => 2,
            _ => 4,
        };
        if self.worst.as_ref().is_none_or(|(worst, _)| rank > *worst) {
            self.worst = Some((rank, error));
        }
    }

    /// Whether nothing worse than absence was seen.
    pub(crate) fn only_absent(&self) -> bool {
        !self.beyond_absence
    }

    /// The error to report about `what`.
    pub(crate) fn into_error(self, what: &str) -> Error {
        match self.worst {
            Some((_, Error::Denied { host, reason })) => Error::Denied {
                host,
                reason: format!(
                    "pull access denied, repository does not exist or may require authorization: \
                     {reason}"
                ),
            },
            Some((_, Error::Status { status: 404, .. })) | None => Error::not_found(what),
            Some((_, error)) => error,
        }
    }
}

/// The length header of an answer, when it is usable.
pub(crate) fn content_length(answer: &Answer) -> Option<u64> {
    let text = answer.header("content-length")?;
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}
