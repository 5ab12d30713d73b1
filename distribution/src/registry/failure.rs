//! Why a request got no answer, in words that existing tools look for.
//!
//! Command lines decide by the text of an error whether to try plain http, so the phrases
//! `connect: connection refused`, `http: server gave HTTP response to HTTPS client` and
//! `tls: failed to verify certificate: x509: ...` are part of the contract.

use std::error::Error as StdError;
use std::io;

use rustls::CertificateError;

/// What happened, as far as the next step depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FailureKind {
    /// Nobody listens there.
    Refused,
    /// The other side does not speak TLS.
    NotTls,
    /// The other side speaks TLS, but not to us.
    Tls,
    /// The connection broke; trying again may help.
    Broken,
    /// Too slow.
    Timeout,
    /// Our own policy, or a request that could not be built.
    Refusal,
    /// No such host and other lasting causes.
    Other,
}

/// Classifies an error of the http client and says it in the words above.
pub(crate) fn explain(error: &(dyn StdError + 'static), authority: &str) -> (FailureKind, String) {
    let mut last = error.to_string();
    let mut next: Option<&(dyn StdError + 'static)> = Some(error);
    let mut dns = false;
    while let Some(error) = next {
        last = error.to_string();
        dns |= last == "dns error";
        if let Some(tls) = error.downcast_ref::<rustls::Error>() {
            return explain_tls(tls, authority);
        }
        if let Some(refusal) = error.downcast_ref::<Guarded>() {
            return (FailureKind::Refusal, refusal.to_string());
        }
        if let Some(refusal) = error.downcast_ref::<NoTunnel>() {
            return (FailureKind::Other, refusal.to_string());
        }
        if let Some(io) = error.downcast_ref::<io::Error>() {
            if let Some(inner) = io.get_ref() {
                next = Some(inner);
                continue;
            }
            return explain_io(io, authority);
        }
        if let Some(hyper) = error.downcast_ref::<hyper::Error>() {
            if hyper.is_incomplete_message() {
                return (FailureKind::Broken, "unexpected EOF".into());
            }
            if (hyper.is_closed() || hyper.is_canceled()) && hyper.source().is_none() {
                return (FailureKind::Broken, CLOSED.into());
            }
        }
        next = error.source();
    }
    if dns {
        return (
            FailureKind::Other,
            format!("dial tcp: lookup {authority}: no such host ({last})"),
        );
    }
    // HTTP/2 keeps only the text of what broke its connection.
    if let Some(alert) = last.strip_prefix("received fatal alert: ") {
        return (FailureKind::Tls, format!("remote error: tls: {alert}"));
    }
    (FailureKind::Broken, last)
}

fn explain_io(error: &io::Error, authority: &str) -> (FailureKind, String) {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => {
            (FailureKind::Refused, format!("dial tcp {authority}: connect: connection refused"))
        }
        io::ErrorKind::TimedOut => {
            (FailureKind::Timeout, format!("dial tcp {authority}: i/o timeout"))
        }
        io::ErrorKind::UnexpectedEof => (FailureKind::Broken, "unexpected EOF".into()),
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => {
            (FailureKind::Broken, "connection reset by peer".into())
        }
        io::ErrorKind::NetworkUnreachable | io::ErrorKind::HostUnreachable => {
            (FailureKind::Other, format!("dial tcp {authority}: connect: no route to host"))
        }
        _ => (FailureKind::Broken, error.to_string()),
    }
}

fn explain_tls(error: &rustls::Error, authority: &str) -> (FailureKind, String) {
    let untrusted = |reason: String| {
        (FailureKind::Tls, format!("tls: failed to verify certificate: x509: {reason}"))
    };
    match error {
        // The first bytes were no TLS record at all.
        rustls::Error::InvalidMessage(_) => {
            (FailureKind::NotTls, "http: server gave HTTP response to HTTPS client".into())
        }
        rustls::Error::InvalidCertificate(reason) => untrusted(match reason {
            CertificateError::UnknownIssuer => "certificate signed by unknown authority".into(),
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                "certificate has expired or is not yet valid: it has expired".into()
            }
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                "certificate has expired or is not yet valid: it is not yet valid".into()
            }
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                format!("certificate is not valid for {authority}")
            }
            other => format!("certificate is not acceptable: {other}"),
        }),
        rustls::Error::NoCertificatesPresented => untrusted("no certificate".into()),
        rustls::Error::AlertReceived(alert) => {
            (FailureKind::Tls, format!("remote error: tls: {alert:?}"))
        }
        other => (FailureKind::Tls, format!("tls: handshake failed: {other}")),
    }
}

/// What is said of a connection that ended before the answer began.
pub(crate) const CLOSED: &str = "connection closed before an answer came";

/// A name that leads to an address untrusted answers may not send us to.
#[derive(Debug, thiserror::Error)]
#[error("host resolves to a loopback or link-local address only")]
pub(crate) struct Guarded;

/// A proxy that answered, but with something else than a way through.
#[derive(Debug, thiserror::Error)]
#[error("proxy: {0}")]
pub(crate) struct NoTunnel(pub(crate) String);
