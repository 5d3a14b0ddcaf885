//! Texts that the model does not take in one piece: their beginning is embedded, or the mean of their parts.

use crate::support::{Api, Database, Sql, shared};

/// So many sentences of some fifteen words, and as many tokens or a few more.
pub fn story(item: i32, sentences: std::ops::RangeInclusive<usize>) -> String {
    let sentence =
        |n| format!("Sentence {n} of story {item} is about boots and laces and {n} miles of mud. ");
    sentences.map(sentence).collect()
}

/// Table `item` with a pipeline that treats long texts that way, without rows.
fn items<'a>(api: &Api, options: &str, long_text: &str) -> Database<'a> {
    let mut db = shared().database();
    db.server("api", api, options);
    db.run("CREATE TABLE item (id int PRIMARY KEY, title text)");
    db.run(&format!(
        "SELECT recsync.create_pipeline('item_embedding', 'item', '{{title}}', server => 'api', index => 'none'{long_text})"
    ));
    db.settle("item_embedding"); // what is written from now on is no row from before it
    db
}

fn write(db: &mut Database, id: i32, text: &str) {
    db.execute(
        "INSERT INTO item VALUES ($1, $2) ON CONFLICT (id) DO UPDATE SET title = excluded.title",
        &[&id, &text],
    )
    .unwrap();
    db.settle("item_embedding");
}

fn vector(db: &mut Database, id: i32) -> String {
    db.one(&format!(
        "SELECT embedding::text FROM item_embedding WHERE id = {id}"
    ))
}

fn numbers(vector: &str) -> Vec<f32> {
    let numbers = vector.trim_matches(['[', ']']).split(',');
    numbers.map(|number| number.parse().unwrap()).collect()
}

fn truncated(db: &mut Database) -> i64 {
    db.one("SELECT truncated FROM recsync.status WHERE kind = 'pipeline'")
}

#[track_caller]
fn assert_no_dead_letters(db: &mut Database) {
    let dead: Vec<String> = db.column("SELECT message FROM recsync.dead_letter");
    assert!(dead.is_empty(), "{dead:?}");
}

#[test]
fn of_a_text_that_is_too_long_the_beginning_is_embedded() {
    let api = Api::start();
    let mut db = items(&api, "max_input_tokens '100'", "");
    let text = story(1, 1..=20);
    write(&mut db, 1, &text);
    write(&mut db, 2, "a short one");
    assert_no_dead_letters(&mut db);
    let sent = api.texts();
    assert_eq!(sent.len(), 2);
    assert!(
        text.starts_with(&sent[0]) && sent[0].ends_with("mud."),
        "{}",
        sent[0]
    );
    assert!(
        (50..100).contains(&sent[0].split_whitespace().count()),
        "{}",
        sent[0]
    );
    assert!(api.is_vector_of(&vector(&mut db, 1), &sent[0]));
    assert_eq!(truncated(&mut db), 1);
    // It is a text like any other.
    assert_eq!(
        db.one::<i64>(
            "SELECT missing + stale + orphaned + wrong_model FROM recsync.verify('item_embedding')"
        ),
        0
    );
    write(&mut db, 1, "another");
    let before = api.texts().len();
    write(&mut db, 1, &text);
    write(&mut db, 3, &text);
    assert_eq!(api.texts().len(), before, "it is known");
    assert!(api.is_vector_of(&vector(&mut db, 3), &sent[0]));
}

#[test]
fn a_limit_that_is_changed_counts_for_the_texts_that_are_longer() {
    let api = Api::start();
    let mut db = items(&api, "max_input_tokens '100'", "");
    let text = story(1, 1..=20);
    write(&mut db, 1, &text);
    write(&mut db, 2, "a short one");
    db.run("ALTER SERVER api OPTIONS (SET max_input_tokens '60')");
    crate::support::wait_until(crate::support::PATIENCE, "it is sent again", || {
        api.texts().len() == 3
    });
    db.settle("item_embedding");
    let sent = api.texts();
    assert!(sent[2].len() < sent[0].len() && text.starts_with(&sent[2]));
    assert!(api.is_vector_of(&vector(&mut db, 1), &sent[2]));
}

#[test]
fn a_text_that_is_refused_as_too_long_is_cut_again_and_its_batch_does_not_suffer() {
    let api = Api::start();
    let mut db = items(&api, "max_input_tokens '400'", "");
    api.refuse_longer_than(60);
    db.run("BEGIN");
    for id in 1..=20 {
        let sentences = if id == 7 { 40 } else { 2 };
        let text = story(id, 1..=sentences);
        db.execute("INSERT INTO item VALUES ($1, $2)", &[&id, &text])
            .unwrap();
    }
    db.run("COMMIT");
    db.settle("item_embedding");
    assert_no_dead_letters(&mut db);
    let cut: Vec<String> = api
        .texts()
        .into_iter()
        .filter(|text| text.contains("story 7 "))
        .collect();
    let last = cut.last().unwrap();
    assert!(story(7, 1..=40).starts_with(last) && last.split_whitespace().count() > 15);
    assert!(api.is_vector_of(&vector(&mut db, 7), last));
    for id in (1..=20).filter(|id| *id != 7) {
        assert!(
            api.is_vector_of(&vector(&mut db, id), &story(id, 1..=2)),
            "{id}"
        );
    }
    assert!(api.requests_made() <= 9, "{} requests", api.requests_made());
    assert_eq!(truncated(&mut db), 1);
}

