//! Authorization at one endpoint: which header a request gets, and what a 401 teaches.
//!
//! Everything here belongs to one origin. The header made here is sent to that origin and to no
//! other; credentials leave only towards it and towards its token server, if that is of the same
//! site or on the list of trusted ones.

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

use base64::Engine as _;
use http::HeaderValue;
use tokio::sync::Mutex;

use super::challenge::Challenge;
use super::credentials::{Credential, Secret};
use super::token::TokenRequest;
use crate::error::{Error, Result};

/// The authorization state of one endpoint.
#[derive(Debug)]
pub(crate) struct Authorizer {
    /// Held while a token is being fetched, so that concurrent requests wait for one fetch
    /// instead of each doing their own.
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    scheme: Option<Scheme>,
    /// `Some(None)`: asked, and there is none.
    credential: Option<Option<Credential>>,
    tokens: HashMap<String, Token>,
    /// Scopes that challenges asked for beyond those of the request, by the latter: what one
    /// repository needs must not be asked for on behalf of another.
    further: HashMap<BTreeSet<String>, BTreeSet<String>>,
}

#[derive(Debug, Clone)]
enum Scheme {
    Basic,
    Bearer { realm: String, service: Option<String> },
}

#[derive(Debug, Clone)]
struct Token {
    secret: Secret,
    expires: Option<Instant>,
}

/// What a token server answered.
pub(crate) struct Issued {
    pub(crate) secret: Secret,
    pub(crate) lifetime: Option<Duration>,
}

/// How the authorizer reaches the outside: the endpoint it serves, and the request at hand.
pub(crate) struct AuthContext<'c> {
    pub(crate) client: &'c super::client::ClientParts,
    pub(crate) endpoint: &'c super::endpoint::Endpoint,
    pub(crate) reference: &'c str,
    pub(crate) scopes: &'c BTreeSet<String>,
}

impl Authorizer {
    pub(crate) fn new() -> Self {
        Self { state: Mutex::default() }
    }

    /// The `Authorization` header for a request with these scopes, as far as is known what the
    /// endpoint wants.
    pub(crate) async fn header(&self, context: &AuthContext<'_>) -> Result<Option<HeaderValue>> {
        let mut state = self.state.lock().await;
        match state.scheme.clone() {
            None => Ok(None),
            Some(scheme) => state.authorize(&scheme, context).await.map(Some),
        }
    }

    /// Learns from a 401 that a request with the header `sent` got. The next call of
    /// [`Self::header`] makes the header to try instead.
    ///
    /// # Errors
    ///
    /// [`Error::Denied`] when nothing else can be tried.
    pub(crate) async fn challenged(
        &self,
        context: &AuthContext<'_>,
        challenges: &[Challenge],
        texts: &[String],
        sent: Option<&HeaderValue>,
    ) -> Result<()> {
        let mut state = self.state.lock().await;
        let host = context.endpoint.host();
        let Some((scheme, scopes)) = choose(challenges) else {
            return Err(denied(host, "asks for no authorization scheme that is known here"));
        };
        if let Some(sent) = sent {
            // Someone else may have replaced the token since; only the one that was refused goes.
            let stale = |token: &Token| bearer(&token.secret).is_ok_and(|value| value == *sent);
            let before = state.tokens.len();
            state.tokens.retain(|_, token| !stale(token));
            let replaced = state.tokens.len() == before;
            let same = matches!((&scheme, &state.scheme), (Scheme::Basic, Some(Scheme::Basic)));
            if same && replaced {
                return Err(denied(host, "authorization failed: unauthorized"));
            }
            if matches!(state.credential, Some(Some(Credential::Header(_)))) {
                return Err(denied(host, "authorization failed: unauthorized"));
            }
        }
        if state.credential.is_none() {
            let lookup = super::credentials::lookup(&host, context.reference, texts);
            state.credential = Some(context.client.credentials.lookup(lookup).await?);
        }
        state.scheme = Some(scheme);
        let known = |scope: &String| context.scopes.iter().any(|wider| covers(wider, scope));
        let further: BTreeSet<String> = scopes.into_iter().filter(|scope| !known(scope)).collect();
        if state.further.len() >= TOKENS_MAX {
            state.further.clear();
        }
        if !further.is_empty() {
            state.further.insert(context.scopes.clone(), further);
        }
        Ok(())
    }
}

