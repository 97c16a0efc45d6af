//! Dates of traces.

use super::{Wrong, shown};
use crate::Millis;

/// `2017-10-07 01:11:39` as milliseconds since 1970, every day taken as one of 24 hours: no trace says its
/// time zone.
pub(super) fn date(line: u64, field: &str, text: &str) -> Result<Millis, Wrong> {
    parse(text).ok_or_else(|| {
        Wrong::field(line, field, format!("{}; must be like 2017-10-07 01:11:39", shown(text)))
    })
}

fn parse(text: &str) -> Option<Millis> {
    let bytes = text.as_bytes();
    let marks = [(4, b'-'), (7, b'-'), (10, b' '), (13, b':'), (16, b':')];
    if bytes.len() != 19 || marks.iter().any(|&(at, mark)| bytes[at] != mark) {
        return None;
    }
    let number = |from: usize, to: usize| {
        let digits = &bytes[from..to];
        let is_number = digits.iter().all(u8::is_ascii_digit);
        is_number.then(|| digits.iter().fold(0, |n, digit| n * 10 + u64::from(digit - b'0')))
    };
    let (year, month, day) = (number(0, 4)?, number(5, 7)?, number(8, 10)?);
    let (hour, minute, second) = (number(11, 13)?, number(14, 16)?, number(17, 19)?);
    let is_leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let days = [31, 28 + u64::from(is_leap), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let month = usize::try_from(month).ok()?.checked_sub(1)?;
    if year < 1970 || day == 0 || day > *days.get(month)? || hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    let leaps = |year: u64| (year - 1) / 4 - (year - 1) / 100 + (year - 1) / 400;
    let before = (year - 1970) * 365 + leaps(year) - leaps(1970);
    let day = before + days[..month].iter().sum::<u64>() + day - 1;
    Some((((day * 24 + hour) * 60 + minute) * 60 + second) * 1000)
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn dates_are_days_since_1970() {
        assert_eq!(parse("1970-01-01 00:00:00"), Some(0));
        assert_eq!(parse("2000-02-29 00:00:01"), Some(951_782_401_000));
        assert_eq!(parse("2017-10-07 01:11:39"), Some(1_507_338_699_000));
        assert_eq!(parse("9999-12-31 23:59:59"), Some(253_402_300_799_000));
        for wrong in [
            "",
            "2017-10-07",
            "2017-10-07T01:11:39",
            "2017-02-29 00:00:00",
            "2017-13-01 00:00:00",
            "2017-00-01 00:00:00",
            "2017-01-00 00:00:00",
            "2017-01-01 24:00:00",
            "1969-12-31 23:59:59",
            "-017-01-01 00:00:00",
            "2017-01-01 00:00:0é",
            "2017-1é-01 00:00:0",
        ] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }
}
