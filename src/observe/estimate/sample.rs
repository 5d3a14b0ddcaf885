//! How many tokens many texts have, by the number of their characters and the tokens of a few of them.
//!
//! It never keeps a text: of each that is counted only the two numbers are left.

use fastrand::Rng;

use crate::embed::long_text::LongText;
use crate::embed::tokens::estimate_tokens;

/// Texts whose tokens are counted: up to as many the number is exact. With 1,000 texts of a catalogue, whose tokens are
/// nearly in proportion to their characters, the rest is within a percent or two.
pub const SIZE: usize = 1_000;

/// For an error that is not exceeded 19 times out of 20, where errors are normal.
const CONFIDENCE: f64 = 1.96;

/// A random sample of texts that come one after the other (Vitter, Algorithm R, ACM TOMS 1985). The same texts in the
/// same order make the same sample.
pub struct Sample {
    texts: u64,
    characters: u64,
    bytes: u64,
    /// Characters and tokens of each, what is put before the text included, and the inputs that it comes to.
    counted: Vec<(f64, f64, f64)>,
    prefix: String,
    /// Its tokens.
    of_prefix: u64,
    long_text: LongText,
    rng: Rng,
}

/// A number of tokens, and by how much it may be wrong.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tokens {
    pub count: f64,
    pub error: f64,
}

impl Sample {
    /// `prefix` is put before each text that is sent, long texts are cut.
    pub fn new(prefix: &str, long_text: LongText) -> Sample {
        Sample {
            texts: 0,
            characters: 0,
            bytes: 0,
            counted: Vec::new(),
            prefix: prefix.to_owned(),
            of_prefix: match prefix {
                "" => 0, // the tokenizer takes its time to load
                prefix => estimate_tokens(prefix),
            },
            long_text,
            rng: Rng::with_seed(0),
        }
    }

    pub fn add(&mut self, text: &str) {
        self.texts += 1;
        let characters = text.chars().count() as u64;
        self.characters += characters;
        self.bytes += (self.prefix.len() + text.len()) as u64;
        let place = match self.counted.len() < SIZE {
            true => self.counted.len(),
            false => self.rng.u64(0..self.texts) as usize,
        };
        if place >= SIZE {
            return;
        }
        let size = characters as f64 + self.prefix.chars().count() as f64;
        let sent = self.long_text.sent(text);
        let tokens = estimate_tokens(&format!("{}{sent}", self.prefix));
        let inputs = self.long_text.inputs(tokens.saturating_sub(self.of_prefix));
        // It is put before each of them.
        let tokens = tokens as f64 + (inputs - 1.0) * self.of_prefix as f64;
        match self.counted.get_mut(place) {
            Some(counted) => *counted = (size, tokens, inputs),
            None => self.counted.push((size, tokens, inputs)),
        }
    }

    /// About how many inputs all of them come to.
    pub fn inputs(&self) -> f64 {
        let counted: f64 = self.counted.iter().map(|(.., inputs)| inputs).sum();
        counted * self.texts as f64 / self.counted.len().max(1) as f64
    }

    pub fn texts(&self) -> u64 {
        self.texts
    }

    pub fn characters(&self) -> u64 {
        self.characters
    }

    /// Of all that is sent, prefixes included.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The ratio estimator: tokens a character of the sample, times all characters (Cochran, Sampling Techniques, ch. 6).
    pub fn tokens(&self) -> Tokens {
        let (characters, tokens) = self
            .counted
            .iter()
            .fold((0.0, 0.0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
        let (all, of) = (self.texts as f64, self.counted.len() as f64);
        if self.texts as usize <= self.counted.len() {
            return Tokens {
                count: tokens,
                error: 0.0,
            };
        }
        let sent = self.characters as f64 + all * self.prefix.chars().count() as f64;
        let ratio = tokens / characters;
        let squares: f64 = self
            .counted
            .iter()
            .map(|(characters, tokens, _)| (tokens - ratio * characters).powi(2))
            .sum();
        let deviation = (squares / (of - 1.0) / of * (1.0 - of / all)).sqrt();
        Tokens {
            count: ratio * sent,
            error: CONFIDENCE * all * deviation,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(rng: &mut Rng) -> String {
        let words = [
            "shoe",
            "waterproof",
            "für",
            "Bergwetter",
            "轻便跑鞋",
            "42",
            "—",
        ];
        let count = rng.usize(1..60);
        let words = (0..count).map(|_| words[rng.usize(0..words.len())]);
        words.collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn few_texts_are_counted_exactly_with_what_is_put_before_them() {
        let mut sample = Sample::new("passage: ", LongText::WHOLE);
        for text in ["hello world", "tiktoken is great!"] {
            sample.add(text);
        }
        let sent = ["passage: hello world", "passage: tiktoken is great!"];
        let tokens: u64 = sent.map(estimate_tokens).iter().sum();
        assert_eq!((sample.texts(), sample.characters()), (2, 29));
        assert_eq!(sample.bytes(), 29 + 18);
        assert_eq!(
            sample.tokens(),
            Tokens {
                count: tokens as f64,
                error: 0.0
            }
        );
    }

    #[test]
    fn many_texts_have_the_tokens_that_are_said_within_the_error_that_is_said() {
        let (mut within, mut errors) = (0, Vec::new());
        for seed in 0..20 {
            let mut rng = Rng::with_seed(seed);
            let mut sample = Sample::new("", LongText::WHOLE);
            sample.rng = Rng::with_seed(seed);
            let mut all = 0;
            for _ in 0..5_000 {
                let text = text(&mut rng);
                all += estimate_tokens(&text);
                sample.add(&text);
            }
            let tokens = sample.tokens();
            assert_eq!(sample.counted.len(), SIZE);
            within += i32::from((tokens.count - all as f64).abs() <= tokens.error);
            errors.push(tokens.error / all as f64);
        }
        assert!(within >= 17, "{within} of 20");
        assert!(
            errors.iter().all(|error| (0.001..0.03).contains(error)),
            "{errors:?}"
        );
    }

    #[test]
    fn nothing_has_no_tokens() {
        assert_eq!(Sample::new("x", LongText::WHOLE).tokens().count, 0.0);
    }
}
