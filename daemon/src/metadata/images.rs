//! Images: names for targets, the roots of the garbage collector.

use std::time::SystemTime;

use crated_content::{Digest, LabelUpdate};

use super::gc::{LABEL_EXPIRE, LABEL_PREFIX, Node};
use super::leases::{attach, detach};
use super::record::{ImageRow, stamp, time};
use super::schema::Table;
use super::txn::{View, WriteTx};
use super::{Db, Error, Event, Labels, Namespace, Object, Result, Scope, rows, validate};
use crate::filters::Filters;

/// What an image points at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The media type of the blob.
    pub media_type: String,
    /// The blob, normally an index or a manifest.
    pub digest: Digest,
    /// Length of the blob in bytes; never 0.
    pub size_bytes: u64,
    /// Annotations of the descriptor.
    pub annotations: Labels,
}

/// A name for a target in one namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// The name: any text, normally a reference.
    pub name: String,
    /// Labels; none has an empty value.
    pub labels: Labels,
    /// What the name stands for.
    pub target: Target,
    /// When it was created. Ignored on the way in.
    pub created_at: SystemTime,
    /// When it was created or last changed. Ignored on the way in.
    pub updated_at: SystemTime,
}

/// What to change about an image; `None` leaves a part as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageUpdate {
    /// The labels.
    pub labels: Option<LabelUpdate>,
    /// The whole target, annotations included.
    pub target: Option<Target>,
    /// The annotations of the target, after `target` was replaced.
    pub annotations: Option<LabelUpdate>,
}

impl ImageUpdate {
    /// Everything that may change taken from `image`: an update without a mask.
    pub fn replace(image: Image) -> Self {
        Self {
            labels: Some(LabelUpdate::Replace(image.labels)),
            target: Some(image.target),
            annotations: None,
        }
    }
}

/// The image records.
#[derive(Clone)]
pub struct Images {
    db: Db,
}

impl Images {
    pub(super) fn new(db: Db) -> Self {
        Self { db }
    }

    /// The image called `name`.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`]; [`Error::InvalidArgument`] for an empty name.
    pub fn image(&self, scope: &Scope, name: &str) -> Result<Image> {
        validate::present("image name", name)?;
        let view = self.db.read()?;
        rows::load(&view, Table::Images, &[scope.namespace.as_str(), name])?
            .ok_or_else(|| Error::not_found(Object::Image, name))
            .and_then(|row| image(name.to_owned(), row))
    }

    /// The images of the namespace that pass `filters`, in name order.
    ///
    /// # Errors
    ///
    /// [`Error::Storage`].
    pub fn list(&self, scope: &Scope, filters: &Filters) -> Result<Vec<Image>> {
        let view = self.db.read()?;
        rows::collect(&view, Table::Images, &[scope.namespace.as_str()], |name, row| {
            let image = image(name, row)?;
            Ok(filters.matches(&image).then_some(image))
        })
    }

    /// Creates an image, dated `epoch` or now. It is attached to the lease of `scope` only when it
    /// may expire; other images hold themselves.
    ///
    /// # Errors
    ///
    /// [`Error::AlreadyExists`]; [`Error::InvalidArgument`] for an empty name or media type, a
    /// size of 0 or a label that is too long; [`Error::LeaseNotFound`].
    pub fn create(
        &self,
        scope: &Scope,
        mut image: Image,
        epoch: Option<SystemTime>,
    ) -> Result<Image> {
        let now = epoch.unwrap_or_else(SystemTime::now);
        (image.created_at, image.updated_at) = (now, now);
        image.labels.retain(|_, value| !value.is_empty());
        check(&image)?;
        let scope = scope.clone();
        self.db.write(move |tx| {
            let at = rows::address(&scope.namespace, &[&image.name]);
            if tx.has(Table::Images, &at)? {
                return Err(Error::already_exists(Object::Image, image.name));
            }
            if image.labels.contains_key(LABEL_EXPIRE) {
                attach(tx, &scope, "images", &image.name)?;
            }
            store(tx, &scope.namespace, &image)?;
            tx.emit(
                &scope.namespace,
                Event::ImageCreate { name: image.name.clone(), labels: image.labels.clone() },
            );
            Ok(image)
        })
    }

