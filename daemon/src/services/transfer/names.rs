//! Under which names an image is kept.

use std::time::SystemTime;

use crated_api::types::transfer::{ImageReference, ImageStore};
use crated_distribution::{Descriptor, annotation};

use super::super::convert;
use crate::metadata::Labels;
use crate::metadata::gc::LABEL_EXPIRE;

/// Makes an image live as long as the one it names, once it has expired.
const LABEL_BELONGS_TO: &str = "containerd.io/gc.bref.image";

/// One name, and the labels of the image under it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Saved {
    pub(super) name: String,
    pub(super) labels: Labels,
}

/// The names of an image whose main one is `name`.
pub(super) fn pulled(name: &str, store: &ImageStore, root: &Descriptor) -> Vec<Saved> {
    let mut extra = Vec::new();
    for reference in store.extra_references.iter().filter(|reference| !reference.is_prefix) {
        extra.push(reference.name.clone());
        if reference.add_digest {
            extra.push(format!("{}@{}", reference.name, root.digest));
        }
    }
    let mut saved = vec![Saved { name: name.to_owned(), labels: store.labels.clone() }];
    for other in extra.into_iter().filter(|other| other != name) {
        let mut labels = store.labels.clone();
        labels.insert(LABEL_BELONGS_TO.to_owned(), name.to_owned());
        labels.insert(LABEL_EXPIRE.to_owned(), convert::rfc3339(SystemTime::now()));
        saved.push(Saved { name: other, labels });
    }
    saved
}

/// The names of an image that an archive names.
pub(super) fn imported(store: &ImageStore, image: &Descriptor) -> Vec<Saved> {
    let mut names = Vec::new();
    for reference in store.extra_references.iter().filter(|reference| reference.is_prefix) {
        let digested = || format!("{}@{}", reference.name, image.digest);
        match annotated(reference, image) {
            Some(name) => {
                names.push(name);
                if reference.add_digest && !reference.skip_named_digest {
                    names.push(digested());
                }
            }
            None if reference.add_digest => names.push(digested()),
            None => {}
        }
    }
    names.dedup();
    names.into_iter().map(|name| Saved { name, labels: store.labels.clone() }).collect()
}

/// The name in the annotations, as the reference lets it pass.
fn annotated(reference: &ImageReference, image: &Descriptor) -> Option<String> {
    let annotation = |key: &str| image.annotations.get(key).filter(|name| !name.is_empty());
    if let Some(name) = annotation(annotation::IMAGE_NAME) {
        // A whole name is taken as it is or not at all.
        return prefixed(reference, name).filter(|passed| passed == name);
    }
    annotation(annotation::REF_NAME).and_then(|name| prefixed(reference, name))
}

fn prefixed(reference: &ImageReference, name: &str) -> Option<String> {
    if reference.name.is_empty() {
        return Some(name.to_owned());
    }
    if !name.contains(['/', ':', '@']) {
        return Some(format!("{}:{name}", reference.name));
    }
    let rest = name.strip_prefix(reference.name.as_str());
    let below = rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(['/', ':', '@']));
    (reference.allow_overwrite || below).then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reference(name: &str) -> ImageReference {
        ImageReference { name: name.to_owned(), is_prefix: true, ..ImageReference::default() }
    }

    fn image(key: &str, name: &str) -> Descriptor {
        let mut image = Descriptor::of("application/vnd.oci.image.manifest.v1+json", b"{}");
        image.annotations.insert(key.to_owned(), name.to_owned());
        image
    }

    fn names(references: &[ImageReference], image: &Descriptor) -> Vec<String> {
        let store = ImageStore { extra_references: references.to_vec(), ..ImageStore::default() };
        imported(&store, image).into_iter().map(|saved| saved.name).collect()
    }

    #[test]
    fn names_of_archives_are_filtered_or_put_under_a_prefix() {
        let whole = image(annotation::IMAGE_NAME, "docker.io/library/redis:7");
        assert_eq!(names(&[reference("docker.io/library/redis")], &whole).len(), 1);
        assert!(names(&[reference("docker.io/library/red")], &whole).is_empty());
        assert_eq!(names(&[reference("")], &whole), ["docker.io/library/redis:7"]);

        let tag = image(annotation::REF_NAME, "7");
        assert_eq!(names(&[reference("x.test/redis")], &tag), ["x.test/redis:7"]);
    }

    #[test]
    fn a_load_without_names_gets_a_digest_once() {
        let add = |name: &str, skip| ImageReference {
            allow_overwrite: true,
            add_digest: true,
            skip_named_digest: skip,
            ..reference(name)
        };
        let tag = image(annotation::REF_NAME, "7");
        assert_eq!(names(&[add("import", true)], &tag), ["import:7"]);
        let both = names(&[add("import", false)], &tag);
        assert_eq!(both, ["import:7".to_owned(), format!("import@{}", tag.digest)]);
        let unnamed = image("other", "x");
        assert_eq!(names(&[add("import", true)], &unnamed), [format!("import@{}", unnamed.digest)]);
    }

    #[test]
    fn further_names_of_a_pulled_image_go_with_it() {
        let root = image("other", "x");
        let extra = ImageReference { is_prefix: false, add_digest: true, ..reference("r.test/b") };
        let store = ImageStore { extra_references: vec![extra], ..ImageStore::default() };
        let saved = pulled("r.test/a:1", &store, &root);
        assert_eq!(saved[0], Saved { name: "r.test/a:1".to_owned(), labels: Labels::new() });
        assert_eq!(saved[2].name, format!("r.test/b@{}", root.digest));
        assert_eq!(saved[1].labels[LABEL_BELONGS_TO], "r.test/a:1");
    }
}
