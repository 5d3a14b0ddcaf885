-- ALTER EXTENSION recsync UPDATE: from 0.1.0 to 0.2.0. A test compares what this makes with what recsync--0.2.0.sql
-- makes. Nothing that somebody else may depend on, or has granted, is dropped, but create_pipeline, whose rights are
-- carried over.

-- Generations, distances, long texts, budgets.
ALTER TABLE pipeline
    ADD distance text NOT NULL DEFAULT 'cosine' CHECK (distance IN ('cosine', 'inner_product', 'l2')),
    ADD index_options jsonb,
    ADD monthly_budget numeric CHECK (monthly_budget >= 0),
    ADD long_text text NOT NULL DEFAULT 'truncate' CHECK (long_text IN ('truncate', 'mean', 'chunks')),
    ADD chunk_tokens integer CHECK (chunk_tokens > 0),
    ADD of_pipeline integer,
    ADD account integer,
    ADD builds boolean NOT NULL DEFAULT false,
    ADD waits_for text,
    ADD backfill_held text;
ALTER TABLE pipeline
    ADD CHECK (of_pipeline IS NOT NULL OR NOT builds),
    ADD CHECK (builds OR waits_for IS NULL),
    ADD CHECK ((long_text = 'chunks') = (chunk_tokens IS NOT NULL));
CREATE UNIQUE INDEX pipeline_builds ON pipeline (of_pipeline) WHERE builds;

-- Backfills that are counted, partial, throttled, advised.
ALTER TABLE backfill
    ADD total bigint, ADD row_filter text, ADD rate integer CHECK (rate > 0), ADD reason text, ADD advised text;

ALTER TABLE job ADD changes integer NOT NULL DEFAULT 1;

-- What others than the triggers have written. Rows that are there are not read: writers wait for nothing longer than this
-- script.
DO $$
BEGIN
    FOR n IN 0 .. 7 LOOP
        EXECUTE pg_catalog.format(
            $sql$ALTER TABLE @extschema@.log_%s DROP CONSTRAINT log_0_op_check, DROP CONSTRAINT log_0_check,
                     ADD CONSTRAINT log_0_op_check CHECK (op IN ('I', 'U', 'D', 'T', 'R')) NOT VALID,
                     ADD CONSTRAINT log_0_check CHECK ((op IN ('T', 'R')) = (record_keys IS NULL)) NOT VALID$sql$, n);
    END LOOP;
END
$$;

-- Where this database is at home: recsync.site as it was at CREATE EXTENSION or at the last adopt_site(). A restored
-- database has a second row where it comes from another site.
CREATE TABLE site (
    name       text NOT NULL,
    adopted_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    PRIMARY KEY (name, adopted_at)
);
COMMENT ON TABLE site IS 'The recsync.site at which this database is at home; see adopt_site().';
INSERT INTO site (name) SELECT COALESCE(pg_catalog.current_setting('recsync.site', true), '');

-- Vectors that were there before the pipeline, by the hash of the text that their row had: what adopt_vectors has found.
-- The backfill takes them instead of calls; when it has ended they go.
CREATE TABLE adopted (
    pipeline_id    integer NOT NULL REFERENCES pipeline ON DELETE CASCADE,
    content_hash   bytea NOT NULL,
    embedding      vector,                   -- NULL: it stands in the column of the source that is to hold it,
    embedding_hash bytea,                    -- with this hash
    PRIMARY KEY (pipeline_id, content_hash),
    CHECK ((embedding IS NULL) <> (embedding_hash IS NULL))
);
COMMENT ON TABLE adopted IS 'Vectors that adopt_vectors has found, by the hash of their text, until the backfill has taken them.';

-- What was spent and saved: a row a store transaction, appended with the vectors, and folded into days. Never updated.
CREATE TABLE usage_log (
    pipeline_id       integer NOT NULL,     -- 0: none, the server was named in embed
    server            text NOT NULL,
    model             text NOT NULL,
    price             numeric,              -- of a million tokens, as it was then; NULL: not known
    currency          text NOT NULL,
    day               date NOT NULL,        -- of UTC
    requests          bigint NOT NULL,
    queries           bigint NOT NULL,      -- of the requests: by embed and search
    inputs            bigint NOT NULL,
    bytes             bigint NOT NULL,      -- of the requests' bodies
    tokens            bigint NOT NULL,
    estimated_tokens  bigint NOT NULL,      -- of the tokens: where the provider has not counted
    coalesced         bigint NOT NULL,      -- changes that came together with others of their row, and what they would have cost
    coalesced_tokens  bigint NOT NULL,
    unchanged         bigint NOT NULL,      -- texts that were those of their vectors
    unchanged_tokens  bigint NOT NULL,
    known             bigint NOT NULL,      -- texts whose vector was known
    known_tokens      bigint NOT NULL
) WITH (autovacuum_enabled = false, toast.autovacuum_enabled = false);
COMMENT ON TABLE usage_log IS 'What was spent and saved lately, a row a store: see recsync.usage. The worker folds it into recsync.usage_day.';

CREATE TABLE usage_day (
    pipeline_id       integer NOT NULL,
    server            text NOT NULL,
    model             text NOT NULL,
    currency          text NOT NULL,
    day               date NOT NULL,
    requests          bigint NOT NULL,
    queries           bigint NOT NULL,
    inputs            bigint NOT NULL,
    bytes             bigint NOT NULL,
    tokens            bigint NOT NULL,
    estimated_tokens  bigint NOT NULL,
    cost              numeric,              -- NULL: no price was known
    coalesced         bigint NOT NULL,
    coalesced_tokens  bigint NOT NULL,
    coalesced_cost    numeric,
    unchanged         bigint NOT NULL,
    unchanged_tokens  bigint NOT NULL,
    unchanged_cost    numeric,
    known             bigint NOT NULL,
    known_tokens      bigint NOT NULL,
    known_cost        numeric,
    PRIMARY KEY (pipeline_id, server, model, currency, day)
);
CREATE INDEX usage_day_day ON usage_day (day);
COMMENT ON TABLE usage_day IS 'What was spent and saved by pipeline, server, model and day: see recsync.usage.';

CREATE VIEW usage_unfolded AS
    SELECT pipeline_id, server, model, currency, day,
           pg_catalog.sum(requests)::bigint AS requests, pg_catalog.sum(queries)::bigint AS queries, pg_catalog.sum(inputs)::bigint AS inputs,
           pg_catalog.sum(bytes)::bigint AS bytes, pg_catalog.sum(tokens)::bigint AS tokens, pg_catalog.sum(estimated_tokens)::bigint AS estimated_tokens,
           pg_catalog.sum(tokens * price) / 1000000 AS cost,
           pg_catalog.sum(coalesced)::bigint AS coalesced, pg_catalog.sum(coalesced_tokens)::bigint AS coalesced_tokens, pg_catalog.sum(coalesced_tokens * price) / 1000000 AS coalesced_cost,
           pg_catalog.sum(unchanged)::bigint AS unchanged, pg_catalog.sum(unchanged_tokens)::bigint AS unchanged_tokens, pg_catalog.sum(unchanged_tokens * price) / 1000000 AS unchanged_cost,
           pg_catalog.sum(known)::bigint AS known, pg_catalog.sum(known_tokens)::bigint AS known_tokens, pg_catalog.sum(known_tokens * price) / 1000000 AS known_cost
      FROM usage_log GROUP BY pipeline_id, server, model, currency, day;
COMMENT ON VIEW usage_unfolded IS 'What of recsync.usage_log is to be added to recsync.usage_day.';
CREATE VIEW ledger AS
    SELECT * FROM usage_day
    UNION ALL
    SELECT pipeline_id, server, model, currency, day, requests, queries, inputs, bytes, tokens, estimated_tokens, tokens * price * 0.000001,
           coalesced, coalesced_tokens, coalesced_tokens * price * 0.000001, unchanged, unchanged_tokens, unchanged_tokens * price * 0.000001,
           known, known_tokens, known_tokens * price * 0.000001 FROM usage_log;
COMMENT ON VIEW ledger IS 'recsync.usage_day and the rows that are not folded into it yet, as they are: for recsync.usage, which adds them up.';

-- Of usage_day what is asked for most: with each fold as much is added here as there.
CREATE TABLE usage_month (
    month             date NOT NULL,        -- its first day
    pipeline_id       integer NOT NULL,
    server            text NOT NULL,
    currency          text NOT NULL,
    tokens            bigint NOT NULL,
    cost              numeric,              -- NULL: no price was known
    spared_tokens     bigint NOT NULL,      -- coalesced, unchanged and known
    spared_cost       numeric,
    PRIMARY KEY (month, pipeline_id, server, currency)
);
COMMENT ON TABLE usage_month IS 'What was spent and saved by pipeline, server and month: for recsync.status, metrics and budgets, which never add up days. What it was and when is in recsync.usage_day.';

CREATE VIEW ledger_month AS
    SELECT month, pipeline_id, server, currency, tokens, cost, spared_tokens, spared_cost FROM usage_month
    UNION ALL
    SELECT pg_catalog.date_trunc('month', day::timestamp)::date, pipeline_id, server, currency, tokens, tokens * price * 0.000001,
           coalesced_tokens + unchanged_tokens + known_tokens, (coalesced_tokens + unchanged_tokens + known_tokens) * price * 0.000001 FROM usage_log;
