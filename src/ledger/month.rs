//! Calendar months of UTC, by which budgets and bills go, as the providers' own do.
//!
//! It knows no time zone, and so no hour that is there twice.

use std::time::{Duration, SystemTime};

use chrono::{DateTime, Datelike, NaiveDate};

/// A month.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Month(NaiveDate);

impl Month {
    pub fn of(time: SystemTime) -> Month {
        let seconds = time.duration_since(SystemTime::UNIX_EPOCH);
        let seconds = seconds.map_or(0, |since| since.as_secs() as i64);
        let day = DateTime::from_timestamp(seconds, 0).map(|time| time.date_naive());
        let first = day.and_then(|day| day.with_day(1));
        Month(first.unwrap_or_default())
    }

    /// Its first day, as PostgreSQL reads it.
    pub fn first_day(self) -> String {
        self.0.to_string()
    }

    /// How long it still goes on.
    pub fn left(self, now: SystemTime) -> Duration {
        let next = self.0.checked_add_months(chrono::Months::new(1));
        let next = next.and_then(|day| day.and_hms_opt(0, 0, 0));
        let seconds = next.map_or(0, |next| next.and_utc().timestamp().max(0)) as u64;
        let end = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        end.duration_since(now).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> SystemTime {
        let time = DateTime::parse_from_rfc3339(text).unwrap();
        SystemTime::UNIX_EPOCH + Duration::from_secs(time.timestamp() as u64)
    }

    #[test]
    fn a_month_begins_and_ends_at_midnight_of_utc() {
        let last = at("2026-11-30T23:59:59Z");
        let month = Month::of(last);
        assert_eq!(month.first_day(), "2026-11-01");
        assert_eq!(month.left(last), Duration::from_secs(1));
        let next = at("2026-12-01T00:00:00Z");
        assert_ne!(Month::of(next), month);
        assert_eq!(month.left(next), Duration::ZERO);
        assert_eq!(Month::of(next).left(next), Duration::from_secs(31 * 86_400));
    }

    #[test]
    fn leap_years_and_the_turn_of_the_year_are_as_in_the_calendar() {
        let february = Month::of(at("2028-02-01T00:00:00Z"));
        assert_eq!(february.left(at("2028-02-29T00:00:00Z")).as_secs(), 86_400);
        let december = Month::of(at("2026-12-31T12:00:00Z"));
        assert_eq!(december.left(at("2026-12-31T12:00:00Z")).as_secs(), 43_200);
    }
}
