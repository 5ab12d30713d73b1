//! What a registry lists: tags, repositories, referrers; and taking something off it.

use std::collections::{BTreeSet, HashSet};

use http::{Method, StatusCode};
use oci_spec::distribution::{RepositoryList, TagList};
use url::Url;

use super::call::{Answer, Call, Caller, Target};
use super::origin::{Origin, follow, shown};
use super::repository::{Failures, Repository, accept};
use super::transport;
use crate::descriptor::Descriptor;
use crate::digest::Digest;
use crate::document::{Document, Index};
use crate::error::{Error, Result};
use crate::media_type;

impl Repository {
    /// All tags.
    pub(crate) async fn tags(&self) -> Result<Vec<String>> {
        let call = self.call(Method::GET, "tags/list", true);
        self.listed(call, |page| {
            let list: TagList = serde_json::from_slice(page).ok()?;
            Some(list.tags().clone())
        })
        .await
    }

    /// All repositories of the host; this one's own name plays no part.
    pub(crate) async fn repositories(&self) -> Result<Vec<String>> {
        let mut call = self.call(Method::GET, "", true);
        call.target = Target::Path("_catalog".into(), Vec::new());
        call.scopes = BTreeSet::from(["registry:catalog:*".to_owned()]);
        call.reference = String::new();
        self.listed(call, |page| {
            let list: RepositoryList = serde_json::from_slice(page).ok()?;
            Some(list.repositories().clone())
        })
        .await
    }

    /// Removes what the reference names: a manifest by digest, or else a tag.
    pub(crate) async fn delete(&self) -> Result<()> {
        let object = match (self.reference.digest(), self.reference.tag()) {
            (Some(digest), _) => digest.to_string(),
            (None, Some(tag)) => tag.to_owned(),
            (None, None) => {
                return Err(Error::InvalidArgument {
                    what: "reference",
                    reason: format!("object required in {}", self.reference),
                });
            }
        };
        let callers = self.callers(|can| can.push)?;
        let mut call = self.call(Method::DELETE, &format!("manifests/{object}"), true);
        call.scopes = self.scopes(&["delete", "pull"]);
        let answer = callers[0].0.send(&call).await?;
        match answer.status {
            status if status.is_success() => Ok(()),
            StatusCode::NOT_FOUND => Err(Error::not_found(self.name())),
            StatusCode::METHOD_NOT_ALLOWED => {
                Err(Error::Unsupported { what: format!("deleting at {}", self.reference.host()) })
            }
            _ => Err(answer.into_error(&self.client).await),
        }
    }

    /// The manifests about `subject`, from the interface for that or from the tag that stands in
    /// for it. The types are compared here too, since servers may not.
    pub(crate) async fn referrers(
        &self,
        subject: &Digest,
        artifact_types: &[&str],
    ) -> Result<Vec<Descriptor>> {
        let mut callers = self.callers(|can| can.referrers).unwrap_or_default();
        if callers.is_empty() {
            callers = self.callers(|can| can.resolve)?;
        }
        let fits = |descriptor: &Descriptor| {
            let kind = descriptor.artifact_type.as_deref();
            artifact_types.is_empty() || kind.is_some_and(|kind| artifact_types.contains(&kind))
        };
        for (caller, last) in &callers {
            match self.referrers_at(caller, *last, subject, artifact_types).await {
                Ok(mut found) => {
                    found.retain(fits);
                    return Ok(found);
                }
                // A limit or a foreign address is a fact about this answer, not a missing
                // interface; anything else is tried the older way.
                Err(error @ (Error::LimitExceeded { .. } | Error::Refused { .. })) => {
                    return Err(error);
                }
                Err(error) => tracing::debug!(%error, "no referrers interface"),
            }
        }
        let mut failures = Failures::default();
        let tag = format!("manifests/{}-{}", subject.algorithm().name(), subject.hex());
        for (caller, last) in &callers {
            let mut call = self.call(Method::GET, &tag, *last);
            call.headers = accept(media_type::OCI_INDEX);
            match self.page(caller, &call).await {
                Ok((_, page)) => {
                    let mut found = self.index(&page)?.manifests;
                    found.retain(fits);
                    return Ok(found);
                }
                Err(error) if error.is_not_found() => return Ok(Vec::new()),
                Err(error) => failures.add(error),
            }
        }
        Err(failures.into_error(&format!("referrers of {subject}")))
    }