COMMENT ON VIEW ledger_month IS 'recsync.usage_month and what is not folded into it yet.';

-- The names of pipelines that are no more, for what they have spent.
CREATE TABLE usage_name (
    pipeline_id integer PRIMARY KEY,
    name        text NOT NULL
);
COMMENT ON TABLE usage_name IS 'Names of pipelines that were dropped: for recsync.usage.';

-- Budgets that are spent, or nearly: found again by the worker, and so not dumped.
CREATE TABLE budget_notice (
    pipeline_id integer PRIMARY KEY,
    month       date NOT NULL,              -- its first day: another month's says nothing
    notice      text NOT NULL,
    stops       boolean NOT NULL            -- nothing more is sent
);
COMMENT ON TABLE budget_notice IS 'Pipelines of whose budget 80% or all is spent: for recsync.status.';

-- A hook. Its id is one of the pipelines' numbers: dead letters and the worker's counters know all by one number. It
-- belongs to a role by name, since nothing else of it is an object that a role could own.
CREATE TABLE hook (
    id             integer PRIMARY KEY DEFAULT pg_catalog.nextval('@extschema@.pipeline_id_seq'),
    name           text NOT NULL UNIQUE,            -- qualified and quoted
    owner          text NOT NULL,                   -- a role, quoted
    event          text NOT NULL CHECK (event IN ('embedded', 'invalidated', 'generation', 'dead_letter', 'budget')),
    pipeline_id    integer REFERENCES pipeline ON DELETE CASCADE,    -- of which it hears
    recommender_id integer REFERENCES recommender ON DELETE CASCADE, -- or of this; neither: of all that its owner owns
    server         text,                            -- where its letters go; NULL: nowhere, it is NOTIFY only
    path           text NOT NULL,
    method         text NOT NULL CHECK (method IN ('POST', 'PUT', 'PATCH')),
    body           jsonb,                           -- with placeholders; NULL: the usual one
    channel        text UNIQUE,                     -- of NOTIFY; NULL: none
    paused         boolean NOT NULL DEFAULT false,
    paused_reason  text,
    paused_by_server boolean NOT NULL DEFAULT false, -- a change of the server ends the pause
    overflowed     boolean NOT NULL DEFAULT false,  -- too much has not arrived: nothing is written for it until it is resumed
    created_at     timestamptz NOT NULL DEFAULT pg_catalog.now(),
    CHECK (pipeline_id IS NULL OR recommender_id IS NULL),
    CHECK (server IS NOT NULL OR channel IS NOT NULL),
    CHECK (paused OR paused_reason IS NULL AND NOT paused_by_server AND NOT overflowed)
);
COMMENT ON TABLE hook IS 'What listens to events of pipelines and recommenders: made by create_hook.';

-- What a hook has not been told yet: written in the transaction that makes it true, deleted when it is told. Who writes
-- holds a lock on the sequence until it commits: numbers are in the order of the commits, so that the worker reads from
-- the last one on and meets no dead entry twice. No foreign key: what makes it true waits for nobody who drops a hook.
CREATE SEQUENCE delivery_number AS bigint;
CREATE TABLE delivery (
    hook_id         integer NOT NULL,
    number          bigint NOT NULL DEFAULT pg_catalog.nextval('@extschema@.delivery_number'),
    message_id      uuid NOT NULL DEFAULT pg_catalog.gen_random_uuid(), -- the same whenever it is sent
    source          text NOT NULL,                  -- the name of what it is of
    keys            json NOT NULL,                  -- of rows, or scopes
    data            json NOT NULL,                  -- what else its event says
    created_at      timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    attempt         integer NOT NULL DEFAULT 0,
    available_at    timestamptz NOT NULL DEFAULT '-infinity', -- not before this; infinity: given up
    last_attempt_at timestamptz,
    PRIMARY KEY (hook_id, number)
);
COMMENT ON TABLE delivery IS 'What hooks have not been told yet. Not dumped: a restored copy says nothing of what it did not do.';

-- Items that are watched while a hook hears which lists are old: one that is gone has to go from lists that others keep.
CREATE TABLE watched_items (
    recommender_id integer PRIMARY KEY REFERENCES recommender ON DELETE CASCADE,
    source_id      integer NOT NULL REFERENCES source ON DELETE CASCADE, -- the items
    used_columns   text[] NOT NULL,                 -- of the recommender's eligible
    altered        boolean NOT NULL DEFAULT false   -- so was the recommender, and nobody has been told yet
);
COMMENT ON TABLE watched_items IS 'Recommenders whose items are watched, because a hook of event invalidated hears of them.';

SELECT pg_catalog.pg_extension_config_dump('watched_items', '');

-- Lists of users that are ready before they are asked for, of the recommenders that are there.
DO $$
DECLARE
    made record;
BEGIN
    FOR made IN
        SELECT r.id, c.relowner::regrole AS owner
          FROM @extschema@.recommender r JOIN pg_catalog.pg_class c ON c.oid = pg_catalog.to_regclass(r.items)
         WHERE pg_catalog.to_regclass('@extschema@.interaction_' || r.id) IS NOT NULL
    LOOP
        EXECUTE pg_catalog.format(
            $sql$CREATE TABLE @extschema@.list_%1$s WITH (fillfactor = 70) AS
                 SELECT user_id, 0::bigint AS generation, NULL::timestamptz AS made_at, NULL::timestamptz AS active_at,
                        ARRAY[item_id] AS items, NULL::float8[] AS scores, NULL::int4[] AS places FROM @extschema@.interaction_%1$s WITH NO DATA;
                 ALTER TABLE @extschema@.list_%1$s ADD PRIMARY KEY (user_id), ALTER generation SET NOT NULL, ALTER made_at SET NOT NULL,
                     ALTER active_at SET NOT NULL, ALTER items SET NOT NULL, ALTER scores SET NOT NULL, ALTER places SET NOT NULL;
                 GRANT SELECT, INSERT, UPDATE, DELETE ON @extschema@.list_%1$s TO %2$s$sql$, made.id, made.owner);
    END LOOP;
END
$$;

SELECT pg_catalog.pg_extension_config_dump('dead_letter_log', '');
SELECT pg_catalog.pg_extension_config_dump('site', '');
SELECT pg_catalog.pg_extension_config_dump('adopted', '');
SELECT pg_catalog.pg_extension_config_dump('usage_log', '');
SELECT pg_catalog.pg_extension_config_dump('usage_day', '');
SELECT pg_catalog.pg_extension_config_dump('usage_month', '');
SELECT pg_catalog.pg_extension_config_dump('usage_name', '');
SELECT pg_catalog.pg_extension_config_dump('hook', '');

CREATE FUNCTION unseen_v1() RETURNS trigger LANGUAGE c AS 'MODULE_PATHNAME', 'unseen_v1';
COMMENT ON FUNCTION unseen_v1() IS 'Trigger function of a watched table: notes in the change log that a session with session_replication_role = replica has written to it. Made by create_pipeline and audit; its argument is the id of recsync.source.';

-- It is noted from now on when a table is written to as a replica.
DO $$
DECLARE
    watched record;
    called  text;
BEGIN
    SET LOCAL lock_timeout = '1s';
    FOR watched IN
        SELECT s.id, s.on_replica, t.relid::regclass AS relation
          FROM @extschema@.source s CROSS JOIN LATERAL (SELECT pg_catalog.to_regclass(s.relation) AS root) r
          CROSS JOIN LATERAL (SELECT r.root::oid AS relid UNION SELECT p.relid::oid FROM pg_catalog.pg_partition_tree(r.root) p) t
          JOIN pg_catalog.pg_class c ON c.oid = t.relid AND c.relkind IN ('r', 'p')
         WHERE EXISTS (SELECT FROM pg_catalog.pg_trigger g WHERE g.tgrelid = r.root AND g.tgname = '00_recsync_capture_' || s.id)
         ORDER BY s.id, t.relid <> r.root
    LOOP
        called := pg_catalog.quote_ident('00_recsync_unseen_' || watched.id);
        IF NOT EXISTS (SELECT FROM pg_catalog.pg_trigger g WHERE g.tgrelid = watched.relation AND g.tgname = '00_recsync_unseen_' || watched.id) THEN
            EXECUTE pg_catalog.format('CREATE TRIGGER %s AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON %s FOR EACH STATEMENT EXECUTE FUNCTION @extschema@.unseen_v1(%L)',
                                      called, watched.relation, watched.id);
        END IF;
        EXECUTE pg_catalog.format('ALTER TABLE %s %s TRIGGER %s', watched.relation, CASE WHEN watched.on_replica THEN 'DISABLE' ELSE 'ENABLE REPLICA' END, called);
    END LOOP;
END
$$;

