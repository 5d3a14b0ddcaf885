//! Sessions that change tables, one that searches, and a DBA. What they try is random and fixed by a seed.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use fastrand::Rng;
use postgres::Client;
use postgres::error::SqlState;

/// Keys and texts recur: a row is changed again while its text is in the air, and some texts are those of others.
const KEYS: i32 = 300;
const TEXTS: u32 = 5_000;

/// Changes rows until it is over.
pub fn change(
    mut client: Client,
    tables: &[&str],
    mut rng: Rng,
    over: &AtomicBool,
    changes: &AtomicUsize,
) {
    while !over.load(Ordering::Relaxed) {
        let table = rng.choice(tables).copied().unwrap();
        let statements: Vec<String> = (0..rng.u8(1..4))
            .map(|_| statement(&mut rng, table))
            .collect();
        let end = if rng.u8(0..10) == 0 {
            "ROLLBACK"
        } else {
            "COMMIT"
        };
        let transaction = format!("BEGIN; {}; {end}", statements.join("; "));
        match client.batch_execute(&transaction) {
            Ok(()) => drop(changes.fetch_add(statements.len(), Ordering::Relaxed)),
            Err(error) => {
                let expected = [SqlState::UNIQUE_VIOLATION, SqlState::T_R_DEADLOCK_DETECTED];
                let code = error
                    .code()
                    .unwrap_or_else(|| panic!("{transaction}: {error}"));
                assert!(expected.contains(code), "{transaction}: {error}");
                client.batch_execute("ROLLBACK").unwrap();
            }
        }
        thread::sleep(Duration::from_millis(rng.u64(1..20)));
    }
}

fn statement(rng: &mut Rng, table: &str) -> String {
    let (id, text) = (rng.i32(0..KEYS), rng.u32(0..TEXTS));
    match rng.u8(0..100) {
        0..30 => format!(
            "INSERT INTO {table} VALUES ({id}, 'text {text}') ON CONFLICT (id) DO UPDATE SET title = excluded.title"
        ),
        30..55 => format!("UPDATE {table} SET title = 'text {text}' WHERE id = {id}"),
        55..65 => format!(
            "UPDATE {table} SET title = 'text ' || id * 7 + {text} WHERE id BETWEEN {id} AND {id} + 20"
        ),
        65..80 => format!("DELETE FROM {table} WHERE id = {id}"),
        80..88 => format!(
            "UPDATE {table} SET id = {} WHERE id = {id}",
            rng.i32(0..KEYS)
        ),
        88..93 => format!("UPDATE {table} SET title = NULL WHERE id = {id}"),
        93..99 => {
            format!("UPDATE {table} SET stock = stock + 1 WHERE id BETWEEN {id} AND {id} + 50")
        }
        _ => match rng.u8(0..10) {
            0 => format!("TRUNCATE {table}"),
            _ => format!("SELECT count(*) FROM {table}"),
        },
    }
}

/// Searches until it is over; the provider's failures are told to whoever asks.
pub fn search(mut client: Client, over: &AtomicBool) {
    let mut number = 0;
    client
        .batch_execute("SET recsync.embed_timeout = '500 ms'")
        .unwrap();
    while !over.load(Ordering::Relaxed) {
        number += 1;
        let query = format!("SELECT * FROM recsync.search('film_embedding', 'query {number}')");
        if let Err(error) = client.batch_execute(&query) {
            let code = error
                .code()
                .unwrap_or_else(|| panic!("{query}: {error}"))
                .code();
            assert!(
                ["38000", "53400", "57014"].contains(&code),
                "{query}: {error}"
            );
        }
        thread::sleep(Duration::from_millis(50));
    }
}

/// Lets paused pipelines go on, in one way or another, and does what DBAs do otherwise, until it is over.
pub fn administrate(mut clients: [Client; 2], mut rng: Rng, over: &AtomicBool) {
    while !over.load(Ordering::Relaxed) {
        let client = rng.choice(&mut clients).unwrap();
        let paused = client
            .query(
                "SELECT p.relation, p.server FROM recsync.pipeline p WHERE p.paused",
                &[],
            )
            .unwrap();
        for row in paused {
            let (pipeline, server): (&str, &str) = (row.get(0), row.get(1));
            let attempts = rng.u8(3..5);
            client
                .batch_execute(&match rng.bool() {
                    true => format!("SELECT recsync.resume('{pipeline}')"),
                    false => {
                        format!("ALTER SERVER {server} OPTIONS (SET max_attempts '{attempts}')")
                    }
                })
                .unwrap();
        }
        let deed = match rng.u8(0..40) {
            0 => "SELECT recsync.pause('item_embedding')",
            1 => "SELECT pg_reload_conf()",
            2 => "ALTER SERVER api OPTIONS (SET max_batch_inputs '10')",
            3 => "ALTER SERVER api OPTIONS (SET max_batch_inputs '20')",
            _ => "SELECT 1",
        };
        client.batch_execute(deed).unwrap();
        thread::sleep(Duration::from_millis(100));
    }
}
