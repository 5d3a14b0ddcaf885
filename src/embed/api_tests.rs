//! What holds for every API, by the answers that each of them gives.

use std::collections::HashSet;

use super::*;
use crate::embed::failure::Class;
use crate::embed::reply::Embeddings;
use crate::embed::testing::{Server, ask, endpoint, refused, request};

/// An answer of `api` with these vectors (JSON), in the order of the inputs.
fn answer(api: &Api, vectors: &[&str]) -> String {
    let list = vectors.join(",");
    match api.name {
        "ollama" => format!(r#"{{"embeddings":[{list}],"prompt_eval_count":7}}"#),
        "cohere" => {
            let meta = r#"{"billed_units":{"input_tokens":7}}"#;
            format!(r#"{{"embeddings":{{"float":[{list}]}},"meta":{meta}}}"#)
        }
        "gemini" => {
            let values: Vec<String> = vectors
                .iter()
                .map(|vector| format!(r#"{{"values":{vector}}}"#))
                .collect();
            let usage = r#"{"promptTokenCount":7}"#;
            format!(
                r#"{{"embeddings":[{}],"usageMetadata":{usage}}}"#,
                values.join(",")
            )
        }
        _ => {
            let items: Vec<String> = (0..)
                .zip(vectors)
                .map(|(index, vector)| format!(r#"{{"index":{index},"embedding":{vector}}}"#))
                .collect();
            format!(
                r#"{{"data":[{}],"usage":{{"total_tokens":7}}}}"#,
                items.join(",")
            )
        }
    }
}

fn spoken() -> impl Iterator<Item = (&'static Api, &'static Wire)> {
    APIS.iter()
        .filter_map(|api| Some((*api, api.wire.as_ref()?)))
}

fn answered(api: &Api, body: &str) -> Result<Embeddings, crate::embed::failure::Failure> {
    let server = Server::always(200, "", body);
    ask(
        &server,
        &[("api", api.name)],
        &["one", "two"],
        Purpose::Document,
    )
}

#[test]
fn an_api_is_found_by_its_name_and_only_the_builtin_one_sends_nothing() {
    let names: HashSet<&str> = APIS.iter().map(|api| api.name).collect();
    assert_eq!(names.len(), APIS.len());
    for api in APIS {
        assert_eq!(Api::find(api.name), Some(*api));
        assert_eq!(api.wire.is_none(), api.name == "builtin");
        assert!(api.max_batch_inputs >= 1 && (1..=100).contains(&api.token_share));
        assert!(Api::names().contains(api.name));
    }
    assert_eq!(Api::find("soap"), None);
}

#[test]
fn every_apis_answer_is_read_in_the_order_of_the_inputs_with_its_tokens() {
    for (api, _) in spoken() {
        let embeddings = answered(api, &answer(api, &["[1,2,3]", "[4,5,6]"])).unwrap();
        assert_eq!(embeddings.vectors, [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]);
        assert_eq!(embeddings.tokens, 7, "{api:?}");
    }
}

#[test]
fn every_apis_answer_is_checked_alike() {
    for (api, _) in spoken() {
        let good = "[1,2,3]";
        for (vectors, class, why) in [
            (&[good][..], Class::Temporary, "has 1 embeddings for 2"),
            (&[good, good, good], Class::Temporary, "has 3 embeddings"),
            (&[], Class::Temporary, "has 0 embeddings"),
            (&[good, "[0,0,0]"], Class::Temporary, "zeros"),
            (&[good, "[1e39,0,0]"], Class::Temporary, "infinity"),
            (&[good, "[1,2,null]"], Class::Temporary, "not a list"),
            (&[good, "[1,2,NaN]"], Class::Temporary, "not JSON"),
            (&[good, "\"AADAfwAAAAAAAAAA\""], Class::Temporary, "NaN"),
            (&[good, "\"!\""], Class::Temporary, "not base64"),
            (&[good, "[1,2]"], Class::Configuration, "2 dimensions"),
            (&[good, "[1,2,3,4]"], Class::Configuration, "4 dimensions"),
        ] {
            let failure = answered(api, &answer(api, vectors)).unwrap_err();
            assert_eq!(failure.class, class, "{api:?} {vectors:?}");
            assert!(failure.message.contains(why), "{api:?}: {failure}");
            assert_eq!(failure.status, Some(200));
        }
        let whole = answer(api, &[good, good]);
        for end in [0, 1, 10, whole.len() / 2, whole.len() - 1] {
            let failure = answered(api, &whole[..end]).unwrap_err();
            assert_eq!(failure.class, Class::Temporary);
            assert!(failure.message.contains("cut short"), "{api:?}: {failure}");
        }
        for body in ["null", "[]", "{}", "\"x\"", "<html></html>"] {
            assert!(answered(api, body).is_err(), "{api:?} {body}");
        }
    }
}

#[test]
fn every_apis_error_inside_a_200_is_read_as_an_error() {
    for (api, _) in spoken() {
        for (body, class, rate_limited, said) in [
            (
                r#"{"error":{"message":"model overloaded"}}"#,
                Class::Temporary,
                false,
                "200 with an error: model overloaded",
            ),
            (
                r#"{"error":{"code":429,"message":"slow down"}}"#,
                Class::Provider,
                true,
                "200 with an error 429: slow down",
            ),
            (
                r#"{"error":"no"}"#,
                Class::Temporary,
                false,
                "200 with an error: no",
            ),
        ] {
            let failure = refused(&Server::always(200, "", body), &[("api", api.name)]);
            assert_eq!(failure.class, class, "{api:?} {body}");
            assert_eq!(failure.rate_limited, rate_limited);
            assert!(failure.message.ends_with(said), "{api:?}: {failure}");
        }
    }
}

#[test]
fn no_api_shows_a_text_or_a_key_that_an_error_echoes() {
    for (api, _) in spoken() {
        for status in [200, 400, 401, 500] {
            let body = format!(
                r#"{{"error":{{"message":"a text that nobody else may read, {}"}}}}"#,
                crate::embed::testing::KEY
            );
            let failure = refused(&Server::always(status, "", &body), &[("api", api.name)]);
            assert!(failure.message.contains("[removed]"), "{api:?}: {failure}");
        }
    }
}

#[test]
fn every_api_sends_all_texts_with_their_prefix_and_keeps_its_own_members() {
    let more = [
        ("document_prefix", "doc: "),
        ("extra_body", r#"{"user": "recsync"}"#),
    ];
    for (api, wire) in spoken() {
        let endpoint = endpoint("http://x", &[&more[..], &[("api", api.name)]].concat());
        let body = request(
            &endpoint,
            &["one", "two"],
            Purpose::Document,
            Encoding::Float,
        );
        let text = body.to_string();
        for part in [
            "\"doc: one\"",
            "\"doc: two\"",
            "\"user\":\"recsync\"",
            "test",
        ] {
            assert!(text.contains(part), "{api:?}: {text}");
        }
        for (member, _) in wire.own_members {
            let extra = format!(r#"{{"{member}": 1}}"#);
            let given = [
                ("api", api.name),
                ("url", "http://x"),
                ("model", "m"),
                ("dimensions", "3"),
                ("extra_body", extra.as_str()),
            ];
            let given = crate::embed::testing::options(&given);
            let error = Endpoint::from_options(&given, &[]).unwrap_err();
            assert_eq!(error.detail, Some(format!("It holds \"{member}\".")));
        }
    }
}

#[test]
fn a_base_is_joined_with_a_path_before_its_query_and_once() {
    for (base, wanted) in [
        ("http://x/v1", "http://x/v1/embed"),
        ("http://x/v1/", "http://x/v1/embed"),
        ("http://x/embed", "http://x/embed"),
        ("http://x?a=b", "http://x/embed?a=b"),
    ] {
        assert_eq!(join(base, "/embed"), wanted);
    }
    assert_eq!(segment("a-b_c.d~1"), "a-b_c.d~1");
    assert_eq!(segment("a/b?ä"), "a%2Fb%3F%C3%A4");
}