-- Functions.
CREATE FUNCTION adopt_site() RETURNS text LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'adopt_site_wrapper';
COMMENT ON FUNCTION adopt_site() IS
'Makes this database, a copy that was started or restored under another recsync.site, one of the site where it is now: from its commit on the worker sends and stores, and embed and search ask. Returns the site. No row is paid for that has the vector of its text. Errors: 42501 for others than superusers and members of recsync_admin, 25006 on a standby.';
CREATE FUNCTION adopt_vectors(name text, model text, vectors regclass DEFAULT NULL, vector_column text DEFAULT NULL, key_columns text[] DEFAULT NULL, check_rows integer DEFAULT 10)
RETURNS bigint LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'adopt_vectors_wrapper';
COMMENT ON FUNCTION adopt_vectors(text, text, regclass, text, text[], integer) IS
'Takes vectors that were there before a pipeline for those of its rows'' present texts, so that nobody pays for them again, and has the backfill embed the others. model: by which they were made, which has to be the server''s; vectors: the relation that they are in, by default the source; vector_column: the column there, by default the only one of pgvector''s types, or the pipeline''s into_column; key_columns: the columns there that hold the source''s key, by default those of the same names or of the foreign key to it; check_rows: the texts of so many rows are embedded and compared first, 0 for none. Create the pipeline with backfill => false before. Returns how many rows have one. Errors: 22023 for another model, other dimensions, several vectors of a row, or where some of the compared ones are not the server''s (cosine below 0.999); 42704, 42501, 42703, 55000 where it is paused or broken, 25006 on a standby, and those of embed.';
CREATE FUNCTION alter_pipeline(name text, columns text[] DEFAULT NULL, content text DEFAULT NULL, server text DEFAULT NULL, schedule text DEFAULT NULL, debounce interval DEFAULT NULL,
    max_delay interval DEFAULT NULL, row_filter text DEFAULT NULL, long_text text DEFAULT NULL, storage text DEFAULT NULL, index text DEFAULT NULL, into_column text DEFAULT NULL, capture text DEFAULT NULL,
    on_replica boolean DEFAULT NULL, chunk_tokens integer DEFAULT NULL, monthly_budget numeric DEFAULT NULL, new_name text DEFAULT NULL, owner text DEFAULT NULL, dry_run boolean DEFAULT false)
RETURNS TABLE (rows bigint, unchanged bigint, embeds bigint, removes bigint, fails bigint, tokens bigint, cost numeric, duration interval)
LANGUAGE c VOLATILE ROWS 1 AS 'MODULE_PATHNAME', 'alter_pipeline_wrapper';
COMMENT ON FUNCTION alter_pipeline IS
'Changes a pipeline in place: the arguments are those of create_pipeline, NULL leaves a setting as it is; row_filter => ''-'': none; debounce, max_delay => ''0'': as if not given; new_name renames its view, table and function, owner gives them to another role. After a change of columns, content, row_filter, long_text or chunk_tokens or of the server''s model all rows are looked at again, and only those whose text, pieces or model are others are embedded again. Another storage, and long_text to or from chunks, is a new generation: recsync.rebuild builds it beside the one in service, with the server, index and long_text that are given; the rest is changed at once. monthly_budget: as set_budget, which also removes one. dry_run: changes nothing and says what it would come to. rows: those that pass row_filter and have a text; unchanged: of these, those that keep their vector; embeds: those that are embedded again, or for the first time; removes: rows that lose their vector; fails: rows whose text cannot be computed; tokens, cost and duration of embeds, as recsync.estimate reckons; of a new generation at the most. Where no text can differ nothing is counted, and rows and unchanged are NULL. Errors: 42704 where it or the server does not exist, 42501 for others than its owner, or no USAGE on the server, 22023 impossible argument (other dimensions: recsync.rebuild), 55006 a generation is being built or rolled back to, and what recsync.rebuild refuses where it is one, 42P07 the new name is taken, 42703, 55000, 55P03 a lock, 25006 on a standby.';
CREATE FUNCTION backfill(name text, row_filter text DEFAULT NULL, rate integer DEFAULT NULL) RETURNS bigint LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'backfill_wrapper';
COMMENT ON FUNCTION backfill(text, text, integer) IS
'Has the worker look at all rows of a pipeline, or at those for which row_filter is true (an SQL expression over the row, as of create_pipeline), in slices in the order of the key, behind all changes; unchanged texts cost no call. rate: rows a second, instead of recsync.backfill_rate. It begins when the transaction has committed and goes on after a crash; recsync.status shows how far it is. A backfill that waits for recsync.resume is replaced. Returns how many rows that are: about, of all of them; counted, with row_filter, for which all rows are read. Errors: 42704, 42501 for others than the owner and recsync_admin, 55000 where the pipeline is paused or broken, or a look at all rows is under way that has these among them, 22023 for an impossible argument, 25006 on a standby.';
CREATE FUNCTION cancel_rebuild(name text) RETURNS void LANGUAGE c VOLATILE STRICT AS 'MODULE_PATHNAME', 'cancel_rebuild_wrapper';
COMMENT ON FUNCTION cancel_rebuild(text) IS
'Ends a rebuild that is under way: the new generation is dropped, the one in service stays. One that is rolled back to stays kept instead. Errors: 42704 where there is no such pipeline, or no rebuild of it, 42501 for others than its owner and recsync_admin, 25006 on a standby.';
ALTER FUNCTION counters() RENAME TO counters_of_0_1_0;
CREATE  FUNCTION "counters"() RETURNS TABLE (
	"pipeline_id" INT,  /* i32 */
	"pending" bigint,  /* i64 */
	"in_flight" bigint,  /* i64 */
	"embedded" bigint,  /* i64 */
	"requests" bigint,  /* i64 */
	"tokens" bigint,  /* i64 */
	"failure" TEXT,  /* Option < String > */
	"last_change" timestamp with time zone,  /* Option < TimestampWithTimeZone > */
	"last_embedded" timestamp with time zone,  /* Option < TimestampWithTimeZone > */
	"truncated" bigint  /* i64 */
)
STRICT VOLATILE 
LANGUAGE c /* Rust */
AS 'MODULE_PATHNAME', 'counters_v2_wrapper';

COMMENT ON FUNCTION counters() IS 'Numbers that the worker keeps in shared memory, of the pipelines and recommenders that the caller may see; see recsync.status.';
CREATE FUNCTION create_hook(name text, event text, server text DEFAULT NULL, path text DEFAULT '/', method text DEFAULT 'POST', body jsonb DEFAULT NULL, listens_to text DEFAULT NULL, notify boolean DEFAULT true, if_not_exists boolean DEFAULT false) RETURNS text LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'create_hook_wrapper';
COMMENT ON FUNCTION create_hook(text, text, text, text, text, jsonb, text, boolean, boolean) IS
'Tells others what happens here: the worker sends a signed letter to a server of api webhook (at least once, with the same webhook-id; Standard Webhooks 1.0), and says the same by NOTIFY. event: embedded, invalidated, generation, dead_letter or budget. server: NULL for NOTIFY only. path: below the server''s url. method: POST, PUT or PATCH. body: JSON in which {{keys}}, {{source}}, {{timestamp}} and others are filled in. listens_to: a pipeline or recommender; NULL: all that the caller owns. Items of recommenders that it hears of by event invalidated are watched from then on (SHARE ROW EXCLUSIVE on them, in tries of 50 ms). notify: whether to NOTIFY, too, on the channel that recsync.hook_channel names. Returns the hook''s full name. Errors: 42501 without CREATE on its schema, USAGE on the server or what it listens to, 42704 for what does not exist, 42710 where it exists, 22023 for bad arguments, 55P03 where somebody locks the items.';
ALTER FUNCTION create_pipeline RENAME TO create_pipeline_of_0_1_0;
CREATE FUNCTION create_pipeline(name text, source regclass, columns text[] DEFAULT NULL, content text DEFAULT NULL, server text DEFAULT NULL,
    schedule text DEFAULT 'realtime', debounce interval DEFAULT NULL, max_delay interval DEFAULT NULL, row_filter text DEFAULT NULL, long_text text DEFAULT 'truncate', storage text DEFAULT NULL,
    index text DEFAULT NULL, into_column text DEFAULT NULL, capture text DEFAULT 'keys', on_replica boolean DEFAULT false, backfill boolean DEFAULT true, if_not_exists boolean DEFAULT false,
    distance text DEFAULT 'cosine', index_options jsonb DEFAULT NULL, chunk_tokens integer DEFAULT NULL, monthly_budget numeric DEFAULT NULL)
