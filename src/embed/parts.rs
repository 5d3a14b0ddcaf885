//! A long text in parts: at the bounds of its sentences (Unicode, UAX #29), of its words where a sentence is too long,
//! and never within a character.
//!
//! Where it is cut depends on what stands near, not on how far it is from the start: so an edit moves the bounds around
//! it, and those of no other parts. It never leaves out anything but white space at the ends of a part.
//!
//! 1. Bounds are compared by what they end (a paragraph before a sentence before a word), then by a hash of what follows.
//! 2. A bound that is the best of all that are nearer than half of the most that a part may have is one of two parts
//!    (the local maximum chunking of Bjørner, Blass, Gurevich, "Content-dependent chunking for differential
//!    compression, the local maximum approach", J. Comput. Syst. Sci. 2010).
//! 3. What is still too long is cut at the best bound of its middle third, again and again.

use std::cmp::Reverse;
use std::iter::once;
use std::ops::Range;

use unicode_segmentation::UnicodeSegmentation;

use super::tokens::estimate_tokens;

/// Parts that a text may have, and tokens. A text of so many is a book; each part is a request's input, all are in
/// memory together, and counting as many takes a second.
pub const MOST_PARTS: usize = 2_048;
pub const MOST_TOKENS: u64 = 1_048_576;

/// What it takes to count the tokens of a text at once: beyond this it is counted sentence by sentence.
const COUNTED_AT_ONCE: usize = 64 * 1024;

/// A text is longer than is worth embedding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooLong;

/// What a bound ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum End {
    Word,
    Sentence,
    Paragraph,
}

/// A sentence or a word, with the white space after it.
#[derive(Clone, Copy, Debug)]
struct Unit {
    end: usize,
    tokens: u64,
    ends: End,
}

/// The better of two bounds has the lower one.
type Rank = (Reverse<End>, u64);

/// The parts of a text, each of `most` estimated tokens or fewer, white space at their ends left out. A text that fits
/// is one part, as it is.
pub fn parts(text: &str, most: u64) -> Result<Vec<Range<usize>>, TooLong> {
    if fits(text, most) {
        return Ok(once(0..text.len()).collect());
    }
    let units = units(text, most)?;
    if units.iter().map(|unit| unit.tokens).sum::<u64>() <= most {
        return Ok(once(0..text.len()).collect());
    }
    let cut = Cut::new(text, &units, most);
    let mut bounds = cut.bounds();
    bounds.push(units.len());
    let mut parts = Vec::new();
    let mut start = 0;
    for bound in bounds {
        let end = units[bound - 1].end;
        parts.extend(trimmed(text, start..end));
        start = end;
    }
    match parts.len() {
        0 => Ok(once(0..start_of(text, most)).collect()), // nothing but white space
        1..=MOST_PARTS => Ok(parts),
        _ => Err(TooLong),
    }
}

/// The beginning of a text that has `most` estimated tokens or fewer: whole sentences, or words where the last
/// sentence is a long one.
pub fn beginning(text: &str, most: u64) -> &str {
    if fits(text, most) {
        return text;
    }
    let (mut end, mut tokens) = (0, 0);
    for sentence in text.split_sentence_bounds() {
        let more = estimate_tokens(sentence);
        if tokens + more > most {
            // What is lost of it is less than a quarter of all that fits.
            if tokens * 4 < most * 3 {
                end += words_that_fit(sentence, most - tokens);
            }
            break;
        }
        (end, tokens) = (end + sentence.len(), tokens + more);
    }
    if end == text.len() {
        return text;
    }
    match text[..end].trim_end() {
        "" => &text[..start_of(text, most)],
        trimmed => trimmed,
    }
}

fn words_that_fit(sentence: &str, most: u64) -> usize {
    let (mut end, mut tokens) = (0, 0);
    for word in sentence.split_word_bounds() {
        tokens += estimate_tokens(word);
        if tokens > most {
            break;
        }
        end += word.len();
    }
    end
}

/// As many bytes as tokens, to the end of a character: no more tokens, since each has a byte at the least.
fn start_of(text: &str, most: u64) -> usize {
    let bytes = usize::try_from(most).unwrap_or(usize::MAX).min(text.len());
    match text.floor_char_boundary(bytes) {
        0 => text.chars().next().map_or(0, char::len_utf8),
        end => end,
    }
}

/// Whether the text is surely not too long. Counting is left out where bytes are few enough, or so many that the text
/// has to be looked at piece by piece in any case.
fn fits(text: &str, most: u64) -> bool {
    text.len() as u64 <= most || text.len() <= COUNTED_AT_ONCE && estimate_tokens(text) <= most
}

