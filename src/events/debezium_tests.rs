use super::super::given::{Checked, Id, Key, Name, Operation, Read, Refusal, read};
use super::super::semantic::Schemas;

fn read_alone(text: &str) -> Checked<Read<'_>> {
    read(text, &mut Schemas::default())
}

const POSTGRESQL: &str = r#"{
  "before": null, "after": {"id": 1, "name": "Anne", "price": 12.50},
  "source": {"version": "3.0.0.Final", "connector": "postgresql", "name": "shop", "ts_ms": 1700000000123, "snapshot": "false", "db": "inventory",
             "sequence": "[\"24023119\",\"24023128\"]", "schema": "public", "table": "customers", "txId": 555, "lsn": 24023128, "xmin": null},
  "op": "OP", "ts_ms": 1700000000456, "transaction": null}"#;

const MYSQL: &str = r#"{
  "before": {"id": 1004, "first_name": "Anne"}, "after": {"id": 1004, "first_name": "Anne Marie"},
  "source": {"version": "3.0.0.Final", "name": "mysql-server-1", "connector": "mysql", "ts_ms": 1465581029100, "snapshot": "false", "db": "inventory", "table": "customers",
             "server_id": 223344, "gtid": null, "file": "mysql-bin.000003", "pos": 484, "row": 0, "thread": 7},
  "op": "u", "ts_ms": 1465581029523}"#;

fn event(text: &str) -> super::Given<'_> {
    match read_alone(text) {
        Ok(Read::Event(given)) => given,
        other => panic!("{other:?}"),
    }
}

fn refused(text: &str) -> Refusal {
    read_alone(text).unwrap_err()
}

#[test]
fn change_of_postgresql_has_table_position_and_sequence() {
    for (op, operation) in [
        ("c", Operation::Upsert),
        ("r", Operation::Upsert),
        ("u", Operation::Upsert),
    ] {
        let text = POSTGRESQL.replace("OP", op);
        let given = event(&text);
        assert_eq!(given.operation, operation);
        assert_eq!(
            given.table,
            Name::Exact(["public".into(), "customers".into()])
        );
        assert_eq!(
            given.id,
            Id::Position(format!("shop:24023128:555:1700000000123:::{op}"))
        );
        assert_eq!(
            (given.sequence, given.origin.as_str()),
            (Some(24_023_128), "shop")
        );
        assert_eq!(given.key, Key::InData);
        assert_eq!(given.data["price"], "12.50");
    }
}

#[test]
fn change_of_mysql_has_its_database_as_schema_and_no_sequence() {
    let given = event(MYSQL);
    assert_eq!(
        given.table,
        Name::Exact(["inventory".into(), "customers".into()])
    );
    assert_eq!(
        given.id,
        Id::Position("mysql-server-1:223344:mysql-bin.000003:484:0:1465581029100:u".into())
    );
    assert_eq!(given.sequence, None);
    assert_eq!(given.data["first_name"], "\"Anne Marie\"");
}

#[test]
fn deletion_has_its_key_from_before_and_a_tombstone_is_nothing() {
    let text = POSTGRESQL
        .replace("OP", "d")
        .replace("\"before\": null, \"after\"", "\"after\": null, \"before\"");
    let given = event(&text);
    assert_eq!(
        (given.operation, given.data_field),
        (Operation::Delete, "before")
    );
    assert_eq!(given.data["id"], "1");
    assert!(matches!(read_alone("null"), Ok(Read::Nothing(_))));
    assert!(matches!(
        read_alone(r#"{"schema": null, "payload": null}"#),
        Ok(Read::Nothing(_))
    ));
}

#[test]
fn schema_says_what_numbers_mean() {
    let text = r#"{
      "schema": {"type": "struct", "name": "shop.public.t.Envelope", "fields": [
        {"type": "struct", "field": "after", "fields": [{"type": "int32", "field": "id"}, {"type": "int32", "name": "io.debezium.time.Date", "field": "born"}]},
        {"type": "string", "field": "op"}]},
      "payload": {"after": {"id": 1, "born": 19782}, "op": "c", "source": {"name": "shop", "schema": "public", "table": "t", "lsn": 1, "txId": 2}}}"#;
    assert_eq!(event(text).data["born"], "\"2024-02-29\"");
    let bare = text.replace("\"schema\": {\"type\"", "\"unused\": {\"type\"");
    assert_eq!(event(&bare).data["born"], "19782");
}

#[test]
fn large_value_that_was_not_touched_is_not_written() {
    for value in [
        r#""__debezium_unavailable_value""#,
        r#"["__debezium_unavailable_value"]"#,
        r#""X19kZWJleml1bV91bmF2YWlsYWJsZV92YWx1ZQ==""#,
    ] {
        let text = POSTGRESQL.replace("OP", "u").replace("\"Anne\"", value);
        let given = event(&text);
        assert_eq!(given.operation, Operation::Update);
        assert!(!given.data.contains_key("name"));
    }
}

#[test]
fn id_sequence_and_table_of_the_senders_count() {
    let text = POSTGRESQL.replace("OP", "c").replace(
        "\"before\": null",
        "\"event_id\": \"mine\", \"sequence\": 5, \"table\": \"people\"",
    );
    let given = event(&text);
    assert_eq!(given.id, Id::Given("mine".into()));
    assert_eq!(given.sequence, Some(5));
    assert_eq!(given.table, Name::Written("people".into()));
}

#[test]
fn what_is_no_change_of_a_row_is_refused_by_its_field_or_ignored() {
    let with = |op: &str| POSTGRESQL.replace("OP", op);
    for (text, field) in [
        (with("t"), "op"),
        (with("x"), "op"),
        (with("c").replace("\"op\": \"c\"", "\"op\": null"), "op"),
        (with("d"), "before"),
        (with("c").replace("\"after\"", "\"afterwards\""), "after"),
        (with("c").replace("\"source\"", "\"sauce\""), "source"),
        (with("c").replace("\"lsn\"", "\"ls\""), "event_id"),
        (MYSQL.replace("mysql-bin.000003", ""), "event_id"),
        (with("c").replace("\"table\"", "\"chair\""), "source.table"),
        (r#"{"schema": null, "payload": 5}"#.into(), "payload"),
    ] {
        assert_eq!(refused(&text).field.as_deref(), Some(field), "{text}");
    }
    assert!(matches!(read_alone(&with("m")), Ok(Read::Nothing(_))));
}