RETURNS regclass LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'create_pipeline_v2_wrapper';
COMMENT ON FUNCTION create_pipeline(text, regclass, text[], text, text, text, interval, interval, text, text, text, text, text, text, boolean, boolean, boolean, text, jsonb, integer, numeric) IS
'Keeps a table embedded. name: the pipeline and the view that will hold its vectors, in the source''s schema; columns (joined by newlines, NULLs left out) or content (an SQL expression over the row): the text; server: a foreign server of wrapper recsync; schedule: realtime, near_realtime (a row that has been quiet for a second, after 4 s at the latest), hourly, daily, an interval or a cron expression in the database''s time zone; debounce, max_delay: how long a row has to be quiet, and the longest it waits for that; row_filter: only rows for which it is true; storage: vector or halfvec (by default what the width asks for); index: hnsw (up to 2,000 dimensions of vector, 4,000 of halfvec), hnsw_bit (over the vectors'' signs, any width; only search uses it) or none, by default hnsw where the width allows it, else hnsw_bit; it is built once the first load is over and there are recsync.index_min_rows vectors; distance: cosine, inner_product or l2, by which search, similar and recommenders compare vectors, and the index is made; index_options: m and ef_construction of the index as JSON, pgvector''s own where they are not given; into_column: a pgvector column of the source that is to hold the vectors (added where it is missing) instead of a table of their own; recsync makes no index on it; capture: what old_record and record of the change log hold: keys (nothing), columns (those that the text uses) or full (all columns); on_replica: changes that logical replication applies are captured, too; backfill: embed the rows that are there; monthly_budget: what may be spent in a calendar month (UTC), in the server''s currency: see set_budget. long_text: what becomes of a text that the model does not take in one piece: truncate (its beginning is embedded), mean (the mean of its parts'' vectors) or chunks (a row a chunk, of at most chunk_tokens tokens, 512 by default). Returns the view. Errors: 42501 without the rights, 42710 where it exists otherwise, 55000 without a primary key, 22023 for an impossible argument.';
DO $$
DECLARE
    old regprocedure := (SELECT p.oid FROM pg_catalog.pg_proc p WHERE p.proname = 'create_pipeline_of_0_1_0' AND p.pronamespace = '@extschema@'::regnamespace);
    new regprocedure := (SELECT p.oid FROM pg_catalog.pg_proc p WHERE p.proname = 'create_pipeline' AND p.pronamespace = '@extschema@'::regnamespace);
    may record;
BEGIN
    IF (SELECT p.proacl IS NOT NULL FROM pg_catalog.pg_proc p WHERE p.oid = old) THEN
        EXECUTE pg_catalog.format('REVOKE ALL ON FUNCTION %s FROM PUBLIC', new);
        FOR may IN SELECT CASE WHEN a.grantee = 0 THEN 'PUBLIC' ELSE a.grantee::regrole::text END AS role, a.is_grantable
                     FROM pg_catalog.pg_proc p, pg_catalog.aclexplode(p.proacl) a WHERE p.oid = old LOOP
            EXECUTE pg_catalog.format('GRANT EXECUTE ON FUNCTION %s TO %s%s', new, may.role, CASE WHEN may.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END);
        END LOOP;
    END IF;
END
$$;
DROP FUNCTION create_pipeline_of_0_1_0;
CREATE FUNCTION drop_generation(name text) RETURNS void LANGUAGE c VOLATILE STRICT AS 'MODULE_PATHNAME', 'drop_generation_wrapper';
COMMENT ON FUNCTION drop_generation(text) IS
'Drops the generation that a rebuild has kept, and frees its space: there is nothing to roll back to after that. Errors: 42704 where there is no such pipeline, or none is kept, 42501 for others than its owner and recsync_admin, 55006 while it is rolled back to, 25006 on a standby.';
CREATE FUNCTION drop_hook(name text, if_exists boolean DEFAULT false) RETURNS void LANGUAGE c VOLATILE STRICT AS 'MODULE_PATHNAME', 'drop_hook_wrapper';
COMMENT ON FUNCTION drop_hook(text, boolean) IS
'Ends a hook: what it has not told yet is forgotten. Errors: 42704 where it does not exist (unless if_exists), 42501 for others than its owner and recsync_admin.';
CREATE  FUNCTION "failures"() RETURNS TABLE (
	"pipeline_id" INT,  /* i32 */
	"class" TEXT,  /* String */
	"status" INT,  /* Option < i32 > */
	"sqlstate" TEXT,  /* Option < String > */
	"message" TEXT,  /* String */
	"at" timestamp with time zone,  /* Option < TimestampWithTimeZone > */
	"count" bigint  /* i64 */
)
STRICT VOLATILE
LANGUAGE c /* Rust */
AS 'MODULE_PATHNAME', 'failures_wrapper';
COMMENT ON FUNCTION failures() IS 'What has gone wrong lately, kept in shared memory, of the pipelines and recommenders that the caller may see; see recsync.errors.';
CREATE  FUNCTION "filling"() RETURNS TABLE (
	"pipeline_id" INT,  /* i32 */
	"rate" double precision,  /* Option < f64 > */
	"waits_for" TEXT  /* Option < String > */
)
STRICT VOLATILE
LANGUAGE c /* Rust */
AS 'MODULE_PATHNAME', 'filling_wrapper';
COMMENT ON FUNCTION filling() IS 'How fast the backfills go that are under way, in rows a second, and what they wait for, of the pipelines that the caller may see; see recsync.status.';
CREATE FUNCTION health() RETURNS TABLE (check_name text, subject text, ok boolean, detail text, hint text) LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'health_wrapper';
COMMENT ON FUNCTION health() IS
'Whether recsync does its work, in all databases of the cluster: a row a thing that was looked at (launcher, worker, pipeline, recommender, provider), what it is about (a database; with a pipeline or recommender), whether it is well, and if not what to do. What somebody has decided, as a pause, is no fault. http://<recsync.metrics_listen>/healthz is 503 where one is not ok. For pg_monitor and recsync_admin. Errors: 55000 recsync is not preloaded.';
CREATE FUNCTION hook_channel(name text) RETURNS text LANGUAGE c STABLE STRICT AS 'MODULE_PATHNAME', 'hook_channel_wrapper';
COMMENT ON FUNCTION hook_channel(text) IS
'The channel on which a hook is heard: LISTEN it, quoted as an identifier (format(''LISTEN %I'', …)). NULL where it was made with notify => false. Errors: 42704 where it does not exist, 42501 for others than its owner and recsync_admin.';
CREATE FUNCTION index_states() RETURNS TABLE (pipeline_id integer, valid boolean, phase text, done double precision) LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'index_states_wrapper';
COMMENT ON FUNCTION index_states() IS 'Whether the table of each generation that the caller may see has a valid index over vectors, and the phase of its build with how much of the table that has read, from 0 to 1; for recsync.generation.';
CREATE FUNCTION job_counts() RETURNS TABLE (pipeline_id integer, jobs bigint, oldest timestamptz) LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'job_counts_wrapper';
COMMENT ON FUNCTION job_counts() IS 'How many jobs a pipeline has and since when the oldest waits, of the pipelines that the caller may see and that have some. Up to 10,000 of all pipelines together are counted; of a pipeline that has more than its share of these it is estimated, by the statistics of the last ANALYZE. See recsync.status.';
CREATE FUNCTION list_counters() RETURNS TABLE (recommender_id integer, ready bigint, made bigint, warmed bigint) LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'list_counters_wrapper';
COMMENT ON FUNCTION list_counters() IS 'Numbers of lists in shared memory, of the recommenders that the caller may see; see recsync.list_cache.';
CREATE FUNCTION metrics() RETURNS text LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'metrics_wrapper';
COMMENT ON FUNCTION metrics() IS
'Numbers of all databases of the cluster that have recsync, as OpenMetrics 1.0 text: what http://<recsync.metrics_listen>/metrics gives. Counters and histograms start at zero with the server. Holds names of databases, pipelines, recommenders and servers, and no text of a row. For pg_monitor and recsync_admin. Errors: 55000 recsync is not preloaded.';
CREATE FUNCTION rebuild(name text, server text DEFAULT NULL, storage text DEFAULT NULL, index text DEFAULT NULL, distance text DEFAULT NULL, index_options jsonb DEFAULT NULL,
    long_text text DEFAULT NULL, chunk_tokens integer DEFAULT NULL)
RETURNS regclass LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'rebuild_wrapper';
COMMENT ON FUNCTION rebuild(text, text, text, text, text, jsonb, text, integer) IS
'Builds a new generation of a pipeline''s vectors beside the one in service: by another server (model), in another storage, with another index, distance or index_options, with long texts treated otherwise (long_text, chunk_tokens), as in create_pipeline; what is not given stays, unless the width of the new vectors forbids it. Texts whose model and pieces do not change cost no call: their vectors are copied. Changes go to both meanwhile; once all rows have their vector and the index is there, the worker swaps it in. recsync.generation shows how far it is. Returns the table of the new generation, by whose name wait_for, search, verify, run and the functions for dead letters know it. The generation before stays until the next rebuild or drop_generation, see rollback_rebuild. Locks: on the source ACCESS SHARE; at the swap ACCESS EXCLUSIVE on the pipeline''s view, in tries of 50 ms. Errors: 42704 unknown pipeline, 42501 for others than its owner and recsync_admin, 55006 while one is under way, 2BP01 where the type of the vectors or the columns change (chunks) and others depend on the view, or a recommender uses the pipeline, which takes no chunks, 0A000 where the vectors are in a column of the source, 22023 for an impossible argument, 55000 where it is broken, 25006 on a standby.';
CREATE FUNCTION rollback_rebuild(name text) RETURNS regclass LANGUAGE c VOLATILE STRICT AS 'MODULE_PATHNAME', 'rollback_rebuild_wrapper';
COMMENT ON FUNCTION rollback_rebuild(text) IS
'Back to the generation that was in service before the last rebuild, which is kept until the next rebuild or drop_generation. It is brought into step first: all rows are looked at, what has not changed since costs no call, and changes go to both meanwhile; then the worker swaps it in as after a rebuild, and the other one is kept. Returns its table. Errors: 42704 where there is no such pipeline, or none is kept, 42501 for others than its owner and recsync_admin, 55006 while a rebuild is under way, 2BP01 where the type of the vectors or the columns change and others depend on the view, or it has chunks and a recommender uses the pipeline, 25006 on a standby.';
CREATE FUNCTION set_budget(name text, monthly_budget numeric) RETURNS void LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'set_budget_wrapper';
COMMENT ON FUNCTION set_budget(text, numeric) IS
'What a pipeline may spend in a calendar month (UTC), in the currency of its server; NULL: as much as it needs. At 80% recsync.status has a warning, at 100% nothing more is sent for it until the month is over or the budget is raised. The server''s option monthly_budget holds for all of its pipelines together. Errors: 42704 unknown pipeline, 42501 for others than its owner and recsync_admin, 22023 a negative budget.';
CREATE  FUNCTION "visible_pipelines"() RETURNS SETOF INT /* i32 */
STRICT STABLE
LANGUAGE c /* Rust */
AS 'MODULE_PATHNAME', 'visible_pipelines_wrapper';
COMMENT ON FUNCTION visible_pipelines() IS 'The numbers of pipelines that the caller owns, by which recsync.usage shows their bills.';

