//! Expressions of pipelines and recommenders: parsed with the creator's search_path, stored fully qualified.
//!
//! It never accepts what would change by itself: subqueries, aggregates and volatile functions are refused.

use pgrx::pg_sys;
use std::ffi::{CStr, CString};

use super::names::Canonical;
use super::rights::with_settings;
use crate::error::{Error, Result};
use pg_sys::ParseExprKind as Kind;

/// An expression over the source's row, which is called `s` in it.
pub struct Expression {
    pub sql: String,
    pub columns: Vec<String>,
    /// It reads the row as a whole.
    pub whole_row: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    Text,
    Boolean,
    /// A double precision number.
    Number,
    /// A timestamp with time zone.
    Time,
    Any,
}

impl Wanted {
    /// The type that it has to become, and its name; `None` where any will do.
    fn target(self) -> Option<(pg_sys::Oid, &'static str)> {
        match self {
            Wanted::Text => Some((pg_sys::TEXTOID, "text")),
            Wanted::Number => Some((pg_sys::FLOAT8OID, "double precision")),
            Wanted::Time => Some((pg_sys::TIMESTAMPTZOID, "timestamp with time zone")),
            Wanted::Boolean | Wanted::Any => None,
        }
    }
}

/// Parses `text` for the rows of `source`. Syntax errors and unknown columns are PostgreSQL's own errors.
pub fn parse(
    argument: &'static str,
    source: pg_sys::Oid,
    text: &str,
    wanted: Wanted,
) -> Result<Expression> {
    checked(
        argument,
        source,
        Analysed::of(argument, source, text, None, wanted)?,
    )
}

/// The same for one that is stored: over a row `s`.
pub fn parse_stored(
    argument: &'static str,
    source: pg_sys::Oid,
    text: &str,
    wanted: Wanted,
) -> Result<Expression> {
    checked(
        argument,
        source,
        Analysed::of(argument, source, text, Some(c"s"), wanted)?,
    )
}

/// One that may look into other tables: their changes are not seen.
pub fn parse_with_subqueries(
    argument: &'static str,
    source: pg_sys::Oid,
    text: &str,
    wanted: Wanted,
) -> Result<Expression> {
    const KIND: Kind::Type = Kind::EXPR_KIND_UPDATE_SOURCE;
    checked(
        argument,
        source,
        Analysed::as_kind(argument, source, text, None, wanted, KIND)?,
    )
}

fn checked(argument: &'static str, source: pg_sys::Oid, analysed: Analysed) -> Result<Expression> {
    // SAFETY: walks the analysed expression; the relation is opened and closed here.
    unsafe {
        if pg_sys::contain_volatile_functions(analysed.expression) {
            return Err(Error::argument(
                argument,
                "it calls a volatile function",
                "What changes by itself is never right, and a text would be paid for again and again: use stable or immutable functions of the row.",
            ));
        }
        let relation = pg_sys::table_open(source, pg_sys::AccessShareLock as _);
        let columns = used_columns(relation, analysed.expression);
        let whole_row = attribute_numbers(analysed.expression).contains(&0);
        pg_sys::table_close(relation, pg_sys::NoLock as _);
        Ok(Expression {
            sql: analysed.sql(),
            columns,
            whole_row,
        })
    }
}

/// An expression as PostgreSQL holds it: by OIDs and attribute numbers, which outlive a change of names. It lives
/// in the memory context in which it was made.
pub struct Analysed {
    source: pg_sys::Oid,
    expression: *mut pg_sys::Node,
}

impl Analysed {
    /// `text` over a row of `source`, which is called `alias` in it, or by the table's name.
    pub fn of(
        argument: &'static str,
        source: pg_sys::Oid,
        text: &str,
        alias: Option<&CStr>,
        wanted: Wanted,
    ) -> Result<Analysed> {
        // What is stored, over `s`, has been refused what it must not be.
        let kind = match alias {
            Some(_) => Kind::EXPR_KIND_UPDATE_SOURCE,
            None => Kind::EXPR_KIND_GENERATED_COLUMN,
        };
        Analysed::as_kind(argument, source, text, alias, wanted, kind)
    }

    fn as_kind(
        argument: &'static str,
        source: pg_sys::Oid,
        text: &str,
        alias: Option<&CStr>,
        wanted: Wanted,
        kind: Kind::Type,
    ) -> Result<Analysed> {
        let c_text = CString::new(text).map_err(|_| {
            Error::argument(argument, "it holds a zero byte", "Give an SQL expression.")
        })?;
        // SAFETY: PostgreSQL's parser and analyser, used as for a CHECK constraint; the relation is opened and closed
        // here, all nodes live in the current memory context.
        unsafe {
            let node = single_expression(argument, &c_text)?;
            let relation = pg_sys::table_open(source, pg_sys::AccessShareLock as _);
            let state = pg_sys::make_parsestate(std::ptr::null_mut());
            (*state).p_sourcetext = c_text.as_ptr();
            let alias = alias.map_or(std::ptr::null_mut(), |alias| {
                pg_sys::makeAlias(alias.as_ptr(), std::ptr::null_mut())
            });
            let item = pg_sys::addRangeTableEntryForRelation(
                state,
                relation,
                pg_sys::AccessShareLock as _,
                alias,
                false,
                true,
            );
            pg_sys::addNSItemToQuery(state, item, true, true, true);
            let mut expression = pg_sys::transformExpr(state, node, kind);
            if wanted == Wanted::Boolean {
                let name = CString::new(argument).unwrap_or_default();
                expression = pg_sys::coerce_to_boolean(state, expression, name.as_ptr());
            }
            if let Some((target, name)) = wanted.target() {
                expression = pg_sys::coerce_to_target_type(
                    state,
                    expression,
                    pg_sys::exprType(expression),
                    target,
                    -1,
                    pg_sys::CoercionContext::COERCION_EXPLICIT,
                    pg_sys::CoercionForm::COERCE_EXPLICIT_CAST,
                    -1,
                );
                if expression.is_null() {
                    return Err(Error::argument(
                        argument,
                        format!("it is not {name}"),
                        format!("Cast the expression to {name}."),
                    ));
                }
            }
            pg_sys::assign_expr_collations(state, expression);
            pg_sys::table_close(relation, pg_sys::NoLock as _);
            Ok(Analysed { source, expression })
        }
    }

