//! Where long texts are cut: not too long, nothing lost, at bounds, and where they were after an edit.

use std::collections::HashSet;

use fastrand::Rng;

use super::*;

const MOST: u64 = 60;

fn word(rng: &mut Rng) -> String {
    let words = [
        "shoe",
        "waterproof",
        "für",
        "Bergwetter",
        "轻便",
        "42",
        "naïve",
        "light",
        "trail",
        "🏔️",
        "running",
        "über",
        "обувь",
        "wet",
        "rock",
    ];
    format!("{}{}", words[rng.usize(..words.len())], rng.u16(..500))
}

fn sentence(rng: &mut Rng) -> String {
    let words: Vec<String> = (0..rng.usize(3..14)).map(|_| word(rng)).collect();
    format!("The {}. ", words.join(" "))
}

fn text(rng: &mut Rng, sentences: usize) -> String {
    let mut text = String::new();
    for _ in 0..sentences {
        text += &sentence(rng);
        if rng.u8(..6) == 0 {
            text += "\n\n";
        }
    }
    text
}

fn cut(text: &str, most: u64) -> Vec<&str> {
    let parts = parts(text, most).unwrap();
    parts.into_iter().map(|part| &text[part]).collect()
}

fn without_white_space(text: &str) -> String {
    text.split_whitespace().collect()
}

#[test]
fn a_text_that_fits_is_one_part_as_it_is() {
    for text in ["", " a text \n", "ü"] {
        assert_eq!(cut(text, 20), [text]);
        assert_eq!(beginning(text, 20), text);
    }
}

#[test]
fn parts_fit_lose_nothing_and_are_not_tiny() {
    let mut rng = Rng::with_seed(1);
    for _ in 0..30 {
        let text = text(&mut rng, 120);
        let parts = cut(&text, MOST);
        assert_eq!(
            without_white_space(&parts.concat()),
            without_white_space(&text)
        );
        let sizes: Vec<u64> = parts.iter().map(|part| estimate_tokens(part)).collect();
        assert!(sizes.iter().all(|size| *size <= MOST), "{sizes:?}");
        let all: u64 = sizes.iter().sum();
        let ideal = all.div_ceil(MOST) as usize;
        assert!(
            parts.len() <= 2 * ideal,
            "{} parts for {ideal}",
            parts.len()
        );
    }
}

#[test]
fn parts_end_where_sentences_do() {
    let text = text(&mut Rng::with_seed(2), 100);
    for part in cut(&text, MOST) {
        assert!(part.starts_with("The ") && part.ends_with('.'), "{part}");
    }
}

#[test]
fn a_paragraph_ends_a_part_rather_than_a_sentence_does() {
    let mut rng = Rng::with_seed(3);
    let mut text = String::new();
    for _ in 0..20 {
        // Of two thirds of what a part may have.
        let mut paragraph = String::new();
        while estimate_tokens(&paragraph) < MOST * 2 / 3 {
            paragraph += "The trail is wet and rocky, ";
            paragraph += &word(&mut rng);
            paragraph += ". ";
        }
        text += &format!("{paragraph}\n\n");
    }
    let parts = cut(&text, MOST);
    assert!(parts.iter().all(|part| !part.contains('\n')), "{parts:?}");
}

#[test]
fn what_has_no_sentences_is_cut_at_words_and_what_has_no_words_at_characters() {
    let words = "waterproof ".repeat(400);
    for part in cut(&words, MOST) {
        assert!(
            part.starts_with("waterproof") && part.ends_with("waterproof"),
            "{part}"
        );
    }
    for text in [
        "ü".repeat(2_000),
        "👩‍👩‍👧‍👦".repeat(500),
        "0123456789abcdef".repeat(300),
    ] {
        let parts = cut(&text, MOST);
        assert_eq!(parts.concat(), text);
        assert!(parts.iter().all(|part| estimate_tokens(part) <= MOST));
    }
    let blank = "\n ".repeat(40_000);
    assert_eq!(cut(&blank, MOST).len(), 1);
}

