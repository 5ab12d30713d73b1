//! Mounts that show the same tree and let nobody write to it.

use crate::Mount;

/// The same tree, but nobody can write to it.
///
/// An overlay loses `upperdir`, `workdir` and its id mapping, and its upper
/// directory becomes the nearest lower one; without an upper directory it was
/// read-only already. Everything else has `rw` replaced by `ro`.
///
/// ```
/// use crated_mount::{Mount, read_only};
///
/// let mount = |options: &[&str]| Mount {
///     kind: "overlay".into(),
///     source: "overlay".into(),
///     options: options.iter().map(|option| option.to_string()).collect(),
///     ..Mount::default()
/// };
/// let writable = mount(&["workdir=/w", "upperdir=/u", "lowerdir=/b:/a", "index=off"]);
/// assert_eq!(read_only(&[writable]), [mount(&["lowerdir=/u:/b:/a", "index=off"])]);
/// ```
pub fn read_only(mounts: &[Mount]) -> Vec<Mount> {
    mounts.iter().map(one).collect()
}

fn one(mount: &Mount) -> Mount {
    match mount.kind.as_str() {
        "overlay" => overlay(mount),
        _ => Mount { options: with_ro(&mount.options), ..mount.clone() },
    }
}

fn overlay(mount: &Mount) -> Mount {
    let upper = mount.options.iter().find_map(|option| option.strip_prefix("upperdir="));
    let mut options = Vec::with_capacity(mount.options.len());
    let mut upper_placed = false;
    for option in &mount.options {
        let dropped = DROPPED.iter().any(|key| option.starts_with(key));
        if dropped || option == "rw" {
            continue;
        }
        let lower = ["lowerdir=", "lowerdir+="].into_iter().find(|key| option.starts_with(key));
        match (lower, upper) {
            (Some("lowerdir="), Some(upper)) => {
                upper_placed = true;
                options.push(format!("lowerdir={}:{}", colons_escaped(upper), &option[9..]));
                continue;
            }
            (Some(_), Some(upper)) if !upper_placed => {
                upper_placed = true;
                options.push(format!("lowerdir+={}", unescaped(upper)));
            }
            _ => {}
        }
        options.push(option.clone());
    }
    Mount { options, ..mount.clone() }
}

fn with_ro(options: &[String]) -> Vec<String> {
    let mut changed: Vec<_> = options.iter().filter(|option| *option != "rw").cloned().collect();
    if !changed.iter().any(|option| option == "ro") {
        // Where `rw` stood, for those who compare lists; in front otherwise.
        let at = options.iter().position(|option| option == "rw").unwrap_or(0);
        changed.insert(at.min(changed.len()), "ro".to_owned());
    }
    changed
}

/// In `upperdir=` a colon means itself; in `lowerdir=` it would separate.
fn colons_escaped(upper: &str) -> String {
    let mut escaped = String::with_capacity(upper.len());
    let mut after_backslash = false;
    for character in upper.chars() {
        if character == ':' && !after_backslash {
            escaped.push('\\');
        }
        after_backslash = character == '\\' && !after_backslash;
        escaped.push(character);
    }
    escaped
}

fn unescaped(upper: &str) -> String {
    let mut characters = upper.chars();
    let mut path = String::with_capacity(upper.len());
    while let Some(character) = characters.next() {
        match character {
            '\\' => path.extend(characters.next()),
            other => path.push(other),
        }
    }
    path
}

const DROPPED: &[&str] = &["upperdir=", "workdir=", "uidmap=", "gidmap="];

#[cfg(test)]
mod tests {
    use super::*;

    fn options(kind: &str, options: &[&str]) -> Vec<String> {
        let mount = Mount {
            kind: kind.to_owned(),
            options: options.iter().map(|option| (*option).to_owned()).collect(),
            ..Mount::default()
        };
        read_only(&[mount]).remove(0).options
    }

    #[test]
    fn the_upper_directory_becomes_the_nearest_layer() {
        let given = ["uidmap=0:1:1", "gidmap=0:1:1", "workdir=/w", "upperdir=/u:v", "lowerdir=/a"];
        assert_eq!(options("overlay", &given), [r"lowerdir=/u\:v:/a"]);

        let given = ["upperdir=/u", "workdir=/w", "lowerdir+=/b", "lowerdir+=/a"];
        let expected = ["lowerdir+=/u", "lowerdir+=/b", "lowerdir+=/a"];
        assert_eq!(options("overlay", &given), expected);
    }

    #[test]
    fn binds_lose_the_right_to_write() {
        assert_eq!(options("bind", &["rw", "rbind"]), ["ro", "rbind"]);
        assert_eq!(options("bind", &["rbind", "ro"]), ["rbind", "ro"]);
        assert_eq!(options("ext4", &["loop"]), ["ro", "loop"]);
    }

    #[test]
    fn read_only_overlays_stay_as_they_are() {
        assert_eq!(options("overlay", &["lowerdir=/b:/a"]), ["lowerdir=/b:/a"]);
    }
}
