//! Tests inside the server, each in one transaction that is rolled back: what the trigger logs, what is refused.
//! They never see the worker act, which reads committed rows only.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

// pgrx looks for the tests in a schema of this name.
#[pgrx::pg_schema]
mod tests {
    use pgrx::prelude::*;

    fn run(sql: &str) {
        Spi::run(sql).unwrap();
    }

    fn text(sql: &str) -> String {
        Spi::get_one::<String>(sql).unwrap().unwrap_or_default()
    }

    /// SQLSTATE, message, detail and hint of the error that `sql` must end with.
    fn refusal(sql: &str) -> String {
        run(
            "CREATE OR REPLACE FUNCTION pg_temp.refusal(statement text) RETURNS text LANGUAGE plpgsql AS $$
             DECLARE detail text; hint text;
             BEGIN EXECUTE statement; RETURN 'went through';
             EXCEPTION WHEN OTHERS THEN
                 GET STACKED DIAGNOSTICS detail = PG_EXCEPTION_DETAIL, hint = PG_EXCEPTION_HINT;
                 RETURN concat_ws(' | ', SQLSTATE, SQLERRM, detail, hint);
             END $$",
        );
        Spi::get_one_with_args::<String>("SELECT pg_temp.refusal($1)", &[sql.into()])
            .unwrap()
            .unwrap_or_default()
    }

