//! A pipeline's declaration as alter_pipeline is to leave it: what was given is checked as at its creation, the rest is as
//! it was.
//!
//! It never writes anything.

use pgrx::datum::{AnyNumeric, Interval};
use pgrx::pg_sys;

use super::Given;
use crate::catalog::column;
use crate::catalog::declare::checks::{chunks_fit, content_of_columns, form, relation_name, when};
use crate::catalog::expression::{self, Expression, Wanted as Kind};
use crate::catalog::generation::{self, long_texts_of};
use crate::catalog::names::{parts, quote, select_one};
use crate::catalog::pipeline::{Pipeline, When};
use crate::catalog::server;
use crate::catalog::watch::CAPTURES;
use crate::embed::long_text::{LongText, Mode};
use crate::error::{Error, Result};
use crate::ledger::budget;

/// What stands for "none" where NULL means "as it is".
const NONE: &str = "-";

#[derive(Clone)]
pub struct Wanted {
    pub columns: Option<Vec<String>>,
    pub content: String,
    pub row_filter: Option<String>,
    pub used_columns: Vec<String>,
    pub server: String,
    /// By the server of before or another: whether its model is another one,
    other_model: bool,
    /// and whether a text may come to other inputs.
    other_pieces: bool,
    pub long_text: (Mode, Option<i32>),
    /// Another storage, or chunks where there were none, or none where there were: a new generation, which takes server, index
    /// and long_text along.
    pub rebuilds: bool,
    /// Where it changes.
    pub monthly_budget: Option<AnyNumeric>,
    pub when: When,
    pub index: String,
    pub capture: String,
    pub on_replica: bool,
    /// Where they change.
    pub names: Option<Names>,
    pub owner: Option<String>,
}

/// The names of its relations, where they change.
#[derive(Clone)]
pub struct Names {
    /// Of the view: unqualified, and both qualified and quoted.
    pub own: String,
    pub relation: String,
    /// Of the table and the function, unqualified.
    pub vectors: Option<String>,
    /// The tables of other generations, and what they are to be called, unqualified.
    pub kept: Vec<(String, String)>,
}

impl Wanted {
    pub fn of(is: &Pipeline, given: &Given) -> Result<Wanted> {
        refuse_another_place(is, given)?;
        let long_text = long_texts_of(is, given.long_text, given.chunk_tokens)?;
        let stored = given.storage.unwrap_or(&is.storage);
        let chunks = long_text.0 == Mode::Chunks;
        let mut wanted = Wanted {
            columns: is.columns.clone(),
            content: is.content.clone(),
            row_filter: is.row_filter.clone(),
            used_columns: is.used_columns.clone(),
            server: is.server.clone(),
            other_model: false,
            other_pieces: false,
            long_text,
            rebuilds: stored != is.storage || chunks != is.has_chunks(),
            monthly_budget: budget_of(is, given)?,
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
        wanted.look_at_pieces(is)?;
        if let Some(index) = given.index
            && !wanted.rebuilds
        {
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
            && self.long_text == long_text_of(is)
            && !self.rebuilds
            && self.monthly_budget.is_none()
            && self.names.is_none()
            && self.owner.is_none()
    }

    /// Whether a row may need another vector, or none.
    pub fn looks_again(&self, is: &Pipeline) -> bool {
        self.has_other_texts(is) || self.other_model || self.other_pieces
    }

    fn has_other_texts(&self, is: &Pipeline) -> bool {
        self.content != is.content || self.row_filter != is.row_filter
    }

    /// What of it is done in place, where there is a new generation.
    pub fn in_place(&self, is: &Pipeline) -> Wanted {
        let mut place = self.clone();
        if self.rebuilds {
            place.server.clone_from(&is.server);
            place.index.clone_from(&is.index);
            place.long_text = long_text_of(is);
            (place.other_model, place.other_pieces) = (false, false);
        }
        place
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

    /// By another model, or with long texts treated otherwise, a text may be cut elsewhere.
    fn look_at_pieces(&mut self, is: &Pipeline) -> Result<()> {
        if self.server == is.server && self.long_text == long_text_of(is) {
            return Ok(());
        }
        let endpoint = server::endpoint(&self.server, is.owner())?;
        chunks_fit(self.long_text, &endpoint, &is.key_columns)?;
        let (mode, tokens) = self.long_text;
        let pieces = LongText::new(mode, tokens.map(|tokens| tokens as u64), &endpoint);
        let were = is.endpoint().map(|endpoint| is.long_text(&endpoint));
        self.other_pieces = were != Ok(pieces);
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

fn long_text_of(is: &Pipeline) -> (Mode, Option<i32>) {
    let mode = Mode::find(&is.long_text).unwrap_or(Mode::Truncate);
    (mode, is.chunk_tokens.map(|tokens| tokens as i32))
}

fn budget_of(is: &Pipeline, given: &Given) -> Result<Option<AnyNumeric>> {
    budget::check(given.monthly_budget.as_ref())?;
    let amount = |budget: &AnyNumeric| f64::try_from(budget.clone()).ok();
    let other = |budget: &AnyNumeric| amount(budget) != is.monthly_budget;
    Ok(given.monthly_budget.clone().filter(other))
}

/// The vectors stay where they are.
fn refuse_another_place(is: &Pipeline, given: &Given) -> Result<()> {
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
    let renamed = |table: &str| {
        let table = parts(table).and_then(|mut parts| parts.pop())?;
        let number = table.rsplit_once("_g")?.1.parse::<u32>().ok()?;
        Some(format!("{own}_g{number}")).filter(|new| *new != table)
    };
    let vectors = renamed(&is.vectors);
    let others = generation::of(is.id)?.into_iter();
    let kept: Vec<(String, String)> = others
        .filter_map(|other| Some((other.vectors.clone(), renamed(&other.vectors)?)))
        .collect();
    let qualified = |name: &str| format!("{}.{}", quote(schema), quote(name));
    let tables = vectors.iter().chain(kept.iter().map(|(_, new)| new));
    for name in [&own].into_iter().chain(tables) {
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
        kept,
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
