//! Names as docker writes them: short where they are on Docker Hub.

use crate::error::Result;
use crate::reference::Reference;

/// The whole name behind one that docker may have shortened: `redis` is
/// `docker.io/library/redis:latest`.
///
/// # Errors
///
/// [`Error::InvalidReference`](crate::Error::InvalidReference) when it is none either way.
pub fn full_name(name: &str) -> Result<String> {
    let (host, rest) = match name.split_once('/') {
        Some((host, rest)) if is_host(host) => (host, rest),
        _ => (HUB, name),
    };
    let host = if host == OLD_HUB { HUB } else { host };
    let library = if host == HUB && !rest.contains('/') { "library/" } else { "" };
    let reference = Reference::parse(&format!("{host}/{library}{rest}"))?;
    if reference.has_object() {
        return Ok(reference.to_string());
    }
    Ok(reference.with_tag("latest")?.to_string())
}

/// What docker calls the image `name`: without the parts that [`full_name`] adds, but with a tag.
/// Names that are no references stay as they are.
pub fn familiar_name(name: &str) -> String {
    let Ok(reference) = Reference::parse(name) else { return name.to_owned() };
    let whole = reference.to_string();
    let Some(rest) = whole.strip_prefix("docker.io/") else { return whole };
    match rest.strip_prefix("library/") {
        Some(short) if !short.contains('/') => short.to_owned(),
        _ => rest.to_owned(),
    }
}

/// Whether the first part of a name is a host rather than a part of a path.
fn is_host(part: &str) -> bool {
    part.contains(['.', ':']) || part == "localhost" || part.bytes().any(|b| b.is_ascii_uppercase())
}

const HUB: &str = "docker.io";
const OLD_HUB: &str = "index.docker.io";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_names_are_completed_and_shortened_as_docker_does() {
        for (short, full) in [
            ("redis:7", "docker.io/library/redis:7"),
            ("team/app:v1", "docker.io/team/app:v1"),
            ("localhost/app:v1", "localhost/app:v1"),
            ("r.example:5000/a/b:c", "r.example:5000/a/b:c"),
        ] {
            assert_eq!(full_name(short).unwrap(), full);
            assert_eq!(familiar_name(full), short);
        }
        assert_eq!(full_name("redis").unwrap(), "docker.io/library/redis:latest");
        assert_eq!(full_name("index.docker.io/redis").unwrap(), "docker.io/library/redis:latest");
        assert_eq!(familiar_name("anything else"), "anything else");
        full_name("../x").unwrap_err();
        full_name("a:b/../c").unwrap_err();
    }
}