/// The law: an edit costs the parts around it, and no others.
#[test]
fn an_edit_changes_the_parts_around_it() {
    let mut rng = Rng::with_seed(4);
    let mut costs = Vec::new();
    for _ in 0..200 {
        let before = text(&mut rng, 120);
        let parts = cut(&before, MOST);
        assert!(parts.len() >= 30);
        let known: HashSet<&str> = parts.iter().copied().collect();
        let at = before.floor_char_boundary(rng.usize(..before.len()));
        let (start, end) = before.split_at(at);
        let edited = match rng.u8(..4) {
            0 => format!("{start}{}{end}", word(&mut rng)),
            1 => format!("{start}{}{end}", text(&mut rng, 1)),
            2 => format!("{start}{}{end}", text(&mut rng, 40)),
            _ => {
                let skipped = end.floor_char_boundary(rng.usize(..400).min(end.len()));
                format!("{start}{}", &end[skipped..])
            }
        };
        let more = estimate_tokens(&edited).saturating_sub(estimate_tokens(&before)) / (MOST / 2);
        let new = cut(&edited, MOST)
            .into_iter()
            .filter(|part| !known.contains(part))
            .count();
        costs.push(new.saturating_sub(more as usize));
    }
    costs.sort_unstable();
    let mean = costs.iter().sum::<usize>() as f64 / costs.len() as f64;
    assert!(mean < 2.0, "{mean} on average");
    assert!(costs[costs.len() * 95 / 100] <= 3, "{costs:?}");
    assert!(costs[costs.len() - 1] <= 6, "{costs:?}");
}

#[test]
fn the_same_text_is_cut_the_same_way_for_ever() {
    let text = text(&mut Rng::with_seed(5), 40);
    let starts: Vec<usize> = parts(&text, MOST)
        .unwrap()
        .iter()
        .map(|part| part.start)
        .collect();
    assert_eq!(
        starts,
        [
            0, 114, 221, 308, 494, 668, 761, 944, 991, 1130, 1250, 1387, 1477, 1553, 1750, 1869,
            2004, 2125, 2220, 2306, 2422, 2514, 2669, 2810, 2907, 3012, 3067, 3213, 3323
        ]
    );
}

#[test]
fn a_beginning_is_sentences_or_words_and_as_much_as_fits() {
    let mut rng = Rng::with_seed(6);
    for _ in 0..50 {
        let text = text(&mut rng, 60);
        let beginning = beginning(&text, 400);
        assert!(text.starts_with(beginning));
        let tokens = estimate_tokens(beginning);
        assert!((300..=400).contains(&tokens), "{tokens}");
        assert!(beginning.ends_with('.'), "{beginning}");
    }
    let words = "waterproof ".repeat(400);
    assert!(beginning(&words, 30).ends_with("waterproof"));
    for text in ["ü".repeat(2_000), "👩‍👩‍👧‍👦".repeat(500)] {
        for most in [1, 2, 7, 30] {
            let beginning = beginning(&text, most);
            assert!(!beginning.is_empty() && text.starts_with(beginning));
            assert!(estimate_tokens(beginning) <= most.max(18));
        }
    }
}

#[test]
fn a_huge_text_is_refused_or_cut_in_little_time() {
    let mut rng = Rng::with_seed(7);
    let chapter = text(&mut rng, 2_000);
    let many = parts(&chapter, 512).unwrap().len();
    assert!((100..MOST_PARTS).contains(&many), "{many}");
    assert_eq!(parts(&chapter.repeat(4), 16), Err(TooLong), "of parts");
    let started = std::time::Instant::now();
    let book = "one two three ".repeat(1 << 19);
    assert_eq!(parts(&book, 512), Err(TooLong), "of tokens");
    assert!(beginning(&book, 8_191).len() > 8_191);
    for worst in ["a", " ", "1.", "1. ", "\n", "a\n", "ü "] {
        let text = worst.repeat(50_000);
        let _ = (parts(&text, 512), beginning(&text, 512));
        eprintln!("{worst:?} {:?}", started.elapsed());
    }
    assert!(started.elapsed() < std::time::Duration::from_secs(60));
}
