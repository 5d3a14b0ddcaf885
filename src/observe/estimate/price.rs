//! What the rows of a table come to, quickly: by a sample of its pages. estimate reads all of them instead.
//!
//! It never takes longer because the table is larger, and sends nothing.

use pgrx::pg_sys;
use std::time::Duration;

use super::sample::Sample;
use super::size::Limits;
use super::{PLACES, limits};
use crate::catalog::names::select_one;
use crate::catalog::rights::As;
use crate::dispatch::backfill::size::Pages;
use crate::embed::endpoint::Endpoint;
use crate::embed::long_text::LongText;
use crate::error::Result;
use pgrx::prelude::*;

/// Pages in which rows are counted, and in which texts are made of them.
const COUNTED: i64 = 1_000;
const READ: i64 = 100;
/// Texts that are read at the most, and bytes of them.
const TEXTS: i64 = 1_000;
const BYTES: u64 = 2 << 20;

/// What is to be embedded.
pub struct Work<'a> {
    pub source: pg_sys::Oid,
    pub owner: pg_sys::Oid,
    /// As in a FROM.
    pub rows_of: &'a str,
    /// SQL over a row `s`.
    pub content: &'a str,
    pub row_filter: Option<&'a str>,
    pub endpoint: &'a Endpoint,
    pub long_text: LongText,
}

/// About what it comes to.
pub struct Price {
    pub rows: i64,
    tokens: f64,
    cost: Option<String>,
    duration: Duration,
}

impl Work<'_> {
    /// `None` where there are no more than `most` rows.
    pub fn price_above(&self, most: i64) -> Result<Option<Price>> {
        let pages = Pages::of(self.source)?;
        if !pages.may_hold_more_than(most) {
            return Ok(None);
        }
        let filter = self.row_filter.unwrap_or("true");
        let (some, times) = pages.some_of(self.rows_of, COUNTED);
        let _as = As::owner(self.owner);
        let counted = format!("SELECT pg_catalog.count(*) FROM {some} WHERE {filter}");
        let counted = select_one::<i64>(&counted, &[])?.unwrap_or(0);
        let rows = (counted as f64 * times).round() as i64;
        if rows <= most {
            return Ok(None);
        }
        let (some, _) = pages.some_of(self.rows_of, READ);
        let texts = format!(
            "SELECT {} FROM {some} WHERE {filter} LIMIT {TEXTS}",
            self.content
        );
        let (sample, read) = self.read(&texts)?;
        let times = rows as f64 / read.max(1) as f64;
        let tokens = sample.tokens().count * times;
        let texts = sample.inputs() * times;
        let limits: Limits = limits(self.endpoint);
        let bytes = (sample.bytes() as f64 * times) as u64;
        let price = self.endpoint.price_per_million_tokens;
        Ok(Some(Price {
            rows,
            tokens,
            cost: price.map(|price| {
                let cost = format!("{:.PLACES$}", price * tokens / 1e6);
                format!("{} {}", shortened(&cost), self.endpoint.currency)
            }),
            duration: limits.duration(texts as u64, tokens, bytes, self.endpoint.dimensions as u64),
        }))
    }

    /// Texts, and how many rows they are of.
    fn read(&self, texts: &str) -> Result<(Sample, u64)> {
        let (mut sample, mut read) = (
            Sample::new(&self.endpoint.document_prefix, self.long_text),
            0,
        );
        Spi::connect(|client| {
            let mut cursor = client.try_open_cursor(texts, &[])?;
            while sample.bytes() < BYTES {
                let rows = cursor.fetch(64)?;
                if rows.is_empty() {
                    break;
                }
                for row in rows {
                    read += 1;
                    if let Some(text) = row.get::<String>(1)?.filter(|text| !text.is_empty()) {
                        sample.add(&text);
                    }
                }
            }
            Ok((sample, read))
        })
    }
}

impl Price {
    /// For a person: `about 200000 rows, 3000000 tokens, 0.06 USD and 40 minutes`.
    pub fn text(&self) -> String {
        let cost = self.cost.as_ref();
        let cost = cost.map_or("no known price".to_owned(), Clone::clone);
        let (rows, tokens) = (self.rows, self.tokens.round());
        let seconds = self.duration.as_secs();
        let time = match seconds {
            0..120 => format!("{} s", seconds.max(1)),
            120..7_200 => format!("{} min", seconds.div_ceil(60)),
            _ => format!("{} h", seconds.div_ceil(3_600)),
        };
        format!("about {rows} rows, {tokens} tokens, {cost}, {time}")
    }
}

/// Without the zeros at the end; two places stay.
fn shortened(cost: &str) -> &str {
    let places = cost.find('.').map_or(cost.len(), |dot| dot + 3);
    let end = cost.trim_end_matches('0').len().max(places);
    &cost[..end.min(cost.len())]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn money_has_two_places_or_as_many_as_it_needs() {
        for (cost, short) in [
            ("12.000000", "12.00"),
            ("0.060000", "0.06"),
            ("0.004210", "0.00421"),
            ("0.000000", "0.00"),
        ] {
            assert_eq!(shortened(cost), short);
        }
    }

    #[test]
    fn a_price_is_said_in_one_line() {
        let mut price = Price {
            rows: 200_000,
            tokens: 3_000_000.4,
            cost: Some("0.06 USD".into()),
            duration: Duration::from_secs(2_400),
        };
        let text = "about 200000 rows, 3000000 tokens, 0.06 USD, 40 min";
        assert_eq!(price.text(), text);
        price.cost = None;
        price.duration = Duration::from_millis(300);
        let text = "about 200000 rows, 3000000 tokens, no known price, 1 s";
        assert_eq!(price.text(), text);
    }
}
