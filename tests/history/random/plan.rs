//! What a session will try to do: a pure function of the seed, so that a seed can be replayed.
//!
//! It never knows what came of it: other sessions are in between.

use fastrand::Rng;

use super::tables::TABLES;

/// Rows have numbers below this: few enough for sessions to meet on them.
pub const NUMBERS: u32 = 40;

/// More rows than a statement draws sequence numbers for at a time.
const MANY: u32 = 1_100;

/// One transaction.
#[derive(Debug)]
pub struct Work {
    pub isolation: &'static str,
    /// By the simple protocol, else by prepared statements.
    pub simple: bool,
    pub steps: Vec<Step>,
    pub end: End,
}

#[derive(Debug)]
pub enum Step {
    /// `locked`: rows are read FOR UPDATE before, so that what they were is known.
    Change {
        change: Change,
        locked: bool,
    },
    Savepoint,
    Release,
    RollbackTo,
    /// In PL/pgSQL, with an exception handler around.
    Block {
        changes: Vec<Change>,
        fails: bool,
    },
    /// The transaction is held open, in milliseconds.
    Hold(u64),
}

#[derive(Debug, PartialEq)]
pub enum End {
    /// One statement without BEGIN.
    Alone,
    Commit,
    Rollback,
    /// PREPARE TRANSACTION, and after the session's next transaction its end.
    Prepare {
        commit: bool,
    },
}

/// Tables by their place in `TABLES`, rows by their numbers.
#[derive(Debug)]
pub enum Change {
    Insert {
        table: usize,
        rows: Vec<u32>,
        shown: bool,
        or_nothing: bool,
    },
    Copy {
        table: usize,
        rows: Vec<u32>,
    },
    Set {
        table: usize,
        rows: Vec<u32>,
        column: Column,
    },
    Rekey {
        table: usize,
        from: u32,
        to: u32,
        retitled: bool,
    },
    Upsert {
        table: usize,
        row: u32,
    },
    Merge {
        table: usize,
        row: u32,
    },
    /// A row deleted in one table and inserted into another by one statement.
    Move {
        from: (usize, u32),
        to: (usize, u32),
    },
    Delete {
        table: usize,
        rows: Vec<u32>,
    },
    Truncate {
        table: usize,
    },
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Column {
    Title,
    Remark,
    Shown,
    Stock,
    /// The audited table's large one.
    Body,
    /// An update that changes nothing.
    Nothing,
}

/// All transactions of one session.
pub fn of_session(seed: u64, session: u64, transactions: usize, two_phase: bool) -> Vec<Work> {
    let mut rng = Rng::with_seed(seed.wrapping_mul(1_000).wrapping_add(session));
    let mut works: Vec<Work> = (0..transactions)
        .map(|_| work(&mut rng, two_phase))
        .collect();
    // One statement of many rows, and their end.
    let table = rng.usize(..TABLES.len());
    let first = 100_000 * (session as u32 + 1);
    let rows: Vec<u32> = (first..first + MANY).collect();
    let delete = Change::Delete {
        table,
        rows: rows.clone(),
    };
    let insert = Change::Insert {
        table,
        rows,
        shown: false,
        or_nothing: false,
    };
    for (change, place) in [(insert, transactions / 3), (delete, transactions * 2 / 3)] {
        let steps = vec![
            Step::Change {
                change,
                locked: false,
            },
            step(&mut rng),
        ];
        works.insert(
            place,
            Work {
                isolation: "READ COMMITTED",
                simple: true,
                steps,
                end: End::Commit,
            },
        );
    }
    works
}

fn work(rng: &mut Rng, two_phase: bool) -> Work {
    let isolation = match rng.u32(..10) {
        0 => "REPEATABLE READ",
        1 => "SERIALIZABLE",
        _ => "READ COMMITTED",
    };
    let simple = rng.bool();
    if rng.u32(..4) == 0 {
        let change = simple_change(rng);
        return Work {
            isolation: "READ COMMITTED",
            simple,
            steps: vec![Step::Change {
                change,
                locked: false,
            }],
            end: End::Alone,
        };
    }
    let mut depth = 0;
    let mut steps = Vec::new();
    for _ in 0..rng.u32(1..8) {
        let next = step(rng);
        match next {
            Step::Savepoint => depth += 1,
            Step::Release if depth == 0 => continue,
            Step::Release => depth -= 1,
            Step::RollbackTo if depth == 0 => continue,
            _ => {}
        }
        steps.push(next);
    }
    let end = match rng.u32(..10) {
        0 | 1 => End::Rollback,
        2 | 3 if two_phase => End::Prepare {
            commit: rng.u32(..3) > 0,
        },
        _ => End::Commit,
    };
    Work {
        isolation,
        simple,
        steps,
        end,
    }
}

fn step(rng: &mut Rng) -> Step {
    match rng.u32(..100) {
        0..12 => Step::Savepoint,
        12..18 => Step::Release,
        18..26 => Step::RollbackTo,
        26..34 => Step::Block {
            changes: (0..rng.u32(1..5)).map(|_| block_change(rng)).collect(),
            fails: rng.bool(),
        },
        34..42 => Step::Hold(rng.u64(0..20)),
        // Held for long, as transactions go.
        42 => Step::Hold(rng.u64(100..400)),
        _ => Step::Change {
            change: change(rng),
            locked: rng.bool(),
        },
    }
}

fn change(rng: &mut Rng) -> Change {
    let table = rng.usize(..TABLES.len());
    match rng.u32(..100) {
        0..8 => Change::Copy {
            table,
            rows: some(rng),
        },
        8..16 => Change::Merge {
            table,
            row: number(rng),
        },
        16..20 => Change::Move {
            from: (table, number(rng)),
            to: (rng.usize(..TABLES.len()), number(rng)),
        },
        _ => block_change(rng),
    }
}

fn block_change(rng: &mut Rng) -> Change {
    match rng.u32(..60) {
        0 => Change::Truncate {
            table: rng.usize(..TABLES.len()),
        },
        _ => simple_change(rng),
    }
}

/// One that can stand by itself.
fn simple_change(rng: &mut Rng) -> Change {
    let table = rng.usize(..TABLES.len());
    match rng.u32(..100) {
        0..25 => Change::Insert {
            table,
            rows: some(rng),
            shown: rng.u32(..5) > 0,
            or_nothing: rng.u32(..3) > 0,
        },
        25..45 => Change::Set {
            table,
            rows: some(rng),
            column: Column::Title,
        },
        45..65 => {
            let columns = [
                Column::Remark,
                Column::Shown,
                Column::Stock,
                Column::Body,
                Column::Nothing,
            ];
            Change::Set {
                table,
                rows: some(rng),
                column: columns[rng.usize(..columns.len())],
            }
        }
        65..75 => Change::Rekey {
            table,
            from: number(rng),
            to: number(rng),
            retitled: rng.bool(),
        },
        75..88 => Change::Upsert {
            table,
            row: number(rng),
        },
        _ => Change::Delete {
            table,
            rows: some(rng),
        },
    }
}

/// One to four rows, each once.
fn some(rng: &mut Rng) -> Vec<u32> {
    let count = rng.usize(1..5);
    rng.choose_multiple(0..NUMBERS, count)
}

fn number(rng: &mut Rng) -> u32 {
    rng.u32(..NUMBERS)
}
