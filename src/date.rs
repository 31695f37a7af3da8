//! Points in time, in seconds since 1970 in UTC, and the ways in which archives and locks write them.

use std::fmt;
use std::str::FromStr;

/// A point in time: seconds since 1970-01-01T00:00:00Z. Prints and reads as RFC 3339 in UTC, `2026-09-12T07:55:41Z`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(pub i64);

/// Seconds of a day.
pub const DAY: i64 = 86_400;

const MONTHS: [&str; 12] =
    ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

impl Timestamp {
    /// The host's clock. Only what decides whether an archive is still valid may ask for it, never what is built.
    #[must_use]
    pub fn now() -> Timestamp {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        Timestamp(since.map_or(0, |d| i64::try_from(d.as_secs()).unwrap_or(i64::MAX)))
    }

    /// The time `seconds` later.
    #[must_use]
    pub fn plus(self, seconds: i64) -> Timestamp {
        Timestamp(self.0.saturating_add(seconds))
    }

    /// Reads the date of a Release file (RFC 5322, always UTC): `Sat, 12 Sep 2026 07:55:41 UTC`.
    #[must_use]
    pub fn from_rfc5322(text: &str) -> Option<Timestamp> {
        let text = text.split_once(',').map_or(text, |(_, rest)| rest);
        let words: Vec<&str> = text.split_ascii_whitespace().collect();
        let &[day, month, year, clock, zone] = words.as_slice() else { return None };
        matches!(zone, "UTC" | "GMT" | "Z" | "+0000" | "-0000").then_some(())?;
        let month = MONTHS.iter().position(|m| m.eq_ignore_ascii_case(month))? as i64 + 1;
        civil(number(year, 4)?, month, number(day, day.len())?, clock)
    }

    /// The snapshot archives' form, `20260912T075541Z`.
    #[must_use]
    pub fn compact(self) -> String {
        self.to_string().replace(['-', ':'], "")
    }

    /// HTTP's form (RFC 9110, section 5.6.7), `Sat, 12 Sep 2026 07:55:41 GMT`.
    #[must_use]
    pub fn http(self) -> String {
        const DAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
        let (year, month, day, second) = self.fields();
        let weekday = DAYS[self.0.div_euclid(DAY).rem_euclid(7) as usize];
        let month = MONTHS[(month - 1) as usize];
        let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
        format!("{weekday}, {day:02} {month} {year:04} {hour:02}:{minute:02}:{second:02} GMT")
    }

    /// Year, month, day (proleptic Gregorian) and the second of the day.
    fn fields(self) -> (i64, i64, i64, i64) {
        // Howard Hinnant's civil_from_days: years begin in March, eras have 400 years.
        let days = self.0.div_euclid(DAY) + 719_468;
        let (era, day_of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
        let year_of_era =
            (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let month = (5 * day_of_year + 2) / 153;
        let day = day_of_year - (153 * month + 2) / 5 + 1;
        let month = if month < 10 { month + 3 } else { month - 9 };
        (year_of_era + era * 400 + i64::from(month <= 2), month, day, self.0.rem_euclid(DAY))
    }
}

/// A number of exactly `len` (at most 4) ASCII digits.
fn number(text: &str, len: usize) -> Option<i64> {
    ((1..=4).contains(&len) && text.len() == len && text.bytes().all(|b| b.is_ascii_digit()))
        .then(|| text.parse().ok())?
}

/// The time of a date and a clock `07:55:41`; `None` when there is no such day or time.
fn civil(year: i64, month: i64, day: i64, clock: &str) -> Option<Timestamp> {
    let &[hour, minute, second] = clock.split(':').collect::<Vec<_>>().as_slice() else { return None };
    let (hour, minute, second) = (number(hour, 2)?, number(minute, 2)?, number(second, 2)?);
    (hour < 24 && minute < 60 && second <= 60).then_some(())?;
    // Howard Hinnant's days_from_civil.
    let y = if month <= 2 { year - 1 } else { year };
    let (era, year_of_era) = (y.div_euclid(400), y.rem_euclid(400));
    let day_of_year = (153 * (if month > 2 { month - 3 } else { month + 9 }) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    let midnight = (era * 146_097 + day_of_era - 719_468) * DAY;
    // 31 February would have become a day of March.
    let (y, m, d, _) = Timestamp(midnight).fields();
    ((y, m, d) == (year, month, day)).then_some(Timestamp(midnight + hour * 3600 + minute * 60 + second))
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (year, month, day, second) = self.fields();
        let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
        write!(f, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
    }
}

impl serde::Serialize for Timestamp {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A text that is no date.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no time: write it in UTC as in 2026-09-12T07:55:41Z")]
pub struct DateError(String);

impl FromStr for Timestamp {
    type Err = DateError;

    fn from_str(text: &str) -> Result<Self, DateError> {
        let parse = || {
            let (date, clock) = text.strip_suffix('Z')?.split_once('T')?;
            let &[year, month, day] = date.split('-').collect::<Vec<_>>().as_slice() else { return None };
            civil(number(year, 4)?, number(month, 2)?, number(day, 2)?, clock)
        };
        parse().ok_or_else(|| DateError(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn dates_of_archives() {
        for (text, shown) in [
            ("Sat, 12 Sep 2026 07:55:41 UTC", Some("2026-09-12T07:55:41Z")),
            ("Thu, 1 Jan 1970 00:00:00 +0000", Some("1970-01-01T00:00:00Z")),
            ("29 Feb 2024 23:59:59 GMT", Some("2024-02-29T23:59:59Z")),
            ("Sat, 12 Sep 2026 07:55:41 +0200", None),
            ("Sat, 29 Feb 2026 07:55:41 UTC", None),
            ("Sat, 12 Sep 2026 24:00:00 UTC", None),
            ("Sat, 12 Sep 26 07:55:41 UTC", None),
            ("Sat, +1 Sep 2026 07:55:41 UTC", None),
            ("", None),
        ] {
            let read = Timestamp::from_rfc5322(text).map(|t| t.to_string());
            assert_eq!(read.as_deref(), shown, "{text}");
        }
        assert_eq!(Timestamp(1_789_199_741).compact(), "20260912T075541Z");
        assert_eq!(Timestamp(1_789_199_741).http(), "Sat, 12 Sep 2026 07:55:41 GMT");
    }

    proptest! {
        #[test]
        fn what_is_printed_reads_back(seconds in -62_000_000_000_i64..250_000_000_000) {
            let time = Timestamp(seconds);
            prop_assert_eq!(time.to_string().parse(), Ok(time));
        }

        #[test]
        fn nothing_panics(text in "\\PC{0,40}") {
            let _ = Timestamp::from_rfc5322(&text);
            let _ = text.parse::<Timestamp>();
        }
    }
}
