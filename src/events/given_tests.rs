use super::*;

fn read_alone(text: &str) -> Checked<Read<'_>> {
    read(text, &mut Schemas::default())
}

fn event(text: &str) -> Given<'_> {
    match read_alone(text) {
        Ok(Read::Event(given)) => given,
        other => panic!("{other:?}"),
    }
}

fn refused(text: &str) -> Refusal {
    read_alone(text).unwrap_err()
}

#[test]
fn event_is_read_with_every_digit_of_its_numbers() {
    let given = event(
        r#"{"event_id": "e-1", "operation": "upsert", "table": "shop.\"Order\"", "record_id": 12345678901234567890,
            "data": {"price": 123.4500, "tags": ["a"], "note": null}, "timestamp": "2026-11-30T12:00:00Z", "sequence": "9223372036854775807"}"#,
    );
    assert_eq!(given.id, Id::Given("e-1".into()));
    assert_eq!(given.operation, Operation::Upsert);
    assert_eq!(given.table, Name::Written("shop.\"Order\"".into()));
    assert_eq!(given.key, Key::Single("12345678901234567890".into()));
    assert_eq!(given.sequence, Some(i64::MAX));
    let data: Vec<(&str, &str)> = given
        .data
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_ref()))
        .collect();
    assert_eq!(
        data,
        [("note", "null"), ("price", "123.4500"), ("tags", "[\"a\"]")]
    );
}

#[test]
fn id_may_be_a_number_and_the_key_an_object_or_in_the_data() {
    let given =
        event(r#"{"event_id": 7, "operation": "delete", "table": "t", "key": {"a": 1, "b": "x"}}"#);
    assert_eq!(given.id, Id::Given("7".into()));
    assert!(matches!(given.key, Key::Columns(key) if key.len() == 2));
    assert!(given.data.is_empty());
    let given = event(r#"{"event_id": 8, "operation": "insert", "table": "t", "data": {"a": 1}}"#);
    assert_eq!(given.key, Key::InData);
    assert_eq!(given.sequence, None);
}

#[test]
fn what_is_malformed_is_refused_by_its_field() {
    for (text, field) in [
        (
            r#"{"operation": "insert", "table": "t", "data": {}}"#,
            "event_id",
        ),
        (
            r#"{"event_id": "", "operation": "insert", "table": "t", "data": {}}"#,
            "event_id",
        ),
        (
            r#"{"event_id": [1], "operation": "insert", "table": "t", "data": {}}"#,
            "event_id",
        ),
        (r#"{"event_id": 1, "table": "t", "data": {}}"#, "operation"),
        (
            r#"{"event_id": 1, "operation": "replace", "table": "t", "data": {}}"#,
            "operation",
        ),
        (
            r#"{"event_id": 1, "operation": "insert", "data": {}}"#,
            "table",
        ),
        (
            r#"{"event_id": 1, "operation": "insert", "table": 5, "data": {}}"#,
            "table",
        ),
        (
            r#"{"event_id": 1, "operation": "insert", "table": "t"}"#,
            "data",
        ),
        (
            r#"{"event_id": 1, "operation": "update", "table": "t", "record_id": 1, "data": []}"#,
            "data",
        ),
        (
            r#"{"event_id": 1, "operation": "delete", "table": "t", "record_id": {"id": 1}}"#,
            "record_id",
        ),
        (
            r#"{"event_id": 1, "operation": "delete", "table": "t", "key": 1}"#,
            "key",
        ),
        (
            r#"{"event_id": 1, "operation": "delete", "table": "t", "key": {}, "record_id": 1}"#,
            "key",
        ),
        (
            r#"{"event_id": 1, "operation": "delete", "table": "t", "record_id": 1, "sequence": 1.5}"#,
            "sequence",
        ),
        (
            r#"{"event_id": 1, "operation": "delete", "table": "t", "record_id": 1, "sequence": 9223372036854775808}"#,
            "sequence",
        ),
    ] {
        assert_eq!(refused(text).field.as_deref(), Some(field), "{text}");
    }
    assert_eq!(refused("[1]").field, None);
    assert_eq!(read_alone("null"), Ok(Read::Nothing("a tombstone")));
}

#[test]
fn elements_are_those_of_an_array_or_the_one_object() {
    assert_eq!(
        elements(r#"[{"a": [1, 2]}, null, 3]"#),
        Some(vec![r#"{"a": [1, 2]}"#, "null", "3"])
    );
    assert_eq!(elements("[]"), Some(vec![]));
    assert_eq!(elements(r#"{"a": 1}"#), Some(vec![r#"{"a": 1}"#]));
    assert_eq!(elements("null"), Some(vec!["null"]));
    assert_eq!(elements("\"text\""), None);
    assert_eq!(elements("12"), None);
}

#[test]
fn keys_say_the_same_whether_quoted_or_not() {
    assert!(say_the_same("42", "\"42\""));
    assert!(!say_the_same("42", "43"));
    assert!(!say_the_same("\"a\"", "\"b\""));
}
