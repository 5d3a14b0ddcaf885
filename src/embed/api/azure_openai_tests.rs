use std::time::Duration;

use crate::embed::endpoint::{Endpoint, Purpose};
use crate::embed::failure::Class;
use crate::embed::testing::{KEY, Server, ask, options, refused};

const AZURE: (&str, &str) = ("api", "azure_openai");

/// Source: https://github.com/Azure/azure-rest-api-specs, AzureOpenAI/inference/stable/2024-10-21,
/// examples/embeddings.json, of which three numbers are kept, and its schema for `usage`; taken
/// 2026-11-23.
const ANSWER: &str = r#"{
  "data": [
    {"index": 0, "embedding": [-0.012838088, -0.007421397, -0.017617522], "object": "embedding"}
  ],
  "model": "text-embedding-ada-002",
  "object": "list",
  "usage": {"prompt_tokens": 4, "total_tokens": 4}
}"#;

#[test]
fn a_request_names_its_deployment_in_the_path_and_its_key_in_a_header_of_its_own() {
    let server = Server::always(200, "x-ratelimit-remaining-requests: 11\r\n", ANSWER);
    let base = server.url.trim_end_matches("/v1").to_owned();
    let more = [AZURE, ("url", base.as_str()), ("deployment", "my 1/2")];
    let embeddings = ask(&server, &more, &["this is a test"], Purpose::Document).unwrap();
    assert_eq!(
        embeddings.vectors,
        [[-0.012_838_088, -0.007_421_397, -0.017_617_522]]
    );
    assert_eq!(embeddings.tokens, 4);
    assert_eq!(embeddings.limits.remaining_requests, Some(11));
    let seen = server.seen().remove(0);
    assert_eq!(
        seen.path,
        "/openai/deployments/my%201%2F2/embeddings?api-version=2024-10-21"
    );
    assert_eq!(seen.header("api-key"), Some(KEY));
    assert_eq!(seen.header("authorization"), None);
    assert_eq!(seen.inputs(), ["this is a test"]);
}

#[test]
fn url_deployment_and_version_add_up_to_where_requests_go() {
    let dated = "https://x.openai.azure.com/openai/deployments/m/embeddings?api-version=2024-10-21";
    let v1 = "https://x.openai.azure.com/openai/v1/embeddings";
    for (url, more, wanted) in [
        ("https://x.openai.azure.com", &[][..], dated),
        ("https://x.openai.azure.com/", &[], dated),
        ("https://x.openai.azure.com/openai", &[], dated),
        (
            "https://x.openai.azure.com",
            &[("deployment", "d"), ("api_version", "2025-04-01-preview")],
            "https://x.openai.azure.com/openai/deployments/d/embeddings?api-version=2025-04-01-preview",
        ),
        (
            "https://gateway.example/team?region=eu",
            &[],
            "https://gateway.example/team/openai/deployments/m/embeddings?region=eu&api-version=2024-10-21",
        ),
        (
            "https://x.openai.azure.com?api-version=2023-05-15",
            &[],
            "https://x.openai.azure.com/openai/deployments/m/embeddings?api-version=2023-05-15",
        ),
        ("https://x.openai.azure.com", &[("api_version", "v1")], v1),
        ("https://x.openai.azure.com/openai/v1/", &[], v1),
    ] {
        let base = [AZURE, ("url", url), ("model", "m"), ("dimensions", "3")];
        let options = options(base.iter().chain(more));
        let endpoint = Endpoint::from_options(&options, &[]).unwrap();
        assert_eq!(endpoint.request_url(), wanted);
    }
}

#[test]
fn the_deployment_is_the_model_of_version_1() {
    let server = Server::always(200, "", ANSWER);
    let more = [AZURE, ("deployment", "mine"), ("api_version", "v1")];
    ask(&server, &more, &["this is a test"], Purpose::Query).unwrap();
    assert_eq!(server.seen().remove(0).json()["model"], "mine");
}

/// Sources: https://learn.microsoft.com/azure/ai-services/openai/how-to/quota, "Understanding rate
/// limits", and the API's schema `errorResponse` ({error: {code, message}}), with the service's own
/// words, headers included; taken 2026-11-23.
#[test]
fn documented_errors_are_told_apart() {
    let busy = r#"{"error":{"code":"429","message":"Requests to the Embeddings_Create Operation under Azure OpenAI API version 2024-10-21 have exceeded call rate limit of your current OpenAI S0 pricing tier. Please retry after 38 seconds."}}"#;
    let headers = "retry-after-ms: 37500\r\nretry-after: 38\r\nx-ratelimit-remaining-requests: 0\r\nx-ratelimit-reset-requests: 38\r\n";
    let failure = refused(&Server::always(429, headers, busy), &[AZURE]);
    assert!(failure.rate_limited);
    assert_eq!(failure.retry_after, Some(Duration::from_millis(37_500)));
    assert_eq!(failure.limits.wait_for(1), Duration::from_secs(38));
    for (status, body) in [
        (
            401,
            r#"{"error":{"code":"401","message":"Access denied due to invalid subscription key or wrong API endpoint."}}"#,
        ),
        (
            404,
            r#"{"error":{"code":"DeploymentNotFound","message":"The API deployment for this resource does not exist."}}"#,
        ),
    ] {
        let failure = refused(&Server::always(status, "", body), &[AZURE]);
        assert_eq!(failure.class, Class::Configuration);
    }
}
