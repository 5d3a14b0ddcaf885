//! Models that are known by name: what they bring to a server that names them, and what the view
//! `recsync.presets` shows.
//!
//! A row is a default, never a limit that cannot be lifted: every value has its option. A price
//! stands here only if the vendor publishes it.
//!
//! Sources: OpenAI, "Embeddings" and the models' pages; Voyage AI, "Text Embeddings", "Text
//! embedding models" (API reference) and "Pricing"; Gemini API, "Embeddings" and "Pricing";
//! Cohere, "Cohere's Embed Models"; the models' cards for prefixes and lengths; Ollama's library
//! for what context its builds have.

use super::api::{Api, cohere, gemini, ollama, openai, voyage};
use super::builtin;

/// Which lengths of embeddings a model gives on request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lengths {
    /// Its own only.
    Fixed,
    /// From this one up to its own.
    From(usize),
    /// These only.
    OneOf(&'static [usize]),
}

impl Lengths {
    /// Whether a model whose own length is `own` gives `wanted`.
    pub(crate) fn allow(self, own: usize, wanted: usize) -> bool {
        match self {
            Lengths::Fixed => wanted == own,
            Lengths::From(least) => (least..=own).contains(&wanted),
            Lengths::OneOf(lengths) => lengths.contains(&wanted),
        }
    }

    /// What to write instead of a length that it does not give.
    pub(crate) fn hint(self, own: usize) -> String {
        match self {
            Lengths::Fixed => "Leave the option out.".to_owned(),
            Lengths::From(least) => {
                format!("Option \"dimensions\" must be a whole number from {least} to {own}.")
            }
            Lengths::OneOf(lengths) => {
                let lengths: Vec<String> = lengths.iter().map(usize::to_string).collect();
                format!(
                    "Option \"dimensions\" must be one of {}.",
                    lengths.join(", ")
                )
            }
        }
    }
}

/// What is known of a model by its name.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Preset {
    /// Its name, without a publisher.
    pub model: &'static str,
    /// The word for the API that it is usually asked by.
    pub api: &'static str,
    /// Base of that API, where there is one for everybody.
    pub url: Option<&'static str>,
    /// Length of an embedding.
    pub dimensions: usize,
    /// Other lengths that it gives.
    pub lengths: Lengths,
    /// Tokens in one input.
    pub max_input_tokens: u64,
    /// Inputs in one request of that API.
    pub max_batch_inputs: usize,
    /// Tokens in one request of that API.
    pub max_batch_tokens: Option<u64>,
    /// Put before each query, where the model's card says so.
    pub query_prefix: &'static str,
    /// Put before each document, where the model's card says so.
    pub document_prefix: &'static str,
    /// In US dollars, where the vendor says it.
    pub price_per_million_tokens: Option<f64>,
    /// The date of what the row was taken from (year-month-day).
    pub as_of: &'static str,
}

impl Preset {
    /// Whether it gives other lengths than its own.
    pub fn shortens(&self) -> bool {
        self.lengths != Lengths::Fixed
    }
}

/// A model of `api` that nothing else is known of.
const fn of(api: &Api, model: &'static str, dimensions: usize, max_input_tokens: u64) -> Preset {
    Preset {
        model,
        api: api.name,
        url: api.url,
        dimensions,
        lengths: Lengths::Fixed,
        max_input_tokens,
        max_batch_inputs: api.max_batch_inputs,
        max_batch_tokens: api.max_batch_tokens,
        query_prefix: "",
        document_prefix: "",
        price_per_million_tokens: None,
        as_of: "2026-11-23",
    }
}

const fn openai(model: &'static str, dimensions: usize, lengths: Lengths, price: f64) -> Preset {
    Preset {
        url: Some("https://api.openai.com/v1"),
        lengths,
        price_per_million_tokens: Some(price),
        as_of: "2026-07-03",
        ..of(&openai::API, model, dimensions, 8_191)
    }
}

const fn voyage(model: &'static str, max_batch_tokens: u64, price: f64) -> Preset {
    Preset {
        lengths: Lengths::OneOf(&[256, 512, 1_024, 2_048]),
        max_batch_tokens: Some(max_batch_tokens),
        price_per_million_tokens: Some(price),
        as_of: "2026-08-13",
        ..of(&voyage::API, model, 1_024, 32_000)
    }
}

const fn cohere(model: &'static str, dimensions: usize) -> Preset {
    Preset {
        as_of: "2026-08-20",
        ..of(&cohere::API, model, dimensions, 512)
    }
}

const fn prefixed(preset: Preset, query: &'static str, document: &'static str) -> Preset {
    Preset {
        query_prefix: query,
        document_prefix: document,
        ..preset
    }
}

/// What the cards of mxbai-embed-large and snowflake-arctic-embed want before a query.
const REPRESENT: &str = "Represent this sentence for searching relevant passages: ";

