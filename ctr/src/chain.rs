//! Names of unpacked images: the chain of digests from the lowest layer up.

use sha2::{Digest as _, Sha256};

/// The name of the topmost layer's snapshot; empty without layers.
pub(crate) fn top(diff_ids: &[String]) -> String {
    diff_ids.iter().fold(String::new(), |below, diff_id| {
        if below.is_empty() {
            return diff_id.clone();
        }
        let sum = Sha256::digest(format!("{below} {diff_id}"));
        let hex: String = sum.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("sha256:{hex}")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_layer_names_itself() {
        assert_eq!(top(&["sha256:aa".to_owned()]), "sha256:aa");
        assert_eq!(top(&[]), "");
    }

    #[test]
    fn each_layer_hashes_what_is_below_it() {
        let name = top(&["sha256:aa".to_owned(), "sha256:bb".to_owned()]);
        let sum = Sha256::digest(b"sha256:aa sha256:bb");
        let hex: String = sum.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(name, format!("sha256:{hex}"));
    }
}
