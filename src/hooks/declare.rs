//! create_hook, drop_hook, hook_channel.
//!
//! It never lets a hook hear of what its owner does not own.

use pgrx::pg_sys;
use pgrx::prelude::*;
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::body;
use super::event::Event;
use super::hook::{self, Hook};
use super::watched;
use crate::capture::wake;
use crate::catalog::names::{self, quote, select_one};
use crate::catalog::rights::As;
use crate::catalog::{pipeline, recommender, server};
use crate::embed::leak::looks_like_credential;
use crate::embed::webhook::METHODS;
use crate::error::{Error, OrReport, Result};

/// A channel's name has less than this many bytes.
const LONGEST_CHANNEL: usize = 63;

/// What create_hook was given, checked.
struct Wanted {
    name: String,
    owner: String,
    event: Event,
    pipeline: Option<i32>,
    recommender: Option<i32>,
    server: Option<String>,
    path: String,
    method: String,
    body: Option<Value>,
    notify: bool,
}

#[pg_extern(sql = r#"
CREATE FUNCTION create_hook(name text, event text, server text DEFAULT NULL, path text DEFAULT '/', method text DEFAULT 'POST', body jsonb DEFAULT NULL, listens_to text DEFAULT NULL, notify boolean DEFAULT true, if_not_exists boolean DEFAULT false) RETURNS text LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', '@FUNCTION_NAME@';
COMMENT ON FUNCTION create_hook(text, text, text, text, text, jsonb, text, boolean, boolean) IS
'Tells others what happens here: the worker sends a signed letter to a server of api webhook (at least once, with the same webhook-id; Standard Webhooks 1.0), and says the same by NOTIFY. event: embedded, invalidated, generation, dead_letter or budget. server: NULL for NOTIFY only. path: below the server''s url. method: POST, PUT or PATCH. body: JSON in which {{keys}}, {{source}}, {{timestamp}} and others are filled in. listens_to: a pipeline or recommender; NULL: all that the caller owns. Items of recommenders that it hears of by event invalidated are watched from then on (SHARE ROW EXCLUSIVE on them, in tries of 50 ms). notify: whether to NOTIFY, too, on the channel that recsync.hook_channel names. Returns the hook''s full name. Errors: 42501 without CREATE on its schema, USAGE on the server or what it listens to, 42704 for what does not exist, 42710 where it exists, 22023 for bad arguments, 55P03 where somebody locks the items.';
"#)]
#[allow(clippy::too_many_arguments)] // the arguments of an SQL function
fn create_hook(
    name: Option<&str>,
    event: Option<&str>,
    server: Option<&str>,
    path: Option<&str>,
    method: Option<&str>,
    body: Option<pgrx::JsonB>,
    listens_to: Option<&str>,
    notify: Option<bool>,
    if_not_exists: Option<bool>,
) -> String {
    (|| {
        let event = event_of(event.unwrap_or_default())?;
        let (of_pipelines, of_recommenders) = event.is_of();
        let (pipeline, recommender, owner) =
            heard(listens_to, of_pipelines, of_recommenders, event)?;
        let wanted = Wanted {
            name: full_name(name.unwrap_or_default())?,
            owner: role_name(owner)?,
            event,
            pipeline,
            recommender,
            path: path_of(path.unwrap_or("/"))?,
            method: method_of(method.unwrap_or("POST"))?,
            body: body.map(|body| body.0),
            notify: notify.unwrap_or(true),
            server: server.map(str::to_owned),
        };
        check(&wanted, owner)?;
        make(&wanted, if_not_exists.unwrap_or(false))
    })()
    .or_report()
}

fn event_of(word: &str) -> Result<Event> {
    Event::find(word).ok_or_else(|| {
        let valid = Event::ALL.map(Event::as_str).join(", ");
        let hint = format!("The valid ones are {valid}.");
        Error::argument("event", format!("\"{word}\" is not an event"), hint)
    })
}

/// What is heard of, and who owns that: the hook is theirs.
fn heard(
    listens_to: Option<&str>,
    of_pipelines: bool,
    of_recommenders: bool,
    event: Event,
) -> Result<(Option<i32>, Option<i32>, pg_sys::Oid)> {
    let Some(name) = listens_to else {
        // SAFETY: the current user's OID.
        return Ok((None, None, unsafe { pg_sys::GetUserId() }));
    };
    let refused = |what: &str, other: &str| {
        Err(Error::argument(
            "listens_to",
            format!(
                "{name} is a {what}, and event {} is of {other}",
                event.as_str()
            ),
            format!("Name one of the {other}, or leave it out to hear of all that you own."),
        ))
    };
    match pipeline::find(name) {
        Ok(_) if !of_pipelines => refused("pipeline", "recommenders"),
        Ok(found) => {
            pipeline::require_owner(&found)?;
            Ok((Some(found.id), None, found.owner()))
        }
        Err(unknown @ Error::NoSuchPipeline(_)) => match recommender::find(name) {
            Ok(_) if !of_recommenders => refused("recommender", "pipelines"),
            Ok(found) => {
                recommender::require_owner(&found)?;
                Ok((None, Some(found.of), found.owner()))
            }
            Err(Error::NoSuchRecommender(_)) => Err(unknown),
            Err(error) => Err(error),
        },
        Err(error) => Err(error),
    }
}

