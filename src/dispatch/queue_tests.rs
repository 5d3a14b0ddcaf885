//! What the queue promises: one job a row, one flight a row, tickets that hold.

use std::sync::Arc;

use super::*;

fn row(key: &str) -> RowKey {
    RowKey {
        pipeline: 1,
        key: Arc::from([key.to_owned()]),
    }
}

fn log(snapshot: &str) -> Ticket {
    Ticket::Log(snapshot.into())
}

#[test]
fn several_changes_of_a_row_are_one_job() {
    let mut queue = Queue::default();
    let ticket = queue.open(log("a"));
    queue.add(row("1"), Lane::Live, Some(ticket));
    let second = queue.open(log("b"));
    queue.add(row("1"), Lane::Live, Some(second));
    assert_eq!(queue.take(1, Lane::Live, 10).len(), 1);
    assert!(
        queue.finished_tickets().is_empty(),
        "the second ticket may not pass the first"
    );
    queue.finish(&row("1"));
    assert_eq!(queue.finished_tickets(), [log("a"), log("b")]);
    assert!(queue.is_empty());
}

#[test]
fn a_job_says_how_many_changes_it_stands_for() {
    let mut queue = Queue::default();
    let taken = |queue: &mut Queue| {
        let jobs = queue.take(1, Lane::Live, 10);
        jobs.iter().map(Job::coalesced).collect::<Vec<_>>()
    };
    queue.add(row("1"), Lane::Live, None);
    queue.add(row("1"), Lane::Live, None);
    queue.add(row("1"), Lane::Backfill, None);
    queue.add(row("2"), Lane::Live, None);
    assert_eq!(taken(&mut queue), [1, 0]);
    // Three while it is in flight: they count for the next one.
    for _ in 0..3 {
        queue.add(row("1"), Lane::Live, None);
    }
    queue.finish(&row("1"));
    assert_eq!(taken(&mut queue), [2]);
    // What was not sent after all counts with what has come since.
    queue.add(row("1"), Lane::Live, None);
    queue.put_back(&row("1"), Lane::Live);
    assert_eq!(taken(&mut queue), [3]);
}

#[test]
fn a_row_that_changes_in_flight_is_due_again_and_holds_its_ticket() {
    let mut queue = Queue::default();
    let first = queue.open(log("a"));
    queue.add(row("1"), Lane::Live, Some(first));
    assert_eq!(queue.take(1, Lane::Live, 10).len(), 1);
    let second = queue.open(log("b"));
    queue.add(row("1"), Lane::Live, Some(second));
    assert!(queue.take(1, Lane::Live, 10).is_empty(), "one flight a row");
    assert!(queue.changed_since(&row("1")));
    queue.finish(&row("1"));
    assert_eq!(queue.finished_tickets(), [log("a")]);
    assert_eq!(queue.take(1, Lane::Live, 10).len(), 1);
    queue.finish(&row("1"));
    assert_eq!(queue.finished_tickets(), [log("b")]);
}

#[test]
fn a_row_that_changes_in_flight_and_is_written_down_ends_with_its_job() {
    let mut queue = Queue::default();
    let first = queue.open(log("a"));
    queue.add(row("1"), Lane::Live, Some(first));
    assert!(!queue.take(1, Lane::Live, 10)[0].stored);
    let second = queue.open(log("b"));
    queue.add(row("1"), Lane::Live, Some(second));
    queue.written_down(&row("1"));
    assert_eq!(queue.finished_tickets(), [log("a")]);
    let again = queue.take(1, Lane::Live, 10);
    assert!(again[0].stored);
    queue.written_down(&row("1"));
    assert_eq!(queue.finished_tickets(), [log("b")]);
    assert!(queue.is_empty());
}

#[test]
fn a_row_of_the_job_table_that_is_claimed_while_its_row_is_in_flight_is_known_when_that_lands() {
    let claimed = Job {
        stored: true,
        ..Job::new(row("1"))
    };
    let mut queue = Queue::default();
    queue.add(row("1"), Lane::Live, None);
    assert!(!queue.take(1, Lane::Live, 1)[0].stored);
    queue.add_job(claimed.clone(), Lane::Live, None);
    queue.finish(&row("1"));
    assert!(queue.take(1, Lane::Live, 1)[0].stored);
    queue.finish(&row("1"));
    // So it is where the flight was for nothing.
    queue.add(row("1"), Lane::Live, None);
    queue.take(1, Lane::Live, 1);
    queue.add_job(claimed, Lane::Live, None);
    queue.put_back(&row("1"), Lane::Live);
    assert!(queue.take(1, Lane::Live, 1)[0].stored);
}

