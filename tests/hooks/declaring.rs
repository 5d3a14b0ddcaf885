//! create_hook, drop_hook: what is refused, what it is called.

use crate::support::{Api, PATIENCE, Receiver, Sql, shared, wait_until};
use crate::{items, server, status};

#[test]
fn what_cannot_be_a_hook_is_refused_with_a_reason_and_a_hint() {
    let (api, receiver) = (Api::start(), Receiver::start());
    let mut db = items(shared(), &api, &receiver, "");
    db.run("CREATE SERVER unsigned FOREIGN DATA WRAPPER recsync OPTIONS (api 'webhook', url 'http://127.0.0.1:1')");
    for (arguments, code, wanted) in [
        (
            "'h', 'deleted'",
            "22023",
            &["deleted", "embedded, invalidated"][..],
        ),
        ("'h', 'embedded', 'nowhere'", "42704", &["nowhere"]),
        (
            "'h', 'embedded', 'api'",
            "22023",
            &["embeds texts", "api 'webhook'"],
        ),
        (
            "'h', 'embedded', 'unsigned'",
            "22023",
            &["signing key", "whsec_"],
        ),
        ("'h', 'embedded', 'hooks', 'told'", "22023", &["path", "/"]),
        (
            "'h', 'embedded', 'hooks', '/a b'",
            "22023",
            &["path", "percent"],
        ),
        (
            "'h', 'embedded', 'hooks', '/?key=sk-123456789012345678901234'",
            "22023",
            &["path", "credential"],
        ),
        (
            "'h', 'embedded', 'hooks', method => 'DELETE'",
            "22023",
            &["DELETE", "POST, PUT, PATCH"],
        ),
        (
            "'h', 'embedded', 'hooks', body => '{\"a\": \"{{users}}\"}'",
            "22023",
            &["users", "{{keys}}"],
        ),
        (
            "'h', 'embedded', 'hooks', body => '{\"a\": \"of {{keys}}\"}'",
            "22023",
            &["whole string"],
        ),
        (
            "'h', 'embedded', listens_to => 'nothing'",
            "42704",
            &["nothing"],
        ),
        (
            "'h', 'invalidated', listens_to => 'item_embedding'",
            "22023",
            &["recommenders"],
        ),
        ("'h', 'embedded', notify => false", "22023", &["server"]),
        ("'nowhere.h', 'embedded'", "22023", &["nowhere"]),
        ("'', 'embedded'", "22023", &["name"]),
        ("NULL, 'embedded'", "22023", &["name"]),
        ("'told', 'embedded'", "42710", &["told", "drop_hook"]),
    ] {
        let error = db.refused(&format!("SELECT recsync.create_hook({arguments})"));
        assert_eq!(error.code().code(), code, "{arguments}: {error:?}");
        let said = format!("{} {}", error.message(), error.hint().unwrap_or_default());
        for part in wanted {
            assert!(said.contains(part), "{arguments}: {said}");
        }
    }
    assert_eq!(
        db.refused("SELECT recsync.create_pipeline('x', 'item', '{title}', server => 'hooks')")
            .code()
            .code(),
        "22023"
    );
    assert_eq!(
        db.refused("SELECT recsync.embed('hooks', 'text')")
            .code()
            .code(),
        "22023"
    );
}

#[test]
fn a_hook_is_made_once_and_goes_with_what_it_listens_to() {
    let (api, receiver) = (Api::start(), Receiver::start());
    let mut db = items(shared(), &api, &receiver, "");
    let same = "'told', 'embedded', 'hooks', '/told', listens_to => 'item_embedding', if_not_exists => true";
    assert_eq!(
        db.one::<String>(&format!("SELECT recsync.create_hook({same})")),
        "public.told"
    );
    let other = same.replace("/told", "/other");
    assert_eq!(
        db.refused(&format!("SELECT recsync.create_hook({other})"))
            .code()
            .code(),
        "42710"
    );
    db.run("SELECT recsync.create_hook('beside', 'embedded')");
    db.run("SELECT recsync.drop_hook('beside')");
    assert_eq!(
        db.refused("SELECT recsync.drop_hook('beside')")
            .code()
            .code(),
        "42704"
    );
    db.run("SELECT recsync.drop_hook('beside', if_exists => true)");
    // Its server is needed; what it listens to takes it along.
    let error = db.refused("DROP SERVER hooks");
    assert_eq!(error.code().code(), "2BP01");
    assert!(error.message().contains("public.told"));
    db.run("SELECT recsync.drop_pipeline('item_embedding')");
    assert_eq!(
        db.one::<i64>("SELECT count(*) FROM recsync.status WHERE kind = 'hook'"),
        0
    );
    db.run("DROP SERVER hooks");
}

#[test]
fn a_hook_follows_its_server_schema_and_owner_when_they_are_renamed() {
    let (api, receiver) = (Api::start(), Receiver::start());
    let mut db = shared().database();
    db.items(&api, "");
    server(&mut db, &receiver, "");
    db.run("CREATE ROLE hook_owner SUPERUSER; CREATE SCHEMA tenant; SET ROLE hook_owner");
    db.run("SELECT recsync.create_hook('tenant.told', 'embedded', 'hooks')");
    db.run("RESET ROLE; ALTER SERVER hooks RENAME TO \"Other hooks\"; ALTER SCHEMA tenant RENAME TO \"Ten ant\"; ALTER ROLE hook_owner RENAME TO hook_heir");
    db.run("INSERT INTO item VALUES (1, 'one')");
    receiver.wait_for(1);
    assert_eq!(status(&mut db, "name"), "\"Ten ant\".told");
    assert_eq!(status(&mut db, "state"), "running");
    db.run("SELECT recsync.pause('\"Ten ant\".told')");
    // DROP SERVER … CASCADE and a role that is gone are reasons of a pause, and no more.
    db.run("SELECT recsync.resume('\"Ten ant\".told'); DROP SERVER \"Other hooks\" CASCADE");
    wait_until(PATIENCE, "the hook is paused", || {
        status(&mut db, "paused_reason").contains("Other hooks")
    });
    db.run("SELECT recsync.drop_hook('\"Ten ant\".told'); DROP ROLE hook_heir");
}

#[test]
fn a_paused_hook_is_told_later_and_one_that_is_switched_off_too() {
    let (api, receiver) = (Api::start(), Receiver::start());
    let mut db = items(shared(), &api, &receiver, "");
    db.run("SELECT recsync.pause('told')");
    db.run("INSERT INTO item VALUES (1, 'one')");
    db.settle("item_embedding");
    assert_eq!(
        (status(&mut db, "state"), status(&mut db, "pending")),
        ("paused".into(), "1".into())
    );
    assert!(receiver.letters().is_empty());
    db.run("SELECT recsync.resume('told')");
    receiver.wait_for(1);
}
