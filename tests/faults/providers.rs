//! A server that answers nobody well: it is the server that is left alone, no row is given up for it.

use std::time::Duration;

use crate::subject::Subject;
use crate::support::{Fault, PATIENCE, Sql, wait_until};

const WHILE: Duration = Duration::from_secs(2);

/// What a server may answer to everybody with status 200, or with a status that blames nobody.
fn nonsense() -> Vec<Fault> {
    vec![
        Fault::HalfTheJson,
        Fault::Says("application/json", r#"{"error":"come back later"}"#),
        Fault::Zeros,
        Fault::Status(418),
    ]
}

#[test]
fn nonsense_for_everybody_costs_few_requests_and_makes_no_dead_letter() {
    // One attempt: whatever charged one would make a dead letter.
    let mut subject = Subject::new("max_attempts '1'");
    for fault in nonsense() {
        subject.api.play_always(Some(fault.clone()));
        subject.insert(60);
        wait_until(PATIENCE, "it is asked", || subject.api.requests_made() > 0);
        subject.db.pause(WHILE);
        let asked = subject.api.requests_made();
        assert!(asked < 15, "{fault:?}: {asked} requests in {WHILE:?}");
        assert_eq!(subject.dead(), 0, "{fault:?}");
        subject.api.play_always(None);
        subject.settle_in_step();
    }
}

#[test]
fn pipelines_of_other_servers_go_on_meanwhile() {
    let mut subject = Subject::new("");
    let other = crate::support::Api::start();
    subject.db.server("other", &other, "");
    subject
        .db
        .run("CREATE TABLE film (id int PRIMARY KEY, title text)");
    subject.db.run("SELECT recsync.create_pipeline('film_embedding', 'film', columns => '{title}', server => 'other', index => 'none')");
    subject.api.play_always(Some(Fault::HalfTheJson));
    subject.insert(60);
    for id in 0..20 {
        subject
            .db
            .run(&format!("INSERT INTO film VALUES ({id}, 'film {id}')"));
        subject.db.settle("film_embedding");
    }
    assert_eq!(other.requests_made(), 20);
    subject.api.play_always(None);
    subject.settle_in_step();
}

#[test]
fn row_alone_for_which_nothing_good_comes_is_a_dead_letter_after_its_attempts() {
    let mut subject = Subject::new("max_attempts '2'");
    subject.api.play([Fault::Zeros, Fault::Zeros]);
    subject.insert(1);
    subject.db.settle("item_embedding");
    assert_eq!(subject.sizes(), [1, 1]);
    assert_eq!(subject.dead(), 1);
    assert_eq!(
        subject
            .db
            .one::<i64>("SELECT recsync.retry_dead_letters('item_embedding')"),
        1
    );
    subject.settle_in_step();
}
