//! Commands of others that concern recsync, seen before they run.
//!
//! It holds workers off a database that is to be dropped, renamed or copied; it decides who may set a server's
//! protected options; it refuses DROP SERVER while pipelines use the server. It never does anything of that
//! before the command's own permission could be checked, and lets every other command pass untouched.

use pgrx::pg_sys;
use pgrx::prelude::*;
use std::ffi::{CStr, c_char};
use std::sync::atomic::Ordering::SeqCst;

use super::ddl;
use super::names::{quote, select_one};
use super::rights::{As, is_admin};
use super::validator::protected;
use crate::capture::wake;
use crate::embed::endpoint::PROTECTED_OPTIONS;
use crate::error::{Error, OrReport, Result};
use crate::hooks::follow;
use crate::shared::{self, Database, slots};

static mut PREVIOUS: pg_sys::ProcessUtility_hook_type = None;

/// How long a command waits for a worker to leave its database.
const PATIENCE_MS: i64 = 4_000;

/// Installs the hook. Only from `_PG_init` while shared_preload_libraries are loaded.
pub fn register() {
    // SAFETY: the postmaster is single-threaded; the hook is chained as PostgreSQL's own modules do.
    unsafe {
        PREVIOUS = pg_sys::ProcessUtility_hook;
        pg_sys::ProcessUtility_hook = Some(process_utility);
    }
}

#[pg_guard]
#[allow(clippy::too_many_arguments)]
unsafe extern "C-unwind" fn process_utility(
    statement: *mut pg_sys::PlannedStmt,
    query: *const c_char,
    read_only_tree: bool,
    context: pg_sys::ProcessUtilityContext::Type,
    parameters: pg_sys::ParamListInfo,
    environment: *mut pg_sys::QueryEnvironment,
    receiver: *mut pg_sys::DestReceiver,
    completion: *mut pg_sys::QueryCompletion,
) {
    // SAFETY: the hook's arguments are handed on as they came; the node is read according to its tag.
    unsafe {
        let node = (*statement).utilityStmt;
        let hold = before(node).or_report();
        let follow_up = follow_up(node);
        let declared = ddl::before(node);
        let servers = configured_servers(node);
        let grants = grants(node);
        let renamed = follow::renamed(node);
        let run = || match PREVIOUS {
            Some(previous) => previous(
                statement,
                query,
                read_only_tree,
                context,
                parameters,
                environment,
                receiver,
                completion,
            ),
            None => pg_sys::standard_ProcessUtility(
                statement,
                query,
                read_only_tree,
                context,
                parameters,
                environment,
                receiver,
                completion,
            ),
        };
        run();
        drop(hold);
        if let Some(declared) = declared {
            ddl::after(declared);
        }
        if let Some(renamed) = renamed {
            ddl::seeing_its_effects(|| follow::follow(&renamed));
        }
        if !servers.is_empty() {
            ddl::after_server_change(&servers);
        }
        if grants {
            ddl::after_grant();
        }
        if let Some(follow_up) = follow_up {
            follow_up();
        }
    }
}

