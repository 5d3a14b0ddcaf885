//! A row whose text is rendered, on its way to its vector.
//!
//! It never knows where it waits or flies: see [`super::running`] and [`super::flights`].

use std::time::Instant;

use crate::dispatch::queue::{Job, Lane};
use crate::embed::batch::{Filling, Room};
use crate::embed::long_text::{self, Mode, Part};
use crate::embed::token_rate::TokenRate;
use crate::store::known::Known;
use crate::store::{Chunk, Embedded};

/// A row whose text waits for a free thread.
#[derive(Clone)]
pub struct Ready {
    pub job: Job,
    /// One or more; those that have a vector already are done.
    pub parts: Vec<Part>,
    pub hash: Vec<u8>,
    pub stored_hash: Option<Vec<u8>>,
    pub since: Instant,
    /// Backfill, or live.
    pub lane: Lane,
    /// How many of the parts that lack a vector go, or have gone, in one request; and how many may.
    pub sends: usize,
    pub most: usize,
}

impl Ready {
    pub fn new(
        job: Job,
        parts: Vec<Part>,
        hash: Vec<u8>,
        stored_hash: Option<Vec<u8>>,
        lane: Lane,
    ) -> Ready {
        Ready {
            job,
            parts,
            hash,
            stored_hash,
            since: Instant::now(),
            lane,
            sends: 1,
            most: usize::MAX,
        }
    }

    /// The parts that lack a vector.
    pub fn pending(&self) -> impl Iterator<Item = &Part> {
        self.parts.iter().filter(|part| part.vector.is_none())
    }

    pub fn pending_mut(&mut self) -> impl Iterator<Item = &mut Part> {
        self.parts.iter_mut().filter(|part| part.vector.is_none())
    }

    /// Those of them that go, or have gone, in one request.
    pub fn sent(&self) -> impl Iterator<Item = &Part> {
        self.pending().take(self.sends)
    }

    /// Estimated tokens of these.
    pub fn tokens(&mut self) -> u64 {
        let sends = self.sends;
        self.pending_mut().take(sends).map(Part::tokens).sum()
    }

    /// The tokens of its text, had it been sent as a whole.
    pub fn would_cost(&self, rate: &TokenRate) -> u64 {
        self.parts.iter().map(|part| rate.of(&part.text)).sum()
    }

    pub fn is_complete(&self) -> bool {
        self.pending().next().is_none()
    }

    /// Vectors of parts that have come, of a row that is not stored with them: nobody should pay for them again.
    pub fn spare(self) -> impl Iterator<Item = Known> {
        let several = self.parts.len() > 1;
        let parts = self.parts.into_iter().filter(move |_| several);
        parts.filter_map(|part| Some((part.hash, part.vector?)))
    }

    /// What is to be stored of it, once all vectors are there.
    pub fn into_embedded(mut self, mode: Mode) -> Embedded {
        let (mut vector, mut chunks) = (Vec::new(), Vec::new());
        match mode {
            Mode::Truncate | Mode::Mean => vector = long_text::mean(&mut self.parts),
            Mode::Chunks => {
                chunks = self
                    .parts
                    .into_iter()
                    .filter_map(|part| {
                        Some(Chunk {
                            from: part.from,
                            to: part.to,
                            hash: part.hash,
                            vector: part.vector?,
                        })
                    })
                    .collect();
            }
        }
        Embedded {
            job: self.job,
            vector,
            chunks,
            hash: self.hash,
            stored_hash: self.stored_hash,
        }
    }
}

/// What counts as tokens.
#[derive(Clone, Copy, PartialEq)]
pub enum Weight {
    Bytes,
    Tokens,
}

/// Fills a request with parts of these rows: how many rows have some in it, and whether that is all there are or may be.
pub fn fill<'a>(
    rows: impl Iterator<Item = &'a mut Ready>,
    room: Room,
    weight: Weight,
) -> (usize, bool) {
    let mut filling = Filling::new(room);
    let mut count = 0;
    for ready in rows {
        let most = ready.most;
        let (mut sends, mut fits) = (0, true);
        for part in ready.pending_mut().take(most) {
            let bytes = part.text.len();
            let tokens = match weight {
                Weight::Bytes => bytes as u64,
                Weight::Tokens => part.tokens(),
            };
            fits = filling.add(tokens, bytes);
            if !fits {
                break;
            }
            sends += 1;
        }
        if sends > 0 {
            ready.sends = sends;
            count += 1;
        }
        if !fits {
            return (count, filling.inputs() >= room.inputs);
        }
    }
    (count, true)
}
