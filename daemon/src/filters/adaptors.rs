//! The fields of each kind of object, under the names clients use.

use std::borrow::Cow;

use super::{Adaptor, label, text};
use crate::metadata::{Container, Image, Lease, Sandbox};

impl Adaptor for Image {
    fn field<'a>(&'a self, path: &[String]) -> Option<Cow<'a, str>> {
        let (first, rest) = path.split_first()?;
        match first.as_str() {
            "name" => text(&self.name),
            "target" => match rest.first()?.as_str() {
                "digest" => text(self.target.digest.as_str()),
                "mediatype" => text(&self.target.media_type),
                _ => None,
            },
            "labels" => label(&self.labels, rest),
            "annotations" => label(&self.target.annotations, rest),
            _ => None,
        }
    }
}

impl Adaptor for Container {
    fn field<'a>(&'a self, path: &[String]) -> Option<Cow<'a, str>> {
        let (first, rest) = path.split_first()?;
        match first.as_str() {
            "id" => text(&self.id),
            "runtime" if rest.first()? == "name" => text(&self.runtime.name),
            "image" => text(self.image.as_deref()?),
            "labels" => label(&self.labels, rest),
            _ => None,
        }
    }
}

impl Adaptor for Lease {
    fn field<'a>(&'a self, path: &[String]) -> Option<Cow<'a, str>> {
        let (first, rest) = path.split_first()?;
        match first.as_str() {
            "id" => text(&self.id),
            "labels" => label(&self.labels, rest),
            _ => None,
        }
    }
}

impl Adaptor for Sandbox {
    fn field<'a>(&'a self, path: &[String]) -> Option<Cow<'a, str>> {
        let (first, rest) = path.split_first()?;
        match first.as_str() {
            "id" => text(&self.id),
            "labels" => label(&self.labels, rest),
            _ => None,
        }
    }
}

impl Adaptor for crated_content::Info {
    fn field<'a>(&'a self, path: &[String]) -> Option<Cow<'a, str>> {
        let (first, rest) = path.split_first()?;
        match first.as_str() {
            "digest" => text(self.digest.as_str()),
            "labels" => label(&self.labels, rest),
            _ => None,
        }
    }
}

impl Adaptor for crated_content::Status {
    fn field<'a>(&'a self, path: &[String]) -> Option<Cow<'a, str>> {
        match path.first()?.as_str() {
            "ref" => text(&self.reference),
            _ => None,
        }
    }
}

impl Adaptor for crated_snapshot::Info {
    fn field<'a>(&'a self, path: &[String]) -> Option<Cow<'a, str>> {
        let (first, rest) = path.split_first()?;
        match first.as_str() {
            "kind" => Some(Cow::Borrowed(self.kind.as_str())),
            // Both count as present while they are empty: `parent==""` selects base layers.
            "name" => Some(Cow::Borrowed(&self.name)),
            "parent" => Some(Cow::Borrowed(self.parent.as_ref().map_or("", |name| name.as_str()))),
            "labels" => label(&self.labels, rest),
            _ => None,
        }
    }
}
