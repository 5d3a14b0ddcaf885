//! What goes wrong, each with its SQLSTATE and a hint; turned into a PostgreSQL error once, at the SQL boundary.
//!
//! It never holds a key or the text of a row: whatever is in an [`Error`] may stand in the server's log.

use pgrx::pg_sys::panic::{CaughtError, ErrorReport};
use pgrx::prelude::*;

pub type Result<T> = std::result::Result<T, Error>;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("recsync must be loaded at server start")]
    NotPreloaded,
    #[error(
        "the loaded library is recsync {loaded}, the extension in this database is {installed}"
    )]
    WrongVersion { loaded: String, installed: String },
    #[error("invalid value for argument \"{argument}\": {reason}")]
    InvalidArgument {
        argument: &'static str,
        reason: String,
        hint: String,
    },
    #[error("pipeline \"{0}\" does not exist")]
    NoSuchPipeline(String),
    #[error("pipeline \"{name}\" already exists with another definition")]
    PipelineDiffers { name: String, difference: String },
    #[error("pipeline \"{0}\" already exists")]
    PipelineExists(String),
    #[error("recommender \"{0}\" does not exist")]
    NoSuchRecommender(String),
    #[error("recommender \"{name}\" already exists with another definition")]
    RecommenderDiffers { name: String, difference: String },
    #[error("recommender \"{0}\" already exists")]
    RecommenderExists(String),
    #[error("{relation} is one of the tables of interactions of recommender \"{name}\"")]
    InteractionsExist { name: String, relation: String },
    #[error("recommender \"{name}\" cannot forget this user: {reason}")]
    StillThere { name: String, reason: String },
    #[error("{relation} was not added to recommender \"{name}\"")]
    NoSuchInteractions { name: String, relation: String },
    #[error("recommender \"{name}\" is broken: {reason}")]
    BrokenRecommender { name: String, reason: String },
    #[error("what {relation} says was shown of recommender \"{name}\" cannot be read: {reason}")]
    BrokenImpressions {
        name: String,
        relation: String,
        reason: String,
    },
    #[error("several columns of \"{relation}\" can be meant by {argument}")]
    AmbiguousColumn {
        argument: &'static str,
        relation: String,
        candidates: String,
    },
    #[error("relation \"{0}\" already exists")]
    RelationExists(String),
    #[error("table \"{0}\" has no primary key")]
    NoPrimaryKey(String),
    #[error("\"{relation}\" is {kind}, not a table whose rows recsync can watch")]
    NotATable {
        relation: String,
        kind: &'static str,
        hint: &'static str,
    },
    #[error("pipeline \"{pipeline}\" holds the vectors of recommenders: {recommenders}")]
    PipelineInUse {
        pipeline: String,
        recommenders: String,
    },
    #[error("pipeline \"{0}\" is being rebuilt")]
    BeingRebuilt(String),
    #[error("no generation of pipeline \"{pipeline}\" {which}")]
    NoGeneration {
        pipeline: String,
        which: &'static str,
    },
    #[error(
        "the vectors of pipeline \"{pipeline}\" are in column \"{column}\" of its source, which holds those of one model"
    )]
    CannotRebuild { pipeline: String, column: String },
    #[error("others depend on {view}, whose type would change: {dependents}")]
    ViewInUse { view: String, dependents: String },
    #[error("table \"{0}\" is not audited")]
    NotAudited(String),
    #[error("hook \"{0}\" does not exist")]
    NoSuchHook(String),
    #[error("hook \"{name}\" already exists")]
    HookExists { name: String, same: bool },
    #[error("column \"{column}\" of \"{relation}\" does not exist")]
    NoSuchColumn {
        relation: String,
        column: String,
        columns: String,
    },
    #[error("server \"{0}\" does not exist, or is not one of recsync's")]
    NoSuchServer(String),
    #[error("server {server} is used by {users}")]
    ServerInUse { server: String, users: String },
    #[error("permission denied: {what}")]
    Denied { what: String, grant: String },
    #[error("could not lock \"{0}\" within a second")]
    LockBusy(String),
    #[error("this transaction's own changes cannot be seen yet: they are not committed")]
    OwnChanges,
    #[error("what is done meanwhile cannot be seen in a {0} transaction")]
    FixedSnapshot(&'static str),
    #[error("cannot be done on a standby server")]
    Recovery,
    #[error("\"{0}\" is paused")]
    Paused(String),
    #[error("all rows of \"{0}\" are being looked at")]
    BackfillRuns(String),
    #[error("it is paused: {0}")]
    OverBudget(String),
    #[error("\"{0}\" has no counters")]
    NoCounters(String),
    #[error("recsync does nothing here: {0}")]
    Rests(String),
    #[error("{0}")]
    Elsewhere(String),
    #[error("training the models of recommender \"{name}\" has failed (SQLSTATE {code})")]
    Training { name: String, code: String },
    #[error("embedding failed: {message}")]
    Embedding {
        class: &'static str,
        message: String,
    },
    #[error("no answer from server \"{server}\" within recsync.embed_timeout ({milliseconds} ms)")]
    EmbedTimeout { server: String, milliseconds: i32 },
    #[error("server \"{server}\" takes no request for {seconds} s: {reason}")]
    RateLimited {
        server: String,
        seconds: u64,
        reason: &'static str,
    },
    #[error("pipeline \"{name}\" is broken: {reason}")]
    BrokenPipeline { name: String, reason: String },
    #[error("a trigger of {table} has kept {rows} rows from getting their vector")]
    Suppressed { table: String, rows: usize },
    /// The reason may be PostgreSQL's own, which quotes what was sent as it does for an INSERT of the caller's.
    #[error("event {position} cannot be applied: {reason}")]
    Event {
        position: usize,
        id: Option<String>,
        field: Option<String>,
        code: PgSqlErrorCode,
        reason: String,
    },
    #[error("{0} has no row of this key, or none that you may write")]
    NoSuchRow(String),
    #[error("server option: {message}")]
    Option {
        code: PgSqlErrorCode,
        message: String,
        detail: Option<String>,
        hint: Option<String>,
    },
    #[error(transparent)]
    Spi(#[from] pgrx::spi::Error),
    #[error("{0}")]
    Internal(String),
}

/// Why a transaction or a subtransaction was rolled back.
#[derive(Debug)]
pub struct Failed {
    pub code: PgSqlErrorCode,
    pub message: String,
}

impl Failed {
    /// Goes on as the error that it was.
    pub fn raise(&self) -> ! {
        ereport!(ERROR, self.code, self.message.clone());
    }
}

impl From<Error> for Failed {
    fn from(error: Error) -> Failed {
        Failed {
            code: error.sqlstate(),
            message: error.to_string(),
        }
    }
}

/// The same for who goes on with it as an error of their own.
impl From<Failed> for Error {
    fn from(Failed { code, message }: Failed) -> Error {
        Error::Option {
            code,
            message,
            detail: None,
            hint: None,
        }
    }
}

impl From<CaughtError> for Failed {
    fn from(cause: CaughtError) -> Failed {
        let (CaughtError::PostgresError(report)
        | CaughtError::ErrorReport(report)
        | CaughtError::RustPanic {
            ereport: report, ..
        }) = cause;
        Failed {
            code: report.sql_error_code(),
            message: report.message().to_owned(),
        }
    }
}

impl Error {
    pub fn argument(
        argument: &'static str,
        reason: impl Into<String>,
        hint: impl Into<String>,
    ) -> Self {
        Error::InvalidArgument {
            argument,
            reason: reason.into(),
            hint: hint.into(),
        }
    }

    pub fn sqlstate(&self) -> PgSqlErrorCode {
        self.code_and_hint().0
    }

    /// The one table of SQLSTATE and hint.
    fn code_and_hint(&self) -> (PgSqlErrorCode, Option<String>) {
        use PgSqlErrorCode as C;
        match self {
            Error::NotPreloaded => (
                C::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                Some("Add recsync to shared_preload_libraries in postgresql.conf and restart the server.".into()),
            ),
            Error::WrongVersion { .. } => (
                C::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                Some("Restart the server with the new library, then run ALTER EXTENSION recsync UPDATE in each database.".into()),
            ),
            Error::InvalidArgument { hint, .. } => (C::ERRCODE_INVALID_PARAMETER_VALUE, Some(hint.clone())),
            Error::NoSuchPipeline(_) => (
                C::ERRCODE_UNDEFINED_OBJECT,
                Some("Pipelines are named like relations, search_path applies; SELECT name FROM recsync.status lists them.".into()),
            ),
            Error::PipelineDiffers { difference, .. } => (
                C::ERRCODE_DUPLICATE_OBJECT,
                Some(format!("It differs in {difference}. Change it with recsync.alter_pipeline, or give the new one another name.")),
            ),
            Error::PipelineExists(_) => (
                C::ERRCODE_DUPLICATE_OBJECT,
                Some("It has the same definition: pass if_not_exists => true to accept it.".into()),
            ),
            Error::NoSuchRecommender(_) => (
                C::ERRCODE_UNDEFINED_OBJECT,
                Some("Recommenders are named like relations, search_path applies; SELECT name FROM recsync.status WHERE kind = 'recommender' lists them.".into()),
            ),
            Error::RecommenderDiffers { difference, .. } => (
                C::ERRCODE_DUPLICATE_OBJECT,
                Some(format!("It differs in {difference}. Change it with recsync.alter_recommender, or give the new one another name.")),
            ),
            Error::RecommenderExists(_) => (
                C::ERRCODE_DUPLICATE_OBJECT,
                Some("It has the same definition: pass if_not_exists => true to accept it.".into()),
            ),
            Error::InteractionsExist { .. } => (
                C::ERRCODE_DUPLICATE_OBJECT,
                Some("What it is read by is changed by recsync.drop_interactions and recsync.add_interactions, or, of the one that it was created with, by recsync.alter_recommender.".into()),
            ),
            Error::StillThere { .. } => (
                C::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                Some("Delete the user's interactions, or give them another user, and COMMIT; then call recsync.forget again.".into()),
            ),
            Error::NoSuchInteractions { .. } => (
                C::ERRCODE_UNDEFINED_OBJECT,
                Some("Only what recsync.add_interactions added can be dropped; the recommender goes by recsync.drop_recommender.".into()),
            ),
            Error::BrokenRecommender { .. } => (
                C::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                Some("Mend the cause, then call recsync.resume; or drop the recommender.".into()),
            ),
            Error::BrokenImpressions { .. } => (
                C::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                Some("Mend the cause, or name another table with recsync.alter_recommender(…, impressions => …); '-' is none.".into()),
            ),
            Error::PipelineInUse { recommenders, .. } => (
                C::ERRCODE_DEPENDENT_OBJECTS_STILL_EXIST,
                Some(format!("Drop them first with recsync.drop_recommender, or have them do without vectors of users by recsync.alter_recommender(…, users => '-'): {recommenders}.")),
            ),
            Error::AmbiguousColumn { argument, candidates, .. } => (
                C::ERRCODE_AMBIGUOUS_COLUMN,
                Some(format!("Give {argument} => '…': {candidates}.")),
            ),
            Error::RelationExists(_) => (
                C::ERRCODE_DUPLICATE_TABLE,
                Some("A pipeline's name is also the name of the relation that holds its vectors: choose another.".into()),
            ),
            Error::BeingRebuilt(_) => (
                C::ERRCODE_OBJECT_IN_USE,
                Some("recsync.generation shows how far it is; recsync.cancel_rebuild ends it.".into()),
            ),
            Error::NoGeneration { .. } => (
                C::ERRCODE_UNDEFINED_OBJECT,
                Some("recsync.generation shows those that there are; the one before is kept until the next rebuild or drop_generation.".into()),
            ),
            Error::CannotRebuild { .. } => (
                C::ERRCODE_FEATURE_NOT_SUPPORTED,
                Some("Make a second pipeline over the source with another into_column and server, let the application read that column once recsync.wait_for says so, and drop the first pipeline and its column.".into()),
            ),
            Error::ViewInUse { .. } => (
                C::ERRCODE_DEPENDENT_OBJECTS_STILL_EXIST,
                Some("Drop them and make them again after the rebuild; or rebuild to the same type, storage and dimensions, for which they may stay.".into()),
            ),
            Error::NotAudited(_) => (
                C::ERRCODE_UNDEFINED_OBJECT,
                Some("SELECT name FROM recsync.status WHERE kind = 'audit' lists the audited tables; if_exists => true accepts it.".into()),
            ),
            Error::NoSuchHook(_) => (
                C::ERRCODE_UNDEFINED_OBJECT,
                Some("Hooks are named like relations, search_path applies; SELECT name FROM recsync.status WHERE kind = 'hook' lists them.".into()),
            ),
            Error::HookExists { same, .. } => (
                C::ERRCODE_DUPLICATE_OBJECT,
                Some(match same {
                    true => "It has the same definition: pass if_not_exists => true to accept it.".into(),
                    false => "It has another definition: drop it with recsync.drop_hook, or give the new one another name.".into(),
                }),
            ),
            Error::NoPrimaryKey(table) => (
                C::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                Some(format!("ALTER TABLE {table} ADD PRIMARY KEY (…): recsync finds a row again by its key.")),
            ),
            Error::NotATable { hint, .. } => (C::ERRCODE_WRONG_OBJECT_TYPE, Some((*hint).into())),
            Error::NoSuchColumn { columns, .. } => {
                (C::ERRCODE_UNDEFINED_COLUMN, Some(format!("Its columns are {columns}.")))
            }
            Error::NoSuchServer(_) => (
                C::ERRCODE_UNDEFINED_OBJECT,
                Some("CREATE SERVER … FOREIGN DATA WRAPPER recsync OPTIONS (api 'openai', model '…', api_key_env '…'), or api 'builtin'.".into()),
            ),
            Error::ServerInUse { .. } => (
                C::ERRCODE_DEPENDENT_OBJECTS_STILL_EXIST,
                Some("Drop them with recsync.drop_pipeline or recsync.drop_hook first, or by recsync.drop_generation where a rebuild has kept them, or DROP SERVER … CASCADE to pause them.".into()),
            ),
            Error::Denied { grant, .. } => (C::ERRCODE_INSUFFICIENT_PRIVILEGE, Some(grant.clone())),
            Error::LockBusy(_) => (
                C::ERRCODE_LOCK_NOT_AVAILABLE,
                Some("A transaction holds a lock on it (see pg_locks). recsync does not queue behind it, so that writers need not either: try again.".into()),
            ),
            Error::OwnChanges => (
                C::ERRCODE_ACTIVE_SQL_TRANSACTION,
                Some("COMMIT first, then call it in a transaction of its own.".into()),
            ),
            Error::FixedSnapshot(_) => {
                (C::ERRCODE_ACTIVE_SQL_TRANSACTION, Some("Call it in a READ COMMITTED transaction.".into()))
            }
            Error::Recovery => {
                (C::ERRCODE_READ_ONLY_SQL_TRANSACTION, Some("Call it on the primary.".into()))
            }
            Error::Paused(_) => (
                C::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                Some("recsync.status says why; recsync.resume lets it run again.".into()),
            ),
            Error::BackfillRuns(_) => (
                C::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                Some("These rows are among them: wait for it (recsync.status shows how far it is), then ask again if need be.".into()),
            ),
            Error::OverBudget(_) => (
                C::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                Some("It goes on with the next month (UTC), or once the budget is raised: by recsync.set_budget, or the server's option monthly_budget.".into()),
            ),
            Error::NoCounters(_) => (
                C::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                Some("Its worker has not begun yet (see recsync.status), or the cluster has more pipelines than are counted: try again.".into()),
            ),
            Error::Rests(_) => (
                C::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                Some("What was asked for is done at its time once it goes on.".into()),
            ),
            Error::Elsewhere(_) => (
                C::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                Some("Where this is the database that goes on from now on, a superuser or a member of recsync_admin calls recsync.adopt_site().".into()),
            ),
            Error::Training { .. } => (
                C::ERRCODE_EXTERNAL_ROUTINE_EXCEPTION,
                Some("The server's log has when; what has been trained before stays.".into()),
            ),
            Error::Embedding { class, .. } => (
                C::ERRCODE_EXTERNAL_ROUTINE_EXCEPTION,
                Some(format!("The failure is of class {class}; see the server's options and its provider.")),
            ),
            Error::EmbedTimeout { .. } => (
                C::ERRCODE_QUERY_CANCELED,
                Some("Raise recsync.embed_timeout, or look at the provider's latency.".into()),
            ),
            Error::RateLimited { seconds, .. } => (
                C::ERRCODE_CONFIGURATION_LIMIT_EXCEEDED,
                Some(format!("Try again in {seconds} s, wait for longer (recsync.embed_timeout), or raise the server's options requests_per_minute and tokens_per_minute if the account's limits are higher.")),
            ),
            Error::BrokenPipeline { .. } => (
                C::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                Some("Mend the cause, then call recsync.resume; or drop the pipeline.".into()),
            ),
            Error::Suppressed { .. } => (
                C::ERRCODE_TRIGGERED_ACTION_EXCEPTION,
                Some("A BEFORE trigger returns NULL for the update of the column that holds the vectors.".into()),
            ),
            Error::Event { code, .. } => (
                *code,
                Some("Nothing of this call is applied. on_error => 'skip' applies the other events, 'dead_letter' keeps this one in recsync.event_dead_letter, too.".into()),
            ),
            Error::NoSuchRow(_) => (
                C::ERRCODE_NO_DATA_FOUND,
                Some("Send an upsert where the row may not be there.".into()),
            ),
            Error::Option { code, hint, .. } => (*code, hint.clone()),
            Error::Spi(_) | Error::Internal(_) => (C::ERRCODE_INTERNAL_ERROR, None),
        }
    }
}

impl From<Error> for ErrorReport {
    #[track_caller]
    fn from(error: Error) -> Self {
        let (code, hint) = error.code_and_hint();
        let message = match &error {
            Error::Option { message, .. } => message.clone(),
            other => other.to_string(),
        };
        let report = ErrorReport::new(code, message, "recsync");
        let report = match &error {
            Error::Option {
                detail: Some(detail),
                ..
            } => report.set_detail(detail.clone()),
            Error::Event { id, field, .. } => {
                let named = |what: &str, name: &Option<String>| {
                    name.as_ref().map(|name| format!("{what}: {name}."))
                };
                let detail = [named("Event id", id), named("Field", field)];
                let detail: Vec<String> = detail.into_iter().flatten().collect();
                match detail.is_empty() {
                    true => report,
                    false => report.set_detail(detail.join(" ")),
                }
            }
            _ => report,
        };
        match hint {
            Some(hint) => report.set_hint(hint),
            None => report,
        }
    }
}

/// The boundary: `?`-able errors of the core become a PostgreSQL ERROR.
pub trait OrReport<T> {
    fn or_report(self) -> T;
}

impl<T> OrReport<T> for Result<T> {
    #[track_caller]
    fn or_report(self) -> T {
        match self {
            Ok(value) => value,
            Err(error) => {
                ErrorReport::from(error).report(PgLogLevel::ERROR);
                unreachable!("an ERROR does not return")
            }
        }
    }
}

/// A SQLSTATE as its five characters.
pub fn sqlstate_text(code: PgSqlErrorCode) -> String {
    let mut number = code as u32;
    (0..5)
        .map(|_| {
            let character = char::from((number & 0x3f) as u8 + b'0');
            number >>= 6;
            character
        })
        .collect()
}
