//! A layer is what everybody reads in it, or refused. Otherwise one tool would check what another
//! unpacks.

use std::collections::BTreeSet;
use std::io::Write;
use std::process::{Command, Stdio};

use crated_snapshot::testsuite::{list_layer, may_run};
use sha2::{Digest, Sha256};

use crate::corpus::{Sample, samples};

/// Names and sizes; only files have one.
type Listing = Vec<(String, u64)>;

/// What Go's `archive/tar` makes of the corpus. After a change of the corpus: run this test with
/// `CRATED_TAR_CORPUS=DIR`, then `go run list.go DIR > list.txt` in this directory.
fn recorded_from_go() -> String {
    std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/readers/list.txt")).unwrap()
}

/// Where a reader is known to differ: its name, the sample's, and why that is well, separated by
/// tabs.
fn known_differences(reader: &str) -> BTreeSet<String> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/readers/differences.txt");
    let text = std::fs::read_to_string(path).unwrap();
    let line = |line: &str| {
        let columns: Vec<&str> = line.split('\t').collect();
        assert_eq!(columns.len(), 3, "{line:?}");
        (columns[0] == reader).then(|| columns[1].to_owned())
    };
    text.lines().filter_map(line).collect()
}

#[test]
fn a_layer_is_what_gnu_tar_reads_or_refused() {
    if !may_run(is_there("tar"), "needs tar") {
        return;
    }
    agree("gnu tar", |sample| {
        let command = ["tar", "-tv", "--numeric-owner", "--quoting-style=escape", "-f", "-"];
        parse(&run(&command, &sample.bytes)?, 2)
    });
}

#[test]
fn a_layer_is_what_libarchive_reads_or_refused() {
    if !may_run(is_there("bsdtar"), "needs bsdtar, of libarchive-tools") {
        return;
    }
    agree("libarchive", |sample| parse(&run(&["bsdtar", "-tvf", "-"], &sample.bytes)?, 4));
}

#[test]
fn a_layer_is_what_go_reads_or_refused() {
    if let Some(dir) = std::env::var_os("CRATED_TAR_CORPUS") {
        for (number, sample) in samples().iter().enumerate() {
            let path = std::path::Path::new(&dir).join(format!("{number:03}"));
            std::fs::write(path, &sample.bytes).unwrap();
        }
        return;
    }
    let text = recorded_from_go();
    let mut recorded = text.split("\n\n").filter(|block| !block.is_empty());
    agree("go", |sample| {
        let block = recorded.next().expect("the record covers the corpus");
        let (head, rest) = block.split_once('\n').expect("each has a verdict");
        let sum = hex(&Sha256::digest(&sample.bytes));
        assert_eq!(head, sum, "{}: recorded for other bytes", sample.name);
        let mut lines = rest.lines();
        (lines.next()? == "read").then(|| {
            lines
                .map(|line| {
                    let (size, name) = line.split_once(' ').expect("size and name");
                    (name.to_owned(), size.parse().expect("a size"))
                })
                .collect()
        })
    });
    assert_eq!(recorded.next(), None, "the record covers nothing but the corpus");
}

/// Holds our view of every sample against `theirs`, which is `None` where they refuse.
fn agree(reader: &str, mut theirs: impl FnMut(&Sample) -> Option<Listing>) {
    let mut accepted = 0;
    let mut known = known_differences(reader);
    let mut differences = Vec::new();
    for sample in samples() {
        let theirs = theirs(&sample);
        let Ok(ours) = list_layer(&sample.bytes) else { continue };
        let ours: Listing = ours.into_iter().map(|(name, size)| (escape(&name), size)).collect();
        accepted += 1;
        if theirs.as_deref().map(normal) != Some(normal(&ours)) && !known.remove(&sample.name) {
            differences.push(format!("{}: {ours:?}, they: {theirs:?}", sample.name));
        }
    }
    assert!(differences.is_empty(), "{reader} differs:\n{}", differences.join("\n"));
    assert!(accepted >= ACCEPTED_MIN, "only {accepted} accepted: nothing was compared");
}

/// Directories have a slash at the end in some lists and not in others.
fn normal(list: &[(String, u64)]) -> Listing {
    list.iter().map(|(name, size)| (name.trim_end_matches('/').to_owned(), *size)).collect()
}

/// The standard output of a command that read `input` and was content.
fn run(command: &[&str], input: &[u8]) -> Option<String> {
    let mut child = Command::new(command[0])
        .args(&command[1..])
        .env("LC_ALL", "C")
        .env("TZ", "UTC")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    // A reader may stop early.
    let _ = stdin.write_all(input);
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Reads lines as `ls -l` writes them, the size in the given column.
fn parse(text: &str, size_column: usize) -> Option<Listing> {
    let line = |line: &str| {
        let mut rest = line;
        let mut columns = Vec::new();
        let names_at = if size_column == 2 { 5 } else { 8 };
        while columns.len() < names_at {
            rest = rest.trim_start();
            let (column, after) = rest.split_once(' ')?;
            columns.push(column);
            rest = after;
        }
        let kind = columns[0].chars().next()?;
        let separators = [" -> ", " link to "];
        let name = match kind {
            'l' | 'h' => separators.iter().find_map(|s| rest.split_once(s)).map_or(rest, |p| p.0),
            _ => rest,
        };
        let is_file = kind == '-';
        let size = if is_file { columns[size_column].parse().ok()? } else { 0 };
        Some((name.to_owned(), size))
    };
    text.lines().map(line).collect()
}

/// As both tools print bytes that are no plain text.
fn escape(name: &[u8]) -> String {
    let one = |byte: &u8| match byte {
        b'\\' => "\\\\".to_owned(),
        b' '..=b'~' => char::from(*byte).to_string(),
        b'\n' => "\\n".to_owned(),
        b'\t' => "\\t".to_owned(),
        b'\r' => "\\r".to_owned(),
        0x07 => "\\a".to_owned(),
        0x08 => "\\b".to_owned(),
        0x0b => "\\v".to_owned(),
        0x0c => "\\f".to_owned(),
        _ => format!("\\{byte:03o}"),
    };
    name.iter().map(one).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn is_there(tool: &str) -> bool {
    Command::new(tool).arg("--version").output().is_ok_and(|output| output.status.success())
}

/// Fewer would mean that the reader refuses what everybody writes.
const ACCEPTED_MIN: usize = 40;
