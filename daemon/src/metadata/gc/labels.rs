//! What labels say to the collector.
//!
//! | Label | Value | Meaning |
//! |---|---|---|
//! | `containerd.io/gc.root…` | anything | a root |
//! | `containerd.io/gc.ref.content[./…]` | digest | refers to the blob |
//! | `containerd.io/gc.ref.image[./…]` | name | refers to the image |
//! | `containerd.io/gc.ref.snapshot.<snapshotter>[/…]` | key | refers to the snapshot |
//! | `containerd.io/gc.bref.content[./…]`, `….image…`, `….container…`, `….snapshot.<s>[/…]` | as above | lives while that object does |
//! | `containerd.io/gc.cond.snapshot.<snapshotter>[/…]` | `<conditions>\|<key>` | lives while that snapshot does and a condition holds |
//! | `containerd.io/gc.expire` | RFC 3339 | no root from then on |
//! | `containerd.io/gc.flat` | anything | a lease that holds only what it names |
//!
//! `[./…]` stands for nothing or anything that starts with a dot or a slash. The name of a
//! snapshotter runs to the first slash and may hold dots. Malformed references are none.

use std::time::{Duration, SystemTime};

use super::Node;
use super::time::{parse_duration, parse_time};
use crate::metadata::Labels;

/// What one label says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Meaning {
    /// The object is a root.
    Root,
    /// The object refers to another.
    Forward(Node),
    /// The object lives while the other one does.
    Back(Node),
    /// The object lives while the snapshot does and one of the conditions holds.
    Condition(Node, Vec<Condition>),
}

/// A condition on when a snapshot was last used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Condition {
    /// Used less than this long ago.
    UsedWithin(Duration),
    /// Not used for longer than this.
    UnusedFor(Duration),
}

impl Condition {
    /// Whether the condition holds at `now` for a snapshot last used at `used`.
    pub fn holds(&self, used: SystemTime, now: SystemTime) -> bool {
        let since = now.duration_since(used).unwrap_or_default();
        match self {
            Self::UsedWithin(limit) => since < *limit,
            Self::UnusedFor(limit) => since > *limit,
        }
    }
}

/// Calls `visit` with the meaning of each label that has one.
pub fn meanings(labels: &Labels, mut visit: impl FnMut(Meaning)) {
    // Labels are sorted, so the collector's lie together.
    let range = labels
        .range::<str, _>((std::ops::Bound::Included(LABEL_PREFIX), std::ops::Bound::Unbounded));
    for (key, value) in range.take_while(|(key, _)| key.starts_with(LABEL_PREFIX)) {
        if let Some(meaning) = meaning(&key[LABEL_PREFIX.len()..], value) {
            visit(meaning);
        }
    }
}

/// When the object stops being a root; `None` for never, also when the time is malformed.
pub fn expires(labels: &Labels) -> Option<SystemTime> {
    let text = labels.get(LABEL_EXPIRE)?;
    let time = parse_time(text);
    if time.is_none() {
        tracing::debug!(value = text, "malformed {LABEL_EXPIRE} label, treated as never");
    }
    time
}

/// Whether a lease holds only what it names.
pub fn is_flat(labels: &Labels) -> bool {
    labels.contains_key(LABEL_FLAT)
}

/// When a snapshot was last used, as far as clients say.
pub fn used_at(labels: &Labels) -> Option<SystemTime> {
    parse_time(labels.get(LABEL_USED_AT)?)
}

/// The meaning of a label without its prefix.
fn meaning(key: &str, value: &str) -> Option<Meaning> {
    if key.starts_with("root") {
        return Some(Meaning::Root);
    }
    if let Some(kind) = key.strip_prefix("ref.") {
        // A container is not something that can be kept by a reference.
        return target(kind, value, false).map(Meaning::Forward);
    }
    if let Some(kind) = key.strip_prefix("bref.") {
        return target(kind, value, true).map(Meaning::Back);
    }
    let snapshotter = key.strip_prefix("cond.snapshot.")?;
    let (conditions, key) = value.split_once('|')?;
    let conditions = conditions.split(',').filter_map(condition).collect::<Vec<_>>();
    let snapshot = snapshot(snapshotter, key)?;
    (!conditions.is_empty()).then_some(Meaning::Condition(snapshot, conditions))
}

fn target(kind: &str, value: &str, container: bool) -> Option<Node> {
    if let Some(snapshotter) = kind.strip_prefix("snapshot.") {
        return snapshot(snapshotter, value);
    }
    let of = |name: &str| {
        let rest = kind.strip_prefix(name)?;
        (rest.is_empty() || rest.starts_with(['.', '/'])).then_some(())
    };
    if of("content").is_some() {
        return value.parse().ok().map(Node::Content);
    }
    if of("image").is_some() {
        return Some(Node::Image(value.to_owned()));
    }
    if of("netns").is_some() {
        return Some(Node::Netns(value.to_owned()));
    }
    if of("link").is_some() {
        let (netns, id) = value.split_once('/')?;
        return Some(Node::Link { netns: netns.to_owned(), id: id.to_owned() });
    }
    if container && of("container").is_some() {
        return Some(Node::Container(value.to_owned()));
    }
    None
}

fn snapshot(snapshotter: &str, key: &str) -> Option<Node> {
    let snapshotter = snapshotter.split('/').next().filter(|name| !name.is_empty())?;
    Some(Node::Snapshot { snapshotter: snapshotter.to_owned(), key: key.to_owned() })
}

