//! Connections that break, stall, drip or never end.

use std::time::Duration;

use crate::subject::{Again, REST, ROWS, Subject};
use crate::support::{Fault, PATIENCE, wait_until};

/// What the kernel keeps for a connection that nobody reads.
const BUFFERS: usize = 16 * 1024 * 1024;

#[test]
fn connection_that_breaks_charges_no_row_and_lets_the_provider_rest() {
    let mut subject = Subject::new("max_attempts '1'");
    for (fault, again) in [
        (Fault::ResetAfterRequest, Again::Whole),
        // Whoever answers and breaks off may do so because of a text.
        (Fault::ResetInTheMiddle, Again::InHalves),
        (Fault::HalfTheBody, Again::InHalves),
        (Fault::HalfTheChunks, Again::InHalves),
    ] {
        subject.survives_once(&fault, again);
        let times = subject.times();
        assert!(times[1] - times[0] >= REST, "{fault:?}: asked at once");
    }
    // The request that was lost with its connection was not read.
    subject.api.play([Fault::ResetBeforeRequest]);
    let connections = subject.api.connections_made();
    subject.insert(ROWS);
    subject.settle_in_step();
    assert_eq!(subject.sizes(), [4]);
    assert_eq!(subject.api.connections_made(), connections + 1);
}

#[test]
fn server_that_never_answers_is_given_up_after_the_read_timeout() {
    let mut subject = Subject::new("max_attempts '1', read_timeout '300ms'");
    subject.api.play([Fault::Silence]);
    subject.insert(1);
    subject.settle_in_step();
    assert_eq!(subject.sizes(), [1, 1]);
    let pause = subject.times()[1] - subject.times()[0];
    assert!(
        pause >= Duration::from_millis(300) + REST,
        "after {pause:?}"
    );
}

#[test]
fn answer_that_drips_is_given_up_after_the_total_timeout() {
    let options = "max_attempts '1', read_timeout '400ms', total_timeout '1200ms'";
    let mut subject = Subject::new(options);
    subject.api.play([Fault::Drip(Duration::from_millis(100))]);
    subject.insert(1);
    subject.settle_in_step();
    assert_eq!(subject.sizes(), [1, 1]);
    // Each byte came in time; all of them together would never have.
    let pause = subject.times()[1] - subject.times()[0];
    assert!(
        pause >= Duration::from_millis(1_200) + REST,
        "after {pause:?}"
    );
}

#[test]
fn body_without_an_end_is_read_no_further_than_the_batch_warrants() {
    let mut subject = Subject::new("");
    for fault in [Fault::Endless, Fault::GzipBomb] {
        let before = subject.api.bytes_sent().len();
        subject.survives_once(&fault, Again::InHalves);
        wait_until(PATIENCE, "the server notices that nobody reads", || {
            subject.api.bytes_sent().len() > before
        });
        let sent = subject.api.bytes_sent()[before];
        assert!(sent < BUFFERS, "{fault:?}: {sent} bytes were sent");
    }
}

#[test]
fn connection_is_used_again_after_an_answer_that_cannot_be_believed() {
    let mut subject = Subject::new("");
    for fault in [Fault::TooFew, Fault::HalfTheJson, Fault::Status(409)] {
        subject.survives_once(&fault, Again::InHalves);
    }
    assert_eq!(subject.api.connections_made(), 1);
}