-- What others say of themselves.
COMMENT ON FUNCTION drop_pipeline(text, boolean, boolean) IS
'Ends a pipeline: its view, its vectors of all generations (unless keep_vectors, or they are in a column of the source, which stays as it is), its work, and the triggers when no other pipeline needs them. Errors: 42704 where it does not exist (unless if_exists), 42501 for others than its owner and recsync_admin, 2BP01 where a recommender uses it.';
REVOKE ALL ON FUNCTION health() FROM PUBLIC;
REVOKE ALL ON FUNCTION metrics() FROM PUBLIC;
COMMENT ON FUNCTION pause(text) IS 'Stops the work for a pipeline, recommender or hook; capture goes on, so nothing is lost. resume(name) picks up. Errors: 42704 unknown name, 42501 for others than its owner and recsync_admin.';
COMMENT ON FUNCTION resume(text) IS 'Lets a paused pipeline, recommender or hook run again. All rows of the first two are looked at; texts that are unchanged cost no call. Where only the backfill of a pipeline waits, it begins, or goes on. A hook is told what it has missed. Errors: 42704 unknown name, 42501 for others than its owner and recsync_admin.';
COMMENT ON FUNCTION retry_dead_letters(text, text, timestamptz, text[]) IS
'Tries rows again that were given up, with all their attempts: those of a class (permanent, temporary, provider), those before a time, those of these keys (as recsync.dead_letter shows them in record_key; several as ARRAY[''1'', ''2''] where a key has one column, else as an array of keys, such as array_agg(record_key)), or all. A hook''s are letters by their webhook-id (without msg_): what was told since comes before them. Returns how many. Errors: 42704 unknown pipeline or hook, 42501 for others than its owner and recsync_admin, 22023 for an unknown class, or keys that are none.';
COMMENT ON FUNCTION search(text, text, integer, jsonb) IS
'The k rows of a pipeline''s source nearest to a text: item (the key as text; several columns as a JSON object), score (more for what is nearer: by distance cosine the cosine similarity, 1 = same direction; by inner_product the inner product; by l2 1 / (1 + distance)), rank from 1; of a pipeline with chunks each row once, by its best chunk. filter: {"column": value | [any, of] | {"gte","gt","lte","lt","contains"} | null}, checked against the live row. Needs SELECT on the source and on the pipeline''s relation, and USAGE on the server. Errors: 42704 unknown pipeline, 42703 unknown column in filter, 22023 bad k or filter, and those of embed.';
DO $comment$
DECLARE
    made record;
BEGIN
    FOR made IN SELECT p.oid::pg_catalog.regprocedure AS name, p.proname FROM pg_catalog.pg_proc p
                 WHERE p.pronamespace = '@extschema@'::pg_catalog.regnamespace AND p.proname IN ('recommend', 'similar', 'rank') LOOP
        EXECUTE format('COMMENT ON FUNCTION %s IS %L', made.name, CASE made.proname WHEN 'recommend' THEN
'k items for a user: what the models say and neighbours of what they have had to do with, what is near to the vector of their interests (where the items have vectors), the popular, the latest. name: a recommender; user_id: text, bigint or uuid; NULL, or one that nobody knows, gets what is popular, then the latest; filter: {"column": value | [any, of] | {"gte","gt","lte","lt","contains"} | null}, checked against the live row; exclude_seen: leave out what the user has seen, and session_items; diversity: 0 to 1, how much items whose vectors are alike are kept apart (0: by score alone); max_per: {"column": n}, at most n items that have the same value in a column of the items; explore: a share, 0 to 1, of the places for items with few interactions, chosen at random, but the same for the same list; skip: leave out so many from the beginning, for the next page; session_items: keys of items that count as seen a moment ago, without a user, too; explain: a longer reason. Returns item (the key as text), score, rank from 1, reason (the places that sources gave it: ease, als, neighbours, interest, popular, latest, explored; rest: what was left; with explain also scores by source, boost, and because: the items whose neighbour it is, if the caller may read those interactions) and list_id (the same for the same question, whatever skip). As many rows as pass, up to k. Needs EXECUTE on <name>_recommend and SELECT on the items. Errors: 42501 without the rights, 42704 unknown recommender, 42703 unknown column in filter, 22023 bad k or filter, 55000 where a table is gone.'
        WHEN 'rank' THEN
'Items that come from elsewhere, in the order in which recommend would list them for a user, seen or not. name: a recommender; user_id: text, bigint or uuid, may be NULL; candidates: up to 10000 keys of items. Returns item (the key as text), score, rank from 1: those of the candidates that are eligible and that the caller may see; what no source knows comes last, as given, with score 0. Needs EXECUTE on <name>_rank and SELECT on the items. Errors: as recommend, 22023 too many candidates.'
        ELSE
'Items like one. name: a recommender, or a pipeline; item_id: text, bigint or uuid (of a pipeline''s source with a key of several columns: a JSON object); filter: as in recommend; by: interactions (items that the users of the item have had to do with, too: by the cosine of their users, shrunk where these are few), content (their vectors, by the pipeline''s distance, scored as by search), or blend of both by reciprocal rank, the default where the items have vectors. Returns item (the key as text), score, rank; as many as there are, up to k. Needs EXECUTE on <name>_similar and SELECT on the items; of a pipeline, SELECT on its source and its relation. Errors: as recommend, 22023 bad by, or no vectors.'
        END);
    END LOOP;
END
$comment$;
COMMENT ON FOREIGN DATA WRAPPER recsync IS 'Servers of this wrapper are embedding APIs, and receivers of hooks.';

-- Views: columns are added at the end.
CREATE VIEW errors WITH (security_barrier) AS
    SELECT p.kind, p.name, f.class, f.status, f.sqlstate, f.message, f.at, f.count
      FROM failures() f
      JOIN (SELECT id, 'pipeline' AS kind, relation AS name FROM pipeline
            UNION ALL SELECT m.id, 'recommender', r.name FROM member m JOIN recommender r ON r.id = m.recommender_id
            UNION ALL SELECT id, 'hook', name FROM hook) p ON p.id = f.pipeline_id;
COMMENT ON VIEW errors IS 'What has gone wrong lately: of each pipeline, recommender and hook the last eight kinds of failure since the server started, by class, HTTP status and SQLSTATE, with when the last was and how often it came. message says what the class means, and nothing of a row''s. Readable by the owner of the pipeline, of the hook or of the recommender''s items, recsync_admin and pg_monitor.';
CREATE OR REPLACE VIEW change_log WITH (security_barrier) AS
    SELECT l.transaction_id, l.sequence + COALESCE(c.n, 1) - 1 AS sequence, l.changed_at, l.changed_by, l.application_name,
           CASE WHEN r.oid IS NOT NULL THEN l.relation::regclass END AS table_name,
           CASE l.op WHEN 'I' THEN 'INSERT' WHEN 'U' THEN 'UPDATE' WHEN 'D' THEN 'DELETE' WHEN 'T' THEN 'TRUNCATE' ELSE 'UNSEEN' END AS op,
           c.record_key::jsonb AS record_key, COALESCE(c.old_key::jsonb || c.old_record::jsonb, (COALESCE(c.old_record, c.old_key))::jsonb) AS old_record, c.record::jsonb AS record,
           CASE WHEN pg_catalog.current_setting('track_commit_timestamp')::boolean
                THEN pg_catalog.pg_xact_commit_timestamp(l.transaction_id::xid) END AS committed_at
      FROM log l LEFT JOIN pg_catalog.pg_class r ON r.oid = l.relation
      LEFT JOIN LATERAL ROWS FROM (pg_catalog.json_array_elements(l.record_keys), pg_catalog.json_array_elements(l.old_keys),
                                   pg_catalog.json_array_elements(l.old_records), pg_catalog.json_array_elements(l.records))
           WITH ORDINALITY AS c (record_key, old_key, old_record, record, n) ON true
     WHERE CASE WHEN r.oid IS NULL THEN pg_catalog.pg_has_role('recsync_admin', 'USAGE') AND pg_catalog.pg_has_role('pg_read_all_data', 'USAGE')
                WHEN pg_catalog.pg_has_role(r.relowner, 'USAGE') THEN true
                ELSE pg_catalog.pg_has_role('recsync_admin', 'USAGE') AND pg_catalog.has_table_privilege(r.oid, 'SELECT')
                     AND NOT pg_catalog.row_security_active(r.oid) END;

