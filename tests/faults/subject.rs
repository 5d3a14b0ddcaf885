//! What the faults are played to: a table, its pipeline, a server that takes one request at a time, and counting.
//! It never plays one itself.

use std::time::{Duration, Instant};

use crate::support::{Api, Database, Fault, PATIENCE, Sql, shared, wait_until};

/// Rows in a batch.
pub const ROWS: i32 = 4;
/// What a server rests at least after a failure of the provider.
pub const REST: Duration = Duration::from_millis(250);

/// How the rows of a batch that failed are sent again.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Again {
    /// One of them may be the cause.
    InHalves,
    /// None of them can be.
    Whole,
}

pub struct Subject<'a> {
    pub api: Api,
    pub db: Database<'a>,
    pub next: i32,
}

impl<'a> Subject<'a> {
    /// With further options of the server.
    pub fn new(options: &str) -> Subject<'a> {
        let api = Api::start();
        let mut db = shared().database();
        let comma = if options.is_empty() { "" } else { ", " };
        db.items(&api, &format!("max_concurrency '1'{comma}{options}"));
        Subject::of(api, db)
    }

    /// With an `item` and its pipeline made elsewhere.
    pub fn of(api: Api, mut db: Database<'a>) -> Subject<'a> {
        // Rows that come while the pipeline looks for those that were there are looked at twice.
        db.settle("item_embedding");
        Subject { api, db, next: 0 }
    }

    /// So many rows in one transaction, which go into one request. Forgets the requests before.
    pub fn insert(&mut self, rows: i32) {
        self.insert_with(rows, "");
    }

    /// The same, with `marker` in the text of the last but one.
    pub fn insert_with(&mut self, rows: i32, marker: &str) {
        self.api.forget();
        let (first, last) = (self.next + 1, self.next + rows);
        self.next = last;
        self.db.run(&format!(
            "INSERT INTO item SELECT i, CASE WHEN i = {last} - 1 THEN '{marker}' ELSE '' END || 'row ' || i
               FROM generate_series({first}, {last}) i"
        ));
    }

    /// Waits until nothing is left to do; every row has the vector of its text then, and there is no other vector.
    #[track_caller]
    pub fn settle_in_step(&mut self) {
        self.db.settle("item_embedding");
        self.db.assert_items_in_step(&self.api);
        assert_eq!(self.dead(), 0, "dead letters");
    }

    /// How many inputs each request had since the last `insert`.
    pub fn sizes(&self) -> Vec<usize> {
        let requests = self.api.requests();
        requests
            .iter()
            .map(|request| request.inputs.len())
            .collect()
    }

    pub fn times(&self) -> Vec<Instant> {
        self.api
            .requests()
            .iter()
            .map(|request| request.at)
            .collect()
    }

    pub fn dead(&mut self) -> i64 {
        self.db.one("SELECT count(*) FROM recsync.dead_letter")
    }

    /// The fault befalls one request for four rows. In the end all is well, by the requests that `again` says.
    #[track_caller]
    pub fn survives_once(&mut self, fault: &Fault, again: Again) {
        self.api.play([fault.clone()]);
        self.insert(ROWS);
        self.settle_in_step();
        let expected = match again {
            Again::InHalves => vec![4, 2, 2],
            Again::Whole => vec![4, 4],
        };
        assert_eq!(self.sizes(), expected, "requests after {fault:?}");
    }

    /// The fault befalls every request with one of four texts. That row ends as a dead letter, at its first attempt;
    /// the others have their vectors, by no more requests than it takes to find out which it is.
    #[track_caller]
    pub fn gives_up_one_row(&mut self, fault: &Fault, class: &str, status: i32, says: &str) {
        self.api.fail_texts_with("cursed", fault.clone());
        self.insert_with(ROWS, "cursed ");
        self.db.settle("item_embedding");
        assert_eq!(self.sizes(), [4, 2, 2, 1, 1], "requests after {fault:?}");
        let dead = self.db.rows(
            "SELECT record_key[1]::int, attempt, class, status, message FROM recsync.dead_letter",
        );
        assert_eq!(dead.len(), 1, "{fault:?}");
        let found: (i32, i32, &str, Option<i32>, &str) = (
            dead[0].get(0),
            dead[0].get(1),
            dead[0].get(2),
            dead[0].get(3),
            dead[0].get(4),
        );
        assert_eq!(
            (found.0, found.1, found.2, found.3),
            (self.next - 1, 1, class, Some(status)),
            "{fault:?}: {}",
            found.4
        );
        assert!(found.4.contains(says), "{fault:?}: {}", found.4);
        assert!(!found.4.contains("cursed"), "{fault:?}: {}", found.4);
        // What is left once the row is gone is in step, and nothing of it is sent again.
        self.db
            .run(&format!("DELETE FROM item WHERE id = {}", self.next - 1));
        self.settle_in_step();
        assert_eq!(self.sizes().len(), 5, "{fault:?}");
        self.api.refuse_nothing();
    }

    /// Waits until the pipeline is paused; why.
    #[track_caller]
    pub fn paused_because(&mut self) -> String {
        let mut reason = None;
        wait_until(PATIENCE, "the pipeline is paused with a reason", || {
            reason = self.db.one("SELECT paused_reason FROM recsync.status");
            reason.is_some()
        });
        reason.unwrap()
    }

    pub fn state(&mut self) -> String {
        self.db.one("SELECT state FROM recsync.status")
    }
}
