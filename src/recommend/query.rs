//! embed: a text's vector in the calling backend, by the model that made the pipeline's vectors.
//!
//! The request runs in a thread of its own, so that the backend stays cancellable. It never asks twice for the
//! same text while the session remembers it, whatever plan calls it how often, nor for one that another session has
//! asked for a moment ago, and nothing for the planner's guesses.

use pgrx::PgMemoryContexts;
use pgrx::pg_sys;
use pgrx::prelude::*;
use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::c_int;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

use super::{planning, turn};
use crate::catalog::{pipeline, server, site};
use crate::embed::account::Account;
use crate::embed::endpoint::{Endpoint, Purpose};
use crate::embed::failure::Failure;
use crate::embed::lane::with_signals_blocked;
use crate::embed::provider::Provider;
use crate::embed::rate;
use crate::embed::recent;
use crate::embed::reply::Embeddings;
use crate::embed::secret::SecretPolicy;
use crate::embed::sent::Sent;
use crate::error::{Error, OrReport, Result};
use crate::ledger::asked::Asker;
use crate::settings;
use crate::shared;
use crate::store::vector;
use crate::worker::process::Bell;

/// Vectors that a session remembers: a screen's worth of searches, 1.5 MB at 1,536 dimensions.
const REMEMBERED: usize = 256;

/// What a provider was made by: its options, the settings for keys and hosts, the time limit.
type Rules = (Endpoint, SecretPolicy, Duration);
/// A provider's number, what for, the text.
type Asked = (usize, Purpose, String);

thread_local! {
    static PROVIDERS: RefCell<Vec<(Rules, Arc<Provider>)>> = const { RefCell::new(Vec::new()) };
    static VECTORS: RefCell<HashMap<Asked, Arc<Vec<f32>>>> = RefCell::new(HashMap::new());
}

#[unsafe(no_mangle)]
#[doc(hidden)]
pub extern "C" fn pg_finfo_embed_v1() -> &'static pg_sys::Pg_finfo_record {
    const V1: pg_sys::Pg_finfo_record = pg_sys::Pg_finfo_record { api_version: 1 };
    &V1
}

extension_sql!(
    r#"
CREATE FUNCTION embed(name text, input text, purpose text DEFAULT 'query') RETURNS vector
LANGUAGE c STABLE STRICT PARALLEL RESTRICTED COST 100000 AS 'MODULE_PATHNAME', 'embed_v1';
COMMENT ON FUNCTION embed(text, text, text) IS
'The vector of a text by the model of a pipeline (or of a server). purpose: query or document. One request for a text in a session, at most recsync.embed_timeout; needs USAGE on the server. Put it into a scalar sub-select, so that plans call it once: ORDER BY embedding <=> (SELECT recsync.embed(…)). Errors: 42704 unknown name, 42501 no USAGE, 38000 the provider failed, 57014 no answer in time, 53400 the account''s limits leave no request until then.';
"#,
    name = "embed",
    requires = ["tables"]
);

/// What one place in a plan was last called with, and what came of it: a call for each row costs no look-up.
#[derive(Default)]
struct LastCall {
    arguments: [String; 3],
    vector: Option<Arc<Vec<f32>>>,
}

/// `embed(name text, input text, purpose text) returns vector`.
///
/// # Safety
/// Called by PostgreSQL with three text arguments, none NULL.
#[pg_guard]
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn embed_v1(fcinfo: pg_sys::FunctionCallInfo) -> pg_sys::Datum {
    // SAFETY: a call in progress; the arguments' types are those of the declaration.
    let (arguments, last) = unsafe {
        if planning::is_estimate(fcinfo) {
            (*fcinfo).isnull = true;
            return pg_sys::Datum::null();
        }
        let given = (*fcinfo).args.as_slice((*fcinfo).nargs as usize);
        let text = |index: usize| {
            String::from_datum(given[index].value, given[index].isnull).unwrap_or_default()
        };
        ([text(0), text(1), text(2)], last_call(fcinfo))
    };
    let vector = match &last.vector {
        Some(vector) if last.arguments == arguments => Arc::clone(vector),
        _ => {
            let [name, input, purpose] = &arguments;
            embed(name, input, purpose).or_report()
        }
    };
    let datum = vector::datum(&vector);
    *last = LastCall {
        arguments,
        vector: Some(vector),
    };
    datum
}

