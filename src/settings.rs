//! The settings of recsync (`recsync.*`), each with the reason for its default.
//!
//! It never reads a setting off the main thread: threads get a copy of what they need.

use pgrx::guc::{GucContext, GucFlags, GucRegistry, GucSetting};
use std::ffi::{CStr, CString};
use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::Duration;

use crate::embed::secret::SecretPolicy;
use crate::shared::slots::MAX_WRITERS as MAX_WRITERS_EVER;

static ENABLED: GucSetting<bool> = GucSetting::<bool>::new(true);
static SECRET_DIRECTORY: GucSetting<Option<CString>> =
    GucSetting::<Option<CString>>::new(Some(c"/etc/recsync"));
static SECRET_ENV_ALLOW: GucSetting<Option<CString>> =
    GucSetting::<Option<CString>>::new(Some(c"*_API_KEY"));
static ALLOWED_HOSTS: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(Some(c""));
static EMBED_TIMEOUT: GucSetting<i32> = GucSetting::<i32>::new(5_000);
static EXPRESSION_TIMEOUT: GucSetting<i32> = GucSetting::<i32>::new(5_000);
static MAX_WORKERS: GucSetting<i32> = GucSetting::<i32>::new(2);
static MAX_WRITERS: GucSetting<i32> = GucSetting::<i32>::new(0);
static INDEX_MIN_ROWS: GucSetting<i32> = GucSetting::<i32>::new(1_000);
static TRAINING_MEMORY: GucSetting<i32> = GucSetting::<i32>::new(1024);
static WARM_LIMIT: GucSetting<i32> = GucSetting::<i32>::new(1_000);
static HOOK_LIMIT: GucSetting<i32> = GucSetting::<i32>::new(100_000);
static LIST_AGE: GucSetting<i32> = GucSetting::<i32>::new(10 * 60);
static LOG_RETENTION: GucSetting<i32> = GucSetting::<i32>::new(24 * 60);
static LOG_MAX_SIZE: GucSetting<i32> = GucSetting::<i32>::new(1024);
static KNOWN_TEXT_SIZE: GucSetting<i32> = GucSetting::<i32>::new(64);
static SHOWN_RETENTION: GucSetting<i32> = GucSetting::<i32>::new(35 * 24 * 60);
static EVENT_RETENTION: GucSetting<i32> = GucSetting::<i32>::new(7 * 24 * 60);
static SITE: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(Some(c""));
static BACKFILL_RATE: GucSetting<i32> = GucSetting::<i32>::new(0);
static BACKFILL_CONFIRM_ROWS: GucSetting<i32> = GucSetting::<i32>::new(100_000);
static MAX_REPLICA_LAG: GucSetting<i32> = GucSetting::<i32>::new(0);
static AUTO_VERIFY: GucSetting<bool> = GucSetting::<bool>::new(true);
static ADOPT_ROLE: GucSetting<bool> = GucSetting::<bool>::new(false);
static METRICS_LISTEN: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(Some(c""));