/// The name with its schema, which the caller may make things in.
fn full_name(name: &str) -> Result<String> {
    let parts = names::parts(name);
    let (schema, own) = match parts.as_deref() {
        Some([schema, own]) => (Some(schema.clone()), own.clone()),
        Some([own]) => {
            let current = select_one::<String>("SELECT pg_catalog.current_schema()::text", &[])?;
            (current, own.clone())
        }
        _ => (None, String::new()),
    };
    let (Some(schema), false) = (schema, own.is_empty()) else {
        return Err(Error::argument(
            "name",
            format!("\"{name}\" is no name in a schema that exists"),
            "Give a name such as warm, or shop.warm.",
        ));
    };
    let may = select_one::<bool>(
        "SELECT pg_catalog.has_schema_privilege(n.oid, 'CREATE') FROM pg_catalog.pg_namespace n WHERE n.nspname = $1",
        &[schema.as_str().into()],
    )?;
    match may {
        Some(true) => Ok(format!("{}.{}", quote(&schema), quote(&own))),
        Some(false) => Err(Error::Denied {
            what: format!("you may not create anything in schema {}", quote(&schema)),
            grant: format!("GRANT CREATE ON SCHEMA {} TO …", quote(&schema)),
        }),
        None => Err(Error::argument(
            "name",
            format!("there is no schema {}", quote(&schema)),
            "CREATE SCHEMA makes it.",
        )),
    }
}

fn role_name(role: pg_sys::Oid) -> Result<String> {
    let name = select_one::<String>(
        "SELECT pg_catalog.pg_get_userbyid($1)::text",
        &[role.into()],
    )?;
    Ok(quote(&name.unwrap_or_default()))
}

fn path_of(path: &str) -> Result<String> {
    let refused = |reason: &str| {
        let hint = "Give a path below the server's url, such as /models/refresh; a secret belongs into a file (header_file).";
        Err(Error::argument("path", reason, hint))
    };
    if !path.starts_with('/') || path.contains('#') {
        return refused("it does not begin with /, or it has a fragment");
    }
    if !path.bytes().all(|byte| byte.is_ascii_graphic()) {
        return refused("it holds a character that has to be percent-encoded");
    }
    let mut values = path.split(['?', '&', '=', '/']);
    if values.any(looks_like_credential) {
        return refused("it carries a credential");
    }
    Ok(path.to_owned())
}

fn method_of(method: &str) -> Result<String> {
    let method = method.to_ascii_uppercase();
    match METHODS.contains(&method.as_str()) {
        true => Ok(method),
        false => Err(Error::argument(
            "method",
            format!("\"{method}\" is not a method of hooks"),
            format!("The valid ones are {}.", METHODS.join(", ")),
        )),
    }
}

/// What is wrong with all of it together.
fn check(wanted: &Wanted, owner: pg_sys::Oid) -> Result<()> {
    if let Some(template) = &wanted.body {
        body::check(wanted.event, template).map_err(|reason| {
            let names: Vec<String> = wanted
                .event
                .placeholders()
                .map(|(name, _)| format!("{{{{{name}}}}}"))
                .collect();
            let hint = format!("Event {} has {}.", wanted.event.as_str(), names.join(", "));
            Error::argument("body", reason, hint)
        })?;
    }
    let Some(server) = &wanted.server else {
        return match wanted.notify {
            true => Ok(()),
            false => Err(Error::argument(
                "notify",
                "a hook without a server says everything by NOTIFY",
                "Give a server, or leave notify => false out.",
            )),
        };
    };
    // SAFETY: the current user's OID.
    server::of_hooks(server, unsafe { pg_sys::GetUserId() })?;
    let endpoint = server::of_hooks(server, owner)?;
    if endpoint.key.is_none() {
        return Err(Error::argument(
            "server",
            format!("server {} has no signing key", quote(server)),
            format!(
                "ALTER SERVER {} OPTIONS (ADD api_key_file '…'): the file holds whsec_ and the base64 of 24 to 64 random bytes.",
                quote(server)
            ),
        ));
    }
    Ok(())
}

