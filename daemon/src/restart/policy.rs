//! What the labels of a container and the state of its task ask for.

use std::fmt;
use std::str::FromStr;

use crate::metadata::Labels;

/// What the container should be: `running` or `stopped`; with any other value it is left alone.
pub const LABEL_STATUS: &str = "containerd.io/restart.status";
/// The value of [`LABEL_STATUS`] of what should run.
pub const STATUS_RUNNING: &str = "running";
/// When it is started again; see [`Policy`].
pub const LABEL_POLICY: &str = "containerd.io/restart.policy";
/// How often it was started again.
pub const LABEL_COUNT: &str = "containerd.io/restart.count";
/// Whether a user stopped it.
pub const LABEL_EXPLICITLY_STOPPED: &str = "containerd.io/restart.explicitly-stopped";
/// Where its output goes.
pub const LABEL_LOG_URI: &str = "containerd.io/restart.loguri";
/// The same as a path, as it was said before there were URIs.
pub const LABEL_LOG_PATH: &str = "containerd.io/restart.logpath";

/// Names of the policies, as clients look for them among the part's capabilities.
pub const POLICY_NAMES: [&str; 4] = ["no", "always", "on-failure", "unless-stopped"];

/// When a container that should run, and does not, is started again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Policy {
    /// Never.
    No,
    /// Whenever it does not run.
    #[default]
    Always,
    /// When it ended with another status than 0, up to so many times; 0 for without end.
    OnFailure {
        /// Starts, counted by [`LABEL_COUNT`].
        count_max: u64,
    },
    /// Unless a user stopped it.
    UnlessStopped,
}

impl FromStr for Policy {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, count) = match text.split_once(':') {
            Some((name, count)) => (name, Some(count)),
            None => (text, None),
        };
        let count_max = count.map_or(Ok(0), str::parse).map_err(|_| {
            format!("restart policy {text:?}: the part behind the colon is not a number")
        })?;
        match (name, count) {
            ("on-failure", _) => Ok(Self::OnFailure { count_max }),
            ("no", None) => Ok(Self::No),
            ("" | "always", None) => Ok(Self::Always),
            ("unless-stopped", None) => Ok(Self::UnlessStopped),
            _ => Err(format!("restart policy {text:?}: one of {POLICY_NAMES:?} is expected")),
        }
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::No => f.write_str("no"),
            Self::Always => f.write_str("always"),
            Self::OnFailure { count_max: 0 } => f.write_str("on-failure"),
            Self::OnFailure { count_max } => write!(f, "on-failure:{count_max}"),
            Self::UnlessStopped => f.write_str("unless-stopped"),
        }
    }
}

/// The task of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// There is none.
    Nothing,
    /// It is there and waits to be started.
    Created,
    /// It runs, or is frozen and will.
    Running,
    /// It ended with this status.
    Stopped(u32),
    /// Nobody can tell, so nothing is done.
    Unknown,
}

/// What to do about a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// It is as it should be.
    Leave,
    /// A new task instead of the one that ended, counted as this one.
    Start {
        /// What [`LABEL_COUNT`] becomes.
        count: u64,
    },
    /// The task is killed and deleted.
    Stop,
}

/// What `labels` ask for when the task is as `seen`.
///
/// # Errors
///
/// What is wrong with the labels. Nothing is to be done then.
pub fn decide(labels: &Labels, seen: Seen) -> Result<Action, String> {
    let label = |name: &str| labels.get(name).map(String::as_str).unwrap_or_default();
    match label(LABEL_STATUS) {
        STATUS_RUNNING => {}
        "stopped" => {
            return Ok(match seen {
                Seen::Created | Seen::Running => Action::Stop,
                Seen::Nothing | Seen::Stopped(_) | Seen::Unknown => Action::Leave,
            });
        }
        _ => return Ok(Action::Leave),
    }
    let policy: Policy = label(LABEL_POLICY).parse()?;
    let count: u64 = label(LABEL_COUNT).parse().unwrap_or_default();
    if matches!(seen, Seen::Running | Seen::Unknown) {
        return Ok(Action::Leave);
    }
    let again = match policy {
        Policy::No => false,
        Policy::Always => true,
        Policy::OnFailure { count_max } => {
            matches!(seen, Seen::Stopped(status) if status != 0)
                && (count_max == 0 || count < count_max)
        }
        Policy::UnlessStopped => !is_true(label(LABEL_EXPLICITLY_STOPPED)),
    };
    Ok(if again { Action::Start { count: count.saturating_add(1) } } else { Action::Leave })
}

/// Where the output of a container goes that is started again; empty for nowhere.
pub fn log_uri(labels: &Labels) -> String {
    match (labels.get(LABEL_LOG_URI), labels.get(LABEL_LOG_PATH)) {
        (Some(uri), _) => uri.clone(),
        (None, Some(path)) => format!("file://{path}"),
        (None, None) => String::new(),
    }
}

