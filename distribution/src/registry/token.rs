//! Getting a bearer token from the server a challenge names.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE};
use http::{Method, Request, StatusCode};
use hyper::body::Incoming;
use serde::Deserialize;
use url::Url;

use super::auth::{AuthContext, Issued, basic, denied};
use super::credentials::{Credential, Secret};
use super::origin::{Origin, follow, same_site, shown};
use super::transport::{self, Activity, Trust};
use crate::error::{Error, Result};

/// What is asked for, and in whose name.
pub(crate) struct TokenRequest<'r> {
    pub(crate) realm: &'r str,
    pub(crate) service: Option<&'r str>,
    pub(crate) scopes: &'r BTreeSet<String>,
    pub(crate) credential: Option<&'r Credential>,
}

/// Fetches a token: with a secret by POST as OAuth 2 wants it, and by GET where the server does
/// not know that; without one by GET.
pub(crate) async fn fetch(context: &AuthContext<'_>, request: &TokenRequest<'_>) -> Result<Issued> {
    let (realm, trust) = check_realm(context, request)?;
    let Some(credential) = request.credential else {
        return read(context, &realm, get(context, &realm, trust, request, None).await?).await;
    };
    let answer = post(context, &realm, trust, request, credential).await?;
    // What old and half servers say to a POST they do not know.
    let unknown = [
        StatusCode::METHOD_NOT_ALLOWED,
        StatusCode::NOT_FOUND,
        StatusCode::UNAUTHORIZED,
        StatusCode::BAD_REQUEST,
    ];
    match credential {
        Credential::Basic { username, secret } if unknown.contains(&answer.status()) => {
            let pair = Some((username.as_str(), secret));
            read(context, &realm, get(context, &realm, trust, request, pair).await?).await
        }
        _ => read(context, &realm, answer).await,
    }
}

/// Decides whether the token server may be asked at all, and as whom.
fn check_realm(context: &AuthContext<'_>, request: &TokenRequest<'_>) -> Result<(Url, Trust)> {
    let registry = context.endpoint.base();
    let host = context.endpoint.host();
    let refuse = |reason| Error::Refused {
        host: host.clone(),
        url: Url::parse(request.realm).map_or_else(|_| "token server".into(), |url| shown(&url)),
        reason,
    };
    let realm = Url::parse(request.realm).map_err(|_| refuse("realm is not an address"))?;
    let realm = follow(&registry, realm.as_str()).map_err(refuse)?;
    let origin = Origin::of(&realm);
    let listed = context
        .client
        .trusted_realms
        .iter()
        .any(|trusted| trusted.eq_ignore_ascii_case(&origin.authority()));
    let own = origin == Origin::of(&registry);
    if own {
        return Ok((realm, Trust::Own));
    }
    if !listed && request.credential.is_some() && !same_site(&registry, &realm) {
        return Err(refuse("token server is of another site, no credentials were sent"));
    }
    let trust =
        if listed || realm.host() == registry.host() { Trust::Configured } else { Trust::Foreign };
    Ok((realm, trust))
}

async fn post(
    context: &AuthContext<'_>,
    realm: &Url,
    trust: Trust,
    request: &TokenRequest<'_>,
    credential: &Credential,
) -> Result<http::Response<Incoming>> {
    let form = {
        let mut form = url::form_urlencoded::Serializer::new(String::new());
        match credential {
            Credential::Basic { username, secret } => {
                form.append_pair("grant_type", "password");
                form.append_pair("username", username);
                form.append_pair("password", secret.reveal());
            }
            Credential::RefreshToken(secret) | Credential::Header(secret) => {
                form.append_pair("grant_type", "refresh_token");
                form.append_pair("refresh_token", secret.reveal());
            }
        }
        if let Some(service) = request.service {
            form.append_pair("service", service);
        }
        form.append_pair("client_id", CLIENT_ID);
        let scopes: Vec<&str> = request.scopes.iter().map(String::as_str).collect();
        if !scopes.is_empty() {
            form.append_pair("scope", &scopes.join(" "));
        }
        form.finish()
    };
    let builder = Request::builder()
        .method(Method::POST)
        .header(CONTENT_TYPE, "application/x-www-form-urlencoded; charset=utf-8");
    send(context, realm, trust, builder, Bytes::from(form)).await
}

