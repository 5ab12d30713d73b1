//! What a server says it wants when it answers 401.

use std::collections::BTreeMap;

/// One challenge of a `WWW-Authenticate` header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Challenge {
    /// The scheme in lower case.
    pub scheme: String,
    /// The parameters, names in lower case.
    pub parameters: BTreeMap<String, String>,
}

/// Parses the values of all `WWW-Authenticate` headers of an answer.
///
/// # Errors
///
/// The rule that was broken; nothing of a malformed header is used, since a header that two
/// readers split differently names two different token servers.
pub fn parse<'h>(
    headers: impl IntoIterator<Item = &'h [u8]>,
) -> Result<Vec<Challenge>, &'static str> {
    let mut challenges = Vec::new();
    for header in headers {
        if header.len() > HEADER_BYTES_MAX {
            return Err("challenge is longer than 8 KiB");
        }
        let text = std::str::from_utf8(header).map_err(|_| "challenge is not text")?;
        if text.bytes().any(|byte| byte.is_ascii_control() && byte != b'\t') {
            return Err("control character in challenge");
        }
        Parser { rest: text }.run(&mut challenges)?;
    }
    Ok(challenges)
}

struct Parser<'t> {
    rest: &'t str,
}

impl<'t> Parser<'t> {
    fn run(mut self, challenges: &mut Vec<Challenge>) -> Result<(), &'static str> {
        self.skip(|c| c == ',' || c.is_ascii_whitespace());
        while !self.rest.is_empty() {
            let word = self.token()?;
            self.skip(|c| c.is_ascii_whitespace());
            if self.rest.starts_with('=') && !challenges.is_empty() {
                self.parameter(word, challenges)?;
            } else {
                if challenges.len() == CHALLENGES_MAX {
                    return Err("too many challenges");
                }
                let scheme = word.to_ascii_lowercase();
                challenges.push(Challenge { scheme, parameters: BTreeMap::new() });
                self.token68();
            }
            self.skip(|c| c == ',' || c.is_ascii_whitespace());
        }
        Ok(())
    }

    fn parameter(&mut self, name: &str, challenges: &mut [Challenge]) -> Result<(), &'static str> {
        self.rest = &self.rest[1..];
        self.skip(|c| c.is_ascii_whitespace());
        let value = if self.rest.starts_with('"') { self.quoted()? } else { self.token()?.into() };
        let parameters = &mut challenges.last_mut().ok_or("parameter before scheme")?.parameters;
        if parameters.len() == PARAMETERS_MAX {
            return Err("too many parameters");
        }
        if parameters.insert(name.to_ascii_lowercase(), value).is_some() {
            return Err("duplicate parameter");
        }
        Ok(())
    }

    /// Credentials in the place of parameters, as `Negotiate` has them; of no use to us.
    fn token68(&mut self) {
        let end = self.rest.find([',', ' ', '\t']).unwrap_or(self.rest.len());
        let word = &self.rest[..end];
        let body = word.trim_end_matches('=');
        let padded = body.len() < word.len();
        let only = |c: char| c.is_ascii_alphanumeric() || "-._~+/".contains(c);
        let last = self.rest[end..].trim_start().is_empty() || self.rest[end..].starts_with(',');
        if padded && last && !body.is_empty() && body.chars().all(only) {
            self.rest = &self.rest[end..];
        }
    }

    fn token(&mut self) -> Result<&'t str, &'static str> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~:/".contains(c);
        let end = self.rest.find(|c| !allowed(c)).unwrap_or(self.rest.len());
        if end == 0 {
            return Err("malformed challenge");
        }
        let (token, rest) = self.rest.split_at(end);
        self.rest = rest;
        Ok(token)
    }

    fn quoted(&mut self) -> Result<String, &'static str> {
        let mut value = String::new();
        let mut chars = self.rest[1..].char_indices();
        while let Some((at, c)) = chars.next() {
            match c {
                '"' => {
                    self.rest = &self.rest[1 + at + 1..];
                    return Ok(value);
                }
                '\\' => value.push(chars.next().ok_or("unbalanced quotes")?.1),
                c => value.push(c),
            }
        }
        Err("unbalanced quotes")
    }

    fn skip(&mut self, blank: impl Fn(char) -> bool) {
        self.rest = self.rest.trim_start_matches(blank);
    }
}

/// Servers send one or two hundred bytes.
const HEADER_BYTES_MAX: usize = 8 * 1024;
/// Servers offer two schemes at most.
const CHALLENGES_MAX: usize = 16;
/// There are five parameters in use.
const PARAMETERS_MAX: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    fn one(text: &str) -> Result<Vec<Challenge>, &'static str> {
        parse([text.as_bytes()])
    }

    #[test]
    fn challenges_of_real_registries_are_read() {
        let found = one(
            r#"Bearer realm="https://auth.example/token",service="a b",scope="repository:x/y:pull,push", Basic realm=plain"#,
        )
        .unwrap();
        assert_eq!(found.len(), 2);
        assert_eq!(found[0].scheme, "bearer");
        assert_eq!(found[0].parameters["scope"], "repository:x/y:pull,push");
        assert_eq!(found[1].parameters["realm"], "plain");
        assert_eq!(
            one("Negotiate YWJj==, BASIC realm=\"q\\\"q\"").unwrap()[1].parameters["realm"],
            "q\"q"
        );
        assert_eq!(one("Basic").unwrap()[0].scheme, "basic");
    }

    #[test]
    fn case_15_hostile_challenges_are_refused_in_bounded_time() {
        for bad in
            ["Bearer realm=\"x", "Bearer realm=\"x\\", "=", "Bearer a=b,a=c", "B \u{0}", "\"x\""]
        {
            assert!(one(bad).is_err(), "{bad:?}");
        }
        assert!(one(&"A, ".repeat(1000)).is_err());
        assert!(one(&"x".repeat(1 << 20)).is_err());
        let many: String = (0..100).map(|n| format!("p{n}=x,")).collect();
        assert!(one(&format!("Bearer {many}")).is_err());
    }
}