/// Defines every setting and reserves the prefix, so that a misspelt one is refused.
pub fn register() {
    GucRegistry::define_bool_guc(
        c"recsync.enabled",
        c"Whether recsync sends requests and writes vectors.",
        c"Off stops HTTP and writers at the next reload; capture goes on, so nothing is lost. On by default: installing recsync is the decision to use it.",
        &ENABLED,
        GucContext::Sighup,
        GucFlags::default(),
    );
    GucRegistry::define_string_guc(
        c"recsync.secret_directory",
        c"The only directory from which key files are read.",
        c"/etc/recsync by default, the place of a service's configuration; never inside the data directory, where a backup would carry the keys away.",
        &SECRET_DIRECTORY,
        GucContext::Sighup,
        GucFlags::SUPERUSER_ONLY,
    );
    GucRegistry::define_string_guc(
        c"recsync.secret_env_allow",
        c"The environment variables that api_key_env may name, as a comma-separated list; * stands for any prefix.",
        c"*_API_KEY by default: the name under which providers document their keys, and nothing else of the server's environment.",
        &SECRET_ENV_ALLOW,
        GucContext::Sighup,
        GucFlags::SUPERUSER_ONLY,
    );
    GucRegistry::define_string_guc(
        c"recsync.allowed_hosts",
        c"The hosts to which requests may go, as a comma-separated list of names, *.suffixes, addresses and networks.",
        c"Empty by default: the hosts of the servers that an administrator made. Checked by resolved address, too.",
        &ALLOWED_HOSTS,
        GucContext::Sighup,
        GucFlags::default(),
    );
    GucRegistry::define_int_guc(
        c"recsync.embed_timeout",
        c"How long embed and search wait for the provider's answer.",
        c"5 s by default: a person waits for a search, and the statement holds its snapshot meanwhile.",
        &EMBED_TIMEOUT,
        10,
        600_000,
        GucContext::Userset,
        GucFlags::UNIT_MS,
    );
    GucRegistry::define_int_guc(
        c"recsync.expression_timeout",
        c"How long the worker lets a pipeline's expressions run over one batch.",
        c"5 s by default: a batch of texts is rendered in milliseconds; an endless expression must not hold up other pipelines.",
        &EXPRESSION_TIMEOUT,
        10,
        600_000,
        GucContext::Sighup,
        GucFlags::UNIT_MS,
    );
    GucRegistry::define_int_guc(
        c"recsync.max_workers",
        c"The most worker processes that run at once, beside the launcher.",
        c"2 by default, of the 8 that max_worker_processes allows and parallel query shares; more databases than that are served in turn.",
        &MAX_WORKERS,
        1,
        1_024,
        GucContext::Sighup,
        GucFlags::default(),
    );
    GucRegistry::define_int_guc(
        c"recsync.max_writers",
        c"The most processes that store vectors into HNSW indexes at once, beside the workers and for all databases together.",
        c"0 by default: half the processors, and at least one. A row costs milliseconds of one processor with HNSW, so a backfill takes as many as it is given, and the other half is for those who query. They run only while there is a bulk to store; where max_worker_processes leaves none, the worker stores by itself.",
        &MAX_WRITERS,
        0,
        MAX_WRITERS_EVER as i32,
        GucContext::Sighup,
        GucFlags::default(),
    );
    GucRegistry::define_int_guc(
        c"recsync.index_min_rows",
        c"How many vectors a pipeline has before its index is built.",
        c"1,000 by default: to look at fewer takes a millisecond or two, is always right, and spares each change the milliseconds that a graph takes. An index that is there stays. 0 builds it for the first vector.",
        &INDEX_MIN_ROWS,
        0,
        i32::MAX,
        GucContext::Sighup,
        GucFlags::default(),
    );
    GucRegistry::define_int_guc(
        c"recsync.training_memory",
        c"How much memory training a recommender's model may take: one is trained at a time in the cluster.",
        c"1 GB by default: ease of some 10,800 items, on a machine that has a few. A model that would need more is not trained, and says so.",
        &TRAINING_MEMORY,
        1,
        i32::MAX,
        GucContext::Sighup,
        GucFlags::UNIT_MB,
    );
    GucRegistry::define_int_guc(
        c"recsync.warm_limit",
        c"Of how many users a recommender keeps lists ready, those who did something last, and how many lists (or 60) it makes a minute for that at the most.",
        c"1,000 by default: those who are there now, on most sites, at some 10 ms of one processor each, every five minutes, and 5 MB a recommender. Lists are made only while the worker has nothing else to do. 0 keeps none.",
        &WARM_LIMIT,
        0,
        1_000_000,
        GucContext::Sighup,
        GucFlags::default(),
    );
    GucRegistry::define_int_guc(
        c"recsync.hook_limit",
        c"How many letters that have not arrived are kept for a hook, about; one that has more is paused, and nothing more is written for it until it is resumed.",
        c"100,000 by default: some 30 MB of letters of a key, up to a gigabyte or more of letters of hundreds, which is a day of an event a second: a receiver that is down for longer wants a person. 0 sets no limit.",
        &HOOK_LIMIT,
        0,
        i32::MAX,
        GucContext::Sighup,
        GucFlags::default(),
    );
    GucRegistry::define_int_guc(
        c"recsync.list_age",
        c"How old a list may be that was made before it was asked for.",
        c"10 min by default. What the user does, and an item that goes, counts at once; what others do, new items and boosts count when the list is made anew. 0 makes each list when it is asked for.",
        &LIST_AGE,
        0,
        i32::MAX,
        GucContext::Userset,
        GucFlags::UNIT_S,
    );
    GucRegistry::define_int_guc(
        c"recsync.log_retention",
        c"How long a dispatched part of the change log is kept.",
        c"A day by default: long enough to ask yesterday's question of the audit, short enough not to fill a disk. A change that is not dispatched yet is never dropped.",
        &LOG_RETENTION,
        0,
        i32::MAX / 60,
        GucContext::Sighup,
        GucFlags::UNIT_MIN,
    );
    GucRegistry::define_int_guc(
        c"recsync.log_max_size",
        c"The size above which dispatched parts of the change log are dropped before recsync.log_retention has passed.",
        c"1 GB by default: a day of some ten million changed rows; a busier table must not fill the disk. A change that is not dispatched yet is never dropped; where more than this has piled up while no worker ran, all rows are looked at instead.",
        &LOG_MAX_SIZE,
        1,
        i32::MAX,
        GucContext::Sighup,
        GucFlags::UNIT_MB,
    );
    GucRegistry::define_int_guc(
        c"recsync.known_text_size",
        c"How much room vectors of replaced and deleted texts take, in each database.",
        c"64 MB by default: some 40,000 vectors of 384 dimensions or 10,000 of 1,536, so that an edit that is undone, or a row that comes back, costs no call. 0 keeps none.",
        &KNOWN_TEXT_SIZE,
        0,
        i32::MAX,
        GucContext::Sighup,
        GucFlags::UNIT_MB,
    );
    GucRegistry::define_int_guc(
        c"recsync.shown_retention",
        c"How long what was shown is kept, of all that log_shown has noted.",
        c"35 days by default: a comparison of two recommenders for four weeks, and the week in which the last that was shown is bought.",
        &SHOWN_RETENTION,
        0,
        i32::MAX / 60,
        GucContext::Sighup,
        GucFlags::UNIT_MIN,
    );
    GucRegistry::define_int_guc(
        c"recsync.event_retention",
        c"How long apply_events knows an event that it has applied, and the sequence of the last one of a row, at the least.",
        c"7 days by default: as long as Kafka keeps a topic by default, so that what can be sent once more is known.",
        &EVENT_RETENTION,
        0,
        i32::MAX / 60,
        GucContext::Sighup,
        GucFlags::UNIT_MIN,
    );
    GucRegistry::define_string_guc(
        c"recsync.site",
        c"The name of the place where this server runs: a copy of its databases that is started under another sends nothing.",
        c"Empty by default: one place. A database whose recsync.site was another sends nothing until recsync.adopt_site() is called there.",
        &SITE,
        GucContext::Sighup,
        GucFlags::default(),
    );
    GucRegistry::define_int_guc(
        c"recsync.backfill_rate",
        c"How many rows a second a pipeline's backfill looks at, at the most.",
        c"0 by default, no limit: changes come first anyway, and the provider's limits have options of their own. recsync.backfill(name, rate => …) is another one for one backfill.",
        &BACKFILL_RATE,
        0,
        i32::MAX,
        GucContext::Sighup,
        GucFlags::default(),
    );
    GucRegistry::define_int_guc(
        c"recsync.backfill_confirm_rows",
        c"The backfill of a new pipeline with more rows than this waits for recsync.resume, with its price as the reason.",
        c"100,000 by default: at 200 tokens a row and 0.02 a million that is 0.40, which a typing error may cost; what is more should be read first. -1 never asks.",
        &BACKFILL_CONFIRM_ROWS,
        -1,
        i32::MAX,
        GucContext::Userset,
        GucFlags::default(),
    );
    GucRegistry::define_int_guc(
        c"recsync.max_replica_lag",
        c"Backfills wait while a streaming standby is behind by more than this.",
        c"0 by default, they do not wait: who has standbys that read must not fall behind knows by how much.",
        &MAX_REPLICA_LAG,
        0,
        i32::MAX,
        GucContext::Sighup,
        GucFlags::UNIT_MS,
    );
    GucRegistry::define_bool_guc(
        c"recsync.auto_verify",
        c"Whether all rows of a pipeline are looked at by itself after something that its triggers have not seen.",
        c"On by default: a restore, or a load as a replica, is followed like any other change, and unchanged texts cost no call. Off, recsync.status says needs_verify.",
        &AUTO_VERIFY,
        GucContext::Sighup,
        GucFlags::default(),
    );
    GucRegistry::define_bool_guc(
        c"recsync.adopt_role",
        c"Whether CREATE EXTENSION may use a role recsync_admin that was there before it and has members.",
        c"Off by default: somebody may have made the role to become recsync's administrator.",
        &ADOPT_ROLE,
        GucContext::Suset,
        GucFlags::default(),
    );
    // SAFETY: the check is guarded.
    unsafe {
        GucRegistry::define_string_guc_with_hooks(
            c"recsync.metrics_listen",
            c"The address and port where metrics, health and the status page are served by HTTP, as 127.0.0.1:9187 or [::1]:9187.",
            c"Empty by default: none. Whoever reaches it reads names and numbers without a password, so it is to be an address that only those who watch can reach.",
            &METRICS_LISTEN,
            GucContext::Sighup,
            GucFlags::default(),
            Some(check_listen),
            None,
            None,
        );
    }
    // SAFETY: a constant string; called from _PG_init, after the settings are defined.
    unsafe { pgrx::pg_sys::MarkGUCPrefixReserved(c"recsync".as_ptr()) };
}