/// Keeps workers out of a database while it lives; an ERROR ends it, too.
struct Hold(&'static Database);

impl Drop for Hold {
    fn drop(&mut self) {
        self.0.hold_pid.store(0, SeqCst);
        if let Some(shared) = shared::shared() {
            shared.scan_wanted.store(true, SeqCst);
            shared.launcher.set_latch();
        }
    }
}

unsafe fn before(node: *mut pg_sys::Node) -> Result<Option<Hold>> {
    use pg_sys::NodeTag as T;
    // SAFETY: each cast follows the node's tag; lists and strings are the parser's.
    unsafe {
        match (*node).type_ {
            T::T_DropdbStmt => Ok(hold(text((*node.cast::<pg_sys::DropdbStmt>()).dbname))),
            T::T_RenameStmt => {
                let rename = &*node.cast::<pg_sys::RenameStmt>();
                match rename.renameType {
                    pg_sys::ObjectType::OBJECT_DATABASE => Ok(hold(text(rename.subname))),
                    pg_sys::ObjectType::OBJECT_FOREIGN_SERVER => {
                        let name = string_node(rename.object);
                        if is_own_server(&name)? && !is_admin() {
                            return Err(Error::Denied {
                                what: format!("server {} may be renamed by superusers and members of recsync_admin only", quote(&name)),
                                grant: "Its name is how pipelines and keys are found: ask an administrator.".into(),
                            });
                        }
                        Ok(None)
                    }
                    _ => Ok(None),
                }
            }
            T::T_AlterDatabaseStmt => {
                let alter = &*node.cast::<pg_sys::AlterDatabaseStmt>();
                let moves = options(alter.options)
                    .iter()
                    .any(|(name, _)| name == "tablespace");
                Ok(if moves {
                    hold(text(alter.dbname))
                } else {
                    None
                })
            }
            T::T_CreatedbStmt => {
                let create = &*node.cast::<pg_sys::CreatedbStmt>();
                let template = options(create.options)
                    .into_iter()
                    .find(|(name, _)| name == "template");
                Ok(template.and_then(|(_, value)| hold(value.unwrap_or_default())))
            }
            T::T_CreateForeignServerStmt => {
                let create = &*node.cast::<pg_sys::CreateForeignServerStmt>();
                if text(create.fdwname) == "recsync" {
                    check_protected(create.options)?;
                }
                Ok(None)
            }
            T::T_AlterForeignServerStmt => {
                let alter = &*node.cast::<pg_sys::AlterForeignServerStmt>();
                if is_own_server(&text(alter.servername))? {
                    check_protected(alter.options)?;
                }
                Ok(None)
            }
            T::T_CreateUserMappingStmt => {
                let create = &*node.cast::<pg_sys::CreateUserMappingStmt>();
                if is_own_server(&text(create.servername))? {
                    check_protected(create.options)?;
                }
                Ok(None)
            }
            T::T_AlterUserMappingStmt => {
                let alter = &*node.cast::<pg_sys::AlterUserMappingStmt>();
                if is_own_server(&text(alter.servername))? {
                    check_protected(alter.options)?;
                }
                Ok(None)
            }
            T::T_DropStmt => {
                let drop = &*node.cast::<pg_sys::DropStmt>();
                if drop.removeType == pg_sys::ObjectType::OBJECT_FOREIGN_SERVER
                    && drop.behavior == pg_sys::DropBehavior::DROP_RESTRICT
                {
                    for name in list(drop.objects).map(|object| string_node(object.cast())) {
                        check_unused(&name)?;
                    }
                }
                let extension = drop.removeType == pg_sys::ObjectType::OBJECT_EXTENSION
                    && list(drop.objects).any(|object| string_node(object.cast()) == "recsync");
                // It locks recsync's tables in an order of its own: a worker that reads them would get in its way.
                Ok(if extension {
                    hold(own_database_name())
                } else {
                    None
                })
            }
            _ => Ok(None),
        }
    }
}

/// What is to be done once the command has run. Decided before: afterwards its node may be gone.
unsafe fn follow_up(node: *mut pg_sys::Node) -> Option<fn()> {
    use pg_sys::NodeTag as T;
    // SAFETY: each cast follows the node's tag.
    unsafe {
        match (*node).type_ {
            T::T_TransactionStmt => {
                let kind = (*node.cast::<pg_sys::TransactionStmt>()).kind;
                (kind == pg_sys::TransactionStmtKind::TRANS_STMT_COMMIT_PREPARED)
                    .then_some(wake::after_commit_prepared as fn())
            }
            T::T_CreatedbStmt | T::T_DropdbStmt => Some(wake::after_database_change),
            // What the worker runs on may have changed: it looks again.
            T::T_AlterTableStmt
            | T::T_IndexStmt
            | T::T_RenameStmt
            | T::T_AlterObjectSchemaStmt
            | T::T_AlterOwnerStmt
            | T::T_AlterForeignServerStmt
            | T::T_CreateUserMappingStmt
            | T::T_AlterUserMappingStmt
            | T::T_DropUserMappingStmt
            | T::T_GrantStmt
            | T::T_GrantRoleStmt
            | T::T_ReassignOwnedStmt
            | T::T_DropOwnedStmt => Some(wake::after_catalog_change),
            T::T_DropStmt => {
                let removed = (*node.cast::<pg_sys::DropStmt>()).removeType;
                Some(match removed {
                    pg_sys::ObjectType::OBJECT_EXTENSION => wake::after_extension_change,
                    _ => wake::after_catalog_change,
                })
            }
            T::T_AlterExtensionStmt => Some(wake::after_extension_change),
            _ => None,
        }
    }
}

/// The servers that a command makes or changes, or says who may use and how. Read before: afterwards its node may be
/// gone.
unsafe fn configured_servers(node: *mut pg_sys::Node) -> Vec<String> {
    use pg_sys::NodeTag as T;
    // SAFETY: each cast follows the node's tag; names are the parser's.
    unsafe {
        let name = match (*node).type_ {
            T::T_CreateForeignServerStmt => {
                (*node.cast::<pg_sys::CreateForeignServerStmt>()).servername
            }
            T::T_AlterForeignServerStmt => {
                (*node.cast::<pg_sys::AlterForeignServerStmt>()).servername
            }
            T::T_CreateUserMappingStmt => {
                (*node.cast::<pg_sys::CreateUserMappingStmt>()).servername
            }
            T::T_AlterUserMappingStmt => (*node.cast::<pg_sys::AlterUserMappingStmt>()).servername,
            T::T_DropUserMappingStmt => (*node.cast::<pg_sys::DropUserMappingStmt>()).servername,
            T::T_GrantStmt => {
                let grant = &*node.cast::<pg_sys::GrantStmt>();
                let of_servers = grant.objtype == pg_sys::ObjectType::OBJECT_FOREIGN_SERVER;
                let objects = if grant.is_grant && of_servers {
                    grant.objects
                } else {
                    std::ptr::null_mut()
                };
                return list(objects).map(|name| string_node(name.cast())).collect();
            }
            _ => return Vec::new(),
        };
        vec![text(name)]
    }
}

/// Whether a command gives somebody a right. Read before, likewise.
unsafe fn grants(node: *mut pg_sys::Node) -> bool {
    use pg_sys::NodeTag as T;
    // SAFETY: each cast follows the node's tag.
    unsafe {
        match (*node).type_ {
            T::T_GrantStmt => (*node.cast::<pg_sys::GrantStmt>()).is_grant,
            T::T_GrantRoleStmt => (*node.cast::<pg_sys::GrantRoleStmt>()).is_grant,
            _ => false,
        }
    }
}

fn own_database_name() -> String {
    // SAFETY: this session's database has a name.
    unsafe { text(pg_sys::get_database_name(pg_sys::MyDatabaseId)) }
}

/// Asks the worker of `database`, its writers, its indexer and its trainer to leave and waits until they have; for those who may run
/// the command at all.
fn hold(database: String) -> Option<Hold> {
    let shared = shared::shared()?;
    let name = std::ffi::CString::new(database).ok()?;
    // SAFETY: look-ups by name and OID, rights of the current user, a signal to a process of ours.
    unsafe {
        let oid = pg_sys::get_database_oid(name.as_ptr(), true);
        if oid == pg_sys::InvalidOid || !may_change_database(oid) {
            return None;
        }
        let entry = shared.database(oid)?;
        if entry
            .hold_pid
            .compare_exchange(0, pg_sys::MyProcPid, SeqCst, SeqCst)
            .is_err()
        {
            return None;
        }
        let hold = Hold(entry);
        entry.prepare_to_wait();
        let started = std::time::Instant::now();
        let mut asked: Vec<i32> = Vec::new();
        loop {
            let mut there = slots::pids(&shared.writers, oid);
            there.extend(slots::pids(&shared.trainer, oid));
            there.extend(slots::pids(&entry.indexer, oid));
            there.extend(Some(entry.worker_pid.load(SeqCst)).filter(|pid| *pid != 0));
            let left = PATIENCE_MS - started.elapsed().as_millis() as i64;
            if there.is_empty() || left <= 0 {
                break;
            }
            for pid in there {
                if !asked.contains(&pid) {
                    libc::kill(pid, libc::SIGTERM);
                    asked.push(pid);
                }
            }
            entry.wait_for_progress(left);
        }
        Database::stop_waiting();
        Some(hold)
    }
}

unsafe fn may_change_database(oid: pg_sys::Oid) -> bool {
    // SAFETY: look-ups of rights by OID.
    unsafe {
        let user = pg_sys::GetUserId();
        #[cfg(feature = "pg15")]
        let owner = pg_sys::pg_database_ownercheck(oid, user);
        #[cfg(not(feature = "pg15"))]
        let owner = pg_sys::object_ownercheck(pg_sys::DatabaseRelationId, oid, user);
        owner || pg_sys::superuser()
    }
}

/// Whoever sets, adds or drops a protected option must be an administrator.
unsafe fn check_protected(list: *mut pg_sys::List) -> Result<()> {
    // SAFETY: a list of DefElems, as CREATE and ALTER give it.
    let named = unsafe { options(list) };
    match named
        .iter()
        .find(|(name, _)| PROTECTED_OPTIONS.contains(&name.as_str()))
    {
        Some((name, _)) if !is_admin() => Err(protected(name)),
        _ => Ok(()),
    }
}

fn is_own_server(name: &str) -> Result<bool> {
    let own = select_one::<bool>(
        "SELECT EXISTS (SELECT FROM pg_catalog.pg_foreign_server s JOIN pg_catalog.pg_foreign_data_wrapper w ON w.oid = s.srvfdw
                         WHERE s.srvname = $1 AND w.fdwname = 'recsync')",
        &[name.into()],
    )?;
    Ok(own == Some(true))
}

