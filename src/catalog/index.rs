//! The index over a pipeline's vectors, as it was declared: on what it is, by which expression, under which name.
//!
//! It never builds one: a process of the worker's does, once there is something to be indexed.

use pgrx::JsonB;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::names::{parts, quote};
use super::pipeline::{Holder, Pipeline};
use crate::error::{Error, Result};

/// Bytes of a name in PostgreSQL.
const LONGEST_NAME: usize = 63;

/// By which vectors are near.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Distance {
    #[default]
    Cosine,
    InnerProduct,
    L2,
}

impl Distance {
    pub fn of(name: &str) -> Result<Distance> {
        match name {
            "cosine" => Ok(Distance::Cosine),
            "inner_product" => Ok(Distance::InnerProduct),
            "l2" => Ok(Distance::L2),
            _ => Err(Error::argument(
                "distance",
                format!("\"{name}\" is not one"),
                "The valid ones are cosine, inner_product and l2.",
            )),
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Distance::Cosine => "cosine",
            Distance::InnerProduct => "inner_product",
            Distance::L2 => "l2",
        }
    }

    /// pgvector's operator, less for what is nearer: of the inner product it gives the negative.
    pub fn operator(self) -> &'static str {
        match self {
            Distance::Cosine => "<=>",
            Distance::InnerProduct => "<#>",
            Distance::L2 => "<->",
        }
    }

    pub fn operator_class(self, storage: &str) -> String {
        let of = match self {
            Distance::Cosine => "cosine",
            Distance::InnerProduct => "ip",
            Distance::L2 => "l2",
        };
        format!("{storage}_{of}_ops")
    }

    /// SQL: what a distance is as a score, more for what is nearer.
    pub fn score(self, distance: &str) -> String {
        match self {
            Distance::Cosine => format!("1 - ({distance})"),
            Distance::InnerProduct => format!("-({distance})"),
            Distance::L2 => format!("1 / (1 + ({distance}))"),
        }
    }
}

/// How a graph is made, where that is not left to pgvector.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Options {
    pub m: Option<i32>,
    pub ef_construction: Option<i32>,
}

/// What pgvector makes a graph by if it is not told.
const USUAL_M: i32 = 16;
const USUAL_EF_CONSTRUCTION: i32 = 64;

impl Options {
    /// What is wrong with the argument `index_options`, where it is none of these.
    pub fn of(given: &Value) -> std::result::Result<Options, String> {
        if !given.is_object() {
            return Err(format!("{given} is no JSON object"));
        }
        let options = Options::deserialize(given).map_err(|error| error.to_string())?;
        let (m, ef) = (
            options.m.unwrap_or(USUAL_M),
            options.ef_construction.unwrap_or(USUAL_EF_CONSTRUCTION),
        );
        if !(2..=100).contains(&m) {
            return Err(format!("m is from 2 to 100, not {m}"));
        }
        if !(4..=1_000).contains(&ef) {
            return Err(format!("ef_construction is from 4 to 1000, not {ef}"));
        }
        if ef < 2 * m {
            return Err(format!(
                "ef_construction, {ef}, has to be at least twice m, {m}"
            ));
        }
        Ok(options)
    }

    /// As it is stored: what was given.
    pub fn json(self) -> JsonB {
        let given = self.given().into_iter();
        JsonB(
            given
                .map(|(name, value)| (name.to_owned(), Value::from(value)))
                .collect(),
        )
    }

    fn given(self) -> Vec<(&'static str, i32)> {
        let options = [("m", self.m), ("ef_construction", self.ef_construction)];
        let given = options.into_iter();
        given
            .filter_map(|(name, value)| Some((name, value?)))
            .collect()
    }

    /// As `WITH` of CREATE INDEX takes them.
    fn with(self) -> String {
        let given = self.given().into_iter();
        let given: Vec<String> = given
            .map(|(name, value)| format!("{name} = {value}"))
            .collect();
        match given.as_slice() {
            [] => String::new(),
            given => format!(" WITH ({})", given.join(", ")),
        }
    }
}

/// The signs of a vector's numbers, as `index => 'hnsw_bit'` compares them. `schema` is that of extension vector.
pub fn bits_of(vector: &str, dimensions: i64, schema: &str) -> String {
    format!("{schema}.binary_quantize({vector})::bit({dimensions})")
}

/// The statement that builds the index; `None` where none was declared. Nobody reads a generation that is not in service,
/// and who writes it holds still meanwhile.
pub fn create(pipeline: &Pipeline, schema: &str) -> Option<String> {
    let Holder { table, column } = pipeline.holder();
    let key = match pipeline.index.as_str() {
        "hnsw" => {
            let class = pipeline.distance.operator_class(&pipeline.storage);
            format!("{column} {schema}.{class}")
        }
        "hnsw_bit" => {
            let bits = bits_of(&column, pipeline.dimensions, schema);
            format!("({bits}) {schema}.bit_hamming_ops")
        }
        _ => return None,
    };
    let own = parts(table)?.pop()?;
    let name = name(&own, &pipeline.index, pipeline.id);
    let concurrently = match pipeline.of_pipeline {
        None => " CONCURRENTLY",
        Some(_) => "",
    };
    Some(format!(
        "CREATE INDEX{concurrently} {} ON {table} USING hnsw ({key}){}",
        quote(&name),
        pipeline.index_options.unwrap_or_default().with(),
    ))
}

/// None that PostgreSQL would give by itself: what is called so and is not valid is left from a build that was
/// broken off. The number keeps long names apart.
fn name(table: &str, index: &str, pipeline: i32) -> String {
    let end = format!("_{index}_{pipeline}");
    let room = table.floor_char_boundary(LONGEST_NAME - end.len());
    format!("{}{end}", &table[..room])
}

/// What an index's name looks like that was made for this pipeline: a pattern for LIKE's sister `~`.
pub fn name_pattern(pipeline: &Pipeline) -> String {
    format!("_hnsw(_bit)?_{}$", pipeline.id)
}

#[cfg(test)]
mod tests {
    use super::{Options, name};
    use serde_json::json;

    #[test]
    fn names_fit_and_stay_apart_however_long_the_tables_is() {
        assert_eq!(name("e_g1", "hnsw", 7), "e_g1_hnsw_7");
        let long = "ä".repeat(31);
        let names = [1, 2].map(|id| name(&long, "hnsw_bit", id));
        assert_ne!(names[0], names[1]);
        assert!(names.iter().all(|name| name.len() <= 63), "{names:?}");
        assert!(names[0].starts_with("ää") && names[0].ends_with("_hnsw_bit_1"));
    }

    #[test]
    fn options_are_those_that_pgvector_takes() {
        let of = |given| Options::of(&given);
        assert_eq!(of(json!({})).unwrap().with(), "");
        assert_eq!(of(json!({"m": 32})).unwrap().with(), " WITH (m = 32)");
        let both = of(json!({"ef_construction": 200, "m": 100})).unwrap();
        assert_eq!(both.with(), " WITH (m = 100, ef_construction = 200)");
        for (given, says) in [
            (json!({"m": 1}), "from 2 to 100"),
            (json!({"m": 101, "ef_construction": 1000}), "from 2 to 100"),
            (json!({"ef_construction": 1001}), "from 4 to 1000"),
            (json!({"m": 33}), "at least twice m"),
            (json!({"m": "16"}), "invalid type"),
            (json!({"lists": 100}), "unknown field"),
            (json!([16, 64]), "no JSON object"),
        ] {
            let refused = of(given.clone()).unwrap_err();
            assert!(refused.contains(says), "{given}: {refused}");
        }
    }
}
