(SELECT pg_catalog.jsonb_build_object(
          'pipeline_id', p.id, 'relation', p.relation, 'table', p.vectors, 'storage', p.storage, 'dimensions', p.dimensions, 'distance', p.distance,
          'schema', (SELECT pg_catalog.quote_ident(n.nspname) FROM pg_catalog.pg_extension x JOIN pg_catalog.pg_namespace n ON n.oid = x.extnamespace WHERE x.extname = 'vector'),
          'key', (SELECT pg_catalog.quote_ident(a.attname) FROM pg_catalog.pg_attribute a
                   WHERE a.attrelid = pg_catalog.to_regclass(p.relation) AND a.attnum = 1),
          'by_bits', p.index = 'hnsw_bit' AND EXISTS (
               SELECT FROM pg_catalog.pg_index x JOIN pg_catalog.pg_opclass o ON o.oid = x.indclass[0]
                WHERE x.indrelid = pg_catalog.to_regclass(p.vectors) AND x.indisvalid AND x.indpred IS NULL AND o.opcname = 'bit_hamming_ops'),
          -- Changes of the vectors are noted, and all there is of a vector is in the table; and so are interests kept.
          'noted', p.into_column IS NULL AND pg_catalog.to_regclass('recsync.interest_' || r.id) IS NOT NULL
               AND pg_catalog.to_regclass('recsync.revised_' || r.id) IS NOT NULL AND EXISTS (
               SELECT FROM pg_catalog.pg_trigger t WHERE t.tgrelid = pg_catalog.to_regclass(p.vectors)
                  AND t.tgname = '00_recsync_revise_' || r.id AND t.tgenabled IN ('O', 'A')),
          'outdated', p.into_column IS NULL AND pg_catalog.to_regclass('recsync.interest_' || r.id) IS NOT NULL
               AND pg_catalog.to_regclass('recsync.revised_' || r.id) IS NOT NULL AND NOT EXISTS (
               SELECT FROM pg_catalog.pg_trigger t WHERE t.tgrelid = pg_catalog.to_regclass(p.vectors)
                  AND t.tgname = '00_recsync_revise_' || r.id AND t.tgenabled IN ('O', 'A')))
   FROM recsync.pipeline p
  WHERE p.id = r.pipeline_id AND pg_catalog.to_regclass(p.relation) IS NOT NULL AND pg_catalog.to_regclass(p.vectors) IS NOT NULL)
