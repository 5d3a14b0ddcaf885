//! The JSON filter: `{"category": "shoes", "price": {"lt": 50}, "brand": ["a", "b"], "deleted_at": null}`.
//!
//! It never puts a value into SQL: values are parameters, columns come from the catalog.

use serde_json::Value;

use crate::error::{Error, Result};

/// A column of the items' source.
pub struct Column {
    pub name: String,
    /// Quoted.
    pub quoted: String,
    /// Qualified where it must be.
    pub type_name: String,
}

/// Conditions on the source's row `s`, and the text arrays that are their parameters, from `$first` on.
pub fn conditions(
    filter: &Value,
    columns: &[Column],
    relation: &str,
    first: usize,
) -> Result<(Vec<String>, Vec<Vec<String>>)> {
    let Value::Object(fields) = filter else {
        return Err(Error::argument(
            "filter",
            "it is not a JSON object",
            r#"For example {"category": "shoes", "price": {"lt": 50}}."#,
        ));
    };
    let mut conditions = Vec::new();
    let mut parameters: Vec<Vec<String>> = Vec::new();
    for (name, wanted) in fields {
        let column = column_of(name, columns, relation)?;
        let mut parameter = |values: Vec<String>| {
            parameters.push(values);
            format!("${}", first + parameters.len() - 1)
        };
        let (s, kind) = (format!("s.{}", column.quoted), &column.type_name);
        match wanted {
            Value::Null => conditions.push(format!("{s} IS NULL")),
            Value::Array(values) => {
                let values = values
                    .iter()
                    .map(|value| scalar(name, value))
                    .collect::<Result<Vec<_>>>()?;
                conditions.push(format!(
                    "{s} = ANY ({}::text[]::{kind}[])",
                    parameter(values)
                ));
            }
            Value::Object(bounds) => {
                for (operator, bound) in bounds {
                    let sign = match operator.as_str() {
                        "gte" => ">=",
                        "gt" => ">",
                        "lte" => "<=",
                        "lt" => "<",
                        "contains" => {
                            let value = parameter(vec![bound.to_string()]);
                            conditions.push(format!(
                                "pg_catalog.to_jsonb({s}) @> ({value}::text[])[1]::jsonb"
                            ));
                            continue;
                        }
                        other => {
                            return Err(Error::argument(
                                "filter",
                                format!("\"{other}\" of column \"{name}\" is no operator"),
                                "The valid ones are gte, gt, lte, lt and contains.",
                            ));
                        }
                    };
                    let value = parameter(vec![scalar(name, bound)?]);
                    conditions.push(format!("{s} {sign} ({value}::text[])[1]::{kind}"));
                }
            }
            value => {
                let value = parameter(vec![scalar(name, value)?]);
                conditions.push(format!("{s} = ({value}::text[])[1]::{kind}"));
            }
        }
    }
    Ok((conditions, parameters))
}

/// The column of that name, or an error that lists them.
pub fn column_of<'a>(name: &str, columns: &'a [Column], relation: &str) -> Result<&'a Column> {
    let names = || columns.iter().map(|column| column.name.as_str());
    columns
        .iter()
        .find(|column| column.name == name)
        .ok_or_else(|| Error::NoSuchColumn {
            relation: relation.to_owned(),
            column: name.to_owned(),
            columns: names().collect::<Vec<_>>().join(", "),
        })
}

fn scalar(column: &str, value: &Value) -> Result<String> {
    match value {
        Value::String(text) => Ok(text.clone()),
        Value::Number(number) => Ok(number.to_string()),
        Value::Bool(truth) => Ok(truth.to_string()),
        _ => Err(Error::argument(
            "filter",
            format!("a value of column \"{column}\" is neither text, number nor boolean"),
            "Scalars are compared for equality, arrays mean any of, objects hold gte, gt, lte, lt or contains.",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn columns() -> Vec<Column> {
        ["category", "price"]
            .map(|name| Column {
                name: name.into(),
                quoted: name.into(),
                type_name: "text".into(),
            })
            .into()
    }

    #[test]
    fn values_are_parameters_and_columns_are_known_ones() {
        let filter = json!({"category": ["a", "b'"], "price": {"lt": 50}});
        let (sql, parameters) = conditions(&filter, &columns(), "product", 3).unwrap();
        assert_eq!(
            sql,
            [
                "s.category = ANY ($3::text[]::text[])",
                "s.price < ($4::text[])[1]::text"
            ]
        );
        assert_eq!(
            parameters,
            [vec!["a".to_owned(), "b'".to_owned()], vec!["50".to_owned()]]
        );
    }

    #[test]
    fn an_unknown_column_or_operator_is_refused() {
        assert!(conditions(&json!({"colour": "red"}), &columns(), "product", 1).is_err());
        assert!(conditions(&json!({"price": {"like": "x"}}), &columns(), "product", 1).is_err());
        assert!(conditions(&json!(["price"]), &columns(), "product", 1).is_err());
        assert!(conditions(&json!({"price": [{}]}), &columns(), "product", 1).is_err());
    }
}
