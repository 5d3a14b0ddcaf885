-- What people look at. Views run with the rights of recsync's owner and show each reader what is theirs.

CREATE VIEW change_log WITH (security_barrier) AS
    SELECT l.transaction_id, l.sequence + COALESCE(c.n, 1) - 1 AS sequence, l.changed_at, l.changed_by, l.application_name,
           CASE WHEN r.oid IS NOT NULL THEN l.relation::regclass END AS table_name,
           CASE l.op WHEN 'I' THEN 'INSERT' WHEN 'U' THEN 'UPDATE' WHEN 'D' THEN 'DELETE' ELSE 'TRUNCATE' END AS op,
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
      JOIN (SELECT id, relation, relation AS owned FROM pipeline UNION ALL SELECT m.id, r.name, r.items FROM member m JOIN recommender r ON r.id = m.recommender_id) p ON p.id = d.pipeline_id
      CROSS JOIN LATERAL (SELECT owner_of(p.owned) AS owner) o
     WHERE pg_catalog.pg_has_role('recsync_admin', 'USAGE') OR pg_catalog.pg_has_role(o.owner, 'USAGE');
COMMENT ON VIEW dead_letter IS 'Rows that were given up, with class, HTTP status and message; readable by the owner of the pipeline or of the recommender''s items, and recsync_admin. See retry_dead_letters; a recommender tries a row again when it changes, and on resume.';

