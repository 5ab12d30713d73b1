//! Moments, as the wire and people write them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crated_api::Timestamp;

/// A moment from the wire. What lies before 1970 is shown as 1970.
pub(crate) fn from_wire(moment: Timestamp) -> SystemTime {
    let seconds = u64::try_from(moment.seconds).unwrap_or_default();
    let nanos = u32::try_from(moment.nanos).unwrap_or_default();
    UNIX_EPOCH + Duration::new(seconds, nanos.min(999_999_999))
}

/// How long ago a moment was; zero when it lies ahead.
pub(crate) fn since(moment: SystemTime) -> Duration {
    SystemTime::now().duration_since(moment).unwrap_or_default()
}

/// `2026-01-31T23:59:59Z`, in universal time.
pub(crate) fn rfc3339(moment: SystemTime) -> String {
    let [year, month, day, hour, minute, second] = civil(moment);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

/// `2026-01-31 23:59:59.123456789 +0000 UTC`, as containerd's client shows event times.
pub(crate) fn verbose(moment: SystemTime) -> String {
    let [year, month, day, hour, minute, second] = civil(moment);
    let nanos = moment.duration_since(UNIX_EPOCH).unwrap_or_default().subsec_nanos();
    let fraction = format!("{nanos:09}");
    let fraction = fraction.trim_end_matches('0');
    let dot = if fraction.is_empty() { "" } else { "." };
    format!(
        "{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}{dot}{fraction} +0000 UTC"
    )
}

/// Year, month, day, hour, minute and second in the Gregorian calendar.
fn civil(moment: SystemTime) -> [u64; 6] {
    let seconds = moment.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    // Counted from 1 March of year 0, so that the leap day ends its year; 719,468 days before
    // 1970. An era is 400 years, which repeat exactly.
    let shifted = days + 719_468;
    let (era, of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    [year, month, day, rest / 3600, rest / 60 % 60, rest % 60]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_follow_the_gregorian_calendar() {
        let at = |seconds| rfc3339(UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!(at(0), "1970-01-01T00:00:00Z");
        assert_eq!(at(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(at(1_709_164_799), "2024-02-28T23:59:59Z");
        assert_eq!(at(4_102_444_800), "2100-01-01T00:00:00Z");
    }

    #[test]
    fn a_moment_before_the_epoch_is_shown_as_the_epoch() {
        let year_one = Timestamp { seconds: -62_135_596_800, nanos: 0 };
        assert_eq!(rfc3339(from_wire(year_one)), "1970-01-01T00:00:00Z");
    }
}