/// # Safety
/// `fcinfo` is a call in progress of a function that keeps nothing else there.
unsafe fn last_call<'a>(fcinfo: pg_sys::FunctionCallInfo) -> &'a mut LastCall {
    // SAFETY: lives as long as the FmgrInfo's context, in which the pointer to it stands; one call at a time.
    unsafe {
        let info = &mut *(*fcinfo).flinfo;
        if info.fn_extra.is_null() {
            let mut context = PgMemoryContexts::For(info.fn_mcxt);
            info.fn_extra = context.leak_and_drop_on_delete(LastCall::default()).cast();
        }
        &mut *info.fn_extra.cast::<LastCall>()
    }
}

fn embed(name: &str, input: &str, purpose: &str) -> Result<Arc<Vec<f32>>> {
    let purpose = match purpose {
        "query" => Purpose::Query,
        "document" => Purpose::Document,
        other => {
            return Err(Error::argument(
                "purpose",
                format!("\"{other}\" is not a purpose"),
                "The valid ones are query and document.",
            ));
        }
    };
    let (pipeline, server) = match pipeline::find(name) {
        Ok(pipeline) => (Some(pipeline.account), pipeline.server),
        Err(Error::NoSuchPipeline(_)) => (None, name.to_owned()),
        Err(error) => return Err(error),
    };
    vector_of(pipeline, &server, input, purpose)
}

/// The vector of `input` by `server`, as the current user may use it; on the account of a pipeline, if it is for one.
pub fn vector_of(
    account: Option<i32>,
    server: &str,
    input: &str,
    purpose: Purpose,
) -> Result<Arc<Vec<f32>>> {
    if input.is_empty() {
        return Err(Error::argument(
            "input",
            "an empty text has no embedding",
            "Give at least one character.",
        ));
    }
    // SAFETY: the current user's OID.
    let endpoint = server::endpoint(server, unsafe { pg_sys::GetUserId() })?;
    let (number, provider) = provider(&endpoint);
    let key = (number, purpose, input.to_owned());
    if let Some(vector) = VECTORS.with_borrow(|vectors| vectors.get(&key).cloned()) {
        return Ok(vector);
    }
    // What needs no request is not worth a place.
    let others = shared::shared().filter(|_| endpoint.api.wire.is_some());
    let others = others.map(|shared| {
        let key = recent::Key::of(&endpoint, purpose, input);
        (&shared.recent, key)
    });
    let known = others.and_then(|(recent, key)| recent.get(key, rate::now()));
    let vector = match known {
        Some(vector) => vector,
        None => {
            if endpoint.api.wire.is_some() {
                site::require_home()?;
            }
            let count = counter(account, server);
            let embeddings = ask(server, provider, input, purpose, count)?;
            let vector = embeddings.vectors.into_iter().next().unwrap_or_default();
            if let Some((recent, key)) = others {
                recent.put(key, &vector, rate::now());
            }
            vector
        }
    };
    let vector = Arc::new(vector);
    VECTORS.with_borrow_mut(|vectors| {
        if vectors.len() >= REMEMBERED {
            vectors.clear();
        }
        vectors.insert(key, vector.clone());
    });
    Ok(vector)
}

/// The connection of an endpoint, kept for the session until a setting or option changes; and its number.
fn provider(endpoint: &Endpoint) -> (usize, Arc<Provider>) {
    let rules = (
        endpoint.clone(),
        settings::secret_policy(),
        settings::embed_timeout(),
    );
    PROVIDERS.with_borrow_mut(|providers| {
        if let Some(number) = providers.iter().position(|(known, _)| *known == rules) {
            return (number, providers[number].1.clone());
        }
        let mut bounded = endpoint.clone();
        bounded.total_timeout = bounded.total_timeout.min(rules.2);
        let provider = Arc::new(Provider::new(bounded, rules.1.clone()));
        providers.push((rules, provider.clone()));
        (providers.len() - 1, provider)
    })
}

