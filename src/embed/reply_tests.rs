//! The checks that every API's answers go through, by way of OpenAI's.

use super::*;
use crate::embed::failure::Class;
use crate::embed::testing::{endpoint, floats};

fn base64_of(numbers: &[f32]) -> String {
    let bytes: Vec<u8> = numbers.iter().flat_map(|x| x.to_le_bytes()).collect();
    BASE64.encode(bytes)
}

fn item(index: usize, embedding: &str) -> String {
    format!(r#"{{"index":{index},"embedding":{embedding}}}"#)
}

fn reply(items: &[String]) -> String {
    format!(r#"{{"data":[{}]}}"#, items.join(","))
}

fn parse_reply(endpoint: &Endpoint, count: usize, body: &str) -> Result<Embeddings, Failure> {
    read(endpoint, count, body.as_bytes())
}

fn parse(count: usize, body: &str) -> Result<Embeddings, Failure> {
    parse_reply(&endpoint("http://x", &[]), count, body)
}

#[test]
fn base64_and_floats_are_read_alike_and_matched_by_index() {
    let padded = base64_of(&[0.5, -1.0, 2.0]);
    let slashes = base64_of(&[f32::from_bits(0x3fff_ffff), 1.0, 0.0]).replace('/', "\\/");
    let body = reply(&[
        item(2, &format!("\"{}\"", padded.trim_end_matches('='))),
        item(0, "[1, 2.5, -3e0]"),
        item(1, &format!("\"{slashes}\"")),
    ]);
    let embeddings = parse(3, &body).unwrap();
    assert_eq!(embeddings.vectors[0], [1.0, 2.5, -3.0]);
    assert_eq!(
        embeddings.vectors[1],
        [f32::from_bits(0x3fff_ffff), 1.0, 0.0]
    );
    assert_eq!(embeddings.vectors[2], [0.5, -1.0, 2.0]);
    assert_eq!(embeddings.tokens, 0);
}

#[test]
fn tokens_are_counted_where_the_provider_says_them() {
    assert_eq!(parse(1, &floats(1)).unwrap().tokens, 7);
    for (usage, tokens) in [
        ("null", 0),
        (r#"{"prompt_tokens":4}"#, 4),
        (r#"{"total_tokens":5.0,"cost":{"x":[1]}}"#, 5),
        (r#"{"total_tokens":-5}"#, 0),
        (r#"{"total_tokens":"5"}"#, 0),
        ("[]", 0),
    ] {
        let body = format!(r#"{{"usage":{usage},"data":[{}]}}"#, item(0, "[1,0,0]"));
        assert_eq!(parse(1, &body).unwrap().tokens, tokens, "{usage}");
    }
}

#[test]
fn vectors_are_scaled_where_the_server_says_so() {
    let endpoint = endpoint("http://x", &[("normalize", "on")]);
    let body = reply(&[item(0, "[3, 0, 4]")]);
    let embeddings = parse_reply(&endpoint, 1, &body).unwrap();
    assert_eq!(embeddings.vectors, [[0.6, 0.0, 0.8]]);
}

#[test]
fn a_malformed_answer_is_temporary_and_not_quoted() {
    let good = item(0, "[1,0,0]");
    for (body, why) in [
        ("s3cr3t".to_owned(), "not JSON"),
        (String::new(), "cut short"),
        ("[]".to_owned(), "not a list of embeddings"),
        ("{}".to_owned(), "not a list of embeddings"),
        (r#"{"data":"s3cr3t"}"#.to_owned(), "not a list"),
        (reply(&[item(0, "[1,0,\"s3cr3t\"]")]), "not a list"),
        (reply(&[item(0, "[1,0,null]")]), "not a list"),
        (reply(&[item(0, "[1,0,NaN]")]), "not JSON"),
        (reply(&[]), "has 0 embeddings for 1 inputs"),
        (reply(&[good.clone(), good.clone()]), "has 2 embeddings"),
        (reply(&[item(1, "[1,0,0]")]), "index"),
        (reply(&[r#"{"embedding":[1,0,0]}"#.to_owned()]), "index"),
        (reply(&[item(0, "\"s3cr3t!\"")]), "not base64"),
        (reply(&[item(0, "\"AAAA\"")]), "cut short"),
        (reply(&[item(0, "[0,0,0]")]), "zeros"),
        (reply(&[item(0, "[1e39,0,0]")]), "infinity"),
        (
            reply(&[item(
                0,
                &format!("\"{}\"", base64_of(&[f32::NAN, 0.0, 1.0])),
            )]),
            "NaN",
        ),
        (floats(1)[..40].to_owned(), "cut short"),
    ] {
        let failure = parse(1, &body).unwrap_err();
        assert_eq!(failure.class, Class::Temporary, "{body}");
        assert!(failure.message.contains(why), "{body}: {failure}");
        assert!(!failure.message.contains("s3cr3t"), "{failure}");
    }
    let twice = parse(2, &reply(&[good.clone(), good])).unwrap_err();
    assert!(twice.message.contains("index"));
}

#[test]
fn another_length_than_the_options_say_is_a_matter_of_configuration() {
    let long = format!("\"{}\"", base64_of(&[1.0; 5]));
    for embedding in ["[1,2,3,4,5]", long.as_str()] {
        let failure = parse(1, &reply(&[item(0, embedding)])).unwrap_err();
        assert_eq!(failure.class, Class::Configuration);
        assert!(failure.message.contains("returned 5 dimensions"));
        assert!(failure.message.contains("says 3"));
    }
}

/// Run in release to compare with the mark of 4.5 µs a vector of 1,536:
/// `cargo test --release decoding -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement"]
fn decoding_a_large_reply_is_measured() {
    let endpoint = endpoint("http://x", &[("dimensions", "1536")]);
    let numbers: Vec<f32> = (0..1_536).map(|n| (n as f32 * 0.37).sin()).collect();
    let embedding = format!("\"{}\"", base64_of(&numbers));
    let items: Vec<String> = (0..50).map(|n| item(n, &embedding)).collect();
    let body = reply(&items);
    let started = std::time::Instant::now();
    for _ in 0..200 {
        parse_reply(&endpoint, 50, &body).unwrap();
    }
    println!("{:?} a vector", started.elapsed() / 10_000);
}
