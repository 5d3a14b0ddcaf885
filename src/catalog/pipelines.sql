SELECT pg_catalog.jsonb_build_object(
         'id', p.id, 'relation', p.relation, 'vectors', p.vectors,
         'source_id', s.id, 'source', s.relation, 'key_columns', s.key_columns,
         'content', p.content, 'row_filter', p.row_filter, 'server', p.server,
         'schedule', p.schedule, 'every_s', extract(epoch FROM p.every), 'debounce_s', extract(epoch FROM p.debounce),
         'max_delay_s', extract(epoch FROM p.max_delay), 'into_column', p.into_column,
         'storage', p.storage, 'index', p.index, 'dimensions', p.dimensions,
         'capture', p.capture, 'on_replica', p.on_replica,
         'paused', p.paused, 'paused_reason', p.paused_reason,
         'owner', (SELECT c.relowner::bigint FROM pg_catalog.pg_class c WHERE c.oid = pg_catalog.to_regclass(p.relation)),
         'hnsw', EXISTS (SELECT FROM pg_catalog.pg_index i
                           JOIN pg_catalog.pg_class x ON x.oid = i.indexrelid JOIN pg_catalog.pg_am m ON m.oid = x.relam
                          WHERE i.indrelid = pg_catalog.to_regclass(p.vectors) AND i.indisready AND m.amname = 'hnsw'),
         'vectors_exist', pg_catalog.to_regclass(p.vectors) IS NOT NULL,
         'source_oid', c.oid::bigint,
         'rows_of', CASE WHEN c.relkind = 'p' THEN s.relation ELSE 'ONLY ' || s.relation END,
         'unlogged', COALESCE(c.relpersistence = 'u', false),
         'captured', (SELECT pg_catalog.count(*) = 2 FROM pg_catalog.pg_trigger t
                       WHERE t.tgrelid = pg_catalog.to_regclass(s.relation)
                         AND t.tgname IN ('00_recsync_capture_' || s.id, '00_recsync_truncate_' || s.id) AND t.tgenabled IN ('O', 'A')),
         'keys', {keys},
         'missing_column', (SELECT pg_catalog.min(u.name) FROM pg_catalog.unnest(p.used_columns || s.key_columns) AS u (name)
                             WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_attribute a
                                                WHERE a.attrelid = pg_catalog.to_regclass(s.relation)
                                                  AND a.attname = u.name AND NOT a.attisdropped)),
         'dead_letters', EXISTS (SELECT FROM recsync.dead_letter_log l WHERE l.pipeline_id = p.id),
         'backfilled', COALESCE((SELECT b.finished_at IS NOT NULL FROM recsync.backfill b WHERE b.pipeline_id = p.id), true),
         'backfill_round', COALESCE((SELECT b.round FROM recsync.backfill b WHERE b.pipeline_id = p.id), 0),
         'backfill_after', (SELECT pg_catalog.to_jsonb(b.after_key) FROM recsync.backfill b WHERE b.pipeline_id = p.id),
         'server_options', v.options, 'mapping_options', v.mapping, 'server_usable', v.usable)::text
  FROM recsync.pipeline p
  JOIN recsync.source s ON s.id = p.source_id
  LEFT JOIN pg_catalog.pg_class c ON c.oid = pg_catalog.to_regclass(s.relation)
  LEFT JOIN LATERAL (
       SELECT (SELECT pg_catalog.jsonb_agg(pg_catalog.jsonb_build_array(o.option_name, o.option_value))
                 FROM pg_catalog.pg_options_to_table(f.srvoptions) o) AS options,
              (SELECT pg_catalog.jsonb_agg(pg_catalog.jsonb_build_array(o.option_name, o.option_value))
                 FROM (SELECT m.umoptions FROM pg_catalog.pg_user_mapping m
                        WHERE m.umserver = f.oid AND m.umuser IN (0, (SELECT c.relowner FROM pg_catalog.pg_class c WHERE c.oid = pg_catalog.to_regclass(p.relation)))
                        ORDER BY m.umuser DESC LIMIT 1) m, pg_catalog.pg_options_to_table(m.umoptions) o) AS mapping,
              pg_catalog.has_server_privilege((SELECT c.relowner FROM pg_catalog.pg_class c WHERE c.oid = pg_catalog.to_regclass(p.relation)), f.oid, 'USAGE') AS usable
         FROM pg_catalog.pg_foreign_server f JOIN pg_catalog.pg_foreign_data_wrapper w ON w.oid = f.srvfdw
        WHERE f.srvname = p.server AND w.fdwname = 'recsync') v ON true
 WHERE $1 IS NULL OR p.relation = $1
 ORDER BY p.id
