use std::fmt;
use std::str::FromStr;

use super::validate;
use super::{Error, Result};

/// The name of a namespace, valid by construction: an identifier of at most 76 bytes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Namespace(Box<str>);

impl Namespace {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Namespace {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        validate::identifier("namespace", text)?;
        Ok(Self(text.into()))
    }
}

impl TryFrom<&str> for Namespace {
    type Error = Error;

    fn try_from(text: &str) -> Result<Self> {
        text.parse()
    }
}

impl AsRef<str> for Namespace {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// On whose behalf an operation runs: what the headers of a call say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scope {
    /// The namespace the call works in. It need not exist yet.
    pub namespace: Namespace,
    /// The lease that everything the call creates or touches is attached to.
    pub lease: Option<String>,
}

impl Scope {
    /// Works in `namespace`, without a lease.
    pub fn new(namespace: Namespace) -> Self {
        Self { namespace, lease: None }
    }

    /// The same namespace, with everything touched attached to `lease`.
    #[must_use]
    pub fn with_lease(mut self, lease: impl Into<String>) -> Self {
        self.lease = Some(lease.into());
        self
    }
}

impl From<Namespace> for Scope {
    fn from(namespace: Namespace) -> Self {
        Self::new(namespace)
    }
}
