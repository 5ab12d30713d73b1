use sha2::Digest as _;
use sha2::digest::common::hazmat::{SerializableState, SerializedState};

use crate::digest::{Algorithm, Digest};
use crate::error::{Error, Result};

/// Computes a [`Digest`] over bytes that arrive in pieces.
///
/// ```
/// use crated_content::{Algorithm, Digest, Hasher};
///
/// let mut hasher = Hasher::new(Algorithm::Sha256);
/// hasher.update(b"hel");
/// hasher.update(b"lo");
/// assert_eq!(hasher.size_bytes(), 5);
/// hasher.verify(&Digest::of(b"hello"))?;
/// # Ok::<(), crated_content::Error>(())
/// ```
#[derive(Clone)]
pub struct Hasher {
    state: State,
    size_bytes: u64,
}

#[derive(Clone)]
enum State {
    Sha256(sha2::Sha256),
    Sha384(sha2::Sha384),
    Sha512(sha2::Sha512),
    Blake3(Box<blake3::Hasher>),
}

impl Hasher {
    /// A hasher that has seen nothing.
    pub fn new(algorithm: Algorithm) -> Self {
        let state = match algorithm {
            Algorithm::Sha256 => State::Sha256(sha2::Sha256::new()),
            Algorithm::Sha384 => State::Sha384(sha2::Sha384::new()),
            Algorithm::Sha512 => State::Sha512(sha2::Sha512::new()),
            Algorithm::Blake3 => State::Blake3(Box::default()),
        };
        Self { state, size_bytes: 0 }
    }

    /// The algorithm chosen at the start.
    pub fn algorithm(&self) -> Algorithm {
        match self.state {
            State::Sha256(_) => Algorithm::Sha256,
            State::Sha384(_) => Algorithm::Sha384,
            State::Sha512(_) => Algorithm::Sha512,
            State::Blake3(_) => Algorithm::Blake3,
        }
    }

    /// How many bytes have been hashed.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Appends `bytes`.
    pub fn update(&mut self, bytes: &[u8]) {
        match &mut self.state {
            State::Sha256(hash) => hash.update(bytes),
            State::Sha384(hash) => hash.update(bytes),
            State::Sha512(hash) => hash.update(bytes),
            State::Blake3(hash) => {
                hash.update(bytes);
            }
        }
        self.size_bytes += bytes.len() as u64;
    }

    /// The digest of everything so far. More bytes may follow.
    pub fn digest(&self) -> Digest {
        let algorithm = self.algorithm();
        let digest = match &self.state {
            State::Sha256(hash) => Digest::from_hash(algorithm, &hash.clone().finalize()),
            State::Sha384(hash) => Digest::from_hash(algorithm, &hash.clone().finalize()),
            State::Sha512(hash) => Digest::from_hash(algorithm, &hash.clone().finalize()),
            State::Blake3(hash) => Digest::from_hash(algorithm, hash.finalize().as_bytes()),
        };
        digest.expect("a hash has the length its algorithm declares")
    }

    /// Succeeds when the bytes so far are the ones `expected` names.
    ///
    /// # Errors
    ///
    /// [`Error::DigestMismatch`] with both digests; also when `expected` names another algorithm
    /// than this hasher computes.
    pub fn verify(&self, expected: &Digest) -> Result<()> {
        let actual = self.digest();
        if actual == *expected {
            return Ok(());
        }
        Err(Error::DigestMismatch { expected: expected.clone(), actual })
    }

    /// The inner state as bytes, to continue in another process; `None` for blake3, whose tree
    /// state cannot be saved and which is fast enough to hash again.
    pub(crate) fn save(&self) -> Option<Vec<u8>> {
        match &self.state {
            State::Sha256(hash) => Some(hash.serialize().to_vec()),
            State::Sha384(hash) => Some(hash.serialize().to_vec()),
            State::Sha512(hash) => Some(hash.serialize().to_vec()),
            State::Blake3(_) => None,
        }
    }

    /// Undoes [`save`](Self::save); `None` when `bytes` is not a state of `algorithm`.
    pub(crate) fn restore(algorithm: Algorithm, bytes: &[u8], size_bytes: u64) -> Option<Self> {
        fn from<H: SerializableState>(bytes: &[u8]) -> Option<H> {
            let state = SerializedState::<H>::try_from(bytes).ok()?;
            H::deserialize(&state).ok()
        }
        let state = match algorithm {
            Algorithm::Sha256 => State::Sha256(from(bytes)?),
            Algorithm::Sha384 => State::Sha384(from(bytes)?),
            Algorithm::Sha512 => State::Sha512(from(bytes)?),
            Algorithm::Blake3 => return None,
        };
        Some(Self { state, size_bytes })
    }
}

impl std::fmt::Debug for Hasher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hasher")
            .field("algorithm", &self.algorithm())
            .field("size_bytes", &self.size_bytes)
            .finish_non_exhaustive()
    }
}
