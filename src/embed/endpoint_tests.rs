use std::collections::HashSet;

use super::*;
use crate::embed::testing::options as owned;

const OPENAI: &[(&str, &str)] = &[("api", "openai"), ("model", "text-embedding-3-small")];

fn with(more: &[(&str, &str)]) -> Vec<(String, String)> {
    owned(OPENAI.iter().chain(more))
}

fn refused(more: &[(&str, &str)]) -> OptionError {
    validate(Place::Server, &with(more)).unwrap_err()
}

#[test]
fn a_known_model_brings_everything_but_the_key() {
    let endpoint = Endpoint::from_options(&owned(OPENAI), &[]).unwrap();
    assert_eq!(
        endpoint.request_url(),
        "https://api.openai.com/v1/embeddings"
    );
    assert_eq!(endpoint.dimensions, 1_536);
    assert_eq!(endpoint.max_batch_inputs, 50);
    assert_eq!(endpoint.max_input_tokens, 8_191);
    assert_eq!(endpoint.max_concurrency, 4);
    assert_eq!(endpoint.max_attempts, 3);
    assert_eq!(endpoint.connect_timeout, Duration::from_secs(30));
    assert_eq!(endpoint.read_timeout, Duration::from_secs(60));
    assert_eq!(endpoint.total_timeout, Duration::from_secs(120));
    assert_eq!(endpoint.price_per_million_tokens, Some(0.02));
    assert_eq!(endpoint.currency, "USD");
    assert_eq!(endpoint.encoding, Encoding::Base64);
    assert!(!endpoint.send_dimensions && !endpoint.normalize);
    assert_eq!(endpoint.key, None);
}

#[test]
fn models_are_known_by_name_with_or_without_publisher() {
    for (model, dimensions) in [
        ("text-embedding-3-large", 3_072),
        ("text-embedding-ada-002", 1_536),
        ("openai/text-embedding-3-small", 1_536),
        ("all-minilm-l6-v2", 384),
        ("sentence-transformers/all-MiniLM-L6-v2", 384),
    ] {
        let options = owned(&[("api", "openai"), ("model", model), ("url", "http://x/v1")]);
        let endpoint = Endpoint::from_options(&options, &[]).unwrap();
        assert_eq!(endpoint.dimensions, dimensions, "{model}");
    }
}

#[test]
fn an_unknown_model_needs_dimensions_and_url() {
    let unknown = [("api", "openai"), ("model", "mine")];
    let missing = |more: &[(&str, &str)]| {
        let error = validate(Place::Server, &owned(unknown.iter().chain(more))).unwrap_err();
        assert_eq!(error.kind, OptionErrorKind::Missing);
        error.message
    };
    assert!(missing(&[("url", "http://x")]).contains("\"dimensions\""));
    assert!(missing(&[("dimensions", "8")]).contains("\"url\""));
    let error = validate(Place::Server, &owned(&[("api", "openai")])).unwrap_err();
    assert!(error.message.contains("\"model\""));
    let error = validate(Place::Server, &[]).unwrap_err();
    assert!(error.message.contains("\"api\""));
}

#[test]
fn a_model_is_shortened_only_if_it_can_be() {
    let endpoint = Endpoint::from_options(&with(&[("dimensions", "256")]), &[]).unwrap();
    assert_eq!((endpoint.dimensions, endpoint.send_dimensions), (256, true));
    let error = refused(&[("dimensions", "1537")]);
    assert!(error.hint.unwrap().contains("from 1 to 1536"));
    let ada = [
        ("api", "openai"),
        ("model", "text-embedding-ada-002"),
        ("dimensions", "256"),
    ];
    assert!(validate(Place::Server, &owned(&ada)).is_err());
}

#[test]
fn the_builtin_api_needs_nothing() {
    let endpoint = Endpoint::from_options(&owned(&[("api", "builtin")]), &[]).unwrap();
    assert_eq!(
        (
            endpoint.api.name,
            endpoint.dimensions,
            endpoint.model.as_str()
        ),
        ("builtin", 384, "builtin")
    );
    for option in [("dimensions", "385"), ("model", "other")] {
        assert!(validate(Place::Server, &owned(&[("api", "builtin"), option])).is_err());
    }
}

