//! What becomes of a text that a model does not take in one piece.
//!
//! It never decides how long a text is for the provider: tokens are estimated, and what is refused all the same is cut
//! again ([`Part::cut_again`]).

use std::ops::Range;

use super::endpoint::Endpoint;
use super::parts;
use super::tokens::estimate_tokens;

/// `long_text` of a pipeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Its beginning is embedded.
    Truncate,
    /// The mean of its parts' vectors.
    Mean,
    /// A vector for each part.
    Chunks,
}

/// Tokens of a chunk where nothing else is said: small enough to be about one thing, large enough to say it. Within the
/// 256 to 512 that comparisons of retrieval find best (Wang et al., "Searching for Best Practices in Retrieval-Augmented
/// Generation", EMNLP 2024).
pub const CHUNK_TOKENS: u64 = 512;

/// What a part has of the tokens that it may have, on average.
const USUAL: f64 = 0.65;

/// How often a part that is refused as too long is cut again: the last is a sixty-fourth of the first.
const MOST_CUTS: u32 = 6;

impl Mode {
    pub fn find(name: &str) -> Option<Mode> {
        match name {
            "truncate" => Some(Mode::Truncate),
            "mean" => Some(Mode::Mean),
            "chunks" => Some(Mode::Chunks),
            _ => None,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Mode::Truncate => "truncate",
            Mode::Mean => "mean",
            Mode::Chunks => "chunks",
        }
    }
}

/// How long texts of one pipeline are treated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LongText {
    pub mode: Mode,
    /// Estimated tokens of one input; `None`: any number.
    most: Option<u64>,
}

/// One input that a text comes to.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Part {
    pub text: String,
    /// By which its vector is known.
    pub hash: Vec<u8>,
    /// Its first and last character in the text, counted from 1.
    pub from: i32,
    pub to: i32,
    /// Estimated, once somebody has asked.
    tokens: Option<u64>,
    /// Once it is there.
    pub vector: Option<Vec<f32>>,
    /// Something of the text is left out.
    pub cut: bool,
    /// How often it has been cut because it was refused.
    cuts: u32,
}

impl LongText {
    /// Each text is one input.
    pub const WHOLE: LongText = LongText {
        mode: Mode::Truncate,
        most: None,
    };

    /// `chunk_tokens`: of the pipeline, where it has chunks.
    pub fn new(mode: Mode, chunk_tokens: Option<u64>, endpoint: &Endpoint) -> LongText {
        let taken = endpoint.input_tokens();
        let most = match mode {
            Mode::Truncate | Mode::Mean => taken,
            Mode::Chunks => {
                let wanted = chunk_tokens.unwrap_or(CHUNK_TOKENS);
                Some(taken.map_or(wanted, |taken| wanted.min(taken)))
            }
        };
        LongText { mode, most }
    }

    /// What makes the vectors of a text others than those of the same text in one piece; `None` where it is short.
    pub fn mark(&self, text: &str) -> Option<String> {
        let most = self.most.filter(|most| text.len() as u64 > *most)?; // a token is a byte at the least
        Some(format!("{} {most}", self.mode.name()))
    }

    /// What is sent of a text, in however many inputs.
    pub fn sent<'a>(&self, text: &'a str) -> &'a str {
        match (self.mode, self.most) {
            (Mode::Truncate, Some(most)) => parts::beginning(text, most),
            _ => text,
        }
    }

    /// About how many inputs a text comes to of which so many tokens are sent.
    pub fn inputs(&self, tokens: u64) -> f64 {
        match self.most {
            Some(most) if self.mode != Mode::Truncate && tokens > most => {
                (tokens as f64 / (most as f64 * USUAL)).max(2.0)
            }
            _ => 1.0,
        }
    }

    /// Whether a row has a vector for each of its parts.
    pub fn has_chunks(&self) -> bool {
        self.mode == Mode::Chunks
    }

    /// Whether one input may not be enough for it.
    pub fn may_divide(&self, text: &str) -> bool {
        self.mark(text).is_some()
    }

    /// The inputs that `text` comes to; `None`: too many. `hash`: of the text; `hash_of` makes those of the parts.
    ///
    /// # Errors
    /// Those of `hash_of`.
    pub fn divide<E>(
        &self,
        text: String,
        hash: &[u8],
        hash_of: impl Fn(&str) -> Result<Vec<u8>, E>,
    ) -> Result<Option<Vec<Part>>, E> {
        let Some(most) = self.most else {
            return Ok(Some(vec![Part::of(text, hash.to_vec())]));
        };
        if self.mode == Mode::Truncate {
            let beginning = self.sent(&text);
            let cut = beginning.len() < text.len();
            let part = Part::of(beginning.to_owned(), hash.to_vec());
            return Ok(Some(vec![Part { cut, ..part }]));
        }
        let Ok(ranges) = parts::parts(&text, most) else {
            return Ok(None);
        };
        let mut divided = Vec::with_capacity(ranges.len());
        for (range, (from, to)) in characters(&text, &ranges) {
            let text = text[range].to_owned();
            let hash = hash_of(&text)?;
            divided.push(Part {
                from,
                to,
                ..Part::of(text, hash)
            });
        }
        Ok(Some(divided))
    }
}

