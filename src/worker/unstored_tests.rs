//! What waits to be stored: live rows first, halves as they are, as many as a time allows.

use std::sync::Arc;

use super::*;

fn row(key: usize) -> RowKey {
    RowKey {
        pipeline: 1,
        key: Arc::from([key.to_string()]),
    }
}

fn embedded(key: usize) -> Embedded {
    Embedded {
        job: Job::new(row(key)),
        vector: vec![key as f32],
        chunks: Vec::new(),
        hash: Vec::new(),
        stored_hash: None,
    }
}

fn unstored(live: usize, backfill: usize) -> Unstored {
    let mut unstored = Unstored::new(true);
    for key in 0..backfill {
        unstored.push(Lane::Backfill, embedded(1_000 + key));
    }
    for key in 0..live {
        unstored.push(Lane::Live, embedded(key));
    }
    unstored
}

fn keys(part: Option<Part>) -> Vec<usize> {
    let part = part.into_iter().flat_map(|part| part.embedded);
    part.map(|embedded| embedded.job.row.key[0].parse().unwrap())
        .collect()
}

#[test]
fn rows_of_a_lane_are_taken_in_the_order_in_which_they_came() {
    let mut unstored = unstored(3, 3);
    assert_eq!(keys(unstored.take(Lane::Live, 2)), [0, 1]);
    assert_eq!(
        keys(unstored.take(Lane::Backfill, 9)),
        [1_000, 1_001, 1_002]
    );
    assert!(!unstored.has(Lane::Backfill));
    assert_eq!(keys(unstored.take(Lane::Live, 2)), [2]);
    assert!(unstored.take(Lane::Live, 2).is_none());
    assert!(unstored.is_empty());
}

#[test]
fn a_writer_takes_backfill_and_of_live_rows_only_a_bulk() {
    let mut few = unstored(BULK, 2);
    assert_eq!(few.bulk(), 2);
    assert_eq!(keys(few.take_bulk(9)), [1_000, 1_001]);
    assert!(few.take_bulk(9).is_none());
    let mut many = unstored(BULK + 1, 2);
    assert_eq!(keys(many.take_bulk(2)), [0, 1]);
}

#[test]
fn halves_are_stored_each_by_itself_before_the_rest_and_never_more_than_asked_for() {
    let mut unstored = unstored(5, 0);
    let part = unstored.take(Lane::Live, 4).unwrap();
    unstored.push_halves(part);
    assert_eq!(keys(unstored.take(Lane::Live, 1)), [0]);
    assert_eq!(unstored.len(), 4);
    let mut rest = Vec::new();
    while let Some(part) = unstored.take(Lane::Live, 9) {
        assert!(part.embedded.len() <= 2);
        rest.extend(keys(Some(part)));
    }
    rest.sort_unstable();
    assert_eq!(rest, [1, 2, 3, 4]);
}

#[test]
fn a_backfilled_row_that_has_changed_is_stored_among_the_live_ones() {
    let mut unstored = unstored(2, 2);
    let changed = |row: &RowKey| ["1", "1001"].contains(&row.key[0].as_str());
    unstored.promote(changed);
    assert_eq!(keys(unstored.take(Lane::Live, 9)), [0, 1, 1_001]);
    assert_eq!(keys(unstored.take(Lane::Backfill, 9)), [1_000]);
}

#[test]
fn overdue_live_rows_are_written_down_once() {
    let mut unstored = unstored(2, 2);
    assert!(unstored.overdue(Duration::from_secs(60)).is_empty());
    let jobs = unstored.overdue(Duration::ZERO);
    assert_eq!(jobs.len(), 2);
    assert!(jobs.iter().all(|job| job.stored));
    assert!(unstored.overdue(Duration::ZERO).is_empty());
}

#[test]
fn as_many_rows_are_stored_in_a_time_as_the_last_stores_say() {
    let slice = Duration::from_millis(20);
    let mut cost = Cost::guess(true);
    assert!((4..=10).contains(&cost.rows_in(slice)));
    for _ in 0..10 {
        cost.measured(10, slice);
    }
    assert!((9..=10).contains(&cost.rows_in(slice)));
    // One row alone carries the cost of the whole transaction: soon forgotten.
    let mut cost = Cost::guess(false);
    for _ in 0..10 {
        cost.measured(1, Duration::from_millis(1));
    }
    assert!(cost.rows_in(slice) < 30);
    for _ in 0..4 {
        let rows = cost.rows_in(slice);
        cost.measured(rows, Duration::from_micros(700 + 15 * rows as u64));
    }
    assert!(cost.rows_in(slice) > 1_000);
    cost.measured(1, Duration::from_secs(5));
    assert_eq!(cost.rows_in(Duration::from_millis(1)), 1, "never none");
}

#[test]
fn more_is_asked_for_while_less_waits_than_is_stored_in_a_second() {
    let mut waiting = unstored(0, 300);
    for _ in 0..10 {
        waiting.cost.measured(10, Duration::from_millis(25));
    }
    assert!(waiting.has_room(Lane::Backfill, 1), "400 a second");
    for _ in 0..200 {
        waiting.push(Lane::Backfill, embedded(1));
    }
    assert!(!waiting.has_room(Lane::Backfill, 1));
    assert!(waiting.has_room(Lane::Backfill, 2));
    assert!(
        waiting.has_room(Lane::Live, 1),
        "a backfill holds up no change"
    );
}

#[test]
fn a_row_that_is_locked_comes_back_later_and_holds_up_no_other() {
    let mut unstored = unstored(3, 2);
    let part = unstored.take(Lane::Live, 1).unwrap();
    unstored.push_locked(part);
    assert_eq!((unstored.len(), unstored.locked_count()), (4, 1));
    assert_eq!(keys(unstored.take(Lane::Live, 9)), [1, 2]);
    assert!(!unstored.has(Lane::Live));
    let due = unstored.next_try().unwrap();
    unstored.release(due - Duration::from_millis(1));
    assert!(!unstored.has(Lane::Live), "it is not time yet");
    unstored.release(due);
    assert_eq!(unstored.next_try(), None);
    assert_eq!(keys(unstored.take(Lane::Live, 9)), [0]);
}

#[test]
fn many_locked_rows_stop_a_backfill_before_live_changes_and_are_tried_the_less_often() {
    let mut unstored = unstored(MOST_STOCK, 0);
    let first = unstored.take(Lane::Live, 1).unwrap();
    unstored.push_locked(first);
    let soon = unstored.next_try().unwrap();
    let rest = unstored.take(Lane::Live, MOST_STOCK / 4).unwrap();
    unstored.take(Lane::Live, MOST_STOCK);
    unstored.push_locked(rest);
    let late = unstored.locked.iter().map(|(at, _)| *at).max().unwrap();
    assert!(late - soon > Duration::from_secs(1));
    assert!(unstored.is_full(Lane::Backfill) && !unstored.is_full(Lane::Live));
    assert_eq!(unstored.drain().len(), MOST_STOCK / 4 + 1);
}

#[test]
fn rows_are_taken_out_by_their_places() {
    let mut part = unstored(5, 0).take(Lane::Live, 5).unwrap();
    let taken = part.take(&[0, 3]);
    assert_eq!(keys(Some(taken)), [0, 3]);
    assert_eq!(keys(Some(part)), [1, 2, 4]);
}