#[test]
fn a_text_that_is_refused_whatever_is_left_of_it_is_a_dead_letter() {
    let api = Api::start();
    let mut db = items(&api, "", "");
    api.refuse_longer_than(0);
    write(&mut db, 1, &story(1, 1..=200));
    let (class, message): (String, String) = {
        let row = &db.rows("SELECT class, message FROM recsync.dead_letter")[0];
        (row.get(0), row.get(1))
    };
    assert_eq!(class, "permanent");
    assert!(message.contains("maximum context length"), "{message}");
    assert!(api.requests_made() <= 8, "{} requests", api.requests_made());
}

#[test]
fn the_mean_of_a_texts_parts_is_weighted_by_their_tokens() {
    let api = Api::start();
    let mut db = items(&api, "max_input_tokens '100'", ", long_text => 'mean'");
    let text = story(1, 1..=40);
    write(&mut db, 1, &text);
    assert_no_dead_letters(&mut db);
    let sent = api.texts();
    assert!((7..=24).contains(&sent.len()), "{} parts", sent.len());
    assert_eq!(sent.join(" "), text.trim(), "nothing is left out");
    let mut mean = vec![0.0; 16];
    for part in &sent {
        let weight = part.split_whitespace().count() as f32;
        for (sum, number) in mean.iter_mut().zip(api.vector(part)) {
            *sum += weight * number;
        }
    }
    let product =
        |one: &[f32], other: &[f32]| one.iter().zip(other).map(|(a, b)| a * b).sum::<f32>();
    let stored = numbers(&vector(&mut db, 1));
    assert!(
        (product(&stored, &stored) - 1.0).abs() < 1e-4,
        "of length 1"
    );
    let cosine = product(&stored, &mean) / product(&mean, &mean).sqrt();
    assert!(cosine > 0.999, "{cosine}");
    // A text that fits has the vector that the model gives it, and one that comes back costs nothing.
    write(&mut db, 2, "a short one");
    assert!(api.is_vector_of(&vector(&mut db, 2), "a short one"));
    write(&mut db, 1, "another");
    let before = api.texts().len();
    write(&mut db, 1, &text);
    assert_eq!(api.texts().len(), before);
    assert_eq!(truncated(&mut db), 0);
}

#[test]
fn parts_of_a_mean_that_are_refused_as_too_long_are_cut_smaller_and_lose_nothing() {
    let api = Api::start();
    let mut db = items(&api, "max_input_tokens '200'", ", long_text => 'mean'");
    api.refuse_longer_than(60);
    let text = story(1, 1..=30);
    write(&mut db, 1, &text);
    assert_no_dead_letters(&mut db);
    let requests = api.requests();
    let answered = requests.iter().flat_map(|request| &request.inputs);
    let words = |text: &str| text.split_whitespace().count();
    let answered: Vec<&String> = answered.filter(|input| words(input) <= 60).collect();
    for n in 1..=30 {
        let marker = format!("Sentence {n} of");
        assert!(
            answered.iter().any(|input| input.contains(&marker)),
            "{marker}"
        );
    }
    assert_eq!(db.one::<i64>("SELECT count(*) FROM item_embedding"), 1);
}

#[test]
fn a_part_of_a_mean_that_fails_for_a_while_does_not_make_the_others_cost_again() {
    let api = Api::start();
    let mut db = items(
        &api,
        "max_input_tokens '60', max_batch_inputs '4', max_concurrency '1', max_attempts '10'",
        ", long_text => 'mean'",
    );
    api.refuse_texts_with("Sentence 25 of", 418);
    db.execute("INSERT INTO item VALUES (1, $1)", &[&story(1, 1..=30)])
        .unwrap();
    crate::support::wait_until(crate::support::PATIENCE, "it has failed", || {
        db.one::<i64>("SELECT count(*) FROM recsync.job WHERE attempt >= 1") == 1
    });
    api.refuse_nothing();
    let known: Vec<String> = api.texts();
    db.settle("item_embedding");
    let again = api.texts().split_off(known.len());
    let first = |text: &String| text.contains("Sentence 1 of");
    assert!(
        known.iter().any(first) && !again.iter().any(first),
        "{again:?}"
    );
    assert_eq!(db.one::<i64>("SELECT count(*) FROM item_embedding"), 1);
}

#[test]
fn the_length_of_a_text_does_not_matter_to_builtin() {
    let mut db = shared().database();
    db.run("CREATE SERVER local FOREIGN DATA WRAPPER recsync OPTIONS (api 'builtin')");
    db.run("CREATE TABLE item (id int PRIMARY KEY, title text)");
    for mode in ["truncate", "mean"] {
        db.run(&format!(
            "SELECT recsync.create_pipeline('item_{mode}', 'item', '{{title}}', server => 'local', index => 'none', long_text => '{mode}')"
        ));
    }
    let text = story(1, 1..=2_000);
    db.execute("INSERT INTO item VALUES (1, $1)", &[&text])
        .unwrap();
    db.settle("item_truncate");
    db.settle("item_mean");
    let same: bool = db.one(
        "SELECT t.embedding = m.embedding AND t.embedding <-> recsync.embed('local', i.title, 'document') < 1e-6
           FROM item i JOIN item_truncate t USING (id) JOIN item_mean m USING (id)",
    );
    assert!(same);
}
