//! A database moves: copied with its disk, dumped and restored, upgraded. What was paid for is not paid for again.

use crate::support::{Api, Cluster, Database, PATIENCE, Sql, wait_until};

/// A copy of the cluster's disk, started at another site, and what of the database is in it.
fn copy_at(cluster: &Cluster, site: &str) -> Cluster {
    let copy = cluster.copy();
    copy.set_for_next_start("recsync.site", site);
    copy.start_again();
    copy
}

fn waiting_for(db: &mut Database) -> Option<String> {
    db.one("SELECT waiting_for FROM recsync.status WHERE kind = 'pipeline'")
}

#[test]
fn clone_at_another_site_sends_nothing_until_it_is_adopted_and_then_pays_for_what_has_changed_only()
{
    let api = Api::start();
    let cluster = Cluster::start(&[]);
    let mut db = cluster.database();
    db.items(&api, "");
    db.run("INSERT INTO item SELECT n, 'item ' || n FROM generate_series(1, 50) n");
    db.settle("item_embedding");
    let name = db.name.clone();
    let copy = copy_at(&cluster, "staging");
    api.forget();

    let mut clone = copy.database_named(&name);
    clone.run("UPDATE item SET title = 'changed in the clone' WHERE id = 1");
    wait_until(PATIENCE, "the clone says whose it is", || {
        waiting_for(&mut clone).is_some_and(|reason| reason.contains("adopt_site"))
    });
    // The worker has read the change, and has not sent it.
    wait_until(PATIENCE, "the worker has seen the change", || {
        clone.one::<i64>("SELECT pending FROM recsync.status WHERE kind = 'pipeline'") == 1
            && clone.one::<bool>(
                "SELECT last_change IS NOT NULL FROM recsync.status WHERE kind = 'pipeline'",
            )
    });
    assert_eq!(
        clone.one::<String>("SELECT state FROM recsync.status WHERE kind = 'pipeline'"),
        "waiting"
    );
    for statement in [
        "SELECT recsync.embed('item_embedding', 'a query')",
        "SELECT * FROM recsync.search('item_embedding', 'a query')",
        "SELECT * FROM recsync.run('item_embedding')",
    ] {
        assert_eq!(
            clone.refused(statement).code().code(),
            "55000",
            "{statement}"
        );
    }
    clone.run("CREATE ROLE reader LOGIN");
    let refused = clone
        .connect_as("reader")
        .refused("SELECT recsync.adopt_site()");
    assert_eq!(refused.code().code(), "42501");
    assert!(
        refused
            .hint()
            .is_some_and(|hint| hint.contains("recsync_admin")),
        "{refused:?}"
    );
    assert_eq!(api.requests_made(), 0, "{:?}", api.texts());
    // The original goes on meanwhile.
    db.run("UPDATE item SET title = 'changed at home' WHERE id = 2");
    db.settle("item_embedding");
    assert_eq!(api.texts(), ["changed at home"]);
    api.forget();

    assert_eq!(
        clone.one::<String>("SELECT recsync.adopt_site()"),
        "staging"
    );
    clone.settle("item_embedding");
    assert_eq!(api.texts(), ["changed in the clone"]);
    clone.run("SELECT recsync.embed('item_embedding', 'a query')");
    assert_eq!(waiting_for(&mut clone), None);
    // And so it stays.
    copy.restart();
    let mut clone = copy.database_named(&name);
    clone.run("UPDATE item SET title = 'after a restart' WHERE id = 3");
    clone.settle("item_embedding");
    assert_eq!(api.times_asked("after a restart"), 1);
}