fn condition(text: &str) -> Option<Condition> {
    let text = text.trim();
    if let Some(limit) = text.strip_prefix("usedat<") {
        return parse_duration(limit).map(Condition::UsedWithin);
    }
    parse_duration(text.strip_prefix("usedat>")?).map(Condition::UnusedFor)
}

/// What labels for the collector start with.
pub const LABEL_PREFIX: &str = "containerd.io/gc.";

/// When an image or a lease stops being a root.
pub const LABEL_EXPIRE: &str = "containerd.io/gc.expire";

const LABEL_FLAT: &str = "containerd.io/gc.flat";

const LABEL_USED_AT: &str = "containerd.io/gc.cond.value-usedat";

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn read(key: &str, value: &str) -> Option<Meaning> {
        let mut read = None;
        meanings(&Labels::from([(key.to_owned(), value.to_owned())]), |meaning| {
            read = Some(meaning);
        });
        read
    }

    fn content() -> Node {
        Node::Content(DIGEST.parse().unwrap())
    }

    fn snapshot(snapshotter: &str, key: &str) -> Node {
        Node::Snapshot { snapshotter: snapshotter.to_owned(), key: key.to_owned() }
    }

    #[test]
    fn references_that_clients_write_are_understood() {
        for key in [
            "containerd.io/gc.ref.content",
            "containerd.io/gc.ref.content.config",
            "containerd.io/gc.ref.content.l.12",
            "containerd.io/gc.ref.content.m.0",
            "containerd.io/gc.ref.content.0",
            "containerd.io/gc.ref.content/config",
            "containerd.io/gc.ref.content.moby/container.config",
            "containerd.io/gc.ref.content.blob-sha256:00",
            "containerd.io/gc.ref.content.referrer.sha256.0123456789ab",
        ] {
            assert_eq!(read(key, DIGEST), Some(Meaning::Forward(content())), "{key}");
        }
        for (key, snapshotter) in [
            ("containerd.io/gc.ref.snapshot.overlayfs", "overlayfs"),
            ("containerd.io/gc.ref.snapshot.overlayfs/foo", "overlayfs"),
            ("containerd.io/gc.ref.snapshot.my.own.snapshotter", "my.own.snapshotter"),
            ("containerd.io/gc.ref.snapshot.a.b/c.d/e", "a.b"),
        ] {
            let expected = Meaning::Forward(snapshot(snapshotter, "sha256:k"));
            assert_eq!(read(key, "sha256:k"), Some(expected), "{key}");
        }
        assert_eq!(
            read("containerd.io/gc.ref.image.base", "docker.io/x"),
            Some(Meaning::Forward(Node::Image("docker.io/x".to_owned())))
        );
    }

    #[test]
    fn near_misses_are_no_references() {
        for (key, value) in [
            ("containerd.io/gc.ref.contentfoo", DIGEST),
            ("containerd.io/gc.ref.content-0", DIGEST),
            ("containerd.io/gc.ref.content", "not a digest"),
            ("containerd.io/gc.ref.snapshot", "key"),
            ("containerd.io/gc.ref.snapshot.", "key"),
            ("containerd.io/gc.ref.snapshot./x", "key"),
            ("containerd.io/gc.ref.container", "id"),
            ("containerd.io/gc.ref", DIGEST),
            ("containerd.io/gc.reference", DIGEST),
            ("containerd.io/gcref.content", DIGEST),
            ("containerd.io/gc.cond.snapshot.s", "key"),
            ("containerd.io/gc.cond.snapshot.s", "nonsense|key"),
        ] {
            assert_eq!(read(key, value), None, "{key}");
        }
    }

    #[test]
    fn back_references_name_what_keeps_them() {
        let container = Node::Container("c1".to_owned());
        assert_eq!(
            read("containerd.io/gc.bref.container", "c1"),
            Some(Meaning::Back(container.clone()))
        );
        assert_eq!(read("containerd.io/gc.bref.container.x", "c1"), Some(Meaning::Back(container)));
        assert_eq!(read("containerd.io/gc.bref.content", DIGEST), Some(Meaning::Back(content())));
        assert_eq!(
            read("containerd.io/gc.bref.snapshot.overlayfs/1", "k"),
            Some(Meaning::Back(snapshot("overlayfs", "k")))
        );
    }

    #[test]
    fn roots_are_known_by_prefix() {
        for key in ["containerd.io/gc.root", "containerd.io/gc.root.x", "containerd.io/gc.rooted"] {
            assert_eq!(read(key, "2024"), Some(Meaning::Root), "{key}");
        }
    }

    #[test]
    fn conditions_are_read_and_weighed() {
        let read = read("containerd.io/gc.cond.snapshot.s/1", "usedat<1h,usedat>2h|k");
        let conditions = vec![
            Condition::UsedWithin(Duration::from_secs(3600)),
            Condition::UnusedFor(Duration::from_secs(7200)),
        ];
        assert_eq!(read, Some(Meaning::Condition(snapshot("s", "k"), conditions.clone())));
        let now = SystemTime::now();
        let ago = |minutes: u64| now - Duration::from_secs(minutes * 60);
        assert!(conditions[0].holds(ago(30), now) && !conditions[0].holds(ago(90), now));
        assert!(conditions[1].holds(ago(150), now) && !conditions[1].holds(ago(90), now));
    }
}
