//! What a case says: a table, statements, and what must come of each. It never touches a server.

/// A table with a pipeline over it, in schema `shop`, and statements that are run one after the other.
pub struct Case {
    pub what: String,
    /// Before the pipelines are declared.
    pub given: Vec<String>,
    pub watched: Vec<Watched>,
    pub steps: Vec<Step>,
    /// Whether the log of an audited table, replayed, gives the table.
    pub replayed: bool,
    pub modes: &'static [Mode],
    /// The first major version of PostgreSQL that can run it.
    pub since: i32,
}

/// What the pipelines' tables are logged for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// For the pipelines alone.
    Keys,
    /// For `recsync.audit`, too: every change, with its records.
    Audited,
}

/// A pipeline and how its source is read.
#[derive(Clone)]
pub struct Watched {
    pub pipeline: String,
    pub source: String,
    /// create_pipeline's further arguments.
    pub arguments: String,
    /// The rows that must have vectors: a FROM item, aliased `s` where it is used.
    pub rows: String,
    /// Key columns, separated by commas.
    pub key: String,
    /// The text of a row, an expression over `s`.
    pub text: String,
}

impl Watched {
    pub fn new(source: &str, key: &str) -> Watched {
        Watched {
            pipeline: format!("{source}_embedding"),
            source: source.into(),
            arguments: "columns => '{title}'".into(),
            rows: source.into(),
            key: key.into(),
            text: "s.title".into(),
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Writer {
    One,
    Two,
}

pub enum Step {
    Run {
        by: Writer,
        sql: String,
        outcome: Outcome,
    },
    /// Run and rolled back: everything that was declared is as before.
    RolledBack(String),
    /// A query that must give true.
    Holds(String),
    /// A query that must come to give true.
    Becomes(String),
    /// From here on the first watched table is this one.
    Read(Watched),
    /// kill -9 of the whole server, and its return.
    Crash,
}

pub struct Outcome {
    /// What is new in the log, see `history`.
    pub log: String,
    /// SQLSTATE and a part of the hint of the error that the statement must end with.
    pub refused: Option<(&'static str, &'static str)>,
    /// A NOTICE or WARNING with this text; no other WARNING is let pass.
    pub says: &'static str,
    pub pipelines: Pipelines,
}

#[derive(Clone, Copy)]
pub enum Pipelines {
    /// They run, and each row has the vector of its text.
    InStep,
    /// They are paused for a reason with this text.
    Paused(&'static str),
    /// They are gone with their views and vectors.
    Gone,
    /// Not looked at.
    Unchecked,
}

/// The table of a case that names none.
pub const ITEM: &str =
    "CREATE TABLE item (id int PRIMARY KEY, title text, stock int NOT NULL DEFAULT 0)";

const THREE: &str = "INSERT INTO item VALUES (1, 'one'), (2, 'two'), (3, 'three')";

impl Case {
    /// Over table `item (id, title, stock)`, which is empty.
    pub fn new(what: impl Into<String>) -> Case {
        Case::over(what, ITEM)
    }

    /// Over table `item` with rows 1, 2 and 3.
    pub fn three(what: impl Into<String>) -> Case {
        Case::new(what).given(THREE)
    }

    /// Over a table `item (id, title, …)` that `create` makes.
    pub fn over(what: impl Into<String>, create: impl Into<String>) -> Case {
        Case {
            what: what.into(),
            given: vec![create.into()],
            watched: vec![Watched::new("item", "id")],
            steps: Vec::new(),
            replayed: true,
            modes: &[Mode::Keys, Mode::Audited],
            since: 0,
        }
    }

    /// Run before the pipelines are declared.
    pub fn given(mut self, sql: impl Into<String>) -> Case {
        self.given.push(sql.into());
        self
    }

    /// No pipeline is declared.
    pub fn unwatched(mut self) -> Case {
        self.watched.clear();
        self
    }

    /// A second table with columns `id` and `title`, and its pipeline.
    pub fn also(mut self, source: &str) -> Case {
        self.watched.push(Watched::new(source, "id"));
        self
    }

    /// Changes how the last watched table is declared and read.
    pub fn watch(mut self, change: impl FnOnce(&mut Watched)) -> Case {
        change(self.watched.last_mut().unwrap());
        self
    }

    pub fn key(self, key: &str) -> Case {
        self.watch(|watched| watched.key = key.into())
    }

    /// The arguments of create_pipeline that say what the text is, and that text.
    pub fn text(self, arguments: &str, text: &str) -> Case {
        self.watch(|watched| {
            watched.arguments = arguments.into();
            watched.text = text.into();
        })
    }

    /// The log of an audited table does not say enough to replay it.
    pub fn not_replayed(mut self) -> Case {
        self.replayed = false;
        self
    }

    pub fn only(mut self, modes: &'static [Mode]) -> Case {
        self.modes = modes;
        self
    }

    pub fn since(mut self, major: i32) -> Case {
        self.since = major;
        self
    }

    fn step(mut self, by: Writer, sql: impl Into<String>, outcome: Outcome) -> Case {
        let sql = sql.into();
        self.steps.push(Step::Run { by, sql, outcome });
        self
    }

    pub fn run(self, sql: impl Into<String>, log: impl Into<String>) -> Case {
        self.step(Writer::One, sql, Outcome::logged(log))
    }

    /// By a second session.
    pub fn other(self, sql: impl Into<String>, log: impl Into<String>) -> Case {
        self.step(Writer::Two, sql, Outcome::logged(log))
    }

    pub fn says(self, sql: impl Into<String>, log: &str, says: &'static str) -> Case {
        let outcome = Outcome::logged(log);
        self.step(Writer::One, sql, Outcome { says, ..outcome })
    }

    pub fn refused(self, sql: impl Into<String>, code: &'static str) -> Case {
        self.refused_with_hint(sql, code, "")
    }

    pub fn refused_with_hint(
        self,
        sql: impl Into<String>,
        code: &'static str,
        hint: &'static str,
    ) -> Case {
        let outcome = Outcome::logged("");
        let refused = Some((code, hint));
        self.step(Writer::One, sql, Outcome { refused, ..outcome })
    }

    /// Refused, but not before something was committed.
    pub fn refused_after(self, sql: &str, log: &str, code: &'static str) -> Case {
        let outcome = Outcome::logged(log);
        let refused = Some((code, ""));
        self.step(Writer::One, sql, Outcome { refused, ..outcome })
    }

    pub fn paused(self, sql: impl Into<String>, log: &str, reason: &'static str) -> Case {
        self.leaves(sql, log, Pipelines::Paused(reason))
    }

    pub fn leaves(self, sql: impl Into<String>, log: &str, pipelines: Pipelines) -> Case {
        let outcome = Outcome::logged(log);
        self.step(
            Writer::One,
            sql,
            Outcome {
                pipelines,
                ..outcome
            },
        )
    }

    /// The same, with a NOTICE or WARNING.
    pub fn leaves_saying(
        self,
        sql: impl Into<String>,
        log: &str,
        says: &'static str,
        pipelines: Pipelines,
    ) -> Case {
        let outcome = Outcome::logged(log);
        self.step(
            Writer::One,
            sql,
            Outcome {
                says,
                pipelines,
                ..outcome
            },
        )
    }

    pub fn rolled_back(mut self, sql: impl Into<String>) -> Case {
        self.steps.push(Step::RolledBack(sql.into()));
        self
    }

    pub fn holds(mut self, sql: impl Into<String>) -> Case {
        self.steps.push(Step::Holds(sql.into()));
        self
    }

    pub fn becomes(mut self, sql: impl Into<String>) -> Case {
        self.steps.push(Step::Becomes(sql.into()));
        self
    }

    /// Table `source` has been given a pipeline by a statement of the case.
    pub fn now_watched(mut self, source: &str) -> Case {
        let watched = Watched::new(source, "id");
        self.steps.push(Step::Read(watched));
        self
    }

    /// The first watched table is read otherwise from here on.
    pub fn now(mut self, change: impl FnOnce(&mut Watched)) -> Case {
        let earlier = self.steps.iter().rev().find_map(|step| match step {
            Step::Read(watched) => Some(watched),
            _ => None,
        });
        let mut watched = earlier.unwrap_or(&self.watched[0]).clone();
        change(&mut watched);
        self.steps.push(Step::Read(watched));
        self
    }

    pub fn crash(mut self) -> Case {
        self.steps.push(Step::Crash);
        self
    }
}

impl Outcome {
    fn logged(log: impl Into<String>) -> Outcome {
        Outcome {
            log: log.into(),
            refused: None,
            says: "",
            pipelines: Pipelines::InStep,
        }
    }
}