/// As clients in Go write what is true.
fn is_true(text: &str) -> bool {
    matches!(text, "1" | "t" | "T" | "true" | "True" | "TRUE")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    fn running(policy: &str, more: &[(&str, &str)]) -> Labels {
        let mut labels = labels(&[(LABEL_STATUS, "running"), (LABEL_POLICY, policy)]);
        labels.extend(self::labels(more));
        labels
    }

    fn starts(labels: &Labels, seen: Seen) -> bool {
        matches!(decide(labels, seen).unwrap(), Action::Start { .. })
    }

    #[test]
    fn without_a_status_a_container_is_left_alone() {
        for labels in [labels(&[]), labels(&[(LABEL_STATUS, "created"), (LABEL_POLICY, "always")])]
        {
            for seen in [Seen::Nothing, Seen::Created, Seen::Running, Seen::Stopped(1)] {
                assert_eq!(decide(&labels, seen), Ok(Action::Leave));
            }
        }
    }

    #[test]
    fn each_policy_starts_what_it_says() {
        for policy in ["", "always"] {
            let labels = running(policy, &[]);
            for seen in [Seen::Nothing, Seen::Created, Seen::Stopped(0), Seen::Stopped(9)] {
                assert!(starts(&labels, seen), "{policy} {seen:?}");
            }
        }
        for seen in [Seen::Nothing, Seen::Stopped(1)] {
            assert!(!starts(&running("no", &[]), seen));
            assert!(starts(&running("unless-stopped", &[]), seen));
            let stopped = running("unless-stopped", &[(LABEL_EXPLICITLY_STOPPED, "true")]);
            assert!(!starts(&stopped, seen));
        }
        let failing = running("on-failure", &[]);
        assert!(starts(&failing, Seen::Stopped(1)));
        assert!(!starts(&failing, Seen::Stopped(0)));
        assert!(!starts(&failing, Seen::Nothing));
    }

    #[test]
    fn failures_are_counted_up_to_the_limit() {
        let after = |count: &str| running("on-failure:3", &[(LABEL_COUNT, count)]);
        assert_eq!(decide(&after("2"), Seen::Stopped(1)), Ok(Action::Start { count: 3 }));
        assert_eq!(decide(&after("3"), Seen::Stopped(1)), Ok(Action::Leave));
        assert_eq!(decide(&after("what"), Seen::Stopped(1)), Ok(Action::Start { count: 1 }));
        let always = running("always", &[(LABEL_COUNT, "18446744073709551615")]);
        assert_eq!(decide(&always, Seen::Nothing), Ok(Action::Start { count: u64::MAX }));
    }

    #[test]
    fn what_runs_or_cannot_be_asked_is_not_started_again() {
        for policy in POLICY_NAMES {
            for seen in [Seen::Running, Seen::Unknown] {
                assert_eq!(decide(&running(policy, &[]), seen), Ok(Action::Leave));
            }
        }
    }

    #[test]
    fn what_should_be_stopped_is_stopped_once() {
        let labels = labels(&[(LABEL_STATUS, "stopped"), (LABEL_POLICY, "always")]);
        assert_eq!(decide(&labels, Seen::Running), Ok(Action::Stop));
        assert_eq!(decide(&labels, Seen::Created), Ok(Action::Stop));
        for seen in [Seen::Nothing, Seen::Stopped(0), Seen::Unknown] {
            assert_eq!(decide(&labels, seen), Ok(Action::Leave));
        }
    }

    #[test]
    fn a_policy_nobody_knows_starts_nothing() {
        for policy in ["sometimes", "on-failure:x", "on-failure:-1", "always:3", "no:"] {
            let refused = decide(&running(policy, &[]), Seen::Stopped(1)).unwrap_err();
            assert!(refused.contains(policy), "{refused}");
        }
    }

    #[test]
    fn output_goes_where_the_labels_say() {
        assert_eq!(log_uri(&labels(&[])), "");
        assert_eq!(log_uri(&labels(&[(LABEL_LOG_PATH, "/log")])), "file:///log");
        let both = labels(&[(LABEL_LOG_PATH, "/log"), (LABEL_LOG_URI, "binary:///bin/log")]);
        assert_eq!(log_uri(&both), "binary:///bin/log");
    }

    proptest! {
        #[test]
        fn a_policy_reads_what_it_writes(text in "(no|always|unless-stopped|on-failure(:[0-9]{1,19})?)") {
            let policy: Policy = text.parse().unwrap();
            prop_assert_eq!(policy.to_string().parse::<Policy>(), Ok(policy));
        }

        #[test]
        fn no_text_is_too_odd_to_be_refused(text in ".*") {
            let _ = text.parse::<Policy>();
        }
    }
}
