//! Tokens and money of one pipeline: since the server started, and of this month beside the budgets.
//!
//! The worker alone writes here, or who looks at the tables for it. It is for those who watch: what is to be paid is in
//! recsync.usage, to the last digit.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::text::Text;

/// Why something did not have to be sent.
pub const REASONS: [&str; 3] = ["coalesced", "unchanged", "known"];

/// An amount of money. Zeroed memory is none.
#[repr(C)]
pub struct Amount(AtomicU64);

impl Amount {
    pub fn get(&self) -> f64 {
        f64::from_bits(self.0.load(Relaxed))
    }

    pub fn set(&self, amount: f64) {
        self.0.store(amount.to_bits(), Relaxed);
    }

    /// For the one process that adds to it.
    pub fn add(&self, amount: f64) {
        self.set(self.get() + amount);
    }
}

/// An amount that may be missing: `None` is kept as less than nothing.
#[repr(C)]
pub struct Budget(Amount);

impl Budget {
    pub fn get(&self) -> Option<f64> {
        Some(self.0.get()).filter(|amount| *amount >= 0.0)
    }

    pub fn set(&self, amount: Option<f64>) {
        self.0.set(amount.unwrap_or(-1.0));
    }
}

#[repr(C)]
pub struct Money {
    /// Of its server; empty: nobody has looked yet.
    pub currency: Text<32>,
    /// Of what was sent since the server started, for rows and for queries; what has no price costs nothing.
    pub cost: Amount,
    /// Requests and tokens of `embed` and `search`.
    pub queries: AtomicU64,
    pub query_tokens: AtomicU64,
    /// By [`REASONS`]: changes or texts, the tokens that they would have had, and what these would have cost.
    pub spared: [AtomicU64; REASONS.len()],
    pub spared_tokens: [AtomicU64; REASONS.len()],
    pub spared_cost: [Amount; REASONS.len()],
    pub month: Month,
    /// What it may spend in a month, and what its server may.
    pub budget: Budget,
    pub server_budget: Budget,
}

/// As of the last look at the ledger.
#[repr(C)]
pub struct Month {
    pub tokens: AtomicU64,
    pub cost: Amount,
    pub spared_tokens: AtomicU64,
    pub spared_cost: Amount,
    /// Of all pipelines of its server.
    pub server_cost: Amount,
}

impl Money {
    pub fn reset(&self) {
        self.currency.set("");
        self.cost.set(0.0);
        for number in [&self.queries, &self.query_tokens]
            .into_iter()
            .chain(&self.spared)
            .chain(&self.spared_tokens)
        {
            number.store(0, Relaxed);
        }
        self.spared_cost.iter().for_each(|amount| amount.set(0.0));
        self.month.reset();
        self.budget.set(None);
        self.server_budget.set(None);
    }
}

impl Month {
    fn reset(&self) {
        for number in [&self.tokens, &self.spared_tokens] {
            number.store(0, Relaxed);
        }
        for amount in [&self.cost, &self.spared_cost, &self.server_cost] {
            amount.set(0.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_amount_keeps_what_is_too_little_to_be_paid_and_a_budget_of_nothing_is_one() {
        let amount = Amount(AtomicU64::new(0));
        (0..1_000).for_each(|_| amount.add(2e-8));
        assert!((amount.get() - 2e-5).abs() < 1e-12);
        let budget = Budget(Amount(AtomicU64::new(0)));
        budget.set(Some(0.0));
        assert_eq!(budget.get(), Some(0.0));
        budget.set(None);
        assert_eq!(budget.get(), None);
    }
}
