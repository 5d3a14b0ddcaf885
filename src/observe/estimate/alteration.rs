//! What an alteration of a pipeline would come to: each row's text as it would be, beside the vector that it has.
//!
//! It never holds more than a slice of keys and a chunk of texts, and never changes anything.

use pgrx::PgMemoryContexts;
use pgrx::datum::{AnyNumeric, Interval};
use std::sync::Arc;

use super::sample::Sample;
use super::size::Shape;
use super::{AT_ONCE, estimate};
use crate::catalog::names;
use crate::catalog::pipeline::Pipeline;
use crate::catalog::rights::{As, in_undone_subtransaction};
use crate::dispatch::backfill::{self, Rows};
use crate::dispatch::environment::Environment;
use crate::dispatch::fault::Looked;
use crate::dispatch::queue::{Job, RowKey};
use crate::dispatch::read::in_snapshot_of_now;
use crate::dispatch::render::{Renderer, content_hash, secret, text_hash};
use crate::embed::endpoint::Endpoint;
use crate::embed::long_text::LongText;
use crate::error::{Error, Result};
use crate::observe::verify::{fail, is_of_a_row};

/// The columns of `recsync.alter_pipeline`; `None`: nobody has looked.
pub struct Comes {
    pub rows: Option<i64>,
    pub unchanged: Option<i64>,
    pub embeds: i64,
    pub removes: i64,
    pub fails: i64,
    pub tokens: i64,
    pub cost: Option<AnyNumeric>,
    pub duration: Interval,
}

impl Comes {
    /// Where no text can differ.
    pub fn nothing() -> Comes {
        Comes {
            rows: None,
            unchanged: None,
            embeds: 0,
            removes: 0,
            fails: 0,
            tokens: 0,
            cost: Some(AnyNumeric::from(0)),
            duration: Interval::from_micros(0),
        }
    }

    /// What is embedded beside that, too.
    pub fn and(self, other: Comes) -> Comes {
        let microseconds = self.duration.as_micros() + other.duration.as_micros();
        Comes {
            embeds: self.embeds + other.embeds,
            tokens: self.tokens + other.tokens,
            cost: self.cost.zip(other.cost).map(|(one, other)| one + other),
            duration: Interval::from_micros(microseconds as i64),
            ..self
        }
    }
}

/// Of a pipeline as it would be declared, beside the vectors that it has.
pub fn of(mut pipeline: Pipeline, is: &Pipeline) -> Result<Comes> {
    let endpoint = pipeline.require_endpoint()?;
    let secret = {
        let _as = As::extension();
        secret()?
    };
    let schema = names::vector_schema().unwrap_or_default();
    let long_text = pipeline.long_text(&endpoint);
    // The rows of its table are as they are.
    pipeline.long_text.clone_from(&is.long_text);
    let mut counts = Counts {
        renderer: Renderer::new(&pipeline, &schema, None, long_text),
        pipeline: &pipeline,
        environment: Environment::noted()?,
        texts: Sample::new(&endpoint.document_prefix, long_text),
        long_text,
        endpoint,
        secret,
        unchanged: 0,
        removes: 0,
        fails: 0,
    };
    counts.count()?;
    counts.comes()
}

struct Counts<'a> {
    pipeline: &'a Pipeline,
    renderer: Renderer,
    environment: Environment,
    endpoint: Endpoint,
    long_text: LongText,
    secret: Vec<u8>,
    /// Those that are to be sent.
    texts: Sample,
    unchanged: i64,
    removes: i64,
    fails: i64,
}

impl Counts<'_> {
    fn count(&mut self) -> Result<()> {
        let rows = Rows {
            of: &self.pipeline.rows_of,
            keys: self.pipeline.keys(),
            column: |key| &key.column,
            owner: self.pipeline.owner(),
        };
        let mut after: Option<Vec<String>> = None;
        loop {
            pgrx::check_for_interrupts!();
            // What the statements are given is freed with each slice.
            let mut memory = PgMemoryContexts::new("recsync alter_pipeline");
            // SAFETY: nothing that is allocated in it is used after it.
            let slice = unsafe {
                memory.switch_to(|_| {
                    let slice = in_snapshot_of_now(|| backfill::slice(&rows, after.as_deref()))?;
                    self.count_slice(&slice)?;
                    Ok::<_, Error>(slice)
                })
            }?;
            if slice.len() < backfill::SLICE {
                return Ok(());
            }
            after = slice.last().cloned();
        }
    }

    fn count_slice(&mut self, slice: &[Vec<String>]) -> Result<()> {
        let job = |key: &Vec<String>| {
            Job::new(RowKey {
                pipeline: self.pipeline.id,
                key: Arc::from(key.as_slice()),
            })
        };
        let jobs: Vec<Job> = slice.iter().map(job).collect();
        for chunk in jobs.chunks(AT_ONCE as usize) {
            self.look(chunk)?;
        }
        Ok(())
    }

    /// Where the texts of some rows cannot be rendered together, each half is looked at by itself.
    fn look(&mut self, jobs: &[Job]) -> Result<()> {
        let looked = in_undone_subtransaction(|| {
            in_snapshot_of_now(|| self.environment.within(|| self.renderer.look(jobs, Ok)))
        });
        match looked {
            Ok(rows) => rows.into_iter().try_for_each(|row| self.add(&row)),
            Err(failed) if !is_of_a_row(failed.code) => fail(self.pipeline, failed),
            Err(_) if jobs.len() > 1 => {
                let (one, other) = jobs.split_at(jobs.len() / 2);
                self.look(one)?;
                self.look(other)
            }
            Err(_) => {
                self.fails += 1;
                Ok(())
            }
        }
    }

    fn add(&mut self, row: &Looked) -> Result<()> {
        let Some(text) = &row.text else {
            self.removes += i64::from(row.has_something());
            return Ok(());
        };
        let hash = text_hash(&self.secret, text, &self.long_text)?;
        let in_column = self.pipeline.into_column.is_some();
        match row.fault(Some(&hash), &self.endpoint.model, in_column) {
            Some(_) if !self.is_one_piece(row, text, &hash)? => self.texts.add(text),
            _ => self.unchanged += 1,
        }
        Ok(())
    }

    /// Whether a text that is to have a row a chunk has one, whose vector it has already.
    fn is_one_piece(&self, row: &Looked, text: &str, hash: &[u8]) -> Result<bool> {
        if !self.long_text.has_chunks() || self.pipeline.has_chunks() {
            return Ok(false);
        }
        let hash_of = |text: &str| content_hash(&self.secret, text);
        let pieces = self.long_text.divide(text.to_owned(), hash, hash_of)?;
        Ok(match pieces.as_deref() {
            Some([piece]) => row.is_of(&piece.hash, &self.endpoint.model),
            _ => false,
        })
    }

    fn comes(&self) -> Result<Comes> {
        let shape = Shape {
            dimensions: self.endpoint.dimensions as u64,
            storage: &self.pipeline.storage,
            index: &self.pipeline.index,
            model: &self.endpoint.model,
            key: 0.0,
            source_row: None,
        };
        let (embeds, _, tokens, cost, duration, ..) =
            estimate(&self.texts, &self.endpoint, self.long_text, shape)?;
        Ok(Comes {
            rows: Some(self.unchanged + embeds),
            unchanged: Some(self.unchanged),
            embeds,
            removes: self.removes,
            fails: self.fails,
            tokens,
            cost,
            duration,
        })
    }
}