fn check_unused(server: &str) -> Result<()> {
    if !is_own_server(server)? {
        return Ok(());
    }
    let _as = As::extension();
    let users = select_one::<String>(
        "SELECT pg_catalog.string_agg(name, ', ' ORDER BY name)
           FROM (SELECT relation AS name FROM recsync.pipeline WHERE server = $1 UNION ALL SELECT name FROM recsync.hook WHERE server = $1) u",
        &[server.into()],
    )?;
    match users {
        Some(users) => Err(Error::ServerInUse {
            server: quote(server),
            users,
        }),
        None => Ok(()),
    }
}

/// A string of the parser's.
///
/// # Safety
/// It is null, or ends with a NUL.
pub unsafe fn text(string: *const c_char) -> String {
    if string.is_null() {
        return String::new();
    }
    // SAFETY: the parser's NUL-terminated strings.
    unsafe { CStr::from_ptr(string).to_string_lossy().into_owned() }
}

/// The text of a String node.
///
/// # Safety
/// It is null, or a node.
pub unsafe fn string_node(node: *mut pg_sys::Node) -> String {
    // SAFETY: the grammar gives a String here.
    unsafe {
        if node.is_null() || (*node).type_ != pg_sys::NodeTag::T_String {
            return String::new();
        }
        text((*node.cast::<pg_sys::String>()).sval)
    }
}

/// The elements of a list of pointers.
///
/// # Safety
/// `list` is NIL or holds pointers.
pub unsafe fn list(list: *mut pg_sys::List) -> impl Iterator<Item = *mut std::ffi::c_void> {
    // SAFETY: a pointer list of the parser, or null (NIL).
    let length = unsafe { list.as_ref() }.map_or(0, |list| list.length as usize);
    (0..length).map(move |index| {
        // SAFETY: below the list's length.
        unsafe { (*(*list).elements.add(index)).ptr_value }
    })
}

/// The names (and, where they are strings, the values) of DefElems.
unsafe fn options(of: *mut pg_sys::List) -> Vec<(String, Option<String>)> {
    // SAFETY: a list of DefElems.
    unsafe {
        list(of)
            .map(|element| {
                let element = &*element.cast::<pg_sys::DefElem>();
                let is_string =
                    !element.arg.is_null() && (*element.arg).type_ == pg_sys::NodeTag::T_String;
                (
                    text(element.defname),
                    is_string.then(|| string_node(element.arg)),
                )
            })
            .collect()
    }
}
