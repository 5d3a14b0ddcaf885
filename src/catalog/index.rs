//! The index over a pipeline's vectors, as it was declared: on what it is, by which expression, under which name.
//!
//! It never builds one: a process of the worker's does, once there is something to be indexed.

use super::names::{parts, quote};
use super::pipeline::{Holder, Pipeline};

/// Bytes of a name in PostgreSQL.
const LONGEST_NAME: usize = 63;

/// The signs of a vector's numbers, as `index => 'hnsw_bit'` compares them. `schema` is that of extension vector.
pub fn bits_of(vector: &str, dimensions: i64, schema: &str) -> String {
    format!("{schema}.binary_quantize({vector})::bit({dimensions})")
}

/// The statement that builds the index; `None` where none was declared.
pub fn create(pipeline: &Pipeline, schema: &str) -> Option<String> {
    let Holder { table, column } = pipeline.holder();
    let key = match pipeline.index.as_str() {
        "hnsw" => format!("{column} {schema}.{}_cosine_ops", pipeline.storage),
        "hnsw_bit" => {
            let bits = bits_of(&column, pipeline.dimensions, schema);
            format!("({bits}) {schema}.bit_hamming_ops")
        }
        _ => return None,
    };
    let own = parts(table)?.pop()?;
    let name = name(&own, &pipeline.index, pipeline.id);
    Some(format!(
        "CREATE INDEX CONCURRENTLY {} ON {table} USING hnsw ({key})",
        quote(&name)
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
    use super::name;

    #[test]
    fn names_fit_and_stay_apart_however_long_the_tables_is() {
        assert_eq!(name("e_g1", "hnsw", 7), "e_g1_hnsw_7");
        let long = "ä".repeat(31);
        let names = [1, 2].map(|id| name(&long, "hnsw_bit", id));
        assert_ne!(names[0], names[1]);
        assert!(names.iter().all(|name| name.len() <= 63), "{names:?}");
        assert!(names[0].starts_with("ää") && names[0].ends_with("_hnsw_bit_1"));
    }
}