CREATE OR REPLACE VIEW dead_letter WITH (security_barrier) AS
    SELECT p.relation AS pipeline, d.record_key, d.attempt, d.class, d.status, d.message, d.failed_at
      FROM dead_letter_log d
      JOIN (SELECT id, relation, relation AS owned, NULL AS role FROM pipeline UNION ALL SELECT m.id, r.name, r.items, NULL FROM member m JOIN recommender r ON r.id = m.recommender_id
            UNION ALL SELECT id, name, NULL, owner FROM hook) p ON p.id = d.pipeline_id
      CROSS JOIN LATERAL (SELECT COALESCE(pg_catalog.to_regrole(p.role)::oid, owner_of(p.owned)) AS owner) o
     WHERE pg_catalog.pg_has_role('recsync_admin', 'USAGE') OR pg_catalog.pg_has_role(o.owner, 'USAGE');
COMMENT ON VIEW dead_letter IS 'Rows that were given up, with class, HTTP status and message; readable by the owner of the pipeline, of the hook or of the recommender''s items, and recsync_admin. A hook''s are letters: record_key is the webhook-id without msg_. See retry_dead_letters; a recommender tries a row again when it changes, and on resume.';
CREATE VIEW usage WITH (security_barrier) AS
    WITH seen AS MATERIALIZED (SELECT pg_catalog.pg_has_role('recsync_admin', 'USAGE') OR pg_catalog.pg_has_role('pg_monitor', 'USAGE') AS all_of_it)
    SELECT u.name AS pipeline, u.model, u.day,
           pg_catalog.sum(u.requests)::bigint AS requests, pg_catalog.sum(u.inputs)::bigint AS inputs, pg_catalog.sum(u.tokens)::bigint AS tokens,
           pg_catalog.sum(u.bytes)::bigint AS bytes, pg_catalog.trim_scale(pg_catalog.sum(u.cost)) AS cost,
           pg_catalog.sum(u.coalesced_tokens + u.unchanged_tokens + u.known_tokens)::bigint AS saved_tokens,
           pg_catalog.trim_scale(pg_catalog.sum(u.coalesced_cost + u.unchanged_cost + u.known_cost)) AS saved_cost,
           u.currency, u.server, pg_catalog.sum(u.queries)::bigint AS queries, pg_catalog.sum(u.estimated_tokens)::bigint AS estimated_tokens,
           pg_catalog.sum(u.coalesced)::bigint AS coalesced, pg_catalog.sum(u.coalesced_tokens)::bigint AS coalesced_tokens,
           pg_catalog.trim_scale(pg_catalog.sum(u.coalesced_cost)) AS coalesced_cost,
           pg_catalog.sum(u.unchanged)::bigint AS unchanged, pg_catalog.sum(u.unchanged_tokens)::bigint AS unchanged_tokens,
           pg_catalog.trim_scale(pg_catalog.sum(u.unchanged_cost)) AS unchanged_cost,
           pg_catalog.sum(u.known)::bigint AS known, pg_catalog.sum(u.known_tokens)::bigint AS known_tokens,
           pg_catalog.trim_scale(pg_catalog.sum(u.known_cost)) AS known_cost
      FROM ( -- what has no name is apart, so that who asks for one reads no other's days
            SELECT n.name, l.*
              FROM (SELECT COALESCE(account, id) AS id, relation AS name FROM pipeline WHERE of_pipeline IS NULL
                    UNION ALL
                    SELECT n.pipeline_id, n.name FROM usage_name n
                     WHERE NOT EXISTS (SELECT FROM pipeline p WHERE COALESCE(p.account, p.id) = n.pipeline_id AND p.of_pipeline IS NULL)) n
              JOIN ledger l ON l.pipeline_id = n.id
            UNION ALL
            SELECT NULL, l.* FROM ledger l
             WHERE NOT EXISTS (SELECT FROM pipeline p WHERE COALESCE(p.account, p.id) = l.pipeline_id AND p.of_pipeline IS NULL)
               AND NOT EXISTS (SELECT FROM usage_name n WHERE n.pipeline_id = l.pipeline_id)) u
     WHERE (SELECT all_of_it FROM seen) OR u.pipeline_id IN (SELECT visible_pipelines())
     GROUP BY 1, u.model, u.day, u.currency, u.server;
