SELECT (pg_catalog.jsonb_build_object(
         'id', p.id, 'account', COALESCE(p.account, p.id), 'relation', p.relation, 'vectors', p.vectors,
         'source_id', s.id, 'source', s.relation, 'key_columns', s.key_columns,
         'columns', p.columns, 'used_columns', p.used_columns, 'content', p.content, 'row_filter', p.row_filter, 'server', p.server,
         'schedule', p.schedule, 'every_s', extract(epoch FROM p.every), 'debounce_s', extract(epoch FROM p.debounce),
         'max_delay_s', extract(epoch FROM p.max_delay), 'into_column', p.into_column,
         'long_text', p.long_text, 'chunk_tokens', p.chunk_tokens,
         'storage', p.storage, 'index', p.index, 'dimensions', p.dimensions,
         'monthly_budget', p.monthly_budget,
         'distance', p.distance, 'index_options', p.index_options,
         'generation', p.generation, 'of_pipeline', p.of_pipeline, 'builds', p.builds)
       || pg_catalog.jsonb_build_object( -- a function has a hundred arguments at the most
         'capture', p.capture, 'on_replica', p.on_replica,
         'paused', p.paused, 'paused_reason', p.paused_reason,
         'owner', w.relowner::bigint, 'owner_name', pg_catalog.pg_get_userbyid(w.relowner),
         -- What creation asked for, and a change of owner or a REVOKE may have taken away.
         'lacks', CASE
             WHEN NOT pg_catalog.has_schema_privilege(w.relowner, c.relnamespace, 'USAGE')
                  THEN pg_catalog.format('GRANT USAGE ON SCHEMA %s TO %I', c.relnamespace::regnamespace, pg_catalog.pg_get_userbyid(w.relowner))
             WHEN NOT pg_catalog.has_table_privilege(w.relowner, c.oid, 'SELECT')
                  THEN pg_catalog.format('GRANT SELECT ON %s TO %I', s.relation, pg_catalog.pg_get_userbyid(w.relowner))
             WHEN p.into_column IS NOT NULL AND NOT pg_catalog.has_table_privilege(w.relowner, c.oid, 'UPDATE')
                  THEN pg_catalog.format('GRANT UPDATE ON %s TO %I', s.relation, pg_catalog.pg_get_userbyid(w.relowner))
             WHEN NOT (SELECT pg_catalog.bool_and(pg_catalog.has_table_privilege(w.relowner, e.oid, r.name))
                         FROM pg_catalog.pg_class e, pg_catalog.unnest('{SELECT,INSERT,UPDATE,DELETE}'::text[]) AS r (name)
                        WHERE e.oid = pg_catalog.to_regclass(p.vectors))
                  THEN pg_catalog.format('ALTER TABLE %s OWNER TO %I', p.vectors, pg_catalog.pg_get_userbyid(w.relowner)) END,
         'hnsw', COALESCE(g.ready, false), 'indexed', COALESCE(g.declared, false),
         'column_misfit', (SELECT pg_catalog.format_type(a.atttypid, a.atttypmod)
                             FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_type t ON t.oid = a.atttypid
                            WHERE a.attrelid = c.oid AND a.attname = p.into_column AND NOT a.attisdropped
                              AND NOT (t.typname = p.storage AND a.atttypmod IN (-1, p.dimensions)
                                       AND t.typnamespace = (SELECT x.extnamespace FROM pg_catalog.pg_extension x WHERE x.extname = 'vector'))),
         'owner_path', (SELECT pg_catalog.substr(o.setting, 13)
                          FROM pg_catalog.pg_db_role_setting r CROSS JOIN LATERAL pg_catalog.unnest(r.setconfig) AS o (setting)
                         WHERE r.setrole = c.relowner AND o.setting LIKE 'search\_path=%'
                           AND r.setdatabase IN (0, (SELECT d.oid FROM pg_catalog.pg_database d WHERE d.datname = pg_catalog.current_database()))
                         ORDER BY r.setdatabase DESC LIMIT 1),
         'vectors_exist', pg_catalog.to_regclass(p.vectors) IS NOT NULL,
         'source_oid', c.oid::bigint,
         'rows_of', CASE WHEN c.relkind = 'p' THEN s.relation ELSE 'ONLY ' || s.relation END,
         'unlogged', COALESCE(c.relpersistence = 'u', false),
         'captured', (SELECT pg_catalog.count(*) = 2 FROM pg_catalog.pg_trigger t
                       WHERE t.tgrelid = pg_catalog.to_regclass(s.relation)
                         AND t.tgname IN ('00_recsync_capture_' || s.id, '00_recsync_truncate_' || s.id) AND t.tgenabled IN ('O', 'A')),
         'keys', {keys},
         'missing_column', (SELECT pg_catalog.min(u.name) FROM pg_catalog.unnest(p.used_columns || s.key_columns || p.into_column) AS u (name)
                             WHERE u.name IS NOT NULL AND NOT EXISTS (SELECT FROM pg_catalog.pg_attribute a
                                                WHERE a.attrelid = pg_catalog.to_regclass(s.relation)
                                                  AND a.attname = u.name AND NOT a.attisdropped)),
         'dead_letters', EXISTS (SELECT FROM recsync.dead_letter_log l WHERE l.pipeline_id = p.id),
         'backfilled', COALESCE((SELECT b.finished_at IS NOT NULL FROM recsync.backfill b WHERE b.pipeline_id = p.id), false),
         'restored', NOT EXISTS (SELECT FROM recsync.backfill b WHERE b.pipeline_id = p.id),
         'backfill_round', COALESCE((SELECT b.round FROM recsync.backfill b WHERE b.pipeline_id = p.id), 0),
         'vectors_unlogged', COALESCE((SELECT v.relpersistence = 'u' FROM pg_catalog.pg_class v WHERE v.oid = pg_catalog.to_regclass(p.vectors)), false),
         'filling', pg_catalog.jsonb_build_object('held', p.backfill_held IS NOT NULL, 'adopted', EXISTS (SELECT FROM recsync.adopted a WHERE a.pipeline_id = p.id))
                    || COALESCE((SELECT pg_catalog.jsonb_build_object('done', b.done, 'total', b.total, 'row_filter', b.row_filter, 'rate', b.rate, 'advised', b.advised IS NOT NULL)
                                   FROM recsync.backfill b WHERE b.pipeline_id = p.id), '{"done": 0, "advised": false}'),
         'backfill_after', (SELECT pg_catalog.to_jsonb(b.after_key) FROM recsync.backfill b WHERE b.pipeline_id = p.id),
         'server_options', v.options, 'mapping_options', v.mapping, 'server_usable', v.usable))::text
  FROM recsync.pipeline p
  JOIN recsync.source s ON s.id = p.source_id
  LEFT JOIN pg_catalog.pg_class c ON c.oid = pg_catalog.to_regclass(s.relation)
  LEFT JOIN pg_catalog.pg_class w ON w.oid = pg_catalog.to_regclass(p.relation)
  CROSS JOIN LATERAL (
       SELECT pg_catalog.bool_or(i.indisready) AS ready,
              pg_catalog.bool_or(i.indisvalid AND i.indpred IS NULL AND CASE p.index
                  WHEN 'hnsw' THEN o.opcname = p.storage || CASE p.distance WHEN 'inner_product' THEN '_ip_ops' WHEN 'l2' THEN '_l2_ops' ELSE '_cosine_ops' END
                       AND pg_catalog.pg_get_indexdef(i.indexrelid, 1, false) = 'embedding'
                  WHEN 'hnsw_bit' THEN o.opcname = 'bit_hamming_ops'
                       AND pg_catalog.pg_get_indexdef(i.indexrelid, 1, false) LIKE '%binary_quantize(embedding)%'
                  ELSE false END) AS declared
         FROM pg_catalog.pg_index i
         JOIN pg_catalog.pg_opclass o ON o.oid = i.indclass[0] JOIN pg_catalog.pg_am m ON m.oid = o.opcmethod
        WHERE m.amname = 'hnsw' -- a row of the source that gets a vector has a new entry in each of its indexes
          AND CASE WHEN p.into_column IS NULL THEN i.indrelid = pg_catalog.to_regclass(p.vectors)
                   ELSE i.indrelid = c.oid OR i.indrelid IN (SELECT t.relid FROM pg_catalog.pg_partition_tree(c.oid::regclass) t) END) g
  LEFT JOIN LATERAL (
       SELECT (SELECT pg_catalog.jsonb_agg(pg_catalog.jsonb_build_array(o.option_name, o.option_value))
                 FROM pg_catalog.pg_options_to_table(f.srvoptions) o) AS options,
              (SELECT pg_catalog.jsonb_agg(pg_catalog.jsonb_build_array(o.option_name, o.option_value))
                 FROM (SELECT m.umoptions FROM pg_catalog.pg_user_mapping m
                        WHERE m.umserver = f.oid AND m.umuser IN (0, w.relowner)
                        ORDER BY m.umuser DESC LIMIT 1) m, pg_catalog.pg_options_to_table(m.umoptions) o) AS mapping,
              pg_catalog.has_server_privilege(w.relowner, f.oid, 'USAGE') AS usable
         FROM pg_catalog.pg_foreign_server f JOIN pg_catalog.pg_foreign_data_wrapper d ON d.oid = f.srvfdw
        WHERE f.srvname = p.server AND d.fdwname = 'recsync') v ON true
 WHERE $1 IS NULL OR $1 IN (p.relation, p.vectors)
 ORDER BY p.id
