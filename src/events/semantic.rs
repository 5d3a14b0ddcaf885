//! What a Debezium schema says of a value that JSON has no type for: days and microseconds since 1970, decimals and bytes
//! in base64. They become what PostgreSQL reads.
//!
//! It never refuses a value: one that is not what its schema says goes to the column as it is, which will say what it
//! thinks of it.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use chrono::{DateTime, Days, NaiveDate, NaiveTime};
use serde::Deserialize;
use serde_json::value::RawValue;
use std::collections::HashMap;
use std::rc::Rc;

pub type Types = HashMap<String, Type>;

/// A field of a schema.
#[derive(Debug, Deserialize)]
pub struct Type {
    #[serde(default)]
    field: String,
    #[serde(rename = "type", default)]
    kind: String,
    /// What is meant, as `io.debezium.time.Date`.
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    parameters: HashMap<String, String>,
    #[serde(default)]
    fields: Vec<Type>,
}

/// Those of a call: each is read once, although it comes with every event.
#[derive(Default)]
pub struct Schemas<'a>(HashMap<(&'a str, &'static str), Rc<Types>>);

impl<'a> Schemas<'a> {
    /// The columns' types in `before` or `after`; without a schema, none.
    pub fn types_of(&mut self, schema: Option<&'a str>, row_field: &'static str) -> Rc<Types> {
        let schema = schema.unwrap_or("null");
        let types = self.0.entry((schema, row_field));
        Rc::clone(types.or_insert_with(|| Rc::new(read(schema, row_field))))
    }
}

fn read(schema: &str, row_field: &str) -> Types {
    let schema = serde_json::from_str::<Type>(schema).ok();
    let rows = schema.into_iter().flat_map(|schema| schema.fields);
    rows.filter(|row| row.field == row_field)
        .flat_map(|row| row.fields)
        .map(|column| (column.field.clone(), column))
        .collect()
}

impl Type {
    /// The value as JSON that PostgreSQL reads; `None`: it is that already.
    pub fn convert(&self, value: &str) -> Option<String> {
        if value == "null" {
            return None;
        }
        let Some(name) = self.name.as_deref() else {
            return (self.kind == "bytes").then(|| bytes(value)).flatten();
        };
        let number = || value.parse::<i64>().ok();
        match name {
            "io.debezium.time.Date" | "org.apache.kafka.connect.data.Date" => date(number()?),
            "io.debezium.time.Timestamp" | "org.apache.kafka.connect.data.Timestamp" => {
                timestamp(number()?.checked_mul(1_000)?)
            }
            "io.debezium.time.MicroTimestamp" => timestamp(number()?),
            "io.debezium.time.NanoTimestamp" => timestamp(number()?.div_euclid(1_000)),
            "io.debezium.time.Time" | "org.apache.kafka.connect.data.Time" => {
                time(number()?.checked_mul(1_000)?)
            }
            "io.debezium.time.MicroTime" => time(number()?),
            "io.debezium.time.NanoTime" => time(number()?.div_euclid(1_000)),
            "io.debezium.time.MicroDuration" => Some(format!("\"{} microseconds\"", number()?)),
            "io.debezium.data.Json" => json(value),
            "org.apache.kafka.connect.data.Decimal" => {
                decimal(value, self.parameters.get("scale")?.parse().ok()?)
            }
            "io.debezium.data.VariableScaleDecimal" => {
                #[derive(Deserialize)]
                struct Variable<'a> {
                    scale: usize,
                    #[serde(borrow)]
                    value: &'a RawValue,
                }
                let Variable { scale, value } = serde_json::from_str(value).ok()?;
                decimal(value.get(), scale)
            }
            _ => None,
        }
    }
}

fn date(days: i64) -> Option<String> {
    let first = NaiveDate::default();
    let distance = Days::new(days.unsigned_abs());
    let date = if days < 0 {
        first.checked_sub_days(distance)
    } else {
        first.checked_add_days(distance)
    };
    Some(format!("\"{}\"", date?))
}

/// With the zone that it is meant in, which `timestamp without time zone` passes over.
fn timestamp(microseconds: i64) -> Option<String> {
    let time = DateTime::from_timestamp_micros(microseconds)?;
    Some(format!("\"{:?}Z\"", time.naive_utc()))
}

fn time(microseconds: i64) -> Option<String> {
    const DAY: i64 = 86_400_000_000;
    if microseconds == DAY {
        return Some("\"24:00:00\"".into());
    }
    let seconds = u32::try_from(microseconds.div_euclid(1_000_000)).ok()?;
    let nanoseconds = microseconds.rem_euclid(1_000_000) as u32 * 1_000;
    let time = NaiveTime::from_num_seconds_from_midnight_opt(seconds, nanoseconds)?;
    Some(format!("\"{}\"", time))
}

/// A document that is sent as a string is a document.
fn json(value: &str) -> Option<String> {
    let text = serde_json::from_str::<String>(value).ok()?;
    serde_json::from_str::<&RawValue>(&text).ok()?;
    Some(text)
}

fn bytes(value: &str) -> Option<String> {
    let bytes = decode(value)?;
    let hexadecimal: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    Some(format!("\"\\\\x{hexadecimal}\""))
}

fn decode(value: &str) -> Option<Vec<u8>> {
    STANDARD
        .decode(serde_json::from_str::<String>(value).ok()?)
        .ok()
}

