//! The shape of untrusted JSON, checked before any of it means something.

use std::collections::HashSet;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};

use crate::error::{Error, Result};

/// What a document may look like.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) bytes_max: u64,
    pub(crate) items_max: usize,
    pub(crate) depth_max: usize,
}

/// Checks that `bytes` is exactly one JSON object within `shape`, without duplicate keys at any
/// level, and returns its top-level keys.
///
/// Programs disagree about what duplicate keys, trailing bytes and keys that differ only in case
/// mean, so a document with any of them can be two things at once; all are refused.
pub(crate) fn check(what: &str, bytes: &[u8], shape: Shape) -> Result<HashSet<String>> {
    whole(what, bytes, shape, true)
}

/// The same for a list, of which only the shape is known.
pub(crate) fn check_list(what: &str, bytes: &[u8], shape: Shape) -> Result<()> {
    whole(what, bytes, shape, false).map(drop)
}

fn whole(what: &str, bytes: &[u8], shape: Shape, object: bool) -> Result<HashSet<String>> {
    if bytes.len() as u64 > shape.bytes_max {
        return Err(Error::LimitExceeded {
            what: format!("{what} of {} bytes", bytes.len()),
            limit: shape.bytes_max,
        });
    }
    if bytes.starts_with(b"\xef\xbb\xbf") {
        return Err(Error::document(what, "starts with a byte order mark"));
    }
    let mut walk = Walk { object, items: 0, shape, keys: HashSet::new(), exceeded: None };
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let result = Value { walk: &mut walk, depth: 0 }
        .deserialize(&mut deserializer)
        .and_then(|()| deserializer.end());
    if let Some((limit, name)) = walk.exceeded {
        return Err(Error::LimitExceeded { what: format!("{what}: number of {name}"), limit });
    }
    result.map_err(|error| Error::document(what, error.to_string()))?;
    let folded: HashSet<String> = walk.keys.iter().map(|key| key.to_ascii_lowercase()).collect();
    if folded.len() != walk.keys.len() {
        return Err(Error::document(what, "keys that differ only in case"));
    }
    Ok(walk.keys)
}

struct Walk {
    /// Whether the whole is an object, not a list.
    object: bool,
    items: usize,
    shape: Shape,
    keys: HashSet<String>,
    exceeded: Option<(u64, &'static str)>,
}

impl Walk {
    fn item<E: serde::de::Error>(&mut self) -> Result<(), E> {
        self.items += 1;
        if self.items > self.shape.items_max {
            self.exceeded = Some((self.shape.items_max as u64, "items"));
            return Err(E::custom("too many items"));
        }
        Ok(())
    }
}

struct Value<'w> {
    walk: &'w mut Walk,
    depth: usize,
}

impl<'de> DeserializeSeed<'de> for Value<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        if self.depth > self.walk.shape.depth_max {
            self.walk.exceeded = Some((self.walk.shape.depth_max as u64, "nested levels"));
            return Err(D::Error::custom("too deep"));
        }
        if self.depth == 0 && self.walk.object {
            return deserializer.deserialize_map(self);
        }
        if self.depth == 0 {
            return deserializer.deserialize_seq(self);
        }
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Value<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.walk.object { "a JSON object" } else { "a JSON list" })
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        while seq.next_element_seed(Value { walk: self.walk, depth: self.depth + 1 })?.is_some() {
            self.walk.item()?;
        }
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut keys = HashSet::new();
        while let Some(key) = map.next_key::<String>()? {
            self.walk.item()?;
            if keys.contains(&key) {
                return Err(A::Error::custom("duplicate key"));
            }
            map.next_value_seed(Value { walk: self.walk, depth: self.depth + 1 })?;
            keys.insert(key);
        }
        if self.depth == 0 {
            self.walk.keys = keys;
        }
        Ok(())
    }
}
