//! Status 200 and an answer that cannot be believed: nothing of it is stored.

use crate::subject::{Again, REST, ROWS, Subject};
use crate::support::Fault;

const JSON: &str = "application/json";

/// Wrong in a way that may be due to one of the texts: what it says.
fn unbelievable() -> Vec<(Fault, &'static str)> {
    vec![
        (Fault::TooFew, "embeddings for"),
        (Fault::TooMany, "embeddings for"),
        (Fault::IndexMissing, "index that is missing"),
        (Fault::IndexRepeated, "index that is missing, twice there"),
        (Fault::IndexTooLarge, "twice there or too large"),
        (Fault::Number(f32::NAN), "NaN"),
        (Fault::Number(f32::INFINITY), "infinity"),
        (Fault::Number(f32::NEG_INFINITY), "infinity"),
        (Fault::Zeros, "zeros"),
        (Fault::HalfTheJson, "cut short"),
        (Fault::BrokenGzip, "garbled"),
        (Fault::Says(JSON, ""), "cut short"),
        (Fault::Says(JSON, "null"), "not a list of embeddings"),
        (
            Fault::Says(JSON, r#"{"object":"list","data":[]}"#),
            "has 0 embeddings",
        ),
        (
            Fault::Says(JSON, r#"{"error":{"message":"no room for you"}}"#),
            "200 with an error: no room for you",
        ),
        (Fault::Says("text/plain", "it works!"), "not JSON"),
    ]
}

#[test]
fn answer_that_cannot_be_believed_is_asked_for_again_in_halves_and_every_row_gets_its_own_vector() {
    let mut subject = Subject::new("");
    for (fault, _) in unbelievable() {
        subject.survives_once(&fault, Again::InHalves);
    }
}

#[test]
fn text_for_which_no_answer_can_be_believed_is_a_dead_letter_and_the_others_get_their_vectors() {
    let mut subject = Subject::new("max_attempts '1'");
    for (fault, says) in unbelievable() {
        subject.gives_up_one_row(&fault, "temporary", 200, says);
    }
}

#[test]
fn answer_in_floats_that_cannot_be_believed_is_not_stored_either() {
    let mut subject = Subject::new("encoding 'float'");
    // A number that JSON cannot hold is null there.
    for fault in [Fault::Number(f32::NAN), Fault::Zeros, Fault::IndexRepeated] {
        subject.survives_once(&fault, Again::InHalves);
    }
}

#[test]
fn embeddings_in_another_order_find_their_rows_by_their_indexes() {
    let mut subject = Subject::new("");
    subject.api.play([Fault::Reversed]);
    subject.insert(ROWS);
    subject.settle_in_step();
    assert_eq!(subject.sizes(), [4]);
}

#[test]
fn error_in_a_200_counts_as_the_status_that_it_names() {
    let mut subject = Subject::new("");
    for (body, again) in [
        (
            r#"{"error":{"code":429,"message":"slow down"}}"#,
            Again::Whole,
        ),
        (
            r#"{"error":{"code":"503","message":"overloaded"}}"#,
            Again::InHalves,
        ),
    ] {
        subject.survives_once(&Fault::Says(JSON, body), again);
        let times = subject.times();
        assert!(times[1] - times[0] >= REST, "{body}: asked at once");
    }
}

#[test]
fn page_of_html_with_status_200_is_the_providers_failure_and_charges_no_row() {
    // One attempt: whatever charged one would make a dead letter.
    let mut subject = Subject::new("max_attempts '1'");
    let page = "<html><body>We will be back soon.</body></html>";
    for kind in ["text/html", "text/html; charset=utf-8", "application/xml"] {
        subject.survives_once(&Fault::Says(kind, page), Again::InHalves);
        let times = subject.times();
        assert!(times[1] - times[0] >= REST, "{kind}: asked at once");
    }
    // What is JSON is believed whatever it is called, as long as it is not called a page.
    subject
        .api
        .play_always(Some(Fault::Says("text/html", page)));
    subject.insert(1);
    let error =
        "SELECT COALESCE(bool_or(last_error = 'provider (HTTP 200)'), false) FROM recsync.status";
    crate::support::wait_until(crate::support::PATIENCE, "the status says it", || {
        crate::support::Sql::one(&mut *subject.db, error)
    });
    subject.api.play_always(None);
    subject.settle_in_step();
}

#[test]
fn compressed_answer_is_decoded() {
    let mut subject = Subject::new("");
    subject.api.play([Fault::Gzip]);
    subject.insert(ROWS);
    subject.settle_in_step();
    assert_eq!(subject.sizes(), [4]);
    let request = subject.api.requests().remove(0);
    assert_eq!(request.header("accept-encoding"), Some("gzip"));
}
