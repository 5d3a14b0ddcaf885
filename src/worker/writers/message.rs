//! What the leader and a writer write to each other: rows to be stored, and what became of them.
//!
//! The numbers of the vectors go as they are in memory, all at the end of a message; the rest is JSON. It never
//! travels further than to another process of the same server.

use pgrx::PgSqlErrorCode;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::Duration;

use crate::catalog::pipeline::Pipeline;
use crate::dispatch::queue::{Job, RowKey};
use crate::error::Failed;
use crate::ledger::bill::{Bill, Payer};
use crate::store::known::Recipe;
use crate::store::{Chunk, Embedded, Written};
use crate::worker::storing::Task;

/// What a writer needs to know of a pipeline before it can store its rows.
#[derive(Serialize, Deserialize)]
pub struct Declaration {
    pub pipeline: Pipeline,
    pub vector_schema: String,
    pub recipe: Option<Recipe>,
}

/// A message to a writer.
pub struct Order {
    /// The leader's number for it, handed back.
    pub number: u64,
    /// With the first order of a pipeline, and whenever it is declared anew.
    pub declaration: Option<Declaration>,
    pub task: Task,
}

/// A message from a writer.
#[derive(Serialize, Deserialize)]
pub struct Answer {
    pub number: u64,
    outcome: Outcome,
    took_us: u64,
}

#[derive(Serialize, Deserialize)]
enum Outcome {
    Stored(Written),
    Failed { code: i32, message: String },
}

#[derive(Serialize, Deserialize)]
struct Head<'a> {
    number: u64,
    declaration: Option<Declaration>,
    pipeline: i32,
    model: std::borrow::Cow<'a, str>,
    dead_letters: bool,
    rows: Vec<Row<'a>>,
    bills: std::borrow::Cow<'a, [(Payer, Bill)]>,
}

#[derive(Serialize, Deserialize)]
struct Row<'a> {
    key: std::borrow::Cow<'a, [String]>,
    attempt: u32,
    stored: bool,
    last_attempt_us: Option<i64>,
    hash: std::borrow::Cow<'a, [u8]>,
    stored_hash: Option<std::borrow::Cow<'a, [u8]>>,
    /// Of its vector; 0 where it has chunks.
    dimensions: usize,
    chunks: Vec<Piece<'a>>,
}

#[derive(Serialize, Deserialize)]
struct Piece<'a> {
    from: i32,
    to: i32,
    hash: std::borrow::Cow<'a, [u8]>,
    dimensions: usize,
}

/// Bytes of a number.
const NUMBER: usize = size_of::<f32>();

/// An order as bytes: the head's length, the head, the numbers.
pub fn order(
    number: u64,
    declaration: Option<Declaration>,
    task: &Task,
) -> Result<Vec<u8>, serde_json::Error> {
    let rows = task.embedded.iter().map(|embedded| Row {
        key: embedded.job.row.key[..].into(),
        attempt: embedded.job.attempt,
        stored: embedded.job.stored,
        last_attempt_us: embedded.job.last_attempt_us,
        hash: embedded.hash[..].into(),
        stored_hash: embedded.stored_hash.as_deref().map(Into::into),
        dimensions: embedded.vector.len(),
        chunks: embedded
            .chunks
            .iter()
            .map(|chunk| Piece {
                from: chunk.from,
                to: chunk.to,
                hash: chunk.hash[..].into(),
                dimensions: chunk.vector.len(),
            })
            .collect(),
    });
    let head = serde_json::to_vec(&Head {
        number,
        declaration,
        pipeline: task.pipeline,
        model: task.model.as_str().into(),
        dead_letters: task.dead_letters,
        rows: rows.collect(),
        bills: task.bills.as_slice().into(),
    })?;
    let vectors = || task.embedded.iter().flat_map(Embedded::vectors);
    let numbers: usize = vectors().map(|(_, vector)| vector.len()).sum();
    let mut message = Vec::with_capacity(8 + head.len() + numbers * NUMBER);
    message.extend_from_slice(&(head.len() as u64).to_ne_bytes());
    message.extend_from_slice(&head);
    for (_, vector) in vectors() {
        message.extend(vector.iter().flat_map(|number| number.to_ne_bytes()));
    }
    Ok(message)
}

/// The next vector of so many numbers.
fn next_vector(numbers: &mut &[u8], dimensions: usize) -> Option<Vec<f32>> {
    let (vector, rest) = numbers.split_at_checked(dimensions * NUMBER)?;
    *numbers = rest;
    let (vector, _) = vector.as_chunks::<NUMBER>();
    let vector = vector.iter().map(|bytes| f32::from_ne_bytes(*bytes));
    Some(vector.collect())
}

