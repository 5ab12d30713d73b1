//! Keys of several parts that sort part by part and cannot be confused, whatever bytes a part
//! holds.
//!
//! Every part but the last is written with its NUL bytes doubled up as `00 FF` and closed with
//! `00 01`; the last part is written as it is. Names from clients therefore never escape their
//! namespace, and all keys of one namespace share a prefix.

/// The key made of `parts`.
pub(super) fn join(parts: &[&str]) -> Vec<u8> {
    let Some((last, front)) = parts.split_last() else { return Vec::new() };
    let mut key = prefix(front);
    key.extend_from_slice(last.as_bytes());
    key
}

/// What every key starting with `parts` and at least one more part begins with.
pub(super) fn prefix(parts: &[&str]) -> Vec<u8> {
    let mut key = Vec::with_capacity(parts.iter().map(|part| part.len() + 2).sum::<usize>() + 32);
    for part in parts {
        for byte in part.bytes() {
            key.push(byte);
            if byte == 0 {
                key.push(ESCAPED);
            }
        }
        key.extend_from_slice(&[0, CLOSED]);
    }
    key
}

/// Takes a key apart; `None` when it is not a key of exactly `N` parts.
pub(super) fn split<const N: usize>(key: &[u8]) -> Option<[String; N]> {
    let mut parts = Vec::with_capacity(N);
    let mut rest = key;
    while parts.len() + 1 < N {
        let (part, behind) = take(rest)?;
        parts.push(String::from_utf8(part).ok()?);
        rest = behind;
    }
    parts.push(String::from_utf8(rest.to_vec()).ok()?);
    parts.try_into().ok()
}

fn take(key: &[u8]) -> Option<(Vec<u8>, &[u8])> {
    let mut part = Vec::new();
    let mut rest = key;
    loop {
        let (&byte, behind) = rest.split_first()?;
        rest = behind;
        if byte != 0 {
            part.push(byte);
            continue;
        }
        let (&kind, behind) = rest.split_first()?;
        rest = behind;
        match kind {
            CLOSED => return Some((part, rest)),
            ESCAPED => part.push(0),
            _ => return None,
        }
    }
}

const CLOSED: u8 = 1;
const ESCAPED: u8 = 0xff;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn parts_come_back(a in "(?s).*", b in "(?s).*", c in "(?s).*") {
            let key = join(&[&a, &b, &c]);
            prop_assert_eq!(split::<3>(&key), Some([a.clone(), b.clone(), c]));
            prop_assert!(key.starts_with(&prefix(&[&a])));
            prop_assert!(key.starts_with(&prefix(&[&a, &b])));
        }

        #[test]
        fn keys_sort_as_their_parts(a in "[\0\u{1}ab]{0,4}", b in "[\0\u{1}ab]{0,4}",
                                    c in "[\0\u{1}ab]{0,4}", d in "[\0\u{1}ab]{0,4}") {
            prop_assert_eq!(join(&[&a, &b]).cmp(&join(&[&c, &d])), (&a, &b).cmp(&(&c, &d)));
        }

        #[test]
        fn any_bytes_split_or_do_not(key in proptest::collection::vec(any::<u8>(), 0..40)) {
            let _ = split::<2>(&key);
        }
    }
}