fn make(wanted: &Wanted, if_not_exists: bool) -> Result<String> {
    const SAME: &str = "\
SELECT event = $2 AND pipeline_id IS NOT DISTINCT FROM $3 AND recommender_id IS NOT DISTINCT FROM $4 AND server IS NOT DISTINCT FROM $5
       AND path = $6 AND method = $7 AND body IS NOT DISTINCT FROM $8::jsonb AND (channel IS NOT NULL) = $9 AND owner = $10
  FROM recsync.hook WHERE name = $1";
    const MAKE: &str = "\
INSERT INTO recsync.hook (name, event, pipeline_id, recommender_id, server, path, method, body, channel, owner)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8::jsonb, CASE WHEN $9 THEN $11 END, $10)";
    let body = wanted.body.as_ref().map(Value::to_string);
    let mut arguments: Vec<pgrx::datum::DatumWithOid> = vec![
        wanted.name.as_str().into(),
        wanted.event.as_str().into(),
        wanted.pipeline.into(),
        wanted.recommender.into(),
        wanted.server.as_deref().into(),
        wanted.path.as_str().into(),
        wanted.method.as_str().into(),
        body.as_deref().into(),
        wanted.notify.into(),
        wanted.owner.as_str().into(),
    ];
    let _as = As::extension();
    match select_one::<bool>(SAME, &arguments)? {
        Some(true) if if_not_exists => {
            notice!("hook {} already exists, skipping", wanted.name);
            return Ok(wanted.name.clone());
        }
        Some(same) => {
            return Err(Error::HookExists {
                name: wanted.name.clone(),
                same,
            });
        }
        None => {}
    }
    let channel = free_channel(&wanted.name)?;
    arguments.push(channel.as_str().into());
    Spi::run_with_args(MAKE, &arguments)?;
    watched::follow(&hook::find(&wanted.name)?)?;
    wake::after_catalog_change();
    Ok(wanted.name.clone())
}

/// `recsync_` and the hook's name; with its schema where that is not public, and cut, with a digest, where it is longer
/// than a channel's name may be, or another hook's.
fn free_channel(name: &str) -> Result<String> {
    let parts = names::parts(name).unwrap_or_default();
    let plain = match parts.as_slice() {
        [schema, own] if schema == "public" => format!("recsync_{own}"),
        parts => format!("recsync_{}", parts.join(".")),
    };
    let taken = select_one::<bool>(
        "SELECT EXISTS (SELECT FROM recsync.hook WHERE channel = $1)",
        &[plain.as_str().into()],
    )?;
    if plain.len() <= LONGEST_CHANNEL && taken == Some(false) {
        return Ok(plain);
    }
    let digest = Sha256::digest(name);
    let digest: String = digest
        .iter()
        .take(4)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let mut cut = plain.len().min(LONGEST_CHANNEL - digest.len() - 1);
    while !plain.is_char_boundary(cut) {
        cut -= 1;
    }
    Ok(format!("{}_{digest}", plain.get(..cut).unwrap_or_default()))
}

#[pg_extern(sql = r#"
CREATE FUNCTION drop_hook(name text, if_exists boolean DEFAULT false) RETURNS void LANGUAGE c VOLATILE STRICT AS 'MODULE_PATHNAME', '@FUNCTION_NAME@';
COMMENT ON FUNCTION drop_hook(text, boolean) IS
'Ends a hook: what it has not told yet is forgotten. Errors: 42704 where it does not exist (unless if_exists), 42501 for others than its owner and recsync_admin.';
"#)]
fn drop_hook(name: &str, if_exists: bool) {
    (|| {
        let hook = match hook::find(name) {
            Err(Error::NoSuchHook(_)) if if_exists => {
                notice!("hook \"{name}\" does not exist, skipping");
                return Ok(());
            }
            found => found?,
        };
        hook::require_owner(&hook)?;
        let _as = As::extension();
        for sql in [
            "DELETE FROM recsync.hook WHERE id = $1",
            "DELETE FROM recsync.delivery WHERE hook_id = $1",
            "DELETE FROM recsync.dead_letter_log WHERE pipeline_id = $1",
        ] {
            Spi::run_with_args(sql, &[hook.id.into()])?;
        }
        watched::follow(&hook)?;
        wake::after_catalog_change();
        Ok::<_, Error>(())
    })()
    .or_report();
}

#[pg_extern(sql = r#"
CREATE FUNCTION hook_channel(name text) RETURNS text LANGUAGE c STABLE STRICT AS 'MODULE_PATHNAME', '@FUNCTION_NAME@';
COMMENT ON FUNCTION hook_channel(text) IS
'The channel on which a hook is heard: LISTEN it, quoted as an identifier (format(''LISTEN %I'', …)). NULL where it was made with notify => false. Errors: 42704 where it does not exist, 42501 for others than its owner and recsync_admin.';
"#)]
fn hook_channel(name: &str) -> Option<String> {
    let channel = |hook: Hook| {
        hook::require_owner(&hook)?;
        Ok(hook.channel)
    };
    hook::find(name).and_then(channel).or_report()
}
