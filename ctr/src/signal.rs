//! Signals by name, as signal(7) lists them for this architecture.

use crate::error::{Error, Result};

/// Ends a process, which cannot refuse.
pub(crate) const KILL: u32 = 9;

const NAMES: &[(&str, u32)] = &[
    ("HUP", 1),
    ("INT", 2),
    ("QUIT", 3),
    ("ILL", 4),
    ("TRAP", 5),
    ("ABRT", 6),
    ("BUS", 7),
    ("FPE", 8),
    ("KILL", 9),
    ("USR1", 10),
    ("SEGV", 11),
    ("USR2", 12),
    ("PIPE", 13),
    ("ALRM", 14),
    ("TERM", 15),
    ("STKFLT", 16),
    ("CHLD", 17),
    ("CONT", 18),
    ("STOP", 19),
    ("TSTP", 20),
    ("TTIN", 21),
    ("TTOU", 22),
    ("URG", 23),
    ("XCPU", 24),
    ("XFSZ", 25),
    ("VTALRM", 26),
    ("PROF", 27),
    ("WINCH", 28),
    ("IO", 29),
    ("PWR", 30),
    ("SYS", 31),
];

/// The largest number that a signal has.
const NUMBER_MAX: u32 = 64;

/// Parses `9`, `KILL` or `SIGKILL`.
pub(crate) fn number(text: &str) -> Result<u32> {
    let refused = || Error::Refused(format!("unknown signal {text:?}"));
    if let Ok(number) = text.parse() {
        return if (1..=NUMBER_MAX).contains(&number) { Ok(number) } else { Err(refused()) };
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    NAMES.iter().find(|(known, _)| *known == name).map(|(_, number)| *number).ok_or_else(refused)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_are_known_by_number_and_by_either_name() {
        for text in ["9", "KILL", "SIGKILL", "sigkill"] {
            assert_eq!(number(text).unwrap(), KILL);
        }
        for text in ["0", "65", "-1", "NONE", ""] {
            assert!(number(text).is_err(), "{text}");
        }
    }
}
