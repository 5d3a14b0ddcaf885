//! Embeddings without a model or a network: hashed words and character trigrams.
//!
//! For tests, trials and databases that nothing may leave. Texts that share words, or parts of
//! words, are near each other; it knows nothing of meaning. It never depends on the machine: the
//! same text has the same 384 numbers, bit for bit, in every version that has this page.
//!
//! 1. Of a text longer than 1 MiB only the first 1 MiB is read (cut before a split character).
//! 2. Each character is lower-cased (Unicode); what is not alphanumeric separates words.
//! 3. Features are each word as `w:` + word, and each window of three characters of `^` + word +
//!    `$` as `t:` + window. A text without words has the one feature `empty`.
//! 4. A feature's hash is FNV-1a (64 bit), its position hash mod 384, its sign + if the highest
//!    bit is 0, − otherwise.
//! 5. A feature that occurs n times adds sign × √n at its position, in order of hash.
//!    Should everything cancel out, the feature `empty` is added.
//! 6. The sum (float8) is divided by its L2 norm and rounded to float4.
//!
//! Sources: feature hashing with signs, Weinberger et al. 2009, "Feature Hashing for Large Scale
//! Multitask Learning"; character n-grams with word boundaries, Bojanowski et al. 2017,
//! "Enriching Word Vectors with Subword Information"; FNV-1a, draft-eastlake-fnv.

use super::api::Api;

/// No request, no limits but those of memory.
pub(crate) static API: Api = Api {
    name: "builtin",
    url: None,
    example_url: "",
    example_model: "builtin",
    max_batch_inputs: 2_048,
    max_batch_tokens: None,
    max_input_tokens: 8_191,
    token_share: 100,
    options: &[],
    wire: None,
};

/// Length of a built-in embedding.
pub const DIMENSIONS: usize = 384;

/// More of a text would take memory without changing the vector much.
const MAX_TEXT_BYTES: usize = 1024 * 1024;
/// What stands for a text without words.
const EMPTY: &str = "empty";

/// The embedding of a text: 384 numbers of L2 norm 1, never all zero.
pub fn embed(text: &str) -> Vec<f32> {
    let mut sums = [0.0; DIMENSIONS];
    let mut hashes = features(start_of(text));
    hashes.sort_unstable();
    for same in hashes.chunk_by(|a, b| a == b) {
        if let Some(&hash) = same.first() {
            add(&mut sums, hash, (same.len() as f64).sqrt());
        }
    }
    if sums.iter().all(|&sum| sum == 0.0) {
        add(&mut sums, hash(EMPTY.chars()), 1.0);
    }
    let norm = sums.iter().map(|sum| sum * sum).sum::<f64>().sqrt();
    sums.iter().map(|sum| (sum / norm) as f32).collect()
}

fn start_of(text: &str) -> &str {
    text.get(..text.floor_char_boundary(MAX_TEXT_BYTES))
        .unwrap_or(text)
}

/// Hashes of the words and of their trigrams.
fn features(text: &str) -> Vec<u64> {
    let mut hashes = Vec::new();
    let mut word = Vec::new();
    let lower = text.chars().flat_map(char::to_lowercase);
    for c in lower.chain([' ']) {
        if c.is_alphanumeric() {
            word.push(c);
        } else if !word.is_empty() {
            hashes.push(hash("w:".chars().chain(word.iter().copied())));
            word.insert(0, '^');
            word.push('$');
            let windows = word.windows(3);
            hashes.extend(windows.map(|w| hash("t:".chars().chain(w.iter().copied()))));
            word.clear();
        }
    }
    hashes
}

/// FNV-1a over the UTF-8 of characters.
fn hash(characters: impl Iterator<Item = char>) -> u64 {
    let mut buffer = [0; 4];
    characters.fold(0xcbf2_9ce4_8422_2325, |hash, c| {
        c.encode_utf8(&mut buffer).bytes().fold(hash, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        })
    })
}

fn add(sums: &mut [f64; DIMENSIONS], hash: u64, amount: f64) {
    let sign = if hash >> 63 == 0 { 1.0 } else { -1.0 };
    if let Some(sum) = sums.get_mut((hash % DIMENSIONS as u64) as usize) {
        *sum += sign * amount;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn similarity(a: &str, b: &str) -> f32 {
        embed(a).iter().zip(embed(b)).map(|(a, b)| a * b).sum()
    }

    fn non_zero(text: &str) -> Vec<(usize, u32)> {
        let vector = embed(text);
        let numbers = vector.iter().enumerate();
        numbers
            .filter(|(_, number)| **number != 0.0)
            .map(|(at, number)| (at, number.to_bits()))
            .collect()
    }

    #[test]
    fn hashes_are_fnv_1a() {
        assert_eq!(hash("".chars()), 0xcbf2_9ce4_8422_2325);
        assert_eq!(hash("a".chars()), 0xaf63_dc4c_8601_ec8c);
        assert_eq!(hash("foobar".chars()), 0x8594_4171_f739_67e8);
    }

    #[test]
    fn every_vector_has_length_one_and_384_numbers() {
        for text in [
            "",
            " ",
            "!?",
            "a",
            "Red wool socks",
            "ありがとう",
            "\u{301}",
        ] {
            let vector = embed(text);
            assert_eq!(vector.len(), DIMENSIONS);
            let norm: f32 = vector.iter().map(|x| x * x).sum();
            assert!((norm - 1.0).abs() < 1e-5, "{text:?}: {norm}");
        }
    }

    #[test]
    fn case_and_punctuation_make_no_difference_and_word_order_neither() {
        assert_eq!(embed("Red, wool-SOCKS!"), embed("socks red wool"));
        assert_eq!(embed(""), embed("—"));
    }

    #[test]
    fn texts_that_share_words_or_parts_of_words_are_nearer() {
        let socks = "red wool socks";
        assert!(similarity(socks, "blue wool socks") > similarity(socks, "blue steel pan") + 0.3);
        assert!(similarity("sock", "socks") > 0.4);
        assert!(similarity("sock", "pan").abs() < 0.2);
        assert!(similarity("wool", "wool wool wool wool") > 0.99);
    }

    #[test]
    fn only_the_first_mebibyte_counts() {
        let long = "a ".repeat(MAX_TEXT_BYTES / 2);
        assert_eq!(embed(&format!("{long}b")), embed(&long));
        let split = format!("{}é", "a".repeat(MAX_TEXT_BYTES - 1));
        assert_eq!(embed(&split), embed(&"a".repeat(MAX_TEXT_BYTES - 1)));
    }

    #[test]
    fn the_algorithm_is_pinned_bit_for_bit() {
        assert_eq!(non_zero(""), [(302, 0xbf80_0000)]);
        assert_eq!(
            non_zero("Cat cats"),
            [
                (62, 0xbeaa_aaab),
                (65, 0xbeaa_aaab),
                (71, 0xbeaa_aaab),
                (72, 0x3eaa_aaab),
                (237, 0x3ef1_5bef),
                (303, 0xbef1_5bef),
                (362, 0x3eaa_aaab)
            ]
        );
        assert_eq!(
            non_zero("Ärger 7"),
            [
                (6, 0xbeb5_04f3),
                (19, 0xbeb5_04f3),
                (41, 0x3eb5_04f3),
                (116, 0xbeb5_04f3),
                (127, 0xbeb5_04f3),
                (148, 0xbeb5_04f3),
                (259, 0xbeb5_04f3),
                (331, 0xbeb5_04f3)
            ]
        );
    }
}