/// An address with a port, or nothing.
#[pgrx::pg_guard]
unsafe extern "C-unwind" fn check_listen(
    value: *mut *mut std::ffi::c_char,
    _extra: *mut *mut std::ffi::c_void,
    _source: pgrx::pg_sys::GucSource::Type,
) -> bool {
    // SAFETY: PostgreSQL gives a pointer to a NUL-terminated string, or to NULL.
    let text = unsafe {
        if (*value).is_null() {
            return true;
        }
        CStr::from_ptr(*value).to_string_lossy()
    };
    text.is_empty() || text.parse::<std::net::SocketAddr>().is_ok()
}

pub fn metrics_listen() -> String {
    text(&METRICS_LISTEN)
}

pub fn enabled() -> bool {
    ENABLED.get()
}

pub fn embed_timeout() -> Duration {
    Duration::from_millis(EMBED_TIMEOUT.get().unsigned_abs().into())
}

pub fn expression_timeout_ms() -> i32 {
    EXPRESSION_TIMEOUT.get()
}

pub fn max_workers() -> usize {
    MAX_WORKERS.get().unsigned_abs() as usize
}

/// Writers at once, in the cluster.
pub fn max_writers() -> usize {
    static HALF: OnceLock<usize> = OnceLock::new();
    match MAX_WRITERS.get() {
        0 => *HALF.get_or_init(|| {
            let processors = std::thread::available_parallelism().map_or(1, usize::from);
            (processors / 2).clamp(1, MAX_WRITERS_EVER)
        }),
        most => most.unsigned_abs() as usize,
    }
}

