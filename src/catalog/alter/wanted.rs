//! A pipeline's declaration as alter_pipeline is to leave it: what was given is checked as at its creation, the rest is as
//! it was.
//!
//! It never writes anything.

use pgrx::datum::Interval;
use pgrx::pg_sys;

use super::Given;
use crate::catalog::column;
use crate::catalog::declare::checks::{content_of_columns, form, relation_name, when};
use crate::catalog::expression::{self, Expression, Wanted as Kind};
use crate::catalog::names::{parts, quote, select_one};
use crate::catalog::pipeline::{Pipeline, When};
use crate::catalog::server;
use crate::catalog::watch::CAPTURES;
use crate::error::{Error, Result};

/// What stands for "none" where NULL means "as it is".
const NONE: &str = "-";

pub struct Wanted {
    pub columns: Option<Vec<String>>,
    pub content: String,
    pub row_filter: Option<String>,
    pub used_columns: Vec<String>,
    pub server: String,
    /// By the server of before or another: whether its model is another one.
    other_model: bool,
    pub when: When,
    pub index: String,
    pub capture: String,
    pub on_replica: bool,
    /// Where they change.
    pub names: Option<Names>,
    pub owner: Option<String>,
}

/// The names of its relations, where they change.
pub struct Names {
    /// Of the view: unqualified, and both qualified and quoted.
    pub own: String,
    pub relation: String,
    /// Of the table and the function, unqualified.
    pub vectors: Option<String>,
}

impl Wanted {
    pub fn of(is: &Pipeline, given: &Given) -> Result<Wanted> {
        refuse_what_is_rebuilt(is, given)?;
        let mut wanted = Wanted {
            columns: is.columns.clone(),
            content: is.content.clone(),
            row_filter: is.row_filter.clone(),
            used_columns: is.used_columns.clone(),
            server: is.server.clone(),
            other_model: false,
            when: when_of(is, given)?,
            index: is.index.clone(),
            capture: given.capture.unwrap_or(&is.capture).to_owned(),
            on_replica: given.on_replica.unwrap_or(is.on_replica),
            names: names_of(is, given)?,
            owner: given.owner.map(str::to_owned),
        };
        wanted
            .owner
            .take_if(|owner| Some(&*owner) == is.owner_name.as_ref());
        if let Some(owner) = &wanted.owner {
            require_role(owner)?;
        }
        if !CAPTURES.contains(&wanted.capture.as_str()) {
            return Err(Error::argument(
                "capture",
                format!("\"{}\" is not a capture mode", wanted.capture),
                "The valid ones are keys, columns and full.",
            ));
        }
        wanted.set_text(is, given)?;
        if let Some(server) = given.server {
            wanted.set_server(is, server)?;
        }
        if let Some(index) = given.index {
            wanted.set_index(is, index)?;
        }
        Ok(wanted)
    }

    /// Whether nothing is to be changed.
    pub fn is_as(&self, is: &Pipeline) -> bool {
        !self.has_other_texts(is)
            && !self.captures_otherwise(is)
            && self.server == is.server
            && self.when == is.when
            && self.index == is.index
            && self.names.is_none()
            && self.owner.is_none()
    }

    /// Whether a row may need another vector, or none.
    pub fn looks_again(&self, is: &Pipeline) -> bool {
        self.has_other_texts(is) || self.other_model
    }

    fn has_other_texts(&self, is: &Pipeline) -> bool {
        self.content != is.content || self.row_filter != is.row_filter
    }

    /// Whether the source's triggers are to log otherwise.
    pub fn captures_otherwise(&self, is: &Pipeline) -> bool {
        self.used_columns != is.used_columns
            || self.capture != is.capture
            || self.on_replica != is.on_replica
    }

    /// The view's name, qualified and quoted.
    pub fn relation<'a>(&'a self, is: &'a Pipeline) -> &'a str {
        let names = self.names.as_ref();
        names.map_or(&is.relation, |names| &names.relation)
    }

