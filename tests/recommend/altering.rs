//! alter_recommender: each setting in place, and what follows from it; nothing else is computed again.

use crate::shop::{HISTORY, WEIGHT, assert_kept_right, items, shop, views};
use crate::support::{Database, Sql, shared};

/// How often all interactions have been looked at.
fn rounds(db: &mut Database) -> i32 {
    db.one("SELECT round FROM recsync.backfill")
}

/// What the kept lists are in.
fn lists(db: &mut Database) -> u32 {
    let id = crate::shop::number(db);
    db.one(&format!("SELECT 'recsync.neighbour_{id}'::regclass::oid"))
}

#[test]
fn what_only_lists_depend_on_holds_at_once_and_nothing_is_computed() {
    let mut db = shop(shared(), 5);
    views(&mut db, "ann", &[1, 2]);
    db.run("INSERT INTO event (user_id, product_id, kind, created_at) VALUES ('ann', 3, 'buy', now() - interval '40 days')");
    db.settle("shop");
    let (round, kept) = (rounds(&mut db), lists(&mut db));
    db.run("SELECT recsync.alter_recommender('shop', eligible => 'id <> 5', boost => 'CASE WHEN product.id = 2 THEN 50 ELSE 1 END')");
    assert_eq!(items(&mut db, "shop_recommend('ann')"), [2, 1, 4]);
    db.run("SELECT recsync.alter_recommender('shop', seen_for => '30 days')");
    assert!(items(&mut db, "shop_recommend('ann')").contains(&3));
    db.run("SELECT recsync.alter_recommender('shop', seen_for => '0')");
    assert!(!items(&mut db, "shop_recommend('ann')").contains(&3));
    // NULL leaves everything as it is.
    db.run("SELECT recsync.alter_recommender('shop')");
    assert_eq!(items(&mut db, "shop_recommend('ann')"), [2, 1, 4]);
    assert_eq!((rounds(&mut db), lists(&mut db)), (round, kept));
}

#[test]
fn a_changed_weight_or_seen_has_all_interactions_read_again() {
    let mut db = shop(shared(), 6);
    views(&mut db, "ann", &[1, 2, 3]);
    db.run("INSERT INTO event (user_id, product_id, kind) VALUES ('ann', 4, 'return'), ('bob', 4, 'buy'), ('bob', 1, 'view')");
    db.settle("shop");
    let (round, kept) = (rounds(&mut db), lists(&mut db));
    db.run("SELECT recsync.alter_recommender('shop', weight => $$ CASE WHEN kind = 'view' THEN 0 ELSE 1 END $$, seen => $$ kind <> 'view' $$)");
    db.settle("shop");
    assert_eq!((rounds(&mut db), lists(&mut db)), (round + 1, kept));
    assert_eq!(items(&mut db, "shop_popular(k => 1)"), [4]);
    assert!(!items(&mut db, "shop_recommend('ann')").contains(&4));
    assert_eq!(items(&mut db, "shop_similar(1)"), Vec::<i32>::new());
    db.run(&format!("SELECT recsync.alter_recommender('shop', weight => $$ {WEIGHT} $$, seen => $$ kind = 'buy' $$)"));
    db.settle("shop");
    assert_kept_right(&mut db);
}

#[test]
fn another_history_half_life_or_column_has_what_is_kept_made_anew() {
    let mut db = shop(shared(), 12);
    db.run("ALTER TABLE event ADD viewed_at timestamptz; UPDATE event SET viewed_at = created_at");
    for user in ["ann", "bob", "cid"] {
        views(&mut db, user, &[1, 2, 3, 4, 5, 6, 7, 8]);
    }
    db.settle("shop");
    assert_eq!(items(&mut db, "shop_similar(8, k => 12)").len(), 5);
    db.run("SELECT recsync.alter_recommender('shop', history => 3, half_life => '1 day')");
    // And what changes meanwhile is not lost.
    views(&mut db, "ann", &[9]);
    db.settle("shop");
    assert_eq!(items(&mut db, "shop_similar(8, k => 12)").len(), 3);
    db.run(&format!(
        "SELECT recsync.alter_recommender('shop', history => {HISTORY}, half_life => '14 days')"
    ));
    db.settle("shop");
    assert_kept_right(&mut db);
    db.run("SELECT recsync.alter_recommender('shop', at_column => 'viewed_at')");
    db.settle("shop");
    assert_eq!(items(&mut db, "shop_similar(8)"), Vec::<i32>::new());
    // The column is watched from now on.
    db.run("UPDATE event SET viewed_at = created_at");
    db.settle("shop");
    assert_kept_right(&mut db);
}

#[test]
fn changes_while_events_come_leave_what_a_count_gives() {
    let mut db = shop(shared(), 20);
    let mut other = db.connect();
    for round in 0..12 {
        other.run(&format!(
            "INSERT INTO event (user_id, product_id, kind) SELECT 'u' || (i * 7 + {round}) % 9, 1 + (i * i + {round}) % 20, 'view' FROM generate_series(1, 60) i"
        ));
        let history = if round % 2 == 0 { 3 } else { HISTORY };
        db.run(&format!(
            "SELECT recsync.alter_recommender('shop', history => {history})"
        ));
    }
    db.settle("shop");
    assert_kept_right(&mut db);
}

#[test]
fn what_cannot_be_is_refused_and_changes_nothing() {
    let mut db = shop(shared(), 3);
    for (arguments, code) in [
        ("'shop', history => 0", "22023"),
        ("'shop', half_life => '0'", "22023"),
        ("'shop', weight => 'colour'", "42703"),
        ("'shop', seen => 'random() > 0.5'", "22023"),
        ("'shop', item_column => 'created_at'", "42846"),
        ("'nothing', history => 5", "42704"),
    ] {
        let error = db.refused(&format!("SELECT recsync.alter_recommender({arguments})"));
        assert_eq!(
            error.code().code(),
            code,
            "{arguments}: {}",
            error.message()
        );
    }
    let stranger = format!("stranger_{}", std::process::id());
    db.run(&format!("CREATE ROLE {stranger} LOGIN"));
    let error = db
        .connect_as(&stranger)
        .refused("SELECT recsync.alter_recommender('shop', history => 5)");
    assert_eq!(error.code().code(), "42501");
    let hint = db.refused(
        "SELECT recsync.create_recommender('shop', 'product', 'event', if_not_exists => true)",
    );
    assert!(
        hint.hint().unwrap().contains("recsync.alter_recommender"),
        "{hint:?}"
    );
}