/// Vectors from which on an index is worth it.
pub fn index_min_rows() -> usize {
    INDEX_MIN_ROWS.get().unsigned_abs() as usize
}

/// In bytes.
pub fn training_memory() -> u64 {
    u64::from(TRAINING_MEMORY.get().unsigned_abs()) * 1024 * 1024
}

/// Users whose lists are kept ready.
pub fn warm_limit() -> usize {
    WARM_LIMIT.get().unsigned_abs() as usize
}

/// Letters that are kept for a hook; 0: all.
pub fn hook_limit() -> usize {
    HOOK_LIMIT.get().unsigned_abs() as usize
}

pub fn list_age() -> Duration {
    Duration::from_secs(LIST_AGE.get().unsigned_abs().into())
}

pub fn log_retention() -> Duration {
    Duration::from_secs(60 * u64::from(LOG_RETENTION.get().unsigned_abs()))
}

/// In bytes.
pub fn log_max_size() -> i64 {
    i64::from(LOG_MAX_SIZE.get()) * 1024 * 1024
}

/// In bytes.
pub fn known_text_size() -> i64 {
    i64::from(KNOWN_TEXT_SIZE.get()) * 1024 * 1024
}

pub fn shown_retention() -> Duration {
    Duration::from_secs(60 * u64::from(SHOWN_RETENTION.get().unsigned_abs()))
}

