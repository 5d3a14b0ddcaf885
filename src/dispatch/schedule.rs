//! When a change is due: at once, when its row has been quiet for a while, or at the next time of a timetable.
//!
//! It never reads a clock: times are the caller's. A timetable goes by the clock on the wall of the database's time
//! zone, so its times are wall-clock times, as microseconds since 1970-01-01 00:00 there.

use std::time::Duration;

use chrono::{DateTime, NaiveDateTime};
use croner::Cron;
use croner::parser::{CronParser, Seconds, Year};

/// Of near_realtime: a row's burst of changes is over after this; and no change waits longer than that.
const NEAR_DEBOUNCE: Duration = Duration::from_secs(1);
const NEAR_MAX_DELAY: Duration = Duration::from_secs(4);
/// How much longer than one quiet time a row waits that never is quiet, where nothing else is said.
const MOST_DEBOUNCES: u32 = 10;
const MICROSECONDS: i64 = 1_000_000;

#[derive(Clone, Debug, PartialEq)]
pub enum Schedule {
    AtOnce,
    /// `debounce` after the row's last change, at the latest `max_delay` after its first.
    Quiet {
        debounce: Duration,
        max_delay: Duration,
    },
    Timetable(Timetable),
}

#[derive(Clone, Debug, PartialEq)]
pub enum Timetable {
    Cron(Box<Cron>),
    /// Multiples of a duration since midnight of 1970-01-01.
    Every(Duration),
}

/// The times of a timetable around a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Period {
    /// The last time at or before the moment.
    pub began: i64,
    /// The first one after it.
    pub ends: i64,
}

impl Schedule {
    /// `every`: what PostgreSQL reads `schedule` as, where it is an interval.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn new(
        schedule: &str,
        every: Option<Duration>,
        debounce: Option<Duration>,
        max_delay: Option<Duration>,
    ) -> Result<Schedule, String> {
        let timetable = match (schedule, every) {
            ("realtime", _) => {
                return match (debounce, max_delay) {
                    (None | Some(Duration::ZERO), None) => Ok(Schedule::AtOnce),
                    (None | Some(Duration::ZERO), Some(_)) => {
                        Err("max_delay without debounce: nothing is delayed".into())
                    }
                    (Some(debounce), max_delay) => quiet(debounce, max_delay),
                };
            }
            ("near_realtime", _) => {
                return match debounce {
                    None => quiet(NEAR_DEBOUNCE, max_delay.or(Some(NEAR_MAX_DELAY))),
                    Some(debounce) => quiet(debounce, max_delay),
                };
            }
            ("hourly", _) => cron("0 * * * *")?,
            ("daily", _) => cron("0 0 * * *")?,
            (_, Some(every)) if every < Duration::from_secs(1) => {
                return Err("an interval of less than a second: use near_realtime".into());
            }
            (_, Some(every)) => Timetable::Every(every),
            (expression, None) => cron(expression)?,
        };
        if debounce.is_some() || max_delay.is_some() {
            return Err(
                "debounce and max_delay are for realtime and near_realtime: a timetable says itself when".into(),
            );
        }
        Ok(Schedule::Timetable(timetable))
    }
}

fn quiet(debounce: Duration, max_delay: Option<Duration>) -> Result<Schedule, String> {
    let max_delay = max_delay.unwrap_or(debounce.saturating_mul(MOST_DEBOUNCES));
    if max_delay < debounce {
        return Err("max_delay is shorter than debounce".into());
    }
    Ok(Schedule::Quiet {
        debounce,
        max_delay,
    })
}

/// Whether a schedule is meant as a cron expression: PostgreSQL reads an interval in nearly everything.
pub fn is_cron(schedule: &str) -> bool {
    schedule.contains(['*', '/', ',', '?']) || cron(schedule).is_ok()
}

/// Five fields as crontab has them, or six with seconds in front.
fn cron(expression: &str) -> Result<Timetable, String> {
    let parser = CronParser::builder()
        .seconds(Seconds::Optional)
        .year(Year::Disallowed)
        .build();
    let cron = parser
        .parse(expression)
        .map_err(|error| error.to_string())?;
    let timetable = Timetable::Cron(Box::new(cron));
    match timetable.around(0) {
        Some(_) => Ok(timetable),
        None => Err("there is no such time".into()),
    }
}

impl Timetable {
    /// The times around `now`; `None` where there is none in reach (the 30th of February).
    pub fn around(&self, now: i64) -> Option<Period> {
        match self {
            Timetable::Every(every) => {
                let every = i64::try_from(every.as_micros()).ok()?.max(1);
                let began = now.div_euclid(every) * every;
                Some(Period {
                    began,
                    ends: began.checked_add(every)?,
                })
            }
            Timetable::Cron(cron) => {
                let moment = wall(now)?;
                Some(Period {
                    began: cron
                        .find_previous_occurrence(&moment, true)
                        .map_or(i64::MIN, microseconds),
                    ends: microseconds(cron.find_next_occurrence(&moment, false).ok()?),
                })
            }
        }
    }
}

