//! What can go wrong, named for what the caller can do about it.

use std::io;
use std::path::PathBuf;

use crate::PinState;

/// Shorthand for results of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What the kernel answered: an error number and, when it gave one, its
/// extended acknowledgement text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelError {
    /// Positive `errno`.
    pub errno: i32,
    /// Extended acknowledgement text, in the kernel's words.
    pub message: Option<String>,
}

impl KernelError {
    /// An error number without text.
    pub fn new(errno: i32) -> Self {
        Self { errno, message: None }
    }

    /// True when the kernel's text contains `part`.
    pub(crate) fn says(&self, part: &str) -> bool {
        self.message.as_deref().is_some_and(|text| text.contains(part))
    }
}

impl std::fmt::Display for KernelError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The number says nothing that the words do not.
        let plain = io::Error::from_raw_os_error(self.errno).to_string();
        let plain = plain.split(" (os error").next().unwrap_or_default();
        match &self.message {
            Some(message) => write!(f, "{message} ({plain})"),
            None => write!(f, "{plain}"),
        }
    }
}

impl std::error::Error for KernelError {}

impl From<rustix::io::Errno> for KernelError {
    fn from(errno: rustix::io::Errno) -> Self {
        Self::new(errno.raw_os_error())
    }
}

/// Renders `: cause` behind a message when the kernel gave a cause.
fn cause(kernel: &Option<KernelError>) -> String {
    kernel.as_ref().map(|kernel| format!(": {kernel}")).unwrap_or_default()
}

