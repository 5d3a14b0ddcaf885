//! Foreign servers of wrapper recsync: where texts are sent, and who may send them.
//!
//! It never reads a key: an endpoint holds the key's name.

use pgrx::pg_sys;

use super::names::quote;
use super::rights::As;
use crate::embed::endpoint::Endpoint;
use crate::error::{Error, Result};

const OPTIONS: &str = "\
SELECT pg_catalog.jsonb_build_array(
         COALESCE((SELECT pg_catalog.jsonb_agg(pg_catalog.jsonb_build_array(o.option_name, o.option_value)) FROM pg_catalog.pg_options_to_table(f.srvoptions) o), '[]'),
         COALESCE((SELECT pg_catalog.jsonb_agg(pg_catalog.jsonb_build_array(o.option_name, o.option_value))
                     FROM (SELECT m.umoptions FROM pg_catalog.pg_user_mapping m WHERE m.umserver = f.oid AND m.umuser IN (0, $2) ORDER BY m.umuser DESC LIMIT 1) m,
                          pg_catalog.pg_options_to_table(m.umoptions) o), '[]'),
         pg_catalog.has_server_privilege($2, f.oid, 'USAGE'), pg_catalog.pg_get_userbyid($2))::text
  FROM pg_catalog.pg_foreign_server f JOIN pg_catalog.pg_foreign_data_wrapper w ON w.oid = f.srvfdw
 WHERE f.srvname = $1 AND w.fdwname = 'recsync'";

/// The name of the server with this OID, and what its own options describe; `None` where it is gone. As recsync's owner.
pub fn by_number(server: pg_sys::Oid) -> Result<Option<(String, Endpoint)>> {
    const SERVER: &str = "\
SELECT pg_catalog.jsonb_build_array(f.srvname, COALESCE((SELECT pg_catalog.jsonb_agg(pg_catalog.jsonb_build_array(o.option_name, o.option_value))
                                                            FROM pg_catalog.pg_options_to_table(f.srvoptions) o), '[]'))::text
  FROM pg_catalog.pg_foreign_server f WHERE f.oid = $1";
    let Some(row) = super::names::select_one::<String>(SERVER, &[server.into()])? else {
        return Ok(None);
    };
    let (name, options): (String, Vec<(String, String)>) =
        serde_json::from_str(&row).map_err(|error| Error::Internal(error.to_string()))?;
    Ok(Endpoint::from_options(&options, &[])
        .ok()
        .map(|endpoint| (name, endpoint)))
}

/// The OID of a server.
pub fn number(server: &str) -> Option<pg_sys::Oid> {
    let name = std::ffi::CString::new(server).ok()?;
    // SAFETY: a syscache look-up by a NUL-terminated name.
    let found = unsafe { pg_sys::get_foreign_server_oid(name.as_ptr(), true) };
    (found != pg_sys::InvalidOid).then_some(found)
}

/// The endpoint of `server`, which embeds, as `role` uses it. Without USAGE: an error that hints at the GRANT.
pub fn endpoint(server: &str, role: pg_sys::Oid) -> Result<Endpoint> {
    let endpoint = any(server, role)?;
    if !endpoint.api.is_for_hooks() {
        return Ok(endpoint);
    }
    Err(Error::argument(
        "server",
        format!(
            "server {} has api webhook: it takes events, not texts",
            quote(server)
        ),
        "Name a server of an embedding API here, and this one in recsync.create_hook.",
    ))
}

/// The endpoint of `server`, which takes events, as `role` uses it.
pub fn of_hooks(server: &str, role: pg_sys::Oid) -> Result<Endpoint> {
    let endpoint = any(server, role)?;
    if endpoint.api.is_for_hooks() {
        return Ok(endpoint);
    }
    Err(Error::argument(
        "server",
        format!("server {} embeds texts: it takes no events", quote(server)),
        "CREATE SERVER … FOREIGN DATA WRAPPER recsync OPTIONS (api 'webhook', url '…', api_key_file '…').",
    ))
}

fn any(server: &str, role: pg_sys::Oid) -> Result<Endpoint> {
    let row = {
        let _as = As::extension();
        super::names::select_one::<String>(OPTIONS, &[server.into(), role.into()])?
    };
    let row = row.ok_or_else(|| Error::NoSuchServer(server.to_owned()))?;
    type Options = Vec<(String, String)>;
    let (options, mapping, may, role): (Options, Options, bool, String) =
        serde_json::from_str(&row).map_err(|error| Error::Internal(error.to_string()))?;
    if !may {
        return Err(Error::Denied {
            what: format!(
                "role {} has no USAGE on foreign server {}",
                quote(&role),
                quote(server)
            ),
            grant: format!(
                "It is the approval that texts may leave the database: GRANT USAGE ON FOREIGN SERVER {} TO {};",
                quote(server),
                quote(&role)
            ),
        });
    }
    Endpoint::from_options(&options, &mapping).map_err(super::validator::to_error)
}
