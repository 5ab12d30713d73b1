//! When to try again, and after how long.

use std::time::{Duration, SystemTime};

use http::HeaderMap;

/// How often one request is sent in all, whatever goes wrong.
pub(crate) const ATTEMPTS_MAX: u32 = 5;

/// How long to wait before attempt number `attempt` (the first is 1), when the server did not
/// say: doubling from 100 ms, with up to a half more at random, so that many clients that failed
/// together do not come back together.
pub(crate) fn backoff(attempt: u32) -> Duration {
    let base = BACKOFF_FIRST * 2_u32.saturating_pow(attempt.saturating_sub(1).min(6));
    base + base.mul_f64(jitter() / 2.0)
}

/// What a `Retry-After` header asks for, in seconds or as a date. Negative numbers, dates in the
/// past and nonsense count as absent.
pub(crate) fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let value = headers.get(http::header::RETRY_AFTER)?.to_str().ok()?.trim();
    if !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit()) {
        // A number too large for its type is still a number: wait the longest allowed.
        return Some(Duration::from_secs(value.parse().unwrap_or(u64::from(u32::MAX))));
    }
    http_date(value)?.duration_since(now).ok()
}

/// The wait before the next attempt: what the server asks for up to `max`, else the back-off.
pub(crate) fn wait(asked: Option<Duration>, attempt: u32, max: Duration) -> Duration {
    match asked {
        Some(asked) => asked.min(max) + BACKOFF_FIRST.mul_f64(jitter()),
        None => backoff(attempt).min(max),
    }
}

/// A number from 0 to 1 that differs between calls and processes. Not for secrets.
fn jitter() -> f64 {
    use std::hash::{BuildHasher as _, RandomState};
    let random = RandomState::new().hash_one(SystemTime::UNIX_EPOCH);
    f64::from(u32::try_from(random & 0xffff).unwrap_or_default()) / f64::from(0xffff_u32)
}

/// `Sun, 06 Nov 1994 08:49:37 GMT`, the one form that http still allows to send.
fn http_date(text: &str) -> Option<SystemTime> {
    let mut parts = text.split_once(", ")?.1.split(' ');
    let day: u64 = parts.next()?.parse().ok()?;
    let month = parts.next()?;
    let month = MONTHS.iter().position(|name| *name == month)? as u64 + 1;
    let year: u64 = parts.next()?.parse().ok()?;
    let time = parts.next()?;
    if parts.next()? != "GMT" || !(1970..10_000).contains(&year) || !(1..=31).contains(&day) {
        return None;
    }
    let mut clock = time.splitn(3, ':').map(|part| part.parse::<u64>().ok());
    let (hours, minutes, seconds) = (clock.next()??, clock.next()??, clock.next()??);
    if hours > 23 || minutes > 59 || seconds > 60 {
        return None;
    }
    // Days since the epoch, counting years from March so that the leap day comes last.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = year * 365 + year / 4 - year / 100 + year / 400 + (month * 153 + 2) / 5 + day;
    let days = days.checked_sub(EPOCH_DAYS)?;
    let seconds = ((days * 24 + hours) * 60 + minutes) * 60 + seconds;
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
}

const BACKOFF_FIRST: Duration = Duration::from_millis(100);
const MONTHS: [&str; 12] =
    ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
/// The number [`http_date`] computes for the first of January 1970.
const EPOCH_DAYS: u64 = 719_469;

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(value: &str) -> Option<Duration> {
        let mut headers = HeaderMap::new();
        headers.insert(http::header::RETRY_AFTER, value.parse().unwrap());
        retry_after(&headers, SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777 - 60))
    }

    #[test]
    fn retry_after_is_read_in_both_forms_and_capped() {
        assert_eq!(asked("120"), Some(Duration::from_secs(120)));
        assert_eq!(asked("Sun, 06 Nov 1994 08:49:37 GMT"), Some(Duration::from_secs(60)));
        assert_eq!(asked("Sun, 06 Nov 1993 08:49:37 GMT"), None);
        for nonsense in ["-5", "", "soon", "Sun, 99 Nov 1994 08:49:37 GMT", "1.5"] {
            assert_eq!(asked(nonsense), None, "{nonsense}");
        }
        let max = Duration::from_secs(20);
        assert!(wait(asked("1000000000"), 1, max) <= max + BACKOFF_FIRST);
        assert!(wait(asked("99999999999999999999999"), 1, max) <= max + BACKOFF_FIRST);
        assert!(wait(None, 200, max) <= max);
    }
}