    fn set_text(&mut self, is: &Pipeline, given: &Given) -> Result<()> {
        let source = is.source_oid();
        let stored =
            |argument, sql: &str, kind| expression::parse_stored(argument, source, sql, kind);
        let content = match (&given.columns, given.content) {
            (None, None) => None,
            (Some(columns), None) if !columns.is_empty() => {
                let content = content_of_columns(source, &is.source, columns)?;
                self.columns = Some(columns.clone());
                Some(expression::parse("columns", source, &content, Kind::Text)?)
            }
            (None, Some(content)) => {
                self.columns = None;
                Some(expression::parse("content", source, content, Kind::Text)?)
            }
            _ => {
                return Err(Error::argument(
                    "columns",
                    "give either columns or content",
                    "columns => ARRAY['title', 'description'] joins columns by newlines; content => $$title || ' by ' || author$$ is any expression.",
                ));
            }
        };
        let filter = match given.row_filter {
            None => None,
            Some(NONE) => Some(None),
            Some(filter) => Some(Some(expression::parse(
                "row_filter",
                source,
                filter,
                Kind::Boolean,
            )?)),
        };
        if content.is_none() && filter.is_none() {
            return Ok(());
        }
        // What stays is analysed as well, for the columns that it uses; its text stays as it is stored.
        let content = match content {
            Some(content) => {
                self.content.clone_from(&content.sql);
                content
            }
            None => stored("content", &is.content, Kind::Text)?,
        };
        let filter = match (filter, &is.row_filter) {
            (Some(filter), _) => {
                self.row_filter = filter.as_ref().map(|filter| filter.sql.clone());
                filter
            }
            (None, Some(filter)) => Some(stored("row_filter", filter, Kind::Boolean)?),
            (None, None) => None,
        };
        self.set_used_columns(is, &content, filter.as_ref())
    }

    fn set_used_columns(
        &mut self,
        is: &Pipeline,
        content: &Expression,
        filter: Option<&Expression>,
    ) -> Result<()> {
        let expressions = || [Some(content), filter].into_iter().flatten();
        self.used_columns = expressions()
            .flat_map(|expression| expression.columns.clone())
            .collect();
        self.used_columns.sort();
        self.used_columns.dedup();
        if let Some(column) = &is.into_column
            && expressions().any(|expression| expression.whole_row)
        {
            return Err(Error::argument(
                "content",
                format!("it uses the whole row, and column {} of it", quote(column)),
                "The text and the filter cannot use a column that recsync writes: name its other columns.",
            ));
        }
        column::check_use(&is.source, None, &self.used_columns, false)
    }

    fn set_server(&mut self, is: &Pipeline, name: &str) -> Result<()> {
        // SAFETY: the current user's OID.
        server::endpoint(name, unsafe { pg_sys::GetUserId() })?;
        let endpoint = server::endpoint(name, is.owner())?;
        if endpoint.dimensions as i64 != is.dimensions {
            return Err(Error::argument(
                "server",
                format!(
                    "server {} gives {} dimensions, the vectors of {} have {}",
                    quote(name),
                    endpoint.dimensions,
                    is.relation,
                    is.dimensions
                ),
                format!(
                    "Vectors of another width are another generation: SELECT recsync.rebuild('{}', server => '{name}') builds it beside these.",
                    is.relation
                ),
            ));
        }
        let model = is.endpoint().map(|endpoint| endpoint.model).ok();
        self.other_model = name != is.server && model != Some(endpoint.model);
        self.server = name.to_owned();
        Ok(())
    }

    fn set_index(&mut self, is: &Pipeline, index: &str) -> Result<()> {
        if is.into_column.is_some() && matches!(index, "hnsw" | "hnsw_bit") {
            return Err(Error::argument(
                "index",
                "recsync makes no index on a column of the source",
                format!(
                    "Make one that search uses: CREATE INDEX CONCURRENTLY ON {} USING hnsw ({} {}_cosine_ops).",
                    is.source,
                    is.holder().column,
                    is.storage
                ),
            ));
        }
        let (_, index) = form(Some(&is.storage), Some(index), is.dimensions as usize)?;
        self.index = index.to_owned();
        Ok(())
    }
}

