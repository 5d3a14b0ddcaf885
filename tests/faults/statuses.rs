//! Statuses other than 200, of each class.

use std::time::{Duration, SystemTime};

use crate::subject::{Again, REST, Subject};
use crate::support::{Api, Fault};

#[test]
fn status_that_blames_the_input_makes_a_dead_letter_of_one_row_at_its_first_attempt() {
    let mut subject = Subject::new("max_attempts '3'");
    for status in [400, 413, 422] {
        let fault = Fault::Status(status);
        subject.gives_up_one_row(&fault, "permanent", status.into(), "as scripted");
    }
}

#[test]
fn status_that_blames_nobody_is_tried_again_in_halves() {
    let mut subject = Subject::new("");
    for status in [201, 302, 409, 418, 451] {
        subject.survives_once(&Fault::Status(status), Again::InHalves);
    }
}

#[test]
fn text_that_gets_such_a_status_each_time_is_a_dead_letter_after_its_attempts() {
    let mut subject = Subject::new("max_attempts '1'");
    for status in [201, 302, 409, 418] {
        let fault = Fault::Status(status);
        subject.gives_up_one_row(&fault, "temporary", status.into(), "as scripted");
    }
}

#[test]
fn status_that_blames_the_provider_lets_it_rest_and_charges_no_row() {
    let mut subject = Subject::new("max_attempts '1'");
    for (status, again) in [
        (408, Again::InHalves),
        (425, Again::InHalves),
        (429, Again::Whole),
        (500, Again::InHalves),
        (502, Again::InHalves),
        (503, Again::InHalves),
        (529, Again::InHalves),
    ] {
        subject.survives_once(&Fault::Status(status), again);
        let times = subject.times();
        assert!(times[1] - times[0] >= REST, "{status}: asked at once");
    }
}

#[test]
fn redirect_is_followed_neither_to_another_host_nor_to_the_same() {
    let mut subject = Subject::new("");
    let other = Api::start();
    for target in [other.url(), subject.api.url()] {
        let target = format!("{target}/embeddings");
        subject.survives_once(&Fault::Redirect(target), Again::InHalves);
    }
    assert_eq!(other.connections_made(), 0, "the other host was asked");
}

#[test]
fn retry_after_as_a_date_is_obeyed_and_charges_no_row() {
    let mut subject = Subject::new("max_attempts '1'");
    // The answer's own date counts, so that a wrong clock does no harm.
    let date = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
    let headers = format!(
        "Date: {}\r\nRetry-After: {}\r\n",
        httpdate::fmt_http_date(date),
        httpdate::fmt_http_date(date + Duration::from_secs(2))
    );
    subject.survives_once(&Fault::StatusWith(429, headers), Again::Whole);
    let times = subject.times();
    let pause = times[1] - times[0];
    assert!(
        pause >= Duration::from_millis(1_950),
        "asked again after {pause:?}"
    );
}