async fn get(
    context: &AuthContext<'_>,
    realm: &Url,
    trust: Trust,
    request: &TokenRequest<'_>,
    pair: Option<(&str, &Secret)>,
) -> Result<http::Response<Incoming>> {
    let mut url = realm.clone();
    if request.service.is_some() || !request.scopes.is_empty() {
        let mut query = url.query_pairs_mut();
        if let Some(service) = request.service {
            query.append_pair("service", service);
        }
        for scope in request.scopes {
            query.append_pair("scope", scope);
        }
    }
    let mut builder = Request::builder().method(Method::GET);
    if let Some((username, secret)) = pair {
        builder = builder.header(AUTHORIZATION, basic(username, secret)?);
    }
    send(context, &url, trust, builder, Bytes::new()).await
}

async fn send(
    context: &AuthContext<'_>,
    url: &Url,
    trust: Trust,
    builder: http::request::Builder,
    payload: Bytes,
) -> Result<http::Response<Incoming>> {
    let mut builder = builder
        .uri(url.as_str())
        .header(http::header::USER_AGENT, context.client.user_agent.clone())
        .header(ACCEPT, "application/json");
    if trust == Trust::Own {
        for (name, value) in &context.endpoint.headers {
            builder = builder.header(name, value);
        }
    }
    let request = builder
        .body(transport::full(payload))
        .map_err(|error| denied(context.endpoint.host(), format!("token request: {error}")))?;
    let transport = &context.endpoint.transport;
    transport.send(url, request, trust, &Activity::new()).await.map_err(|failure| failure.error)
}

/// Reads the answer. No text of it enters an error, since it may hold the token.
async fn read(
    context: &AuthContext<'_>,
    realm: &Url,
    answer: http::Response<Incoming>,
) -> Result<Issued> {
    let (host, shown) = (context.endpoint.host(), shown(realm));
    let status = answer.status();
    if !status.is_success() {
        let reason = format!("failed to authorize: token server {shown} answered {status}");
        if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS {
            let (method, status) = ("POST", status.as_u16());
            return Err(Error::Status { method, url: shown, status, message: String::new() });
        }
        return Err(denied(host, reason));
    }
    let stall = context.client.timeouts.stall;
    let what = format!("answer of token server {shown}");
    let body =
        transport::collect(&what, &host, answer.into_body(), ANSWER_BYTES_MAX, stall).await?;
    let answer: Answer = serde_json::from_slice(&body)
        .map_err(|_| denied(&host, format!("token server {shown} did not answer with a token")))?;
    let token = [answer.token, answer.access_token]
        .into_iter()
        .flatten()
        .find(|token| !token.is_empty())
        .ok_or_else(|| denied(&host, format!("token server {shown} answered without a token")))?;
    Ok(Issued { secret: Secret::new(token), lifetime: lifetime(answer.expires_in) })
}

/// How long a token lives. No, zero and negative lifetimes mean until it is refused; absurd ones
/// are cut.
fn lifetime(expires_in: Option<serde_json::Number>) -> Option<Duration> {
    let seconds = expires_in?.as_f64()?;
    (seconds > 0.0).then(|| Duration::from_secs_f64(seconds.min(LIFETIME_SECONDS_MAX)))
}

#[derive(Deserialize)]
struct Answer {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<serde_json::Number>,
}

/// The name token servers know clients of this family by; some check it.
const CLIENT_ID: &str = "containerd-client";
/// Tokens are a few KiB; the largest with many permissions stay below 64 KiB.
const ANSWER_BYTES_MAX: u64 = 1 << 20;
/// One day: after that a token is asked for again whatever the server said.
const LIFETIME_SECONDS_MAX: f64 = 86_400.0;