/// Why an operation failed.
#[allow(missing_docs, reason = "each variant's doc covers its fields")]
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The text cannot name a namespace, link or sysctl; choose another.
    #[error("invalid {what} {value:?}: {reason}")]
    InvalidName { what: &'static str, value: String, reason: &'static str },
    /// A value the kernel would refuse, or would accept and misread.
    #[error("invalid {field}: {reason}")]
    InvalidValue { field: &'static str, reason: String, kernel: Option<KernelError> },
    /// A number outside the device's bounds, which are given when known.
    #[error("{field} {value} out of range {}{}", bounds(*.min, *.max), cause(.kernel))]
    OutOfRange {
        field: &'static str,
        value: u64,
        min: Option<u64>,
        max: Option<u64>,
        kernel: Option<KernelError>,
    },
    /// The object does not exist, or no longer.
    #[error("{object} not found{}", cause(.kernel))]
    NotFound { object: String, kernel: Option<KernelError> },
    /// An object with that name or value is already there.
    #[error("{object} already exists{}", cause(.kernel))]
    AlreadyExists { object: String, kernel: Option<KernelError> },
    /// Another use of the object stands in the way.
    #[error("{step}: busy{}", cause(.kernel))]
    Busy { step: String, kernel: Option<KernelError> },
    /// Processes live in the namespace; end them or delete with `force`.
    #[error("namespace {netns} is in use by {pids:?}")]
    InUse { netns: String, pids: Vec<i32> },
    /// The request is sound, the present state forbids it.
    #[error("{step}: {reason}{}", cause(.kernel))]
    Refused { step: String, reason: String, kernel: Option<KernelError> },
    /// A gateway or device cannot be reached from here.
    #[error("{step}: unreachable{}", cause(.kernel))]
    Unreachable { step: String, kernel: Option<KernelError> },
    /// This kernel lacks the kind of device or feature.
    #[error("{what} is not supported by this kernel{}", cause(.kernel))]
    Unsupported { what: String, kernel: Option<KernelError> },
    /// A limit of the kernel or of this crate is reached.
    #[error("{step}: limit reached{}", cause(.kernel))]
    Limit { step: String, kernel: Option<KernelError> },
    /// Not allowed; `needs` says what would allow it.
    #[error("{step}: not permitted, needs {needs}{}", cause(.kernel))]
    Permission { step: String, needs: &'static str, kernel: Option<KernelError> },
    /// The pin is no longer the namespace this handle was made for.
    #[error("namespace {netns} is gone: its pin is {state}")]
    Stale { netns: String, state: PinState },
    /// The kernel's tables changed during every attempt to read them; retry.
    #[error("{step}: tables kept changing while they were read")]
    Interrupted { step: String },
    /// The kernel did not answer in time.
    #[error("{step}: no answer within the time limit")]
    TimedOut { step: String },
    /// The kernel's answer could not be understood.
    #[error("{step}: malformed answer from the kernel: {reason}")]
    Malformed { step: String, reason: String },
    /// Any other answer of the kernel.
    #[error("{step}: {kernel}")]
    Kernel { step: String, kernel: KernelError },
    /// A file operation failed.
    #[error("{op} {}: {}", path.display(), kernel)]
    Io { op: &'static str, path: PathBuf, kernel: KernelError },
    /// The worker thread ended during the job; whether the change was made is
    /// unknown. A new thread serves later calls.
    #[error("{step}: worker thread ended")]
    WorkerLost { step: &'static str },
}

impl Error {
    /// What the kernel answered, if it was the kernel that refused.
    pub fn kernel(&self) -> Option<&KernelError> {
        match self {
            Self::InvalidValue { kernel, .. }
            | Self::OutOfRange { kernel, .. }
            | Self::NotFound { kernel, .. }
            | Self::AlreadyExists { kernel, .. }
            | Self::Busy { kernel, .. }
            | Self::Refused { kernel, .. }
            | Self::Unreachable { kernel, .. }
            | Self::Unsupported { kernel, .. }
            | Self::Limit { kernel, .. }
            | Self::Permission { kernel, .. } => kernel.as_ref(),
            Self::Kernel { kernel, .. } | Self::Io { kernel, .. } => Some(kernel),
            _ => None,
        }
    }

    pub(crate) fn value(field: &'static str, reason: impl Into<String>) -> Self {
        Self::InvalidValue { field, reason: reason.into(), kernel: None }
    }

    pub(crate) fn not_found(object: impl Into<String>) -> Self {
        Self::NotFound { object: object.into(), kernel: None }
    }

    pub(crate) fn refused(step: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Refused { step: step.into(), reason: reason.into(), kernel: None }
    }

    /// A failed file operation on `path`.
    pub(crate) fn io(op: &'static str, path: impl Into<PathBuf>, errno: rustix::io::Errno) -> Self {
        let (path, kernel) = (path.into(), KernelError::from(errno));
        match errno {
            rustix::io::Errno::PERM | rustix::io::Errno::ACCESS => Self::Permission {
                step: format!("{op} {}", path.display()),
                needs: "CAP_SYS_ADMIN",
                kernel: Some(kernel),
            },
            rustix::io::Errno::NOENT | rustix::io::Errno::SRCH => {
                Self::NotFound { object: path.display().to_string(), kernel: Some(kernel) }
            }
            _ => Self::Io { op, path, kernel },
        }
    }
}

fn bounds(min: Option<u64>, max: Option<u64>) -> String {
    let end = |bound: Option<u64>| bound.map(|n| n.to_string()).unwrap_or_default();
    format!("{}..={}", end(min), end(max))
}

/// The kind of object a netlink request was about; decides what an error
/// number means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Subject {
    Link,
    Master,
    Addr,
    Route,
    Rule,
    Neigh,
    Qdisc,
    Nsid,
}

/// One netlink request described for error messages.
#[derive(Debug, Clone)]
pub(crate) struct Step {
    pub(crate) subject: Subject,
    pub(crate) verb: &'static str,
    pub(crate) object: String,
}

impl Step {
    pub(crate) fn new(subject: Subject, verb: &'static str, object: impl Into<String>) -> Self {
        Self { subject, verb, object: object.into() }
    }

    pub(crate) fn text(&self) -> String {
        format!("{} {}", self.verb, self.object)
    }

    /// Sorts the kernel's answer into a decision for the caller.
    pub(crate) fn error(&self, kernel: KernelError) -> Error {
        let step = self.text();
        if let Some(error) = self.by_text(&step, &kernel) {
            return error;
        }
        let (object, link) = (self.object.clone(), self.subject == Subject::Link);
        let errno = kernel.errno;
        let answer = kernel.clone();
        let kernel = Some(kernel);
        match errno {
            libc::EPERM | libc::EACCES => {
                Error::Permission { step, needs: "CAP_NET_ADMIN", kernel }
            }
            libc::EADDRNOTAVAIL if link => Error::InvalidValue {
                field: "mac",
                reason: format!("{object}: the device does not take this address"),
                kernel,
            },
            libc::ENODEV | libc::ENOENT | libc::ESRCH | libc::ENXIO | libc::EADDRNOTAVAIL
                if self.subject != Subject::Qdisc =>
            {
                Error::NotFound { object, kernel }
            }
            libc::ENOENT if self.subject == Subject::Qdisc => {
                Error::Unsupported { what: object, kernel }
            }
            libc::EEXIST => Error::AlreadyExists { object, kernel },
            libc::EBUSY => Error::Busy { step, kernel },
            libc::EXFULL | libc::ENOBUFS | libc::ENOMEM | libc::ENOSPC | libc::E2BIG => {
                Error::Limit { step, kernel }
            }
            libc::ENETUNREACH | libc::EHOSTUNREACH | libc::ENETDOWN => {
                Error::Unreachable { step, kernel }
            }
            libc::EOPNOTSUPP if self.subject == Subject::Master || self.verb == "delete" => {
                Error::Refused { step, reason: "the device does not allow it".into(), kernel }
            }
            libc::EOPNOTSUPP | libc::EAFNOSUPPORT | libc::EPROTONOSUPPORT => {
                Error::Unsupported { what: object, kernel }
            }
            libc::ELOOP => Error::Refused { step, reason: "would be a loop".into(), kernel },
            libc::EINVAL if self.subject == Subject::Master => {
                Error::Refused { step, reason: "cannot be a port".into(), kernel }
            }
            libc::EINVAL | libc::ERANGE => Error::InvalidValue {
                field: self.field(),
                reason: with_cause(step, &kernel),
                kernel,
            },
            libc::EAGAIN | libc::ETIMEDOUT => Error::TimedOut { step },
            _ => Error::Kernel { step, kernel: answer },
        }
    }

    /// Answers that only the text tells apart.
    fn by_text(&self, step: &str, kernel: &KernelError) -> Option<Error> {
        let refused = |reason: &str| Error::Refused {
            step: step.to_owned(),
            reason: reason.to_owned(),
            kernel: Some(kernel.clone()),
        };
        if kernel.says("Unknown device type") || kernel.says("qdisc kind is unknown") {
            return Some(Error::Unsupported {
                what: self.object.clone(),
                kernel: Some(kernel.clone()),
            });
        }
        if kernel.says("netns is immutable") || kernel.says("immutable") {
            return Some(refused("the device belongs to its namespace"));
        }
        if kernel.says("IPv6 is disabled") {
            return Some(refused("enable IPv6 on the device first"));
        }
        if kernel.errno == libc::EEXIST && kernel.says("target netns") {
            return Some(Error::AlreadyExists {
                object: format!("{}, give `rename` to move it under another name", self.object),
                kernel: Some(kernel.clone()),
            });
        }
        if kernel.says("invalid gateway") || kernel.says("Nexthop device is not up") {
            return Some(Error::Unreachable {
                step: step.to_owned(),
                kernel: Some(kernel.clone()),
            });
        }
        None
    }

    fn field(&self) -> &'static str {
        match self.subject {
            Subject::Link => "link",
            Subject::Master => "master",
            Subject::Addr => "address",
            Subject::Route => "route",
            Subject::Rule => "rule",
            Subject::Neigh => "neighbour",
            Subject::Qdisc => "bandwidth",
            Subject::Nsid => "nsid",
        }
    }
}

fn with_cause(step: String, kernel: &Option<KernelError>) -> String {
    format!("{step}{}", cause(kernel))
}
