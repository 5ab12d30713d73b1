//! TLS configurations: which authorities are believed, which certificate we show.

use std::path::Path;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};

use crate::error::{Error, Result};

/// What a host's configuration says about TLS.
#[derive(Debug, Clone, Default)]
pub(crate) struct TlsOptions {
    pub(crate) ca: Vec<CertificateDer<'static>>,
    pub(crate) client: Option<Arc<ClientCertificate>>,
    pub(crate) skip_verify: bool,
}

/// A certificate chain and its key.
pub(crate) struct ClientCertificate {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

impl std::fmt::Debug for ClientCertificate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClientCertificate")
            .field("chain", &self.chain.len())
            .finish_non_exhaustive()
    }
}

impl TlsOptions {
    /// The configuration for connections; `show_client` adds our certificate, which only the host
    /// it is configured for may ask for.
    pub(crate) fn config(&self, show_client: bool) -> Result<ClientConfig> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(|error| invalid(error.to_string()))?;
        let builder = if self.skip_verify {
            builder.dangerous().with_custom_certificate_verifier(Arc::new(Unverified(provider)))
        } else {
            builder.with_root_certificates(self.roots()?)
        };
        match &self.client {
            Some(client) if show_client => builder
                .with_client_auth_cert(client.chain.clone(), client.key.clone_key())
                .map_err(|error| invalid(format!("client certificate: {error}"))),
            _ => Ok(builder.with_no_client_auth()),
        }
    }

    fn roots(&self) -> Result<RootCertStore> {
        let mut roots = RootCertStore::empty();
        // Systems ship certificates that no library reads; the rest is what counts.
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        for certificate in &self.ca {
            roots.add(certificate.clone()).map_err(|error| invalid(error.to_string()))?;
        }
        Ok(roots)
    }
}

/// The certificates of a PEM bundle.
pub(crate) fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<_, _>>()
        .map_err(|error| error.to_string())?;
    if certificates.is_empty() { Err("no certificate in it".into()) } else { Ok(certificates) }
}

/// Reads a certificate chain and its key; one file may hold both.
pub(crate) fn client_certificate(
    certificate: &Path,
    key: &Path,
) -> Result<ClientCertificate, String> {
    let chain = certificates(&read_pem(certificate)?)
        .map_err(|reason| format!("{}: {reason}", certificate.display()))?;
    let key = PrivateKeyDer::from_pem_slice(&read_pem(key)?)
        .map_err(|error| format!("{}: {error}", key.display()))?;
    Ok(ClientCertificate { chain, key })
}

/// Reads a PEM file of bounded size.
pub(crate) fn read_pem(path: &Path) -> Result<Vec<u8>, String> {
    use std::io::Read as _;
    let explain = |error: std::io::Error| format!("{}: {error}", path.display());
    let mut pem = Vec::new();
    let file = std::fs::File::open(path).map_err(explain)?;
    file.take(PEM_BYTES_MAX + 1).read_to_end(&mut pem).map_err(explain)?;
    if pem.len() as u64 > PEM_BYTES_MAX {
        return Err(format!("{}: larger than {PEM_BYTES_MAX} bytes", path.display()));
    }
    Ok(pem)
}

fn invalid(reason: String) -> Error {
    Error::InvalidArgument { what: "TLS configuration", reason }
}

/// Believes every certificate, for hosts the configuration says `skip_verify` of. Signatures of
/// the handshake are still checked, so the peer holds the key of whatever it showed.
#[derive(Debug)]
struct Unverified(Arc<CryptoProvider>);

impl ServerCertVerifier for Unverified {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// The largest bundles of a whole operating system are a quarter of this.
const PEM_BYTES_MAX: u64 = 4 << 20;