#[test]
fn an_unknown_api_is_refused_with_those_that_are_valid() {
    for api in ["x", "OpenAI", ""] {
        let error = validate(Place::Server, &owned(&[("api", api), ("model", "m")])).unwrap_err();
        assert_eq!(error.kind, OptionErrorKind::InvalidValue);
        assert_eq!(
            error.hint.unwrap(),
            "Valid are: openai, azure_openai, ollama, gemini, voyage, cohere, builtin, webhook."
        );
    }
}

#[test]
fn a_server_of_hooks_has_an_address_and_nothing_of_a_model() {
    let own = [("api", "webhook"), ("url", "https://models.example.com")];
    let endpoint = Endpoint::from_options(&owned(&own), &[]).unwrap();
    assert_eq!((endpoint.dimensions, endpoint.model.as_str()), (0, ""));
    assert_eq!(
        validate(Place::Server, &owned(&own[..1])).unwrap_err().kind,
        OptionErrorKind::Missing
    );
    for option in [("model", "m"), ("dimensions", "3"), ("encoding", "float")] {
        let error = validate(Place::Server, &owned(&[own[0], own[1], option])).unwrap_err();
        assert_eq!(error.kind, OptionErrorKind::NotAllowed);
        assert!(error.message.contains(option.0), "{error}");
    }
}

#[test]
fn an_unknown_option_lists_the_valid_ones() {
    let error = refused(&[("modell", "x")]);
    assert_eq!(error.kind, OptionErrorKind::UnknownOption);
    assert_eq!(error.message, "invalid option \"modell\"");
    let hint = error.hint.unwrap();
    for name in options::names(false) {
        assert!(hint.contains(name), "{name}");
    }
}

#[test]
fn a_number_out_of_range_names_option_and_range() {
    for (name, value, range) in [
        ("dimensions", "0", "from 1 to 16000"),
        ("dimensions", "-1", "from 1 to 16000"),
        ("dimensions", "16001", "from 1 to 16000"),
        ("dimensions", "1.5", "from 1 to 16000"),
        ("max_batch_inputs", "0", "from 1 to 2048"),
        ("max_batch_inputs", "2049", "from 1 to 2048"),
        ("max_concurrency", "257", "from 1 to 256"),
        ("max_attempts", "0", "from 1 to 100"),
        ("max_input_tokens", "x", "from 1 to 1000000000"),
        ("price_per_million_tokens", "-0.1", "from 0 to"),
        ("monthly_budget", "NaN", "from 0 to"),
        ("connect_timeout", "0", "from 1ms to 3600s"),
        ("read_timeout", "2h", "from 1ms to 3600s"),
        ("total_timeout", "1 fortnight", "from 1ms to 3600s"),
        ("total_timeout", "-5s", "from 1ms to 3600s"),
        ("total_timeout", "infs", "from 1ms to 3600s"),
    ] {
        let error = refused(&[(name, value)]);
        assert_eq!(error.kind, OptionErrorKind::InvalidValue);
        assert!(error.message.contains(name) && error.message.contains(value));
        let hint = error.hint.unwrap();
        assert!(
            hint.contains(name) && hint.contains(range),
            "{name}: {hint}"
        );
    }
}

#[test]
fn durations_have_units_or_are_seconds() {
    for (value, ms) in [
        ("30s", 30_000),
        ("500ms", 500),
        ("2min", 120_000),
        ("1h", 3_600_000),
        ("45", 45_000),
        ("1.5", 1_500),
        ("2 min", 120_000),
    ] {
        let endpoint = Endpoint::from_options(&with(&[("read_timeout", value)]), &[]).unwrap();
        assert_eq!(endpoint.read_timeout, Duration::from_millis(ms), "{value}");
    }
}

#[test]
fn other_values_are_checked_by_their_kind() {
    for (name, value) in [
        ("encoding", "hex"),
        ("normalize", "maybe"),
        ("currency", "euro"),
        ("model", " "),
        ("url", "https://me:pw@x"),
        ("proxy", "socks5://p"),
        ("ca_file", ""),
        ("api_key_file", "/etc/passwd"),
        ("api_key_file", "../openai.key"),
        ("api_key_file", "sk-1234567890"),
        ("api_key_env", "OPENAI-KEY"),
        ("api_key_env", "sk_live_1234567890"),
        ("header_file", ""),
    ] {
        let options: Vec<(&str, &str)> = OPENAI
            .iter()
            .copied()
            .filter(|(other, _)| *other != name)
            .chain([(name, value)])
            .collect();
        let error = validate(Place::Server, &owned(&options)).unwrap_err();
        assert_eq!(error.kind, OptionErrorKind::InvalidValue, "{name}");
        assert!(error.message.contains(name), "{name}");
    }
}