COMMENT ON VIEW usage IS 'What was spent on embeddings and what was saved, a row a pipeline, model and day of UTC (and server and currency, where these changed): requests, their inputs (texts), bytes (of their bodies), tokens as the provider counts them (estimated_tokens of these are recsync''s estimate, where the reply had no count), cost by the price of the time (NULL: none was known); queries: the requests that embed and search made. Saved: coalesced (changes that came together with others of their row), unchanged (texts that were those of their vectors) and known (texts whose vector was known), with the tokens, estimated by the provider''s count of other texts, and the money that each would have cost. pipeline is NULL for embed by a server''s name; what its generations have cost is the pipeline''s. It survives drop_pipeline. Readable by the pipeline''s owner, recsync_admin and pg_monitor.';
CREATE VIEW status_query WITH (security_barrier) AS
    WITH month AS MATERIALIZED (
         SELECT pipeline_id, server, currency, pg_catalog.sum(tokens)::bigint AS tokens, pg_catalog.sum(cost) AS cost FROM ledger_month
          WHERE month >= (SELECT pg_catalog.date_trunc('month', pg_catalog.clock_timestamp() AT TIME ZONE 'UTC')::date) GROUP BY pipeline_id, server, currency),
    number AS MATERIALIZED (SELECT * FROM counters()),
    given_up AS MATERIALIZED (SELECT pipeline_id, pg_catalog.count(*) AS dead FROM dead_letter_log GROUP BY pipeline_id),
    ahead AS MATERIALIZED ( -- what the log has that was not dispatched yet
         SELECT l.source_id, pg_catalog.sum(l.changes)::bigint AS undispatched, pg_catalog.min(l.changed_at) AS oldest
           FROM checkpoint k, log l
          WHERE l.transaction_id >= pg_catalog.pg_snapshot_xmin(k.snapshot) AND NOT l.audit_only
            AND NOT pg_catalog.pg_visible_in_snapshot(l.transaction_id, k.snapshot) GROUP BY l.source_id)
    SELECT 'pipeline'::text AS kind, p.relation AS name,
           CASE WHEN p.paused OR g.stops OR p.backfill_held IS NOT NULL THEN 'paused' WHEN w.missing IS NOT NULL THEN 'waiting'
                WHEN b.finished_at IS NULL AND b.pipeline_id IS NOT NULL THEN 'backfill' ELSE 'running' END AS state,
           COALESCE(j.jobs, 0) + GREATEST(COALESCE(n.pending, 0), COALESCE(l.undispatched, 0) - COALESCE(n.in_flight, 0)) AS pending,
           COALESCE(n.in_flight, 0) AS in_flight,
           COALESCE(d.dead, 0) AS dead,
           COALESCE(pg_catalog.date_part('epoch', pg_catalog.clock_timestamp() - LEAST(l.oldest, j.oldest)), 0) AS lag_seconds,
           b.done AS backfilled,
           COALESCE(n.embedded, 0) AS embedded, COALESCE(n.requests, 0) AS requests, COALESCE(n.tokens, 0) AS tokens,
           n.last_change, n.last_embedded,
           COALESCE(n.failure, CASE WHEN d.dead > 0 THEN (SELECT e.class || COALESCE(' (HTTP ' || e.status || ')', '') FROM dead_letter_log e WHERE e.pipeline_id = p.id ORDER BY e.failed_at DESC LIMIT 1) END) AS last_error, COALESCE(p.paused_reason, CASE WHEN g.stops AND NOT p.paused THEN g.notice END, p.backfill_held) AS paused_reason,
           COALESCE(w.missing, f.waits_for) AS waiting_for,
           GREATEST(b.total, b.done) AS backfill_total, f.rate AS backfill_rate,
           CASE WHEN b.finished_at IS NULL AND f.rate > 0 THEN GREATEST(b.total - b.done, 0) / f.rate * interval '1 s' END AS backfill_eta,
           b.reason AS backfill_reason, b.advised AS needs_verify,
           COALESCE(m.tokens, 0) AS month_tokens, pg_catalog.trim_scale(m.cost) AS month_cost, p.monthly_budget,
           pg_catalog.trim_scale(v.cost) AS server_month_cost, v.monthly_budget AS server_monthly_budget, v.currency,
           CASE WHEN NOT g.stops THEN g.notice END AS warning,
           COALESCE(n.truncated, 0) AS truncated
      FROM pipeline p
      LEFT JOIN budget_notice g ON g.pipeline_id = p.id AND g.month = pg_catalog.date_trunc('month', pg_catalog.clock_timestamp() AT TIME ZONE 'UTC')::date
      LEFT JOIN (SELECT s.*, (SELECT pg_catalog.sum(o.cost) FROM month o WHERE o.server = s.name AND o.currency = s.currency) AS cost
                   FROM (SELECT f.srvname::text AS name, pg_catalog.max(o.option_value) FILTER (WHERE o.option_name = 'monthly_budget')::numeric AS monthly_budget,
                                COALESCE(pg_catalog.max(o.option_value) FILTER (WHERE o.option_name = 'currency'), 'USD') AS currency
                           FROM pg_catalog.pg_foreign_server f JOIN pg_catalog.pg_foreign_data_wrapper w ON w.oid = f.srvfdw AND w.fdwname = 'recsync'
                           LEFT JOIN LATERAL pg_catalog.pg_options_to_table(f.srvoptions) o ON true GROUP BY f.srvname) s) v ON v.name = p.server
      LEFT JOIN (SELECT o.pipeline_id, o.currency, pg_catalog.sum(o.tokens)::bigint AS tokens, pg_catalog.sum(o.cost) AS cost
                   FROM month o GROUP BY o.pipeline_id, o.currency) m ON m.pipeline_id = COALESCE(p.account, p.id) AND m.currency = v.currency
      LEFT JOIN backfill b ON b.pipeline_id = p.id
      LEFT JOIN filling() f ON f.pipeline_id = p.id
      LEFT JOIN number n ON n.pipeline_id = p.id
      LEFT JOIN job_counts() j ON j.pipeline_id = p.id
      LEFT JOIN given_up d ON d.pipeline_id = p.id
      LEFT JOIN ahead l ON l.source_id = p.source_id
      CROSS JOIN LATERAL (SELECT owner_of(p.relation) AS owner) o
      CROSS JOIN (SELECT worker_missing() AS missing) w
     WHERE p.of_pipeline IS NULL
       AND (pg_catalog.pg_has_role('recsync_admin', 'USAGE') OR pg_catalog.pg_has_role('pg_monitor', 'USAGE')
            OR pg_catalog.pg_has_role(o.owner, 'USAGE'))
    UNION ALL
    SELECT 'recommender', r.name,
           CASE WHEN r.paused THEN 'paused' WHEN w.missing IS NOT NULL THEN 'waiting' WHEN NOT b.finished THEN 'backfill' ELSE 'running' END,
           GREATEST(COALESCE(n.pending, 0), COALESCE(l.undispatched, 0)), 0, COALESCE(d.dead, 0),
           COALESCE(pg_catalog.date_part('epoch', pg_catalog.clock_timestamp() - l.oldest), 0), b.done, 0, 0, 0,
           n.last_change, NULL, COALESCE(m.error, (SELECT e.class FROM dead_letter_log e WHERE e.pipeline_id IN (SELECT m.id FROM member m WHERE m.recommender_id = r.id) ORDER BY e.failed_at DESC LIMIT 1)), r.paused_reason, w.missing,
           NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, 0
      FROM recommender r
      CROSS JOIN LATERAL (SELECT pg_catalog.bool_and(f.finished_at IS NOT NULL) AS finished, pg_catalog.sum(f.done)::bigint AS done
                            FROM member m JOIN backfill f ON f.pipeline_id = m.id WHERE m.recommender_id = r.id) b
      CROSS JOIN LATERAL (SELECT pg_catalog.sum(c.pending)::bigint AS pending, pg_catalog.max(c.last_change) AS last_change
                            FROM member m JOIN number c ON c.pipeline_id = m.id WHERE m.recommender_id = r.id) n
      CROSS JOIN LATERAL (SELECT owner_of(r.items) AS owner) o
      CROSS JOIN (SELECT worker_missing() AS missing) w
      CROSS JOIN LATERAL (SELECT pg_catalog.sum(g.dead)::bigint AS dead FROM member m JOIN given_up g ON g.pipeline_id = m.id WHERE m.recommender_id = r.id) d
      CROSS JOIN LATERAL (SELECT pg_catalog.min(error) AS error FROM trained_model WHERE recommender_id = r.id) m
      CROSS JOIN LATERAL (SELECT pg_catalog.sum(l.undispatched)::bigint AS undispatched, pg_catalog.min(l.oldest) AS oldest
                            FROM ahead l WHERE l.source_id IN (SELECT m.source_id FROM member m WHERE m.recommender_id = r.id)) l
     WHERE pg_catalog.pg_has_role('recsync_admin', 'USAGE') OR pg_catalog.pg_has_role('pg_monitor', 'USAGE')
        OR pg_catalog.pg_has_role(o.owner, 'USAGE')
    UNION ALL
    SELECT 'hook', h.name, CASE WHEN h.paused THEN 'paused' WHEN w.missing IS NOT NULL THEN 'waiting' ELSE 'running' END,
           q.waiting, COALESCE(n.in_flight, 0), COALESCE(d.dead, 0),
           COALESCE(pg_catalog.date_part('epoch', pg_catalog.clock_timestamp() - q.oldest), 0), NULL,
           COALESCE(n.embedded, 0), COALESCE(n.requests, 0), 0, q.newest, n.last_embedded, COALESCE(n.failure, CASE WHEN d.dead > 0 THEN (SELECT e.class || COALESCE(' (HTTP ' || e.status || ')', '') FROM dead_letter_log e WHERE e.pipeline_id = h.id ORDER BY e.failed_at DESC LIMIT 1) END), h.paused_reason, w.missing,
           NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, 0
      FROM hook h
      LEFT JOIN number n ON n.pipeline_id = h.id
      LEFT JOIN given_up d ON d.pipeline_id = h.id
      CROSS JOIN (SELECT worker_missing() AS missing) w
      CROSS JOIN LATERAL (SELECT pg_catalog.count(*) AS waiting, pg_catalog.min(created_at) AS oldest, pg_catalog.max(created_at) AS newest
                            FROM delivery WHERE hook_id = h.id AND available_at < 'infinity') q
     WHERE pg_catalog.pg_has_role('recsync_admin', 'USAGE') OR pg_catalog.pg_has_role('pg_monitor', 'USAGE')
        OR pg_catalog.pg_has_role(pg_catalog.to_regrole(h.owner)::oid, 'USAGE')
    UNION ALL
    SELECT 'audit', s.relation, 'running', 0, 0, 0, 0, NULL, 0, 0, 0, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, 0
      FROM source s CROSS JOIN LATERAL (SELECT owner_of(s.relation) AS owner) o
     WHERE s.audit IS NOT NULL
       AND (pg_catalog.pg_has_role('recsync_admin', 'USAGE') OR pg_catalog.pg_has_role('pg_monitor', 'USAGE')
            OR pg_catalog.pg_has_role(o.owner, 'USAGE'));
COMMENT ON VIEW status_query IS 'What recsync.status shows, planned anew with each look: see there.';
CREATE FUNCTION status_rows() RETURNS SETOF status_query LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'status_rows_v1';
COMMENT ON FUNCTION status_rows() IS 'The rows of recsync.status_query that the caller may see, by a plan that the session keeps; for recsync.status.';
CREATE OR REPLACE VIEW status WITH (security_barrier) AS
    SELECT kind, name, state, pending, in_flight, dead, lag_seconds, backfilled, embedded, requests, tokens, last_change, last_embedded, last_error, paused_reason,
           waiting_for, backfill_total, backfill_rate, backfill_eta, backfill_reason, needs_verify, month_tokens, month_cost, monthly_budget,
           server_month_cost, server_monthly_budget, currency, warning, truncated
      FROM status_rows();
COMMENT ON VIEW status IS 'One row a pipeline, recommender, hook or audited table (kind): state, pending, in flight, dead letters, lag, how far its backfill is and why recsync has begun it, whether it needs verify, last error, why it is paused or what it waits for, and tokens and money of this month (UTC) beside the budgets of the pipeline and of its server; warning: 80% of one of them is spent; and of how many texts only the beginning was sent (truncated). pending is counted, but for rows that wait as jobs: of more than 10,000 of these, shared out among the pipelines, it is estimated how many they are. Of a hook, embedded counts the letters that have arrived.';
CREATE VIEW overview WITH (security_barrier) AS
    WITH told AS (
         SELECT s.name, s.kind, s.state, s.pending, s.dead, s.lag_seconds AS lag,
                COALESCE(s.paused_reason, s.waiting_for, s.last_error, s.warning, 'advised: ' || s.needs_verify,
                         CASE WHEN s.state = 'backfill' THEN 'backfill: ' || COALESCE(100 * s.backfilled / NULLIF(s.backfill_total, 0) || '%', s.backfilled || ' rows') END, '') AS note
           FROM status s)
    SELECT CASE WHEN pg_catalog.length(t.name) > 30 THEN pg_catalog.left(t.name, 29) || '…' ELSE t.name END AS name, t.kind, t.state, t.pending, t.dead,
           CASE WHEN t.lag < 0.5 THEN '' WHEN t.lag < 120 THEN pg_catalog.round(t.lag) || ' s' WHEN t.lag < 7200 THEN pg_catalog.round(t.lag / 60) || ' min'
                WHEN t.lag < 172800 THEN pg_catalog.round(t.lag / 3600) || ' h' ELSE pg_catalog.round(t.lag / 86400) || ' d' END AS lag,
           CASE WHEN pg_catalog.length(t.note) > 31 THEN pg_catalog.left(t.note, 30) || '…' ELSE t.note END AS note
      FROM (SELECT pg_catalog.regexp_replace(o.name, '[[:cntrl:]]', ' ', 'g') AS name, o.kind, o.state, o.pending, o.dead, o.lag,
                   pg_catalog.regexp_replace(o.note, '[[:cntrl:]]', ' ', 'g') AS note FROM told o) t;