/// The sentences of a text; of those that are too long the words, and of these pieces.
fn units(text: &str, most: u64) -> Result<Vec<Unit>, TooLong> {
    let mut units: Vec<Unit> = Vec::new();
    let (mut start, mut all) = (0, 0);
    for sentence in text.split_sentence_bounds() {
        let end = start + sentence.len();
        let tokens = estimate_tokens(sentence);
        all += tokens;
        if all > MOST_TOKENS {
            return Err(TooLong);
        }
        let blank = sentence.trim().is_empty();
        match units.last_mut() {
            // An empty line.
            Some(last) if blank && last.tokens + tokens <= most => {
                last.end = end;
                last.tokens += tokens;
                if sentence.contains(['\n', '\r', '\u{2029}']) {
                    last.ends = End::Paragraph;
                }
            }
            _ if tokens <= most => units.push(Unit {
                end,
                tokens,
                ends: End::Sentence,
            }),
            _ => {
                words(sentence, start, most, &mut units);
                if let Some(last) = units.last_mut() {
                    last.ends = End::Sentence;
                }
            }
        }
        start = end;
    }
    Ok(units)
}

fn words(sentence: &str, mut start: usize, most: u64, units: &mut Vec<Unit>) {
    for word in sentence.split_word_bounds() {
        let is_short = fits(word, most);
        let mut left = word;
        while !left.is_empty() {
            let length = match is_short {
                true => left.len(),
                false => start_of(left, most),
            };
            let (piece, rest) = left.split_at(length);
            start += length;
            units.push(Unit {
                end: start,
                tokens: estimate_tokens(piece),
                ends: End::Word,
            });
            left = rest;
        }
    }
}

fn trimmed(text: &str, part: Range<usize>) -> Option<Range<usize>> {
    let whole = &text[part.clone()];
    let start = part.start + (whole.len() - whole.trim_start().len());
    let end = part.start + whole.trim_end().len();
    (start < end).then_some(start..end)
}

/// Where units are cut apart: `bound` n is the one before unit n.
struct Cut {
    most: u64,
    /// Tokens before each bound, and after the last unit.
    before: Vec<u64>,
    ranks: Vec<Rank>,
}

impl Cut {
    fn new(text: &str, units: &[Unit], most: u64) -> Cut {
        let mut before = vec![0];
        let mut ranks = vec![(Reverse(End::Word), u64::MAX)];
        let mut all = 0;
        for pair in units.windows(2) {
            all += pair[0].tokens;
            before.push(all);
            let next = &text[pair[0].end..pair[1].end];
            ranks.push((Reverse(pair[0].ends), fnv1a(next.as_bytes())));
        }
        before.push(all + units.last().map_or(0, |last| last.tokens));
        Cut {
            most,
            before,
            ranks,
        }
    }

    fn bounds(&self) -> Vec<usize> {
        let last = self.ranks.len();
        let mut bounds = Vec::new();
        let mut first = 0;
        for bound in (1..last).filter(|bound| self.is_best_around(*bound)) {
            self.divide(first, bound, &mut bounds);
            bounds.push(bound);
            first = bound;
        }
        self.divide(first, last, &mut bounds);
        bounds
    }

    /// Nothing nearer than half of a part is better, and neither end of the text is as near. Neighbours are asked
    /// first, so that nearly all bounds are done with at once.
    fn is_best_around(&self, bound: usize) -> bool {
        let (at, near) = (self.before[bound], self.most.div_ceil(2));
        let last = self.ranks.len();
        if at < near || self.before[last] - at < near {
            return false;
        }
        for distance in 1.. {
            let left = bound
                .checked_sub(distance)
                .filter(|left| *left > 0 && at - self.before[*left] < near);
            let right = Some(bound + distance)
                .filter(|right| *right < last && self.before[*right] - at < near);
            if left.is_none() && right.is_none() {
                return true;
            }
            if left.is_some_and(|left| self.ranks[left] <= self.ranks[bound])
                || right.is_some_and(|right| self.ranks[right] < self.ranks[bound])
            {
                return false;
            }
        }
        true
    }

    /// Adds the bounds between `first` and `last` that make parts which are not too long.
    fn divide(&self, first: usize, last: usize, bounds: &mut Vec<usize>) {
        let (start, end) = (self.before[first], self.before[last]);
        if end - start <= self.most || last - first < 2 {
            return;
        }
        let third = (end - start) / 3;
        let from = self.before[first + 1..last].partition_point(|at| *at < start + third);
        let to = self.before[first + 1..last].partition_point(|at| *at <= end - third);
        let (from, to) = (first + 1 + from, first + 1 + to);
        let middle = match (from..to).min_by_key(|bound| self.ranks[*bound]) {
            Some(best) => best,
            // A unit covers all of the middle: beside it.
            None => from.clamp(first + 1, last - 1),
        };
        self.divide(first, middle, bounds);
        bounds.push(middle);
        self.divide(middle, last, bounds);
    }
}

/// FNV-1a, 64 bit (draft-eastlake-fnv): the same on every machine, for ever.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

#[cfg(test)]
#[path = "parts_tests.rs"]
mod tests;