#[test]
fn a_removal_passes_what_waits() {
    let mut queue = Queue::default();
    let ticket = queue.open(log("a"));
    for key in ["1", "2", "3"] {
        queue.add(row(key), Lane::Live, Some(ticket));
    }
    queue.add(row("3"), Lane::Removal, Some(ticket));
    let first = queue.take(1, Lane::Removal, 10);
    assert_eq!(first.len(), 1);
    assert_eq!(first[0].row, row("3"));
    assert_eq!(
        queue.take(1, Lane::Live, 10).len(),
        2,
        "and is not taken twice"
    );
}

#[test]
fn a_row_deleted_in_flight_is_looked_at_at_once_and_again_when_it_lands() {
    let mut queue = Queue::default();
    let ticket = queue.open(log("a"));
    queue.add(row("1"), Lane::Live, Some(ticket));
    queue.take(1, Lane::Live, 1);
    queue.add(row("1"), Lane::Removal, Some(ticket));
    assert_eq!(queue.take_passing(1).len(), 1);
    assert!(queue.take_passing(1).is_empty());
    queue.finish(&row("1"));
    assert_eq!(queue.take(1, Lane::Live, 1).len(), 1);
}

#[test]
fn a_truncate_makes_every_taken_row_due_again() {
    let mut queue = Queue::default();
    let first = queue.open(log("a"));
    for key in ["1", "2", "3"] {
        queue.add(row(key), Lane::Live, Some(first));
    }
    queue.take(1, Lane::Live, 2);
    let second = queue.open(log("b"));
    queue.touch_taken(1, Some(second));
    for key in ["1", "2"] {
        assert!(queue.changed_since(&row(key)));
        queue.finish(&row(key));
    }
    assert_eq!(queue.take(1, Lane::Live, 10).len(), 3);
    for key in ["3", "1", "2"] {
        assert!(queue.finished_tickets().len() < 2);
        queue.finish(&row(key));
    }
    assert_eq!(queue.finished_tickets(), [log("b")]);
}

#[test]
fn a_change_of_a_row_that_waits_without_a_ticket_holds_its_own() {
    let mut queue = Queue::default();
    queue.add(row("1"), Lane::Live, None);
    let ticket = queue.open(log("a"));
    queue.add(row("1"), Lane::Live, Some(ticket));
    assert!(queue.finished_tickets().is_empty());
    queue.take(1, Lane::Live, 1);
    queue.finish(&row("1"));
    assert_eq!(queue.finished_tickets(), [log("a")]);
}

#[test]
fn a_live_change_of_a_row_that_waits_in_a_backfill_passes_the_others() {
    let mut queue = Queue::default();
    for key in ["1", "2"] {
        queue.add(row(key), Lane::Backfill, None);
    }
    queue.add(row("2"), Lane::Live, None);
    queue.add(row("2"), Lane::Live, None);
    assert_eq!(queue.waits(1, Lane::Live), 1);
    assert_eq!(queue.take(1, Lane::Live, 10)[0].row, row("2"));
    assert_eq!(queue.take(1, Lane::Backfill, 10).len(), 1);
}

#[test]
fn a_job_that_is_put_back_waits_in_front_and_forgets_that_it_was_due_again() {
    let mut queue = Queue::default();
    let first = queue.open(log("a"));
    queue.add(row("1"), Lane::Live, Some(first));
    queue.take(1, Lane::Live, 1);
    let second = queue.open(log("b"));
    queue.add(row("1"), Lane::Live, Some(second));
    queue.put_back(&row("1"), Lane::Live);
    assert_eq!(queue.take(1, Lane::Live, 1).len(), 1);
    queue.finish(&row("1"));
    assert_eq!(queue.finished_tickets(), [log("a"), log("b")]);
}

#[test]
fn a_row_of_a_backfill_that_is_in_flight_is_covered_by_that_flight() {
    let mut queue = Queue::default();
    let first = queue.open(log("a"));
    queue.add(row("1"), Lane::Live, Some(first));
    queue.take(1, Lane::Live, 1);
    let slice = Ticket::Backfill {
        pipeline: 1,
        round: 0,
        up_to: None,
        rows: 1,
    };
    let ticket = queue.open(slice.clone());
    queue.add(row("1"), Lane::Backfill, Some(ticket));
    assert_eq!(queue.finished_tickets(), [slice]);
}