#[rustfmt::skip]
static PRESETS: &[Preset] = &[
    openai("text-embedding-3-small", 1_536, Lengths::From(1), 0.02),
    openai("text-embedding-3-large", 3_072, Lengths::From(1), 0.13),
    openai("text-embedding-ada-002", 1_536, Lengths::Fixed, 0.10),
    of(&openai::API, "all-minilm-l6-v2", 384, 256),
    of(&ollama::API, "all-minilm", 384, 256),
    of(&ollama::API, "bge-m3", 1_024, 8_192),
    prefixed(Preset { lengths: Lengths::OneOf(&[128, 256, 512, 768]), ..of(&ollama::API, "embeddinggemma", 768, 2_048) }, "task: search result | query: ", "title: none | text: "),
    prefixed(Preset { lengths: Lengths::From(64), ..of(&ollama::API, "mxbai-embed-large", 1_024, 512) }, REPRESENT, ""),
    prefixed(Preset { lengths: Lengths::From(64), ..of(&ollama::API, "nomic-embed-text", 768, 2_048) }, "search_query: ", "search_document: "),
    prefixed(of(&ollama::API, "snowflake-arctic-embed", 1_024, 512), REPRESENT, ""),
    prefixed(Preset { lengths: Lengths::OneOf(&[256, 1_024]), ..of(&ollama::API, "snowflake-arctic-embed2", 1_024, 8_192) }, "query: ", ""),
    Preset { lengths: Lengths::From(128), price_per_million_tokens: Some(0.15), as_of: "2026-08-13", ..of(&gemini::API, "gemini-embedding-001", 3_072, 2_048) },
    voyage("voyage-4-large", 120_000, 0.12),
    voyage("voyage-4", 320_000, 0.06),
    voyage("voyage-4-lite", 1_000_000, 0.02),
    voyage("voyage-3-large", 120_000, 0.18),
    voyage("voyage-3.5", 320_000, 0.06),
    voyage("voyage-3.5-lite", 1_000_000, 0.02),
    voyage("voyage-code-3", 120_000, 0.18),
    Preset { lengths: Lengths::Fixed, ..voyage("voyage-finance-2", 120_000, 0.12) },
    Preset { lengths: Lengths::Fixed, max_input_tokens: 16_000, ..voyage("voyage-law-2", 120_000, 0.12) },
    Preset { lengths: Lengths::OneOf(&[256, 512, 1_024, 1_536]), max_input_tokens: 128_000, ..cohere("embed-v4.0", 1_536) },
    cohere("embed-english-v3.0", 1_024),
    cohere("embed-english-light-v3.0", 384),
    cohere("embed-multilingual-v3.0", 1_024),
    cohere("embed-multilingual-light-v3.0", 384),
    Preset { price_per_million_tokens: Some(0.0), ..of(&builtin::API, builtin::API.name, builtin::DIMENSIONS, builtin::API.max_input_tokens) },
];

/// All rows, for the view.
pub fn presets() -> impl Iterator<Item = &'static Preset> {
    PRESETS.iter()
}

/// By the name without its publisher and without the tag of the usual build:
/// `sentence-transformers/all-MiniLM-L6-v2`, `bge-m3:latest`.
pub(crate) fn find(model: &str) -> Option<&'static Preset> {
    let name = model.rsplit('/').next().unwrap_or(model);
    let name = name.strip_suffix(":latest").unwrap_or(name);
    PRESETS
        .iter()
        .find(|preset| preset.model.eq_ignore_ascii_case(name))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::embed::endpoint::Endpoint;
    use crate::embed::testing::options;

    #[test]
    fn every_row_is_complete_named_once_and_makes_a_server_with_its_api() {
        let names: HashSet<String> = presets().map(|p| p.model.to_lowercase()).collect();
        assert_eq!(names.len(), presets().count());
        for preset in presets() {
            let day: Vec<&str> = preset.as_of.split('-').collect();
            assert!(matches!(*day, [y, m, d] if (y.len(), m.len(), d.len()) == (4, 2, 2)));
            assert!(preset.lengths.allow(preset.dimensions, preset.dimensions));
            let given = [
                ("api", preset.api),
                ("model", preset.model),
                ("url", preset.url.unwrap_or("http://x")),
            ];
            let endpoint = Endpoint::from_options(&options(&given), &[]).unwrap();
            assert_eq!(endpoint.dimensions, preset.dimensions, "{}", preset.model);
            assert_eq!(endpoint.max_input_tokens, preset.max_input_tokens);
            assert_eq!(endpoint.max_batch_tokens, preset.max_batch_tokens);
            assert_eq!(endpoint.document_prefix, preset.document_prefix);
            let price = endpoint.price_per_million_tokens;
            assert_eq!(price, preset.price_per_million_tokens);
        }
    }

    #[test]
    fn a_model_is_known_without_publisher_tag_and_case() {
        for (name, model) in [
            ("openai/text-embedding-3-small", "text-embedding-3-small"),
            ("models/gemini-embedding-001", "gemini-embedding-001"),
            ("sentence-transformers/all-MiniLM-L6-v2", "all-minilm-l6-v2"),
            ("nomic-embed-text:latest", "nomic-embed-text"),
            ("BAAI/bge-m3", "bge-m3"),
        ] {
            assert_eq!(find(name).map(|preset| preset.model), Some(model));
        }
        for unknown in ["", "/", "mxbai-embed-large:335m", "text-embedding-3"] {
            assert_eq!(find(unknown), None, "{unknown}");
        }
    }

    #[test]
    fn lengths_say_what_they_allow() {
        let one_of = Lengths::OneOf(&[256, 512]);
        assert!(one_of.allow(512, 256) && !one_of.allow(512, 300));
        assert!(one_of.hint(512).ends_with("one of 256, 512."));
        assert!(Lengths::From(128).allow(3_072, 768) && !Lengths::From(128).allow(3_072, 127));
        assert!(!Lengths::Fixed.allow(384, 383));
    }
}
