//! A bill: what was sent for a pipeline by a server, and what did not have to be sent.
//!
//! It is figures only, and holds no text.

use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::rc::Rc;
use std::time::{Duration, Instant};

use crate::embed::endpoint::Endpoint;
use crate::embed::sent::Sent;

/// On whose account something goes, and at which price.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Payer {
    /// 0: none, the server was named itself.
    pub pipeline: i32,
    /// The pipeline's, whichever of its generations this is.
    pub account: i32,
    pub server: String,
    pub model: String,
    /// A decimal number; `None`: nobody knows it.
    pub price_per_million_tokens: Option<String>,
    pub currency: String,
}

impl Payer {
    pub fn new(pipeline: i32, account: i32, server: &str, endpoint: &Endpoint) -> Payer {
        Payer {
            pipeline,
            account,
            server: server.to_owned(),
            model: endpoint.model.clone(),
            price_per_million_tokens: endpoint
                .price_per_million_tokens
                .map(|price| price.to_string()),
            currency: endpoint.currency.clone(),
        }
    }

    /// What so many tokens cost; 0 where nobody knows.
    pub fn cost(&self, tokens: u64) -> f64 {
        let price = self.price_per_million_tokens.as_deref();
        let price: f64 = price.and_then(|price| price.parse().ok()).unwrap_or(0.0);
        price * tokens as f64 / 1e6
    }
}

/// Changes or texts, and the tokens that they would have cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spared {
    pub count: u64,
    pub tokens: u64,
}

impl Spared {
    pub fn add(&mut self, count: u64, tokens: u64) {
        self.count += count;
        self.tokens += tokens;
    }
}

/// What did not have to be sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Saved {
    /// Changes that came together with others of their row.
    pub coalesced: Spared,
    /// Texts that were those of their vectors.
    pub unchanged: Spared,
    /// Texts whose vector was known, or asked for by another row.
    pub known: Spared,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bill {
    pub sent: Sent,
    /// Requests among these that were made by `embed` and `search`.
    pub queries: u64,
    pub saved: Saved,
}

impl Bill {
    fn is_nothing(&self) -> bool {
        *self == Bill::default()
    }
}

impl std::ops::AddAssign for Bill {
    fn add_assign(&mut self, more: Bill) {
        self.sent += more.sent;
        self.queries += more.queries;
        for (to, from) in [
            (&mut self.saved.coalesced, more.saved.coalesced),
            (&mut self.saved.unchanged, more.saved.unchanged),
            (&mut self.saved.known, more.saved.known),
        ] {
            to.add(from.count, from.tokens);
        }
    }
}

/// Bills that are written together.
pub type Bills = Vec<(Payer, Bill)>;

/// Bills that are not written yet.
#[derive(Default)]
pub struct Open(HashMap<Rc<Payer>, (Instant, Bill)>);

impl Open {
    pub fn add(&mut self, payer: &Rc<Payer>, bill: Bill) {
        if bill.is_nothing() {
            return;
        }
        let entry = self.0.entry(Rc::clone(payer));
        entry.or_insert_with(|| (Instant::now(), Bill::default())).1 += bill;
    }

    /// Those that go with a store of a pipeline.
    pub fn take(&mut self, pipeline: i32) -> Bills {
        if self.0.is_empty() {
            return Bills::new();
        }
        self.take_if(|payer, _, _| payer.pipeline == pipeline)
    }

    /// Those that have waited for so long; and those of the worker's requests that no store will take along, as
    /// `is_waited_for` (pipeline) says. `hurries`: what was saved is not kept waiting, either.
    pub fn take_due(
        &mut self,
        age: Duration,
        hurries: bool,
        mut is_waited_for: impl FnMut(i32) -> bool,
    ) -> Bills {
        self.take_if(|payer, since, bill| {
            let now = hurries || bill.sent.requests > bill.queries;
            since.elapsed() >= age || now && !is_waited_for(payer.pipeline)
        })
    }

    fn take_if(&mut self, mut wanted: impl FnMut(&Payer, Instant, &Bill) -> bool) -> Bills {
        let taken = self
            .0
            .extract_if(|payer, (since, bill)| wanted(payer, *since, bill));
        taken
            .map(|(payer, (_, bill))| (Rc::unwrap_or_clone(payer), bill))
            .collect()
    }

    /// Bills that were not written after all.
    pub fn put_back(&mut self, bills: Bills) {
        for (payer, bill) in bills {
            self.add(&Rc::new(payer), bill);
        }
    }

    /// Since when the oldest waits.
    pub fn since(&self) -> Option<Instant> {
        self.0.values().map(|(since, _)| *since).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payer(pipeline: i32, price: &str) -> Rc<Payer> {
        Rc::new(Payer {
            pipeline,
            account: pipeline,
            server: "api".into(),
            model: "m".into(),
            price_per_million_tokens: Some(price.into()),
            currency: "USD".into(),
        })
    }

    fn bill(tokens: u64) -> Bill {
        let mut bill = Bill::default();
        bill.sent.tokens = tokens;
        bill.sent.requests = 1;
        bill
    }

    #[test]
    fn what_is_put_back_is_neither_lost_nor_doubled_and_prices_do_not_mix() {
        let mut open = Open::default();
        open.add(&payer(1, "2"), bill(5));
        open.add(&payer(1, "2"), bill(6));
        open.add(&payer(1, "3"), bill(7));
        open.add(&payer(2, "2"), bill(8));
        let taken = open.take(1);
        assert_eq!(taken.len(), 2);
        let tokens = |bills: &Bills| -> u64 { bills.iter().map(|(_, b)| b.sent.tokens).sum() };
        assert_eq!(tokens(&taken), 18);
        open.add(&payer(1, "2"), bill(1));
        open.put_back(taken);
        let cost = |bills: &Bills| -> f64 {
            let costs = bills.iter().map(|(payer, b)| payer.cost(b.sent.tokens));
            costs.sum()
        };
        let all = open.take_due(Duration::ZERO, false, |_| true);
        assert_eq!(tokens(&all), 27);
        assert!((cost(&all) - (20.0 * 2.0 + 7.0 * 3.0) / 1e6).abs() < 1e-12);
        assert!(open.take(1).is_empty() && open.since().is_none());
    }

    #[test]
    fn what_was_paid_for_is_written_at_once_where_no_store_will_and_what_was_saved_waits() {
        let mut open = Open::default();
        let mut saved = Bill::default();
        saved.saved.known.add(1, 5);
        let mut query = bill(5);
        query.queries = 1;
        open.add(&payer(1, "2"), bill(5));
        open.add(&payer(2, "2"), saved);
        open.add(&payer(3, "2"), query);
        let hour = Duration::from_secs(3_600);
        assert!(open.take_due(hour, true, |_| true).is_empty());
        let due = open.take_due(hour, false, |_| false);
        assert_eq!(due.len(), 1);
        assert_eq!(due[0].0.pipeline, 1);
        assert_eq!(open.take_due(hour, true, |_| false).len(), 2);
        assert!(open.since().is_none());
    }
}
