//! A token server for the tests: issues signed tokens that the real registry accepts.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::Certificates;

/// How the server treats requests.
#[derive(Debug, Clone, Default)]
pub(crate) struct Behaviour {
    /// The status of every POST, when it does not know that.
    pub(crate) post_status: Option<u16>,
    /// The lifetime it promises.
    pub(crate) expires_in: Option<serde_json::Value>,
    /// User and password it wants; nobody needs any when unset.
    pub(crate) login: Option<(String, String)>,
    /// The refresh token it takes instead.
    pub(crate) refresh: Option<String>,
}

pub(crate) struct TokenServer {
    pub(crate) address: SocketAddr,
    /// `METHOD authorization scope...` of each request.
    pub(crate) seen: Arc<Mutex<Vec<String>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for TokenServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl TokenServer {
    pub(crate) async fn start(certificates: &Certificates, behaviour: Behaviour) -> Self {
        let key = PrivateKeyDer::from_pem_slice(&certificates.read("server.key")).unwrap();
        let certificate = CertificateDer::from_pem_slice(&certificates.read("server.pem")).unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let state = Arc::new((key, certificate, behaviour, seen.clone()));
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let state = state.clone();
                tokio::spawn(async move {
                    let service = service_fn(move |request| {
                        let state = state.clone();
                        async move {
                            let (key, certificate, behaviour, seen) = &*state;
                            let answer = answer(key, certificate, behaviour, seen, request).await;
                            Ok::<_, Infallible>(answer)
                        }
                    });
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        Self { address, seen, task }
    }

    pub(crate) fn realm(&self) -> String {
        format!("http://{}/token", self.address)
    }

    pub(crate) fn requests(&self) -> Vec<String> {
        self.seen.lock().unwrap().clone()
    }
}

async fn answer(
    key: &PrivateKeyDer<'static>,
    certificate: &CertificateDer<'static>,
    behaviour: &Behaviour,
    seen: &Mutex<Vec<String>>,
    request: Request<Incoming>,
) -> Response<Full<Bytes>> {
    let method = request.method().clone();
    let authorization = request
        .headers()
        .get("authorization")
        .map(|value| value.to_str().unwrap().to_owned())
        .unwrap_or_default();
    let query = request.uri().query().unwrap_or_default().to_owned();
    let body = request.into_body().collect().await.unwrap().to_bytes();
    let text = if body.is_empty() { query } else { String::from_utf8(body.to_vec()).unwrap() };
    let fields: Vec<(String, String)> =
        url::form_urlencoded::parse(text.as_bytes()).into_owned().collect();
    let all = |name: &str| {
        let found = fields.iter().filter(move |(field, _)| field == name);
        found.map(|(_, value)| value.clone()).collect::<Vec<_>>()
    };
    let field = |name: &str| all(name).into_iter().next().unwrap_or_default();
    let scopes = all("scope").join(" ");
    seen.lock().unwrap().push(format!("{method} {scopes}"));
    let status = |code: u16| Response::builder().status(code).body(Full::default()).unwrap();
    if method == "POST"
        && let Some(code) = behaviour.post_status
    {
        return status(code);
    }
    let allowed = match (&behaviour.login, &behaviour.refresh) {
        (None, None) => true,
        (_, Some(refresh)) if field("grant_type") == "refresh_token" => {
            field("refresh_token") == *refresh
        }
        (Some((user, password)), _) if method == "POST" => {
            field("username") == *user && field("password") == *password
        }
        (Some((user, password)), _) => {
            authorization == format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))
        }
        _ => false,
    };
    if !allowed {
        return status(StatusCode::UNAUTHORIZED.as_u16());
    }
    let token = sign(key, certificate, &field("service"), &scopes);
    let mut answer = serde_json::json!({ "token": token });
    if let Some(expires) = &behaviour.expires_in {
        answer["expires_in"] = expires.clone();
    }
    Response::new(Full::from(answer.to_string()))
}

/// A JSON web token with the certificate in its header, granting what was asked for.
fn sign(
    key: &PrivateKeyDer<'static>,
    certificate: &CertificateDer<'static>,
    service: &str,
    scopes: &str,
) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let access: Vec<_> = scopes
        .split_whitespace()
        .map(|scope| {
            let (kind, rest) = scope.split_once(':').unwrap();
            let (name, actions) = rest.rsplit_once(':').unwrap();
            let actions: Vec<&str> = actions.split(',').collect();
            serde_json::json!({"type": kind, "name": name, "actions": actions})
        })
        .collect();
    let header = serde_json::json!({
        "typ": "JWT", "alg": "RS256", "x5c": [STANDARD.encode(certificate)],
    });
    let claims = serde_json::json!({
        "iss": "test issuer", "aud": service, "sub": "", "jti": now.to_string(),
        "iat": now - 10, "nbf": now - 10, "exp": now + 300, "access": access,
    });
    let encode = |value: &serde_json::Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let signed = format!("{}.{}", encode(&header), encode(&claims));
    let key = rustls::crypto::ring::sign::any_supported_type(key).unwrap();
    let signer = key.choose_scheme(&[rustls::SignatureScheme::RSA_PKCS1_SHA256]).unwrap();
    let signature = signer.sign(signed.as_bytes()).unwrap();
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
}
