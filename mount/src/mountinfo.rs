//! `/proc/self/mountinfo` as data: text in, no I/O.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use crate::{Error, Result};

/// One line of mountinfo; see proc_pid_mountinfo(5).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountInfo {
    /// Identifies the mount; reused after it is gone.
    pub id: u64,
    /// The mount this one sits on.
    pub parent: u64,
    /// Device of the filesystem, major and minor.
    pub device: (u32, u32),
    /// Which directory of the filesystem is shown.
    pub root: PathBuf,
    /// Where, as seen from this process's root directory.
    pub mount_point: PathBuf,
    /// Flag words of this mount.
    pub options: String,
    /// Propagation and other tags such as `shared:12`; none means private.
    pub tags: Vec<String>,
    /// Filesystem type, perhaps with a subtype after a dot.
    pub kind: String,
    /// As given when mounted, or `none`.
    pub source: OsString,
    /// Options of the filesystem itself, still octal-escaped as in the text
    /// because only there a comma in a value differs from one between options.
    pub super_options: OsString,
}

/// Reads the text of a mountinfo file.
///
/// # Errors
///
/// [`Error::MountInfo`] with the number of the first line that is not one.
pub fn parse(text: &[u8]) -> Result<Vec<MountInfo>> {
    let lines = text.split(|byte| *byte == b'\n').enumerate();
    let lines = lines.filter(|(_, line)| !line.is_empty());
    lines
        .map(|(index, line)| {
            parse_line(line).map_err(|reason| Error::MountInfo { line: index + 1, reason })
        })
        .collect()
}

fn parse_line(line: &[u8]) -> Result<MountInfo, &'static str> {
    let mut fields = line.split(|byte| *byte == b' ');
    let mut next = |missing| fields.next().filter(|field| !field.is_empty()).ok_or(missing);
    let id = number(next("no mount id")?)?;
    let parent = number(next("no parent id")?)?;
    let device = device(next("no device")?)?;
    let root = PathBuf::from(unescape(next("no root")?));
    let mount_point = PathBuf::from(unescape(next("no mount point")?));
    let options = words(next("no options")?)?;
    let mut tags = Vec::new();
    loop {
        match next("no separator")? {
            b"-" => break,
            tag => tags.push(words(tag)?),
        }
    }
    let kind = words(next("no filesystem type")?)?;
    // A source may be empty, which leaves two blanks in a row.
    let source = unescape(fields.next().ok_or("no source")?);
    let super_options = OsString::from_vec(fields.next().ok_or("no super options")?.to_vec());
    Ok(MountInfo {
        id,
        parent,
        device,
        root,
        mount_point,
        options,
        tags,
        kind,
        source,
        super_options,
    })
}

fn number<N: std::str::FromStr>(field: &[u8]) -> Result<N, &'static str> {
    let text = std::str::from_utf8(field).map_err(|_| "a number is not text")?;
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err("a number has other characters");
    }
    text.parse().map_err(|_| "a number is too large")
}

fn device(field: &[u8]) -> Result<(u32, u32), &'static str> {
    let colon = field.iter().position(|byte| *byte == b':').ok_or("a device has no colon")?;
    Ok((number(&field[..colon])?, number(&field[colon + 1..])?))
}

fn words(field: &[u8]) -> Result<String, &'static str> {
    String::from_utf8(unescape(field).into_vec()).map_err(|_| "a word is not text")
}

/// Undoes `\ooo`. Anything else after a backslash stands for itself, because
/// the kernel escapes every backslash it prints.
fn unescape(field: &[u8]) -> OsString {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, tail)) = rest.split_first() {
        if let Some(byte) = octal(rest) {
            bytes.push(byte);
            rest = &rest[4..];
        } else {
            bytes.push(*first);
            rest = tail;
        }
    }
    OsString::from_vec(bytes)
}

fn octal(text: &[u8]) -> Option<u8> {
    let [b'\\', a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', ..] = text else {
        return None;
    };
    Some((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_field_is_read() {
        let text = br"36 35 98:0 /mnt1 /mnt/a\040b\134c rw,noatime shared:1 master:2 - ext3 /dev/root rw,errors=continue
";
        let info = parse(text).unwrap().remove(0);

        assert_eq!((info.id, info.parent, info.device), (36, 35, (98, 0)));
        assert_eq!(info.root, Path::new("/mnt1"));
        assert_eq!(info.mount_point, Path::new("/mnt/a b\\c"));
        assert_eq!((&*info.options, &*info.kind), ("rw,noatime", "ext3"));
        assert_eq!(info.tags, ["shared:1", "master:2"]);
        assert_eq!(info.source, "/dev/root");
        assert_eq!(info.super_options, "rw,errors=continue");
    }

    #[test]
    fn an_empty_source_is_allowed() {
        let info = parse(b"1 2 0:1 / /x rw - tmpfs  rw\n").unwrap().remove(0);
        assert_eq!(info.source, "");
    }

    #[test]
    fn a_bad_line_is_named_by_number() {
        let good = "1 2 0:1 / /x rw - tmpfs none rw\n";
        for bad in
            ["1", "x 2 0:1 / / rw - t n rw", "1 2 0 / / rw - t n rw", "1 2 0:1 / / rw tag tag"]
        {
            let error = parse(format!("{good}{bad}\n").as_bytes()).unwrap_err();
            assert!(matches!(error, Error::MountInfo { line: 2, .. }), "{bad}: {error}");
        }
    }

    #[test]
    fn this_process_has_mounts_that_parse() {
        let text = std::fs::read("/proc/self/mountinfo").unwrap();
        assert!(parse(&text).unwrap().iter().any(|info| info.mount_point == Path::new("/")));
    }

    proptest! {
        #[test]
        fn parsing_never_panics(text: Vec<u8>) {
            let _ = parse(&text);
        }

        #[test]
        fn any_path_survives_the_kernels_escaping(path in "/[^\\x00]{0,30}") {
            let mut escaped = Vec::new();
            for byte in path.bytes() {
                match byte {
                    b' ' | b'\t' | b'\n' | b'\\' => {
                        escaped.extend(format!("\\{byte:03o}").into_bytes());
                    }
                    other => escaped.push(other),
                }
            }
            let mut line = b"1 2 0:1 / ".to_vec();
            line.extend(escaped);
            line.extend(b" rw - tmpfs none rw\n");
            prop_assert_eq!(&parse(&line).unwrap()[0].mount_point, Path::new(&path));
        }
    }
}