#[test]
fn a_forgotten_pipeline_holds_no_ticket() {
    let mut queue = Queue::default();
    let ticket = queue.open(log("a"));
    queue.add(row("1"), Lane::Live, Some(ticket));
    queue.forget(1);
    assert_eq!(queue.finished_tickets(), [log("a")]);
}

#[test]
fn a_row_that_changes_in_flight_is_left_alone_for_a_while_when_it_lands() {
    let mut queue = Queue::default();
    let (first, second) = (queue.open(log("a")), queue.open(log("b")));
    let now = Instant::now();
    queue.add_change(row("1"), Some(first), Pace::AtOnce, now);
    assert_eq!(queue.take(1, Lane::Live, 10).len(), 1);
    queue.add_change(row("1"), Some(second), Pace::AtOnce, now);
    queue.finish(&row("1"));
    assert_eq!(queue.finished_tickets(), [log("a")]);
    assert!(queue.take(1, Lane::Live, 10).is_empty(), "a hot row waits");
    let due = queue.next_due().unwrap();
    assert!(due > now && due <= Instant::now() + Duration::from_millis(400));
    queue.release_due(due);
    assert_eq!(queue.take(1, Lane::Live, 10).len(), 1);
    queue.finish(&row("1"));
    assert_eq!(queue.finished_tickets(), [log("b")]);
    assert!(queue.is_empty());
}

#[test]
fn a_hot_row_that_is_deleted_does_not_wait() {
    let mut queue = Queue::default();
    let ticket = queue.open(log("a"));
    let now = Instant::now();
    queue.add_change(row("1"), Some(ticket), Pace::AtOnce, now);
    queue.take(1, Lane::Live, 10);
    queue.finish(&row("1"));
    queue.add_change(row("1"), Some(ticket), Pace::AtOnce, now);
    assert!(queue.take(1, Lane::Live, 10).is_empty());
    queue.add(row("1"), Lane::Removal, Some(ticket));
    assert_eq!(queue.take(1, Lane::Removal, 10).len(), 1);
    queue.add_change(row("1"), Some(ticket), Pace::AtOnce, now);
    queue.add(row("1"), Lane::Removal, Some(ticket));
    queue.finish(&row("1"));
    assert_eq!(queue.take(1, Lane::Live, 10).len(), 1, "nor in flight");
}

#[test]
fn a_quiet_row_waits_for_its_last_change_and_never_longer_than_it_may() {
    let ms = Duration::from_millis;
    let pace = Pace::Quiet {
        debounce: ms(100),
        max_delay: ms(250),
    };
    let mut queue = Queue::default();
    let ticket = queue.open(log("a"));
    let start = Instant::now();
    for at in [0, 50, 100] {
        queue.add_change(row("1"), Some(ticket), pace, start + ms(at));
    }
    queue.release_due(start + ms(150));
    assert!(queue.take(1, Lane::Live, 10).is_empty(), "put off to 200");
    assert_eq!(queue.waits(1, Lane::Quiet), 1);
    for at in [150, 200, 240] {
        queue.add_change(row("1"), Some(ticket), pace, start + ms(at));
    }
    queue.release_due(start + ms(270));
    assert_eq!(queue.take(1, Lane::Live, 10).len(), 1, "the longest delay");
    queue.finish(&row("1"));
    assert_eq!(queue.finished_tickets(), [log("a")]);
}

#[test]
fn quiet_rows_can_be_asked_for_now_and_written_down_with_the_time_that_is_left() {
    let pace = Pace::Quiet {
        debounce: Duration::from_secs(60),
        max_delay: Duration::from_secs(600),
    };
    let mut queue = Queue::default();
    let ticket = queue.open(log("a"));
    let now = Instant::now();
    for key in ["1", "2"] {
        queue.add_change(row(key), Some(ticket), pace, now);
    }
    queue.add(row("2"), Lane::Backfill, None);
    let quiet = queue.take_quiet(1, now + Duration::from_secs(10));
    assert_eq!(quiet.len(), 1, "the other is on its way");
    assert_eq!(quiet[0].1, Duration::from_secs(50));
    queue.finish(&row("1"));
    queue.add_change(row("1"), Some(ticket), pace, now);
    queue.release_all(1);
    assert_eq!(queue.take(1, Lane::Live, 10).len(), 1);
    assert_eq!(queue.take(1, Lane::Backfill, 10).len(), 1);
}
