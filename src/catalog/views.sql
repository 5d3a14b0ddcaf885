-- What people look at. Views run with the rights of recsync's owner and show each reader what is theirs.

CREATE VIEW change_log WITH (security_barrier) AS
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
COMMENT ON VIEW change_log IS 'Every committed change of a watched table: the audit. Readable by the table''s owner, and by members of recsync_admin who may read all of the table. old_record and record hold what recsync.audit and create_pipeline(capture => …) ask for; a value left out for its size is {"omitted_bytes": n}; committed_at needs track_commit_timestamp. Kept for recsync.log_retention.';

CREATE VIEW dead_letter WITH (security_barrier) AS
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
CREATE VIEW status WITH (security_barrier) AS
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

CREATE VIEW model WITH (security_barrier) AS
    SELECT r.name AS recommender, m.model, m.trained_at, m.started_at, m.users, m.items, m.interactions, m.memory_bytes, m.error
      FROM trained_model m JOIN recommender r ON r.id = m.recommender_id
      CROSS JOIN LATERAL (SELECT owner_of(r.items) AS owner) o
     WHERE pg_catalog.pg_has_role('recsync_admin', 'USAGE') OR pg_catalog.pg_has_role('pg_monitor', 'USAGE')
        OR pg_catalog.pg_has_role(o.owner, 'USAGE');
COMMENT ON VIEW model IS 'One row a model of a recommender: when the one in service was trained, when the last training began, on how many users, items and interactions (pairs of a user and an item), the most memory that it took, in bytes, and why it has failed, if it has.';

CREATE VIEW list_cache WITH (security_barrier) AS
    SELECT r.name AS recommender, COALESCE(c.ready, 0) AS ready, COALESCE(c.made, 0) AS made, COALESCE(c.warmed, 0) AS warmed
      FROM recommender r LEFT JOIN list_counters() c ON c.recommender_id = r.id
      CROSS JOIN LATERAL (SELECT owner_of(r.items) AS owner) o
     WHERE pg_catalog.pg_has_role('recsync_admin', 'USAGE') OR pg_catalog.pg_has_role('pg_monitor', 'USAGE')
        OR pg_catalog.pg_has_role(o.owner, 'USAGE');
COMMENT ON VIEW list_cache IS 'One row a recommender: how many of the lists that recommend has given were ready before they were asked for, how many were made then, and how many the worker has made before they were asked for, since its start or that of the server.';

CREATE VIEW shown WITH (security_barrier) AS
    WITH visible AS MATERIALIZED (
         SELECT r.id, r.name FROM recommender r CROSS JOIN LATERAL (SELECT owner_of(r.items) AS owner) o
          WHERE pg_catalog.pg_has_role('recsync_admin', 'USAGE') OR pg_catalog.pg_has_role(o.owner, 'USAGE'))
    SELECT v.name AS recommender, l.list_id, l.placement, l.shown_at, i.place::integer AS place, i.item, i.source
      FROM visible v JOIN shown_log l ON l.recommender_id = v.id
      LEFT JOIN LATERAL ROWS FROM (pg_catalog.unnest(l.items), pg_catalog.unnest(l.sources)) WITH ORDINALITY AS i (item, source, place) ON true;
COMMENT ON VIEW shown IS 'What log_shown has noted, a row an item that was shown; of a showing without items one with NULLs. Readable by the owner of the recommender''s items, and recsync_admin. Kept for recsync.shown_retention.';

CREATE VIEW attribution WITH (security_barrier) AS
    SELECT recommender, placement, source, shown, attributable, clicked, converted FROM attribution();
COMMENT ON VIEW attribution IS 'What has come of what was shown, by recommender, placement and source: the function attribution() without arguments. Readable by the owner of the recommender''s items, recsync_admin and pg_monitor.';

GRANT SELECT ON change_log, dead_letter, usage, status_query, status, overview, generation, model, list_cache, shown, attribution TO PUBLIC;

CREATE FUNCTION fdw_validator(options text[], catalog oid) RETURNS void LANGUAGE c STRICT AS 'MODULE_PATHNAME', 'fdw_validator_v1';
COMMENT ON FUNCTION fdw_validator(text[], oid) IS 'Checks the options of CREATE/ALTER SERVER and USER MAPPING: unknown or impossible ones are errors that name the valid ones.';
CREATE FOREIGN DATA WRAPPER recsync NO HANDLER VALIDATOR fdw_validator;
COMMENT ON FOREIGN DATA WRAPPER recsync IS 'Servers of this wrapper are embedding APIs, and receivers of hooks.';
GRANT USAGE ON FOREIGN DATA WRAPPER recsync TO recsync_admin;

SELECT announce();