pub fn event_retention() -> Duration {
    Duration::from_secs(60 * u64::from(EVENT_RETENTION.get().unsigned_abs()))
}

/// The name of this place; empty where it has none.
pub fn site() -> String {
    text(&SITE)
}

/// Rows a second; 0: no limit.
pub fn backfill_rate() -> u32 {
    BACKFILL_RATE.get().unsigned_abs()
}

/// `None`: a backfill of any size begins by itself.
pub fn backfill_confirm_rows() -> Option<i64> {
    let rows = i64::from(BACKFILL_CONFIRM_ROWS.get());
    (rows >= 0).then_some(rows)
}

/// `None`: standbys are not looked at.
pub fn max_replica_lag() -> Option<Duration> {
    let most = MAX_REPLICA_LAG.get().unsigned_abs();
    (most > 0).then(|| Duration::from_millis(most.into()))
}

pub fn auto_verify() -> bool {
    AUTO_VERIFY.get()
}

/// Where keys may come from and requests may go: a copy that threads can own.
pub fn secret_policy() -> SecretPolicy {
    SecretPolicy {
        directory: PathBuf::from(text(&SECRET_DIRECTORY)),
        env_allow: list(&SECRET_ENV_ALLOW),
        allowed_hosts: list(&ALLOWED_HOSTS),
        forbidden_directory: data_directory(),
    }
}

fn text(setting: &GucSetting<Option<CString>>) -> String {
    setting
        .get()
        .map(|value| value.to_string_lossy().into_owned())
        .unwrap_or_default()
}

fn list(setting: &GucSetting<Option<CString>>) -> Vec<String> {
    text(setting)
        .split(',')
        .map(str::trim)
        .filter(|item| !item.is_empty())
        .map(str::to_owned)
        .collect()
}

fn data_directory() -> Option<PathBuf> {
    // SAFETY: DataDir is set once, by the postmaster, before any extension is loaded.
    let directory = unsafe { pgrx::pg_sys::DataDir };
    if directory.is_null() {
        return None;
    }
    // SAFETY: not null, and a NUL-terminated string for the life of the process.
    let directory = unsafe { CStr::from_ptr(directory) };
    Some(PathBuf::from(directory.to_string_lossy().into_owned()))
}

/// Sets a setting of any kind (not only recsync's) for the current nesting level.
///
/// # Safety
/// Inside `NewGUCNestLevel` … `AtEOXact_GUC`.
pub unsafe fn set(name: &CStr, value: &CStr) {
    // SAFETY: NUL-terminated strings, copied by the callee.
    unsafe {
        pgrx::pg_sys::set_config_option(
            name.as_ptr(),
            value.as_ptr(),
            pgrx::pg_sys::GucContext::PGC_USERSET,
            pgrx::pg_sys::GucSource::PGC_S_SESSION,
            pgrx::pg_sys::GucAction::GUC_ACTION_SAVE,
            true,
            0,
            false,
        );
    }
}