/// What is not changed in place.
fn refuse_what_is_rebuilt(is: &Pipeline, given: &Given) -> Result<()> {
    if let Some(storage) = given.storage
        && storage != is.storage
    {
        form(Some(storage), Some("none"), is.dimensions as usize)?;
        return Err(Error::argument(
            "storage",
            format!(
                "the vectors of {} are stored as {}",
                is.relation, is.storage
            ),
            format!(
                "Vectors of another type are another generation: SELECT recsync.rebuild('{}', storage => '{storage}') builds it beside these.",
                is.relation
            ),
        ));
    }
    if given.into_column.is_some() && given.into_column != is.into_column.as_deref() {
        let place = match &is.into_column {
            Some(column) => format!("column {} of {}", quote(column), is.source),
            None => format!("table {}", is.vectors),
        };
        return Err(Error::argument(
            "into_column",
            format!("the vectors of {} are in {place}", is.relation),
            "They stay there: make another pipeline with into_column, and drop this one.",
        ));
    }
    Ok(())
}

fn when_of(is: &Pipeline, given: &Given) -> Result<When> {
    let of = |given: Option<Interval>, stored: Option<f64>| match given {
        Some(given) if given.as_micros() == 0 => None,
        Some(given) => Some(given),
        None => stored.map(|seconds| Interval::from_micros((seconds * 1e6).round() as i64)),
    };
    if given.schedule.is_none() && given.debounce.is_none() && given.max_delay.is_none() {
        return Ok(is.when.clone());
    }
    when(
        given.schedule.or(Some(&is.when.schedule)),
        of(given.debounce, is.when.debounce_s),
        of(given.max_delay, is.when.max_delay_s),
    )
}

/// The table is called as at a creation, by the number of its generation; where somebody has given it a name of their own,
/// it keeps that.
fn names_of(is: &Pipeline, given: &Given) -> Result<Option<Names>> {
    let called = parts(&is.relation).unwrap_or_default();
    let (Some(new), [schema, old]) = (given.new_name, called.as_slice()) else {
        return Ok(None);
    };
    let own = relation_name(new, schema, 59)?;
    if own == *old {
        return Ok(None);
    }
    let table = parts(&is.vectors).and_then(|mut parts| parts.pop());
    let generation = table.as_deref().and_then(|table| {
        let (_, number) = table.rsplit_once("_g")?;
        number.parse::<u32>().ok()
    });
    let vectors = generation.map(|number| format!("{own}_g{number}"));
    let vectors = vectors.filter(|vectors| Some(vectors) != table.as_ref());
    let qualified = |name: &str| format!("{}.{}", quote(schema), quote(name));
    for name in [Some(&own), vectors.as_ref()].into_iter().flatten() {
        let taken = "SELECT pg_catalog.to_regclass($1) IS NOT NULL";
        let name = qualified(name);
        if select_one::<bool>(taken, &[name.as_str().into()])? == Some(true) {
            return Err(Error::RelationExists(name));
        }
    }
    Ok(Some(Names {
        relation: qualified(&own),
        own,
        vectors,
    }))
}

fn require_role(name: &str) -> Result<()> {
    const EXISTS: &str = "SELECT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = $1)";
    if select_one::<bool>(EXISTS, &[name.into()])? == Some(true) {
        return Ok(());
    }
    Err(Error::Option {
        code: pgrx::PgSqlErrorCode::ERRCODE_UNDEFINED_OBJECT,
        message: format!("role {} does not exist", quote(name)),
        detail: None,
        hint: Some("Give the name of a role, as it stands in pg_roles.".into()),
    })
}