#[test]
fn headers_and_extra_body_are_objects_without_credentials() {
    for (name, value) in [
        ("headers", "Authorization: Bearer sk-123"),
        ("headers", "[]"),
        ("headers", r#"{"X": 1}"#),
        ("headers", r#"{"Authorization": "Bearer sk-123"}"#),
        ("headers", r#"{"api-key": "x"}"#),
        ("headers", r#"{"X-Note": "sk-1234567"}"#),
        ("headers", r#"{"Host": "x"}"#),
        ("headers", r#"{"X Y": "x"}"#),
        ("headers", r#"{"X": "a\r\nY: b"}"#),
        ("extra_body", "1"),
        ("extra_body", r#"{"input": []}"#),
        ("extra_body", r#"{"dimensions": 3}"#),
        ("extra_body", r#"{"api_key": "x"}"#),
        ("extra_body", r#"{"a": [{"token": "x"}]}"#),
        ("extra_body", r#"{"a": ["Bearer x"]}"#),
    ] {
        let error = refused(&[(name, value)]);
        assert_eq!(error.kind, OptionErrorKind::InvalidValue, "{value}");
        let shown = format!("{error}{:?}{:?}", error.detail, error.hint);
        assert!(!shown.contains("sk-123"), "{shown}");
    }
    let endpoint = Endpoint::from_options(
        &with(&[
            ("headers", r#"{"OpenAI-Organization": "org-1"}"#),
            (
                "extra_body",
                r#"{"max_tokens": 512, "input_type": "passage"}"#,
            ),
        ]),
        &[],
    )
    .unwrap();
    assert_eq!(endpoint.headers.len(), 1);
    assert_eq!(endpoint.extra_body["max_tokens"], 512);
}

#[test]
fn a_user_mapping_holds_a_key_only_and_overrides_the_servers() {
    let mapping = owned(&[("api_key_env", "TEAM_API_KEY")]);
    assert!(validate(Place::UserMapping, &mapping).is_ok());
    assert!(validate(Place::UserMapping, &[]).is_ok());
    let endpoint =
        Endpoint::from_options(&with(&[("api_key_file", "openai.key")]), &mapping).unwrap();
    assert_eq!(
        endpoint.key,
        Some(KeySource::Environment("TEAM_API_KEY".to_owned()))
    );
    let error = validate(Place::UserMapping, &owned(&[("url", "http://x")])).unwrap_err();
    assert_eq!(error.kind, OptionErrorKind::NotAllowed);
    assert!(error.hint.unwrap().contains("api_key_file, api_key_env"));
    let error = validate(Place::UserMapping, &owned(&[("user", "x")])).unwrap_err();
    assert_eq!(error.kind, OptionErrorKind::UnknownOption);
    let both = [("api_key_env", "A_API_KEY"), ("api_key_file", "a")];
    assert!(validate(Place::UserMapping, &owned(&both)).is_err());
    assert!(refused(&both).message.contains("exclude each other"));
}

#[test]
fn wrapper_and_tables_have_no_options() {
    assert!(validate(Place::Wrapper, &[]).is_ok());
    assert!(validate(Place::Wrapper, &owned(&[("url", "x")])).is_err());
    let error = validate(Place::Elsewhere, &[]).unwrap_err();
    assert_eq!(error.message, "recsync servers have no tables");
}

#[test]
fn the_request_url_keeps_query_and_a_given_path() {
    for (url, wanted) in [
        ("http://x/v1", "http://x/v1/embeddings"),
        ("http://x/v1/", "http://x/v1/embeddings"),
        ("http://x", "http://x/embeddings"),
        ("http://x/v1/embeddings", "http://x/v1/embeddings"),
        ("http://x/v1?v=2", "http://x/v1/embeddings?v=2"),
    ] {
        let endpoint = Endpoint::from_options(&with(&[("url", url)]), &[]).unwrap();
        assert_eq!(endpoint.request_url(), wanted);
    }
}

#[test]
fn an_option_of_one_api_is_refused_by_the_others() {
    for option in ["deployment", "api_version"] {
        let error = refused(&[(option, "v1")]);
        assert_eq!(error.kind, OptionErrorKind::NotAllowed);
        assert_eq!(
            error.message,
            format!("option \"{option}\" is for api \"azure_openai\"")
        );
    }
    for api in crate::embed::api::APIS {
        let known = |name: &&str| OPTIONS.iter().any(|spec| spec.name == *name);
        assert!(api.options.iter().all(known), "{api:?}");
    }
}

#[test]
fn an_api_version_is_a_date_or_a_word() {
    for (version, valid) in [
        ("2024-10-21", true),
        ("2025-04-01-preview", true),
        ("v1", true),
        ("", false),
        ("1&key=x", false),
        ("2024 10", false),
    ] {
        let options = owned(&[
            ("api", "azure_openai"),
            ("model", "text-embedding-3-small"),
            ("url", "https://x.openai.azure.com"),
            ("api_version", version),
        ]);
        assert_eq!(
            validate(Place::Server, &options).is_ok(),
            valid,
            "{version}"
        );
    }
}

#[test]
fn a_batch_is_not_larger_than_the_api_takes() {
    let with_inputs = |api: &str, inputs: &str| {
        let model = [("api", api), ("model", "m"), ("dimensions", "8")];
        let more = [("max_batch_inputs", inputs)];
        Endpoint::from_options(&owned(model.iter().chain(&more)), &[])
    };
    assert_eq!(with_inputs("cohere", "96").unwrap().room().inputs, 96);
    for (api, inputs) in [("cohere", "97"), ("gemini", "101"), ("voyage", "1001")] {
        let error = with_inputs(api, inputs).unwrap_err();
        assert_eq!(error.kind, OptionErrorKind::InvalidValue);
        assert!(error.hint.unwrap().contains(api));
    }
    let tokens = |model: &str, more: &[(&str, &str)]| {
        let base = [("api", "voyage"), ("model", model)];
        let options = owned(base.iter().chain(more));
        Endpoint::from_options(&options, &[]).unwrap().room().tokens
    };
    assert_eq!(tokens("voyage-3.5", &[]), Some(224_000), "70% of 320,000");
    assert_eq!(
        tokens("voyage-3.5", &[("max_batch_tokens", "100")]),
        Some(70)
    );
    let openai = Endpoint::from_options(&owned(OPENAI), &[]).unwrap();
    assert_eq!(openai.room().tokens, Some(300_000));
}

#[test]
fn a_shortened_model_is_asked_for_its_length_and_scaled() {
    let options = |dimensions| {
        owned(&[
            ("api", "gemini"),
            ("model", "gemini-embedding-001"),
            ("dimensions", dimensions),
        ])
    };
    let endpoint = Endpoint::from_options(&options("768"), &[]).unwrap();
    assert!(endpoint.send_dimensions && endpoint.normalize);
    let whole = Endpoint::from_options(&options("3072"), &[]).unwrap();
    assert!(!whole.send_dimensions && !whole.normalize);
    assert!(validate(Place::Server, &options("64")).is_err());
}

#[test]
fn a_known_models_prefixes_are_used_unless_others_are_given() {
    let model = [("api", "ollama"), ("model", "nomic-embed-text")];
    let endpoint = Endpoint::from_options(&owned(&model), &[]).unwrap();
    assert_eq!(endpoint.url, "http://localhost:11434");
    assert_eq!(endpoint.document_prefix, "search_document: ");
    let none = [("query_prefix", ""), ("document_prefix", "x: ")];
    let endpoint = Endpoint::from_options(&owned(model.iter().chain(&none)), &[]).unwrap();
    assert_eq!(endpoint.query_prefix, "");
    assert_eq!(endpoint.document_prefix, "x: ");
}

#[test]
fn url_and_price_are_those_of_the_api_that_is_used() {
    let options = owned(&[
        ("api", "azure_openai"),
        ("model", "text-embedding-3-small"),
        ("url", "https://x.openai.azure.com"),
    ]);
    let endpoint = Endpoint::from_options(&options, &[]).unwrap();
    assert_eq!(endpoint.dimensions, 1_536);
    assert_eq!(endpoint.price_per_million_tokens, None);
    let error = validate(Place::Server, &options[..2]).unwrap_err();
    assert!(
        error
            .hint
            .unwrap()
            .contains("https://NAME.openai.azure.com")
    );
}

#[test]
fn every_option_is_named_once_and_documented_and_protected_ones_exist() {
    let names: HashSet<&str> = OPTIONS.iter().map(|spec| spec.name).collect();
    assert_eq!(names.len(), OPTIONS.len());
    assert!(PROTECTED_OPTIONS.iter().all(|name| names.contains(name)));
    assert!(documented_options().all(|(_, kind, doc)| !kind.is_empty() && !doc.is_empty()));
}
