//! What a snapshot saw, as `pg_snapshot` writes it: `xmin:xmax:xip,…`.
//!
//! It never compares transaction ids by age: visible is visible, whatever committed first.

use std::fmt;
use std::str::FromStr;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    pub xmin: u64,
    /// Nothing from here on had been assigned.
    pub xmax: u64,
    /// In progress, between `xmin` and `xmax`.
    pub xip: Vec<u64>,
}

impl Snapshot {
    /// Whether everything that `older` saw is seen here, too.
    pub fn covers(&self, older: &Snapshot) -> bool {
        self.xmax >= older.xmax
            && self
                .xip
                .iter()
                .all(|xid| *xid >= older.xmax || older.xip.contains(xid))
    }
}

impl FromStr for Snapshot {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("\"{text}\" is not a snapshot");
        let mut parts = text.split(':');
        let mut number = || {
            parts
                .next()
                .and_then(|part| part.parse::<u64>().ok())
                .ok_or_else(bad)
        };
        let (xmin, xmax) = (number()?, number()?);
        let xip = parts
            .next()
            .ok_or_else(bad)?
            .split(',')
            .filter(|part| !part.is_empty())
            .map(|part| part.parse::<u64>().map_err(|_| bad()))
            .collect::<Result<_, _>>()?;
        Ok(Snapshot { xmin, xmax, xip })
    }
}

impl fmt::Display for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let xip: Vec<String> = self.xip.iter().map(u64::to_string).collect();
        write!(f, "{}:{}:{}", self.xmin, self.xmax, xip.join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(text: &str) -> Snapshot {
        text.parse().unwrap()
    }

    #[test]
    fn a_snapshot_is_written_as_it_was_read() {
        for text in ["10:20:10,14,15", "10:10:", "7:9:8"] {
            assert_eq!(snapshot(text).to_string(), text);
        }
        assert!("10:20".parse::<Snapshot>().is_err());
        assert!("a:b:c".parse::<Snapshot>().is_err());
    }

    #[test]
    fn a_later_snapshot_covers_an_earlier_one_and_not_the_reverse() {
        assert!(snapshot("14:25:14,22").covers(&snapshot("10:20:10,14")));
        assert!(!snapshot("10:20:10,14").covers(&snapshot("14:25:14,22")));
        // 14 was visible to the older one, is in progress here: not a later snapshot of the same server.
        assert!(!snapshot("14:25:14").covers(&snapshot("10:20:10")));
        assert!(snapshot("10:20:10").covers(&snapshot("10:20:10")));
    }
}