    /// Changes the image called `name`, dating the change `epoch` or now.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`]; [`Error::InvalidArgument`] as for [`create`](Self::create).
    pub fn update(
        &self,
        scope: &Scope,
        name: &str,
        update: ImageUpdate,
        epoch: Option<SystemTime>,
    ) -> Result<Image> {
        validate::present("image name", name)?;
        let (namespace, name) = (scope.namespace.clone(), name.to_owned());
        let now = epoch.unwrap_or_else(SystemTime::now);
        self.db.write(move |tx| {
            let row = rows::load(tx, Table::Images, &[namespace.as_str(), &name])?
                .ok_or_else(|| Error::not_found(Object::Image, &name))?;
            let before = image(name, row)?;
            let mut after = before.clone();
            if let Some(labels) = &update.labels {
                after.labels = labels.apply(&before.labels);
            }
            if let Some(target) = update.target {
                after.target = target;
            }
            if let Some(annotations) = &update.annotations {
                after.target.annotations = annotations.apply(&after.target.annotations);
            }
            after.updated_at = now;
            check(&after)?;
            store(tx, &namespace, &after)?;
            tx.effects.dirty |= drops_reference(&before, &after);
            tx.emit(
                &namespace,
                Event::ImageUpdate { name: after.name.clone(), labels: after.labels.clone() },
            );
            Ok(after)
        })
    }

    /// Removes the image called `name`, provided its target is `target` where that is given.
    ///
    /// What the image held goes with the next collection.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`], also when the target is another one.
    pub fn delete(&self, scope: &Scope, name: &str, target: Option<&Digest>) -> Result<()> {
        validate::present("image name", name)?;
        let (scope, name, target) = (scope.clone(), name.to_owned(), target.cloned());
        self.db.write(move |tx| {
            let row: ImageRow = rows::load(tx, Table::Images, &[scope.namespace.as_str(), &name])?
                .ok_or_else(|| Error::not_found(Object::Image, &name))?;
            if let Some(target) = target
                && target.as_str() != row.digest
            {
                return Err(Error::not_found(Object::Image, format!("{name}@{target}")));
            }
            detach(tx, &scope, "images", &name)?;
            tx.remove(Table::Images, rows::address(&scope.namespace, &[&name]));
            tx.effects.dirty = true;
            tx.emit(&scope.namespace, Event::ImageDelete { name });
            Ok(())
        })
    }
}

fn store(tx: &mut WriteTx<'_, '_>, namespace: &Namespace, image: &Image) -> Result<()> {
    let row = ImageRow {
        labels: image.labels.clone(),
        media_type: image.target.media_type.clone(),
        digest: image.target.digest.to_string(),
        size_bytes: image.target.size_bytes,
        annotations: image.target.annotations.clone(),
        created_at: stamp(image.created_at),
        updated_at: stamp(image.updated_at),
    };
    tx.touch(namespace, Node::Image(image.name.clone()));
    rows::store(tx, Table::Images, namespace, &[&image.name], &row)
}

fn image(name: String, row: ImageRow) -> Result<Image> {
    Ok(Image {
        name,
        labels: row.labels,
        target: Target {
            media_type: row.media_type,
            digest: row.digest.parse()?,
            size_bytes: row.size_bytes,
            annotations: row.annotations,
        },
        created_at: time(row.created_at),
        updated_at: time(row.updated_at),
    })
}

fn check(image: &Image) -> Result<()> {
    validate::present("image name", &image.name)?;
    validate::labels(&image.labels)?;
    let invalid = |reason| Error::invalid(format!("target of image {:?}", image.name), reason);
    if image.target.size_bytes == 0 {
        return Err(invalid("size must not be 0"));
    }
    if i64::try_from(image.target.size_bytes).is_err() {
        return Err(invalid("size is beyond what the wire can carry"));
    }
    if image.target.media_type.is_empty() {
        return Err(invalid("media type must not be empty"));
    }
    Ok(())
}

/// Whether something that `before` held may be held no longer.
fn drops_reference(before: &Image, after: &Image) -> bool {
    before.target.digest != after.target.digest
        || before.labels.iter().any(|(key, value)| {
            key.starts_with(LABEL_PREFIX) && after.labels.get(key) != Some(value)
        })
        || !before.labels.contains_key(LABEL_EXPIRE) && after.labels.contains_key(LABEL_EXPIRE)
}
