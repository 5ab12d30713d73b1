//! What a registry says about a failure.

use std::fmt::Write as _;

use oci_spec::distribution::ErrorResponse;

/// The text of an error answer, ready to follow a status: `: CODE: message`, or nothing.
pub(crate) fn of(body: &[u8]) -> String {
    let Ok(response) = serde_json::from_slice::<ErrorResponse>(body) else {
        return plain(body);
    };
    let mut text = String::new();
    for error in response.detail().iter().take(ERRORS_SHOWN_MAX) {
        // Writing to a string cannot fail.
        let _ = write!(text, ": {}", code(error));
        if let Some(message) = error.message() {
            let _ = write!(text, ": {message}");
        }
    }
    printable(&text)
}

fn code(error: &oci_spec::distribution::ErrorInfo) -> String {
    match serde_json::to_value(error.code()) {
        Ok(serde_json::Value::String(code)) => code.to_lowercase().replace('_', " "),
        _ => "unknown".into(),
    }
}

/// Short plain text is shown, pages of markup are not.
fn plain(body: &[u8]) -> String {
    match std::str::from_utf8(body).map(str::trim) {
        Ok(text) if !text.is_empty() && !text.starts_with(['<', '{', '[']) => {
            printable(&format!(": {text}"))
        }
        _ => String::new(),
    }
}

fn printable(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(TEXT_CHARS_MAX).collect()
}

/// Registries send one error, rarely two.
const ERRORS_SHOWN_MAX: usize = 5;
/// Enough for a sentence; an error is not a place to store things.
const TEXT_CHARS_MAX: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_answers_become_one_line() {
        let json = br#"{"errors":[{"code":"DENIED","message":"requested access to the resource is denied"}]}"#;
        assert_eq!(of(json), ": denied: requested access to the resource is denied");
        assert_eq!(of(b"no such\nroute\n"), ": no suchroute");
        assert_eq!(of(b"<html>"), "");
        assert_eq!(of(b""), "");
    }
}
