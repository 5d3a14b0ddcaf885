//! Short forms of what tests ask a connection. It never swallows an error.

use postgres::error::DbError;
use postgres::types::FromSqlOwned;
use postgres::{Client, Row};

pub trait Sql {
    /// Runs one statement or several; with several, all are one transaction.
    fn run(&mut self, sql: &str);

    /// The rows of a query.
    fn rows(&mut self, sql: &str) -> Vec<Row>;

    /// The first column of the only row.
    fn one<T: FromSqlOwned>(&mut self, sql: &str) -> T;

    /// The first column of every row.
    fn column<T: FromSqlOwned>(&mut self, sql: &str) -> Vec<T>;

    /// The error that the statement must end with.
    fn refused(&mut self, sql: &str) -> DbError;
}

impl Sql for Client {
    #[track_caller]
    fn run(&mut self, sql: &str) {
        if let Err(error) = self.batch_execute(sql) {
            panic!("{sql}\n{}", describe(&error));
        }
    }

    #[track_caller]
    fn rows(&mut self, sql: &str) -> Vec<Row> {
        match self.query(sql, &[]) {
            Ok(rows) => rows,
            Err(error) => panic!("{sql}\n{}", describe(&error)),
        }
    }

    #[track_caller]
    fn one<T: FromSqlOwned>(&mut self, sql: &str) -> T {
        let rows = self.rows(sql);
        assert_eq!(rows.len(), 1, "{sql}: not one row");
        rows[0].get(0)
    }

    #[track_caller]
    fn column<T: FromSqlOwned>(&mut self, sql: &str) -> Vec<T> {
        self.rows(sql).iter().map(|row| row.get(0)).collect()
    }

    #[track_caller]
    fn refused(&mut self, sql: &str) -> DbError {
        match self.batch_execute(sql) {
            Ok(()) => panic!("went through, but must be refused: {sql}"),
            Err(error) => match error.as_db_error() {
                Some(error) => error.clone(),
                None => panic!("{sql}\n{error}"),
            },
        }
    }
}

pub fn describe(error: &postgres::Error) -> String {
    match error.as_db_error() {
        None => error.to_string(),
        Some(error) => format!(
            "{} {}\nDETAIL: {}\nHINT: {}\nCONTEXT: {}",
            error.code().code(),
            error.message(),
            error.detail().unwrap_or_default(),
            error.hint().unwrap_or_default(),
            error.where_().unwrap_or_default()
        ),
    }
}
