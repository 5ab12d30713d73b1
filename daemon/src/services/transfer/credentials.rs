//! Credentials that the client is asked for, over a stream it opened.

use async_trait::async_trait;
use crated_api::any;
use crated_api::types::transfer::{AuthRequest, AuthResponse, AuthType};
use crated_distribution::{Credential, Credentials, Lookup, Secret};

use super::super::streaming::AnyStream;

/// See the module.
pub(super) struct Asked {
    pub(super) stream: tokio::sync::Mutex<AnyStream>,
}

#[async_trait]
impl Credentials for Asked {
    async fn lookup(
        &self,
        lookup: Lookup<'_>,
    ) -> Result<Option<Credential>, crated_distribution::Error> {
        let failed = |reason: &str| crated_distribution::Error::Credentials {
            host: lookup.host.to_owned(),
            reason: reason.to_owned(),
        };
        let request = AuthRequest {
            host: lookup.host.to_owned(),
            reference: lookup.reference.to_owned(),
            wwwauthenticate: lookup.challenges.to_vec(),
        };
        // One question at a time: answers carry nothing that says what they answer.
        let mut stream = self.stream.lock().await;
        let gone = |_| failed("the client no longer answers");
        stream.outgoing.send(Ok(any::pack(&request))).await.map_err(gone)?;
        let answer = stream.incoming.message().await.map_err(|error| failed(error.message()))?;
        let answer = answer.ok_or_else(|| failed("the client ended the stream"))?;
        let answer: AuthResponse =
            any::unpack(&answer).map_err(|_| failed("the client answered something else"))?;
        Ok(match answer.auth_type() {
            AuthType::None => None,
            AuthType::Credentials => Some(Credential::new(answer.username, answer.secret)),
            AuthType::Refresh => Some(Credential::RefreshToken(Secret::new(answer.secret))),
            AuthType::Header => Some(Credential::Header(Secret::new(answer.secret))),
        })
    }
}