    /// Table `item` and pipeline `e` over its columns title and body.
    fn watched() {
        run("CREATE SERVER builtin FOREIGN DATA WRAPPER recsync OPTIONS (api 'builtin');
             CREATE TABLE item (id int, part text, title text, body text, stock int, PRIMARY KEY (part, id));
             SELECT recsync.create_pipeline('e', 'item', columns => '{title,body}', server => 'builtin')");
    }

    /// The log, oldest first: op, key, key before.
    fn log() -> String {
        crate::capture::buffer::flush(); // as at commit
        text(
            "SELECT COALESCE(string_agg(concat_ws(' ', op, record_key, old_record), ', ' ORDER BY sequence), '') FROM recsync.change_log",
        )
    }

    #[pg_test]
    fn trigger_logs_inserts_updates_and_deletes_with_their_keys() {
        watched();
        run("INSERT INTO item VALUES (1, 'a', 'title', 'body')");
        run("UPDATE item SET title = 'other'");
        run("UPDATE item SET part = 'b'");
        run("DELETE FROM item");
        run("TRUNCATE item");
        assert_eq!(
            log(),
            r#"INSERT {"id": 1, "part": "a"}, UPDATE {"id": 1, "part": "a"}, UPDATE {"id": 1, "part": "b"} {"id": 1, "part": "a"}, DELETE {"id": 1, "part": "b"}, TRUNCATE"#
        );
    }

    #[pg_test]
    fn trigger_logs_no_update_that_leaves_the_used_columns_as_they_are() {
        watched();
        run("INSERT INTO item VALUES (1, 'a', repeat('long text ', 10000), NULL, 0)");
        run("UPDATE item SET stock = stock + 1");
        run("UPDATE item SET title = title, body = NULL, stock = 5");
        run("UPDATE item SET id = id");
        assert_eq!(log(), r#"INSERT {"id": 1, "part": "a"}"#);
        run("UPDATE item SET body = ''");
        assert!(log().ends_with(r#", UPDATE {"id": 1, "part": "a"}"#));
    }

    #[pg_test]
    fn equality_of_the_stored_image_counts_not_an_equality_operator() {
        run("CREATE SERVER builtin FOREIGN DATA WRAPPER recsync OPTIONS (api 'builtin');
             CREATE TABLE item (id int PRIMARY KEY, price numeric, data json, place point);
             SELECT recsync.create_pipeline('e', 'item', content => $$concat(price, data, place)$$, server => 'builtin');
             INSERT INTO item VALUES (1, 1.0, '{}', '(1,2)')");
        for change in [
            "price = 1.00",
            "price = 1.00",
            "data = '{ }'",
            "place = '(1.0,2)'",
            "place = '(1,3)'",
        ] {
            run(&format!("UPDATE item SET {change}"));
        }
        crate::capture::buffer::flush();
        assert_eq!(
            text("SELECT string_agg(op, ' ' ORDER BY sequence) FROM recsync.change_log"),
            "INSERT UPDATE UPDATE UPDATE"
        );
    }

    #[pg_test]
    fn rollback_to_a_savepoint_leaves_nothing_in_the_log() {
        watched();
        run("INSERT INTO item VALUES (1, 'a', 'kept')");
        run("DO $$ BEGIN
               INSERT INTO item VALUES (2, 'a', 'undone'); UPDATE item SET title = 'undone'; DELETE FROM item; PERFORM 1 / 0;
             EXCEPTION WHEN division_by_zero THEN NULL; END $$");
        assert_eq!(log(), r#"INSERT {"id": 1, "part": "a"}"#);
    }

    #[pg_test]
    fn log_says_who_and_from_where() {
        watched();
        run("SET LOCAL application_name = 'the shop'; INSERT INTO item VALUES (1, 'a')");
        crate::capture::buffer::flush();
        assert_eq!(
            text(
                "SELECT concat_ws(' ', table_name, changed_by = session_user, application_name, transaction_id = pg_current_xact_id()) FROM recsync.change_log"
            ),
            "item t the shop t"
        );
    }

    #[pg_test]
    fn ddl_on_a_watched_table_goes_through_and_capture_goes_on() {
        watched();
        run(
            "ALTER TABLE item ALTER title TYPE varchar(100); ALTER TABLE item RENAME stock TO amount; ALTER TABLE item DROP amount",
        );
        run("INSERT INTO item VALUES (1, 'a', 'title')");
        run("ALTER TABLE item DROP body");
        run("UPDATE item SET title = 'other'");
        assert_eq!(
            log(),
            r#"INSERT {"id": 1, "part": "a"}, UPDATE {"id": 1, "part": "a"}"#
        );
    }

    #[pg_test]
    fn validator_names_the_option_and_what_is_valid() {
        let create = |options: &str| {
            refusal(&format!(
                "CREATE SERVER s FOREIGN DATA WRAPPER recsync OPTIONS ({options})"
            ))
        };
        for (options, wanted) in [
            (
                "api 'builtin', colour 'red'",
                &["HV00D", "colour", "max_batch_inputs"][..],
            ),
            (
                "api 'telepathy'",
                &["HV024", "telepathy", "openai, azure_openai"],
            ),
            ("model 'm'", &["HV00J", "api", "cohere, builtin"]),
            (
                "api 'openai', url 'http://h/v1', model 'm', dimensions '0'",
                &["HV024", "dimensions", "from 1 to 16000"],
            ),
            (
                "api 'openai', url 'h', model 'm', dimensions '8'",
                &["HV024", "url", "https://"],
            ),
        ] {
            let refused = create(options);
            for wanted in wanted {
                assert!(
                    refused.contains(wanted),
                    "{options}: \"{wanted}\" is not in: {refused}"
                );
            }
        }
    }

    #[pg_test]
    fn expressions_that_change_by_themselves_or_are_no_expression_are_refused() {
        watched();
        for (content, wanted) in [
            ("title || random()", "22023"),
            ("title || clock_timestamp()", "22023"),
            ("title || nextval('recsync.change_log_sequence')", "22023"),
            ("(SELECT max(title) FROM item)", "0A000"),
            ("count(*) OVER ()", "42P20"),
            ("max(title)", "42803"),
            ("generate_series(1, 2)", "0A000"),
            ("title, body", "22023"),
            ("title FROM item", "22023"),
            ("title; DROP TABLE item", "42601"),
            ("colour", "42703"),
            ("", "22023"),
        ] {
            let refused = refusal(&format!(
                "SELECT recsync.create_pipeline('f', 'item', content => $${content}$$, server => 'builtin')"
            ));
            assert!(refused.starts_with(wanted), "{content}: {refused}");
        }
        let refused = refusal(
            "SELECT recsync.create_pipeline('f', 'item', columns => '{title}', row_filter => 'title', server => 'builtin')",
        );
        assert!(refused.starts_with("42804"), "{refused}");
    }

    #[pg_test]
    fn expressions_are_stored_fully_qualified() {
        watched();
        run(
            "CREATE SCHEMA shop; CREATE FUNCTION shop.label(text) RETURNS text IMMUTABLE LANGUAGE sql AS 'SELECT upper($1)'",
        );
        run("SET LOCAL search_path = shop, public");
        run(
            "SELECT recsync.create_pipeline('f', 'item', content => 'label(title)', row_filter => 'stock > 0', server => 'builtin')",
        );
        run("SET LOCAL search_path = pg_catalog");
        assert_eq!(
            text("SELECT used_columns::text FROM recsync.pipeline WHERE relation = 'public.f'"),
            "{stock,title}"
        );
        let content = text("SELECT content FROM recsync.pipeline WHERE relation = 'public.f'");
        assert!(content.contains("shop.label("), "{content}");
    }

    #[pg_test]
    fn builtin_embedding_is_the_same_each_time_of_length_one_and_knows_words() {
        run("CREATE SERVER builtin FOREIGN DATA WRAPPER recsync OPTIONS (api 'builtin')");
        let holds = |condition: &str| Spi::get_one::<bool>(&format!("SELECT {condition}")).unwrap();
        for condition in [
            "recsync.embed('builtin', 'trail shoes') = recsync.embed('builtin', 'trail shoes')",
            "recsync.embed('builtin', 'trail shoes') = recsync.embed('builtin', 'Trail, shoes!', purpose => 'document')",
            "vector_dims(recsync.embed('builtin', 'x')) = 384",
            "abs(vector_norm(recsync.embed('builtin', 'a longer text of several words')) - 1) < 1e-6",
            "recsync.embed('builtin', 'trail shoes') <=> recsync.embed('builtin', 'shoes for a trail')
               < recsync.embed('builtin', 'trail shoes') <=> recsync.embed('builtin', 'winter coat')",
            "(SELECT provolatile = 's' FROM pg_proc WHERE oid = 'recsync.embed(text, text, text)'::regprocedure)",
        ] {
            assert_eq!(holds(condition), Some(true), "{condition}");
        }
    }
}
