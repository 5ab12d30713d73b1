//! The runtime specification of a container: containerd's defaults for Linux, the image's
//! configuration, and what the command line asks for.

use std::path::PathBuf;

use oci_spec::image::ImageConfiguration;
use oci_spec::runtime::{
    Capability, LinuxBuilder, LinuxCpuBuilder, LinuxIdMapping, LinuxIdMappingBuilder,
    LinuxMemoryBuilder, LinuxNamespaceBuilder, LinuxNamespaceType, LinuxResourcesBuilder,
    MountBuilder, Spec, User,
};
use serde_json::json;

use crate::error::{Error, Result};
use crate::rootfs::Rootfs;

/// The search path of a process whose image names none.
const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What `run` was asked for, beside the image's configuration.
#[derive(Debug, Default)]
pub(crate) struct Wishes {
    /// The command line; empty for the image's own.
    pub(crate) args: Vec<String>,
    /// `KEY=value`, or `KEY` to take this process's value.
    pub(crate) env: Vec<String>,
    /// The working directory.
    pub(crate) cwd: Option<String>,
    /// Extra mounts, in the form `type=bind,src=/a,dst=/b,options=rbind:ro`.
    pub(crate) mounts: Vec<String>,
    /// Namespaces to join, in the form `network:/run/netns/x`.
    pub(crate) join: Vec<String>,
    /// User and group mappings, in the form `container:host:length`.
    pub(crate) uid_maps: Vec<String>,
    /// As `uid_maps`, for groups.
    pub(crate) gid_maps: Vec<String>,
    /// Annotations, in the form `key=value`.
    pub(crate) annotations: Vec<String>,
    /// Capabilities to add to the default set.
    pub(crate) cap_add: Vec<String>,
    /// Capabilities to take away.
    pub(crate) cap_drop: Vec<String>,
    /// Bytes of memory; 0 for no limit.
    pub(crate) memory_limit_bytes: i64,
    /// Processors; 0 for no limit.
    pub(crate) cpus: f64,
    /// The relative weight of the container's processor time.
    pub(crate) cpu_shares: Option<u64>,
    /// The cgroup path; `None` for `/<namespace>/<id>`, empty for none.
    pub(crate) cgroup: Option<String>,
    /// A terminal instead of three streams.
    pub(crate) terminal: bool,
    /// The host's network.
    pub(crate) host_network: bool,
    /// Every capability and no masked path.
    pub(crate) privileged: bool,
    /// A root file system that cannot be written.
    pub(crate) read_only: bool,
    /// Lets processes gain privileges by executing.
    pub(crate) allow_new_privileges: bool,
}

/// Builds the specification of container `id` in `namespace`.
pub(crate) fn build(
    namespace: &str,
    id: &str,
    image: Option<&ImageConfiguration>,
    rootfs: &Rootfs,
    wishes: &Wishes,
) -> Result<Spec> {
    let mut spec = defaults(namespace, id)?;
    process(&mut spec, image, rootfs, wishes)?;
    capabilities(&mut spec, wishes)?;
    mounts(&mut spec, wishes)?;
    namespaces(&mut spec, wishes)?;
    resources(&mut spec, wishes)?;
    if wishes.privileged {
        unmask(&mut spec);
    }
    if let Some(root) = spec.root_mut() {
        root.set_readonly(Some(wishes.read_only));
    }
    if !wishes.annotations.is_empty() {
        let pairs =
            wishes.annotations.iter().map(|pair| split_pair(pair)).collect::<Result<_>>()?;
        spec.set_annotations(Some(pairs));
    }
    Ok(spec)
}

/// The command, environment, directory and user of an additional process in a container.
pub(crate) fn additional_process(
    spec: &Spec,
    rootfs: &Rootfs,
    args: &[String],
    terminal: bool,
    cwd: Option<&str>,
    user: Option<&str>,
) -> Result<oci_spec::runtime::Process> {
    let mut process = spec
        .process()
        .clone()
        .ok_or_else(|| Error::Refused("the container's specification has no process".to_owned()))?;
    process.set_args(Some(args.to_vec())).set_terminal(Some(terminal));
    if let Some(cwd) = cwd {
        process.set_cwd(PathBuf::from(cwd));
    }
    if let Some(user) = user {
        process.set_user(rootfs.user(user)?);
    }
    Ok(process)
}

