//! How many tokens a text would have cost that was not sent, by what the provider has counted of those that were.
//!
//! It never counts a text once there are answers to go by: a count takes as long as storing the vector, and the
//! provider's tokenizer may be another one.

use std::cell::Cell;

use super::tokens::estimate_tokens;

/// Texts that are counted by OpenAI's tokenizer where nothing has been sent yet.
const COUNTED: u32 = 64;
/// Bytes of the past that count: as many texts as follow a change of their kind within minutes.
const PAST: f64 = 1_000_000.0;

/// Tokens and bytes of texts so far.
pub struct TokenRate {
    /// What is asked costs nothing and has no tokens.
    free: bool,
    tokens: Cell<f64>,
    bytes: Cell<f64>,
    /// Texts that were counted here; `None`: there are answers.
    counted: Cell<Option<u32>>,
}

impl TokenRate {
    /// `free`: all texts have 0 tokens.
    pub fn new(free: bool) -> TokenRate {
        TokenRate {
            free,
            tokens: Cell::new(0.0),
            bytes: Cell::new(0.0),
            counted: Cell::new(Some(0)),
        }
    }

    /// An answer to texts of so many bytes has said how many tokens they have.
    pub fn heard(&self, tokens: u64, bytes: usize) {
        if self.free || tokens == 0 || bytes == 0 {
            return;
        }
        if self.counted.take().is_some() {
            self.tokens.set(0.0);
            self.bytes.set(0.0);
        }
        self.note(tokens as f64, bytes as f64);
    }

    /// The tokens of a text.
    pub fn of(&self, text: &str) -> u64 {
        match self.counted.get() {
            Some(counted) if counted < COUNTED && !self.free => {
                let tokens = estimate_tokens(text);
                self.note(tokens as f64, text.len() as f64);
                self.counted.set(Some(counted + 1));
                tokens
            }
            _ => self.of_bytes(text.len()),
        }
    }

    fn of_bytes(&self, bytes: usize) -> u64 {
        let known = self.bytes.get();
        if self.free || known == 0.0 {
            return 0;
        }
        (bytes as f64 * self.tokens.get() / known).round() as u64
    }

    fn note(&self, tokens: f64, bytes: f64) {
        let (tokens, bytes) = (self.tokens.get() + tokens, self.bytes.get() + bytes);
        let kept = if bytes > PAST { 0.5 } else { 1.0 };
        self.tokens.set(tokens * kept);
        self.bytes.set(bytes * kept);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn before_the_first_answer_texts_are_counted_and_after_it_the_provider_is_believed() {
        let rate = TokenRate::new(false);
        assert_eq!(rate.of("hello world"), 2);
        rate.heard(300, 1_000);
        assert_eq!(rate.of("hello world"), 3);
        assert_eq!(rate.of(&"x".repeat(100)), 30);
    }

    #[test]
    fn what_is_sent_now_counts_more_than_what_was_sent_long_ago() {
        let rate = TokenRate::new(false);
        rate.heard(1_000_000, 2_000_000);
        for _ in 0..20 {
            rate.heard(100_000, 1_000_000);
        }
        assert_eq!(rate.of(&"x".repeat(1_000)), 100);
    }

    #[test]
    fn long_runs_without_an_answer_are_not_counted_one_by_one() {
        let rate = TokenRate::new(false);
        for _ in 0..COUNTED {
            assert_eq!(rate.of("hello world"), 2);
        }
        let counts = |text: &str| rate.of(text) == estimate_tokens(text);
        assert!(counts("hello world") && !counts("antidisestablishmentarianism of a kind"));
    }

    #[test]
    fn what_costs_nothing_has_no_tokens() {
        let rate = TokenRate::new(true);
        rate.heard(5, 10);
        assert_eq!(rate.of("hello world"), 0);
    }
}
