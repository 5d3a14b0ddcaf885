//! How many tokens a text has, before a provider counts them.
//!
//! The tokenizer is OpenAI's `cl100k_base`: exact for the `text-embedding` models, near for others
//! (see `Api::token_share` for how near is enough). It is for keeping limits and for estimates of
//! cost; what was spent is what the provider says. It never judges a text too long by itself.
//!
//! Source: OpenAI, "How to count tokens with tiktoken".

/// More of a text is not looked at; no model takes as much in one input.
const MAX_COUNTED_BYTES: usize = 256 * 1024;

/// The number of tokens of `text` by `cl100k_base`. What a text has beyond 256 KiB counts at the
/// rate of the part before. The first call in a process takes some 40 ms and 13 MiB.
pub fn estimate_tokens(text: &str) -> u64 {
    let counted = text
        .get(..text.floor_char_boundary(MAX_COUNTED_BYTES))
        .unwrap_or(text);
    // A token has at least one byte, so that the number of bytes is always enough.
    let tokens = tiktoken::get_encoding("cl100k_base")
        .map_or(counted.len(), |encoding| encoding.count(counted));
    if counted.len() == text.len() {
        return tokens as u64;
    }
    (tokens as u64)
        .saturating_mul(text.len() as u64)
        .div_ceil(counted.len().max(1) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Source of the first three: https://cookbook.openai.com/examples/how_to_count_tokens_with_tiktoken,
    /// "Comparing encodings", taken 2026-11-23. All were counted by the crate tiktoken-rs 0.12.1,
    /// too.
    #[test]
    fn texts_of_several_scripts_have_the_tokens_that_openai_counts() {
        for (text, tokens) in [
            ("antidisestablishmentarianism", 6),
            ("2 + 2 = 4", 7),
            ("お誕生日おめでとう", 9),
            ("tiktoken is great!", 6),
            ("", 0),
            ("hello world", 2),
            ("🎉🎉🎉", 9),
            ("<|endoftext|>", 7),
        ] {
            assert_eq!(estimate_tokens(text), tokens, "{text:?}");
        }
    }

    #[test]
    fn no_text_has_more_tokens_than_bytes() {
        for text in [
            "Light running shoe for wet and rocky trails",
            "Легкая обувь для бега",
            "轻便跑鞋，适合潮湿的小径",
            "가벼운 러닝화",
            "أحذية جري خفيفة",
            "👩‍👩‍👧‍👦🏳️‍🌈",
            "fn main() { println!(\"{:?}\", x?); }\n\t\t",
            "SELECT * FROM t WHERE id = 1234567890",
            "\u{0}\u{7f}\u{200b}",
        ] {
            let tokens = estimate_tokens(text);
            assert!(
                0 < tokens && tokens <= text.len() as u64,
                "{text}: {tokens}"
            );
        }
    }

    #[test]
    fn scripts_differ_in_tokens_a_character_as_they_do_at_openai() {
        let per_character = |text: &str| estimate_tokens(text) as f64 / text.chars().count() as f64;
        assert!(per_character("Light running shoe for wet and rocky trails") < 0.3);
        assert!(per_character("轻便跑鞋，适合潮湿的小径") > 0.9);
        assert!(per_character("🎉🦄🧿🪬") >= 2.0);
    }

    #[test]
    fn a_huge_text_is_counted_by_its_start_and_in_little_time() {
        let part = "one two three ";
        let whole = part.repeat(1 << 20);
        let started = std::time::Instant::now();
        let tokens = estimate_tokens(&whole);
        assert!(started.elapsed() < std::time::Duration::from_secs(5));
        let wanted = 3.0 * f64::from(1 << 20);
        assert!((tokens as f64 - wanted).abs() < 0.01 * wanted, "{tokens}");
        for worst in ["a", " ", "é", "!"] {
            assert!(estimate_tokens(&worst.repeat(MAX_COUNTED_BYTES + 1)) > 0);
        }
    }
}
