//! Durations as Go prints and parses them: `1h15m`, `1.5s`, `250ms`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A length of time in a configuration file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(pub Duration);

/// Units with their length in nanoseconds, longest first; `ms` before `m` and `s`.
const UNITS: [(&str, f64); 7] =
    [("ns", 1.0), ("us", 1e3), ("µs", 1e3), ("ms", 1e6), ("s", 1e9), ("m", 60e9), ("h", 3600e9)];

/// A century: beyond it a duration in a configuration is a mistake.
const NANOS_MAX: f64 = 100.0 * 366.0 * 86_400.0 * 1e9;

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let invalid = || format!("invalid duration {text:?}");
        if text == "0" {
            return Ok(Self::default());
        }
        if text.is_empty() {
            return Err(invalid());
        }
        let (mut rest, mut nanos) = (text, 0.0);
        while !rest.is_empty() {
            let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.');
            let (number, behind) = rest.split_at(digits.ok_or_else(invalid)?);
            let letters = behind.find(|c: char| c.is_ascii_digit()).unwrap_or(behind.len());
            let (unit, behind) = behind.split_at(letters);
            let number: f64 = number.parse().map_err(|_| invalid())?;
            let (_, scale) = UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(invalid)?;
            nanos += number * scale;
            rest = behind;
        }
        if nanos > NANOS_MAX {
            return Err(format!("duration {text:?} is too long"));
        }
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "bounded above")]
        Ok(Self(Duration::from_nanos(nanos.round() as u64)))
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nanos = self.0.as_nanos();
        if nanos.is_multiple_of(1_000_000_000) {
            write!(f, "{}s", nanos / 1_000_000_000)
        } else if nanos.is_multiple_of(1_000_000) {
            write!(f, "{}ms", nanos / 1_000_000)
        } else {
            write!(f, "{nanos}ns")
        }
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_that_go_writes_are_read() {
        for (text, millis) in
            [("0s", 0), ("0", 0), ("250ms", 250), ("1.5s", 1500), ("1h1m", 3_660_000)]
        {
            assert_eq!(text.parse(), Ok(Span(Duration::from_millis(millis))), "{text}");
        }
    }

    #[test]
    fn nonsense_is_refused() {
        for text in ["", "5", "s", "-5s", "1y", "1.2.3s", "99999999999h", "5 s"] {
            assert!(text.parse::<Span>().is_err(), "{text}");
        }
    }

    #[test]
    fn printing_reads_back() {
        for nanos in [0, 1, 999, 1_000_000, 1_500_000_000, 60_000_000_000] {
            let span = Span(Duration::from_nanos(nanos));
            assert_eq!(span.to_string().parse(), Ok(span));
        }
    }
}
