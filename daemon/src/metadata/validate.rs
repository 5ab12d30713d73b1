//! The rules names and labels keep, in one place.

use super::{Error, Labels, Result};

/// Checks an identifier: 1 to [`IDENTIFIER_LEN_MAX`] bytes, letters and digits, with single
/// `.`, `_` or `-` between them.
///
/// # Errors
///
/// [`Error::InvalidArgument`] naming `what`.
pub fn identifier(what: &str, text: &str) -> Result<()> {
    if text.is_empty() {
        return Err(Error::invalid(what, "must not be empty"));
    }
    if text.len() > IDENTIFIER_LEN_MAX {
        let reason = format!("longer than {IDENTIFIER_LEN_MAX} bytes");
        return Err(Error::invalid(format!("{what} {:?}", shorten(text)), reason));
    }
    let mut separated = true;
    for byte in text.bytes() {
        let separator = matches!(byte, b'.' | b'_' | b'-');
        if !(byte.is_ascii_alphanumeric() || separator && !separated) {
            return Err(malformed(what, text));
        }
        separated = separator;
    }
    if separated {
        return Err(malformed(what, text));
    }
    Ok(())
}

/// Checks an event topic: `/` before each of one or more identifiers.
///
/// # Errors
///
/// [`Error::InvalidArgument`].
pub fn topic(topic: &str) -> Result<()> {
    let Some(components) = topic.strip_prefix('/') else {
        return Err(Error::invalid(format!("topic {:?}", shorten(topic)), "must start with '/'"));
    };
    for component in components.split('/') {
        identifier("topic component", component)?;
    }
    Ok(())
}

/// Checks that each label has a key and is not too long.
///
/// # Errors
///
/// [`Error::InvalidArgument`] naming the label.
pub fn labels(labels: &Labels) -> Result<()> {
    for (key, value) in labels {
        if key.is_empty() {
            return Err(Error::invalid("label", "key must not be empty"));
        }
        if key.len() + value.len() > LABEL_LEN_MAX {
            let what = format!("label {:?}", shorten(key));
            let reason = format!("key and value are longer than {LABEL_LEN_MAX} bytes together");
            return Err(Error::invalid(what, reason));
        }
    }
    Ok(())
}

/// Checks that a free-form name is there.
///
/// # Errors
///
/// [`Error::InvalidArgument`] naming `what`.
pub fn present(what: &str, text: &str) -> Result<()> {
    if text.is_empty() {
        return Err(Error::invalid(what, "must not be empty"));
    }
    if text.len() > NAME_LEN_MAX {
        let reason = format!("longer than {NAME_LEN_MAX} bytes");
        return Err(Error::invalid(format!("{what} {:?}", shorten(text)), reason));
    }
    Ok(())
}

fn malformed(what: &str, text: &str) -> Error {
    Error::invalid(
        format!("{what} {text:?}"),
        "must be letters and digits with single '.', '_' or '-' between them",
    )
}

/// Hostile input is quoted in errors, so its length is bounded.
fn shorten(text: &str) -> &str {
    const QUOTED_LEN_MAX: usize = 80;
    let mut end = text.len().min(QUOTED_LEN_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// Longest identifier in bytes; clients know the limit.
pub const IDENTIFIER_LEN_MAX: usize = 76;

/// Longest label, key and value together, in bytes; clients trim to it.
pub const LABEL_LEN_MAX: usize = 4096;

/// Longest free-form name (image, snapshot key, lease) in bytes. Real ones stay below a few
/// hundred; a name is a key of the database and is repeated in indexes and events.
pub const NAME_LEN_MAX: usize = 64 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifiers_are_words_with_single_separators() {
        for good in ["a", "moby", "plugins.moby", "k8s.io", "a-b_c.d", "0", &"x".repeat(76)] {
            assert!(identifier("id", good).is_ok(), "{good}");
        }
        for bad in ["", ".", "a.", ".a", "a..b", "a-_b", "a/b", "a b", "é", "a\n", &"x".repeat(77)]
        {
            assert!(identifier("id", bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn topics_are_paths_of_identifiers() {
        for good in ["/tasks/exit", "/a", "/containers/create", "/tasks/exec-added"] {
            assert!(topic(good).is_ok(), "{good}");
        }
        for bad in ["", "/", "tasks/exit", "//a", "/a/", "/a b", "/tasks/?"] {
            assert!(topic(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_label_may_fill_the_limit_but_not_exceed_it() {
        let label = |len: usize| Labels::from([("k".to_owned(), "v".repeat(len - 1))]);
        assert!(labels(&label(LABEL_LEN_MAX)).is_ok());
        assert!(labels(&label(LABEL_LEN_MAX + 1)).is_err());
    }
}
