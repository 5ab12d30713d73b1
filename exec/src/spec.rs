//! Questions to and edits of an OCI runtime spec, as pure functions.

use oci_spec::runtime::{LinuxNamespaceType, Spec};

use crate::{Error, Result};

/// Reads the JSON of a spec.
///
/// # Errors
///
/// [`Error::InvalidArgument`] with the place of the fault.
pub fn parse(bytes: &[u8]) -> Result<Spec> {
    serde_json::from_slice(bytes).map_err(|e| Error::InvalidArgument(format!("runtime spec: {e}")))
}

/// What running a container has to know of its spec.
///
/// Looks at the JSON itself: a spec with parts this crate does not know must still run.
#[derive(serde::Deserialize)]
pub struct Glance {
    #[serde(default)]
    annotations: std::collections::BTreeMap<String, String>,
    #[serde(default)]
    linux: Option<GlanceLinux>,
    #[serde(default)]
    hooks: Option<GlanceHooks>,
    #[serde(default)]
    root: Option<GlanceRoot>,
}

impl Glance {
    /// Looks at the JSON of a spec.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] for what is no JSON.
    pub fn of(bytes: &[u8]) -> Result<Self> {
        serde_json::from_slice(bytes)
            .map_err(|e| Error::InvalidArgument(format!("runtime spec: {e}")))
    }

    /// Whether the container has PIDs of its own, so that its other processes end with the first.
    pub fn has_private_pids(&self) -> bool {
        let mut namespaces = self.linux.iter().flat_map(|linux| &linux.namespaces);
        namespaces.any(|ns| ns.kind == "pid" && ns.path.is_empty())
    }

    /// Where the container's cgroup shall be; `None` when the runtime chooses, or systemd makes it.
    pub fn cgroups_path(&self) -> Option<&str> {
        let path = self.linux.as_ref()?.cgroups_path.as_str();
        (path.starts_with('/') && !path.contains(':')).then_some(path)
    }

    /// Folder of the root file system, absolute or in the bundle.
    pub fn root_path(&self) -> Option<&str> {
        self.root.as_ref().map(|root| root.path.as_str()).filter(|path| !path.is_empty())
    }

    /// Whether hooks run when the container has been started.
    pub fn has_poststart_hooks(&self) -> bool {
        self.hooks.as_ref().is_some_and(|hooks| !hooks.poststart.is_empty())
    }

    /// Whether the container's share of caches is limited, for which runtimes make a folder
    /// outside of cgroups.
    pub fn has_cache_limits(&self) -> bool {
        self.linux.as_ref().is_some_and(|linux| linux.intel_rdt.is_some())
    }

    /// Whether hooks run when the container is deleted.
    pub fn has_poststop_hooks(&self) -> bool {
        self.hooks.as_ref().is_some_and(|hooks| !hooks.poststop.is_empty())
    }
}

/// The annotation `key` of a spec, looked up leniently.
///
/// # Errors
///
/// [`Error::InvalidArgument`] for what is no JSON.
pub fn annotation(bytes: &[u8], key: &str) -> Result<Option<String>> {
    let mut glance = Glance::of(bytes)?;
    Ok(glance.annotations.remove(key).filter(|value| !value.is_empty()))
}

/// Replaces the arguments of the process.
#[must_use]
pub fn with_args(mut spec: Spec, args: &[&str]) -> Spec {
    let mut process = spec.process().clone().unwrap_or_default();
    process.set_args(Some(args.iter().map(|arg| (*arg).to_owned()).collect()));
    spec.set_process(Some(process));
    spec
}

/// Says whether the process has a terminal.
#[must_use]
pub fn with_terminal(mut spec: Spec, terminal: bool) -> Spec {
    let mut process = spec.process().clone().unwrap_or_default();
    process.set_terminal(Some(terminal));
    spec.set_process(Some(process));
    spec
}

/// Puts the container below this cgroup.
#[must_use]
pub fn with_cgroup(mut spec: Spec, path: &str) -> Spec {
    let mut linux = spec.linux().clone().unwrap_or_default();
    linux.set_cgroups_path(Some(path.into()));
    spec.set_linux(Some(linux));
    spec
}

/// Shares a namespace with whoever starts the container.
#[must_use]
pub fn without_namespace(mut spec: Spec, kind: LinuxNamespaceType) -> Spec {
    let mut linux = spec.linux().clone().unwrap_or_default();
    let mut namespaces = linux.namespaces().clone().unwrap_or_default();
    namespaces.retain(|namespace| namespace.typ() != kind);
    linux.set_namespaces(Some(namespaces));
    spec.set_linux(Some(linux));
    spec
}

#[derive(Default, serde::Deserialize)]
struct GlanceRoot {
    #[serde(default)]
    path: String,
}

#[derive(Default, serde::Deserialize)]
struct GlanceHooks {
    #[serde(default)]
    poststart: Vec<serde::de::IgnoredAny>,
    #[serde(default)]
    poststop: Vec<serde::de::IgnoredAny>,
}

#[derive(Default, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct GlanceLinux {
    #[serde(default)]
    cgroups_path: String,
    #[serde(default)]
    intel_rdt: Option<serde::de::IgnoredAny>,
    #[serde(default)]
    namespaces: Vec<GlanceNamespace>,
}

#[derive(serde::Deserialize)]
struct GlanceNamespace {
    #[serde(rename = "type", default)]
    kind: String,
    #[serde(default)]
    path: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_new_pid_namespace_is_private() {
        let spec = |ns: &str| format!("{{\"linux\":{{\"namespaces\":[{ns}]}},\"future\":[]}}");
        let has_private_pids =
            |json: &[u8]| Glance::of(json).map(|glance| glance.has_private_pids());
        assert!(has_private_pids(spec("{\"type\":\"pid\"}").as_bytes()).unwrap());
        let joined = spec("{\"type\":\"pid\",\"path\":\"/proc/1/ns/pid\"}");
        assert!(!has_private_pids(joined.as_bytes()).unwrap());
        assert!(!has_private_pids(b"{}").unwrap());
        assert!(has_private_pids(b"[").is_err());
    }

    #[test]
    fn an_empty_annotation_is_absent() {
        let spec = br#"{"annotations":{"a":"1","b":""}}"#;
        assert_eq!(annotation(spec, "a").unwrap().as_deref(), Some("1"));
        assert_eq!(annotation(spec, "b").unwrap(), None);
        assert_eq!(annotation(b"{}", "a").unwrap(), None);
    }

    #[test]
    fn edits_change_only_what_they_name() {
        let spec = with_cgroup(with_args(Spec::default(), &["/bin/true"]), "/a/b");
        let spec = without_namespace(spec, LinuxNamespaceType::Network);
        let json = serde_json::to_vec(&spec).unwrap();
        let read = parse(&json).unwrap();
        assert_eq!(read, spec);
        assert!(Glance::of(&json).unwrap().has_private_pids());
        let args = read.process().as_ref().unwrap().args().clone();
        assert_eq!(args.unwrap(), ["/bin/true"]);
    }
}