CREATE VIEW status WITH (security_barrier) AS
    SELECT 'pipeline'::text AS kind, p.relation AS name,
           CASE WHEN p.paused THEN 'paused' WHEN w.missing IS NOT NULL THEN 'waiting'
                WHEN b.finished_at IS NULL AND b.pipeline_id IS NOT NULL THEN 'backfill' ELSE 'running' END AS state,
           j.jobs + GREATEST(COALESCE(n.pending, 0), l.undispatched - COALESCE(n.in_flight, 0)) AS pending,
           COALESCE(n.in_flight, 0) AS in_flight,
           d.dead,
           COALESCE(pg_catalog.date_part('epoch', pg_catalog.clock_timestamp() - LEAST(l.oldest, j.oldest)), 0) AS lag_seconds,
           b.done AS backfilled,
           COALESCE(n.embedded, 0) AS embedded, COALESCE(n.requests, 0) AS requests, COALESCE(n.tokens, 0) AS tokens,
           n.last_change, n.last_embedded,
           COALESCE(n.failure, d.last_error) AS last_error, p.paused_reason, w.missing AS waiting_for
      FROM pipeline p
      LEFT JOIN backfill b ON b.pipeline_id = p.id
      LEFT JOIN counters() n ON n.pipeline_id = p.id
      CROSS JOIN LATERAL (SELECT owner_of(p.relation) AS owner) o
      CROSS JOIN (SELECT worker_missing() AS missing) w
      CROSS JOIN LATERAL (SELECT pg_catalog.count(*) AS jobs, pg_catalog.min(created_at) AS oldest FROM job WHERE pipeline_id = p.id) j
      CROSS JOIN LATERAL (SELECT pg_catalog.count(*) AS dead,
                                 (pg_catalog.array_agg(class || COALESCE(' (HTTP ' || status || ')', '') ORDER BY failed_at DESC))[1] AS last_error
                            FROM dead_letter_log WHERE pipeline_id = p.id) d
      CROSS JOIN LATERAL (SELECT COALESCE(pg_catalog.sum(l.changes), 0)::bigint AS undispatched, pg_catalog.min(l.changed_at) AS oldest
                            FROM checkpoint k, log l
                           WHERE l.transaction_id >= pg_catalog.pg_snapshot_xmin(k.snapshot) AND l.source_id = p.source_id AND NOT l.audit_only
                             AND NOT pg_catalog.pg_visible_in_snapshot(l.transaction_id, k.snapshot)) l
     WHERE pg_catalog.pg_has_role('recsync_admin', 'USAGE') OR pg_catalog.pg_has_role('pg_monitor', 'USAGE')
        OR pg_catalog.pg_has_role(o.owner, 'USAGE')
    UNION ALL
    SELECT 'recommender', r.name,
           CASE WHEN r.paused THEN 'paused' WHEN w.missing IS NOT NULL THEN 'waiting' WHEN NOT b.finished THEN 'backfill' ELSE 'running' END,
           GREATEST(COALESCE(n.pending, 0), l.undispatched), 0, d.dead,
           COALESCE(pg_catalog.date_part('epoch', pg_catalog.clock_timestamp() - l.oldest), 0), b.done, 0, 0, 0,
           n.last_change, NULL, COALESCE(m.error, d.last_error), r.paused_reason, w.missing
      FROM recommender r
      CROSS JOIN LATERAL (SELECT pg_catalog.bool_and(f.finished_at IS NOT NULL) AS finished, pg_catalog.sum(f.done)::bigint AS done
                            FROM member m JOIN backfill f ON f.pipeline_id = m.id WHERE m.recommender_id = r.id) b
      CROSS JOIN LATERAL (SELECT pg_catalog.sum(c.pending)::bigint AS pending, pg_catalog.max(c.last_change) AS last_change
                            FROM member m JOIN counters() c ON c.pipeline_id = m.id WHERE m.recommender_id = r.id) n
      CROSS JOIN LATERAL (SELECT owner_of(r.items) AS owner) o
      CROSS JOIN (SELECT worker_missing() AS missing) w
      CROSS JOIN LATERAL (SELECT pg_catalog.count(*) AS dead, (pg_catalog.array_agg(class ORDER BY failed_at DESC))[1] AS last_error
                            FROM dead_letter_log WHERE pipeline_id IN (SELECT m.id FROM member m WHERE m.recommender_id = r.id)) d
      CROSS JOIN LATERAL (SELECT pg_catalog.min(error) AS error FROM trained_model WHERE recommender_id = r.id) m
      CROSS JOIN LATERAL (SELECT COALESCE(pg_catalog.sum(l.changes), 0)::bigint AS undispatched, pg_catalog.min(l.changed_at) AS oldest
                            FROM checkpoint k, log l
                           WHERE l.transaction_id >= pg_catalog.pg_snapshot_xmin(k.snapshot) AND l.source_id IN (SELECT m.source_id FROM member m WHERE m.recommender_id = r.id) AND NOT l.audit_only
                             AND NOT pg_catalog.pg_visible_in_snapshot(l.transaction_id, k.snapshot)) l
     WHERE pg_catalog.pg_has_role('recsync_admin', 'USAGE') OR pg_catalog.pg_has_role('pg_monitor', 'USAGE')
        OR pg_catalog.pg_has_role(o.owner, 'USAGE')
    UNION ALL
    SELECT 'audit', s.relation, 'running', 0, 0, 0, 0, NULL, 0, 0, 0, NULL, NULL, NULL, NULL, NULL
      FROM source s CROSS JOIN LATERAL (SELECT owner_of(s.relation) AS owner) o
     WHERE s.audit IS NOT NULL
       AND (pg_catalog.pg_has_role('recsync_admin', 'USAGE') OR pg_catalog.pg_has_role('pg_monitor', 'USAGE')
            OR pg_catalog.pg_has_role(o.owner, 'USAGE'));
COMMENT ON VIEW status IS 'One row a pipeline, recommender or audited table (kind): state, pending, in flight, dead letters, lag, last error, and why it is paused.';

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

GRANT SELECT ON change_log, dead_letter, status, model, list_cache, shown, attribution TO PUBLIC;

CREATE FUNCTION fdw_validator(options text[], catalog oid) RETURNS void LANGUAGE c STRICT AS 'MODULE_PATHNAME', 'fdw_validator_v1';
COMMENT ON FUNCTION fdw_validator(text[], oid) IS 'Checks the options of CREATE/ALTER SERVER and USER MAPPING: unknown or impossible ones are errors that name the valid ones.';
CREATE FOREIGN DATA WRAPPER recsync NO HANDLER VALIDATOR fdw_validator;
COMMENT ON FOREIGN DATA WRAPPER recsync IS 'Servers of this wrapper are embedding APIs.';
GRANT USAGE ON FOREIGN DATA WRAPPER recsync TO recsync_admin;

SELECT announce();
