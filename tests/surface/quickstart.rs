//! The quick start of README.md, executed as it stands there, in a database of its own.

use crate::support::{PATIENCE, Sql, shared, wait_until};

/// What stands between `<!-- quickstart -->` and `<!-- /quickstart -->` in blocks marked sql.
fn quickstart() -> String {
    let readme =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")).unwrap();
    let part = readme
        .split("<!-- quickstart -->")
        .nth(1)
        .and_then(|rest| rest.split("<!-- /quickstart -->").next());
    let part = part.unwrap_or_else(|| {
        panic!("README.md has no part between <!-- quickstart --> and <!-- /quickstart -->")
    });
    let blocks: Vec<&str> = part
        .split("```sql\n")
        .skip(1)
        .filter_map(|rest| rest.split("```").next())
        .collect();
    assert!(
        !blocks.is_empty(),
        "the quick start has no block marked sql"
    );
    blocks.join("\n")
}

/// Statements one by one: each is a transaction of its own, as in psql.
fn statements(script: &str) -> Vec<String> {
    let mut statements = Vec::new();
    let mut current = String::new();
    let mut quote: Option<&str> = None;
    let mut rest = script;
    while let Some(character) = rest.chars().next() {
        let token = match quote {
            None if rest.starts_with("--") => {
                rest = rest.find('\n').map_or("", |end| &rest[end..]);
                continue;
            }
            None => ["$$", "'", "\""]
                .into_iter()
                .find(|quote| rest.starts_with(quote)),
            Some(open) => rest.starts_with(open).then_some(open),
        };
        if let Some(token) = token {
            quote = if quote.is_some() { None } else { Some(token) };
            current.push_str(token);
            rest = &rest[token.len()..];
            continue;
        }
        rest = &rest[character.len_utf8()..];
        if character == ';' && quote.is_none() {
            statements.push(std::mem::take(&mut current));
        } else {
            current.push(character);
        }
    }
    assert!(
        current.trim().is_empty(),
        "the quick start ends in the middle of a statement: {current}"
    );
    statements
}

#[test]
fn quick_start_of_the_readme_works_as_it_stands() {
    let mut db = shared().empty_database();
    let mut last = 0;
    for statement in statements(&quickstart()) {
        println!("{}", statement.trim());
        let rows = db.simple_query(&statement).unwrap_or_else(|error| {
            panic!("{statement}\n{}", crate::support::sql::describe(&error))
        });
        last = rows
            .iter()
            .filter(|message| matches!(message, postgres::SimpleQueryMessage::Row(_)))
            .count();
    }
    assert!(last > 0, "the quick start's last query finds nothing");
    wait_until(PATIENCE, "nothing is left to do", || {
        db.one("SELECT bool_and(pending = 0 AND dead = 0) FROM recsync.status")
    });
}
