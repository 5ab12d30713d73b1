//! Packing messages the way containerd does: under their bare name.
//!
//! The protobuf libraries put a host name before the message name
//! (`type.googleapis.com/…`). containerd writes the bare name, and clients up
//! to 1.6 look it up verbatim; both forms are read.

use prost::{DecodeError, Message, Name};
use prost_types::Any;

/// The host that protobuf libraries put before a message name.
const HOST: &str = "type.googleapis.com/";

/// Why a packed message could not be taken out.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Error {
    /// It is another message.
    Type {
        /// Name of the message asked for.
        expected: String,
        /// Type URL found.
        found: String,
    },
    /// Its bytes are not such a message.
    Decode {
        /// Name of the message.
        name: String,
        /// What the bytes break.
        source: DecodeError,
    },
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Error::Type { expected, found } => {
                write!(f, "message of type {found:?} where {expected} is expected")
            }
            Error::Decode { name, .. } => write!(f, "malformed {name}"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Error::Type { .. } => None,
            Error::Decode { source, .. } => Some(source),
        }
    }
}

/// Packs a message under its bare name.
pub fn pack<M: Message + Name>(message: &M) -> Any {
    Any { type_url: M::full_name(), value: message.encode_to_vec() }
}

/// The message name in a type URL, without the host if there is one.
pub fn name(type_url: &str) -> &str {
    type_url.strip_prefix(HOST).unwrap_or(type_url).trim_start_matches('/')
}

/// Whether `packed` holds an `M`.
pub fn is<M: Name>(packed: &Any) -> bool {
    name(&packed.type_url) == M::full_name()
}

/// Takes an `M` out.
///
/// # Errors
///
/// - [`Error::Type`]: `packed` holds another message.
/// - [`Error::Decode`]: the bytes are malformed.
pub fn unpack<M: Message + Name + Default>(packed: &Any) -> Result<M, Error> {
    if !is::<M>(packed) {
        return Err(Error::Type { expected: M::full_name(), found: packed.type_url.clone() });
    }
    M::decode(packed.value.as_slice())
        .map_err(|source| Error::Decode { name: M::full_name(), source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::{ImageCreate, TaskExit, TaskOom};

    #[test]
    fn names_carry_no_host() {
        assert_eq!(pack(&TaskOom::default()).type_url, "containerd.events.TaskOOM");
        assert_eq!(
            pack(&ImageCreate::default()).type_url,
            "containerd.services.images.v1.ImageCreate"
        );
    }

    #[test]
    fn a_host_is_accepted_when_reading() {
        let exit = TaskExit { id: "x".into(), exit_status: 137, ..TaskExit::default() };
        let mut packed = pack(&exit);
        packed.type_url.insert_str(0, HOST);
        assert_eq!(unpack::<TaskExit>(&packed), Ok(exit));
    }

    #[test]
    fn another_message_is_refused() {
        let packed = pack(&TaskOom::default());
        assert!(matches!(unpack::<TaskExit>(&packed), Err(Error::Type { .. })));
    }

    #[test]
    fn malformed_bytes_are_refused() {
        let packed = Any { type_url: TaskExit::full_name(), value: vec![0xff; 3] };
        assert!(matches!(unpack::<TaskExit>(&packed), Err(Error::Decode { .. })));
    }
}
