//! What the server's log says of the worker's work: each change of state once, with its SQLSTATE, and no line a row.

use crate::support::{Api, Cluster, Database, Fault, PATIENCE, Sql, wait_until};

const SECRET: &str = "a text that is in no log";

/// A cluster whose log has the SQLSTATE of each line before its level.
fn cluster(settings: &[(&str, &str)]) -> Cluster {
    let prefix = [("log_line_prefix", "%d %b %e ")];
    Cluster::start(&[&prefix, settings].concat())
}

/// Lines of the worker's, as `LEVEL SQLSTATE text`.
fn lines(cluster: &Cluster, about: &str) -> Vec<String> {
    let log = cluster.log();
    let of_worker = log.lines().filter_map(|line| {
        let (before, text) = line.split_once(":  recsync worker: ")?;
        let mut words = before.rsplit(' ');
        let (level, code) = (words.next()?, words.next()?);
        Some(format!("{level} {code} {text}"))
    });
    of_worker.filter(|line| line.contains(about)).collect()
}

#[track_caller]
fn wait_for_lines(cluster: &Cluster, about: &str, wanted: &[&str]) {
    wait_until(PATIENCE, "the log says so", || {
        lines(cluster, about).len() >= wanted.len()
    });
    assert_eq!(lines(cluster, about), wanted);
}

fn items<'a>(cluster: &'a Cluster, api: &Api, options: &str) -> Database<'a> {
    let mut db = cluster.database();
    db.items(api, options);
    db.settle("item_embedding");
    db.run("INSERT INTO item VALUES (1, 'one')");
    db.settle("item_embedding");
    db
}

const NAME: &str = "pipeline public.item_embedding";

#[test]
fn pausing_and_resuming_is_said_once_by_whoever_it_was() {
    let cluster = cluster(&[]);
    let api = Api::start();
    let mut db = items(&cluster, &api, "");
    let mut wanted: Vec<String> = Vec::new();
    let mut says = |line: String| {
        wanted.push(line);
        let wanted: Vec<&str> = wanted.iter().map(String::as_str).collect();
        wait_for_lines(&cluster, NAME, &wanted);
    };
    db.run("SELECT recsync.pause('item_embedding')");
    says(format!("LOG 00000 {NAME} was paused by somebody"));
    db.run("SELECT recsync.resume('item_embedding')");
    says(format!("LOG 00000 {NAME} runs again"));
    // The provider refuses the key.
    api.accept_only_key("another");
    db.run(&format!("INSERT INTO item VALUES (2, '{SECRET}')"));
    says(format!(
        "WARNING 55000 {NAME} is paused, see recsync.status"
    ));
    api.accept_only_key(crate::support::cluster::TEST_API_KEY);
    db.run("ALTER SERVER api OPTIONS (ADD max_concurrency '2')");
    says(format!("LOG 00000 {NAME} runs again"));
    db.settle("item_embedding");
    // By what somebody does to the table.
    db.run("ALTER TABLE item DROP COLUMN title");
    says(format!(
        "WARNING 55000 {NAME} is paused, see recsync.status"
    ));
    assert!(!cluster.log().contains(SECRET), "{}", cluster.log());
}

#[test]
fn a_server_that_fails_and_answers_again_is_said_once_however_many_requests_and_pipelines_it_has() {
    let cluster = cluster(&[]);
    let api = Api::start();
    let mut db = items(&cluster, &api, "max_batch_inputs '1'");
    db.run("CREATE TABLE other (id int PRIMARY KEY, title text)");
    db.pipeline("other_embedding", "other");
    db.settle("other_embedding");
    api.play_always(Some(Fault::Status(503)));
    db.run("INSERT INTO item SELECT i, 'text ' || i FROM generate_series(2, 30) i; INSERT INTO other SELECT i, 'other ' || i FROM generate_series(1, 30) i");
    let fails = "server api fails and is left alone: provider (HTTP 503)";
    let is_one = |wanted: &str| {
        wait_until(PATIENCE, wanted, || !lines(&cluster, wanted).is_empty());
    };
    is_one(fails);
    api.play_always(None);
    is_one("server api answers again");
    db.settle("item_embedding");
    db.settle("other_embedding");
    let said = lines(&cluster, "server api");
    assert_eq!(said.len(), 2, "{said:?}");
    assert!(
        said[0].starts_with("WARNING 38000 pipeline public.") && said[0].ends_with(fails),
        "{said:?}"
    );
    assert!(
        said[1].starts_with("LOG 00000 pipeline public."),
        "{said:?}"
    );
}

#[test]
fn a_budget_is_said_when_most_of_it_is_spent_when_all_is_and_when_there_is_one_again() {
    let cluster = cluster(&[]);
    let api = Api::start();
    let mut db = items(&cluster, &api, "price_per_million_tokens '1000000'");
    db.run("SELECT recsync.set_budget('item_embedding', 1.2)");
    wait_for_lines(
        &cluster,
        NAME,
        &[&format!(
            "WARNING 53400 {NAME}: 80% of the monthly budget of 1.2 USD is spent"
        )],
    );
    db.run("SELECT recsync.set_budget('item_embedding', 1)");
    wait_until(PATIENCE, "it is spent", || lines(&cluster, NAME).len() == 2);
    db.run("SELECT recsync.set_budget('item_embedding', NULL)");
    wait_until(PATIENCE, "it has a budget again", || {
        lines(&cluster, NAME).len() == 3
    });
    let said = lines(&cluster, NAME);
    assert_eq!(
        said[1],
        format!("WARNING 53400 {NAME}: the monthly budget of 1 USD is spent")
    );
    assert_eq!(said[2], format!("LOG 00000 {NAME} has a budget again"));
}

#[test]
fn batches_are_seen_at_debug1_and_rows_never() {
    let api = Api::start();
    let quiet = cluster(&[]);
    let mut db = items(&quiet, &api, "max_batch_inputs '5'");
    db.run("INSERT INTO item SELECT i, 'text ' || i FROM generate_series(2, 21) i");
    db.settle("item_embedding");
    assert_eq!(lines(&quiet, NAME), [""; 0]);
    drop(db);

    let cluster = cluster(&[("log_min_messages", "debug1")]);
    let mut db = items(&cluster, &api, "max_batch_inputs '5'");
    let batches = || lines(&cluster, "a batch was answered after").len();
    let before = (batches(), api.requests_made());
    db.run(&format!(
        "INSERT INTO item SELECT i, '{SECRET} ' || i FROM generate_series(2, 21) i"
    ));
    db.settle("item_embedding");
    let asked = api.requests_made() - before.1;
    assert!(asked >= 4);
    assert_eq!(batches() - before.0, asked);
    let stored: u32 = lines(&cluster, "vectors were stored")
        .iter()
        .map(|line| {
            line.split(": ")
                .nth(1)
                .unwrap()
                .split(' ')
                .next()
                .unwrap()
                .parse::<u32>()
                .unwrap()
        })
        .sum();
    assert_eq!(stored, 21);
    let said = lines(&cluster, NAME);
    assert!(
        said.iter().all(|line| line.starts_with("DEBUG ")),
        "{said:?}"
    );
    assert!(said.len() < 20, "a line a row: {said:?}");
    assert!(!said.join("\n").contains(SECRET));
}
