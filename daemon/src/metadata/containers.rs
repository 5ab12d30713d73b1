//! Containers: what to run, not the running of it.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::time::SystemTime;

use crated_content::LabelUpdate;
use prost_types::Any;

use super::gc::Node;
use super::record::{ContainerRow, NamespaceRow, stamp, time};
use super::schema::Table;
use super::txn::{View, WriteTx};
use super::{
    Db, Error, Event, Labels, Namespace, Object, Result, Scope, key, network, rows, validate,
};
use crate::filters::Filters;

/// Which runtime runs a container, and how.
#[derive(Clone, Debug, PartialEq)]
pub struct Runtime {
    /// The name of the runtime, `io.containerd.runc.v2` for example; never empty.
    pub name: String,
    /// Options the runtime understands, kept byte for byte.
    pub options: Option<Any>,
}

/// One container record.
#[derive(Clone, Debug, PartialEq)]
pub struct Container {
    /// An identifier, unique in its namespace.
    pub id: String,
    /// Labels; none has an empty value.
    pub labels: Labels,
    /// The image it was made from, which need not exist.
    pub image: Option<String>,
    /// What runs it.
    pub runtime: Runtime,
    /// The runtime specification, kept byte for byte.
    pub spec: Any,
    /// The snapshotter that holds its root filesystem.
    pub snapshotter: Option<String>,
    /// The snapshot that is its root filesystem; requires a snapshotter.
    pub snapshot_key: Option<String>,
    /// Data of clients, kept byte for byte. No key is empty.
    pub extensions: BTreeMap<String, Any>,
    /// The sandbox it belongs to.
    pub sandbox: Option<String>,
    /// When it was created. Ignored on the way in.
    pub created_at: SystemTime,
    /// When it was created or last changed. Ignored on the way in.
    pub updated_at: SystemTime,
}

/// What to change about a container; `None` leaves a part as it is.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ContainerUpdate {
    /// The labels.
    pub labels: Option<LabelUpdate>,
    /// The specification.
    pub spec: Option<Any>,
    /// Extensions to set; others stay, as clients have come to expect.
    pub extensions: BTreeMap<String, Any>,
    /// The image name; `Some(None)` clears it.
    pub image: Option<Option<String>>,
    /// The snapshot key; `Some(None)` clears it.
    pub snapshot_key: Option<Option<String>>,
    /// The update is refused unless the container has this snapshotter.
    pub require_snapshotter: Option<Option<String>>,
    /// The update is refused unless the container has the runtime of this name.
    pub require_runtime: Option<String>,
}

impl ContainerUpdate {
    /// Everything that may change taken from `container`, and the demand that the rest is equal:
    /// an update without a mask.
    pub fn replace(container: Container) -> Self {
        Self {
            labels: Some(LabelUpdate::Replace(container.labels)),
            spec: Some(container.spec),
            extensions: container.extensions,
            image: Some(container.image),
            snapshot_key: Some(container.snapshot_key),
            require_snapshotter: Some(container.snapshotter),
            require_runtime: Some(container.runtime.name),
        }
    }
}

/// The container records.
#[derive(Clone)]
pub struct Containers {
    db: Db,
}

impl Containers {
    pub(super) fn new(db: Db) -> Self {
        Self { db }
    }

    /// The container called `id`.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`]; [`Error::InvalidArgument`] when `id` is no identifier.
    pub fn container(&self, scope: &Scope, id: &str) -> Result<Container> {
        validate::identifier("container id", id)?;
        rows::load(&self.db.read()?, Table::Containers, &[scope.namespace.as_str(), id])?
            .map(|row| container(id.to_owned(), row))
            .ok_or_else(|| Error::not_found(Object::Container, id))
    }

    /// The containers of the namespace that pass `filters`, ordered by id.
    ///
    /// # Errors
    ///
    /// [`Error::Storage`].
    pub fn list(&self, scope: &Scope, filters: &Filters) -> Result<Vec<Container>> {
        let view = self.db.read()?;
        rows::collect(&view, Table::Containers, &[scope.namespace.as_str()], |id, row| {
            let container = container(id, row);
            Ok(filters.matches(&container).then_some(container))
        })
    }

    /// How many containers each namespace has, by name; namespaces without any are left out.
    ///
    /// # Errors
    ///
    /// [`Error::Storage`].
    pub fn counts(&self) -> Result<Vec<(String, usize)>> {
        let view = self.db.read()?;
        let namespaces =
            rows::collect(&view, Table::Namespaces, &[], |name, _: NamespaceRow| Ok(Some(name)))?;
        let mut counts = Vec::new();
        for namespace in namespaces {
            let mut count = 0;
            view.scan(Table::Containers, &key::prefix(&[&namespace]), &mut |_, _| {
                count += 1;
                Ok(ControlFlow::Continue(()))
            })?;
            if count > 0 {
                counts.push((namespace, count));
            }
        }
        Ok(counts)
    }

