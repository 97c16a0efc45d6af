//! How long an endpoint asks to be left alone.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ureq::http::HeaderMap;

/// The longest wait that an endpoint may ask for.
const LONGEST: Duration = Duration::from_secs(120);
const MONTHS: [&str; 12] =
    ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
const SECONDS_PER_DAY: u64 = 86_400;

/// What `Retry-After` asks for (RFC 9110, 10.2.3), in seconds or by a date, or OpenAI's finer header beside it;
/// `None` for one that says nothing.
pub(super) fn asked_wait(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = |name: &str| headers.get(name)?.to_str().ok().map(str::trim);
    let seconds = |text: &str| Duration::try_from_secs_f64(text.parse().ok()?).ok();
    let milliseconds = |text: &str| Duration::try_from_secs_f64(text.parse::<f64>().ok()? / 1000.0).ok();
    let until = |text: &str| Some(date(text)?.duration_since(now).unwrap_or_default());
    let finer = text("retry-after-ms").and_then(milliseconds);
    let wait =
        finer.or_else(|| text("retry-after").and_then(|text| seconds(text).or_else(|| until(text))))?;
    Some(wait.min(LONGEST))
}

/// A date in the one form in which programs may write it today: `Sun, 06 Nov 1994 08:49:37 GMT`.
fn date(text: &str) -> Option<SystemTime> {
    let parts: Vec<&str> = text.split(' ').collect();
    let &[_, day, month, year, time, "GMT"] = parts.as_slice() else { return None };
    let number = |text: &str, range: std::ops::RangeInclusive<u64>| {
        text.parse().ok().filter(|number| range.contains(number))
    };
    let (day, year) = (number(day, 1..=31)?, number(year, 1970..=9999)?);
    let month = MONTHS.iter().position(|name| *name == month)? as u64;
    let parts: Vec<&str> = time.split(':').collect();
    let &[hours, minutes, seconds] = parts.as_slice() else { return None };
    let (hours, minutes, seconds) =
        (number(hours, 0..=23)?, number(minutes, 0..=59)?, number(seconds, 0..=60)?);
    // Years that begin in March have their leap day at the end.
    let (years, months) = if month >= 2 { (year, month - 2) } else { (year - 1, month + 10) };
    let leap_days = years / 4 - years / 100 + years / 400;
    // From 0000-03-01; 1970-01-01 is day 719468.
    let days = years * 365 + leap_days + (months * 153 + 2) / 5 + day - 1;
    let days = days.checked_sub(719_468)?;
    Some(UNIX_EPOCH + Duration::from_secs(days * SECONDS_PER_DAY + hours * 3600 + minutes * 60 + seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn dates_are_those_that_other_programs_write() {
        // By Python's email.utils.parsedate_to_datetime.
        for (text, seconds) in [
            ("Thu, 01 Jan 1970 00:00:00 GMT", 0),
            ("Sun, 06 Nov 1994 08:49:37 GMT", 784_111_777),
            ("Tue, 29 Feb 2000 23:59:59 GMT", 951_868_799),
            ("Wed, 01 Mar 2000 00:00:00 GMT", 951_868_800),
            ("Thu, 31 Dec 2099 12:00:00 GMT", 4_102_401_600),
        ] {
            assert_eq!(date(text), Some(at(seconds)), "{text}");
        }
        for odd in [
            "",
            "Sunday, 06-Nov-94 08:49:37 GMT",
            "Sun, 06 Nov 1994 24:49:37 GMT",
            "Sun, 06 Now 1994 08:49:37 GMT",
        ] {
            assert_eq!(date(odd), None, "{odd}");
        }
    }

    #[test]
    fn waits_that_are_asked_for_have_an_end() {
        let wait = |name: &'static str, value: &str| {
            let headers = HeaderMap::from_iter([(name.parse().unwrap(), value.parse().unwrap())]);
            asked_wait(&headers, at(784_111_770))
        };
        assert_eq!(wait("retry-after", "2"), Some(Duration::from_secs(2)));
        assert_eq!(wait("retry-after", "86400"), Some(LONGEST));
        assert_eq!(wait("retry-after", "Sun, 06 Nov 1994 08:49:37 GMT"), Some(Duration::from_secs(7)));
        assert_eq!(wait("retry-after", "Sat, 05 Nov 1994 08:49:37 GMT"), Some(Duration::ZERO));
        assert_eq!(wait("retry-after", "Sun, 06 Nov 2094 08:49:37 GMT"), Some(LONGEST));
        assert_eq!(wait("retry-after-ms", "250"), Some(Duration::from_millis(250)));
        for odd in ["-1", "NaN", "1e400", "soon", ""] {
            assert_eq!(wait("retry-after", odd), None, "{odd}");
        }
    }
}