COMMENT ON VIEW overview IS 'recsync.status for a terminal of 120 columns: what each pipeline, recommender, hook and audited table does, how many rows wait, how many were given up, how old the oldest change is that does not show yet, and in a few words what is wrong. Long names and notes are cut off with an ellipsis: recsync.status has them in full.';
CREATE VIEW generation WITH (security_barrier) AS
    SELECT COALESCE(s.relation, p.relation) AS pipeline, p.generation,
           CASE WHEN s.id IS NULL THEN 'in service' WHEN p.builds AND p.generation < s.generation THEN 'rolling back'
                WHEN p.builds THEN 'building' ELSE 'kept' END AS state,
           p.vectors, p.server, p.dimensions, p.storage, p.index, p.distance, p.index_options,
           b.done AS backfilled, b.finished_at AS backfilled_at,
           CASE WHEN s.id IS NULL OR p.builds THEN COALESCE(n.pending, 0) + COALESCE(j.jobs, 0) END AS pending, COALESCE(d.dead, 0) AS dead,
           COALESCE(n.embedded, 0) AS embedded, COALESCE(n.requests, 0) AS requests, COALESCE(n.tokens, 0) AS tokens,
           COALESCE(i.valid, false) AS indexed, i.phase AS index_phase, i.done AS index_done,
           COALESCE(p.paused_reason, p.waits_for) AS waits_for, p.created_at
      FROM pipeline p
      LEFT JOIN pipeline s ON s.id = p.of_pipeline
      LEFT JOIN backfill b ON b.pipeline_id = p.id
      LEFT JOIN counters() n ON n.pipeline_id = p.id
      CROSS JOIN LATERAL (SELECT owner_of(p.relation) AS owner) o
      LEFT JOIN job_counts() j ON j.pipeline_id = p.id
      LEFT JOIN (SELECT pipeline_id, pg_catalog.count(*) AS dead FROM dead_letter_log GROUP BY pipeline_id) d ON d.pipeline_id = p.id
      LEFT JOIN index_states() i ON i.pipeline_id = p.id
     WHERE pg_catalog.pg_has_role('recsync_admin', 'USAGE') OR pg_catalog.pg_has_role('pg_monitor', 'USAGE')
        OR pg_catalog.pg_has_role(o.owner, 'USAGE');
COMMENT ON VIEW generation IS 'One row a generation of a pipeline''s vectors: the one in service, one that rebuild makes (building) or rollback_rebuild brings into step (rolling back), and the one before, which is kept until the next rebuild. What it is made by; rows that its backfill has come to, when that ended, what is pending, dead letters, what was embedded by how many requests and tokens since the server''s start; whether there is a valid index, else the phase of its build (as in pg_stat_progress_create_index) and how much of the table it has read, from 0 to 1; and what keeps it from taking its place.';
CREATE VIEW list_cache WITH (security_barrier) AS
    SELECT r.name AS recommender, COALESCE(c.ready, 0) AS ready, COALESCE(c.made, 0) AS made, COALESCE(c.warmed, 0) AS warmed
      FROM recommender r LEFT JOIN list_counters() c ON c.recommender_id = r.id
      CROSS JOIN LATERAL (SELECT owner_of(r.items) AS owner) o
     WHERE pg_catalog.pg_has_role('recsync_admin', 'USAGE') OR pg_catalog.pg_has_role('pg_monitor', 'USAGE')
        OR pg_catalog.pg_has_role(o.owner, 'USAGE');
COMMENT ON VIEW list_cache IS 'One row a recommender: how many of the lists that recommend has given were ready before they were asked for, how many were made then, and how many the worker has made before they were asked for, since its start or that of the server.';
GRANT SELECT ON usage, status_query, overview, generation, list_cache TO PUBLIC;
GRANT SELECT ON errors TO PUBLIC;
GRANT EXECUTE ON FUNCTION health() TO pg_monitor, recsync_admin;
GRANT EXECUTE ON FUNCTION metrics() TO pg_monitor, recsync_admin;
COMMENT ON FUNCTION estimate(regclass, text[], text, text, text, text, text) IS
'The same for a pipeline that create_pipeline would make of these arguments: all rows that pass row_filter and have a text. Errors: those of create_pipeline (42704, 42501, 22023, 55000), and what the expressions raise.';
COMMENT ON FUNCTION purge_dead_letters(text, timestamptz) IS
'Forgets rows that were given up, those before a time or all; they stay without a current vector until they change. Returns how many. Errors: 42704 unknown name, 42501 for others than its owner and recsync_admin.';

-- What recsync keeps for itself, for those who look around with psql: \dt+ and \dv+ of recsync. Names that a user meets have
-- their COMMENT where they are made.
COMMENT ON TABLE source IS 'A table that is watched, for pipelines, recommenders or its audit: its key, which columns texts use, and what is logged of a change. Its trigger carries the id. Made by create_pipeline, create_recommender, add_interactions and audit.';
COMMENT ON SEQUENCE source_id_seq IS 'The numbers of recsync.source.';
COMMENT ON TABLE pipeline IS 'A pipeline, or another generation of its vectors, as it was declared: see create_pipeline, alter_pipeline and rebuild. How it does is in recsync.status and recsync.generation.';
COMMENT ON SEQUENCE pipeline_id_seq IS 'The numbers of pipelines, recommenders, their tables of interactions, and hooks: all of them are known by one number.';
COMMENT ON TABLE recommender IS 'A recommender as it was declared: see create_recommender and alter_recommender. How it does is in recsync.status and recsync.model.';
COMMENT ON TABLE feed IS 'Another table of interactions of a recommender: see add_interactions.';
COMMENT ON VIEW member IS 'The tables of interactions of all recommenders, the first of each under the recommender''s own number.';
COMMENT ON TABLE trained_model IS 'What has become of the models of recommenders: see recsync.model. Not dumped, as the models are not.';
COMMENT ON TABLE backfill IS 'How far the rows that were there have been looked at, of each pipeline and table of interactions: see backfill, and recsync.status.';
COMMENT ON TABLE job IS 'Rows that wait for an embedding outside of the worker''s memory: put aside, scheduled, or tried again. Deleted when they are done.';
COMMENT ON TABLE dead_letter_log IS 'Rows and letters that were given up: see recsync.dead_letter.';
COMMENT ON TABLE checkpoint IS 'Up to where the change log has been worked off: what is visible in this snapshot. One row; of another cluster or database it counts as none.';
COMMENT ON TABLE rendering IS 'The settings by which the worker makes texts of rows, such as DateStyle and TimeZone: verify makes them by the same.';
COMMENT ON TABLE secret IS 'The key of the hashes of texts, so that a hash tells nobody a short text. Readable by recsync''s owner only.';
COMMENT ON VIEW known_text IS 'Vectors that rows have had, by a digest of text and model, so that a text is not paid for twice: see recsync.known_text_size.';
COMMENT ON TABLE known_text_0 IS 'Half of recsync.known_text: one takes what is new, until it is full and the other is emptied. Unlogged, since a crash costs no more than calls.';
COMMENT ON TABLE known_text_1 IS 'The other half of recsync.known_text.';
COMMENT ON VIEW log IS 'The change log as it is stored, a row a block of changes: see recsync.change_log.';
COMMENT ON SEQUENCE change_log_sequence IS 'The order of changes: a value stands for 2^20 numbers, which sessions draw from shared memory.';
COMMENT ON TABLE log_0 IS 'The change log, a ring of eight tables of which one is written and the oldest are emptied as a whole after recsync.log_retention: see recsync.change_log.';
COMMENT ON TABLE log_1 IS 'The change log: see recsync.log_0.';
COMMENT ON TABLE log_2 IS 'The change log: see recsync.log_0.';
COMMENT ON TABLE log_3 IS 'The change log: see recsync.log_0.';
COMMENT ON TABLE log_4 IS 'The change log: see recsync.log_0.';
COMMENT ON TABLE log_5 IS 'The change log: see recsync.log_0.';
COMMENT ON TABLE log_6 IS 'The change log: see recsync.log_0.';
COMMENT ON TABLE log_7 IS 'The change log: see recsync.log_0.';
COMMENT ON TABLE shown_log IS 'What log_shown has noted, a row a showing: see recsync.shown. Kept for recsync.shown_retention.';
COMMENT ON SEQUENCE shown_log_number_seq IS 'The numbers of recsync.shown_log.';
COMMENT ON SEQUENCE delivery_number IS 'The order in which hooks are told: that of the commits.';
COMMENT ON TABLE event_0 IS 'Which events apply_events has applied, by event_id: a ring of four tables, of which one is written and the oldest is emptied as a whole, see recsync.event_retention.';
COMMENT ON TABLE event_1 IS 'Applied events: see recsync.event_0.';
COMMENT ON TABLE event_2 IS 'Applied events: see recsync.event_0.';
COMMENT ON TABLE event_3 IS 'Applied events: see recsync.event_0.';
COMMENT ON TABLE event_register IS 'Since when each of recsync.event_0 to event_3 has been written.';

DROP FUNCTION counters_of_0_1_0();
