//! What long texts come to: one input, some, or as many vectors.

use std::convert::Infallible;

use super::*;

fn endpoint(options: &[(&str, &str)]) -> Endpoint {
    let usual = [
        ("api", "openai"),
        ("url", "http://localhost/v1"),
        ("model", "m"),
        ("dimensions", "4"),
    ];
    let options: Vec<(String, String)> = usual
        .iter()
        .chain(options)
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect();
    Endpoint::from_options(&options, &[]).unwrap()
}

fn long_text(mode: Mode, most: &str) -> LongText {
    LongText::new(mode, None, &endpoint(&[("max_input_tokens", most)]))
}

fn hash(text: &str) -> Result<Vec<u8>, Infallible> {
    Ok(text.as_bytes().to_vec())
}

fn divide(long_text: LongText, text: &str) -> Vec<Part> {
    let Ok(parts) = long_text.divide(text.to_owned(), b"whole", hash);
    parts.unwrap()
}

fn story() -> String {
    (1..=40)
        .map(|n| format!("Sentence {n} is about shoe {n}. "))
        .collect()
}

#[test]
fn only_a_text_that_may_be_too_long_is_marked() {
    let story = story();
    for mode in [Mode::Truncate, Mode::Mean] {
        let [few, many] = ["30", "8000"].map(|most| long_text(mode, most));
        assert_eq!(few.mark("a short one"), None);
        assert!(few.mark(&story).is_some());
        assert_eq!(many.mark(&story), None);
        assert_ne!(few.mark(&story), long_text(mode, "40").mark(&story));
    }
    let marks =
        [Mode::Truncate, Mode::Mean, Mode::Chunks].map(|mode| long_text(mode, "30").mark(&story));
    assert!(marks[0] != marks[1] && marks[1] != marks[2]);
    let builtin = Endpoint::from_options(&[("api".into(), "builtin".into())], &[]).unwrap();
    assert_eq!(
        LongText::new(Mode::Mean, None, &builtin).mark(&story.repeat(99)),
        None
    );
}

#[test]
fn a_prefix_and_another_tokenizer_leave_less_for_the_text() {
    let most = |options: &[(&str, &str)]| endpoint(options).input_tokens();
    assert_eq!(most(&[("max_input_tokens", "100")]), Some(100));
    let prefixed = [
        ("max_input_tokens", "100"),
        ("document_prefix", "passage: "),
    ];
    assert!(most(&prefixed) < Some(100) && most(&prefixed) > Some(90));
    let cohere = [
        ("api", "cohere"),
        ("model", "embed-english-v3.0"),
        ("dimensions", "1024"),
    ];
    let cohere: Vec<(String, String)> = cohere.map(|(n, v)| (n.to_owned(), v.to_owned())).into();
    assert_eq!(
        Endpoint::from_options(&cohere, &[]).unwrap().input_tokens(),
        Some(358)
    );
}

#[test]
fn truncating_leaves_one_part_with_the_hash_of_the_whole() {
    let story = story();
    let parts = divide(long_text(Mode::Truncate, "30"), &story);
    assert_eq!(parts.len(), 1);
    assert!(parts[0].cut && story.starts_with(&parts[0].text));
    assert_eq!(parts[0].hash, b"whole");
    assert!(!divide(long_text(Mode::Truncate, "8000"), &story)[0].cut);
}

#[test]
fn chunks_say_where_they_stand_in_characters() {
    let story = format!("Füße im Schnee. \n\n {}", story());
    let parts = divide(long_text(Mode::Chunks, "30"), &story);
    assert!(parts.len() > 10);
    let characters: Vec<char> = story.chars().collect();
    for part in &parts {
        let (from, to) = (part.from as usize, part.to as usize);
        let there: String = characters[from - 1..to].iter().collect();
        assert_eq!(part.text, there);
        assert_eq!(part.hash, part.text.as_bytes());
    }
    assert!(parts.windows(2).all(|pair| pair[0].to < pair[1].from));
}

#[test]
fn what_is_refused_is_cut_smaller_and_smaller_but_not_for_ever() {
    for mode in [Mode::Truncate, Mode::Mean, Mode::Chunks] {
        let text = story();
        let mut part = Part::of(text.clone(), b"h".to_vec());
        let mut rounds = 0;
        while let Some(mut smaller) = part.cut_again(mode) {
            assert!(
                smaller
                    .iter_mut()
                    .all(|smaller| smaller.tokens() < part.tokens())
            );
            let shown: String = text.chars().skip(smaller[0].from as usize - 1).collect();
            assert!(shown.starts_with(&smaller[0].text));
            match mode {
                Mode::Truncate => {
                    assert!(smaller.len() == 1 && smaller[0].cut && smaller[0].hash == b"h")
                }
                _ => assert!(smaller.len() > 1 && smaller.iter().all(|smaller| !smaller.cut)),
            }
            part = smaller.pop().unwrap();
            if mode == Mode::Truncate {
                assert_eq!(part.from, 1);
            }
            rounds += 1;
        }
        assert!((2..=MOST_CUTS).contains(&rounds), "{mode:?}: {rounds}");
    }
}

#[test]
fn a_mean_is_weighted_by_tokens_and_of_length_one() {
    let part = |text: &str, vector: [f32; 2]| Part {
        vector: Some(vector.to_vec()),
        ..Part::of(text.to_owned(), Vec::new())
    };
    let three = "one two three";
    let mut parts = [part(three, [1.0, 0.0]), part("four", [0.0, 1.0])];
    assert_eq!(parts[0].tokens(), 3 * parts[1].tokens());
    let mean_of = mean(&mut parts);
    assert!(
        (mean_of[0] - 3.0 / 10_f32.sqrt()).abs() < 1e-6,
        "{mean_of:?}"
    );
    assert!((mean_of[1] - 1.0 / 10_f32.sqrt()).abs() < 1e-6);
    // One part is what the model says, whatever its length.
    assert_eq!(mean(&mut [part("a", [3.0, 4.0])]), [3.0, 4.0]);
    assert_eq!(
        mean(&mut [part("a", [1.0, 0.0]), part("b", [-1.0, 0.0])]),
        [1.0, 0.0]
    );
}
