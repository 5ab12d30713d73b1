//! Ids of clients and names of pins.

use crated_netns::{IfName, NETNS_NAME_LEN_MAX, NetnsName, Place};

use super::{Error, Result};
use crate::metadata::network::HOST;
use crate::metadata::{Namespace, validate};

/// Turns the ids of one namespace into places.
#[derive(Clone, Copy)]
pub(super) struct Names<'a>(pub(super) &'a Namespace);

impl Names<'_> {
    pub(super) fn namespace(&self) -> &str {
        self.0.as_str()
    }

    /// The place meant by an id, by `host`, or by nothing.
    pub(super) fn place(&self, id: &str) -> Result<Place> {
        Ok(match id {
            "" => Place::Here,
            HOST => Place::Host,
            id => Place::Named(pin(self.0, id)?),
        })
    }
}

/// The name of a pin. Identifiers have no two separators side by side, so those of two different
/// namespaces never meet; one too long is cut and told apart by its hash.
pub(super) fn pin(namespace: &Namespace, id: &str) -> Result<NetnsName> {
    check(id)?;
    let mut name = format!("{namespace}--{id}");
    if name.len() > NETNS_NAME_LEN_MAX {
        let hash = IfName::derived(&[namespace.as_str(), id]);
        name = format!("{}---{hash}", &id[..id.len().min(CUT_LEN)]);
    }
    Ok(name.parse()?)
}

/// The namespace and the id that a pin is of, unless its name was cut.
pub(super) fn owner(name: &str) -> Option<(Namespace, String)> {
    let (namespace, id) = name.split_once("--")?;
    let namespace = namespace.parse().ok()?;
    let same = pin(&namespace, id).is_ok_and(|pin| pin.as_str() == name);
    same.then(|| (namespace, id.to_owned()))
}

/// Checks the id of a network namespace that a client gives.
pub(super) fn check(id: &str) -> Result<()> {
    validate::identifier("network namespace id", id)?;
    if id == HOST {
        return Err(Error::Invalid("network namespace id \"host\": is the daemon's own".into()));
    }
    Ok(())
}

pub(super) fn optional(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}

/// What is kept of an id that is cut.
const CUT_LEN: usize = 48;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pins_of_different_namespaces_never_meet() {
        let pin = |namespace: &str, id: &str| {
            super::pin(&namespace.parse().unwrap(), id).unwrap().to_string()
        };
        assert_eq!(pin("default", "web"), "default--web");
        assert_ne!(pin("a-b", "c"), pin("a", "b-c"));
        let long = "x".repeat(76);
        assert!(pin(&long, &long).len() <= NETNS_NAME_LEN_MAX);
        assert_ne!(pin("a", &long), pin("b", &long));
    }

    #[test]
    fn a_pin_tells_whose_it_is_unless_it_was_cut() {
        for (namespace, id) in [("default", "web"), ("a-b", "c"), ("a", "b-c")] {
            let namespace: Namespace = namespace.parse().unwrap();
            let name = pin(&namespace, id).unwrap();
            assert_eq!(owner(name.as_str()), Some((namespace, id.to_owned())));
        }
        let long = "x".repeat(76);
        let cut = pin(&"a".parse().unwrap(), &long).unwrap();
        for other in [cut.as_str(), "plain", "--a", "a--", "a--b--c", "a--host"] {
            assert_eq!(owner(other), None, "{other}");
        }
    }

    #[test]
    fn ids_that_are_paths_or_the_host_are_refused() {
        for bad in ["", "..", "a/b", "host", "a\0b", &"x".repeat(77)] {
            assert!(check(bad).is_err(), "{bad:?}");
        }
    }
}