fn defaults(namespace: &str, id: &str) -> Result<Spec> {
    let capabilities = [
        "CHOWN",
        "DAC_OVERRIDE",
        "FSETID",
        "FOWNER",
        "MKNOD",
        "NET_RAW",
        "SETGID",
        "SETUID",
        "SETFCAP",
        "SETPCAP",
        "NET_BIND_SERVICE",
        "SYS_CHROOT",
        "KILL",
        "AUDIT_WRITE",
    ]
    .map(|name| format!("CAP_{name}"));
    let tmpfs = |destination: &str, source: &str, options: &[&str]| json!({"destination": destination, "type": "tmpfs", "source": source, "options": options});
    let plain = |destination: &str, kind: &str, options: &[&str]| json!({"destination": destination, "type": kind, "source": kind, "options": options});
    let document = json!({
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": 0, "gid": 0},
            "cwd": "/",
            "noNewPrivileges": true,
            "capabilities": {
                "bounding": capabilities, "effective": capabilities, "permitted": capabilities,
            },
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
        },
        "root": {"path": "rootfs"},
        "mounts": [
            plain("/proc", "proc", &["nosuid", "noexec", "nodev"]),
            tmpfs("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
            plain("/dev/pts", "devpts",
                &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
            tmpfs("/dev/shm", "shm", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
            plain("/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
            plain("/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
            tmpfs("/run", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        ],
        "linux": {
            "cgroupsPath": format!("/{namespace}/{id}"),
            "resources": {"devices": [{"allow": false, "access": "rwm"}]},
            "namespaces": [
                {"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"},
                {"type": "network"},
            ],
            "maskedPaths": [
                "/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
                "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/sys/firmware",
                "/proc/scsi",
            ],
            "readonlyPaths": [
                "/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger",
            ],
        },
    });
    serde_json::from_value(document).map_err(Error::malformed("the default specification"))
}

fn process(
    spec: &mut Spec,
    image: Option<&ImageConfiguration>,
    rootfs: &Rootfs,
    wishes: &Wishes,
) -> Result<()> {
    let config = image.and_then(|image| image.config().as_ref());
    let process = spec.process_mut().as_mut().expect("the defaults describe a process");

    let mut env = vec![DEFAULT_PATH.to_owned()];
    if wishes.terminal {
        env.push("TERM=xterm".to_owned());
    }
    let from_image = config.and_then(|config| config.env().clone()).unwrap_or_default();
    for variable in from_image.iter().chain(&wishes.env) {
        set_variable(&mut env, variable);
    }
    process.set_env(Some(env));
    process.set_terminal(Some(wishes.terminal));
    process.set_no_new_privileges(Some(!wishes.allow_new_privileges && !wishes.privileged));

    let entrypoint = config.and_then(|config| config.entrypoint().clone()).unwrap_or_default();
    let command = config.and_then(|config| config.cmd().clone()).unwrap_or_default();
    let rest = if wishes.args.is_empty() { command } else { wishes.args.clone() };
    let args: Vec<String> = entrypoint.into_iter().chain(rest).collect();
    if args.is_empty() {
        return Err(Error::Refused("no arguments specified".to_owned()));
    }
    process.set_args(Some(args));

    let workdir = config.and_then(|config| config.working_dir().clone());
    let cwd = wishes.cwd.clone().or(workdir).filter(|cwd| !cwd.is_empty());
    if let Some(cwd) = cwd {
        process.set_cwd(PathBuf::from(cwd));
    }
    let user = config.and_then(|config| config.user().clone()).filter(|user| !user.is_empty());
    process.set_user(match user {
        Some(user) => rootfs.user(&user)?,
        None => User::default(),
    });
    Ok(())
}

/// Replaces a variable of the same name, or adds it.
fn set_variable(env: &mut Vec<String>, variable: &str) {
    let (name, value) = match variable.split_once('=') {
        Some((name, value)) => (name, value.to_owned()),
        None => match std::env::var(variable) {
            Ok(value) => (variable, value),
            Err(_) => return,
        },
    };
    env.retain(|have| have.split_once('=').map_or(have.as_str(), |(name, _)| name) != name);
    env.push(format!("{name}={value}"));
}

fn capabilities(spec: &mut Spec, wishes: &Wishes) -> Result<()> {
    let process = spec.process_mut().as_mut().expect("the defaults describe a process");
    let mut sets = process.capabilities().clone().expect("the defaults hold capabilities");
    let mut set = sets.bounding().clone().unwrap_or_default();
    if wishes.privileged {
        set.extend(every_capability());
    }
    for name in &wishes.cap_add {
        set.insert(capability(name)?);
    }
    for name in &wishes.cap_drop {
        set.remove(&capability(name)?);
    }
    sets.set_bounding(Some(set.clone())).set_effective(Some(set.clone())).set_permitted(Some(set));
    process.set_capabilities(Some(sets));
    Ok(())
}

fn capability(name: &str) -> Result<Capability> {
    name.parse().map_err(|_| Error::Refused(format!("{name:?} is not a capability")))
}

/// What this process may pass on: the kernel refuses to raise more.
fn every_capability() -> Vec<Capability> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let held = status
        .lines()
        .find_map(|line| line.strip_prefix("CapBnd:"))
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .unwrap_or_default();
    CAPABILITY_NAMES
        .iter()
        .enumerate()
        .filter(|(bit, _)| held >> bit & 1 == 1)
        .filter_map(|(_, name)| format!("CAP_{name}").parse().ok())
        .collect()
}

/// By number, as capabilities(7) lists them.
const CAPABILITY_NAMES: &[&str] = &[
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

fn mounts(spec: &mut Spec, wishes: &Wishes) -> Result<()> {
    let mounts = spec.mounts_mut().get_or_insert_default();
    for wish in &wishes.mounts {
        let mut builder = MountBuilder::default();
        for pair in wish.split(',') {
            let (key, value) = pair
                .split_once('=')
                .ok_or_else(|| Error::Refused(format!("mount {wish:?}: {pair:?} has no value")))?;
            builder = match key {
                "type" => builder.typ(value),
                "src" | "source" => builder.source(value),
                "dst" | "destination" => builder.destination(value),
                "options" => {
                    builder.options(value.split(':').map(str::to_owned).collect::<Vec<_>>())
                }
                _ => {
                    return Err(Error::Refused(format!("mount {wish:?}: unknown key {key:?}")));
                }
            };
        }
        mounts.push(builder.build().map_err(Error::malformed(format!("mount {wish:?}")))?);
    }
    if wishes.host_network {
        for file in ["/etc/hosts", "/etc/resolv.conf"] {
            let bind = MountBuilder::default()
                .typ("bind")
                .source(file)
                .destination(file)
                .options(vec!["rbind".to_owned(), "ro".to_owned()])
                .build()
                .map_err(Error::malformed(file))?;
            mounts.push(bind);
        }
    }
    Ok(())
}

fn namespaces(spec: &mut Spec, wishes: &Wishes) -> Result<()> {
    let linux = spec.linux_mut().as_mut().expect("the defaults describe Linux");
    let mut set = linux.namespaces().clone().unwrap_or_default();
    if wishes.host_network {
        set.retain(|namespace| namespace.typ() != LinuxNamespaceType::Network);
    }
    for wish in &wishes.join {
        let (kind, path) = wish.split_once(':').ok_or_else(|| {
            Error::Refused(format!("namespace {wish:?} is not of the form TYPE:PATH"))
        })?;
        let kind = match kind {
            "network" => LinuxNamespaceType::Network,
            other => LinuxNamespaceType::try_from(other)
                .map_err(|_| Error::Refused(format!("{other:?} is not a kind of namespace")))?,
        };
        set.retain(|namespace| namespace.typ() != kind);
        let joined = LinuxNamespaceBuilder::default()
            .typ(kind)
            .path(path)
            .build()
            .map_err(Error::malformed(format!("namespace {wish:?}")))?;
        set.push(joined);
    }
    if !wishes.uid_maps.is_empty() || !wishes.gid_maps.is_empty() {
        let user = LinuxNamespaceBuilder::default()
            .typ(LinuxNamespaceType::User)
            .build()
            .map_err(Error::malformed("user namespace"))?;
        set.push(user);
        linux.set_uid_mappings(Some(id_maps(&wishes.uid_maps)?));
        linux.set_gid_mappings(Some(id_maps(&wishes.gid_maps)?));
    }
    linux.set_namespaces(Some(set));
    Ok(())
}

/// Parses `container:host:length` mappings.
pub(crate) fn id_maps(wishes: &[String]) -> Result<Vec<LinuxIdMapping>> {
    wishes
        .iter()
        .map(|wish| {
            let refused = || Error::Refused(format!("mapping {wish:?} is not CONTAINER:HOST:SIZE"));
            let numbers: Vec<u32> = wish
                .split(':')
                .map(|part| part.parse().map_err(|_| refused()))
                .collect::<Result<_>>()?;
            let [container, host, size] = numbers[..] else {
                return Err(refused());
            };
            LinuxIdMappingBuilder::default()
                .container_id(container)
                .host_id(host)
                .size(size)
                .build()
                .map_err(Error::malformed("mapping"))
        })
        .collect()
}

fn resources(spec: &mut Spec, wishes: &Wishes) -> Result<()> {
    /// The scheduling period that a processor limit is a share of, in microseconds.
    const CPU_PERIOD_US: u64 = 100_000;
    let linux = spec.linux_mut().as_mut().expect("the defaults describe Linux");
    match wishes.cgroup.as_deref() {
        Some("") => linux.set_cgroups_path(None),
        Some(path) => linux.set_cgroups_path(Some(PathBuf::from(path))),
        None => linux,
    };
    let mut resources = linux.resources().clone().unwrap_or_else(|| {
        LinuxResourcesBuilder::default().build().expect("every field is optional")
    });
    if wishes.memory_limit_bytes > 0 {
        let memory = LinuxMemoryBuilder::default().limit(wishes.memory_limit_bytes).build();
        resources.set_memory(Some(memory.map_err(Error::malformed("memory limit"))?));
    }
    if wishes.cpus > 0.0 || wishes.cpu_shares.is_some() {
        let mut cpu = LinuxCpuBuilder::default();
        if wishes.cpus > 0.0 {
            #[allow(clippy::cast_possible_truncation, reason = "a count of processors is small")]
            let quota = (wishes.cpus * 100_000.0) as i64;
            cpu = cpu.period(CPU_PERIOD_US).quota(quota);
        }
        if let Some(shares) = wishes.cpu_shares {
            cpu = cpu.shares(shares);
        }
        resources.set_cpu(Some(cpu.build().map_err(Error::malformed("processor limit"))?));
    }
    linux.set_resources(Some(resources));
    Ok(())
}

fn unmask(spec: &mut Spec) {
    let linux = spec
        .linux_mut()
        .get_or_insert_with(|| LinuxBuilder::default().build().expect("every field is optional"));
    linux.set_masked_paths(None).set_readonly_paths(None);
    let every_device = json!([{"allow": true, "access": "rwm"}]);
    if let (Some(resources), Ok(devices)) =
        (linux.resources_mut().as_mut(), serde_json::from_value(every_device))
    {
        resources.set_devices(Some(devices));
    }
    for mount in spec.mounts_mut().iter_mut().flatten() {
        if mount.typ().as_deref() == Some("sysfs") {
            let options = mount.options().clone().unwrap_or_default();
            let writable = options.into_iter().map(|o| if o == "ro" { "rw".to_owned() } else { o });
            let writable = writable.collect();
            mount.set_options(Some(writable));
        }
    }
}

/// Splits `key=value`; a missing value is empty.
pub(crate) fn split_pair(pair: &str) -> Result<(String, String)> {
    let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
    if key.is_empty() {
        return Err(Error::Refused(format!("{pair:?} has no key")));
    }
    Ok((key.to_owned(), value.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(wishes: &Wishes) -> Result<Spec> {
        build("default", "c1", None, &Rootfs::default(), wishes)
    }

    fn echo() -> Wishes {
        Wishes { args: vec!["/bin/echo".to_owned()], ..Wishes::default() }
    }

    #[test]
    fn a_container_without_a_command_is_refused() {
        assert!(matches!(spec(&Wishes::default()), Err(Error::Refused(_))));
    }

    #[test]
    fn a_later_variable_replaces_an_earlier_one() {
        let wishes = Wishes { env: vec!["PATH=/x".into(), "A=b=c".into()], ..echo() };
        let spec = spec(&wishes).unwrap();
        let env = spec.process().as_ref().unwrap().env().clone().unwrap();
        assert_eq!(env, ["PATH=/x", "A=b=c"]);
    }

    #[test]
    fn a_joined_namespace_replaces_the_new_one_of_its_kind() {
        let wishes = Wishes { join: vec!["network:/run/netns/n".into()], ..echo() };
        let spec = spec(&wishes).unwrap();
        let linux = spec.linux().as_ref().unwrap();
        let networks: Vec<_> = linux
            .namespaces()
            .iter()
            .flatten()
            .filter(|namespace| namespace.typ() == LinuxNamespaceType::Network)
            .collect();
        assert_eq!(networks.len(), 1);
        assert!(networks[0].path().is_some());
    }

    #[test]
    fn a_malformed_mount_names_itself() {
        let wishes = Wishes { mounts: vec!["type=bind,what".into()], ..echo() };
        assert!(spec(&wishes).unwrap_err().to_string().contains("type=bind,what"));
    }

    #[test]
    fn a_memory_limit_reaches_the_resources() {
        let wishes = Wishes { memory_limit_bytes: 1 << 26, ..echo() };
        let spec = spec(&wishes).unwrap();
        let resources = spec.linux().as_ref().unwrap().resources().clone().unwrap();
        assert_eq!(resources.memory().unwrap().limit(), Some(1 << 26));
    }
}