    /// SQL over the source's row `s`, fully qualified, by the names of now.
    pub fn sql(&self) -> String {
        let _canonical = Canonical::begin();
        // SAFETY: the source exists; the expression lives in a memory context that is still there.
        unsafe {
            let context = pg_sys::deparse_context_for(c"s".as_ptr(), self.source);
            with_settings(&[(c"search_path", c"pg_catalog")], || {
                CStr::from_ptr(pg_sys::deparse_expression(
                    self.expression,
                    context,
                    true,
                    false,
                ))
                .to_string_lossy()
                .into_owned()
            })
        }
    }
}

/// The one expression that `text` is; anything more (a FROM, a second expression) is refused.
unsafe fn single_expression(argument: &'static str, text: &CStr) -> Result<*mut pg_sys::Node> {
    let refused = || {
        Error::argument(
            argument,
            "it is not a single expression",
            "Give one SQL expression over the source's columns.",
        )
    };
    // SAFETY: in this mode the parser returns one RawStmt that holds a SelectStmt.
    unsafe {
        let list = pg_sys::raw_parser(text.as_ptr(), pg_sys::RawParseMode::RAW_PARSE_PLPGSQL_EXPR);
        let raw = (*(*list).elements).ptr_value.cast::<pg_sys::RawStmt>();
        let select = (*raw).stmt.cast::<pg_sys::SelectStmt>();
        let select = &*select;
        let plain = select.distinctClause.is_null()
            && select.fromClause.is_null()
            && select.whereClause.is_null()
            && select.groupClause.is_null()
            && select.havingClause.is_null()
            && select.windowClause.is_null()
            && select.sortClause.is_null()
            && select.limitOffset.is_null()
            && select.limitCount.is_null()
            && select.lockingClause.is_null()
            && select.op == pg_sys::SetOperation::SETOP_NONE;
        if !plain || select.targetList.is_null() || (*select.targetList).length != 1 {
            return Err(refused());
        }
        Ok((*(*(*select.targetList).elements)
            .ptr_value
            .cast::<pg_sys::ResTarget>())
        .val)
    }
}

/// The names of the columns that `expression` reads. A virtual generated column, whose value is not in the
/// trigger's row, counts as the columns that its own expression reads.
unsafe fn used_columns(relation: pg_sys::Relation, expression: *mut pg_sys::Node) -> Vec<String> {
    // SAFETY: walks analysed expressions over range table entry 1 and reads the open relation's descriptor.
    unsafe {
        let descriptor = pgrx::PgTupleDesc::from_pg_copy((*relation).rd_att);
        let stored = |attribute: &pg_sys::FormData_pg_attribute| {
            !attribute.attisdropped && attribute.attgenerated != b'v' as std::ffi::c_char
        };
        let mut used = Vec::new();
        let mut numbers = attribute_numbers(expression);
        while let Some(number) = numbers.pop() {
            match descriptor.iter().nth((number - 1).max(0) as usize) {
                Some(attribute) if number > 0 && stored(attribute) => {
                    used.push(attribute.name().to_owned());
                }
                #[cfg(feature = "pg18")]
                Some(_) if number > 0 => {
                    numbers.extend(attribute_numbers(pg_sys::build_generation_expression(
                        relation, number,
                    )));
                }
                // The whole row.
                _ => {
                    let all = descriptor.iter().filter(|attribute| stored(attribute));
                    used.extend(all.map(|attribute| attribute.name().to_owned()));
                }
            }
        }
        used.sort();
        used.dedup();
        used
    }
}

/// The attributes that `expression` reads; 0 or less: the whole row.
unsafe fn attribute_numbers(expression: *mut pg_sys::Node) -> Vec<i32> {
    // SAFETY: walks an analysed expression over range table entry 1, and the subqueries in it; a list of Vars.
    unsafe {
        let list = pg_sys::pull_vars_of_level(expression, 0);
        let length = list.as_ref().map_or(0, |list| list.length as usize);
        let var = |index| {
            (*(*list).elements.add(index))
                .ptr_value
                .cast::<pg_sys::Var>()
        };
        let of_source = |var: &*mut pg_sys::Var| (**var).varno == 1;
        (0..length)
            .map(var)
            .filter(of_source)
            .map(|var| i32::from((*var).varattno))
            .collect()
    }
}
