//! Sandbox records: groups of containers that share an environment.

use std::collections::BTreeMap;
use std::time::SystemTime;

use prost_types::Any;

use super::gc::Node;
use super::record::{SandboxRow, stamp, time};
use super::schema::Table;
use super::txn::{View, WriteTx};
use super::{
    Db, Error, LabelUpdate, Labels, Namespace, Object, Result, Runtime, Scope, rows, validate,
};
use crate::filters::Filters;

/// One sandbox record.
#[derive(Clone, Debug, PartialEq)]
pub struct Sandbox {
    /// An identifier, unique in its namespace.
    pub id: String,
    /// Labels; none has an empty value.
    pub labels: Labels,
    /// What runs it.
    pub runtime: Runtime,
    /// How it is to be made, kept byte for byte.
    pub spec: Option<Any>,
    /// Data of clients, kept byte for byte. No key is empty.
    pub extensions: BTreeMap<String, Any>,
    /// The controller in charge of it.
    pub sandboxer: String,
    /// When it was created. Ignored on the way in.
    pub created_at: SystemTime,
    /// When it was created or last changed. Ignored on the way in.
    pub updated_at: SystemTime,
}

/// What to change about a sandbox; `None` leaves a part as it is.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SandboxUpdate {
    /// The labels.
    pub labels: Option<LabelUpdate>,
    /// The specification; `Some(None)` clears it.
    pub spec: Option<Option<Any>>,
    /// Extensions to set, or to clear where there is no value; others stay.
    pub extensions: BTreeMap<String, Option<Any>>,
    /// All extensions; comes before `extensions`.
    pub replace_extensions: Option<BTreeMap<String, Any>>,
    /// What runs it. Its name cannot change.
    pub runtime: Option<Runtime>,
}

/// The sandbox records.
#[derive(Clone)]
pub struct Sandboxes {
    db: Db,
}

impl Sandboxes {
    pub(super) fn new(db: Db) -> Self {
        Self { db }
    }

    /// The sandbox called `id`.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`]; [`Error::InvalidArgument`] when `id` is no identifier.
    pub fn sandbox(&self, scope: &Scope, id: &str) -> Result<Sandbox> {
        validate::identifier("sandbox id", id)?;
        load(&self.db.read()?, &scope.namespace, id)
    }

    /// The sandboxes of the namespace that pass `filters`, ordered by id.
    ///
    /// # Errors
    ///
    /// [`Error::Storage`].
    pub fn list(&self, scope: &Scope, filters: &Filters) -> Result<Vec<Sandbox>> {
        let view = self.db.read()?;
        rows::collect(&view, Table::Sandboxes, &[scope.namespace.as_str()], |id, row| {
            let sandbox = sandbox(id, row);
            Ok(filters.matches(&sandbox).then_some(sandbox))
        })
    }

    /// Creates a sandbox record.
    ///
    /// # Errors
    ///
    /// [`Error::AlreadyExists`]; [`Error::InvalidArgument`] when the id is no identifier, an
    /// extension has no key, or a label is too long.
    pub fn create(&self, scope: &Scope, mut sandbox: Sandbox) -> Result<Sandbox> {
        let now = SystemTime::now();
        (sandbox.created_at, sandbox.updated_at) = (now, now);
        sandbox.labels.retain(|_, value| !value.is_empty());
        check(&sandbox)?;
        let namespace = scope.namespace.clone();
        self.db.write(move |tx| {
            if tx.has(Table::Sandboxes, &rows::address(&namespace, &[&sandbox.id]))? {
                return Err(Error::already_exists(Object::Sandbox, sandbox.id));
            }
            store(tx, &namespace, &sandbox)?;
            Ok(sandbox)
        })
    }