impl State {
    async fn authorize(
        &mut self,
        scheme: &Scheme,
        context: &AuthContext<'_>,
    ) -> Result<HeaderValue> {
        let credential = self.credential.clone().flatten();
        if let Some(Credential::Header(secret)) = &credential {
            return sensitive(secret.reveal().to_owned());
        }
        match scheme {
            Scheme::Basic => match &credential {
                Some(Credential::Basic { username, secret }) if !secret.is_empty() => {
                    basic(username, secret)
                }
                _ => {
                    let reason = "no basic auth credentials: unauthorized";
                    Err(denied(context.endpoint.host(), reason))
                }
            },
            Scheme::Bearer { realm, service } => {
                let mut scopes = context.scopes.clone();
                scopes.extend(self.further.get(context.scopes).into_iter().flatten().cloned());
                let key = scopes.iter().map(String::as_str).collect::<Vec<_>>().join(" ");
                let now = Instant::now();
                if let Some(token) = self.tokens.get(&key)
                    && token.expires.is_none_or(|expires| expires > now)
                {
                    return bearer(&token.secret);
                }
                let request = TokenRequest {
                    realm,
                    service: service.as_deref(),
                    scopes: &scopes,
                    credential: credential.as_ref(),
                };
                let issued = super::token::fetch(context, &request).await?;
                // A token is not used in its last moments, when it may expire on the way.
                let expires = issued.lifetime.map(|lifetime| now + lifetime.mul_f64(0.9));
                if self.tokens.len() >= TOKENS_MAX {
                    self.tokens.clear();
                }
                let header = bearer(&issued.secret);
                self.tokens.insert(key, Token { secret: issued.secret, expires });
                header
            }
        }
    }
}

/// `Basic` with a user name and secret.
pub(crate) fn basic(username: &str, secret: &Secret) -> Result<HeaderValue> {
    let pair = format!("{username}:{}", secret.reveal());
    sensitive(format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(pair)))
}

pub(crate) fn denied(host: impl Into<String>, reason: impl Into<String>) -> Error {
    Error::Denied { host: host.into(), reason: reason.into() }
}

fn bearer(secret: &Secret) -> Result<HeaderValue> {
    sensitive(format!("Bearer {}", secret.reveal()))
}

/// A header value that the http library's own `Debug` hides as well.
fn sensitive(text: String) -> Result<HeaderValue> {
    let mut value = HeaderValue::from_str(&text).map_err(|_| Error::InvalidArgument {
        what: "credential",
        reason: "holds characters that headers cannot".into(),
    })?;
    value.set_sensitive(true);
    Ok(value)
}

/// The scheme to use and the scopes it asks for: bearer before basic; a bearer challenge without
/// realm is none.
fn choose(challenges: &[Challenge]) -> Option<(Scheme, BTreeSet<String>)> {
    let bearer = challenges.iter().find(|challenge| {
        challenge.scheme == "bearer" && challenge.parameters.contains_key("realm")
    });
    if let Some(Challenge { parameters, .. }) = bearer {
        let scope = parameters.get("scope").map(String::as_str).unwrap_or_default();
        let scopes = scope.split(' ').filter(|s| !s.is_empty()).map(str::to_owned).collect();
        let realm = parameters["realm"].clone();
        let service = parameters.get("service").cloned();
        return Some((Scheme::Bearer { realm, service }, scopes));
    }
    let basic = challenges.iter().any(|challenge| challenge.scheme == "basic");
    basic.then_some((Scheme::Basic, BTreeSet::new()))
}

/// Whether a token for `wider` allows everything that one for `scope` does.
fn covers(wider: &str, scope: &str) -> bool {
    match (wider.rsplit_once(':'), scope.rsplit_once(':')) {
        (Some((resource, actions)), Some((wanted, some))) => {
            resource == wanted && some.split(',').all(|one| actions.split(',').any(|a| a == one))
        }
        _ => wider == scope,
    }
}

/// Distinct scopes of one endpoint that are remembered; each image pulled has one.
const TOKENS_MAX: usize = 1024;