/// Ranges of bytes, one after the other, and the numbers of their first and last characters.
fn characters<'a>(
    text: &'a str,
    ranges: &'a [Range<usize>],
) -> impl Iterator<Item = (Range<usize>, (i32, i32))> + 'a {
    let (mut byte, mut before) = (0, 0);
    ranges.iter().map(move |range| {
        let count = |range: Range<usize>| text[range].chars().count() as i32;
        let from = before + count(byte..range.start);
        let to = from + count(range.clone());
        (byte, before) = (range.end, to);
        (range.clone(), (from + 1, to))
    })
}

impl Part {
    /// A text that is one input, whatever its length.
    pub fn of(text: String, hash: Vec<u8>) -> Part {
        Part {
            from: 1,
            to: i32::try_from(text.chars().count()).unwrap_or(i32::MAX),
            text,
            hash,
            ..Part::default()
        }
    }

    pub fn tokens(&mut self) -> u64 {
        *self
            .tokens
            .get_or_insert_with(|| estimate_tokens(&self.text))
    }

    /// The provider has refused it as too long: what is to be sent instead, of three quarters of its tokens at first, then of
    /// a half. `None`: it has been cut often enough.
    pub fn cut_again(&mut self, mode: Mode) -> Option<Vec<Part>> {
        let tokens = self.tokens();
        if self.cuts == MOST_CUTS || tokens < 4 {
            return None;
        }
        let cuts = self.cuts + 1;
        let most = if cuts == 1 {
            tokens * 3 / 4
        } else {
            tokens / 2
        };
        if mode == Mode::Truncate {
            let text = parts::beginning(&self.text, most).to_owned();
            let part = Part::of(text, self.hash.clone());
            return Some(vec![Part {
                cut: true,
                cuts,
                ..part
            }]);
        }
        let ranges = parts::parts(&self.text, most).ok()?;
        let parts = characters(&self.text, &ranges).map(|(range, (from, to))| Part {
            // Its own hash is not to be had here, and nobody else has a text that was cut like this one.
            hash: [&self.hash[..], &from.to_be_bytes(), &to.to_be_bytes()].concat(),
            from: self.from - 1 + from,
            to: self.from - 1 + to,
            cuts,
            ..Part::of(self.text[range].to_owned(), Vec::new())
        });
        Some(parts.collect())
    }
}

/// The mean of the parts' vectors by their tokens, of length 1; the first one's where all cancel each other out. As in
/// OpenAI's cookbook, "Embedding texts that are longer than the model's maximum context length".
pub fn mean(parts: &mut [Part]) -> Vec<f32> {
    if let [part] = parts {
        return part.vector.take().unwrap_or_default();
    }
    let mut sum: Vec<f64> = Vec::new();
    for part in parts.iter_mut() {
        let weight = part.tokens() as f64;
        let vector = part.vector.as_deref().unwrap_or_default();
        sum.resize(vector.len().max(sum.len()), 0.0);
        for (sum, number) in sum.iter_mut().zip(vector) {
            *sum += weight * f64::from(*number);
        }
    }
    let length = sum.iter().map(|sum| sum * sum).sum::<f64>().sqrt();
    if length > 0.0 {
        return sum.iter().map(|sum| (sum / length) as f32).collect();
    }
    let first = parts.first_mut().and_then(|part| part.vector.take());
    first.unwrap_or_default()
}

#[cfg(test)]
#[path = "long_text_tests.rs"]
mod tests;
