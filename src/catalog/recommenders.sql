SELECT pg_catalog.jsonb_build_object(
         'id', m.id, 'of', r.id, 'name', r.name, 'items', r.items,
         'source_id', s.id, 'interactions', s.relation, 'key_columns', s.key_columns,
         'user_expression', m.user_expression, 'item_expression', m.item_expression, 'at_expression', m.at_expression,
         'weight', m.weight, 'seen', m.seen, 'seen_for_s', extract(epoch FROM r.seen_for), 'eligible', r.eligible, 'boost', r.boost,
         'half_life_s', extract(epoch FROM r.half_life), 'history', r.history,
         'collaborative', pg_catalog.to_jsonb(r.collaborative), 'schedule', r.schedule, 'every_s', extract(epoch FROM r.every),
         'debounce_s', NULL, 'max_delay_s', NULL, 'half_life_rank', r.half_life_rank, 'impressions', r.impressions,
         'users', {users},
         'vectors', {vectors}, 'makes_pipeline', r.makes_pipeline,
         'paused', r.paused, 'paused_reason', r.paused_reason,
         'items_oid', i.oid::bigint, 'owner', i.relowner::bigint,
         'items_rows', CASE WHEN i.relkind = 'p' THEN r.items ELSE 'ONLY ' || r.items END,
         'item_keys', {item_keys},
         'source_oid', c.oid::bigint,
         'rows_of', CASE WHEN c.relkind = 'p' THEN s.relation ELSE 'ONLY ' || s.relation END,
         'unlogged', COALESCE(c.relpersistence = 'u', false),
         'captured', (SELECT pg_catalog.count(*) = 2 FROM pg_catalog.pg_trigger t
                       WHERE t.tgrelid = c.oid
                         AND t.tgname IN ('00_recsync_capture_' || s.id, '00_recsync_truncate_' || s.id) AND t.tgenabled IN ('O', 'A')),
         'keys', {keys},
         -- What the worker keeps: where it is, whom it is written as.
         'user_keys', {user_keys},
         'members', (SELECT pg_catalog.jsonb_agg(pg_catalog.jsonb_build_object('id', o.id, 'keys', pg_catalog.cardinality(q.key_columns)) ORDER BY o.id)
                       FROM recsync.member o JOIN recsync.source q ON q.id = o.source_id WHERE o.recommender_id = r.id),
         'kept', COALESCE(pg_catalog.has_table_privilege(i.relowner, pg_catalog.to_regclass('recsync.stale_' || r.id), 'INSERT'), false)
                 AND (SELECT pg_catalog.bool_and(pg_catalog.to_regclass('recsync.interaction_' || o.id) IS NOT NULL) FROM recsync.member o WHERE o.recommender_id = r.id)
                 AND (r.pipeline_id IS NULL OR pg_catalog.to_regclass('recsync.interest_' || r.id) IS NOT NULL)
                 AND pg_catalog.to_regclass('recsync.list_' || r.id) IS NOT NULL,
         'missing_column', (SELECT pg_catalog.min(u.name) FROM pg_catalog.unnest(m.used_columns || s.key_columns) AS u (name)
                             WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_attribute a
                                                WHERE a.attrelid = c.oid AND a.attname = u.name AND NOT a.attisdropped)),
         'dead_letters', EXISTS (SELECT FROM recsync.dead_letter_log l WHERE l.pipeline_id = m.id),
         'in_service', (SELECT pg_catalog.jsonb_object_agg(t.model, extract(epoch FROM t.trained_at)) FROM recsync.trained_model t WHERE t.recommender_id = r.id),
         'trained_us', tr.started_us, 'trained_on', COALESCE(tr.interactions, 0),
         'backfilled', COALESCE(b.finished_at IS NOT NULL, false),
         'backfill_round', COALESCE(b.round, 0),
         'backfill_after', pg_catalog.to_jsonb(b.after_key))::text
  FROM recsync.recommender r
  JOIN recsync.member m ON m.recommender_id = r.id
  JOIN recsync.source s ON s.id = m.source_id
  LEFT JOIN pg_catalog.pg_class i ON i.oid = pg_catalog.to_regclass(r.items)
  LEFT JOIN pg_catalog.pg_class c ON c.oid = pg_catalog.to_regclass(s.relation)
  LEFT JOIN recsync.backfill b ON b.pipeline_id = m.id
  CROSS JOIN LATERAL (SELECT CASE WHEN pg_catalog.count(t.model) = pg_catalog.count(*)
                                  THEN (pg_catalog.min(extract(epoch FROM t.started_at - timestamptz '2000-01-01 00:00:00+00')) * 1000000)::bigint END AS started_us,
                             pg_catalog.max(t.interactions) AS interactions
                        FROM pg_catalog.unnest(COALESCE(r.collaborative, '{item_knn,ease}')) AS wanted (model)
                        LEFT JOIN recsync.trained_model t ON t.recommender_id = r.id AND t.model = wanted.model) tr
 WHERE {which}
 ORDER BY m.id
