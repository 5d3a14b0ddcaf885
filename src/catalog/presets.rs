//! presets: the models that are known by name, as SQL shows them.

use pgrx::prelude::*;

use crate::embed::presets;

#[pg_extern(immutable, parallel_safe)]
#[allow(clippy::type_complexity)]
fn presets() -> TableIterator<
    'static,
    (
        name!(model, String),
        name!(api, String),
        name!(url, Option<String>),
        name!(dimensions, i32),
        name!(shortens, bool),
        name!(max_input_tokens, i64),
        name!(max_batch_inputs, i32),
        name!(max_batch_tokens, Option<i64>),
        name!(query_prefix, String),
        name!(document_prefix, String),
        name!(price_per_million_tokens, Option<f64>),
        name!(as_of, Option<pgrx::datum::Date>),
    ),
> {
    TableIterator::new(presets::presets().map(|preset| {
        (
            preset.model.to_owned(),
            preset.api.to_owned(),
            preset.url.map(str::to_owned),
            preset.dimensions as i32,
            preset.shortens(),
            preset.max_input_tokens as i64,
            preset.max_batch_inputs as i32,
            preset.max_batch_tokens.map(|tokens| tokens as i64),
            preset.query_prefix.to_owned(),
            preset.document_prefix.to_owned(),
            preset.price_per_million_tokens,
            preset.as_of.parse().ok(),
        )
    }))
}

extension_sql!(
    r#"
COMMENT ON FUNCTION presets() IS 'The rows of recsync.presets.';
CREATE VIEW presets AS SELECT * FROM presets();
COMMENT ON VIEW presets IS 'Models that a server need only name: API, URL, dimensions (shortens: fewer on request), limits, prefixes, price in US dollars where the vendor says it, and the date of what the row was taken from. Every value has its server option.';
GRANT SELECT ON presets TO PUBLIC;
"#,
    name = "presets_view",
    requires = [presets]
);