/// `None`: not a message of [`order`]'s.
pub fn read_order(message: &[u8]) -> Option<Order> {
    let (length, rest) = message.split_first_chunk()?;
    let (head, mut numbers) = rest.split_at_checked(u64::from_ne_bytes(*length) as usize)?;
    let head: Head = serde_json::from_slice(head).ok()?;
    let mut embedded = Vec::with_capacity(head.rows.len());
    for row in head.rows {
        let vector = next_vector(&mut numbers, row.dimensions)?;
        let mut chunks = Vec::with_capacity(row.chunks.len());
        for chunk in row.chunks {
            chunks.push(Chunk {
                from: chunk.from,
                to: chunk.to,
                hash: chunk.hash.into_owned(),
                vector: next_vector(&mut numbers, chunk.dimensions)?,
            });
        }
        embedded.push(Embedded {
            job: Job {
                row: RowKey {
                    pipeline: head.pipeline,
                    key: Arc::from(row.key.into_owned()),
                },
                attempt: row.attempt,
                stored: row.stored,
                last_attempt_us: row.last_attempt_us,
                changes: 1, // counted by the leader
            },
            vector,
            chunks,
            hash: row.hash.into_owned(),
            stored_hash: row.stored_hash.map(|hash| hash.into_owned()),
        });
    }
    Some(Order {
        number: head.number,
        declaration: head.declaration,
        task: Task {
            pipeline: head.pipeline,
            model: head.model.into_owned(),
            dead_letters: head.dead_letters,
            embedded,
            bills: head.bills.into_owned(),
        },
    })
}

impl Answer {
    pub fn new(number: u64, outcome: Result<Written, Failed>, took: Duration) -> Answer {
        Answer {
            number,
            outcome: match outcome {
                Ok(written) => Outcome::Stored(written),
                Err(failed) => Outcome::Failed {
                    code: failed.code as i32,
                    message: failed.message,
                },
            },
            took_us: took.as_micros() as u64,
        }
    }

    /// What [`crate::worker::storing::store`] came to, and how long it took.
    pub fn into_outcome(self) -> (Result<Written, Failed>, Duration) {
        let outcome = match self.outcome {
            Outcome::Stored(written) => Ok(written),
            Outcome::Failed { code, message } => Err(Failed {
                code: PgSqlErrorCode::from(code),
                message,
            }),
        };
        (outcome, Duration::from_micros(self.took_us))
    }

    pub fn to_bytes(&self) -> Result<Vec<u8>, serde_json::Error> {
        serde_json::to_vec(self)
    }

    pub fn read(message: &[u8]) -> Option<Answer> {
        serde_json::from_slice(message).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn embedded(key: &[&str], vector: Vec<f32>) -> Embedded {
        let key: Vec<String> = key.iter().map(|part| (*part).to_owned()).collect();
        Embedded {
            job: Job {
                row: RowKey {
                    pipeline: 7,
                    key: Arc::from(key),
                },
                attempt: 2,
                stored: true,
                last_attempt_us: Some(-5),
                changes: 1,
            },
            vector,
            chunks: Vec::new(),
            hash: vec![0, 255, 7],
            stored_hash: None,
        }
    }

    #[test]
    fn an_order_comes_as_it_was_given() {
        let mut second = embedded(&["2"], vec![f32::MIN_POSITIVE, -0.0]);
        second.stored_hash = Some(vec![1; 32]);
        let payer = Payer {
            pipeline: 7,
            account: 3,
            server: "s".into(),
            model: "m".into(),
            price_per_million_tokens: Some("0.02".into()),
            currency: "EUR".into(),
        };
        let mut bill = Bill::default();
        bill.sent.tokens = u64::from(u32::MAX) + 1;
        bill.saved.known.add(2, 3);
        let mut third = embedded(&["3"], Vec::new());
        third.chunks = [(1, 8), (10, 20)]
            .map(|(from, to)| Chunk {
                from,
                to,
                hash: vec![from as u8; 32],
                vector: vec![to as f32, 0.25],
            })
            .into();
        let task = Task {
            pipeline: 7,
            model: "m \"quoted\"".into(),
            dead_letters: true,
            bills: vec![(payer, bill)],
            embedded: vec![
                embedded(&["a", "line\nbreak, ü"], vec![1.0 / 3.0, f32::MAX, 0.1]),
                second,
                third,
            ],
        };
        let message = order(3, None, &task).unwrap();
        let read = read_order(&message).unwrap();
        assert_eq!(read.number, 3);
        assert!(read.declaration.is_none());
        assert_eq!(read.task.pipeline, 7);
        assert_eq!(read.task.model, task.model);
        assert!(read.task.dead_letters);
        assert_eq!(read.task.bills, task.bills);
        assert_eq!(read.task.embedded.len(), 3);
        for (is, was) in read.task.embedded.iter().zip(&task.embedded) {
            assert_eq!(is.job, was.job);
            assert_eq!(is.vector, was.vector);
            assert_eq!(is.chunks, was.chunks);
            assert_eq!(is.hash, was.hash);
            assert_eq!(is.stored_hash, was.stored_hash);
        }
        assert!(read_order(&message[..message.len() - 1]).is_none());
        assert!(read_order(&message[..20]).is_none());
    }

    #[test]
    fn an_answer_tells_success_from_failure_by_its_sqlstate() {
        let took = Duration::from_millis(3);
        let outcomes = [
            Ok(Written {
                inserted: 3,
                updated: 1,
                gone: 1,
                busy: vec![2, 5],
            }),
            Err(Failed {
                code: PgSqlErrorCode::ERRCODE_T_R_DEADLOCK_DETECTED,
                message: "deadlock".into(),
            }),
        ];
        for outcome in outcomes {
            let expected = outcome.as_ref().map_err(|failed| failed.code).cloned();
            let answer = Answer::new(9, outcome, took).to_bytes().unwrap();
            let answer = Answer::read(&answer).unwrap();
            assert_eq!(answer.number, 9);
            let (outcome, time) = answer.into_outcome();
            assert_eq!(outcome.map_err(|failed| failed.code), expected);
            assert_eq!(time, took);
        }
    }
}
