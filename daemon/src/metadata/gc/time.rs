//! Times and durations as clients write them into labels.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Reads RFC 3339, with or without fraction; `None` when it is malformed.
pub(super) fn parse_time(text: &str) -> Option<SystemTime> {
    let bytes = text.as_bytes();
    let (date, rest) = bytes.split_at_checked(10)?;
    let (mark, rest) = rest.split_first()?;
    let (clock, mut rest) = rest.split_at_checked(8)?;
    if date[4] != b'-' || date[7] != b'-' || !matches!(mark, b'T' | b't' | b' ') {
        return None;
    }
    if clock[2] != b':' || clock[5] != b':' {
        return None;
    }
    let (year, month, day) = (digits(&date[..4])?, digits(&date[5..7])?, digits(&date[8..])?);
    let (hour, minute, second) =
        (digits(&clock[..2])?, digits(&clock[3..5])?, digits(&clock[6..])?);
    if !(1..=12).contains(&month) || day < 1 || day > days_in(year, month) {
        return None;
    }
    if hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    let mut nanos = 0;
    if let Some((b'.' | b',', fraction)) = rest.split_first() {
        let length = fraction.iter().take_while(|byte| byte.is_ascii_digit()).count();
        if length == 0 {
            return None;
        }
        let mut kept = fraction[..length.min(9)].to_vec();
        kept.resize(9, b'0');
        nanos = digits(&kept)?;
        rest = &fraction[length..];
    }
    let seconds = days_since_1970(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second
        - offset(rest)?;
    let whole = Duration::from_secs(seconds.unsigned_abs());
    let base =
        if seconds < 0 { UNIX_EPOCH.checked_sub(whole)? } else { UNIX_EPOCH.checked_add(whole)? };
    base.checked_add(Duration::from_nanos(u64::try_from(nanos).ok()?))
}

/// Reads a duration such as `1h30m` or `1.5s`; `None` when it is malformed or negative.
pub(super) fn parse_duration(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    let mut seconds = 0.0;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let length = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, behind) = rest.split_at(length);
        let number: f64 = number.parse().ok()?;
        let length = behind.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(behind.len());
        let (unit, behind) = behind.split_at(length);
        seconds += number
            * match unit {
                "ns" => 1e-9,
                "us" | "µs" | "μs" => 1e-6,
                "ms" => 1e-3,
                "s" => 1.0,
                "m" => 60.0,
                "h" => 3600.0,
                _ => return None,
            };
        rest = behind;
    }
    Duration::try_from_secs_f64(seconds).ok()
}

/// Seconds east of Greenwich: `Z` or `±hh:mm`.
fn offset(text: &[u8]) -> Option<i64> {
    match text {
        b"Z" | b"z" => Some(0),
        [sign @ (b'+' | b'-'), zone @ ..] if zone.len() == 5 && zone[2] == b':' => {
            let (hours, minutes) = (digits(&zone[..2])?, digits(&zone[3..])?);
            if hours > 23 || minutes > 59 {
                return None;
            }
            let seconds = hours * 3600 + minutes * 60;
            Some(if *sign == b'-' { -seconds } else { seconds })
        }
        _ => None,
    }
}

fn digits(text: &[u8]) -> Option<i64> {
    text.iter().try_fold(0_i64, |value, byte| {
        byte.is_ascii_digit().then(|| value * 10 + i64::from(byte - b'0'))
    })
}

fn days_in(year: i64, month: i64) -> i64 {
    match month {
        4 | 6 | 9 | 11 => 30,
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        _ => 31,
    }
}

/// Days from 1970-01-01 in the proleptic Gregorian calendar, counting years from March so that
/// the leap day comes last.
fn days_since_1970(year: i64, month: i64, day: i64) -> i64 {
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let era = year.div_euclid(400);
    let of_era = year.rem_euclid(400);
    let of_year = (153 * month + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn seconds(text: &str) -> Option<f64> {
        parse_time(text).map(|time| match time.duration_since(UNIX_EPOCH) {
            Ok(after) => after.as_secs_f64(),
            Err(error) => -error.duration().as_secs_f64(),
        })
    }

    #[test]
    fn times_are_read_with_fraction_and_offset() {
        assert_eq!(seconds("1970-01-01T00:00:00Z"), Some(0.0));
        assert_eq!(seconds("1970-01-01T01:00:00+01:00"), Some(0.0));
        assert_eq!(seconds("2024-02-29T12:00:00.5Z"), Some(1_709_208_000.5));
        assert_eq!(seconds("1969-12-31T23:59:59Z"), Some(-1.0));
        assert_eq!(seconds("2026-11-23T18:00:00.123456789-02:30"), Some(1_795_465_800.123_456_8));
        assert_eq!(seconds("0001-01-01T00:00:00Z"), Some(-62_135_596_800.0));
    }

    #[test]
    fn malformed_times_are_no_times() {
        for bad in [
            "",
            "0",
            "tomorrow",
            "2024-02-30T00:00:00Z",
            "2023-02-29T00:00:00Z",
            "2024-13-01T00:00:00Z",
            "2024-01-01T24:00:00Z",
            "2024-01-01T00:00:00",
            "2024-01-01T00:00:00.Z",
            "2024-01-01T00:00:00+0100",
            "2024-01-01 00:00",
            "2024-01-01T00:00:00Zz",
            "２024-01-01T00:00:00Z",
        ] {
            assert_eq!(seconds(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn durations_are_those_of_go() {
        assert_eq!(parse_duration("1h30m"), Some(Duration::from_secs(5400)));
        assert_eq!(parse_duration("1.5s"), Some(Duration::from_millis(1500)));
        assert_eq!(parse_duration("100ms"), Some(Duration::from_millis(100)));
        assert_eq!(parse_duration("0"), Some(Duration::ZERO));
        for bad in ["", "1", "h", "1d", "-1s", "1..s", "1e400h"] {
            assert_eq!(parse_duration(bad), None, "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_a_time_or_not(text in "(?s).{0,40}") {
            let _ = (parse_time(&text), parse_duration(&text));
        }

        #[test]
        fn days_follow_each_other(year in 1_i64..9999, month in 1_i64..=12) {
            let next = if month == 12 { (year + 1, 1) } else { (year, month + 1) };
            prop_assert_eq!(
                days_since_1970(year, month, 1) + days_in(year, month),
                days_since_1970(next.0, next.1, 1)
            );
        }
    }
}
