//! Servers, schemas and roles that are renamed: hooks know them by name.
//!
//! It never stands in the way of the command. A role's new name is followed in the database where it is given.

use pgrx::pg_sys;
use pgrx::prelude::*;

use crate::catalog::names::{own_relation, quote};
use crate::catalog::rights::{As, in_subtransaction};
use crate::catalog::utility::{string_node, text};

/// What a command renames.
pub struct Renamed {
    sql: &'static str,
    from: String,
    to: String,
}

const SERVER: &str = "UPDATE recsync.hook SET server = $2 WHERE server = $1";
const SCHEMA: &str = "\
UPDATE recsync.hook SET name = $2 || pg_catalog.substr(name, pg_catalog.length($1) + 1)
 WHERE pg_catalog.starts_with(name, $1)";
const ROLE: &str = "UPDATE recsync.hook SET owner = $2 WHERE owner = $1";

/// What it renames, if that concerns hooks.
///
/// # Safety
/// `node` is a utility statement that has not run yet.
pub unsafe fn renamed(node: *mut pg_sys::Node) -> Option<Renamed> {
    // SAFETY: the cast follows the node's tag; names are the parser's.
    unsafe {
        if (*node).type_ != pg_sys::NodeTag::T_RenameStmt {
            return None;
        }
        let rename = &*node.cast::<pg_sys::RenameStmt>();
        let to = text(rename.newname);
        let (sql, from, to) = match rename.renameType {
            pg_sys::ObjectType::OBJECT_FOREIGN_SERVER => (SERVER, string_node(rename.object), to),
            pg_sys::ObjectType::OBJECT_SCHEMA => {
                let first = |schema: &str| format!("{}.", quote(schema));
                (SCHEMA, first(&text(rename.subname)), first(&to))
            }
            pg_sys::ObjectType::OBJECT_ROLE => (ROLE, quote(&text(rename.subname)), quote(&to)),
            _ => return None,
        };
        own_relation(c"hook").map(|_| Renamed { sql, from, to })
    }
}

/// After the command.
pub fn follow(renamed: &Renamed) {
    let followed = in_subtransaction(|| {
        let _as = As::extension();
        let names = [renamed.from.as_str().into(), renamed.to.as_str().into()];
        Ok(Spi::run_with_args(renamed.sql, &names)?)
    });
    if let Err(failed) = followed {
        warning!("recsync could not follow this command: {}", failed.message);
    }
}
