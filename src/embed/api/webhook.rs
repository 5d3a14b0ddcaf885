//! Events of hooks: signed letters to a receiver of the user's own. No text is embedded by it; what is
//! sent, and how it is signed, is in [`crate::embed::webhook`].

use super::{Api, KeyHeader, Wire, said};
use crate::embed::given::Given;
use crate::embed::options::{OptionError, OptionErrorKind};
use crate::embed::reply::Reply;

pub(crate) static API: Api = Api {
    name: "webhook",
    url: None,
    example_url: "https://models.example.com",
    example_model: "",
    max_batch_inputs: 1,
    max_batch_tokens: None,
    max_input_tokens: 1,
    token_share: 100,
    options: &[],
    wire: Some(Wire {
        key: KeyHeader::Bearer,
        url: |endpoint| endpoint.url.clone(),
        body: |_| Vec::new(),
        own_members: &[],
        encoding_member: None,
        echoes: false,
        read: |_| Ok(Reply::default()),
        said: said::common,
    }),
};

/// Options that say how texts are embedded.
const OF_EMBEDDINGS: &[&str] = &[
    "model",
    "dimensions",
    "max_batch_inputs",
    "max_batch_tokens",
    "max_input_tokens",
    "tokens_per_minute",
    "encoding",
    "normalize",
    "send_dimensions",
    "query_prefix",
    "document_prefix",
    "extra_body",
    "price_per_million_tokens",
    "monthly_budget",
    "currency",
];

/// Refuses the options of a server that embeds.
pub(crate) fn require_own_options(given: &Given) -> Result<(), OptionError> {
    let foreign = OF_EMBEDDINGS.iter().find(|name| given.text(name).is_some());
    foreign.map_or(Ok(()), |name| {
        Err(OptionError::new(
            OptionErrorKind::NotAllowed,
            format!("option \"{name}\" is for servers that embed, not for api \"webhook\""),
        )
        .hint("Drop the option."))
    })
}
