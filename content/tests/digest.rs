//! Digests are valid or not at all.

use crated_content::{Algorithm, Digest, Error, Hasher};
use proptest::prelude::*;

#[test]
fn known_digests_are_computed() {
    let known = [
        (Algorithm::Sha256, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"),
        (
            Algorithm::Sha384,
            "38b060a751ac96384cd9327eb1b1e36a21fdb71114be07434c0cc7bf63f6e1da274edebfe76f65fbd51ad2f14898b95b",
        ),
        (
            Algorithm::Sha512,
            "cf83e1357eefb8bdf1542850d66d8007d620e4050b5715dc83f4a921d36ce9ce47d0d13c5d85f2b0ff8318d2877eec2f63b931bd47417a81a538327af927da3e",
        ),
        (Algorithm::Blake3, "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"),
    ];
    for (algorithm, hex) in known {
        let digest = Digest::of_with(algorithm, b"");
        assert_eq!((digest.algorithm(), digest.hex()), (algorithm, hex));
        assert_eq!(format!("{algorithm}:{hex}").parse::<Digest>().unwrap(), digest);
    }
}

#[test]
fn anything_else_is_refused() {
    let hex = "a".repeat(64);
    let refused = [
        String::new(),
        ":".to_owned(),
        hex.clone(),
        "sha256".to_owned(),
        "sha256:".to_owned(),
        format!(":{hex}"),
        format!("md5:{hex}"),
        format!("SHA256:{hex}"),
        format!("sha256:{}", hex.to_uppercase()),
        format!("sha256:{}", &hex[1..]),
        format!("sha256:{hex}a"),
        format!("sha512:{hex}"),
        format!(" sha256:{hex}"),
        format!("sha256:{hex}\n"),
        format!("sha256:{hex}\0"),
        format!("sha256:{}/../x", &hex[5..]),
        format!("sha256+b64:{hex}"),
        format!("sha256:{}é", &hex[2..]),
    ];
    for text in refused {
        let error = text.parse::<Digest>().unwrap_err();
        assert!(matches!(error, Error::InvalidDigest { .. }), "{text:?}");
    }
}

#[test]
fn a_hostile_text_is_not_quoted_at_length() {
    let error = "é".repeat(100_000).parse::<Digest>().unwrap_err();
    assert!(error.to_string().len() < 1000);
}

#[test]
fn a_hash_of_the_wrong_length_is_no_digest() {
    assert!(Digest::from_hash(Algorithm::Sha256, &[0; 31]).is_err());
    assert!(Digest::from_hash(Algorithm::Sha512, &[0; 32]).is_err());
}

#[test]
fn verification_tells_both_digests() {
    let mut hasher = Hasher::new(Algorithm::Sha256);
    hasher.update(b"delivered");
    hasher.verify(&Digest::of(b"delivered")).unwrap();
    let error = hasher.verify(&Digest::of(b"promised")).unwrap_err().to_string();
    for digest in [Digest::of(b"delivered"), Digest::of(b"promised")] {
        assert!(error.contains(digest.hex()), "{error}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_parses_prints_as_it_was(text in "(sha256|sha384|sha512|blake3):[0-9a-f]{60,130}|\\PC*") {
        if let Ok(digest) = text.parse::<Digest>() {
            prop_assert_eq!(digest.as_str(), text.as_str());
            prop_assert_eq!(digest.hex().len(), digest.algorithm().size_bytes() * 2);
        }
    }

    #[test]
    fn hashing_in_pieces_is_hashing_at_once(
        pieces in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..300), 0..8),
        algorithm in proptest::sample::select(Algorithm::ALL.to_vec()),
    ) {
        let mut hasher = Hasher::new(algorithm);
        for piece in &pieces {
            hasher.update(piece);
        }
        let whole = pieces.concat();
        prop_assert_eq!(hasher.size_bytes(), whole.len() as u64);
        prop_assert_eq!(hasher.digest(), Digest::of_with(algorithm, &whole));
    }
}