/// Adds what was sent to what the worker puts into the ledger, in any thread; true where the worker is to be told.
type Count = Box<dyn Fn(Sent) -> bool + Send>;

fn counter(account: Option<i32>, server: &str) -> Count {
    let (Some(shared), Some(server)) = (shared::shared(), server::number(server)) else {
        return Box::new(|_| false);
    };
    let asker = Asker {
        // SAFETY: this process's database.
        database: unsafe { pg_sys::MyDatabaseId }.to_u32(),
        pipeline: account.unwrap_or(0),
        server: server.to_u32(),
    };
    Box::new(move |sent| shared.asked.add(asker, sent))
}

/// Threads of this backend that are still inside a request.
pub(super) static BUSY: AtomicUsize = AtomicUsize::new(0);

/// One request, in a thread; this backend waits for its turn and for it, at most recsync.embed_timeout, cancellable.
fn ask(
    server: &str,
    provider: Arc<Provider>,
    input: &str,
    purpose: Purpose,
    count: Count,
) -> Result<Embeddings> {
    leave_at_once_with_threads();
    let timeout = settings::embed_timeout();
    let started = Instant::now();
    let mut bell = Bell::new()?;
    let account = Account::of(provider.endpoint(), shared::rates());
    let spent = turn::wait(server, &account, input, started + timeout, &mut bell)?;
    let ring = bell.ringer()?;
    let (reply_to, reply) =
        crossbeam_channel::bounded::<(std::result::Result<Embeddings, Failure>, bool)>(1);
    let inputs = vec![input.to_owned()];
    let spawned = with_signals_blocked(|| {
        std::thread::Builder::new()
            .name("recsync embed".into())
            .spawn(move || {
                BUSY.fetch_add(1, SeqCst);
                let mut sent = Sent::default();
                let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                    provider.embed_and_count(&inputs, purpose, &mut sent)
                }));
                // Here, since whoever has asked may not wait any more.
                let is_news = count(sent);
                if let Ok(result) = result {
                    let _ = reply_to.send((result, is_news));
                }
                drop(reply_to);
                ring();
                BUSY.fetch_sub(1, SeqCst);
            })
    });
    spawned.map_err(|error| Error::Internal(format!("no thread: {error}")))?;
    loop {
        let received = reply.try_recv();
        if let Ok((_, true)) = received
            && let Some(database) = shared::shared().and_then(shared::Shared::own_database)
        {
            database.wake.wake();
        }
        match received.map(|(result, _)| result) {
            Ok(Ok(embeddings)) => {
                account.heed(None, embeddings.limits, rate::now());
                if embeddings.tokens > 0 {
                    spent.correct(embeddings.tokens, rate::now());
                }
                return Ok(embeddings);
            }
            Ok(Err(failure)) => {
                account.heed(failure.asked_to_wait(), failure.limits, rate::now());
                return Err(Error::Embedding {
                    class: failure.class.as_str(),
                    message: crate::embed::failure::describe(&failure),
                });
            }
            Err(crossbeam_channel::TryRecvError::Disconnected) => {
                return Err(Error::Embedding {
                    class: "temporary",
                    message: "the request ended without an answer".into(),
                });
            }
            Err(crossbeam_channel::TryRecvError::Empty) => {}
        }
        let Some(left) = timeout
            .checked_sub(started.elapsed())
            .filter(|left| left.as_millis() > 0)
        else {
            return Err(Error::EmbedTimeout {
                server: server.to_owned(),
                milliseconds: timeout.as_millis() as i32,
            });
        };
        bell.wait(left);
    }
}

/// A backend that ends while a thread of ours is at work, inside a request for example, must not run libraries' destructors under it.
pub(super) fn leave_at_once_with_threads() {
    static REGISTERED: std::sync::Once = std::sync::Once::new();
    // SAFETY: registers a callback of this process.
    REGISTERED.call_once(|| unsafe { pg_sys::on_proc_exit(Some(leave), pg_sys::Datum::from(0)) });
}

unsafe extern "C-unwind" fn leave(code: c_int, _arg: pg_sys::Datum) {
    if BUSY.load(SeqCst) > 0 {
        // SAFETY: shared memory has been left already.
        unsafe { libc::_exit(code) }
    }
}