/// Whole seconds: cron knows no smaller ones.
fn wall(microseconds: i64) -> Option<NaiveDateTime> {
    DateTime::from_timestamp(microseconds.div_euclid(MICROSECONDS), 0).map(|utc| utc.naive_utc())
}

fn microseconds(wall: NaiveDateTime) -> i64 {
    wall.and_utc().timestamp_micros()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: i64 = 3_600 * MICROSECONDS;
    const DAY: i64 = 24 * HOUR;

    fn seconds(seconds: u64) -> Option<Duration> {
        Some(Duration::from_secs(seconds))
    }

    fn timetable(schedule: &str, every: Option<Duration>) -> Timetable {
        match Schedule::new(schedule, every, None, None) {
            Ok(Schedule::Timetable(timetable)) => timetable,
            other => panic!("{schedule}: {other:?}"),
        }
    }

    #[test]
    fn realtime_is_at_once_and_near_realtime_waits_for_a_second_of_quiet() {
        let at_once = Schedule::new("realtime", None, None, None);
        assert_eq!(at_once, Ok(Schedule::AtOnce));
        assert_eq!(Schedule::new("realtime", None, seconds(0), None), at_once);
        assert_eq!(
            Schedule::new("near_realtime", None, None, None),
            Ok(Schedule::Quiet {
                debounce: NEAR_DEBOUNCE,
                max_delay: NEAR_MAX_DELAY
            })
        );
        assert_eq!(
            Schedule::new("realtime", None, seconds(2), None),
            Ok(Schedule::Quiet {
                debounce: Duration::from_secs(2),
                max_delay: Duration::from_secs(20)
            })
        );
        assert!(Schedule::new("realtime", None, seconds(2), seconds(1)).is_err());
        assert!(Schedule::new("realtime", None, None, seconds(1)).is_err());
        assert!(Schedule::new("hourly", None, seconds(1), None).is_err());
    }

    #[test]
    fn hourly_and_daily_run_on_the_hour_and_at_midnight() {
        let period = |began, ends| Some(Period { began, ends });
        let hourly = timetable("hourly", None);
        assert_eq!(hourly.around(10 * HOUR + 1), period(10 * HOUR, 11 * HOUR));
        assert_eq!(hourly.around(11 * HOUR), period(11 * HOUR, 12 * HOUR));
        let daily = timetable("daily", None);
        assert_eq!(daily.around(3 * DAY + 5 * HOUR), period(3 * DAY, 4 * DAY));
    }

    #[test]
    fn intervals_run_at_their_multiples() {
        let quarter = timetable("15 minutes", seconds(900));
        let now = 20_000 * DAY + 7 * HOUR + 16 * 60 * MICROSECONDS;
        let period = quarter.around(now).unwrap();
        assert_eq!(period.began, now - 60 * MICROSECONDS);
        assert_eq!(period.ends, now + 14 * 60 * MICROSECONDS);
        assert!(Schedule::new("100 ms", Some(Duration::from_millis(100)), None, None).is_err());
    }

    #[test]
    fn cron_expressions_have_five_fields_or_six_with_seconds() {
        let day = 19_723 * DAY; // 2024-01-01, a Monday
        let weekly = timetable("30 3 * * MON", None);
        let at = day + 3 * HOUR + 30 * 60 * MICROSECONDS;
        let expected = Period {
            began: at - 7 * DAY,
            ends: at,
        };
        assert_eq!(weekly.around(day), Some(expected));
        let odd = timetable("*/5 * * * * *", None);
        let period = odd.around(day + 7 * MICROSECONDS + 500_000).unwrap();
        assert_eq!(period.ends, day + 10 * MICROSECONDS);
        for wrong in [
            "",
            "soon",
            "* * *",
            "61 * * * *",
            "0 0 30 2 *",
            "* * * * * * 2030",
        ] {
            assert!(Schedule::new(wrong, None, None, None).is_err(), "{wrong:?}");
        }
    }

    /// The law: a period holds its moment, and the next one begins where it ends.
    #[test]
    fn periods_follow_each_other_without_a_gap() {
        for timetable in [
            timetable("hourly", None),
            timetable("*/7 2-5 * * 1,3", None),
            timetable("90 s", seconds(90)),
        ] {
            let mut now = 19_700 * DAY + 123_456_789;
            for _ in 0..50 {
                let period = timetable.around(now).unwrap();
                assert!(period.began <= now && now < period.ends, "{period:?}");
                assert_eq!(timetable.around(period.ends).unwrap().began, period.ends);
                now = period.ends + 1_000_001;
            }
        }
    }
}
