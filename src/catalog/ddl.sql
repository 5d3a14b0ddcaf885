-- The declared tables, pipelines and recommenders as they are: by their names, or ($1) by the OIDs that their names had before a command.
WITH relation AS (
    SELECT n.name, c.oid, c.relowner AS owner, pg_catalog.format('%I.%I', s.nspname, c.relname) AS current
      FROM (SELECT relation AS name FROM recsync.source UNION SELECT relation FROM recsync.pipeline UNION SELECT vectors FROM recsync.pipeline UNION SELECT items FROM recsync.recommender
            UNION SELECT impressions ->> 'relation' FROM recsync.recommender WHERE impressions IS NOT NULL) n
      JOIN pg_catalog.pg_class c ON c.oid = COALESCE(($1::jsonb -> 'relations' ->> n.name)::oid, CASE WHEN $1 IS NULL THEN pg_catalog.to_regclass(n.name) END)
      JOIN pg_catalog.pg_namespace s ON s.oid = c.relnamespace
), tree AS (
    SELECT s.id, r.oid AS relid FROM recsync.source s JOIN relation r ON r.name = s.relation
     UNION
    SELECT s.id, t.relid::oid FROM recsync.source s JOIN relation r ON r.name = s.relation
     CROSS JOIN LATERAL pg_catalog.pg_partition_tree(r.oid::regclass) t
)
SELECT pg_catalog.jsonb_build_object(
         'sources', (SELECT pg_catalog.jsonb_agg(pg_catalog.jsonb_build_object(
              'id', s.id, 'stored', s.relation, 'oid', r.oid::bigint, 'current', r.current, 'owner', r.owner::bigint,
              'key_columns', s.key_columns, 'used_columns', s.used_columns,
              'attributes', (SELECT pg_catalog.jsonb_agg(pg_catalog.jsonb_build_object(
                                      'number', a.attnum, 'name', a.attname, 'dropped', a.attisdropped, 'modifier', a.atttypmod,
                                      'type', CASE WHEN NOT a.attisdropped THEN pg_catalog.format_type(a.atttypid, NULL) END,
                                      'type_oid', a.atttypid::bigint))
                               FROM pg_catalog.pg_attribute a WHERE a.attrelid = r.oid AND a.attnum > 0),
              'file', (SELECT pg_catalog.string_agg(pg_catalog.pg_relation_filenode(t.relid)::text, ' ' ORDER BY t.relid) FROM tree t WHERE t.id = s.id),
              'tables', (SELECT pg_catalog.jsonb_agg(t.relid::bigint ORDER BY t.relid) FROM tree t WHERE t.id = s.id),
              'unseen_off', EXISTS (SELECT FROM tree t JOIN pg_catalog.pg_trigger g ON g.tgrelid = t.relid
                            WHERE t.id = s.id AND g.tgenabled = 'O' AND g.tgname = '00_recsync_unseen_' || s.id),
              'disabled', (SELECT pg_catalog.jsonb_agg(g.oid::bigint ORDER BY g.oid) FROM tree t JOIN pg_catalog.pg_trigger g ON g.tgrelid = t.relid
                            WHERE t.id = s.id AND g.tgenabled IN ('D', 'R')
                              AND g.tgname IN ('00_recsync_capture_' || s.id, '00_recsync_truncate_' || s.id)))
                ORDER BY s.id)
            FROM recsync.source s LEFT JOIN relation r ON r.name = s.relation),
         'pipelines', (SELECT pg_catalog.jsonb_agg(pg_catalog.jsonb_build_object(
              'id', p.id, 'source_id', p.source_id, 'of_pipeline', p.of_pipeline,
              'stored', p.relation, 'oid', r.oid::bigint, 'current', r.current, 'owner', r.owner::bigint,
              'stored_vectors', p.vectors, 'vectors_oid', v.oid::bigint, 'vectors', v.current,
              'stored_server', p.server, 'server_oid', f.oid::bigint, 'server', f.srvname,
              'columns', p.columns, 'into_column', p.into_column, 'used_columns', p.used_columns, 'content', p.content, 'row_filter', p.row_filter,
              'shown', (SELECT pg_catalog.jsonb_agg(a.attname ORDER BY a.attnum) FROM pg_catalog.pg_attribute a
                         WHERE a.attrelid = r.oid AND a.attnum > 0 AND a.attnum <= pg_catalog.cardinality(s.key_columns)))
                ORDER BY p.id)
            FROM recsync.pipeline p JOIN recsync.source s ON s.id = p.source_id
            LEFT JOIN relation r ON r.name = p.relation LEFT JOIN relation v ON v.name = p.vectors
            LEFT JOIN pg_catalog.pg_foreign_server f
                   ON CASE WHEN $1 IS NULL THEN f.srvname = p.server ELSE f.oid = ($1::jsonb -> 'servers' ->> p.server)::oid END),
         'recommenders', (SELECT pg_catalog.jsonb_agg(pg_catalog.jsonb_build_object(
              'id', e.id, 'of', m.id, 'source_id', e.source_id, 'name', (pg_catalog.parse_ident(m.name))[2],
              'schema_oid', n.oid::bigint, 'schema', n.nspname,
              'stored', m.items, 'oid', r.oid::bigint, 'current', r.current, 'used_columns', e.used_columns,
              'of_interactions', pg_catalog.jsonb_build_object(
                  'user_expression', e.user_expression, 'item_expression', e.item_expression, 'at_expression', e.at_expression,
                  'weight', e.weight, 'seen', e.seen),
              'of_items', CASE WHEN e.id = m.id THEN pg_catalog.jsonb_build_object('eligible', m.eligible, 'boost', m.boost) ELSE '{}' END,
              'impressions', CASE WHEN e.id = m.id AND m.impressions IS NOT NULL THEN pg_catalog.jsonb_build_object(
                  'stored', m.impressions, 'oid', w.oid::bigint, 'current', w.current,
                  'columns', (SELECT pg_catalog.jsonb_object_agg(a.attnum, a.attname) FROM pg_catalog.pg_attribute a
                               WHERE a.attrelid = w.oid AND a.attnum > 0 AND NOT a.attisdropped)) END)
                ORDER BY e.id)
            FROM recsync.recommender m JOIN recsync.member e ON e.recommender_id = m.id LEFT JOIN relation r ON r.name = m.items
            LEFT JOIN relation w ON w.name = m.impressions ->> 'relation'
            LEFT JOIN pg_catalog.pg_namespace n
                   ON CASE WHEN $1 IS NULL THEN n.nspname = (pg_catalog.parse_ident(m.name))[1] ELSE n.oid = ($1::jsonb -> 'schemas' ->> m.id::text)::oid END))::text
 WHERE EXISTS (SELECT FROM recsync.source)