    async fn referrers_at(
        &self,
        caller: &Caller,
        insist: bool,
        subject: &Digest,
        artifact_types: &[&str],
    ) -> Result<Vec<Descriptor>> {
        let mut call = self.call(Method::GET, &format!("referrers/{subject}"), insist);
        call.headers = accept(media_type::OCI_INDEX);
        if let Target::Path(_, query) = &mut call.target {
            let pairs = artifact_types.iter().map(|kind| ("artifactType".into(), (*kind).into()));
            query.extend(pairs);
        }
        self.paged(caller, call, |page| Ok(self.index(page)?.manifests)).await
    }

    async fn listed(
        &self,
        call: Call<'static>,
        read: impl Fn(&[u8]) -> Option<Vec<String>>,
    ) -> Result<Vec<String>> {
        // The host itself knows everything; mirrors know what passed through them.
        let callers = self.callers(|can| can.resolve)?;
        let (caller, _) = callers.last().expect("the list is not empty");
        let malformed = || Error::document(format!("list of {}", self.reference.host()), "not one");
        let found = self.paged(caller, call, |page| read(page).ok_or_else(malformed)).await;
        found.map_err(|error| match error {
            Error::Status { status: 404, .. } => Error::not_found(self.reference.locator()),
            error => error,
        })
    }

    /// Reads page after page, as far as the limits allow.
    async fn paged<T>(
        &self,
        caller: &Caller,
        mut call: Call<'static>,
        read: impl Fn(&[u8]) -> Result<Vec<T>>,
    ) -> Result<Vec<T>> {
        let limits = &self.client.limits;
        let exceeded = |what: &str, limit: usize| Error::LimitExceeded {
            what: format!("{what} of a list of {}", self.reference.host()),
            limit: limit as u64,
        };
        let mut entries = Vec::new();
        let mut seen = HashSet::new();
        for _ in 0..limits.pages_max {
            let (next, page) = self.page(caller, &call).await?;
            entries.extend(read(&page)?);
            if entries.len() > limits.entries_max {
                return Err(exceeded("entries", limits.entries_max));
            }
            let Some(next) = next else { return Ok(entries) };
            if !seen.insert(next.clone()) {
                return Err(Error::document("list", "its pages lead in a circle"));
            }
            call.target = Target::Url(next);
        }
        Err(exceeded("pages", limits.pages_max))
    }

    /// One page and the address of the next.
    async fn page(&self, caller: &Caller, call: &Call<'_>) -> Result<(Option<Url>, bytes::Bytes)> {
        let answer = caller.send(call).await?;
        if !answer.status.is_success() {
            return Err(answer.into_error(&self.client).await);
        }
        let next = self.next(caller, &answer)?;
        let host = caller.endpoint.host();
        let limit = self.client.limits.documents.manifest_bytes_max;
        let stall = self.client.timeouts.stall;
        let what = format!("list of {host}");
        Ok((next, transport::collect(&what, &host, answer.body, limit, stall).await?))
    }

    /// The address in `Link: <...>; rel="next"`. Lists do not move to other hosts.
    fn next(&self, caller: &Caller, answer: &Answer) -> Result<Option<Url>> {
        let Some(link) = answer.header("link") else { return Ok(None) };
        let next = link.split(',').find_map(|part| {
            let (address, parameters) = part.trim().strip_prefix('<')?.split_once('>')?;
            let mut parameters = parameters.split(';').map(str::trim);
            parameters.any(|one| matches!(one, "rel=\"next\"" | "rel=next")).then_some(address)
        });
        let Some(next) = next else { return Ok(None) };
        let refuse = |reason| Error::Refused {
            host: caller.endpoint.host(),
            url: shown(&answer.url),
            reason,
        };
        let mut url = follow(&answer.url, next).map_err(refuse)?;
        if Origin::of(&url) != caller.endpoint.origin() {
            return Err(refuse("next page is on another host"));
        }
        if let Some(host) = caller.endpoint.mirror_of()
            && !url.query_pairs().any(|(name, _)| name == "ns")
        {
            url.query_pairs_mut().append_pair("ns", host);
        }
        Ok(Some(url))
    }

    fn index(&self, bytes: &[u8]) -> Result<Index> {
        match Document::parse(bytes, media_type::OCI_INDEX, &self.client.limits.documents)? {
            Document::Index(index) => Ok(index),
            Document::Manifest(_) => Err(Error::document("referrers", "not an index")),
        }
    }
}
