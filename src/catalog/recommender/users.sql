(SELECT pg_catalog.jsonb_build_object(
          'pipeline_id', u.id, 'relation', u.relation, 'key', pg_catalog.quote_ident(a.attname), 'type', pg_catalog.format_type(a.atttypid, -1),
          -- Of one column, by the model of the items' vectors, and for their owner to read.
          'usable', COALESCE(pg_catalog.cardinality(k.key_columns) = 1 AND u.server = p.server AND u.dimensions = p.dimensions
               AND pg_catalog.has_table_privilege(i.relowner, a.attrelid, 'SELECT'), false))
   FROM recsync.pipeline u JOIN recsync.source k ON k.id = u.source_id
   LEFT JOIN recsync.pipeline p ON p.id = r.pipeline_id
   LEFT JOIN pg_catalog.pg_attribute a ON a.attrelid = pg_catalog.to_regclass(u.relation) AND a.attnum = 1
  WHERE u.id = r.users_pipeline_id)