    /// Creates a container record.
    ///
    /// # Errors
    ///
    /// [`Error::AlreadyExists`]; [`Error::InvalidArgument`] when the id is no identifier, the
    /// runtime has no name, a snapshot key comes without snapshotter, an extension without key, or
    /// a label is too long.
    pub fn create(&self, scope: &Scope, mut container: Container) -> Result<Container> {
        let now = SystemTime::now();
        (container.created_at, container.updated_at) = (now, now);
        container.labels.retain(|_, value| !value.is_empty());
        check(&container)?;
        let (namespace, db) = (scope.namespace.clone(), self.db.clone());
        self.db.write(move |tx| {
            if tx.has(Table::Containers, &rows::address(&namespace, &[&container.id]))? {
                return Err(Error::already_exists(Object::Container, container.id));
            }
            let netns = network::of_container(tx, &db, &namespace, &container.spec)?;
            store(tx, &namespace, &container, netns)?;
            tx.emit(
                &namespace,
                Event::ContainerCreate {
                    id: container.id.clone(),
                    image: container.image.clone(),
                    runtime: container.runtime.clone(),
                },
            );
            Ok(container)
        })
    }

    /// Changes the container called `id`.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`]; [`Error::InvalidArgument`] as for [`create`](Self::create), and when
    /// the runtime or snapshotter is not the one required.
    pub fn update(&self, scope: &Scope, id: &str, update: ContainerUpdate) -> Result<Container> {
        validate::identifier("container id", id)?;
        let (namespace, id) = (scope.namespace.clone(), id.to_owned());
        let db = self.db.clone();
        self.db.write(move |tx| {
            let row: ContainerRow = rows::load(tx, Table::Containers, &[namespace.as_str(), &id])?
                .ok_or_else(|| Error::not_found(Object::Container, &id))?;
            let netns = match &update.spec {
                Some(spec) => network::of_container(tx, &db, &namespace, spec)?,
                None => row.netns.clone(),
            };
            let mut container = container(id, row);
            apply(&mut container, update)?;
            container.updated_at = SystemTime::now();
            check(&container)?;
            store(tx, &namespace, &container, netns)?;
            tx.emit(
                &namespace,
                Event::ContainerUpdate {
                    id: container.id.clone(),
                    image: container.image.clone(),
                    labels: container.labels.clone(),
                    snapshot_key: container.snapshot_key.clone(),
                },
            );
            Ok(container)
        })
    }

    /// Removes the record, whether or not the container runs.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`].
    pub fn delete(&self, scope: &Scope, id: &str) -> Result<()> {
        let (namespace, id) = (scope.namespace.clone(), id.to_owned());
        self.db.write(move |tx| {
            let at = rows::address(&namespace, &[&id]);
            if !tx.has(Table::Containers, &at)? {
                return Err(Error::not_found(Object::Container, id));
            }
            tx.remove(Table::Containers, at);
            tx.effects.dirty = true;
            tx.emit(&namespace, Event::ContainerDelete { id });
            Ok(())
        })
    }
}

fn apply(container: &mut Container, update: ContainerUpdate) -> Result<()> {
    let immutable = |what: &str| {
        Error::invalid(format!("{what} of container {:?}", container.id), "cannot be changed")
    };
    if update.require_runtime.is_some_and(|name| name != container.runtime.name) {
        return Err(immutable("runtime"));
    }
    if update.require_snapshotter.is_some_and(|name| name != container.snapshotter) {
        return Err(immutable("snapshotter"));
    }
    if let Some(labels) = update.labels {
        container.labels = labels.apply(&container.labels);
    }
    if let Some(spec) = update.spec {
        container.spec = spec;
    }
    if let Some(image) = update.image {
        container.image = image;
    }
    if let Some(snapshot_key) = update.snapshot_key {
        container.snapshot_key = snapshot_key;
    }
    container.extensions.extend(update.extensions);
    Ok(())
}

fn check(container: &Container) -> Result<()> {
    validate::identifier("container id", &container.id)?;
    validate::labels(&container.labels)?;
    let invalid = |part: &str, reason: &str| {
        Error::invalid(format!("{part} of container {:?}", container.id), reason)
    };
    if container.runtime.name.is_empty() {
        return Err(invalid("runtime", "name must not be empty"));
    }
    if container.extensions.contains_key("") {
        return Err(invalid("extensions", "key must not be empty"));
    }
    if container.snapshot_key.is_some() && container.snapshotter.is_none() {
        return Err(invalid("snapshot key", "requires a snapshotter"));
    }
    Ok(())
}

fn store(
    tx: &mut WriteTx<'_, '_>,
    namespace: &Namespace,
    container: &Container,
    netns: Option<String>,
) -> Result<()> {
    let row = ContainerRow {
        labels: container.labels.clone(),
        image: container.image.clone(),
        runtime: container.runtime.name.clone(),
        runtime_options: container.runtime.options.clone(),
        spec: Some(container.spec.clone()),
        snapshotter: container.snapshotter.clone(),
        snapshot_key: container.snapshot_key.clone(),
        extensions: container.extensions.clone(),
        sandbox: container.sandbox.clone(),
        created_at: stamp(container.created_at),
        updated_at: stamp(container.updated_at),
        netns,
    };
    tx.touch(namespace, Node::Container(container.id.clone()));
    rows::store(tx, Table::Containers, namespace, &[&container.id], &row)
}

fn container(id: String, row: ContainerRow) -> Container {
    Container {
        id,
        labels: row.labels,
        image: row.image,
        runtime: Runtime { name: row.runtime, options: row.runtime_options },
        spec: row.spec.unwrap_or_default(),
        snapshotter: row.snapshotter,
        snapshot_key: row.snapshot_key,
        extensions: row.extensions,
        sandbox: row.sandbox,
        created_at: time(row.created_at),
        updated_at: time(row.updated_at),
    }
}
