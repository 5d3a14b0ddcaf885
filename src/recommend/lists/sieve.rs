//! Which candidates the caller may see: asked of the live rows, as the caller.
//!
//! It never runs a candidate's statement as the caller, nor the filter as the owner.

use pgrx::datum::DatumWithOid;
use pgrx::prelude::*;
use pgrx::spi::SpiClient;
use serde_json::Value;
use std::ffi::CStr;

use super::content;
use super::question::Question;
use super::selection::Offer;
use super::statements;
use crate::catalog::recommender::Recommender;
use crate::catalog::rights::{As, with_settings};
use crate::error::Result;
use crate::recommend::filter::{self, column_of};
use crate::recommend::search::{columns, load_library};
use crate::statement::{Finds, Statement};

/// Candidates that are looked through at a time, at the least and where those were too few.
const FIRST_PAGE: usize = 64;
const PAGE: usize = 1_000;

/// An item that may be listed.
pub struct Candidate {
    pub item: String,
    pub score: f64,
    pub reason: Value,
}

/// Lets through what passes the filter, as the caller sees it.
pub struct Sieve<'a> {
    recommender: &'a Recommender,
    first_page: usize,
    statement: String,
    parameters: Vec<Vec<String>>,
    /// With which the owner's statements are planned and run.
    settings: Vec<(&'static CStr, &'static CStr)>,
    /// Columns whose values are wanted, beside the number.
    values: usize,
}

impl<'a> Sieve<'a> {
    pub fn new(recommender: &'a Recommender, question: &Question) -> Result<Sieve<'a>> {
        let columns = match (&question.filter, question.max_per.is_empty()) {
            (None, true) => Vec::new(),
            _ => columns(recommender.items_oid())?,
        };
        let items = &recommender.items;
        let (conditions, parameters) = match &question.filter {
            None => Default::default(),
            Some(filter) => filter::conditions(filter, &columns, items, 2)?,
        };
        let settings = match recommender.vectors {
            // Compiling the plan would take longer than running it.
            None => vec![(c"jit", c"off")],
            Some(_) => {
                load_library()?;
                content::SETTINGS.to_vec()
            }
        };
        let mut values = String::new();
        for name in question.max_per.keys() {
            let column = column_of(name, &columns, items)?;
            values += &format!(", s.{}::text", column.quoted);
        }
        let item = recommender.item_key()?;
        let rows = recommender.items_rows.as_deref().unwrap_or_default();
        let mut statement = format!(
            "SELECT c.n::int4{values} FROM pg_catalog.unnest($1::text[]) WITH ORDINALITY AS c (item, n)
               JOIN {rows} s ON s.{} {} (c.item)::{}",
            item.column, item.equals, item.type_name,
        );
        for (n, condition) in conditions.iter().enumerate() {
            statement += if n == 0 { " WHERE " } else { " AND " };
            statement += condition;
        }
        Ok(Sieve {
            recommender,
            first_page: (2 * question.up_to()).clamp(FIRST_PAGE, PAGE),
            statement: statement + " ORDER BY c.n",
            parameters,
            settings,
            values: question.max_per.len(),
        })
    }

    /// Refuses where the caller may not read what the filter is of, before the owner is asked.
    pub fn require_rights(&self) -> Result<()> {
        Spi::connect(|client| {
            let own = Statement::kept(&self.statement, Finds::ByKey);
            own.select(client, &self.of_items(Vec::new()))?;
            Ok(())
        })
    }

    fn of_items(&self, items: Vec<String>) -> Vec<DatumWithOid<'static>> {
        let values = self.parameters.iter().map(|values| values.clone().into());
        [items.into()].into_iter().chain(values).collect()
    }

    /// Candidates of a statement of the owner's, page by page, offered in their order until one is not wanted.
    /// All that were looked at are noted.
    pub fn read(
        &self,
        statement: &str,
        finds: Finds,
        arguments: &[DatumWithOid],
        mut note: impl FnMut(&mut Candidate),
        mut offer: impl FnMut(Offer<Candidate>) -> bool,
    ) -> Result<()> {
        let statement = Statement::kept(statement, finds);
        let own = Statement::kept(&self.statement, Finds::ByKey);
        Spi::connect(|client| {
            let owner = self.recommender.owner();
            let mut cursor = {
                let _as = As::owner(owner);
                with_settings(&self.settings, || statement.cursor(client, arguments))?
            };
            let mut length = self.first_page;
            loop {
                let mut page = Vec::new();
                {
                    let _as = As::owner(owner);
                    let rows = with_settings(&self.settings, || cursor.fetch(length as _))?;
                    for row in rows {
                        let places = row.get::<Vec<Option<i32>>>(3)?;
                        page.push(Some(Candidate {
                            item: row.get::<String>(1)?.unwrap_or_default(),
                            score: row.get::<f64>(2)?.unwrap_or_default(),
                            reason: places.map_or(Value::Null, statements::reason),
                        }));
                    }
                }
                let last = page.len() < length;
                length = PAGE;
                page.iter_mut().flatten().for_each(&mut note);
                if !self.pass(client, &own, page, &mut offer)? || last {
                    return Ok(());
                }
            }
        })
    }

    /// Offers those of `page` that pass, in their order, until one is not wanted: false then.
    pub fn offer(
        &self,
        page: Vec<Candidate>,
        mut offer: impl FnMut(Offer<Candidate>) -> bool,
    ) -> Result<bool> {
        let own = Statement::kept(&self.statement, Finds::ByKey);
        let page = page.into_iter().map(Some).collect();
        Spi::connect(|client| self.pass(client, &own, page, &mut offer))
    }

    fn pass(
        &self,
        client: &SpiClient,
        own: &Statement,
        mut page: Vec<Option<Candidate>>,
        offer: &mut impl FnMut(Offer<Candidate>) -> bool,
    ) -> Result<bool> {
        let candidates = page.iter().flatten();
        let items = candidates.map(|candidate| candidate.item.clone());
        for row in own.select(client, &self.of_items(items.collect()))? {
            let number = row.get::<i32>(1)?.unwrap_or_default() as usize;
            let candidate = page.get_mut(number.wrapping_sub(1)).and_then(Option::take);
            let Some(candidate) = candidate else {
                continue;
            };
            let values = (2..2 + self.values).map(|n| Ok(row.get::<String>(n)?));
            let wanted = offer(Offer {
                item: candidate.item.clone(),
                values: values.collect::<Result<Vec<_>>>()?,
                candidate,
            });
            if !wanted {
                return Ok(false);
            }
        }
        Ok(true)
    }
}