/// The unscaled number is two's complement, the most significant byte first.
fn decimal(value: &str, scale: usize) -> Option<String> {
    let mut bytes = decode(value)?;
    let is_negative = bytes.first()? & 0x80 != 0;
    if is_negative {
        let mut carries = true;
        for byte in bytes.iter_mut().rev() {
            let (sum, carry) = (!*byte).overflowing_add(u8::from(carries));
            *byte = sum;
            carries = carry;
        }
    }
    let mut digits = Vec::new(); // the last one first
    while bytes.iter().any(|byte| *byte != 0) {
        let mut rest = 0;
        for byte in &mut bytes {
            let part = rest * 256 + u32::from(*byte);
            *byte = (part / 10) as u8;
            rest = part % 10;
        }
        digits.push(char::from(b'0' + rest as u8));
    }
    while digits.len() <= scale {
        digits.push('0');
    }
    let sign = if is_negative { "-" } else { "" };
    let (fraction, whole) = digits.split_at_checked(scale)?;
    let whole: String = whole.iter().rev().collect();
    let fraction: String = fraction.iter().rev().collect();
    let point = if scale > 0 { "." } else { "" };
    Some(format!("{sign}{whole}{point}{fraction}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn converted(field: &str, value: &str) -> Option<String> {
        let schema = format!(
            r#"{{"type": "struct", "fields": [{{"type": "struct", "field": "after", "fields": [{field}]}}, {{"type": "string", "field": "op"}}]}}"#
        );
        read(&schema, "after")["c"].convert(value)
    }

    #[test]
    fn what_json_has_no_type_for_becomes_what_postgresql_reads() {
        for (kind, name, value, expected) in [
            ("int32", "io.debezium.time.Date", "19782", r#""2024-02-29""#),
            ("int32", "io.debezium.time.Date", "-1", r#""1969-12-31""#),
            (
                "int64",
                "io.debezium.time.Timestamp",
                "1709210096789",
                r#""2024-02-29T12:34:56.789Z""#,
            ),
            (
                "int64",
                "io.debezium.time.MicroTimestamp",
                "1709210096789012",
                r#""2024-02-29T12:34:56.789012Z""#,
            ),
            (
                "int64",
                "io.debezium.time.MicroTimestamp",
                "-1",
                r#""1969-12-31T23:59:59.999999Z""#,
            ),
            (
                "int64",
                "io.debezium.time.NanoTimestamp",
                "1709210096789012345",
                r#""2024-02-29T12:34:56.789012Z""#,
            ),
            (
                "int64",
                "io.debezium.time.MicroTime",
                "45296789012",
                r#""12:34:56.789012""#,
            ),
            (
                "int64",
                "io.debezium.time.MicroTime",
                "86400000000",
                r#""24:00:00""#,
            ),
            (
                "int64",
                "io.debezium.time.MicroDuration",
                "1500000",
                r#""1500000 microseconds""#,
            ),
            (
                "string",
                "io.debezium.data.Json",
                r#""{\"a\": [1.50]}""#,
                r#"{"a": [1.50]}"#,
            ),
        ] {
            let field = format!(r#"{{"field": "c", "type": "{kind}", "name": "{name}"}}"#);
            assert_eq!(
                converted(&field, value).as_deref(),
                Some(expected),
                "{name} {value}"
            );
            assert_eq!(converted(&field, "null"), None);
        }
        let field = r#"{"field": "c", "type": "bytes"}"#;
        assert_eq!(converted(field, "\"AP8n\"").unwrap(), r#""\\x00ff27""#);
        for (field, value) in [
            (r#"{"field": "c", "type": "int32"}"#, "19782"),
            (
                r#"{"field": "c", "type": "string", "name": "io.debezium.time.ZonedTimestamp"}"#,
                "\"2024-02-29T12:34:56Z\"",
            ),
            (
                r#"{"field": "c", "type": "int32", "name": "io.debezium.time.Date"}"#,
                "\"soon\"",
            ),
            (
                r#"{"field": "c", "type": "string", "name": "io.debezium.data.Json"}"#,
                "\"{\"",
            ),
        ] {
            assert_eq!(converted(field, value), None, "{value} goes as it is");
        }
    }

    #[test]
    fn decimals_keep_every_digit() {
        let field = |scale: usize| {
            format!(
                r#"{{"field": "c", "type": "bytes", "name": "org.apache.kafka.connect.data.Decimal", "parameters": {{"scale": "{scale}"}}}}"#
            )
        };
        for (bytes, scale, expected) in [
            (vec![0x00], 0, "0"),
            (vec![0x00], 2, "0.00"),
            (vec![0x05], 2, "0.05"),
            (vec![0xfb], 2, "-0.05"),
            (vec![0x80], 0, "-128"),
            (vec![0x30, 0x39], 2, "123.45"),
            (vec![0xcf, 0xc7], 2, "-123.45"),
            (
                vec![0x7f; 20],
                0,
                "727885129180488904360266563744972327436484050815",
            ),
        ] {
            let value = format!("\"{}\"", STANDARD.encode(&bytes));
            assert_eq!(converted(&field(scale), &value).as_deref(), Some(expected));
            let variable = r#"{"field": "c", "type": "struct", "name": "io.debezium.data.VariableScaleDecimal"}"#;
            let value = format!(r#"{{"scale": {scale}, "value": {value}}}"#);
            assert_eq!(converted(variable, &value).as_deref(), Some(expected));
        }
    }
}