    /// Changes the sandbox called `id`.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`]; [`Error::InvalidArgument`] as for [`create`](Self::create), and when
    /// the runtime would get another name.
    pub fn update(&self, scope: &Scope, id: &str, update: SandboxUpdate) -> Result<Sandbox> {
        validate::identifier("sandbox id", id)?;
        let (namespace, id) = (scope.namespace.clone(), id.to_owned());
        self.db.write(move |tx| {
            let mut sandbox = load(tx, &namespace, &id)?;
            apply(&mut sandbox, update)?;
            sandbox.updated_at = SystemTime::now();
            check(&sandbox)?;
            store(tx, &namespace, &sandbox)?;
            Ok(sandbox)
        })
    }

    /// Removes the record, whether or not the sandbox runs.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`]; [`Error::InvalidArgument`] when `id` is no identifier.
    pub fn delete(&self, scope: &Scope, id: &str) -> Result<()> {
        validate::identifier("sandbox id", id)?;
        let (namespace, id) = (scope.namespace.clone(), id.to_owned());
        self.db.write(move |tx| {
            let at = rows::address(&namespace, &[&id]);
            if !tx.has(Table::Sandboxes, &at)? {
                return Err(Error::not_found(Object::Sandbox, id));
            }
            tx.remove(Table::Sandboxes, at);
            tx.effects.dirty = true;
            Ok(())
        })
    }
}

fn apply(sandbox: &mut Sandbox, update: SandboxUpdate) -> Result<()> {
    if let Some(runtime) = update.runtime {
        if runtime.name != sandbox.runtime.name {
            let what = format!("runtime of sandbox {:?}", sandbox.id);
            return Err(Error::invalid(what, "cannot be changed"));
        }
        sandbox.runtime = runtime;
    }
    if let Some(labels) = update.labels {
        sandbox.labels = labels.apply(&sandbox.labels);
    }
    if let Some(spec) = update.spec {
        sandbox.spec = spec;
    }
    if let Some(extensions) = update.replace_extensions {
        sandbox.extensions = extensions;
    }
    for (key, value) in update.extensions {
        match value {
            Some(value) => drop(sandbox.extensions.insert(key, value)),
            None => drop(sandbox.extensions.remove(&key)),
        }
    }
    Ok(())
}

fn check(sandbox: &Sandbox) -> Result<()> {
    validate::identifier("sandbox id", &sandbox.id)?;
    validate::labels(&sandbox.labels)?;
    if sandbox.extensions.contains_key("") {
        let what = format!("extensions of sandbox {:?}", sandbox.id);
        return Err(Error::invalid(what, "key must not be empty"));
    }
    Ok(())
}

fn load(view: &impl View, namespace: &Namespace, id: &str) -> Result<Sandbox> {
    rows::load(view, Table::Sandboxes, &[namespace.as_str(), id])?
        .map(|row| sandbox(id.to_owned(), row))
        .ok_or_else(|| Error::not_found(Object::Sandbox, id))
}

fn store(tx: &mut WriteTx<'_, '_>, namespace: &Namespace, sandbox: &Sandbox) -> Result<()> {
    let row = SandboxRow {
        labels: sandbox.labels.clone(),
        runtime: sandbox.runtime.name.clone(),
        runtime_options: sandbox.runtime.options.clone(),
        spec: sandbox.spec.clone(),
        extensions: sandbox.extensions.clone(),
        sandboxer: sandbox.sandboxer.clone(),
        created_at: stamp(sandbox.created_at),
        updated_at: stamp(sandbox.updated_at),
    };
    tx.touch(namespace, Node::Sandbox(sandbox.id.clone()));
    rows::store(tx, Table::Sandboxes, namespace, &[&sandbox.id], &row)
}

fn sandbox(id: String, row: SandboxRow) -> Sandbox {
    Sandbox {
        id,
        labels: row.labels,
        runtime: Runtime { name: row.runtime, options: row.runtime_options },
        spec: row.spec,
        extensions: row.extensions,
        sandboxer: row.sandboxer,
        created_at: time(row.created_at),
        updated_at: time(row.updated_at),
    }
}
